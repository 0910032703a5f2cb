"""From a raw table to a usable one: checks, cleaning, duplicates, and the hash split."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from logging import WARNING
from typing import TYPE_CHECKING, Any

from flwr.common import log

from feddtpt_flwr.data.errors import DataError
from feddtpt_flwr.data.task import Task, label_key

if TYPE_CHECKING:
    import pandas as pd

_TEST_SHARE = 0.2
_LINE_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
_COLUMN_SEPARATOR = "\x1f"  # ASCII's own unit separator: stands in no ordinary text
_NUM_SHOWN, _SHOWN_CHARS = 5, 40  # of what a column holds, in messages


@dataclass(frozen=True, eq=False)
class Tables:
    """The rows of a task: its text columns and its label column, no text twice.

    Attributes
    ----------
    train, test : pandas.DataFrame
        Columns ``task.text_columns`` and ``task.label_column``; no text is in both.
    """

    train: pd.DataFrame
    test: pd.DataFrame


@dataclass(frozen=True)
class Repeats:
    """How many rows hold a text that another one before them holds.

    Attributes
    ----------
    rows : int
        All of them; they are left out.
    other_label : int
        Those of them that have another label than the first row with their text.
    """

    rows: int
    other_label: int

    @classmethod
    def among(cls, rows: Iterable[tuple[str, object]]) -> Repeats:
        """Count rows that are given by the key of their text and their label."""
        first: dict[str, object] = {}
        labels = [(label, first.setdefault(key, label)) for key, label in rows]
        other = sum(label != kept for label, kept in labels)
        return cls(len(labels) - len(first), other)

    def warn(self, origin: str) -> None:
        """Say in the log what is left out, if anything is."""
        if self.rows:
            log(WARNING, "%s: %s", origin, self)

    def __str__(self) -> str:
        """Return a description without any text."""
        return (
            f"{self.rows:,} rows that repeat another's text are left out, {self.other_label:,} of "
            "them with another label"
        )


@dataclass(frozen=True)
class Cleaning:
    """What a source changes in its rows before they are used.

    Attributes
    ----------
    max_words : int
        Keep the first so many words of each text column; 0 keeps the text as it is.
    strip_breaks : bool
        Replace ``<br />`` tags by a space.
    drop_incomplete : bool
        Drop rows without text or label instead of reporting them.
    """

    max_words: int = 0
    strip_breaks: bool = False
    drop_incomplete: bool = False

    def __post_init__(self) -> None:
        if self.max_words < 0:
            raise DataError(f"max_words is {self.max_words}: 0 or more is needed")


NO_CLEANING = Cleaning()


def prepare(
    frame: pd.DataFrame, task: Task, origin: str, cleaning: Cleaning = NO_CLEANING
) -> pd.DataFrame:
    """Check a raw table, keep the task's columns, and clean the texts.

    Parameters
    ----------
    frame : pandas.DataFrame
        Rows in the order of their source.
    task : Task
        Names the columns and the labels.
    origin : str
        Where the rows come from, for messages.
    cleaning : Cleaning
        What to change.

    Raises
    ------
    DataError
        If a column is missing or there twice, a text or label is empty or no single value, a label
        is not declared, or no row is left.
    """
    columns = [*task.text_columns, task.label_column]
    for column in columns:
        if column not in frame.columns:
            there = ", ".join(map(repr, frame.columns))
            raise DataError(f"{origin}: column {column!r} is missing; columns there: {there}")
        if list(frame.columns).count(column) > 1:
            raise DataError(f"{origin}: there is more than one column {column!r}")
    frame = frame[columns].reset_index(drop=True)
    check_values(frame, columns, origin)
    for column in task.text_columns:
        frame[column] = _clean_text(frame[column], cleaning)
    if cleaning.drop_incomplete:
        frame = frame[~frame.apply(_missing).any(axis=1)].reset_index(drop=True)
    _check_rows(frame, task, origin)
    return frame


def check_values(frame: pd.DataFrame, columns: Iterable[str], origin: str) -> None:
    """Refuse cells with lists, bytes and the like, which JSONL and Parquet files may have.

    Parameters
    ----------
    frame : pandas.DataFrame
        Rows in the order of their source.
    columns : iterable of str
        The columns to look at; others may hold anything.
    origin : str
        Where the rows come from, for the message, which names no cell.

    Raises
    ------
    DataError
        If a cell is no single value.
    """
    for column in columns:
        for row, value in enumerate(frame[column].tolist(), start=1):
            if not isinstance(value, str) and isinstance(value, Collection):
                raise DataError(
                    f"{origin}: row {row} (the first row of data is 1) holds a value of type "
                    f"{type(value).__name__!r} in column {column!r}; a string or a number is needed"
                )


def is_missing(value: object) -> bool:
    """Return whether a cell is empty: nothing, no number, no time, or an empty string."""
    import pandas as pd

    return value == "" if isinstance(value, str) else bool(pd.isna(value))  # type: ignore[call-overload]


def _missing(cells: pd.Series[Any]) -> pd.Series[bool]:
    return cells.astype(object).map(is_missing).astype(bool)


def _clean_text(texts: pd.Series[str], cleaning: Cleaning) -> pd.Series[str]:
    """Clean one column; text that is missing or only white space becomes ``""``."""
    # Half a character, as JSON's escapes can make one, cannot be sent to any model.
    texts = texts.astype(object).where(texts.notna(), "")
    texts = texts.map(lambda text: str(text).encode("utf-8", "replace").decode("utf-8"))
    if cleaning.strip_breaks:
        texts = texts.map(lambda text: _LINE_BREAK.sub(" ", text))
    if cleaning.max_words:
        texts = texts.map(lambda text: " ".join(text.split()[: cleaning.max_words]))
    return texts.map(lambda text: text if text.strip() else "")


def _check_rows(frame: pd.DataFrame, task: Task, origin: str) -> None:
    if frame.empty:
        raise DataError(f"{origin}: there is no row")
    for column in frame.columns:
        empty = _missing(frame[column]).to_numpy().nonzero()[0]
        if len(empty):
            raise DataError(
                f"{origin}: row {empty[0] + 1} (the first row of data is 1) is empty in column "
                f"{column!r}"
            )
    declared = [label_key(label) for label in task.labels]
    found = Counter(map(label_key, frame[task.label_column].tolist()))
    if undeclared := {key: rows for key, rows in found.items() if key not in declared}:
        raise DataError(
            f"{origin}: {sum(undeclared.values())} of {len(frame)} rows hold {len(undeclared)} "
            f"labels in column {task.label_column!r} that task {task.name!r} does not declare: "
            f"{_some(undeclared)}; declared: {declared}"
        )


def _some(values: Collection[str]) -> str:
    """Return the first of the values, in order and cut, and the number of the others."""
    shown = [value[:_SHOWN_CHARS] for value in sorted(values)[:_NUM_SHOWN]]
    more = len(values) - len(shown)
    return f"{shown} and {more} more" if more else f"{shown}"


def text_key(text: str) -> str:
    """Return what two texts have in common that differ in white space alone."""
    return " ".join(text.split())


def loose_key(text: str) -> str:
    """Return what two texts have in common that differ in white space, case or Unicode's forms."""
    return text_key(unicodedata.normalize("NFKC", text).casefold())


def separate(
    train: pd.DataFrame,
    test: pd.DataFrame | None,
    task: Task,
    *,
    key: Callable[[str], str] = text_key,
    origin: str = "",
) -> Tables:
    """Drop repeated texts and keep train and test apart.

    A text counts as repeated when the keys of all text columns agree; the first row is kept,
    whatever its label. A text of the test set is dropped from train. With ``test=None``, ``train``
    is split by `split_by_hash`.

    Parameters
    ----------
    train, test : pandas.DataFrame
        Rows as `prepare` returns them.
    task : Task
        Names the columns.
    key : callable
        What two texts that count as one have in common.
    origin : str
        Where the rows come from, for a warning about what is dropped; empty for none.

    Raises
    ------
    DataError
        If no row is left for training.
    """
    tables = split_by_hash(train, task) if test is None else Tables(train=train, test=test)
    train_keys, test_keys = (_text_keys(f, task, key) for f in (tables.train, tables.test))
    if origin:
        keys = [*test_keys, *train_keys]
        labels = [*tables.test[task.label_column], *tables.train[task.label_column]]
        Repeats.among(zip(keys, map(label_key, labels), strict=True)).warn(origin)
    kept = tables.train[~train_keys.duplicated() & ~train_keys.isin(test_keys)]
    if kept.empty and test is not None:
        raise DataError(f"task {task.name!r}: every text of train is in test as well")
    return Tables(
        train=kept.reset_index(drop=True),
        test=tables.test[~test_keys.duplicated()].reset_index(drop=True),
    )


def split_by_hash(frame: pd.DataFrame, task: Task) -> Tables:
    """Split rows about 80/20 into train and test by a hash of their text.

    Neither a seed nor the order of the rows nor the other rows decide where a row goes, so the
    test set stays the same from run to run and when data is added.
    """
    in_test = _text_keys(frame, task, text_key).map(is_held_out).astype(bool)
    return Tables(
        train=frame[~in_test].reset_index(drop=True), test=frame[in_test].reset_index(drop=True)
    )


def _text_keys(frame: pd.DataFrame, task: Task, key: Callable[[str], str]) -> pd.Series[str]:
    """Return the keys of each row's texts as one string."""
    columns = [frame[column].map(key) for column in task.text_columns]
    keys = columns[0]
    for column in columns[1:]:
        keys = keys + _COLUMN_SEPARATOR + column
    return keys


def is_held_out(key: str) -> bool:
    """Return whether a text belongs to the fifth that is held out: by a hash, so for ever."""
    digest = hashlib.blake2b(key.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < _TEST_SHARE

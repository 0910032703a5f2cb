"""Files as tables, told by their suffix: CSV, TSV, JSONL and Parquet."""

from __future__ import annotations

import codecs
import csv
import json
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from feddtpt_flwr.data.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

_CSV_NEEDS = (
    "needed is UTF-8 with commas between the fields, a field that holds a comma, a quote or a line "
    'break in double quotes, and quotes within it written twice ("")'
)
_TSV_NEEDS = "needed is UTF-8 with tabs between the fields; quotes are ordinary characters there"


def read_table(path: Path, columns: tuple[str, ...] = ()) -> pd.DataFrame:
    """Read a file of one of the kinds in `READERS`, as it is.

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

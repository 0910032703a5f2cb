"""Instructions with their responses, and where they are read from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feddtpt_flwr.data import DataError
from feddtpt_flwr.data.cleaning import is_held_out, text_key

# Instruction data sets agree on their content more than on its names.
FIELDS = {
    "instruction": ("instruction", "prompt", "question"),
    "response": ("response", "output", "answer"),
    "input": ("input", "context"),
    "topic": ("topic", "category"),
}


@dataclass(frozen=True, slots=True)
class Instruction:
    """What is asked, and the answer that is wanted.

    Attributes
    ----------
    instruction, response : str
        Neither empty.
    topic : str
        What the Dirichlet partition divides by; empty if there is none.
    choices : tuple of str
        For an instruction that classifies: the possible responses; empty for free text.
    about : str
        The part of the instruction that is private, where a task puts the same question to all
        texts; empty if all of it is.
    """

    instruction: str
    response: str
    topic: str = ""
    choices: tuple[str, ...] = ()
    about: str = ""

    @property
    def text(self) -> str:
        """Instruction and response together."""
        return f"{self.instruction} {self.response}"


@dataclass(frozen=True)
class InstructionData:
    """Instructions to train on and held-out ones; no instruction is in both.

    Attributes
    ----------
    train, test : tuple of Instruction
        Without repetitions.
    """

    train: tuple[Instruction, ...]
    test: tuple[Instruction, ...]


def separate(
    train: Iterable[Instruction], test: Iterable[Instruction] | None = None
) -> InstructionData:
    """Drop repeated instructions and keep train and test apart.

    Without ``test`` about a fifth is held out, by a hash of the instruction: neither a seed nor
    the other rows decide where a row goes.
    """
    unique = _unique(train)
    if test is None:
        held_out = {text for text in unique if is_held_out(text)}
        return InstructionData(
            tuple(row for text, row in unique.items() if text not in held_out),
            tuple(row for text, row in unique.items() if text in held_out),
        )
    held = _unique(test)
    return InstructionData(
        tuple(row for text, row in unique.items() if text not in held), tuple(held.values())
    )


def read_jsonl(path: Path) -> tuple[Instruction, ...]:
    """Read a file of JSON objects, one a line.

    Each has ``instruction`` and ``response``, and may have ``input`` (put below the instruction),
    ``topic`` and ``choices`` (a list of the possible responses). Some other common names are
    understood as well: see `FIELDS`. A row may fill only one name of a field.

    Raises
    ------
    DataError
        If the file cannot be read or a row is not as described. The message names rows and fields
        and never what is in them: on a node it goes to the server.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    rows: list[Instruction] = []
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    rows.append(parse_row(_load(line, path, number), f"{path}: line {number}"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {type(error).__name__}") from None
    if not rows:
        raise DataError(f"{path}: there is no row")
    return tuple(rows)


def parse_row(row: object, where: str) -> Instruction:
    """Return one row as an `Instruction`.

    Raises
    ------
    DataError
        If a field is missing, of the wrong kind or there twice; ``where`` begins the message.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: a JSON object is needed")
    texts = {field: _text(row, names, where) for field, names in FIELDS.items()}
    for field in ("instruction", "response"):
        if not texts[field]:
            raise DataError(
                f"{where}: field {field!r} is missing or empty; names understood: "
                f"{', '.join(FIELDS[field])}"
            )
    choices = row.get("choices") or ()
    if not isinstance(choices, (list, tuple)) or not all(isinstance(c, str) for c in choices):
        raise DataError(f"{where}: field 'choices' must be a list of texts")
    choices = tuple(choice.strip() for choice in choices)  # as the response
    if choices and texts["response"] not in choices:
        raise DataError(f"{where}: the response is not among its choices")
    parts = [texts["instruction"], texts["input"]]
    asked = "\n\n".join(part for part in parts if part)
    return Instruction(asked, texts["response"], texts["topic"], choices)


def read_hub(name: str) -> InstructionData:
    """Load a data set of the Hugging Face hub, or of a local folder that `datasets` understands.

    Its ``test`` split is held out if it has one.

    Raises
    ------
    DataError
        If it cannot be loaded or its columns are not understood.
    """
    import datasets  # slow to import, and needed here only

    try:
        splits = datasets.load_dataset(name)
    # Not narrower: besides OSError and ValueError, datasets lets its own errors and those of its
    # HTTP client through, and all of them mean the same here.
    except Exception as error:
        raise DataError(
            f"cannot load {name!r} from the Hugging Face hub: {error}. Check the name and the "
            "network, or use a .jsonl file or embedded data instead"
        ) from error
    if "train" not in splits:
        raise DataError(f"hub data set {name!r} has no split 'train'; splits: {', '.join(splits)}")

    def rows(split: str) -> list[Instruction]:
        return [
            parse_row(row, f"hub data set {name!r}, split {split!r}, row {number}")
            for number, row in enumerate(splits[split], start=1)
        ]

    return separate(rows("train"), rows("test") if "test" in splits else None)


def _load(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        raise DataError(f"{path}: line {number} is no JSON") from None


def _text(row: Mapping[str, Any], names: tuple[str, ...], where: str) -> str:
    found: dict[str, str] = {}
    for name in names:
        value = row.get(name)
        if value is None:
            continue
        if not isinstance(value, str):
            raise DataError(f"{where}: field {name!r} must be a text")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise DataError(f"{where}: field {name!r} holds half a character (a lone surrogate)")
        if value := value.strip():
            found[name] = value
    if len(found) > 1:
        raise DataError(
            f"{where}: {' and '.join(map(repr, found))} mean the same; only one may be filled"
        )
    return next(iter(found.values()), "")


def _unique(rows: Iterable[Instruction]) -> dict[str, Instruction]:
    unique: dict[str, Instruction] = {}
    for row in rows:
        unique.setdefault(text_key(row.instruction), row)
    return unique

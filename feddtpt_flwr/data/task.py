"""A classification task as a query to a language model: template, labels, answer words."""

from __future__ import annotations

import re
import string
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from feddtpt_flwr.data.errors import DataError
from feddtpt_flwr.language_model.answers import normal_form

PROMPT_FIELD = "prompt"

_ALSO_IN_NORMAL_FORM = (
    "also when case, white space and the kinds of dashes and apostrophes are ignored"
)

_NAME = re.compile(r"[\w-][\w .-]*")


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled input.

    Attributes
    ----------
    input : str
        The query without prompt and frame: what stands before the prompt or what follows it.
    label : int
        Index into the task's ``answers``.
    """

    input: str
    label: int


@dataclass(frozen=True)
class Task:
    r"""What the language model is asked, and which words are its answers.

    The query about an example is ``task.compose(prompt, example.input)``. Where the prompt stands
    last, all queries about an example begin alike, whatever the prompt: a local backend computes
    that once for the whole run, and services with a prompt cache charge less for it.

    Attributes
    ----------
    name : str
        Short name, used in results.
    template : str
        The query. Holds ``{prompt}`` once and, before or after it, at least one text column as
        ``{column}``, e.g. ``"Review: {text}\n\n{prompt}\nSentiment:"``. A column's name has
        neither dots nor brackets there. A literal brace is written twice.
    label_column : str
        Column that holds the label.
    labels : tuple of (str or int)
        The values of the label column as they stand in the data. Compared as strings, so
        that ``1`` and ``"1"`` agree.
    answers : tuple of str
        The verbalizer: the answer word of each label, in the same order.
    seed_prompt : str
        The prompt that the search starts from.
    synonyms : tuple of tuple of str
        Further words for each answer, in the same order, that count as that answer; empty for
        none. They matter with models that answer in their own words.

    Raises
    ------
    DataError
        If a field is invalid; the message names the field, its value and what is allowed.
    """

    name: str
    template: str
    label_column: str
    labels: tuple[str | int, ...]
    answers: tuple[str, ...]
    seed_prompt: str
    synonyms: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        for field in ("name", "template", "label_column", "seed_prompt"):
            value = getattr(self, field)
            if not isinstance(value, str) or not value.strip():
                self._reject(field, "a non-empty string is needed")
        if not _NAME.fullmatch(self.name):
            # Run folders are named after it.
            self._reject("name", "letters, digits, spaces, '.', '_' and '-' are allowed")
        self._check_template()
        self._check_labels()
        self._check_answers()
        self._check_synonyms()

    def _check_template(self) -> None:
        try:
            segments = _segments(self.template)
        except ValueError as error:
            self._reject("template", f"{error}; a literal brace is written twice")
        names = [name for _, name in segments if name is not None]
        renamed = "a column of that name in the data must be renamed"
        if names.count(PROMPT_FIELD) != 1:
            self._reject(
                "template", f"{{prompt}} is needed exactly once, for the prompt; {renamed}"
            )
        if len(names) == 1:
            self._reject(
                "template", f"at least one text column is needed besides {{prompt}}; {renamed}"
            )
        if self.label_column == PROMPT_FIELD:
            self._reject("label_column", f"{{prompt}} stands for the prompt; {renamed}")
        if PROMPT_FIELD not in (names[0], names[-1]):
            self._reject("template", "{prompt} must stand before all text columns or after them")
        if self.label_column in names:
            self._reject("template", f"it gives the label column {{{self.label_column}}} away")

    def _check_labels(self) -> None:
        labels = self.labels
        if not isinstance(labels, tuple) or not all(type(value) in (str, int) for value in labels):
            self._reject("labels", "a tuple of strings or integers is needed")
        if len(labels) < 2 or len({label_key(value) for value in labels}) != len(labels):
            self._reject("labels", "two or more values are needed, different as strings")

    def _check_answers(self) -> None:
        answers = self.answers
        if not isinstance(answers, tuple) or not all(isinstance(word, str) for word in answers):
            self._reject("answers", "a tuple of strings is needed")
        if len(answers) != len(self.labels):
            self._reject(
                "answers", f"one answer for each of the {len(self.labels)} labels is needed"
            )
        if any(not word or word != word.strip() for word in answers):
            self._reject("answers", "every answer must be non-empty, without space at its ends")
        if len(set(map(normal_form, answers))) != len(answers):
            self._reject("answers", f"the answers must differ, {_ALSO_IN_NORMAL_FORM}")

    def _check_synonyms(self) -> None:
        synonyms = self.synonyms
        if not isinstance(synonyms, tuple) or not all(
            isinstance(words, tuple) and all(isinstance(word, str) for word in words)
            for words in synonyms
        ):
            self._reject("synonyms", "a tuple of strings is needed for each answer")
        if synonyms and len(synonyms) != len(self.answers):
            self._reject(
                "synonyms", f"as many are needed as answers, {len(self.answers)}; () for none"
            )
        words = [word for others in synonyms for word in others]
        if any(not word or word != word.strip() for word in words):
            self._reject("synonyms", "every word must be non-empty, without space at its ends")
        words += self.answers
        if len(set(map(normal_form, words))) != len(words):
            self._reject("synonyms", f"no word may stand twice, {_ALSO_IN_NORMAL_FORM}")

    def _reject(self, field: str, allowed: str) -> NoReturn:
        raise DataError(f"task {self.name!r}: {field} is {getattr(self, field)!r}: {allowed}")

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Columns that the template names, in its order, each once."""
        names = (name for _, name in _segments(self.template))
        return tuple(dict.fromkeys(name for name in names if name and name != PROMPT_FIELD))

    @property
    def num_labels(self) -> int:
        """Number of classes."""
        return len(self.labels)

    def label_index(self, value: object) -> int:
        """Return the class index of a value of the label column.

        Raises
        ------
        DataError
            If the value is not one of ``labels``.
        """
        keys = [label_key(label) for label in self.labels]
        if (key := label_key(value)) not in keys:
            raise DataError(f"task {self.name!r}: label {key!r} is not declared; labels: {keys}")
        return keys.index(key)

    def compose(self, prompt: str, text: str) -> str:
        """Return the query with ``prompt`` about an example whose `Example.input` is ``text``."""
        # Concatenated, not formatted: a prompt may hold braces of its own.
        before, after = _frame(self.template)
        query = f"{before}{prompt}{text}" if _prompt_first(self.template) else f"{text}{prompt}"
        return query + after

    def render(self, row: Mapping[str, object]) -> str:
        """Return the `Example.input` of ``row``: the template's part with the columns, filled in.

        White space at the ends of each value is dropped: it is an artefact of how files were
        written, and changes how a language model splits the words.
        """
        parts: list[str] = []
        for literal, name in _text_segments(self.template):
            parts.append(literal)
            if name is not None:
                parts.append(str(row[name]).strip())
        return "".join(parts)

    @classmethod
    def from_toml(cls, path: str | Path) -> Task:
        """Read a task from a TOML file whose top-level keys are the fields of this class.

        Raises
        ------
        DataError
            If the file is missing or no TOML, a key is unknown or missing, or a value is
            invalid.
        """
        path = Path(path)
        try:
            table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read task file {path}: {error}") from error
        keys = [field.name for field in fields(cls)]
        if unknown := [key for key in table if key not in keys]:
            raise DataError(f"{path}: unknown key {unknown[0]!r}; allowed keys: {', '.join(keys)}")
        required = [field.name for field in fields(cls) if field.default is MISSING]
        if missing := [key for key in required if key not in table]:
            raise DataError(f"{path}: key {missing[0]!r} is missing; keys: {', '.join(keys)}")
        values: dict[str, Any] = {key: _frozen(value) for key, value in table.items()}
        return cls(**values)


def label_key(value: object) -> str:
    """Return a label's value as the string it is compared by.

    A column of integers with a gap in it comes as floats, hence ``1.0`` gives ``"1"``.
    """
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _frozen(value: object) -> object:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


@lru_cache(maxsize=128)
def _segments(template: str) -> tuple[tuple[str, str | None], ...]:
    """Split a template into (literal text, name of the field that follows it or None)."""
    segments: list[tuple[str, str | None]] = []
    before = ""
    for literal, name, spec, conversion in string.Formatter().parse(template):
        # With dots or brackets in it, `str.format` would look inside the column's value.
        if name is not None and (not name.strip() or set(".[") & set(name) or spec or conversion):
            raise ValueError("fields must be plain {column} names, without dots or brackets")
        before += literal  # the parser also stops at every brace that is written twice
        if name is not None:
            segments.append((before, name))
            before = ""
    if before:
        segments.append((before, None))
    return tuple(segments)


def _prompt_first(template: str) -> bool:
    return _segments(template)[0][1] == PROMPT_FIELD


def _frame(template: str) -> tuple[str, str]:
    """Return the literals at the prompt's far side: before a first prompt, after a last one."""
    segments = _segments(template)
    if _prompt_first(template):
        return segments[0][0], ""
    return "", segments[-1][0] if segments[-1][1] is None else ""


def _text_segments(template: str) -> tuple[tuple[str, str | None], ...]:
    """Return the segments with the text columns, up to the prompt or from it on."""
    segments = _segments(template)
    if _prompt_first(template):
        return segments[1:]
    place = [name for _, name in segments].index(PROMPT_FIELD)
    return (*segments[:place], (segments[place][0], None))

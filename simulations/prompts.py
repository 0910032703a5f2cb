"""Prompts before and after, with what has changed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Piece:
    """A stretch of a prompt, with the space before it, and whether the other prompt lacks it."""

    text: str
    changed: bool

    @property
    def words(self) -> str:
        """The text without the space before it."""
        return self.text.lstrip()

    @property
    def space(self) -> str:
        """The space before it; empty if there is none."""
        return self.text[: len(self.text) - len(self.words)]


def highlight(before: str, after: str) -> tuple[list[Piece], list[Piece]]:
    """Split both prompts into stretches that they share and stretches that they do not.

    Words and punctuation marks are compared as they are written.
    """
    old, new = _words(before), _words(after)
    matcher = SequenceMatcher(
        a=[word.strip() for word in old], b=[word.strip() for word in new], autojunk=False
    )
    left: list[Piece] = []
    right: list[Piece] = []
    for tag, a, b, c, d in matcher.get_opcodes():
        left += _piece(old[a:b], tag != "equal")
        right += _piece(new[c:d], tag != "equal")
    return left, right


def _words(text: str) -> list[str]:
    """Return words and marks, each with the space before it."""
    ends = [match.end() for match in _WORD.finditer(text)]
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _piece(words: Sequence[str], changed: bool) -> list[Piece]:
    return [Piece("".join(words), changed)] if words else []

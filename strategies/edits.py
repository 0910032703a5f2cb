"""Edits: what turned the prompt that was sent into the one that came back."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

Operator = Literal["replace", "insert", "delete"]


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace the tokens in ``[start, stop)`` of a prompt by others.

    An empty span is an insertion, empty tokens are a deletion.

    Attributes
    ----------
    start, stop
        Half-open span of token positions, ``0 <= start <= stop``.
    tokens
        What stands there afterwards.
    """

    start: int
    stop: int
    tokens: tuple[int, ...]

    @property
    def operator(self) -> Operator:
        """What kind of change this is."""
        if self.start == self.stop:
            return "insert"
        return "replace" if self.tokens else "delete"

    def apply(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """Return the changed tokens."""
        return tokens[: self.start] + self.tokens + tokens[self.stop :]

    def around(self, tokens: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return what stands before the end of the new tokens, them included, and after it."""
        return tokens[: self.start] + self.tokens, tokens[self.stop :]

    def after(self, other: "Edit") -> "Edit | None":
        """Return the same change of the prompt that ``other`` has changed before.

        None where both touch the same tokens.
        """
        if self.conflicts(other):
            return None
        shift = len(other.tokens) - (other.stop - other.start) if other.start < self.start else 0
        return Edit(self.start + shift, self.stop + shift, self.tokens)

    def conflicts(self, other: "Edit") -> bool:
        """Return whether both edits touch the same tokens or insert at the same place."""
        if self.start == other.start:
            return True
        return self.start < other.stop and other.start < self.stop


def edits_between(before: Sequence[int], after: Sequence[int]) -> tuple[Edit, ...]:
    """Return edits that turn ``before`` into ``after``, left to right, none overlapping."""
    matcher = SequenceMatcher(a=before, b=after, autojunk=False)
    return tuple(
        Edit(start, stop, tuple(after[first:last]))
        for tag, start, stop, first, last in matcher.get_opcodes()
        if tag != "equal"
    )


def apply_edits(tokens: tuple[int, ...], edits: Sequence[Edit]) -> tuple[int, ...]:
    """Apply edits that all refer to the positions of ``tokens`` and do not conflict."""
    # From the right, so that no edit moves the positions of one still to come.
    for edit in sorted(edits, key=lambda e: e.start, reverse=True):
        tokens = edit.apply(tokens)
    return tokens


def merge(base: tuple[int, ...], prompts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Bring the edits of several prompts into the one they all started from.

    Parameters
    ----------
    base
        The prompt that was sent.
    prompts
        What came back, best first: where two edits conflict, the earlier prompt's stands.

    Returns
    -------
    tuple[int, ...]
        ``base`` with every edit that conflicts with none before it; may be empty if all that is
        left was deleted.
    """
    return deque(merges(base, prompts), maxlen=1).pop() if prompts else base


def merges(base: tuple[int, ...], prompts: Iterable[tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
    """Yield what `merge` makes of the first prompt, of the first two, of the first three, ….

    Each prompt is compared with ``base`` once, when its turn comes.
    """
    chosen: list[Edit] = []
    for prompt in prompts:
        # Edits of one prompt never conflict; at most one begins at a place, so they stay few.
        chosen += [
            edit
            for edit in edits_between(base, prompt)
            if not any(edit.conflicts(other) for other in chosen)
        ]
        yield apply_edits(base, chosen)

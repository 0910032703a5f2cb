"""What was tried where, and what it gave: the memory that steers the search."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from feddtpt_flwr.label_weights import accuracy
from strategies.candidates import Tokens
from strategies.edits import Edit, Operator

Change = Operator | Literal["rewrite"]
"""What a trial did to the prompt; a rewrite replaces all of it."""

SiteKey = tuple[Change, Tokens]


@dataclass(frozen=True, slots=True)
class Trial:
    """One change of the prompt and its result: the feedback record of Algorithm 1, step 4.

    Parameters
    ----------
    position : int
        Index of the first token concerned.
    before, after : Tokens
        The tokens there, before and after the change; for an insertion, ``before`` is the token
        that it follows.
    operator : {"replace", "insert", "delete", "rewrite"}
    gain : float
        Accuracy minus that of the unchanged prompt on the same examples, in [-1, 1].
    num_examples : int
        Examples on which both were compared.
    accuracy : float
        Accuracy of the changed prompt on these examples, in [0, 1] (see `label_weights`).
    accepted : bool
        Whether the search went on from the changed prompt.
    """

    position: int
    before: Tokens
    after: Tokens
    operator: Change
    gain: float
    num_examples: int
    accuracy: float
    accepted: bool

    @classmethod
    def of(
        cls,
        edit: Edit,
        tokens: Tokens,
        *,
        gain: float,
        correct: NDArray[np.bool_],
        accepted: bool,
        weights: NDArray[np.float64] | None = None,
    ) -> "Trial":
        """Record what ``edit`` did to the prompt ``tokens``.

        Parameters
        ----------
        gain : float
            Answers won minus answers lost, each by its weight.
        correct : NDArray[np.bool_]
            Which examples the changed prompt answered correctly, shape ``(n,)``.
        weights : NDArray[np.float64], optional
            What each of them counts, shape ``(n,)``; by default the same.
        """
        weights = np.ones(len(correct)) if weights is None else weights
        return cls(
            position=edit.start,
            before=site_tokens(edit, tokens),
            after=edit.tokens,
            operator=change(edit, tokens),
            gain=float(gain / weights.sum()),
            num_examples=len(correct),
            accuracy=accuracy(correct, weights),
            accepted=accepted,
        )

    def apply(self, tokens: Tokens) -> Tokens:
        """Make this change of the prompt ``tokens`` again."""
        replaced = 0 if self.operator == "insert" else len(self.before)
        return Edit(self.position, self.position + replaced, self.after).apply(tokens)


def change(edit: Edit, tokens: Tokens) -> Change:
    """Return what ``edit`` does to the prompt ``tokens``."""
    anew = edit.operator == "replace" and edit.stop - edit.start == len(tokens)
    return "rewrite" if anew else edit.operator


def site_tokens(edit: Edit, tokens: Tokens) -> Tokens:
    """Return the tokens by which experience with this place is remembered."""
    if edit.operator == "insert":
        return tokens[max(0, edit.start - 1) : edit.start]
    return tokens[edit.start : edit.stop]


class Feedback:
    """The trials of one client, over all rounds.

    Positions move when a prompt changes, so experience is kept by what stood there: by operator
    and by the tokens replaced, deleted or followed. That is what stays valid in another prompt.

    Parameters
    ----------
    on_record : Callable[[Trial], None], optional
        Told every new trial.
    """

    def __init__(self, on_record: Callable[[Trial], None] | None = None) -> None:
        self._trials: list[Trial] = []
        self._on_record = on_record or (lambda _: None)

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All trials, oldest first."""
        return tuple(self._trials)

    def record(self, trial: Trial) -> None:
        """Append the result of a trial."""
        self._trials.append(trial)
        self._on_record(trial)

    def site_counts(self) -> Mapping[SiteKey, tuple[int, int]]:
        """Return ``(successes, failures)`` for each operator and the tokens it was applied to."""
        counts: dict[SiteKey, list[int]] = defaultdict(lambda: [0, 0])
        for trial in self._trials:
            counts[trial.operator, trial.before][0 if trial.gain > 0 else 1] += 1
        return {site: (won, lost) for site, (won, lost) in counts.items()}

    def token_gains(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return every token that was put in, and its trial's gain; both of shape ``(trials,)``."""
        pairs = [(token, t.gain) for t in self._trials for token in t.after]
        tokens = np.array([token for token, _ in pairs], dtype=np.int64)
        return tokens, np.array([gain for _, gain in pairs], dtype=np.float64)

    def to_json(self) -> str:
        """Return the trials as JSON text."""
        return json.dumps([asdict(trial) for trial in self._trials])

    @classmethod
    def of(
        cls, trials: Iterable[Trial], on_record: Callable[[Trial], None] | None = None
    ) -> "Feedback":
        """Return the feedback of earlier trials; ``on_record`` is told the new ones only."""
        feedback = cls(on_record)
        feedback._trials = list(trials)
        return feedback

    @classmethod
    def from_json(cls, text: str) -> "Feedback":
        """Read what `to_json` wrote."""
        return cls.of(trial_from_dict(item) for item in json.loads(text))


def trial_from_dict(item: Mapping[str, Any]) -> Trial:
    """Read a trial that was written as JSON."""
    return Trial(**{**item, "before": tuple(item["before"]), "after": tuple(item["after"])})

"""What the answers to a changed prompt say: how likely the change helps."""

from dataclasses import dataclass
from functools import cached_property
from math import comb, inf, log

import numpy as np
from numpy.typing import NDArray

from feddtpt_flwr.feedback import Trial
from strategies.candidates import Tokens
from strategies.edits import Edit

PLACES = 12
"""As many won as lost is no evidence, whatever the weights add up to in another order."""


@dataclass(frozen=True)
class Measured:
    """A prompt and which examples it answers correctly, in the search's order of examples."""

    tokens: Tokens
    correct: NDArray[np.bool_]

    @property
    def accuracy(self) -> float:
        """Share of correct answers, in [0, 1]."""
        return float(self.correct.mean())


@dataclass(frozen=True)
class Runner:
    """A change in a race: which examples are answered correctly with and without it.

    Attributes
    ----------
    edit : Edit
        The change.
    order : NDArray[np.int64]
        The examples asked so far, shape ``(n,)``, as indices.
    correct, correct_before : NDArray[np.bool_]
        Which of them are answered correctly with and without the change, shape ``(n,)``.
    weights : NDArray[np.float64]
        What each of them counts, shape ``(n,)`` (see `label_weights`).
    """

    edit: Edit
    order: NDArray[np.int64]
    correct: NDArray[np.bool_]
    correct_before: NDArray[np.bool_]
    weights: NDArray[np.float64]

    @property
    def net_gain(self) -> float:
        """Answers won minus answers lost, by weight."""
        won, lost = self._won_and_lost
        return round(won - lost, PLACES)

    @cached_property
    def helps(self) -> float:
        """How likely the change helps (see `probability_of_gain`)."""
        return probability_of_gain(*self._won_and_lost)

    @cached_property
    def _won_and_lost(self) -> tuple[float, float]:
        won = float(self.weights @ (self.correct & ~self.correct_before))
        lost = float(self.weights @ (self.correct_before & ~self.correct))
        return won, lost

    @property
    def in_order(self) -> NDArray[np.bool_]:
        """The answers with the change in the examples' own order, if all have been asked."""
        return self.correct[np.argsort(self.order)]

    def trial(self, tokens: Tokens, *, accepted: bool) -> Trial:
        """Return the feedback record of this change of the prompt ``tokens``."""
        return Trial.of(
            self.edit,
            tokens,
            gain=self.net_gain,
            correct=self.correct,
            accepted=accepted,
            weights=self.weights,
        )


def probability_of_gain(won: float, lost: float) -> float:
    """Return how likely a change helps, given the answers it won and lost on the same examples.

    Examples that both prompts answer alike tell nothing about the difference. Among the others,
    the chance of a win has a uniform prior, hence the posterior Beta(1 + won, 1 + lost); the
    result is its mass above one half: 0.5 without evidence, 0.75 after one win, 0.94 after three.

    Parameters
    ----------
    won, lost : float
        Answers that turned right and wrong, at least 0; between whole numbers, where answers
        have weights, the result lies between theirs.

    Returns
    -------
    float
        A probability in (0, 1).
    """
    (w, part_won), (n, part_lost) = divmod(won, 1), divmod(lost, 1)
    corners = (
        ((1 - part_won) * (1 - part_lost), 0, 0),
        (part_won * (1 - part_lost), 1, 0),
        ((1 - part_won) * part_lost, 0, 1),
        (part_won * part_lost, 1, 1),
    )
    mass = sum(share * _mass(int(w) + a, int(n) + b) for share, a, b in corners if share)
    return round(mass, PLACES)


def _mass(won: int, lost: int) -> float:
    """Return the mass of Beta(1 + won, 1 + lost) above one half."""
    # It is that of a binomial tail, and exact in whole numbers.
    tosses = 1 + won + lost
    return sum(comb(tosses, heads) for heads in range(1 + won)) / (1 << tosses)


def log_odds(probability: float) -> float:
    """Return the log-odds of a probability in (0, 1]."""
    return log(probability / (1 - probability)) if probability < 1 else inf

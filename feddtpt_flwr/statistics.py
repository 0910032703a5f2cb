"""Intervals for what a run reports."""

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy import stats


@dataclass(frozen=True)
class Proportion:
    """A share of correct answers with its 95 % interval (Wilson).

    Parameters
    ----------
    correct, total : int
        Counts, ``0 <= correct <= total``, ``total >= 1``.
    """

    correct: int
    total: int

    @property
    def value(self) -> float:
        """The share, in [0, 1]."""
        return self.correct / self.total

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self._interval()[0]

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self._interval()[1]

    def _interval(self) -> tuple[float, float]:
        ends = stats.binomtest(self.correct, self.total).proportion_ci(method="wilson")
        return float(ends.low), float(ends.high)

    def __str__(self) -> str:
        """Return the share and its interval in percent."""
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}]"


def paired_difference(
    before: NDArray[np.bool_], after: NDArray[np.bool_]
) -> tuple[float, float, float]:
    """Return the difference in accuracy on the same examples, with its 95 % interval.

    The interval is Newcombe's of paired proportions (Statistics in Medicine 17, 1998, method 10),
    which holds for few examples, too, and where no answer differs.

    Parameters
    ----------
    before, after : NDArray[np.bool_]
        Correctness of each example under the two prompts, both of shape ``(n,)``, ``n >= 1``.

    Returns
    -------
    tuple[float, float, float]
        Mean of ``after - before`` and the ends of its interval, in [-1, 1].
    """
    first, second = (Proportion(int(correct.sum()), len(correct)) for correct in (before, after))
    difference, together = second.value - first.value, _correlation(before, after)

    def reach(one: float, other: float) -> float:
        return sqrt(max(0.0, one**2 - 2 * together * one * other + other**2))

    down = reach(second.value - second.low, first.high - first.value)
    up = reach(second.high - second.value, first.value - first.low)
    return difference, difference - down, difference + up


def _correlation(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> float:
    """Return by how much right answers go together: phi, towards 0 where there are few."""
    both, neither = int((before & after).sum()), int((~before & ~after).sum())
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    margins = (both + lost) * (won + neither) * (both + won) * (lost + neither)
    if not margins:
        return 0.0
    excess = both * neither - lost * won
    corrected = max(excess - len(before) / 2, 0.0) if excess > 0 else float(excess)
    return corrected / sqrt(margins)

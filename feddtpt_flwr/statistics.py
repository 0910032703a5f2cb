"""Intervals for what a run reports."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

AT_ONCE = 10**6
"""Most examples that the bootstrap draws before it takes their means."""


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
    before: NDArray[np.bool_], after: NDArray[np.bool_], seed: int = 0
) -> tuple[float, float, float]:
    """Return the difference in accuracy on the same examples, with its 95 % interval.

    Parameters
    ----------
    before, after : NDArray[np.bool_]
        Correctness of each example under the two prompts, both of shape ``(n,)``.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    tuple[float, float, float]
        Mean of ``after - before`` and the ends of its bootstrap interval (percentiles), in [-1, 1].
    """
    difference = after.astype(np.float64) - before.astype(np.float64)
    mean = float(difference.mean())
    if not difference.std():
        return mean, mean, mean
    interval = stats.bootstrap(
        (difference,),
        np.mean,
        method="percentile",
        # All resamples of many examples at once would take gigabytes.
        batch=max(1, AT_ONCE // len(difference)),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return mean, float(interval.low), float(interval.high)

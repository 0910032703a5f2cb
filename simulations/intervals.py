"""Means over seeds, with what they are worth."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Mean:
    """A mean over seeds and its 95 % interval.

    Attributes
    ----------
    value : float
        The mean.
    low, high : float
        Ends of the interval; both the mean for one seed or equal values.
    number : int
        Seeds, at least 1.
    """

    value: float
    low: float
    high: float
    number: int


def mean(values: NDArray[np.float64]) -> Mean:
    """Return the mean of ``values``, shape ``(n,)`` with n at least 1, and its interval by t."""
    value = float(values.mean())
    return Mean(value, *(by_t(values) or (value, value)), len(values))


def mean_share(values: NDArray[np.float64]) -> Mean:
    """Return the same of shares, in [0, 1], where their interval ends as well."""
    found = mean(values)
    return replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))


def bootstrap_mean(values: NDArray[np.float64]) -> Mean:
    """Return the same with a bootstrap interval (percentiles), which is narrower: see `by_t`."""
    value = float(values.mean())
    if len(values) < 2 or not np.ptp(values):
        return Mean(value, value, value, len(values))
    interval = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Mean(value, float(interval.low), float(interval.high), len(values))


def by_t(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """Return the ends of the 95 % interval by Student's t; None for one seed or equal values.

    With five seeds a bootstrap interval is too narrow: it draws from the five alone.
    """
    if len(values) < 2 or not np.ptp(values):
        return None
    low, high = stats.t.interval(CONFIDENCE, len(values) - 1, values.mean(), stats.sem(values))
    return float(low), float(high)


def differences(theirs: Mapping[int, float], ours: Mapping[int, float]) -> NDArray[np.float64]:
    """Return ``theirs - ours`` of each seed that both have."""
    return np.array([theirs[seed] - ours[seed] for seed in sorted(theirs.keys() & ours.keys())])


def paired(theirs: Mapping[int, float], ours: Mapping[int, float]) -> Mean | None:
    """Return the mean of ``theirs - ours`` over the seeds that both have; None without any.

    A seed decides examples and held-out examples, so the difference within a seed says more than
    the difference of the means.
    """
    values = differences(theirs, ours)
    return mean(values) if len(values) else None

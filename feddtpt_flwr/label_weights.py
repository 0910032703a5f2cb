"""Examples by whose answers a client judges a prompt, weighted so that each label counts the same.

A client's own labels say little about the federation's: with uneven ones, a prompt that is always
answered with the client's commonest label would look good. The public set, which has as many
examples of each label, is the paper's means against that, but is small beside the private batch.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from feddtpt_flwr.data import Example


def label_weights(examples: Sequence[Example]) -> NDArray[np.float64]:
    """Return a weight for each example, 1 on average, so that all labels weigh the same together.

    Parameters
    ----------
    examples : Sequence[Example]
        At least one.

    Returns
    -------
    NDArray[np.float64]
        Shape ``(n,)``; all 1 where there are as many examples of each label.
    """
    counts = Counter(example.label for example in examples)
    share = len(examples) / len(counts)
    return np.array([share / counts[example.label] for example in examples])


def accuracy(correct: NDArray[np.bool_], weights: NDArray[np.float64]) -> float:
    """Return the share of correct answers by weight, in [0, 1]."""
    return float(np.average(correct, weights=weights))

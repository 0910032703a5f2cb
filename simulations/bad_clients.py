"""Clients that upload random tokens and lie, for comparisons with honest ones."""

from collections.abc import Mapping, Sequence

import numpy as np
from flwr.common import Scalar
from numpy.typing import NDArray

from feddtpt_flwr import models
from feddtpt_flwr.experiment import load_task
from feddtpt_flwr.node import Node
from simulations.local_federation import Answer
from strategies.wire import ACCURACY_KEY, GAIN_KEY, SCORED_KEY, VOCABULARY_KEY, correct_key


class BadClient:
    """Asks nothing and lies.

    Parameters
    ----------
    node : Node
        Whose place it takes.
    """

    def __init__(self, node: Node) -> None:
        self._vocabulary = models.masked_lm(node.config, load_task(node.config)).vocabulary
        self._rng = np.random.default_rng([node.config.seed, int(node.name)])
        self._number = len(node.data.train) + len(node.data.validation)

    def search(self, prompt: NDArray[np.int64], config: Mapping[str, Scalar]) -> Answer:
        """Return as many random tokens as the prompt has."""
        tokens = self._rng.integers(len(self._vocabulary), size=len(prompt))
        claims: dict[str, Scalar] = {
            GAIN_KEY: 1.0,
            ACCURACY_KEY: 1.0,
            VOCABULARY_KEY: self._vocabulary.fingerprint,
        }
        return [tokens], self._number, claims

    def score(
        self, candidates: Sequence[NDArray[np.int64]], config: Mapping[str, Scalar]
    ) -> Answer:
        """Return random counts."""
        counts = {
            correct_key(i): int(self._rng.integers(self._number + 1))
            for i in range(len(candidates))
        }
        return [], self._number, {SCORED_KEY: self._number, **counts}

"""Which of its examples a client uses in a round."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from feddtpt_flwr.client_limits import batch_size
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import ClientData, Example
from feddtpt_flwr.evaluation import mixed_order

_Own = tuple[Example, bool]
"""An example, and whether it is private."""

_Item = TypeVar("_Item")


class RoundExamples:
    """A client's examples in the order in which a round uses them.

    Where a round does not use them all, others use different ones: a prompt that owes its place to
    some examples has to defend it on others.

    Parameters
    ----------
    name : str
        The client's; each has an order of its own.
    data : ClientData
        Private examples.
    public : tuple[Example, ...]
        The public set.
    config : RunConfig
        Settings of the run.
    server_round : int
        The round.

    Attributes
    ----------
    batch : list[Example]
        Those that judge the prompts of the round's search: each label, and of each label private
        and public ones, in proportion, or nearly so.
    """

    def __init__(
        self,
        name: str,
        data: ClientData,
        public: tuple[Example, ...],
        config: RunConfig,
        server_round: int,
    ) -> None:
        rng = np.random.default_rng([config.seed, stream(name), server_round])
        private = [(example, True) for example in data.train]
        shared = [(example, False) for example in public]
        labels = sorted({example.label for example in (*data.train, *public)})
        starts = rng.random(2).tolist()  # the same of each label: so each part has all labels
        by_label = [
            _in_turns([_shuffled(part, label, rng) for part in (private, shared)], starts)
            for label in labels
        ]
        order = _in_turns(by_label, rng.random(len(labels)).tolist())
        self.batch = [example for example, _ in order[: batch_size(config, len(order))]]
        self._train = [example for example, own in order if own]
        kinds = [example.label for example in data.validation]
        self._validation = [data.validation[index] for index in mixed_order(kinds, rng)]

    def to_score(self, wanted: int | None) -> list[Example]:
        """Return as many private examples as are wanted, or all; those of the batch first."""
        return [*self._train, *self._validation][:wanted]


def stream(name: str) -> int:
    """Return a number that gives every client its own stream of randomness."""
    return int.from_bytes(name.encode(), "big")


def _shuffled(part: Sequence[_Own], label: int, rng: np.random.Generator) -> list[_Own]:
    found = [item for item in part if item[0].label == label]
    return [found[index] for index in rng.permutation(len(found))]


def _in_turns(groups: Sequence[Sequence[_Item]], starts: Sequence[float]) -> list[_Item]:
    """Spread each group evenly over the result, from a start in [0, 1) of its own."""
    items = [item for group in groups for item in group]
    places = [
        (index + start) / len(group)
        for group, start in zip(groups, starts, strict=True)
        for index in range(len(group))
    ]
    return [items[i] for i in np.argsort(places, kind="stable")]

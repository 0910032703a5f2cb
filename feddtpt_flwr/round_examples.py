"""Which of its examples a client uses in a round."""

import numpy as np

from feddtpt_flwr.client_limits import batch_size
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import ClientData, Example
from feddtpt_flwr.evaluation import mixed_order


class RoundExamples:
    """A client's examples in the order in which a round uses them.

    Where a round does not use them all, others use different ones: a prompt that owes its place to
    some examples has to defend it on others. Every beginning holds each label in proportion.

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
        self._train, self._validation, self._public = (
            [part[index] for index in mixed_order([example.label for example in part], rng)]
            for part in (data.train, data.validation, public)
        )
        self._config = config

    @property
    def batch(self) -> list[Example]:
        """The examples that judge the prompts of the round's search: private and public."""
        total = len(self._train) + len(self._public)
        size = batch_size(self._config, total)
        private = round(size * len(self._train) / max(1, total))
        return [*self._train[:private], *self._public[: size - private]]

    def to_score(self, wanted: int | None) -> list[Example]:
        """Return as many private examples as are wanted, or all; the search's first."""
        return [*self._train, *self._validation][:wanted]


def stream(name: str) -> int:
    """Return a number that gives every client its own stream of randomness."""
    return int.from_bytes(name.encode(), "big")

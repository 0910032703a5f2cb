"""Flower's server, with a word when a round is over, and an early end when all budgets are."""

import random
from collections.abc import Callable
from logging import INFO
from typing import Any

from flwr.common import log
from flwr.server import Server, SimpleClientManager
from flwr.server.strategy import Strategy

from strategies.wire import used_up


class RoundServer(Server):
    """Flower's server that tells when nothing more of a round is to come, and of the run.

    A strategy's methods cannot: after the last of them there may be clients to hear of, or none.

    The run is over when every client that is connected has said that it may ask nothing more, and
    they are as many as a round needs: others may be away for a while. The rounds that are left are
    then passed over.

    Parameters
    ----------
    strategy : Strategy
        See Flower's.
    on_completed : Callable[[int], None]
        Called before the first round with 0, and after every round with its number.
    seed : int
        Says which of the connected clients take part in a round, where not all do, as far as they
        connect in the same order; so they do in a simulation in one process alone.
    begun : int
        Rounds of the run that went before.

    Attributes
    ----------
    over : bool
        Whether no client has anything left to search with.
    """

    def __init__(
        self,
        strategy: Strategy,
        on_completed: Callable[[int], None],
        *,
        seed: int = 0,
        begun: int = 0,
    ) -> None:
        super().__init__(client_manager=SimpleClientManager(), strategy=strategy)
        self._on_completed = on_completed
        self._seed = seed
        self._begun = begun
        self._used_up: set[str] = set()
        self.over = False

    def fit_round(self, server_round: int, timeout: float | None) -> Any:
        """Let clients search (see Flower's)."""
        self.over = self.over and self._nobody_is_left()  # some may have come back
        if self.over:
            log(INFO, "passed over: no client has anything left of its limits for the run")
            return None
        if server_round == 1:
            self._on_completed(0)
        self._seed_sampling("fit", server_round)
        result = super().fit_round(server_round, timeout)
        if result is not None:
            for client, reply in result[2][0]:
                if used_up(reply.metrics):
                    self._used_up.add(client.cid)
        return result

    def evaluate_round(self, server_round: int, timeout: float | None) -> Any:
        """Let clients score; a round ends with it."""
        if self.over:
            return None
        self.over = self._nobody_is_left()
        self._seed_sampling("evaluate", server_round)
        result = super().evaluate_round(server_round, timeout)
        self._on_completed(server_round)
        return result

    def _nobody_is_left(self) -> bool:
        """Return whether no client has anything left, of as many as a round needs."""
        clients = set(self.client_manager().all())
        needed = max(1, getattr(self.strategy, "min_available_clients", 1))
        return len(clients) >= needed and clients <= self._used_up

    def _seed_sampling(self, phase: str, server_round: int) -> None:
        # Flower's client manager draws from Python's own generator, and nothing else seeds that.
        random.seed(f"{self._seed} {phase} {self._begun + server_round}")

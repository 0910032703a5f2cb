"""Flower's server, with a word when a round is over, and an early end when all budgets are."""

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

    The run is over when every client that is connected has said that it may ask nothing more. The
    rounds that are left are then passed over.

    Parameters
    ----------
    strategy : Strategy
        See Flower's.
    on_completed : Callable[[int], None]
        Called before the first round with 0, and after every round with its number.

    Attributes
    ----------
    over : bool
        Whether no client has anything left to search with.
    """

    def __init__(self, strategy: Strategy, on_completed: Callable[[int], None]) -> None:
        super().__init__(client_manager=SimpleClientManager(), strategy=strategy)
        self._on_completed = on_completed
        self._used_up: set[str] = set()
        self.over = False

    def fit_round(self, server_round: int, timeout: float | None) -> Any:
        """Let clients search (see Flower's)."""
        if self.over:
            log(INFO, "passed over: no client has anything left of its limits for the run")
            return None
        if server_round == 1:
            self._on_completed(0)
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
        clients = set(self.client_manager().all())
        self.over = bool(clients) and clients <= self._used_up
        result = super().evaluate_round(server_round, timeout)
        self._on_completed(server_round)
        return result

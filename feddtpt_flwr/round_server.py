"""Flower's server, with a word when a round is over."""

from collections.abc import Callable
from typing import Any

from flwr.server import Server, SimpleClientManager
from flwr.server.strategy import Strategy


class RoundServer(Server):
    """Flower's server that tells when nothing more of a round is to come.

    A strategy's methods cannot: after the last of them there may be clients to hear of, or none.

    Parameters
    ----------
    strategy : Strategy
        See Flower's.
    on_completed : Callable[[int], None]
        Called before the first round with 0, and after every round with its number.
    """

    def __init__(self, strategy: Strategy, on_completed: Callable[[int], None]) -> None:
        super().__init__(client_manager=SimpleClientManager(), strategy=strategy)
        self._on_completed = on_completed

    def fit_round(self, server_round: int, timeout: float | None) -> Any:
        """Let clients search (see Flower's)."""
        if server_round == 1:
            self._on_completed(0)
        return super().fit_round(server_round, timeout)

    def evaluate_round(self, server_round: int, timeout: float | None) -> Any:
        """Let clients score; a round ends with it."""
        result = super().evaluate_round(server_round, timeout)
        self._on_completed(server_round)
        return result

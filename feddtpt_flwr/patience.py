"""A server that waits for its clients, and outlasts its SuperLink's own failures."""

import time
from collections.abc import Callable
from functools import wraps
from http import HTTPStatus
from logging import INFO, WARNING
from typing import ParamSpec, TypeVar

from flwr.common import log
from flwr.serverapp import Grid

PATIENCE = 600.0
"""Seconds that a SuperLink may fail without a break before the run ends."""
POLL_SECONDS = 3.0
"""Between two looks at who is connected."""
LONGEST_BACKOFF = 30.0

P = ParamSpec("P")
T = TypeVar("T")


def wait_for_clients(grid: Grid, needed: int) -> int:
    """Return the number of connected clients once there are as many as needed."""
    while (connected := len(list(grid.get_node_ids()))) < needed:
        log(INFO, "%d of %d clients connected", connected, needed)
        time.sleep(POLL_SECONDS)
    return connected


def make_patient(grid: Grid, patience: float = PATIENCE) -> Grid:
    """Have a grid ask again what its SuperLink answers with an internal error.

    Flower waits for a SuperLink that cannot be reached, and gives up at once on one that answers
    HTTP 500. A SuperLink does so, for one, whenever its database is locked for more than five
    seconds: on a busy machine, while many nodes upload. What it was doing is then undone, so that
    it can be asked again, and the round that would be lost, clients have paid for. Replies that an
    earlier step of the same request had marked as delivered stay lost: their nodes count as failed.

    Parameters
    ----------
    grid : Grid
        Flower's; its methods are replaced, those that its ``send_and_receive`` calls among them.
    patience : float (default: 600.0)
        Seconds after which an error that stays is raised.

    Returns
    -------
    Grid
        The same.
    """
    for name in ("get_nodes", "get_node_ids", "push_messages", "pull_messages"):
        if method := getattr(grid, name, None):
            setattr(grid, name, _insisting(method, patience))
    return grid


def _insisting(ask: Callable[P, T], patience: float) -> Callable[P, T]:
    from tenacity import (
        RetryCallState,
        Retrying,
        retry_if_exception,
        stop_after_delay,
        wait_random_exponential,
    )

    def warn(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log(WARNING, "the SuperLink has failed and is asked again: %s", error)

    @wraps(ask)
    def insist(*args: P.args, **kwargs: P.kwargs) -> T:
        # One for every call: the calls of several threads must not share their count of attempts.
        retrying = Retrying(
            retry=retry_if_exception(_is_internal),
            wait=wait_random_exponential(multiplier=1, max=LONGEST_BACKOFF),
            stop=stop_after_delay(patience),
            before_sleep=warn,
            reraise=True,
        )
        return retrying(ask, *args, **kwargs)

    return insist


def _is_internal(error: BaseException) -> bool:
    import httpx

    return (
        isinstance(error, httpx.HTTPStatusError)
        and error.response.status_code == HTTPStatus.INTERNAL_SERVER_ERROR
    )

"""Asking again, and when to give up."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from feddtpt_flwr.language_model.base import ModelUnavailableError, UnansweredError
from feddtpt_flwr.language_model.endpoint import BusyError, NoAnswerError, TransientError

if TYPE_CHECKING:
    from tenacity import RetryCallState

FEWEST_ATTEMPTS = 4
LONGEST_BACKOFF = 20.0  # seconds


async def persistently(
    ask: Callable[[], Awaitable[str]],
    *,
    patience: float,
    busy_patience: float,
    failed: asyncio.Event,
    on_retry: Callable[[], None],
) -> str:
    """Ask until there is an answer, the patience is used up, or another question has failed.

    The waits between are random and grow; a server that says how long to wait is obeyed, unless it
    says longer than the patience: then there is no use in waiting at all.

    Parameters
    ----------
    ask : Callable[[], Awaitable[str]]
        Sends the question once.
    patience : float
        Seconds after which no further attempt is made, once there were `FEWEST_ATTEMPTS`.
    busy_patience : float
        The same where the server works and says that it is busy.
    failed : asyncio.Event
        Set when another question has failed for good.
    on_retry : Callable[[], None]
        Called before every wait.

    Raises
    ------
    UnansweredError
        If the server was reached to the last and gave no answer.
    ModelUnavailableError
        If there is no answer for another reason. What is no `TransientError` is raised as it is.
    """
    from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

    backoff = wait_random_exponential(multiplier=1, max=LONGEST_BACKOFF, min=0.1)

    def wait(state: "RetryCallState") -> float:
        return max(backoff(state), _error_of(state).retry_after)

    def enough_for(error: TransientError) -> float:
        return busy_patience if isinstance(error, BusyError) else patience

    def gives_up(state: "RetryCallState") -> bool:
        error = _error_of(state)
        enough = enough_for(error)
        used_up = (state.seconds_since_start or 0.0) >= enough
        tried = state.attempt_number >= FEWEST_ATTEMPTS
        return failed.is_set() or (tried and used_up) or error.retry_after > enough

    async def attempt() -> str:  # tenacity awaits only what is declared so
        return await ask()

    retrying = AsyncRetrying(
        stop=gives_up,
        wait=wait,
        sleep=lambda seconds: nap(seconds, failed),
        before_sleep=lambda _: on_retry(),
        retry=retry_if_exception_type(TransientError),
        reraise=True,
    )
    try:
        return await retrying(attempt)
    except TransientError as error:
        attempts = retrying.statistics.get("attempt_number", 1)
        kind = UnansweredError if isinstance(error, NoAnswerError) else ModelUnavailableError
        enough = enough_for(error)
        long = f"; it asks to wait {error.retry_after:g} s, more than the {enough:g} s it is given"
        why = long if error.retry_after > enough else ""
        raise kind(f"{error}, after {attempts} attempts{why}", error.said) from None


def _error_of(state: "RetryCallState") -> TransientError:
    error = state.outcome.exception() if state.outcome else None
    return error if isinstance(error, TransientError) else TransientError("")


async def nap(seconds: float, failed: asyncio.Event) -> None:
    """Sleep, but no longer than until ``failed`` is set."""
    with suppress(TimeoutError):
        await asyncio.wait_for(failed.wait(), seconds)

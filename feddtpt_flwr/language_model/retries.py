"""Asking again, and when to give up."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from feddtpt_flwr.language_model.base import ModelUnavailableError
from feddtpt_flwr.language_model.endpoint import TransientError

FEWEST_ATTEMPTS = 4
LONGEST_BACKOFF = 20.0  # seconds


async def persistently(
    ask: Callable[[], Awaitable[str]],
    *,
    patience: float,
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
    failed : asyncio.Event
        Set when another question has failed for good.
    on_retry : Callable[[], None]
        Called before every wait.

    Raises
    ------
    ModelUnavailableError
        If there is no answer in the end. What is no `TransientError` is raised as it is.
    """
    from tenacity import (
        AsyncRetrying,
        RetryCallState,
        retry_if_exception_type,
        stop_after_attempt,
        stop_after_delay,
        wait_random_exponential,
    )

    backoff = wait_random_exponential(multiplier=1, max=LONGEST_BACKOFF, min=0.1)
    used_up = stop_after_attempt(FEWEST_ATTEMPTS) & stop_after_delay(patience)

    def asked_to_wait(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return error.retry_after if isinstance(error, TransientError) else 0.0

    async def attempt() -> str:  # tenacity awaits only what is declared so
        return await ask()

    retrying = AsyncRetrying(
        stop=lambda s: failed.is_set() or used_up(s) or asked_to_wait(s) > patience,
        wait=lambda s: max(backoff(s), asked_to_wait(s)),
        sleep=lambda seconds: nap(seconds, failed),
        before_sleep=lambda _: on_retry(),
        retry=retry_if_exception_type(TransientError),
        reraise=True,
    )
    try:
        return await retrying(attempt)
    except TransientError as error:
        attempts = retrying.statistics.get("attempt_number", 1)
        raise ModelUnavailableError(f"{error}, after {attempts} attempts") from None


async def nap(seconds: float, failed: asyncio.Event) -> None:
    """Sleep, but no longer than until ``failed`` is set."""
    with suppress(TimeoutError):
        await asyncio.wait_for(failed.wait(), seconds)

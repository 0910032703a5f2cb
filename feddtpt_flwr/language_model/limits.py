"""How fast an endpoint may be asked, and how long one waits for it."""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


class Pacer:
    """Spaces requests so that no more are sent in a minute than allowed.

    Requests are spread evenly: many providers cut a minute's allowance into seconds.

    Parameters
    ----------
    requests_per_minute, tokens_per_minute : int
        Most per minute; 0 for no limit.
    clock : Callable[[], float]
        Seconds, never going back.
    """

    def __init__(
        self,
        requests_per_minute: int = 0,
        tokens_per_minute: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._per_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self._per_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._clock = clock
        self._next_request = self._next_tokens = self._paused_until = clock()

    @property
    def paused_until(self) -> float:
        """When a place may be taken again, by the clock."""
        return self._paused_until

    def reserve(self, tokens: int) -> float:
        """Take the next free place; return how many seconds to wait for it.

        Parameters
        ----------
        tokens : int
            Tokens that the request is expected to use.
        """
        now = self._clock()
        start = max(now, self._next_request, self._next_tokens, self._paused_until)
        self._next_request = start + self._per_request
        self._next_tokens = start + tokens * self._per_token
        return start - now

    def correct(self, tokens: int) -> None:
        """Account for so many tokens more (or, if negative, fewer) than were reserved."""
        self._next_tokens += tokens * self._per_token

    def pause(self, seconds: float) -> None:
        """Give out no place for so many seconds: a server that is pressed told one of us so."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)


def retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that a response asks to wait; 0 if it asks for none.

    Reads ``Retry-After`` as seconds or as a date (RFC 9110), and ``retry-after-ms``.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name, "")
        try:
            return max(0.0, float(text) * unit)
        except ValueError:
            continue
    try:
        date = parsedate_to_datetime(headers.get("retry-after", ""))
    except (ValueError, OverflowError):
        return 0.0
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())

import asyncio
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddtpt_flwr.language_model import FatalModelError, ModelUnavailableError, retries
from feddtpt_flwr.language_model.base import UnansweredError
from feddtpt_flwr.language_model.endpoint import BusyError, NoAnswerError, TransientError
from feddtpt_flwr.language_model.limits import Pacer, retry_after
from feddtpt_flwr.language_model.retries import FEWEST_ATTEMPTS, persistently
from feddtpt_flwr.language_model.usage import Prices, Usage


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@given(st.integers(1, 600), st.lists(st.floats(0, 5), max_size=60))
def test_requests_are_spread_over_the_minute(limit: int, pauses: list[float]) -> None:
    clock = Clock()
    pacer, sent = Pacer(requests_per_minute=limit, clock=clock), []
    for pause in pauses:
        clock.now += pause
        sent.append(clock.now + pacer.reserve(1000))
    gaps = [after - before for before, after in pairwise(sent)]
    assert all(gap >= 60 / limit - 1e-9 for gap in gaps)


def test_tokens_are_spread_by_what_was_used() -> None:
    clock = Clock()
    pacer = Pacer(tokens_per_minute=600, clock=clock)
    assert pacer.reserve(100) == 0
    assert pacer.reserve(50) == pytest.approx(10)
    pacer.correct(-20)
    assert pacer.reserve(1) == pytest.approx(13)


def test_without_limits_nothing_waits() -> None:
    pacer = Pacer(clock=Clock())
    assert [pacer.reserve(10**6) for _ in range(3)] == [0, 0, 0]


def test_a_pause_holds_for_all() -> None:
    clock = Clock()
    pacer = Pacer(requests_per_minute=60, clock=clock)
    pacer.pause(7)
    assert [pacer.reserve(1), pacer.reserve(1)] == [7, 8]
    clock.now += 20
    assert pacer.reserve(1) == 0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        ({"retry-after": "3"}, 3),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "-4"}, 0),
        ({"retry-after": "soon"}, 0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"retry-after": f"Wed, 21 Oct 2015 07:28:00 +{'9' * 15}"}, 0),
    ],
)
def test_how_long_a_server_asks_to_wait(headers: dict[str, str], seconds: float) -> None:
    assert retry_after(headers) == seconds


def test_a_date_to_wait_for() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert retry_after({"retry-after": date}) == pytest.approx(30, abs=2)


class Server:
    """A fake server, for the order of attempts only: fails as told, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.times: list[float] = []

    async def __call__(self) -> str:
        self.times.append(time.monotonic())
        if self.errors:
            raise self.errors.pop(0)
        return "yes"


def ask(
    server: Server, patience: float, failed: bool = False, busy_patience: float = 0.0
) -> tuple[str, int]:
    retries = 0

    def count() -> None:
        nonlocal retries
        retries += 1

    async def main() -> str:
        event = asyncio.Event()
        if failed:
            event.set()
        return await persistently(
            server,
            patience=patience,
            busy_patience=busy_patience,
            failed=event,
            on_retry=count,
        )

    return asyncio.run(main()), retries


def test_what_passes_is_asked_again() -> None:
    assert ask(Server(TransientError("a"), TransientError("b")), 0) == ("yes", 2)


def test_a_server_that_says_when_is_obeyed() -> None:
    server = Server(TransientError("busy", 1.5))
    assert ask(server, 2) == ("yes", 1)
    assert 1.5 <= server.times[1] - server.times[0] < 2.5


def test_whoever_wants_longer_than_the_patience_is_not_waited_for() -> None:
    server = Server(TransientError("busy", 3600))
    said = "busy, after 1 attempts; it asks to wait 3600 s, more than the 120 s it is given"
    with pytest.raises(ModelUnavailableError, match=said):
        ask(server, 120)


def test_a_busy_server_has_a_patience_of_its_own() -> None:
    assert ask(Server(BusyError("busy", 1.0)), 0, busy_patience=2) == ("yes", 1)
    with pytest.raises(ModelUnavailableError, match="busy, after 1 attempts"):
        ask(Server(BusyError("busy", 1.0)), 2, busy_patience=0)


def test_a_server_without_an_answer_is_told_from_one_that_is_down() -> None:
    failures = [NoAnswerError("nothing") for _ in range(4)]
    with pytest.raises(UnansweredError, match="nothing, after 4 attempts"):
        ask(Server(*failures), 0)


def test_patience_ends() -> None:
    server = Server(*[TransientError("down")] * 50)
    with pytest.raises(ModelUnavailableError, match=f"down, after {FEWEST_ATTEMPTS} attempts"):
        ask(server, 0)


def test_what_does_not_pass_is_not_asked_again() -> None:
    server = Server(FatalModelError("no key"))
    with pytest.raises(FatalModelError):
        ask(server, 100)
    assert len(server.times) == 1


def test_after_another_failure_nothing_is_asked_again() -> None:
    server = Server(TransientError("down"))
    with pytest.raises(ModelUnavailableError):
        ask(server, 100, failed=True)
    assert len(server.times) == 1


def test_usage_and_its_price() -> None:
    before, after = Usage(1, 0, 100, 10), Usage(4, 1, 1100, 60)
    assert after - before == Usage(3, 1, 1000, 50)
    assert before + (after - before) == after
    assert Prices(2.0, 8.0).cost(after - before) == pytest.approx(0.0024)
    assert Prices().cost(after) == 0


def test_patience_outlasts_the_fewest_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(seconds: float, failed: asyncio.Event) -> None:
        pass

    monkeypatch.setattr(retries, "nap", at_once)
    failures = [TransientError("down") for _ in range(2 * FEWEST_ATTEMPTS)]
    assert ask(Server(*failures), 60) == ("yes", len(failures))


def test_a_shorter_pause_ends_no_longer_one() -> None:
    pacer = Pacer(clock=Clock())
    pacer.pause(7)
    pacer.pause(1)
    assert pacer.reserve(1) == 7

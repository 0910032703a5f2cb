"""What the server does when the model that proposes cannot be asked."""

from collections.abc import Sequence

import pytest

from feddtpt_flwr.language_model import ModelError
from feddtpt_flwr.server_app import REST, _or_all_alike, _safely
from strategies.candidates import Tokens


def out_of_service(_: object) -> float:
    """Stand in for a service that is down."""
    raise ModelError("503 Service Unavailable")


def test_a_candidate_that_cannot_be_judged_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    assert _safely(lambda tokens: len(tokens) == 1)((1,))
    assert not _safely(out_of_service)((1,))  # type: ignore[arg-type]
    assert "left out: 503 Service Unavailable" in caplog.text


def test_without_a_judge_the_aggregated_prompt_is_left_as_it_is(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def out_of_service_once(prompts: Sequence[Tokens]) -> list[float]:
        asked.append(len(prompts))
        if len(asked) == 1:
            raise ModelError("503 Service Unavailable")
        return [float(len(tokens)) for tokens in prompts]

    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    judge = _or_all_alike(out_of_service_once)
    for _ in range(3):
        assert list(judge([(1,), (1, 2)])) == [0.0, 0.0]
    assert asked == [2], "a service that is down is not waited for again and again"
    assert caplog.text.count("not made to read better: 503 Service Unavailable") == 1
    now += REST
    assert list(judge([(1,), (1, 2)])) == [1.0, 2.0]

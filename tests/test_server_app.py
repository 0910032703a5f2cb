"""What the server does when the model that proposes cannot be asked."""

from collections.abc import Sequence

import pytest

from feddtpt_flwr.language_model import ModelError
from feddtpt_flwr.server_app import _or_all_alike, _safely
from strategies.candidates import Tokens


def out_of_service(_: object) -> float:
    """Stand in for a service that is down."""
    raise ModelError("503 Service Unavailable")


def test_a_candidate_that_cannot_be_judged_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    assert _safely(lambda tokens: len(tokens) == 1)((1,))
    assert not _safely(out_of_service)((1,))  # type: ignore[arg-type]
    assert "left out: 503 Service Unavailable" in caplog.text


def test_without_a_judge_the_aggregated_prompt_stays_as_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def lengths(prompts: Sequence[Tokens]) -> list[float]:
        return [float(len(tokens)) for tokens in prompts]

    assert list(_or_all_alike(lengths)([(1,), (1, 2)])) == [1.0, 2.0]
    assert list(_or_all_alike(out_of_service)([(1,), (1, 2)])) == [0.0, 0.0]  # type: ignore[arg-type]
    assert "not made to read better: 503 Service Unavailable" in caplog.text

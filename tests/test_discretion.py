"""What a client's errors tell the server."""

import pytest
from flwr.app import Context, Message, RecordDict

from feddtpt_flwr.checked_settings import ConfigError
from feddtpt_flwr.discretion import discreet, discretion
from feddtpt_flwr.language_model import FatalModelError

SECRET = "the patient's name"


def context(privacy: str) -> Context:
    return Context(
        run_id=1,
        node_id=1,
        node_config={"endpoint": "https://llm.hospital.local/v1"},
        state=RecordDict(),
        run_config={"privacy": privacy},
    )


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (FatalModelError("https://llm.hospital.local/v1: HTTP 401"), "endpoint: HTTP 401"),
        (ConfigError("node config: k = 3: too few"), "node config: k = 3: too few"),
        (KeyError(SECRET), "KeyError; this node's own log says more"),
    ],
)
def test_an_error_that_nobody_expected_loses_its_message(
    error: Exception, told: str, warned: list[str]
) -> None:
    expected = (FatalModelError, ConfigError, RuntimeError)
    with pytest.raises(expected) as caught, discreet(context("none")):
        raise error
    assert str(caught.value) == told
    assert caught.value.__suppress_context__, "nor is it in what a traceback shows"
    assert warned == [str(error)]


def test_under_differential_privacy_no_error_tells_anything() -> None:
    with pytest.raises(RuntimeError) as caught, discreet(context("exponential")):
        raise ConfigError(f"data-labels = {SECRET!r}: a pair is needed")
    assert str(caught.value) == "this node cannot answer; its own log says why"


def test_an_app_may_be_discreet() -> None:
    def fails(message: Message, of_node: Context) -> Message:
        raise ValueError(SECRET)

    message: Message = None  # type: ignore[assignment]  # nothing looks at it
    with pytest.raises(RuntimeError) as caught:
        discretion(message, context("none"), fails)
    assert SECRET not in str(caught.value)

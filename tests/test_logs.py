import json
import logging
from collections.abc import Iterator
from io import StringIO

import pytest
from flwr.supercore.logger import ConsoleHandler

from feddtpt_flwr import logs
from feddtpt_flwr.config import ConfigError

FLOWER = logging.getLogger("flwr")


@pytest.fixture
def stream() -> Iterator[StringIO]:
    """What Flower's own kind of handler writes; the logger is as before in the end."""
    text = StringIO()
    handler = ConsoleHandler(stream=text)
    before = FLOWER.handlers
    FLOWER.handlers = [handler]
    yield text
    FLOWER.handlers = before
    FLOWER.removeFilter(logs._add_fields)
    logs._fields.clear()


@pytest.fixture
def as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.VARIABLE, "json")


def test_a_line_is_one_json_object_with_run_round_and_node(
    stream: StringIO, as_json: None, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.begin(run="8347189694743572170", node="node-3")
    logs.add(node="nördlich", round=2)
    FLOWER.info("\t%d of %d queries\nin all", 3, 8)
    FLOWER.info("")
    try:
        raise OSError("no disk")
    except OSError:
        FLOWER.exception("broken off")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "INFO",
        "run": "8347189694743572170",
        "node": "nördlich",
        "round": 2,
        "message": "3 of 8 queries\nin all",
    }
    assert second["exception"].endswith("OSError: no disk")
    logs.show("a table")
    assert not capsys.readouterr().out


def test_text_stays_as_flower_writes_it_and_records_have_the_fields(
    stream: StringIO, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.begin(run="7", node="server")
    FLOWER.addHandler(caplog.handler)
    FLOWER.info("hello")
    record = caplog.records[0]
    assert (record.run, record.node) == ("7", "server")  # type: ignore[attr-defined]
    assert "INFO" in stream.getvalue()
    assert "{" not in stream.getvalue()
    logs.show("a table")
    assert capsys.readouterr().out == "a table\n"


def test_the_next_message_begins_anew(stream: StringIO, as_json: None) -> None:
    logs.begin(run="7", node="north", round=3)
    logs.begin(run="8", node="south")
    FLOWER.info("hello")
    assert "round" not in json.loads(stream.getvalue())


def test_another_format_is_refused(monkeypatch: pytest.MonkeyPatch, stream: StringIO) -> None:
    monkeypatch.setenv(logs.VARIABLE, "xml")
    with pytest.raises(ConfigError, match="FEDDTPT_LOG = 'xml': text or json is allowed"):
        logs.begin(run="7")


def test_addresses_of_requests_are_not_logged(stream: StringIO) -> None:
    logs.begin(run="1")
    assert not logging.getLogger("httpx").isEnabledFor(logging.INFO)

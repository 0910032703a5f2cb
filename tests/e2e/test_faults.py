"""What a deployment goes through in a week: its processes are killed, stopped and restarted."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simulations.local_deployment import Deployment, deployment, wait_until
from tests.e2e.conftest import QUERIES, deployment_keys, history, rounds_done
from tests.fill_mask_server import FillMaskService
from tests.language_model import fault_proxy as faults
from tests.language_model.fault_proxy import Body, FaultProxy, Response

ROUND_TIMEOUT = 45.0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def running(
    files: dict[str, dict[str, Any]],
    fill_mask_service: FillMaskService,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Deployment]:
    with deployment(
        tmp_path_factory.mktemp("deployment"), deployment_keys(fill_mask_service)
    ) as running:
        for name, config in files.items():
            running.start_node(name, **config)
        yield running


def final_state(folder: Path) -> dict[str, Any]:
    """What must not depend on what went wrong: all but times, costs and messages that were lost."""
    prompt = json.loads((folder / "prompt.json").read_text(encoding="utf-8"))
    kept = (
        "event", "round", "client", "accuracy", "gain", "queries", "trials", "accepted", "chosen",
        "prompt", "candidates", "correct-0", "correct-1", "num-scored",
    )  # fmt: skip
    events = [
        {key: line[key] for key in kept if key in line}
        for line in history(folder)
        if line["event"] != "resume"
    ]
    # Clients answer in any order.
    events.sort(key=lambda e: (e.get("round", 0), e["event"], e.get("client", "")))
    return {**prompt, "events": events}


def held(handler: faults.Handler, body: Body) -> Response | None:
    while handler.proxy.afterwards is held:
        time.sleep(0.1)
    return None  # whoever asked is gone


def test_a_run_that_was_killed_goes_on_to_the_same_end(
    running: Deployment,
    app: Path,
    settings: dict[str, Any],
    files: dict[str, dict[str, Any]],
    proxy: FaultProxy,
) -> None:
    """SuperLink, ServerApp and one SuperNode are killed in the middle of round 2's searches."""
    # With so many examples there is something left to win in round 2.
    settings = {**settings, "k-shot": 4, "queries-per-round": 3 * QUERIES}
    runs = Path(settings["run-folder"])
    running.run(app, settings)
    # Nothing slower in between: round 2 has few questions.
    wait_until(lambda: rounds_done(runs) == 1, "round 1", 300)
    answered = proxy.answered.total() + 5
    proxy.faults, proxy.afterwards = [None] * 5, held
    wait_until(lambda: proxy.answered.total() == answered, "five answers of round 2")
    time.sleep(2)  # for the last one to arrive and be kept
    running.kill("superlink")
    running.kill("south")
    proxy.afterwards = None

    running.start_superlink()
    running.start_node("south", **files["south"])
    (folder,) = runs.iterdir()
    assert rounds_done(runs) == 1
    resumed = running.run(app, folder / "resume.toml")
    status = running.wait(resumed)
    assert status == "finished:completed", running.logs(resumed)
    assert rounds_done(runs) == 2
    assert proxy.answered.total() > answered
    assert max(proxy.answered.values()) == 1, "nothing is paid for twice"

    again = {**settings, "run-folder": str(runs.parent / "undisturbed")}
    undisturbed = running.run(app, again)
    assert running.wait(undisturbed) == "finished:completed", running.logs(undisturbed)
    (other,) = Path(again["run-folder"]).iterdir()
    assert final_state(folder) == final_state(other)
    assert [line["event"] for line in history(folder)].count("resume") == 1
    assert max(proxy.answered.values()) == 1, "an undisturbed run asks the same"


def test_a_round_goes_on_without_nodes_that_cannot_take_part(
    running: Deployment,
    app: Path,
    settings: dict[str, Any],
    files: dict[str, dict[str, Any]],
    tiny_bert: Path,
    tmp_path: Path,
) -> None:
    """One falls silent, one's endpoint refuses it, one has another vocabulary."""
    other = tmp_path / "tokenizer.json"
    tokenizer = json.loads((tiny_bert / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["another"] = vocabulary.pop(max(vocabulary, key=vocabulary.__getitem__))
    other.write_text(json.dumps(tokenizer), encoding="utf-8")
    running.start_node("east", **files["north"], **{"api-key-env": "FAULTS_WRONG_KEY"})
    running.start_node("west", **files["south"], **{"masked-lm": str(other)})
    south = running.log_file("south")
    wait_until(lambda: "SuperNode ID" in south.read_text(encoding="utf-8"), "south to join")
    running.stop("south")
    changes = {"num-server-rounds": 1, "min-available-clients": 4, "round-timeout": ROUND_TIMEOUT}
    run = running.run(app, {**settings, **changes})
    status = running.wait(run)
    log = running.run_log(run)
    assert status == "finished:completed", running.logs(run)
    (folder,) = Path(settings["run-folder"]).iterdir()
    searches = {line["client"]: line for line in history(folder) if line["event"] == "search"}
    assert searches.keys() == {"north", "east", "west"}
    assert "failure" not in searches["north"]
    assert "HTTP 401" in searches["east"]["failure"]
    assert "all nodes need the same masked-lm" in searches["west"]["failure"]
    assert searches["west"]["queries"] == searches["east"]["queries"] == 0
    (settled,) = [line for line in history(folder) if line["event"] == "round"]
    assert settled["failures"] >= 3
    # Flower gives a silent node up for the one reason or the other, whichever comes first.
    assert "may have expired due to its TTL" in log or "Node Unavailable" in log
    assert "wrong-key" not in log
    assert json.loads((folder / "prompt.json").read_text(encoding="utf-8"))["rounds"] == 1

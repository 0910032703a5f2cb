"""What nodes let their examples tell, over runs and restarts of a real deployment."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simulations.local_deployment import Deployment, deployment
from tests.e2e.conftest import deployment_keys, history
from tests.fill_mask_server import FillMaskService

pytestmark = pytest.mark.slow


@pytest.fixture
def running(fill_mask_service: FillMaskService, tmp_path: Path) -> Iterator[Deployment]:
    pytest.importorskip("opendp")
    with deployment(tmp_path / "deployment", deployment_keys(fill_mask_service)) as running:
        yield running


def booked(config: dict[str, Any]) -> list[tuple[str, int]]:
    ledger = Path(f"{config['data-path']}.epsilon.jsonl")
    lines = map(json.loads, ledger.read_text(encoding="utf-8").splitlines())
    return [(line["phase"], line["round"]) for line in lines]


def test_a_limit_outlasts_supernode_and_run(
    running: Deployment, app: Path, settings: dict[str, Any], files: dict[str, dict[str, Any]]
) -> None:
    settings |= {"privacy": "exponential", "epsilon": 1.0, "num-server-rounds": 1}
    # Fifty prompts to draw from: if both nodes drew the one they were sent, none would be compared.
    settings["queries-per-round"] = 100

    def run(name: str) -> list[dict[str, Any]]:
        run_id = running.run(app, {**settings, "run-folder": f"{settings['run-folder']}/{name}"})
        assert running.wait(run_id) == "finished:completed", running.logs(run_id)
        [folder] = Path(settings["run-folder"], name).iterdir()
        return [line for line in history(folder) if line["event"] in ("search", "race")]

    for name, config in files.items():
        running.start_node(name, **config)
    events = run("first")
    assert not any("failure" in event for event in events)
    for config in files.values():
        assert booked(config) == [("search", 1), ("score", 1)]

    running.end("north")
    running.start_node("north", **files["north"], **{"epsilon-limit": 1.5})
    told = {(e["event"], e["client"]): e.get("failure") for e in run("second")}
    assert booked(files["south"]) == [("search", 1), ("score", 1)] * 2
    assert booked(files["north"]) == [("search", 1), ("score", 1), ("search", 1)]
    assert told["race", "north"] == "this node's epsilon-limit is reached"
    assert told["search", "north"] is told["search", "south"] is told["race", "south"] is None

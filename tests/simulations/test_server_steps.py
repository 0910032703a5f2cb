"""Ways of the server's step on the same uploads: real models, tiny settings."""

import json
from pathlib import Path
from typing import get_args

import pytest

from feddtpt_flwr.config import RunConfig
from simulations import server_steps
from simulations.server_steps import BASE, STEPS
from strategies.aggregation import Method

TINY = {
    "k-shot": 1,
    "public-per-class": 1,
    "test-size": 4,
    "queries-per-round": 16,
    "guard": False,
    "seed-prompt": "Movie review.",
    "dtype": "float32",
}
COMPARED = "comparison by the clients"


def test_every_method_of_the_strategy_is_compared() -> None:
    assert {step.get("aggregation", "feddtpt") for step in STEPS.values()} == set(get_args(Method))


@pytest.mark.slow
def test_all_steps_have_the_same_uploads(embedded_assets: None, tmp_path: Path) -> None:
    server_steps.searched.cache_clear()
    rows = [BASE, "best client, by its own word", COMPARED]
    table = server_steps.run([0], tmp_path, rows, TINY)
    runs = json.loads((tmp_path / "steps.json").read_text(encoding="utf-8"))["runs"]
    plain, best, compared = (runs[row]["0"] for row in rows)
    assert plain["queries"] == best["queries"] < compared["queries"]
    assert len({run["seed_accuracy"] for run in (plain, best, compared)}) == 1
    found = server_steps.searched(RunConfig.from_run_config({**TINY, "seed": 0}), ())
    assert best["prompt"] in {upload.prompt for upload in found.federation.uploads}
    assert found.replies
    assert server_steps.searched.cache_info().misses == 1
    for row in rows:
        assert f"| {row} | 1 |" in table
    assert "## Even labels" in table
    assert "## Uneven labels" not in table
    again = server_steps.run([0], tmp_path, rows, TINY)
    assert again == table, "nothing is made twice"

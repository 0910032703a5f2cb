"""The comparison of a federation with its members: on real models, at tiny settings."""

import json
from pathlib import Path

import pytest

from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.experiment import load_data
from simulations import federation
from simulations.federation import NUM_CLIENTS, SETTINGS, VARIANTS, who

TINY = {
    "num-server-rounds": 1,
    "k-shot": 1,
    "public-per-class": 1,
    "race-candidates": 1,
    "test-size": 4,
    "seed-prompt": "Movie review.",
    "dtype": "float32",
}


@pytest.mark.slow
def test_together_they_have_what_each_has_alone(embedded_assets: None) -> None:
    config = RunConfig.from_run_config({**SETTINGS, "test-size": 20})
    data = load_data(config, NUM_CLIENTS)
    alone, together = who(data, "alone"), who(data, "together")
    assert alone.clients == data.clients[:1]
    (everything,) = together.clients
    assert everything.train == tuple(e for client in data.clients for e in client.train)
    assert len(everything.validation) == sum(len(client.validation) for client in data.clients)
    assert who(data, "all") is data
    assert alone.test == together.test == data.test


@pytest.mark.slow
def test_runs_and_their_table(
    embedded_assets: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ["even labels: federation", "even labels: one client alone"]
    for row, queries in zip(rows, (6, 60), strict=True):
        monkeypatch.setitem(VARIANTS[row], "queries-per-round", queries)
    table = federation.run([0], tmp_path, rows, TINY)
    kept = json.loads((tmp_path / "federation.json").read_text(encoding="utf-8"))["runs"]
    assert 10 < kept[rows[0]]["0"]["queries"] <= NUM_CLIENTS * (6 + 2 * 4)
    assert kept[rows[1]]["0"]["queries"] <= 60 + 2 * 4
    assert "## Even labels" in table
    assert f"| {rows[0]} | 1 |" in table
    assert "uneven" not in table

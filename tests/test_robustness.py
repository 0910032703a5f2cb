"""The comparison with bad clients: on real models, at tiny settings."""

import json
from pathlib import Path

import pytest

from simulations import robustness
from simulations.robustness import NUM_CLIENTS

TINY = {
    "num-server-rounds": 1,
    "k-shot": 1,
    "public-per-class": 1,
    "queries-per-round": 8,
    "test-size": 4,
    "seed-prompt": "Movie review.",
    "dtype": "float32",
}


@pytest.mark.slow
def test_bad_clients_ask_nothing_and_are_outvoted(embedded_assets: None, tmp_path: Path) -> None:
    table = robustness.run([0], tmp_path, TINY, ["clean", "bad"])
    kept = json.loads((tmp_path / "robustness.json").read_text(encoding="utf-8"))["runs"]
    assert kept["bad"]["0"]["queries"] < kept["clean"]["0"]["queries"] * 0.85
    assert len(kept["bad"]["0"]["prompt"]) < 60, "one of their prompts would be a salad of words"
    assert "| bad | 1 |" in table
    assert f"{NUM_CLIENTS} clients" in table
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(robustness, "run_once")
        assert robustness.run([0], tmp_path, TINY, ["clean", "bad"]) == table


def test_runs_of_other_settings_are_not_mixed_in(tmp_path: Path) -> None:
    file = tmp_path / "robustness.json"
    file.write_text(json.dumps({"settings": {"bad": {"seed": 1}}, "runs": {"bad": {}}}))
    with pytest.raises(ValueError, match="other settings for 'bad'"):
        robustness.run([], tmp_path, TINY)

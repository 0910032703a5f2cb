"""The comparison with bad clients: on real models, at tiny settings."""

import json
from pathlib import Path

import numpy as np
import pytest

from feddtpt_flwr import models
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.experiment import load_data, load_task, seed_tokens
from feddtpt_flwr.node import Node
from simulations import robustness
from simulations.robustness import BAD, NUM_CLIENTS, BadClient

TINY = {
    "num-server-rounds": 1,
    "k-shot": 1,
    "public-per-class": 1,
    "queries-per-round": 8,
    "test-size": 4,
    "seed-prompt": "Movie review.",
    "dtype": "float32",
}


def bad_uploads(seed: int) -> list[str]:
    """What the bad clients upload in the first round."""
    config = RunConfig.from_run_config({**TINY, "seed": seed})
    data, task = load_data(config, NUM_CLIENTS), load_task(config)
    vocabulary = models.masked_lm(config, task).vocabulary
    prompt = np.array(seed_tokens(config, task, vocabulary))
    clients = [BadClient(Node(name, config, data.clients[int(name)], data.public)) for name in BAD]
    uploads = [client.search(prompt, 1)[0][0].tolist() for client in clients]
    assert all(len(tokens) == len(prompt) for tokens in uploads)
    return [vocabulary.decode(tokens) for tokens in uploads]


@pytest.mark.slow
def test_bad_clients_ask_nothing_and_are_outvoted(embedded_assets: None, tmp_path: Path) -> None:
    table = robustness.run([0], tmp_path, TINY, ["clean", "bad"])
    kept = json.loads((tmp_path / "robustness.json").read_text(encoding="utf-8"))["runs"]
    assert kept["bad"]["0"]["queries"] < kept["clean"]["0"]["queries"] * 0.85
    assert kept["bad"]["0"]["prompt"] not in bad_uploads(0)
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

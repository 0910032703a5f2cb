"""The comparison of a federation with its members and with bad ones: real models, tiny settings."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.common import Scalar
from numpy.typing import NDArray

from feddtpt_flwr import models
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.experiment import load_data, load_task, seed_tokens
from feddtpt_flwr.node import Node
from simulations import federation, kept_runs
from simulations.bad_clients import BadClient
from simulations.federation import BAD, NUM_CLIENTS, VARIANTS, who
from simulations.local_federation import Answer, Federation, HonestClient
from simulations.several_alive import SeveralAlive
from simulations.stamp import time_and_place
from strategies.candidates import Tokens
from strategies.wire import COMPARED_KEY, ROUND_KEY

TINY = {
    "num-server-rounds": 1,
    "k-shot": 1,
    "public-per-class": 1,
    "race-candidates": 1,
    "test-size": 4,
    "seed-prompt": "Movie review.",
    "dtype": "float32",
}
EXAMPLES = 4  # that each client is asked about: one of each class, its own and public


def bad_uploads(seed: int) -> list[str]:
    """What the bad clients upload in the first round."""
    config = RunConfig.from_run_config({**TINY, "seed": seed})
    data, task = load_data(config, NUM_CLIENTS), load_task(config)
    vocabulary = models.masked_lm(config, task).vocabulary
    prompt = np.array(seed_tokens(config, task, vocabulary))
    clients = [BadClient(Node(name, config, data.clients[int(name)], data.public)) for name in BAD]
    uploads = [client.search(prompt, {ROUND_KEY: 1})[0][0].tolist() for client in clients]
    assert all(len(tokens) == len(prompt) for tokens in uploads)
    return [vocabulary.decode(tokens) for tokens in uploads]


@pytest.mark.slow
def test_runs_and_their_tables(
    embedded_assets: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, bad = "one client alone", "federation, 3 bad clients"
    away = "federation, these 3 away"
    rows = dict.fromkeys(("federation", bad, away, alone), 2 * EXAMPLES)
    for row, queries in rows.items():
        monkeypatch.setitem(VARIANTS[row], "queries-per-round", queries)
    table = federation.run([0], tmp_path, list(rows), TINY)
    kept = json.loads((tmp_path / "federation.json").read_text(encoding="utf-8"))["runs"]
    asked = {row: kept[row]["0"]["queries"] for row in rows}
    assert asked[alone] < asked["federation"] / 5
    assert asked[bad] < asked["federation"] * 0.85, "they ask nothing"
    assert asked[away] < asked["federation"] * 0.85, "nor do these"
    assert kept[bad]["0"]["prompt"] not in bad_uploads(0), "they are outvoted"
    for row in rows:
        assert f"| {row} | 1 |" in table
    assert "## Bad clients" in table
    assert "## Uneven labels" not in table
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(federation, "run_once")
        (tmp_path / "federation.md").unlink()
        assert federation.run([0], tmp_path, list(rows), TINY) == table
    assert (tmp_path / "federation.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "federation.md").read_text(encoding="utf-8") == table


def test_runs_of_other_settings_are_not_mixed_in(tmp_path: Path) -> None:
    file = tmp_path / "federation.json"
    file.write_text(
        json.dumps({"settings": {"federation": {"seed": 1}}, "runs": {"federation": {}}})
    )
    with pytest.raises(ValueError, match="other settings for 'federation'"):
        federation.run([], tmp_path, [], TINY)


def test_runs_that_another_process_has_added_meanwhile_stay(tmp_path: Path) -> None:
    file, settings = tmp_path / "kept.json", {"a": {"k": 1}, "b": {"k": 2}}

    def run_once(of: Mapping[str, Any], seed: int) -> dict[str, Any]:
        if of["k"] == 1:
            # In the middle of this run, the same command with the other variant.
            kept_runs.complete(file, settings, ["b"], [0], lambda *_: {"n": 2}, lambda _: "")
        return {"n": of["k"]}

    kept_runs.complete(file, settings, ["a"], [0], run_once, lambda runs: str(sorted(runs)))
    made = time_and_place()  # other runs may be of another day or machine
    assert kept_runs.read(file, settings) == {
        "a": {0: {"n": 1, **made}},
        "b": {0: {"n": 2, **made}},
    }
    assert file.with_suffix(".md").read_text(encoding="utf-8") == "['a', 'b']"


@pytest.mark.slow
def test_the_best_two_prompts_live_on(
    embedded_assets: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**TINY, "queries-per-round": 4 * EXAMPLES, "race-candidates": 2}
    config = RunConfig.from_run_config(settings)
    data = load_data(config, 3)
    several, usual = SeveralAlive(config, data, 2), Federation(config, data)
    several.round(1)
    usual.round(1)
    assert several.prompt == usual.prompt, "the first round has one prompt to begin with"
    assert len(set(several.alive)) == 2
    sent: list[Tokens] = []
    search = HonestClient.search

    def watched(
        client: HonestClient, prompt: NDArray[np.int64], config: Mapping[str, Scalar]
    ) -> Answer:
        sent.append(tuple(prompt.tolist()))
        assert config[COMPARED_KEY], "so that hunches are uploaded, as in the app"
        return search(client, prompt, config)

    monkeypatch.setattr(HonestClient, "search", watched)
    first, second = several.alive
    several.round(2)
    assert sent == [first, first, second], "two clients search from the best, and one from the next"
    assert 1 <= len(several.alive) <= 2


@pytest.mark.slow
def test_together_they_have_what_each_has_alone(embedded_assets: None) -> None:
    data = load_data(RunConfig.from_run_config(TINY), NUM_CLIENTS)
    alone, together = who(data, "alone"), who(data, "together")
    assert alone.clients == data.clients[:1]
    (everything,) = together.clients
    assert everything.train == tuple(e for client in data.clients for e in client.train)
    assert len(everything.validation) == sum(len(client.validation) for client in data.clients)
    assert who(data, "all") is data
    assert alone.test == together.test == data.test

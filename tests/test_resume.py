"""A run that goes on, with real clients in this process."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from feddtpt_flwr.assets import cache_folder
from feddtpt_flwr.checkpoint import Checkpoint
from feddtpt_flwr.client_state import state_file
from feddtpt_flwr.config import ConfigError, RunConfig
from feddtpt_flwr.round_server import RoundServer
from feddtpt_flwr.server_app import _look_ahead, build, conduct
from simulations.in_process import InProcessClient

NUM_CLIENTS = 2
SETTINGS: dict[str, Any] = {
    "num-server-rounds": 1,
    "k-shot": 1,
    "public-per-class": 1,
    "test-size": 4,
    "queries-per-round": 8,
    "seed-prompt": "Movie review.",
    "max-prompt-tokens": 8,
    "dtype": "float32",
    "device": "cpu",
}


def run(settings: dict[str, Any], saved: Checkpoint | None = None) -> Path:
    def drive(server: RoundServer, num_rounds: int) -> None:
        server.set_max_workers(1)
        for number in range(NUM_CLIENTS):
            server.client_manager().register(InProcessClient(number, NUM_CLIENTS, settings))
        server.fit(num_rounds, None)

    ready = build(RunConfig.from_run_config(settings), NUM_CLIENTS, saved)
    conduct(ready, drive)
    ready.folder._lock.release()  # as the end of its process would
    return ready.folder.path


def test_clients_know_a_run_again_whose_folder_was_renamed(
    embedded_assets: None, tmp_path: Path
) -> None:
    first = run(SETTINGS | {"run-folder": str(tmp_path)})
    renamed = first.rename(tmp_path / "the final one")
    saved = Checkpoint.read(renamed)
    assert saved.run == first.name
    again = SETTINGS | {"resume": str(renamed), "num-server-rounds": 2}
    assert run(again, saved) == renamed
    assert state_file(cache_folder(), first.name, "0").exists()
    assert not state_file(cache_folder(), renamed.name, "0").exists()
    assert Checkpoint.read(renamed).rounds == 2

    with pytest.raises(ConfigError, match=r"k-shot = 2: the run to resume has 1"):
        _look_ahead(RunConfig.from_run_config(again | {"k-shot": 2}), saved)
    without = replace(Checkpoint.read(renamed), run="")  # of the version before
    ready = build(RunConfig.from_run_config(again), NUM_CLIENTS, without)
    assert ready.name == renamed.name

import json
import os
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.copies import copy_app

CLIENTS, QUERIES, TEST_SIZE = 2, 40, 20
FLOWER_LOCAL_PORTS = (39091, 39093)  # where a plain `flwr run` finds or starts its SuperLink

pytestmark = pytest.mark.slow


def simulate(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "feddtpt-flwr"), "simulate", str(folder)]
    # A thread per simulated client and core, so that the machine's other work matters less.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, timeout=400
    )


@pytest.fixture(scope="module")
def app_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout's app in another place and under another version, to tell whose code runs."""
    folder = copy_app(tmp_path_factory.mktemp("app"))
    init = folder / "feddtpt_flwr" / "__init__.py"
    text = init.read_text(encoding="utf-8")
    changed = text.replace('__version__ = "', '__version__ = "copied-')
    assert changed != text
    init.write_text(changed, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def busy_ports() -> Iterator[None]:
    """Somebody listens where Flower's shared local SuperLink would."""
    with ExitStack() as stack:
        for port in FLOWER_LOCAL_PORTS:
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
                sock.listen()
            except OSError:
                continue  # then somebody does already
        yield


@dataclass(frozen=True)
class Run:
    output: str
    folder: Path
    history: list[dict[str, Any]]
    prompt: dict[str, Any]

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.history if line["event"] == name]


@pytest.fixture(scope="module")
def run(
    embedded_assets: None,
    app_copy: Path,
    busy_ports: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    parent = tmp_path_factory.mktemp("runs")
    done = simulate(
        app_copy,
        "--num-clients",
        str(CLIENTS),
        "-c",
        f"num-server-rounds=1 k-shot=4 public-per-class=2 queries-per-round={QUERIES}",
        "-c",
        f'test-size={TEST_SIZE} seed-prompt="Movie review." run-folder="{parent}"',
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = parent.iterdir()
    history = [json.loads(line) for line in (folder / "history.jsonl").open(encoding="utf-8")]
    prompt = json.loads((folder / "prompt.json").read_text(encoding="utf-8"))
    return Run(done.stdout + done.stderr, folder, history, prompt)


def test_the_run_folder_is_complete(run: Run) -> None:
    names = {path.name for path in run.folder.iterdir() if not path.name.startswith(".")}
    assert names == {
        "accuracy.png",
        "checkpoint.json",
        "config.toml",
        "history.jsonl",
        "prompt.json",
        "resume.toml",
    }
    config = tomllib.loads((run.folder / "config.toml").read_text(encoding="utf-8"))
    assert config["queries-per-round"] == QUERIES
    assert config["seed-prompt"] == run.prompt["seed-prompt"] == "Movie review."
    assert (run.folder / "accuracy.png").read_bytes()[:4] == b"\x89PNG"


def test_the_code_is_that_of_the_folder(run: Run) -> None:
    assert run.prompt["versions"]["feddtpt-flwr"].startswith("copied-")


def test_every_client_searched_within_its_budget(run: Run) -> None:
    searches = run.events("search")
    assert {search["client"] for search in searches} == {str(i) for i in range(CLIENTS)}
    assert all(search["round"] == 1 for search in searches)
    assert all(0 < search["queries"] <= QUERIES for search in searches)
    assert all(search["trials"] > 0 for search in searches)


def test_accepted_changes_are_written_down(run: Run) -> None:
    for search in run.events("search"):
        accuracies = [change["accuracy"] for change in search["accepted"]]
        assert accuracies == sorted(accuracies), "the search only ever goes up"
        for change in search["accepted"]:
            assert change.keys() >= {"position", "operator", "before", "after", "accuracy"}
            assert change["operator"] in {"replace", "insert", "delete", "rewrite"}
            assert change["before"] != change["after"]
            assert 0 <= change["position"] <= 24
        if search["accepted"]:
            assert search["accuracy"] == accuracies[-1]
            assert search["gain"] > 0


def test_the_settled_prompt_is_the_learned_one(run: Run) -> None:
    (settled,) = run.events("round")
    assert settled["failures"] == 0
    assert settled["prompt"] == run.prompt["prompt"]
    origins = [candidate["origin"] for candidate in settled["candidates"]]
    assert origins[0] == "incumbent"
    assert settled["chosen"] in origins
    accuracy = run.prompt["held-out-accuracy"]
    assert accuracy["learned"]["accuracy"] == settled["accuracy"]
    assert accuracy["learned"]["examples"] == TEST_SIZE


def test_queries_add_up(run: Run) -> None:
    clients = sum(line["queries"] for line in run.events("search") + run.events("race"))
    assert run.prompt["queries"] == clients


def test_the_closing_table_is_shown(run: Run) -> None:
    assert run.prompt["prompt"] in run.output
    assert f"accuracy on {TEST_SIZE} held-out examples" in run.output
    assert f"{run.prompt['queries']:,}" in run.output

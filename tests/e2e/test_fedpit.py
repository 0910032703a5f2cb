"""FedPIT in a real simulation: the model, data and processes that a user has, at small settings."""

import json
import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from feddtpt_flwr.fedpit.instructions import InstructionData
from feddtpt_flwr.fedpit.tasks import drug_reviews
from tests.e2e.copies import ONE_PROCESS, REPOSITORY

CLIENTS, EXAMPLES, TEST_SIZE = 2, 4, 8

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Run:
    output: str
    folder: Path
    result: dict[str, Any]

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = (self.folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
        return [line for line in map(json.loads, lines) if line["event"] == name]


@pytest.fixture(scope="module")
def drugs() -> InstructionData:
    return drug_reviews()


@pytest.fixture(scope="module")
def run(embedded_assets: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    parent = tmp_path_factory.mktemp("runs")
    command = [str(Path(sys.executable).parent / "feddtpt-flwr"), "simulate", str(REPOSITORY)]
    command += ["--app", "fedpit", "--num-clients", str(CLIENTS), *ONE_PROCESS, "-c"]
    command += [
        f"num-server-rounds=1 examples-per-client={EXAMPLES} test-size={TEST_SIZE} lora-rank=4 "
        "num-candidates=3 num-selected=2 num-demonstrations=3 max-instruction-tokens=40 "
        f"max-response-tokens=8 batch-size=4 partition='dirichlet' run-folder='{parent}'"
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = parent.iterdir()
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return Run(done.stdout + done.stderr, folder, result)


def test_the_run_folder_is_complete(run: Run) -> None:
    names = {path.name for path in run.folder.iterdir()}
    assert names == {"adapter", "config.toml", "history.jsonl", "result.json", "rouge.png"}
    config = tomllib.loads((run.folder / "config.toml").read_text(encoding="utf-8"))
    assert config["examples-per-client"] == EXAMPLES
    assert (run.folder / "adapter" / "adapter_model.safetensors").stat().st_size > 100_000


def test_every_client_trained_isolated_adapters(run: Run) -> None:
    trained = run.events("train")
    assert {line["client"] for line in trained} == {str(i) for i in range(CLIENTS)}
    for line in trained:
        assert line["num-examples"] == EXAMPLES
        assert line["loss-local"] > 0
        assert line["written"] >= line["candidates"] >= line["selected"]
        assert 0 <= line["memorisation-start"] <= 1
    assert any(line["selected"] for line in trained)


def test_utility_and_memorisation_are_measured(run: Run) -> None:
    assert [utility["held-out"] for utility in run.result["utility"]] == [TEST_SIZE] * 2
    before, after = run.result["memorisation"]
    assert 0 <= before <= 1
    assert 0 <= after <= 1
    assert len(run.events("evaluate")) == CLIENTS
    assert run.result["failures"] == run.result["rejected"] == 0
    assert f"Rouge-L of {TEST_SIZE} held-out responses" in run.output


def test_only_adapters_travel(run: Run) -> None:
    # Rank 4, 30 layers, queries 576 to 576 and values 576 to 192, two bytes each; to and from
    # every client for training, and to it for evaluation.
    adapter = 2 * 30 * 4 * ((576 + 576) + (576 + 192))
    (size,) = run.result["bytes"]
    assert size == pytest.approx(3 * CLIENTS * adapter, rel=0.05)


def test_no_private_text_is_written_or_logged(run: Run, drugs: InstructionData) -> None:
    written = run.output + "".join(
        path.read_text(encoding="utf-8")
        for path in run.folder.rglob("*")
        if path.suffix in (".json", ".jsonl", ".toml", ".md")
    )
    assert not [row for row in drugs.train if row.instruction in written]

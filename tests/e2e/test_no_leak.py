"""A run in simulation with marked texts and a marked key, and everything that it lets out."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from feddtpt_flwr.data import Example
from tests.e2e.copies import ONE_PROCESS
from tests.e2e.recording import VARIABLE, Recorded, recorded, recording_app

CANARY = "qzvx"  # begins everything that must not be let out
CLIENTS, QUERIES = 2, 120

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Run:
    output: str
    messages: list[Recorded]
    folder: Path


@pytest.fixture(scope="module")
def run(reviews: tuple[Example, ...], tmp_path_factory: pytest.TempPathFactory) -> Run:
    pytest.importorskip("tensorboard")
    folder = tmp_path_factory.mktemp("no-leak")
    messages = folder / "messages"
    messages.mkdir()
    sentences = [e.input.removeprefix("Review: ").strip() for e in reviews[:80]]
    rows = [
        {"text": f"{text} {CANARY}-{number}", "label": e.label, "patient": f"{CANARY}-patient"}
        for number, (text, e) in enumerate(zip(sentences, reviews, strict=False))
    ]
    table = folder / "reviews.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    command = [str(Path(sys.executable).parent / "feddtpt-flwr"), "simulate"]
    app = recording_app(folder / "app")
    command += [str(app), "--num-clients", str(CLIENTS), *ONE_PROCESS]
    settings = (
        f"num-server-rounds=1 k-shot=2 public-per-class=2 test-size=10 "
        # To this prompt every review is negative, so that searches find better ones to compare.
        f"queries-per-round={QUERIES} seed-prompt='Negative review.' trackers='tensorboard' "
        f"data-source='files' train-file='{table}' run-folder='{folder / 'runs'}'"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(app),
        "OMP_NUM_THREADS": "1",
        "OPENAI_API_KEY": f"{CANARY}-key",
        "FEDDTPT_LOG": "json",
        "FLWR_TELEMETRY_ENABLED": "0",
        VARIABLE: str(messages),
    }
    # Ray's workers would import the package from the folder that the command runs in.
    done = subprocess.run(
        [*command, "-c", settings],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    (run_folder,) = (folder / "runs").iterdir()
    return Run(output, list(recorded(messages)), run_folder)


def test_nothing_marked_is_let_out(run: Run) -> None:
    assert len(run.messages) == 4 * CLIENTS, run.output
    assert not [message for message in run.messages if CANARY.encode() in message.content]
    assert CANARY not in run.output
    written = [path for path in run.folder.rglob("*") if path.is_file()]
    assert {"history.jsonl", "prompt.json", "config.toml"} <= {path.name for path in written}
    assert [path for path in written if path.name.startswith("events.out.tfevents")]
    assert not [path for path in written if CANARY.encode() in path.read_bytes()]


def test_log_lines_are_json_with_run_round_and_node(run: Run) -> None:
    lines = [json_of(line) for line in run.output.splitlines() if '{"time"' in line]
    assert len({line["run"] for line in lines}) == 1
    nodes = {(line["node"], line.get("round")) for line in lines}
    assert {("server", None), ("server", 1), ("0", 1), ("1", 1)} <= nodes
    assert all(line["message"] and line["level"] for line in lines)
    assert "held-out examples │" not in run.output, "the closing table is for people"


def json_of(line: str) -> dict[str, Any]:
    """What stands behind the mark that Ray puts before the lines of its workers."""
    document: dict[str, Any] = json.JSONDecoder().raw_decode(line[line.index('{"time"') :])[0]
    return document

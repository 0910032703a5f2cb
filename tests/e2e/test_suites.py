"""A tiny suite with the real app: interrupted, gone on with, reported, and seen in a browser."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

SUITE = """
title = "Tiny"
question = "Does everything work?"
seeds = [0]
num-clients = 2
transfer = true

[settings]
num-server-rounds = 1
k-shot = 2
public-per-class = 0
test-size = 20
queries-per-round = 24
max-prompt-tokens = 8
seed-prompt = "Movie review."

[models.plain]
[models.chat]
chat = true
[models.elsewhere]
language-model = "/nowhere/model.gguf"

[methods.full]
what = "FedDTPT"
"""

pytestmark = pytest.mark.slow


class Tiny:
    """The suite's file, its runs and its report."""

    def __init__(self, folder: Path) -> None:
        self.suite = folder / "tiny.toml"
        self.suite.write_text(SUITE, encoding="utf-8")
        self.runs = folder / "runs"
        self.report = folder / "report"
        self.output = ""

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "simulations", arguments[0], str(self.suite), *arguments[1:]]

    def start(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.command("run", "--folder", str(self.runs), "--jobs", "2"),
            cwd=REPOSITORY,
            env={**os.environ, "COLUMNS": "200", "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def processes(self) -> list[str]:
        """Return the command lines of what still runs for this suite."""
        found = []
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue  # it has just ended
            if str(self.runs) in command:
                found.append(command)
        return found


@pytest.fixture(scope="module")
def tiny(embedded_assets: None, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The suite after one interrupted and one complete call."""
    tiny = Tiny(tmp_path_factory.mktemp("suite"))
    first = tiny.start()
    while first.poll() is None and len(list(tiny.runs.glob("*/**/run.log"))) < 2:
        time.sleep(0.1)
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    output = first.communicate(timeout=120)[0]
    assert first.returncode == 130, output
    assert "the same command goes on" in output
    deadline = time.monotonic() + 60  # a busy machine takes its time to end them
    while tiny.processes() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert tiny.processes() == [], "what it started has ended with it"
    assert not list(tiny.runs.glob("**/result.json"))

    second = tiny.start()
    tiny.output = second.communicate(timeout=500)[0]
    assert second.returncode == 0, tiny.output
    return tiny


def test_each_run_keeps_its_result_and_its_folder(tiny: Tiny) -> None:
    assert "1 runs cannot be run here: no file /nowhere/model.gguf" in tiny.output
    for model in ("plain", "chat"):
        folder = tiny.runs / "tiny" / model / "full" / "seed0"
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        assert result["job"]["settings"].get("chat", False) == (model == "chat")
        names = {path.name for path in (folder / result["run-folder"]).iterdir()}
        assert {"prompt.json", "history.jsonl", "config.toml"} <= names
        history = (folder / result["run-folder"] / "history.jsonl").read_text(encoding="utf-8")
        (settled,) = (e for e in map(json.loads, history.splitlines()) if e["event"] == "round")
        assert len(settled["uploads"]) == 2
        (other,) = {"plain", "chat"} - {model}
        transferred = json.loads((folder / "transfer.json").read_text(encoding="utf-8"))
        assert transferred[other]["examples"] == 20
        assert 0 <= transferred[other]["accuracy"] <= 1
        assert f"{model}/full/seed0 on {other}: " in tiny.output


def test_without_flowers_processes_a_run_is_the_same(tiny: Tiny, tmp_path: Path) -> None:
    command = tiny.command("run", "--folder", str(tmp_path), "--in-process", "--only", "plain")
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    same = ("prompt", "tokens", "queries", "held-out-accuracy", "seed-prompt")
    learned = []
    for runs in (tiny.runs, tmp_path):
        (file,) = (runs / "tiny" / "plain").glob("**/prompt.json")
        learned.append(json.loads(file.read_text(encoding="utf-8")))
    assert {key: learned[0][key] for key in same} == {key: learned[1][key] for key in same}
    assert (file.parents[1] / "run.log").read_text(encoding="utf-8")


def test_what_is_complete_is_not_run_again(tiny: Tiny) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny.runs.rglob("*") if path.is_file()}
    third = tiny.start()
    output = third.communicate(timeout=120)[0]
    assert third.returncode == 0, output
    assert "->" not in output
    after = {path: path.stat().st_mtime_ns for path in tiny.runs.rglob("*") if path.is_file()}
    assert after == before


@pytest.fixture(scope="module")
def page(tiny: Tiny) -> Path:
    command = tiny.command("report", "--folder", str(tiny.runs), "--output", str(tiny.report))
    done = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    return tiny.report / "report.html"


def test_the_report_has_tables_figures_and_the_matrix(page: Path) -> None:
    text = (page.parent / "report.md").read_text(encoding="utf-8")
    assert "2 of 3 runs" in text
    assert "no file /nowhere/model.gguf" in text
    (row,) = (line for line in text.splitlines() if line.startswith("| plain |"))
    assert row.count("0.") + row.count("1.") == 2, "on itself and on the other"
    assert row.endswith("| - |")
    for name in ("accuracy-plain", "accuracy-chat"):
        assert (page.parent / f"{name}.png").stat().st_size > 1000
    assert text.count("What the server's step sees") >= 2


def test_a_browser_shows_the_page(page: Path, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"none of these browsers is installed: {', '.join(BROWSERS)}")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,2400"]
    options += ["--proxy-server=127.0.0.1:9"]  # the page needs nobody
    picture = tmp_path / "page.png"
    subprocess.run(
        [browser, *options, f"--screenshot={picture}", page.as_uri()],
        capture_output=True,
        check=True,
        timeout=120,
    )
    from matplotlib.image import imread

    pixels = imread(picture)
    assert pixels.shape[:2] == (2400, 1000)
    dark = (pixels[..., :3].max(axis=2) < 0.5).mean(axis=1)
    written = np.flatnonzero(dark > 0)
    assert written[0] < 100, "it begins at the top"
    assert written[-1] > 1200, "and has figures below the tables"
    assert dark.max() < 0.9
    colours = pixels[..., :3].max(axis=2) - pixels[..., :3].min(axis=2)
    assert (colours > 0.3).sum() > 500, "curves and clusters have colours"

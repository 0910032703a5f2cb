"""What a suite's runner does where a run, or another command, does something else than expected."""

import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from rich.console import Console
from rich.progress import Progress

from simulations import runner
from simulations.outcome import Failure, Outcome, Results
from simulations.processes import MARK
from simulations.runner import Plan, TimeLeft, run_suite
from simulations.stamp import stamp
from simulations.suite import Job, Suite
from tests.simulations.written_runs import write_run, write_run_folder, write_suite

Play = Callable[[Path, Job], None]


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Suite]:
    """A suite that can be run here, as far as the runner knows."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(runner, "obstacle", lambda _: "")
    yield write_suite(tmp_path)
    signal.signal(signal.SIGTERM, before)


def run(
    suite: Suite, results: Results, play: Play, monkeypatch: pytest.MonkeyPatch
) -> tuple[Plan, str]:
    """Run a part of the suite with ``play`` in place of a run's processes; return what is shown."""

    def run_processes(_: Any, folder: Path, __: Any, job: Job, ___: Any) -> runner._End:
        play(folder, job)
        return runner._End(0)

    monkeypatch.setattr(runner._Processes, "run", run_processes)
    text = StringIO()
    left = run_suite(suite, results, only=["one"], console=Console(file=text, width=200))
    return left, text.getvalue()


def test_what_one_run_raises_ends_no_other(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = Results(tmp_path / "runs")

    def play(folder: Path, job: Job) -> None:
        if job.label("methods") == "full" and job.seed == 0:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        write_run_folder(folder / "run", job, [0.5, 0.6])
        if job.label("methods") == "full" and job.seed == 1:
            (folder / "run" / "prompt.json").write_text("[]", encoding="utf-8")

    left, shown = run(suite, results, play, monkeypatch)
    full = suite.jobs(["one", "full"])
    assert left.to_run == full[:2]
    assert len(left.done) == 4
    for job, reason in zip(full, ("OSError: ", "TypeError: "), strict=False):
        failure = results.read(job)
        assert isinstance(failure, Failure)
        assert failure.reason.startswith(reason)
    assert "one/full/seed0: failed: OSError: [Errno 12] Cannot allocate memory" in shown


def test_a_result_that_cannot_be_written_ends_no_other_run(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = Results(tmp_path / "runs")
    first = suite.jobs(["one", "full"])[0]
    (results.job_folder(first) / "result.json").mkdir(parents=True)
    left, _ = run(
        suite, results, lambda *of: write_run_folder(of[0] / "run", of[1], [0.5, 0.6]), monkeypatch
    )
    assert left.to_run == [first]


def test_runs_say_when_and_where_they_were_made(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = Results(tmp_path / "runs")
    run(suite, results, lambda *of: write_run_folder(of[0] / "run", of[1], [0.5, 0.6]), monkeypatch)
    for job in suite.jobs(["one"]):
        outcome = results.read(job)
        assert isinstance(outcome, Outcome)
        assert outcome.made == stamp()


def test_two_commands_do_not_do_the_same_runs(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = Results(tmp_path / "runs")
    first, second, *_ = suite.jobs(["one"])
    last = suite.jobs(["one"])[-1]
    played = []

    def play(folder: Path, job: Job) -> None:
        if job == second:
            write_run(results, last, [0.5, 0.7])  # by another command, since this one's plan
        played.append(job)
        write_run_folder(folder / "run", job, [0.5, 0.6])

    home = results.job_folder(first)
    home.mkdir(parents=True)
    with FileLock(home / ".lock"):  # as another command that is at work on it
        left, shown = run(suite, results, play, monkeypatch)
    assert first not in played
    assert last not in played
    assert len(played) == 4
    assert left.to_run == [first]
    assert f"{first.key}: failed: another command is at work on it" in shown
    assert not list(home.glob("result.json")), "what the other does is not written down as failed"


def test_what_a_killed_command_left_running_is_ended(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = Results(tmp_path / "runs")
    home = results.job_folder(suite.jobs(["one"])[0])
    (home / "try-earlier").mkdir(parents=True)
    orphan, other = (
        subprocess.Popen(["sleep", "60"], env={**os.environ, MARK: str(mark)})
        for mark in (home / "try-earlier", home / "try-earlier-still")
    )
    try:
        run(suite, results, lambda _, __: None, monkeypatch)
        assert orphan.wait(10) == -signal.SIGKILL
        assert other.poll() is None, "only what a run of this suite has left"
    finally:
        for process in (orphan, other):
            process.kill()
            process.wait()


def test_what_a_killed_process_had_started_is_ended(tmp_path: Path) -> None:
    def start() -> "subprocess.Popen[bytes]":
        command = ["sh", "-c", f"sleep 60 & echo $! > {tmp_path / 'child'}; kill -9 $$"]
        return subprocess.Popen(command, env={**os.environ, MARK: str(tmp_path)})

    assert runner._Processes(in_process=False)._wait_for(tmp_path, start).status == -signal.SIGKILL
    child = Path("/proc") / (tmp_path / "child").read_text(encoding="ascii").strip()
    for _ in range(100):
        if not child.exists() or ") Z " in (child / "stat").read_text(encoding="ascii"):
            return
        time.sleep(0.1)
    pytest.fail("it is still alive")


def test_time_left_goes_by_what_has_ended_since_the_command_began() -> None:
    now = 0.0
    column = TimeLeft(before=2)
    progress = Progress(column, get_time=lambda: now, auto_refresh=False)
    bar = progress.add_task("suite", total=12, completed=2)
    task = progress.tasks[0]
    now = 90.0
    assert str(column.render(task)) == "-:--:--"
    progress.advance(bar)
    progress.advance(bar)  # two at a time end together
    now = 120.0
    assert str(column.render(task)) == "0:08:00", "two in 120 s, eight are left"

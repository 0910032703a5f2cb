"""Runs what a suite still lacks; whatever happens, what has completed stays."""

import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import mkdtemp
from threading import Event, Lock
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from simulations.app_run import Cores, start_run, why_it_failed, write_settings
from simulations.in_process import Worker
from simulations.obstacles import obstacle
from simulations.outcome import Failure, Outcome, Results, read_outcome
from simulations.peak_memory import wait_and_watch
from simulations.processes import end_orphans
from simulations.stamp import stamp
from simulations.suite import Job, Suite, Value

TERMINATE_SECONDS = 30.0
"""How long a run may take to end when it is told to."""


@dataclass(frozen=True)
class Plan:
    """What there is to do.

    Attributes
    ----------
    done : list[Job]
        Completed before.
    to_run : list[Job]
        Missing, or failed the last time.
    impossible : dict[Job, str]
        What cannot be run here, and why not.
    """

    done: list[Job]
    to_run: list[Job]
    impossible: dict[Job, str]


@dataclass(frozen=True)
class _End:
    """How a run has ended.

    Attributes
    ----------
    status : int
        0 if all went well.
    peak_mib : int | None
        The most memory that its processes took together; None if that was not measured.
    """

    status: int
    peak_mib: int | None = None


class TimeLeft(ProgressColumn):
    """How long it will take at the pace since the command began.

    Rich's own column leaves out what has ended first. With several runs at a time, of minutes each,
    its estimate is of the seconds between two that end together.

    Parameters
    ----------
    before : int
        Runs that had completed before: they tell nothing about the pace.
    """

    max_refresh = 1.0

    def __init__(self, before: int) -> None:
        super().__init__()
        self._before = before

    def render(self, task: Task) -> Text:
        """Return the time left; dashes as long as nothing has ended."""
        here = task.completed - self._before
        if here <= 0 or task.elapsed is None or task.remaining is None:
            return Text("-:--:--", style="progress.remaining")
        seconds = round(task.elapsed / here * task.remaining)
        return Text(str(timedelta(seconds=seconds)), style="progress.remaining")


def plan(jobs: Sequence[Job], results: Results) -> Plan:
    """Sort runs into those that have completed, those to run, and those that cannot be run here."""
    done, to_run, impossible = [], [], {}
    for job in jobs:
        if isinstance(results.read(job), Outcome):
            done.append(job)
        elif why := obstacle(job):
            impossible[job] = why
        else:
            to_run.append(job)
    return Plan(done, to_run, impossible)


def run_suite(
    suite: Suite,
    results: Results,
    *,
    only: Sequence[str] = (),
    seeds: int | None = None,
    jobs: int = 1,
    in_process: bool = False,
    console: Console | None = None,
    after: Callable[[Job], None] = lambda _: None,
) -> Plan:
    """Run what is missing, several runs at a time, and show how far it is.

    Parameters
    ----------
    suite : Suite
        The runs.
    results : Results
        Where they are kept.
    only : Sequence[str]
        Labels; of each axis that they are on, a run must have one of them.
    seeds : int, optional
        How many of the suite's seeds, from the first on; by default all.
    jobs : int
        Runs at the same time.
    in_process : bool
        Whether to do without SuperLink and Ray (see `simulations.in_process`).
    console : Console, optional
        Where progress is shown.
    after : Callable[[Job], None], optional
        Called when a run has ended.

    Returns
    -------
    Plan
        What is still missing now.

    Raises
    ------
    KeyboardInterrupt
        If interrupted; the runs at work were ended, and the others are kept.
    """
    console = console or Console()
    wanted = suite.jobs(only, seeds=seeds)
    todo = plan(wanted, results)
    for why, number in sorted(Counter(todo.impossible.values()).items()):
        console.print(f"{number} runs cannot be run here: {why}", highlight=False, markup=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeLeft(len(todo.done)),
    )
    processes = _Processes(in_process)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(suite.name, total=len(todo.done) + len(todo.to_run))
        progress.update(bar, completed=len(todo.done))
        with ThreadPoolExecutor(jobs) as pool:
            futures = {
                pool.submit(_run, job, results, Cores.share(job.num_clients, jobs), processes): job
                for job in todo.to_run
            }
            try:
                for future in as_completed(futures):
                    job, outcome = futures[future], future.result()
                    console.print(f"{job.key}: {_say(outcome)}", highlight=False, markup=False)
                    progress.advance(bar)
                    after(job)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            finally:
                processes.stop()
    return plan(wanted, results)


class _Processes:
    """The runs at work, so that all of them can be ended; in processes of their own, or workers.

    Parameters
    ----------
    in_process : bool
        Whether there are workers.
    """

    def __init__(self, in_process: bool) -> None:
        self._lock = Lock()
        self._running: set[subprocess.Popen[Any]] = set()
        self._idle: list[Worker] = []
        self._in_process = in_process
        self.stopping = Event()

    def run(self, folder: Path, settings: Mapping[str, Value], job: Job, cores: Cores) -> _End:
        """Run a job to its end."""
        if job.baseline:
            alone = Cores(1, cores.clients * cores.threads)
            return self._wait_for(
                folder, lambda: start_run(folder, settings, job.num_clients, alone, job.baseline)
            )
        if not self._in_process:
            return self._wait_for(
                folder, lambda: start_run(folder, settings, job.num_clients, cores)
            )
        write_settings(folder, settings)
        with self._lock:
            if self.stopping.is_set():
                return _End(-1)
            worker = self._idle.pop() if self._idle else Worker(cores.clients * cores.threads)
            self._running.add(worker.process)
        status = worker.run(folder, job.num_clients)
        with self._lock:
            if status >= 0:  # one that has died takes no other order
                self._idle.append(worker)
        return _End(status)  # a worker's memory is that of all its runs

    def _wait_for(self, folder: Path, start: Callable[[], "subprocess.Popen[bytes]"]) -> _End:
        """Start a process whose run's mark is ``folder``, and wait for its end."""
        with self._lock:
            if self.stopping.is_set():
                return _End(-1)
            process = start()
            self._running.add(process)
        try:
            peak_mib = wait_and_watch(process, str(folder))
            return _End(process.wait(), peak_mib)
        finally:
            with self._lock:
                self._running.discard(process)
            # Of a process that was killed, those that it had started are left.
            end_orphans(str(folder))

    def stop(self) -> None:
        """End all processes, and start no other."""
        with self._lock:
            self.stopping.set()
            running = list(self._running)
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(TERMINATE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _run(job: Job, results: Results, cores: Cores, processes: _Processes) -> Outcome | Failure:
    """Run the app and write down what came of it, at once; whatever happens ends no other run."""
    home = results.job_folder(job)
    try:
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / ".lock", timeout=0):
            # Another command may have completed it since this one's plan.
            if isinstance(found := results.read(job), Outcome):
                return found
            for earlier in home.glob("try-*"):
                end_orphans(str(earlier))
            outcome = _attempt(job, home, cores, processes)
            if isinstance(outcome, Failure) and processes.stopping.is_set():
                return Failure("stopped")
            if isinstance(outcome, Failure):
                results.write_failure(job, outcome)
            else:
                results.write_outcome(job, outcome)
            return outcome
    except Timeout:
        return Failure("another command is at work on it")
    except OSError as error:  # such as a full disk: nothing can be written down
        return Failure(_why(error))


def _attempt(job: Job, home: Path, cores: Cores, processes: _Processes) -> Outcome | Failure:
    """Run the app once and read what it left."""
    try:
        # A folder of its own for each try: what an earlier one left is not mistaken for this one's.
        folder = Path(mkdtemp(prefix="try-", dir=home))
        folder.chmod(0o755)
        start = time.monotonic()
        end = processes.run(folder, {**dict(job.settings), "seed": job.seed}, job, cores)
        seconds = round(time.monotonic() - start, 1)
        if end.status:
            log = (folder / "run.log").read_text(encoding="utf-8", errors="replace")
            return Failure(why_it_failed(log))
        (run_folder,) = (path for path in folder.iterdir() if path.is_dir())
        return read_outcome(run_folder, seconds, stamp(), end.peak_mib)
    except Exception as error:  # such as no memory for a process, or a file that makes no sense
        return Failure(_why(error))


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def _say(outcome: Outcome | Failure) -> str:
    if isinstance(outcome, Failure):
        return f"failed: {outcome.reason}"
    return (
        f"{outcome.seed_accuracy:.3f} -> {outcome.accuracy:.3f}, {outcome.queries:,} queries, "
        f"{outcome.seconds:.0f} s"
    )

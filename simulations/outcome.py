"""What a run left behind, and where a suite keeps it."""

import json
import os
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import get_ident
from typing import TYPE_CHECKING, Any

from feddtpt_flwr.config import RunConfig
from simulations.suite import Job

if TYPE_CHECKING:
    from simulations.records import Kept

RESULT, FAILURE, HISTORY = "result.json", "failure.json", "history.jsonl"


@dataclass(frozen=True)
class CurvePoint:
    """Held-out accuracy of the prompt after a round; round 0 is the start.

    Attributes
    ----------
    round : int
        The round.
    queries : int
        Of all clients until then.
    accuracy : float
        In [0, 1].
    """

    round: int
    queries: int
    accuracy: float


@dataclass(frozen=True)
class Outcome:
    """A completed run.

    Attributes
    ----------
    folder : Path
        The app's run folder; of a run that a report has kept, it may be gone.
    config : RunConfig
        The settings that the run had.
    seconds : float
        From the command to its end.
    seed_prompt, prompt : str
        The prompt before and after.
    num_parameters : int
        Numbers that are tuned: the token ids of the learned prompt, nothing else.
    seed_accuracy, accuracy : float
        Of both on the held-out examples, in [0, 1].
    held_out : int
        Number of those examples.
    queries : int
        Of all clients, searches and comparisons.
    num_bytes : tuple[int, ...]
        Exchanged in each round, both directions, all clients.
    curve : tuple[CurvePoint, ...]
        From the start on; a round after which the black box failed has no point.
    made : dict[str, Any]
        When, where and with which versions the run ended, as `simulations.stamp.stamp` says it.
    peak_mib : int | None
        The most memory that all of the run's processes took together; None if it was not measured.
    """

    folder: Path
    config: RunConfig
    seconds: float
    seed_prompt: str
    prompt: str
    num_parameters: int
    seed_accuracy: float
    accuracy: float
    held_out: int
    queries: int
    num_bytes: tuple[int, ...]
    curve: tuple[CurvePoint, ...]
    made: dict[str, Any]
    peak_mib: int | None = None

    @property
    def is_here(self) -> bool:
        """Whether the run's folder is on this machine."""
        return (self.folder / HISTORY).is_file()

    def last_uploads(self) -> list[list[int]]:
        """Return the token ids of the last prompts that clients uploaded; empty if none did."""
        rounds = [event for event in _history(self.folder) if event["event"] == "round"]
        uploads = [event.get("uploads") for event in rounds]
        return next((list(upload) for upload in reversed(uploads) if upload), [])


@dataclass(frozen=True)
class Failure:
    """A run that did not complete, and why."""

    reason: str


def read_outcome(
    folder: Path, seconds: float, made: dict[str, Any], peak_mib: int | None = None
) -> Outcome:
    """Read the app's run folder; what the app does not know itself is given.

    Raises
    ------
    ValueError, OSError, KeyError
        If it is not that of a completed run.
    """
    settings = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
    learned = json.loads((folder / "prompt.json").read_text(encoding="utf-8"))
    history = _history(folder)
    rounds = [event for event in history if event["event"] == "round"]
    starts = [event for event in history if event["event"] == "start"]
    points = [(0, 0, event["accuracy"]) for event in starts]
    points += [(event["round"], event["queries"], event["accuracy"]) for event in rounds]
    before, after = (learned["held-out-accuracy"][key] for key in ("seed-prompt", "learned"))
    if before is None or after is None:
        raise ValueError("the black box failed, so that its accuracy is not known")
    return Outcome(
        folder=folder,
        config=RunConfig.from_run_config(settings),
        seconds=seconds,
        seed_prompt=learned["seed-prompt"],
        prompt=learned["prompt"],
        num_parameters=learned.get("parameters", len(learned["tokens"])),
        seed_accuracy=before["accuracy"],
        accuracy=after["accuracy"],
        held_out=after["examples"],
        queries=learned["queries"],
        num_bytes=tuple(event["bytes"] for event in rounds),
        curve=tuple(CurvePoint(*point) for point in points if point[-1] is not None),
        made=made,
        peak_mib=peak_mib,
    )


class Results:
    """The results of a suite's runs below one folder, a folder for each run.

    Parameters
    ----------
    folder : Path
        Need not exist.
    shared : Path, optional
        A folder with those of several suites: a run of one is a run of all that want the same.
    kept : Kept, optional
        Runs that count as completed as well, though their folders are gone.
    """

    def __init__(
        self, folder: Path, shared: Path | None = None, kept: "Kept | None" = None
    ) -> None:
        self.folder = folder.resolve()
        self.shared = (shared or folder).resolve()
        self._kept = kept

    def job_folder(self, job: Job) -> Path:
        """Return where everything about a run is kept."""
        return self.folder / job.key

    def read(self, job: Job) -> Outcome | Failure | None:
        """Return what became of a run; None if it never ended, or had other settings.

        All settings count, also those that the suite leaves to the app: one with the app's former
        defaults is another run. Its code may have been older; `Outcome.made` says how old.
        """
        found = self._read(self.job_folder(job), job)
        if not isinstance(found, Outcome) and (same := self._elsewhere.get(_key(describe(job)))):
            found = self._read(same, job) or found
        if not isinstance(found, Outcome) and self._kept is not None:
            found = self._kept.find(job, self.shared) or found
        return found

    @cached_property
    def _elsewhere(self) -> dict[str, Path]:
        """Folders of the runs that all suites had completed before, by what decides a result."""
        folders = {}
        for path in sorted(self.shared.rglob(RESULT)):
            with suppress(OSError, ValueError, KeyError, TypeError):
                result = json.loads(path.read_text(encoding="utf-8"))
                if (path.parent / result["run-folder"]).is_dir():
                    folders[_key(result["job"])] = path.parent
        return folders

    def _read(self, folder: Path, job: Job) -> Outcome | Failure | None:
        if completed := _of(job, folder / RESULT):
            with suppress(OSError, ValueError, KeyError, TypeError):
                return read_outcome(
                    folder / completed["run-folder"],
                    completed["seconds"],
                    completed["made"],
                    completed.get("peak_mib"),
                )
        failed = _of(job, folder / FAILURE)
        return Failure(str(failed.get("failure"))) if failed else None

    def write_outcome(self, job: Job, outcome: Outcome) -> None:
        """Say that a run has completed."""
        run_folder = str(outcome.folder.relative_to(self.job_folder(job)))
        own = {"seconds": outcome.seconds, "peak_mib": outcome.peak_mib, "made": outcome.made}
        self._write(job, RESULT, {"run-folder": run_folder, **own})

    def write_failure(self, job: Job, failure: Failure) -> None:
        """Say that a run has failed; it is run again the next time.

        In a file of its own: one of other settings may have completed here, and stays.
        """
        self._write(job, FAILURE, {"failure": failure.reason})

    def _write(self, job: Job, name: str, content: dict[str, Any]) -> None:
        text = json.dumps({"job": describe(job), **content}, indent=2) + "\n"
        write_atomically(self.job_folder(job) / name, text)


def write_atomically(path: Path, text: str) -> None:
    """Write a file all or nothing, whoever else writes it at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{get_ident()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _of(job: Job, file: Path) -> dict[str, Any] | None:
    """Return what a file says of a run with just these settings; None if it says nothing."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["job"] == describe(job):
            return dict(content)
    return None


def _key(described: dict[str, Any]) -> str:
    return json.dumps(described, sort_keys=True)


def describe(job: Job) -> dict[str, Any]:
    """Return all settings that decide a run's result."""
    return {
        "settings": job.config.to_run_config(),
        "num-clients": job.num_clients,
        "baseline": job.baseline,
    }


def _history(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / HISTORY).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]

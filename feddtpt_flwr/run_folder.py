"""What a run leaves behind: configuration, history, the learned prompt, a plot."""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from logging import WARNING
from pathlib import Path
from typing import IO, Any

import tomli_w
from filelock import FileLock, Timeout
from flwr.common import log

from feddtpt_flwr.config import ConfigError
from feddtpt_flwr.private_files import write_through
from feddtpt_flwr.statistics import Proportion
from feddtpt_flwr.trackers import Tracker


@dataclass(frozen=True)
class CurvePoint:
    """Held-out accuracy of the global prompt after so many queries of all clients."""

    queries: int
    accuracy: Proportion


class RunFolder:
    """A folder of its own for one run.

    If the disk is full or fails while the run is at work, one warning says so and the run goes on:
    what it finds is still shown at the end.

    Parameters
    ----------
    parent : Path
        Where run folders are made.
    name : str
        Beginning of the folder's name; the time of day follows.

    Raises
    ------
    ConfigError
        If it cannot be made.
    """

    def __init__(self, parent: Path, name: str) -> None:
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        try:
            parent.mkdir(parents=True, exist_ok=True)
            # Not by tempfile, which lets nobody else read it, whatever the umask allows.
            path = parent / f"{name}-{stamp}-{secrets.token_hex(4)}"
            path.mkdir()
        except OSError as error:
            raise ConfigError(
                f"run-folder = {str(parent)!r}: no folder can be made there ({error})"
            ) from None
        self._use(path)

    @classmethod
    def existing(cls, path: Path) -> "RunFolder":
        """Return the folder of an earlier run."""
        folder = cls.__new__(cls)
        folder._use(path)
        return folder

    def _use(self, path: Path) -> None:
        self.path = path.resolve()
        self._warned = False
        self._trackers: Sequence[Tracker] = ()
        self._lock = FileLock(self.path / ".lock")

    def claim(self) -> None:
        """Keep other processes from writing here, as long as this one lives.

        Raises
        ------
        ConfigError
            If another one does already.
        """
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(
                f"resume = {str(self.path)!r}: that run is still at work; stop it first"
            ) from None
        except OSError as error:
            self._warn(error)

    def follow(self, trackers: Sequence[Tracker]) -> None:
        """Give these trackers, too, every later line of the history."""
        self._trackers = trackers

    def close(self) -> None:
        """Tell the trackers that the run is over."""
        for tracker in self._trackers:
            tracker.close()

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write ``config.toml``, the settings of the same run again for ``flwr run``."""
        self._replace("config.toml", tomli_w.dumps(dict(config)))

    def write_resume(self, config: Mapping[str, Any]) -> None:
        """Write ``resume.toml``, the settings with which ``flwr run`` goes on with this run."""
        self._replace("resume.toml", tomli_w.dumps({**config, "resume": str(self.path)}))

    def append(self, event: str, **values: Any) -> None:
        """Append one line to ``history.jsonl``."""
        line = {"event": event, "time": datetime.now(UTC).isoformat(), **values}
        text = json.dumps(line)

        def write() -> None:
            with self._history.open("a+b") as file:
                # A full disk, or a kill, may have left half a line.
                if file.tell() and not _ends_a_line(file):
                    file.write(b"\n")
                file.write(f"{text}\n".encode())

        self.attempt(write)
        for tracker in self._trackers:
            tracker.write(line)

    @property
    def num_events(self) -> int:
        """Lines of ``history.jsonl``."""
        return len(self._lines())

    def settled_after(self, num_events: int) -> int:
        """Return how many rounds were settled after the first lines of ``history.jsonl``."""
        settled = 0
        for line in self._lines()[num_events:]:
            with suppress(ValueError):  # half a line
                settled += json.loads(line)["event"] == "round"
        return settled

    def forget_after(self, num_events: int) -> int:
        """Keep the first lines of ``history.jsonl``; return how many were dropped."""
        lines = self._lines()
        self._replace("history.jsonl", "".join(lines[:num_events]))
        return max(0, len(lines) - num_events)

    def write_prompt(self, content: Mapping[str, Any]) -> None:
        """Write ``prompt.json``: the learned prompt with all that one needs to use it."""
        self.write_json("prompt.json", content)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file in place of the one before."""
        self._replace(name, json.dumps(content, indent=2) + "\n")

    def write_checkpoint(self, text: str) -> None:
        """Write what the run needs to go on from here."""
        self._replace("checkpoint.json", text)

    def plot(self, curve: Sequence[CurvePoint]) -> None:
        """Draw ``accuracy.png``: held-out accuracy against queries."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        queries = [point.queries for point in curve]
        accuracy = [point.accuracy.value for point in curve]
        low = [point.accuracy.low for point in curve]
        high = [point.accuracy.high for point in curve]
        axes.plot(queries, accuracy, marker="o")
        axes.fill_between(queries, low, high, alpha=0.2, label="95 % interval")
        axes.set_xlabel("LLM queries of all clients")
        axes.set_ylabel(f"accuracy on {curve[0].accuracy.total} held-out examples")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
        self.attempt(lambda: figure.savefig(self.path / "accuracy.png", dpi=120))

    @property
    def _history(self) -> Path:
        return self.path / "history.jsonl"

    def _lines(self) -> list[str]:
        if not self._history.exists():
            return []
        return self._history.read_text(encoding="utf-8").splitlines(keepends=True)

    def _replace(self, name: str, text: str) -> None:
        # All or nothing: a reader never sees half a file, and a crash keeps the one before.
        def write() -> None:
            temporary = self.path / f".{name}.tmp"
            write_through(temporary, text)
            temporary.replace(self.path / name)

        self.attempt(write)

    def write_folder(self, name: str, write: Callable[[Path], object]) -> None:
        """Let ``write`` fill a folder that then takes the place of the one before, all of it."""
        target, new, old = (self.path / part for part in (name, f".{name}.tmp", f".{name}.old"))

        def replace() -> None:
            if old.exists() and not target.exists():  # the last replacement was cut off
                old.rename(target)
            for left in (new, old):
                shutil.rmtree(left, ignore_errors=True)
            new.mkdir()
            write(new)
            if target.exists():
                target.rename(old)
            new.rename(target)
            shutil.rmtree(old, ignore_errors=True)

        self.attempt(replace)

    def attempt(self, write: Callable[[], None]) -> None:
        """Write something; if that cannot be, one warning says so and the run goes on."""
        try:
            write()
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            log(
                WARNING,
                "%s: not everything can be written; the run goes on: %s",
                self.path,
                error,
            )


def _ends_a_line(file: IO[bytes]) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"

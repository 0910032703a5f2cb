"""Runs the commands of a document as its reader would, each terminal a process."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_STARTS = re.compile(r"^(?=flower-)", re.MULTILINE)


def blocks(document: Path, heading: str) -> list[str]:
    """Return the blocks of commands below a heading of the second level, in order."""
    sections = document.read_text(encoding="utf-8").split("\n## ")
    (section,) = [text for text in sections if text.startswith(heading + "\n")]
    return re.findall(r"^```console\n(.*?)^```", section, re.DOTALL | re.MULTILINE)


def terminal(block: str) -> str:
    """Return the name of the terminal that a block is for; empty if it may be any."""
    first = block.splitlines()[0]
    return first.removeprefix("# terminal: ") if first.startswith("# terminal: ") else ""


@dataclass(frozen=True)
class Machine:
    """A home and a folder to work in, on loopback.

    Attributes
    ----------
    home : Path
        What ``~`` stands for.
    folder : Path
        Where commands begin.
    replaced : Mapping[str, str]
        What stands in the commands, and what is run in its place, such as ports that are free.
    variables : Mapping[str, str]
        Added to the environment.
    python : Path
        Its folder comes first in ``PATH``.
    """

    home: Path
    folder: Path
    replaced: Mapping[str, str]
    variables: Mapping[str, str]
    python: Path = Path(sys.executable)

    def run(self, block: str, timeout: float = 500, **variables: str) -> str:
        """Run a block to its end; return what it printed."""
        done = subprocess.run(
            self._command(block),
            cwd=self.folder,
            env={**self._environment(), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, block + done.stdout
        return done.stdout

    @contextmanager
    def start(self, block: str) -> Iterator["Terminal"]:
        """Run a block whose last command stays."""
        log = self.home / f"{terminal(block)}.log"
        # In place of the shell, so that it is the command that is ended.
        command = self._command(_STARTS.sub("exec ", block))
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self._environment(),
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            try:
                yield Terminal(process, log)
            finally:
                process.terminate()
                try:
                    process.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def _command(self, block: str) -> list[str]:
        for theirs, ours in self.replaced.items():
            block = block.replace(theirs, ours)
        return ["bash", "-euo", "pipefail", "-c", block]

    def _environment(self) -> dict[str, str]:
        removed = ("PYTHONPATH", "VIRTUAL_ENV", "FLWR_HOME")
        kept = {key: value for key, value in os.environ.items() if key not in removed}
        path = os.pathsep.join([str(self.python.parent), kept["PATH"]])
        own = {"HOME": str(self.home), "PATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        return {**kept, **own, "FLWR_TELEMETRY_ENABLED": "0", **self.variables}


@dataclass(frozen=True)
class Terminal:
    """A command that stays."""

    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def text(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(encoding="utf-8")

"""The app, or a baseline that is not the app, run once by a process of its own."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from simulations.processes import MARK
from simulations.suite import Value

APP = Path(__file__).parent.parent


@dataclass(frozen=True)
class Cores:
    """How a run divides its share of the machine.

    Attributes
    ----------
    clients : int
        Clients at work at the same time.
    threads : int
        Threads of each process that computes.
    """

    clients: int
    threads: int

    @classmethod
    def share(cls, num_clients: int, jobs: int) -> "Cores":
        """Return what one of ``jobs`` runs at a time gets, for so many clients in all."""
        cores = max(1, (os.cpu_count() or 1) // jobs)
        clients = min(num_clients, cores)
        return cls(clients, cores // clients)


def start_run(
    folder: Path,
    settings: Mapping[str, Value],
    num_clients: int,
    cores: Cores,
    baseline: str = "",
) -> "subprocess.Popen[bytes]":
    """Start the app, or ``baseline`` if one is named.

    In ``folder`` it leaves its run folder, ``settings.toml`` and ``run.log``; ``folder`` is also
    the mark of its processes (see `simulations.processes`). Whoever sends the process SIGTERM ends
    the run.
    """
    file = write_settings(folder, settings)
    if baseline:
        command = [sys.executable, "-m", "simulations.soft_prompts", baseline, str(file)]
    else:
        command = [sys.executable, "-m", "feddtpt_flwr.cli", "simulate", str(APP)]
        command += ["--run-config", str(file)]
        # Ray starts as many clients as fit into all cores of the machine.
        command += ["--cpus-per-client", str(max(1, (os.cpu_count() or 1) // cores.clients))]
    command += ["--num-clients", str(num_clients)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(cores.threads),
        "TOKENIZERS_PARALLELISM": "false",
        MARK: str(folder),
    }
    with (folder / "run.log").open("wb") as log:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the suite, which then ends its runs
        )


def write_settings(folder: Path, settings: Mapping[str, Value]) -> Path:
    """Write ``settings.toml`` for a run whose run folder will be in ``folder``; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "settings.toml"
    file.write_text(tomli_w.dumps({**settings, "run-folder": str(folder)}), encoding="utf-8")
    return file


def why_it_failed(log: str) -> str:
    """Return the line of a run's log that says best why it failed."""
    # Without the frame that typer draws around an error.
    lines = [line for raw in log.splitlines() if (line := raw.strip("\u2502 \t"))]
    lines = [line for line in lines if not line.startswith(("\u256d", "\u2570"))]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or ["it printed nothing"])[-1][:300]

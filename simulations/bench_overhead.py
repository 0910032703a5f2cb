"""What a simulated run spends on other things than the models.

python -m simulations bench overhead --json -
"""

import os
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simulations.app_run import Cores, start_run, why_it_failed
from simulations.processes import marked
from simulations.stamp import stamp
from simulations.suite import Value

POLL_SECONDS = 0.2

ROLES = {
    "clients (Ray workers)": r"ray::|default_worker",
    "Ray itself": r"raylet|gcs_server|/ray/",
    "SuperLink and its plugins": r"superlink|superexec|flower-super",
    "server and simulation engine": r"flwr-simulation|flwr-serverapp",
}
"""Processes by their command lines; the first that fits counts, and the rest are the command's."""

NOTHING: dict[str, Value] = {
    "queries-per-round": 4,  # fewer are refused
    "guard": False,
    "k-shot": 1,  # clients evaluate the global prompt on as many per class
    "public-per-class": 0,
    "test-size": 2,
}
"""Settings under which nobody asks the models anything to speak of."""


def run(clients: int, settings: Mapping[str, Value]) -> dict[str, Any]:
    """Run the app twice, with its queries and with next to none, and compare processor time.

    Parameters
    ----------
    clients : int
        Simulated clients.
    settings : Mapping[str, Value]
        What differs from the defaults.

    Returns
    -------
    dict[str, Any]
        ``full`` and ``empty``: seconds on the clock, and of processor time in all and for each
        role; ``overhead``: the empty run's share of the full one's processor time.
    """
    full = _measure(clients, settings)
    empty = _measure(clients, {**settings, **NOTHING})
    return {
        **stamp(),
        "clients": clients,
        "settings": dict(settings),
        "full": full,
        "empty": empty,
        "overhead": round(empty["processor_seconds"] / full["processor_seconds"], 3),
    }


def role(command: str) -> str:
    """Return the role of a process with this command line."""
    fitting = (name for name, pattern in ROLES.items() if re.search(pattern, command))
    return next(fitting, "the command")


def _measure(clients: int, settings: Mapping[str, Value]) -> dict[str, Any]:
    seen: dict[int, tuple[str, float]] = {}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = start_run(folder, settings, clients, Cores.share(clients, 1))
        try:
            while process.poll() is None:
                seen |= _processes(str(folder))
                time.sleep(POLL_SECONDS)
        finally:
            process.terminate()  # it ends its run, if this one is interrupted
            process.wait()
        if process.returncode:
            log = (folder / "run.log").read_text(encoding="utf-8")
            raise RuntimeError(f"the run failed: {why_it_failed(log)}")
    seconds = time.monotonic() - start
    by_role: dict[str, float] = defaultdict(float)
    for command, used in seen.values():
        by_role[role(command)] += used
    return {
        "seconds": round(seconds, 1),
        "processor_seconds": round(sum(by_role.values()), 1),
        "by_role": {name: round(used, 1) for name, used in by_role.items()},
    }


def _processes(mark: str) -> dict[int, tuple[str, float]]:
    """Return command line and processor seconds so far of each process with this mark."""
    found = {}
    for folder in marked(mark):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        found[int(folder.name)] = (command, sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK"))
    return found

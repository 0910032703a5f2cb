"""What a simulated run spends before and beside its questions to the models.

python -m simulations bench overhead --json -

Measured is the processor time of a run that asks next to nothing, less what its few questions
still compute, as a share of that of a run with all its questions. It holds what both have in
common: the starts of all processes, their imports, loading the models, Flower's messages and the
server's step. It does not hold what grows with the questions beside the models, such as the
search's own bookkeeping: that is part of the full run only, not told apart from the models there,
and counted by `bench profile`.

What the few questions compute is measured apart: the same clients and rounds in this process, on
one thread as in the run.
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
from simulations.bench_profile import processor_seconds_of_passes
from simulations.processes import marked
from simulations.stamp import as_text, stamp
from simulations.suite import Value

POLL_SECONDS = 0.2
"""What a process spends after the last look at it is missed, in both runs."""

WANTED_SHARE = 0.1
"""The empty run is to take less than this share of the full one's processor time."""

ROLES = {
    "clients (Ray workers)": r"ray::|default_worker",
    "Ray itself": r"raylet|gcs_server|/ray/",
    "SuperLink and its plugins": r"superlink|superexec|flower-super",
    "server and simulation engine": r"flwr-simulation|flwr-serverapp",
}
"""Processes by their command lines; the first that fits counts, and the rest are the command's."""

NOTHING: dict[str, Value] = {
    "queries-per-round": 4,  # fewer are refused
    "proposer": "random",  # the masked language model is not asked what fits
    "feedback": False,
    "max-fluency-loss": 100.0,  # nor how it reads
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
        role; ``empty_passes``: the empty run's processor seconds in passes through the models;
        ``empty_share``: the rest of the empty run as a share of the full one's processor time.
    """
    nothing = {**settings, **NOTHING}
    _measure(clients, nothing)  # a first start reads more from the disk
    empty = _measure(clients, nothing)
    full = _measure(clients, settings)
    passes = processor_seconds_of_passes(clients, nothing)
    beside = empty["processor_seconds"] - passes
    return {
        **stamp(),
        "clients": clients,
        "settings": dict(settings),
        "full": full,
        "empty": empty,
        "empty_passes": round(passes, 1),
        "empty_share": round(beside / full["processor_seconds"], 3),
    }


def markdown(result: dict[str, Any]) -> str:
    """Return the figures as a table, and whether the wanted share is reached."""
    full, empty = result["full"], result["empty"]
    share, wanted = result["empty_share"], WANTED_SHARE
    reached = "reached" if share < wanted else "not reached"
    lines = [
        "# What a run spends before and beside its questions",
        "",
        f"`python -m simulations bench overhead`, {as_text(result)}; {result['clients']} simulated "
        "clients. The empty run asks the models next to nothing. It still starts all processes, "
        "loads the models, exchanges the messages and does the server's steps; what the full run's "
        "search and proposals spend beside the models is not in it.",
        "",
        "| processor seconds | full run | empty run |",
        "|---|---|---|",
    ]
    roles = dict.fromkeys([*full["by_role"], *empty["by_role"]])
    for name in roles:
        spent = (run["by_role"].get(name, 0.0) for run in (full, empty))
        lines.append(f"| {name} | {' | '.join(f'{seconds:.1f}' for seconds in spent)} |")
    lines += [
        f"| all | {full['processor_seconds']:.1f} | {empty['processor_seconds']:.1f} |",
        f"| seconds on the clock | {full['seconds']:.1f} | {empty['seconds']:.1f} |",
        "",
        f"Of the empty run, {result['empty_passes']:.1f} processor seconds are passes through the "
        "models (the same clients and rounds in one process, on one thread). The rest is "
        f"{share:.1%} of the full run's processor time. Wanted was less than {wanted:.0%}, which "
        f"is {reached}.",
    ]
    return "\n".join(lines) + "\n"


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

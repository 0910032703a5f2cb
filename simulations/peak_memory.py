"""How much memory a run takes, all of its processes together."""

import subprocess
import time
from contextlib import suppress
from typing import Any

from simulations.processes import marked, proportional_kib

PAUSE_SECONDS = 0.5
"""From one look to the next, at least."""

MOST_SPENT = 0.02
"""Share of a core that looking may take: the kernel walks every page, and the run is timed."""


def wait_and_watch(
    process: "subprocess.Popen[Any]", mark: str, pause: float = PAUSE_SECONDS
) -> int | None:
    """Wait until a process ends, looking again and again at the memory of all with a mark.

    Parameters
    ----------
    process : subprocess.Popen
        What to wait for.
    mark : str
        The mark of the processes to look at (see `simulations.processes`).
    pause : float
        Seconds from one look to the next, at least.

    Returns
    -------
    int | None
        The most that they had together in one look, in MiB. What came and went between two looks
        is not in it, and what they share with other processes only in part. None if the system
        does not tell.
    """
    peak = 0
    while True:
        start = time.thread_time()
        peak = max(peak, _together_kib(mark))
        spent = time.thread_time() - start
        try:
            process.wait(max(pause, spent / MOST_SPENT))
        except subprocess.TimeoutExpired:
            continue
        return round(peak / 1024) if peak else None


def _together_kib(mark: str) -> int:
    total = 0
    for folder in marked(mark):
        with suppress(OSError):
            total += proportional_kib(folder)
    return total

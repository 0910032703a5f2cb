"""The processes of a run, and what memory they take (Linux)."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MARK = "FEDDTPT_RUN_MARK"
"""The variable by which the processes of a run are told from others.

They need not be descendants of the one that was started: Ray's daemons are not.
"""


def marked(mark: str) -> Iterator[Path]:
    """Yield the folder below ``/proc`` of each process whose `MARK` is this; none without Linux."""
    wanted = os.fsencode(f"{MARK}={mark}")
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # Compared as a whole: one run's mark may begin as another's.
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                yield folder
        except OSError:  # it has ended meanwhile, or is somebody else's
            continue


def end_orphans(mark: str) -> None:
    """Kill what is left of a run whose command was itself killed, and could not end it."""
    for folder in marked(mark):
        with suppress(ProcessLookupError):
            os.kill(int(folder.name), signal.SIGKILL)


def proportional_kib(folder: Path) -> int:
    """Return a process's memory, a page that n processes share counted as one n-th.

    Parameters
    ----------
    folder : Path
        The process's, below ``/proc``.

    Raises
    ------
    OSError
        If it has ended meanwhile, or is somebody else's.
    """
    lines = (folder / "smaps_rollup").read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)

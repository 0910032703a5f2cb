import os
import subprocess
import sys
from pathlib import Path

from simulations.peak_memory import wait_and_watch
from simulations.processes import MARK

MIB = 1024 * 1024

HOLD = f"import time; held = bytearray(b'x') * (100 * {MIB}); time.sleep(1)"

# The process in the middle ends at once, so that the one that holds memory is nobody's child.
ORPHAN = f"""
import os, subprocess, sys
read, write = os.pipe()
start = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]], "
middle = start + f"pass_fds=[{{write}}])"
subprocess.run([sys.executable, "-c", middle, {HOLD!r}], pass_fds=[write])
os.close(write)
os.read(read, 1)  # until it has ended
"""


def start(program: str, mark: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", program], env={**os.environ, MARK: mark})


def test_memory_of_a_process_that_is_nobodys_child_counts(tmp_path: Path) -> None:
    with start(ORPHAN, str(tmp_path)) as process:
        peak = wait_and_watch(process, str(tmp_path), pause=0.05)
    assert process.returncode == 0
    assert peak is not None
    assert 100 < peak < 200


def test_memory_of_other_runs_does_not_count(tmp_path: Path) -> None:
    mark = str(tmp_path / "try-1")
    with start(HOLD, f"{mark}2") as other:
        assert wait_and_watch(other, mark, pause=0.05) is None
    assert other.returncode == 0


def test_pages_that_processes_share_count_once(tmp_path: Path) -> None:
    forks = (
        f"import os, time; held = bytearray(b'x') * (100 * {MIB}); child = os.fork(); "
        "time.sleep(1); child and os.waitpid(child, 0)"
    )
    with start(forks, str(tmp_path)) as process:
        peak = wait_and_watch(process, str(tmp_path), pause=0.05)
    assert peak is not None
    assert 100 < peak < 150

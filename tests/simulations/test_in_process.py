import subprocess
import sys
from pathlib import Path

from simulations.in_process import Worker


def test_a_process_that_has_died_is_a_failed_run(tmp_path: Path) -> None:
    worker = Worker(1)
    worker.process.kill()
    worker.process.wait()
    assert worker.run(tmp_path, 2) == -1
    assert not (tmp_path / "run.log").read_bytes()


def test_an_order_that_cannot_be_carried_out_leaves_its_reason(tmp_path: Path) -> None:
    worker = Worker(1)
    (tmp_path / "settings.toml").write_text("k-shot = 0\n", encoding="utf-8")
    assert worker.run(tmp_path, 2) == 1
    assert "k-shot = 0" in (tmp_path / "run.log").read_text(encoding="utf-8")
    worker.process.terminate()
    worker.process.wait()


def test_a_process_ends_with_the_one_that_gives_it_orders() -> None:
    """In the middle of a run it does not see that nobody gives orders any more."""
    at_work = (
        "import os; from simulations.in_process import _end_with; parent = os.getppid()\n"
        "print('ready', flush=True); _end_with(parent)"
    )
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys, time\n"
            f"subprocess.Popen([sys.executable, '-c', {at_work!r}])\n"
            "time.sleep(600)",
        ],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert parent.stdout
    assert parent.stdout.readline() == b"ready\n"
    parent.kill()
    assert parent.communicate(timeout=30)[0] == b"", "both have closed their output"

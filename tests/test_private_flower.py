import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from feddtpt_flwr import private_flower
from feddtpt_flwr.private_flower import PrivateFlower


def test_a_log_that_ends_early_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """With doubles of Flower's commands: the one that shows the log breaks off twice."""
    shown: list[object] = []
    states = ["running", "running", "finished:completed"]
    monkeypatch.setattr(subprocess, "run", lambda *a, **_: shown.append(a))
    monkeypatch.setattr(private_flower, "_PAUSE", 0.0)
    monkeypatch.setattr(PrivateFlower, "status", lambda *_: states.pop(0))
    assert PrivateFlower({}).stream("7") == "finished:completed"
    assert len(shown) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="others have no such signal")
def test_a_superlink_ends_with_a_command_that_is_killed(tmp_path: Path) -> None:
    """With another long-lived process in its place."""
    parent = """
import subprocess, sys, time
from feddtpt_flwr.private_flower import _end_with_parent
child = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
subprocess.Popen(child, preexec_fn=_end_with_parent)
time.sleep(60)
"""
    command = [sys.executable, "-c", parent]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.kill()
        # The child has the same output, which ends when nobody is left to write.
        output, _ = process.communicate(timeout=20)
        assert output == b""


def test_programs_are_found_where_pip_puts_them_and_named_where_they_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As of `pip install --target`: the programs are not beside Python.
    elsewhere = tmp_path / "elsewhere" / "bin"
    elsewhere.mkdir(parents=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python" / "bin" / "python3"))
    monkeypatch.setenv("PATH", str(elsewhere))
    # Of `pip install --user`; Python looks at its environment once only.
    of_user = tmp_path / "user" / "bin"
    monkeypatch.setattr(sysconfig, "get_path", lambda *_: str(of_user))
    with (
        pytest.raises(private_flower.FlowerError, match="flower-superlink, a program of flwr"),
        private_flower.private_flower(),
    ):
        pass
    program = elsewhere / "flwr"
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    assert private_flower._flwr("list") == [str(program), "list"]
    of_user.mkdir(parents=True)
    shutil.copy(program, of_user)
    assert private_flower._flwr("list") == [str(of_user / "flwr"), "list"]

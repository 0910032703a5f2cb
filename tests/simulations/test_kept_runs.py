"""Kept runs that several commands add to."""

import json
from pathlib import Path
from threading import Thread

from filelock import FileLock

from simulations import kept_runs
from tests.simulations.written_runs import MADE


def test_a_run_is_added_when_no_other_command_writes(tmp_path: Path) -> None:
    """The other reads the file, adds a run and writes it, and loses nothing meanwhile."""
    file, settings = tmp_path / "kept.json", {"a": {"k": 1}, "b": {"k": 2}}
    adds = Thread(
        target=kept_runs.complete,
        args=(file, settings, ["a"], [0], lambda *_: {"n": 1}, lambda runs: str(sorted(runs))),
    )
    with FileLock(file.with_suffix(".lock")):
        adds.start()
        adds.join(1.0)
        assert adds.is_alive(), "it waits"
        assert not file.exists()
        kept_runs.write(file, settings, {"b": {0: {"n": 2, **MADE}}})
    adds.join(30.0)
    runs = json.loads(file.read_text(encoding="utf-8"))["runs"]
    assert {name: of["0"]["n"] for name, of in runs.items()} == {"a": 1, "b": 2}
    assert file.with_suffix(".md").read_text(encoding="utf-8") == "['a', 'b']"

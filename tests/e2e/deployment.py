"""Flower as it is deployed, on loopback: a SuperLink, SuperNodes and a run, each a process."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feddtpt_flwr.private_flower import _free_port, _wait_until_up

CONNECTION = "loopback"


def environment(python: Path, home: Path, **variables: str) -> dict[str, str]:
    """Return the variables for Flower's commands beside ``python``."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    path = os.pathsep.join([str(python.parent), kept["PATH"]])
    own = {"PATH": path, "FLWR_HOME": str(home), "FLWR_DISABLE_UPDATE_CHECK": "1"}
    return {**kept, **own, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **variables}


@contextmanager
def _process(command: list[str], variables: Mapping[str, str], log: Path) -> Iterator[Any]:
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, env=variables, stdout=file, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@dataclass(frozen=True)
class Superlink:
    """A running SuperLink, for `flwr` and for SuperNodes."""

    port: int
    variables: Mapping[str, str]
    log: Path

    def run(self, app: Path, *overrides: str, timeout: float = 400) -> tuple[str, str]:
        """Run the app; return the status at the end and the server's log."""
        command = ["run", str(app), CONNECTION, "--format", "json"]
        for override in overrides:
            command += ["--run-config", override]
        run_id = str(self._json(command)["run-id"])
        deadline = time.monotonic() + timeout
        status = ""
        while time.monotonic() < deadline and not status.startswith("finished"):
            time.sleep(2)
            listed = self._json(["list", CONNECTION, "--run-id", run_id, "--format", "json"])
            status = str(listed["runs"][0]["status"])
        shown = self._flwr(["log", run_id, CONNECTION, "--show"])
        return status, shown.stdout + shown.stderr + self.log.read_text(encoding="utf-8")

    def _flwr(self, arguments: list[str]) -> "subprocess.CompletedProcess[str]":
        command = [str(Path(sys.executable).parent / "flwr"), *arguments]
        return subprocess.run(
            command, env=self.variables, capture_output=True, text=True, timeout=120
        )

    def _json(self, arguments: list[str]) -> dict[str, Any]:
        done = self._flwr(arguments)
        start = done.stdout.find("{")
        assert start >= 0, done.stdout + done.stderr
        answer: dict[str, Any] = json.loads(done.stdout[start:])
        assert answer.get("success"), done.stdout + done.stderr
        return answer


@contextmanager
def superlink(folder: Path, **variables: str) -> Iterator[Superlink]:
    """Start a SuperLink in this environment, with its own ``FLWR_HOME`` in ``folder``."""
    home, port = folder / "superlink", _free_port()
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
        f'address = "127.0.0.1:{port}"\ninsecure = true\n',
        encoding="utf-8",
    )
    python = Path(sys.executable)
    settings = environment(python, home, **variables)
    command = [str(python.parent / "flower-superlink"), "--insecure"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--disable-runtime-dependency-installation"]
    log = home / "log"
    with _process(command, settings, log) as process:
        _wait_until_up(process, port, log)
        yield Superlink(port, settings, log)


@contextmanager
def supernode(
    link: Superlink, python: Path, folder: Path, node_config: Mapping[str, Any], **variables: str
) -> Iterator[Path]:
    """Start a SuperNode in the environment of ``python``; yield its log."""
    folder.mkdir()
    config = " ".join(
        f"{key}='{value}'" if isinstance(value, str) else f"{key}={value}"
        for key, value in node_config.items()
    )
    command = [str(python.parent / "flower-supernode"), "--insecure"]
    command += ["--superlink", f"127.0.0.1:{link.port}"]
    command += ["--host", "127.0.0.1", "--port", str(_free_port()), "--node-config", config]
    log = folder / "log"
    with _process(command, environment(python, folder, **variables), log):
        yield log

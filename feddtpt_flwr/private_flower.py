"""A Flower SuperLink of one's own for one simulation, in the current environment.

``flwr run`` talks to a local SuperLink that outlives the run and keeps the environment it was
first started with, and it installs the app's dependencies anew for every run. Both are right for a
shared installation, and wrong for a run that has to work the same on every machine. Here a
SuperLink is started for the run on a free port, with the dependencies that are already there, and
stopped afterwards; one that somebody else started is neither used nor disturbed.
"""

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feddtpt_flwr.loopback import spare

_START_TIMEOUT = 60.0  # seconds; importing Flower alone takes several on a slow machine
_CONNECTION = "private"
_PAUSE = 2.0  # seconds between two looks at a run whose log ended before it
_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


class FlowerError(RuntimeError):
    """A Flower command failed; the message is what it printed."""


@dataclass(frozen=True)
class PrivateFlower:
    """A running private SuperLink.

    Parameters
    ----------
    environment : Mapping[str, str]
        Environment under which Flower's commands reach it.
    """

    environment: Mapping[str, str]

    def start_run(
        self,
        app: Path,
        overrides: Sequence[str],
        *,
        num_clients: int,
        cpus_per_client: int,
        gpus_per_client: float = 0.0,
    ) -> str:
        """Submit the app; return the run's id.

        Parameters
        ----------
        app : Path
            Folder with the app's ``pyproject.toml``.
        overrides : Sequence[str]
            Settings for ``--run-config``, such as ``"seed=1"``.
        num_clients : int
            Simulated clients.
        cpus_per_client : int
            Processor cores reserved for each client at work.
        gpus_per_client : float
            GPUs, or a share of one, that each client at work is given; without, it sees none.

        Raises
        ------
        FlowerError
            If Flower refuses the app or a setting.
        """
        federation = f"num-supernodes={num_clients} client-resources-num-cpus={cpus_per_client}"
        federation += f" client-resources-num-gpus={float(gpus_per_client)}"
        command = ["run", str(app), _CONNECTION, "--format", "json"]
        command += ["--federation-config", federation]
        for override in overrides:
            command += ["--run-config", override]
        answer = self._json(command)
        return str(answer["run-id"])

    def stream(self, run_id: str) -> str:
        """Print the run's log until the run ends; return its status then."""
        while True:
            subprocess.run(_flwr("log", run_id, _CONNECTION, "--stream"), env=self.environment)
            # What shows the log may end by itself: a character that a terminal does not know.
            if (status := self.status(run_id)).startswith("finished"):
                return status
            time.sleep(_PAUSE)

    def status(self, run_id: str) -> str:
        """Return the run's status, ``"finished:completed"`` if all went well."""
        answer = self._json(["list", _CONNECTION, "--run-id", run_id, "--format", "json"])
        return str(answer["runs"][0]["status"])

    def stop(self, run_id: str) -> None:
        """End the run."""
        subprocess.run(
            _flwr("stop", run_id, _CONNECTION), env=self.environment, capture_output=True
        )

    def _json(self, arguments: Sequence[str]) -> dict[str, Any]:
        done = subprocess.run(
            _flwr(*arguments), env=self.environment, capture_output=True, text=True
        )
        # Warnings and notes stand before the JSON document.
        start = done.stdout.find("{")
        answer = json.loads(done.stdout[start:]) if start >= 0 else {}
        if done.returncode or not answer.get("success"):
            message = answer.get("error-message") or (done.stdout + done.stderr).strip()
            raise FlowerError(str(message))
        return dict(answer)


@contextmanager
def private_flower() -> Iterator[PrivateFlower]:
    """Start a SuperLink for simulations, and stop it at the end.

    Raises
    ------
    FlowerError
        If it is not there, or does not come up.
    """
    with tempfile.TemporaryDirectory(prefix="feddtpt-flower-") as home:
        port = _free_port()
        (Path(home) / "config.toml").write_text(
            f'[superlink]\ndefault = "{_CONNECTION}"\n\n[superlink.{_CONNECTION}]\n'
            f'address = "127.0.0.1:{port}"\ninsecure = true\n',
            encoding="utf-8",
        )
        environment = {
            **os.environ,
            "FLWR_HOME": home,
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "PATH": _search_path(),
            "RAY_DEDUP_LOGS": "0",  # progress lines look alike
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's future default; quiets a warning
            # Flower gives its actors an environment: no process without one would do for them.
            "RAY_prestart_worker_first_driver": "0",
        }
        spare(environment)
        command = [_program("flower-superlink"), "--insecure"]
        command += ["--simulation", "--isolation", "subprocess"]
        command += ["--disable-runtime-dependency-installation"]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        log = Path(home) / "superlink.log"
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                command,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )
            try:
                _wait_until_up(process, port, log)
                yield PrivateFlower(environment)
            finally:
                process.terminate()
                try:
                    process.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _end_with_parent() -> None:
    """Have Linux end this process when its parent does, even if that is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _flwr(*arguments: str) -> list[str]:
    return [_program("flwr"), *arguments]


def _search_path() -> str:
    """Return ``PATH``, after the folders where pip puts the programs of this Python's packages."""
    own = Path(sys.executable).parent
    of_user = sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user"))
    return os.pathsep.join([str(own), of_user, os.environ.get("PATH", os.defpath)])


def _program(name: str) -> str:
    """Return where one of Flower's programs is."""
    if found := shutil.which(name, path=_search_path()):
        return found
    own = Path(sys.executable).parent
    raise FlowerError(
        f"{name}, a program of flwr, is neither in {own} nor on PATH; pip puts it beside the "
        "Python that it installs for, or says where: add that folder to PATH"
    )


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _wait_until_up(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as sock:
            sock.settimeout(0.5)
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise FlowerError(f"the private SuperLink did not start:\n{log.read_text(encoding='utf-8')}")

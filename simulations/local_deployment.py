"""A Flower deployment on loopback whose processes can be killed, stopped and started again."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from feddtpt_flwr.private_flower import _free_port, _program, _search_path, _wait_until_up

CONNECTION = "loopback"


class Deployment:
    """A SuperLink with a database, and SuperNodes.

    Parameters
    ----------
    folder : Path
        For logs, Flower's own files and the nodes' caches.
    variables : Mapping[str, str]
        Environment variables for all processes, keys among them.
    """

    def __init__(self, folder: Path, variables: Mapping[str, str]) -> None:
        self._folder = folder
        self._variables = variables
        self._port = _free_port()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._node_ports: dict[str, int] = {}
        home = folder / "superlink"
        home.mkdir(parents=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
            f'address = "127.0.0.1:{self._port}"\ninsecure = true\n',
            encoding="utf-8",
        )

    def start_superlink(self, *wrapper: str) -> None:
        """Start the SuperLink, or start it again with the database it had.

        Parameters
        ----------
        *wrapper
            A command that starts the one after it, such as ``env NAME=value``; by default none.
        """
        command = [*wrapper, _program("flower-superlink"), "--insecure", "--host", "127.0.0.1"]
        command += ["--port", str(self._port), "--disable-runtime-dependency-installation"]
        command += ["--database", str(self._folder / "superlink" / "state.db")]
        process = self._start("superlink", command)
        _wait_until_up(process, self._port, self.log_file("superlink"))

    def start_node(self, name: str, *wrapper: str, **node_config: Any) -> None:
        """Start a SuperNode, or start it again; its node config's ``node-name`` is ``name``.

        ``wrapper`` is as in `start_superlink`.
        """
        config = {"node-name": name, **node_config}
        port = self._node_ports.setdefault(name, _free_port())
        command = [*wrapper, _program("flower-supernode"), "--insecure"]
        command += ["--superlink", f"127.0.0.1:{self._port}", "--host", "127.0.0.1"]
        command += ["--port", str(port), "--node-config", _settings(config)]
        self._start(name, command)

    def kill(self, name: str) -> None:
        """End a SuperLink or SuperNode and all it started at once, as a machine that fails does."""
        for process in descendants(self._processes[name].pid):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._processes.pop(name).wait()

    def end(self, name: str) -> None:
        """End a SuperNode as its operator does: it takes leave of the SuperLink."""
        process = self._processes.pop(name)
        process.terminate()
        process.wait(timeout=60)

    def kill_program(self, name: str, program: str) -> int:
        """Kill what a SuperLink or SuperNode has started: ``flwr-serverapp``, ``flwr-clientapp``.

        Returns
        -------
        int
            Number of processes killed.
        """
        killed = 0
        for process in descendants(self._processes[name].pid)[1:]:
            with suppress(OSError):
                if program in Path(f"/proc/{process}/cmdline").read_text():
                    os.kill(process, signal.SIGKILL)
                    killed += 1
        return killed

    def stop(self, name: str) -> None:
        """Let a SuperNode and all it started fall silent, without ending."""
        for process in descendants(self._processes[name].pid):
            os.kill(process, signal.SIGSTOP)

    def run(self, app: Path, config: Mapping[str, Any] | Path) -> str:
        """Submit a run with settings, or with a file of them; return its id."""
        text = str(config) if isinstance(config, Path) else _settings(config)
        command = ["run", str(app), CONNECTION, "--format", "json", "--run-config", text]
        return str(self._flwr(command)["run-id"])

    def status(self, run_id: str) -> str:
        """Return a run's status, ``"finished:completed"`` if all went well."""
        command = ["list", CONNECTION, "--run-id", run_id, "--format", "json"]
        return str(self._flwr(command)["runs"][0]["status"])

    def ended(self, run_id: str) -> bool:
        """Return whether a run is over, however it went."""
        return self.status(run_id).startswith("finished")

    def wait(self, run_id: str, timeout: float = 600) -> str:
        """Return a run's status at its end, or what it is when the time is over."""
        deadline = time.monotonic() + timeout
        while not (status := self.status(run_id)).startswith("finished"):
            if (left := deadline - time.monotonic()) <= 0:
                return status
            # The log ends with the run. To ask for its status means to load all of Flower.
            with suppress(subprocess.TimeoutExpired):
                self._call(["log", run_id, CONNECTION, "--stream"], left)
        return status

    def run_log(self, run_id: str) -> str:
        """Return what a run's ServerApp has logged."""
        done = self._call(["log", run_id, CONNECTION, "--show"])
        return done.stdout + done.stderr

    def logs(self, run_id: str) -> str:
        """Return what a run's ServerApp and the SuperLink have logged, to see why it failed."""
        superlink = self.log_file("superlink").read_text(encoding="utf-8", errors="replace")
        return f"{self.run_log(run_id)}\nSuperLink:\n{superlink}"

    def log_file(self, name: str) -> Path:
        """Return the log of the SuperLink (``"superlink"``) or of a node."""
        return self.folder(name) / "log"

    def seen_by(self, name: str, path: Path) -> Path:
        """Return a path as the SuperLink or a node sees it, with what is mounted for it alone."""
        return Path(f"/proc/{self._processes[name].pid}/root{path}")

    def folder(self, name: str) -> Path:
        """Return the home of the SuperLink or a node: Flower's files, log and ``cache``."""
        return self._folder / name

    def close(self) -> None:
        """Kill all that runs."""
        for name in list(self._processes):
            self.kill(name)

    def _start(self, name: str, command: list[str]) -> "subprocess.Popen[bytes]":
        home = self._folder / name
        home.mkdir(exist_ok=True)
        with self.log_file(name).open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                command, env=self._environment(name), stdout=log, stderr=subprocess.STDOUT
            )
        self._processes[name] = process
        return process

    def _environment(self, name: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        home = self._folder / name
        own = {
            "PATH": _search_path(),
            "FLWR_HOME": str(home),
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FEDDTPT_CACHE": str(home / "cache"),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }
        return {**kept, **own, **self._variables}

    def _flwr(self, arguments: list[str]) -> dict[str, Any]:
        done = self._call(arguments)
        start = done.stdout.find("{")
        answer: dict[str, Any] = json.loads(done.stdout[start:]) if start >= 0 else {}
        if not answer.get("success"):
            raise RuntimeError(f"flwr {arguments[0]} failed: {done.stdout}{done.stderr}")
        return answer

    def _call(
        self, arguments: list[str], timeout: float = 120
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [_program("flwr"), *arguments],
            env=self._environment("superlink"),
            capture_output=True,
            text=True,
            timeout=timeout,
        )


@contextmanager
def deployment(folder: Path, variables: Mapping[str, str], *wrapper: str) -> Iterator[Deployment]:
    """Start a SuperLink, with ``wrapper`` before it; kill it and all nodes at the end."""
    running = Deployment(folder, variables)
    try:
        running.start_superlink(*wrapper)
        yield running
    finally:
        running.close()


def descendants(process: int) -> list[int]:
    """Return a process and all that it started, directly or not."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            number, _, rest = stat.read_text().partition(" ")
            parents[int(number)] = int(rest.rpartition(")")[2].split()[1])
    found = [process]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found


def wait_until(condition: Callable[[], object], what: str, timeout: float = 120) -> None:
    """Wait for something to become true.

    Raises
    ------
    TimeoutError
        If it does not in time.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout:.0f} s for {what}")
        time.sleep(0.2)


def _settings(config: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())

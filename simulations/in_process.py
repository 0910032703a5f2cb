"""Runs of the app without SuperLink and Ray, one after the other in one process.

The same server, strategy, clients and run folders as in a simulation; only messages are not packed
for a network. What one run has computed, such as the seed prompt's answers, the next need not.

python -m simulations.in_process reads orders from `Worker.run`.
"""

import json
import os
import subprocess
import sys
import threading
import time
import tomllib
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from flwr.client import Client
from flwr.common import Context, EvaluateIns, EvaluateRes, FitIns, FitRes, RecordDict
from flwr.server.client_proxy import ClientProxy

from simulations.suite import Value


class InProcessClient(ClientProxy):
    """A simulated client that is called instead of being sent messages.

    Parameters
    ----------
    number, num_clients : int
        Which of the clients it is.
    settings : Mapping[str, Value]
        The run's.
    """

    def __init__(self, number: int, num_clients: int, settings: Mapping[str, Value]) -> None:
        super().__init__(str(number))
        self._context = Context(
            run_id=0,
            node_id=number,
            node_config={"partition-id": number, "num-partitions": num_clients},
            state=RecordDict(),
            run_config=dict(settings),
        )

    def fit(self, ins: FitIns, timeout: float | None, group_id: int | None) -> FitRes:
        """Search from the global prompt."""
        return self._client().fit(ins)

    def evaluate(
        self, ins: EvaluateIns, timeout: float | None, group_id: int | None
    ) -> EvaluateRes:
        """Score the candidates."""
        return self._client().evaluate(ins)

    def get_properties(self, *_: Any) -> NoReturn:
        """Refuse: the app does not ask."""
        raise NotImplementedError

    def get_parameters(self, *_: Any) -> NoReturn:
        """Refuse: the app does not ask."""
        raise NotImplementedError

    def reconnect(self, *_: Any) -> NoReturn:
        """Refuse: there is no connection."""
        raise NotImplementedError

    def _client(self) -> Client:
        from feddtpt_flwr.client_app import client_fn

        return client_fn(self._context)


def run(settings: Mapping[str, Value], num_clients: int) -> None:
    """Run the app once; its run folder is where ``settings`` say.

    Raises
    ------
    ConfigError, DataError, AssetError, ModelError
        As `feddtpt_flwr.server_app.build`.
    """
    from feddtpt_flwr.config import RunConfig
    from feddtpt_flwr.round_server import RoundServer
    from feddtpt_flwr.server_app import build, conduct

    def drive(server: RoundServer, num_rounds: int) -> None:
        server.set_max_workers(1)
        for number in range(num_clients):
            server.client_manager().register(InProcessClient(number, num_clients, settings))
        server.fit(num_rounds, None)

    conduct(build(RunConfig.from_run_config(settings), num_clients), drive)


class Worker:
    """A process that runs the app as often as it is told to.

    Parameters
    ----------
    threads : int
        Threads that it computes with.
    """

    def __init__(self, threads: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "simulations.in_process"],
            env={
                **os.environ,
                "OMP_NUM_THREADS": str(threads),
                "TOKENIZERS_PARALLELISM": "false",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C is for the suite, which then ends its runs
        )
        self._orders = cast(IO[str], self.process.stdin)
        self._answers = cast(IO[str], self.process.stdout)

    def run(self, folder: Path, num_clients: int) -> int:
        """Run what ``settings.toml`` in a folder says, logging to ``run.log`` there.

        Returns
        -------
        int
            0 if all went well.
        """
        (folder / "run.log").touch()  # also if the process has died
        order = {"folder": str(folder), "num-clients": num_clients}
        try:
            self._orders.write(json.dumps(order) + "\n")
            self._orders.flush()
        except BrokenPipeError:
            return -1
        return int(self._answers.readline() or -1)


def _end_with(parent: int) -> None:
    """End this process when the one that gives it orders does, in whatever way."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)  # in the middle of a run, whose result nobody waits for


def main() -> None:
    """Carry out orders, a line each."""
    threading.Thread(target=_end_with, args=[os.getppid()], daemon=True).start()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    for line in sys.stdin:
        order = json.loads(line)
        folder = Path(order["folder"])
        with (folder / "run.log").open("ab") as log:
            for stream in (sys.stdout, sys.stderr):
                os.dup2(log.fileno(), stream.fileno())
        status = 0
        try:
            settings = tomllib.loads((folder / "settings.toml").read_text(encoding="utf-8"))
            run(settings, order["num-clients"])
        except Exception:
            traceback.print_exc()
            status = 1
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        print(status, file=answers, flush=True)


if __name__ == "__main__":
    main()

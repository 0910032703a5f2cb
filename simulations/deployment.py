"""Whether a deployment learns as much when its processes are killed again and again.

python -m simulations deployment
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from simulations.llama_server import llama_server
from simulations.local_deployment import Deployment, deployment

APP = Path(__file__).parent.parent
NODES = ("north", "east", "south", "west")
_PATIENCE = 3600.0


@dataclass(frozen=True)
class Outcome:
    """How a run of five rounds ended.

    Attributes
    ----------
    accuracy, seed_accuracy : float or None
        On held-out examples, of the learned prompt and of the first one, in [0, 1].
    prompt : str
        What was learned.
    rounds : int
        Rounds completed.
    queries, from_archive : int
        The clients' questions, and how many of them had been answered before.
    failures : int
        Answers of nodes that were missing.
    faults : tuple[str, ...]
        What was done to it, in order.
    seconds : float
        From submission to end.
    """

    accuracy: float | None
    seed_accuracy: float | None
    prompt: str
    rounds: int
    queries: int
    from_archive: int
    failures: int
    faults: tuple[str, ...]
    seconds: float


def run(settings: Mapping[str, Any], folder: Path) -> str:
    """Run a federation undisturbed and disturbed; write ``deployment.json`` and ``.md``.

    One SuperLink, four SuperNodes, and one llama.cpp server that all share. In the disturbed run a
    client is killed in round 1, a SuperNode in round 2, the SuperLink in round 3, a ServerApp in
    round 4 and another SuperNode in round 5; SuperNodes and SuperLink are started again, and runs
    whose ServerApp is gone are resumed.

    Parameters
    ----------
    settings
        Of both runs, beside those that name the nodes' models and data.
    folder
        For the results.

    Returns
    -------
    str
        The table.
    """
    with llama_server(parallel=len(NODES)) as endpoint:
        config = {
            **settings,
            "endpoint": endpoint,
            "language-model": "smollm2",
            "api-key-env": "NO_KEY",
            "constrain": "grammar",
            "min-available-clients": len(NODES),
        }
        outcomes = {
            name: _run(config, disturbed=disturbed)
            for name, disturbed in (("undisturbed", False), ("disturbed", True))
        }
    content = {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "settings": dict(settings),
        **{name: asdict(outcome) for name, outcome in outcomes.items()},
    }
    table = _table(content, outcomes)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "deployment.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "deployment.md").write_text(table, encoding="utf-8")
    return table


def _run(config: Mapping[str, Any], *, disturbed: bool) -> Outcome:
    # Both begin with empty caches: the second would be spared its questions by the first's.
    with tempfile.TemporaryDirectory(prefix="deployment-") as name:
        parent = Path(name) / "runs"
        with deployment(Path(name) / "flower", {}) as running:
            for node in NODES:
                _start(running, node)
            faults = _Faults(running, parent) if disturbed else None
            start = time.monotonic()
            run_id = running.run(APP, {**config, "run-folder": str(parent)})
            while not _over(running, run_id, parent, int(config["num-server-rounds"])):
                if time.monotonic() - start > _PATIENCE:
                    raise TimeoutError(running.logs(run_id))
                time.sleep(1)
                if faults and (resumed := faults.next(run_id)):
                    run_id = resumed
            seconds = time.monotonic() - start
            if (status := running.wait(run_id)) != "finished:completed":
                raise RuntimeError(f"{status}: {running.logs(run_id)}")
        (folder,) = parent.iterdir()
        return _outcome(folder, tuple(faults.done) if faults else (), seconds)


class _Faults:
    """One fault for each round, while its searches are at work."""

    def __init__(self, running: Deployment, parent: Path) -> None:
        self._running = running
        self._parent = parent
        self.done: list[str] = []
        self._plan: list[tuple[str, Callable[[], object]]] = [
            ("a client killed", lambda: running.kill_program("north", "flwr-clientapp")),
            ("a SuperNode killed", lambda: self._restart("east")),
            ("the SuperLink killed", self._restart_superlink),
            ("the ServerApp killed", self._kill_serverapp),
            ("another SuperNode killed", lambda: self._restart("south")),
        ]

    def next(self, run_id: str) -> str | None:
        """Let the next round's fault happen, once its searches have begun.

        Returns
        -------
        str or None
            The run that goes on, if the one before had to be resumed.
        """
        number = len(self.done)
        if number == len(self._plan) or _rounds(self._parent) != number or not self._searching():
            return None
        what, act = self._plan[number]
        act()
        self.done.append(f"round {number + 1}: {what}")
        if "SuperLink" not in what and "ServerApp" not in what:
            return None
        (folder,) = self._parent.iterdir()
        return self._running.run(APP, folder / "resume.toml")

    def _searching(self) -> bool:
        """Return whether a client is at work that has begun with this round's search."""
        marker = f"round {len(self.done) + 1}, client"
        return any(marker in self._running.log_file(node).read_text() for node in NODES)

    def _restart(self, node: str) -> None:
        self._running.kill(node)
        _start(self._running, node)

    def _restart_superlink(self) -> None:
        self._running.kill("superlink")
        self._running.start_superlink()

    def _kill_serverapp(self) -> None:
        self._running.kill_program("superlink", "flwr-serverapp")
        time.sleep(1)


def _start(running: Deployment, node: str) -> None:
    parts = {"partition-id": NODES.index(node), "num-partitions": len(NODES)}
    running.start_node(node, **parts)


def _rounds(parent: Path) -> int:
    for file in parent.glob("*/checkpoint.json"):
        return int(json.loads(file.read_text(encoding="utf-8"))["strategy"]["round"])
    return 0


def _over(running: Deployment, run_id: str, parent: Path, rounds: int) -> bool:
    return _rounds(parent) == rounds or running.ended(run_id)


def _outcome(folder: Path, faults: tuple[str, ...], seconds: float) -> Outcome:
    learned = json.loads((folder / "prompt.json").read_text(encoding="utf-8"))
    history = (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
    rounds = [event for line in history if (event := json.loads(line))["event"] == "round"]
    accuracy = learned["held-out-accuracy"]
    return Outcome(
        accuracy=(accuracy["learned"] or {}).get("accuracy"),
        seed_accuracy=(accuracy["seed-prompt"] or {}).get("accuracy"),
        prompt=learned["prompt"],
        rounds=learned["rounds"],
        queries=learned["queries"],
        from_archive=sum(event["from-archive"] for event in rounds),
        failures=sum(event["failures"] for event in rounds),
        faults=faults,
        seconds=round(seconds, 1),
    )


def _table(content: Mapping[str, Any], outcomes: Mapping[str, Outcome]) -> str:
    lines = [
        "# A deployment whose processes are killed",
        "",
        f"`python -m simulations deployment`, {content['date']}, {content['cores']} cores: one run "
        f"each, seed 0. One SuperLink, {len(NODES)} SuperNodes and one llama.cpp server with "
        "SmolLM2-135M-Instruct (4 bits) on loopback; Rotten Tomatoes; settings "
        f"`{json.dumps(content['settings'])}`, otherwise the defaults.",
        "",
        "| run | rounds | seed prompt | learned | queries | answered before | missing answers "
        "| seconds | prompt |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, o in outcomes.items():
        lines.append(
            f"| {name} | {o.rounds} | {_share(o.seed_accuracy)} | {_share(o.accuracy)} "
            f"| {o.queries:,} | {o.from_archive:,} | {o.failures} | {o.seconds:.0f} | {o.prompt} |"
        )
    return "\n".join([*lines, "", f"Faults: {'; '.join(outcomes['disturbed'].faults)}.", ""])


def _share(value: float | None) -> str:
    return "not known" if value is None else f"{value:.3f}"

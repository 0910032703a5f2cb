"""The same federation under several seeds, and whether its prompt is better on unseen data."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simulations.intervals import by_t
from simulations.stamp import as_text, stamp

RESULTS = Path(__file__).parent / "results"
APP = Path(__file__).parent.parent
RUNS = APP / "runs"


@dataclass(frozen=True)
class SeedResult:
    """What one run reported; accuracies in [0, 1], time in seconds from start to exit."""

    seed: int
    seed_accuracy: float
    learned_accuracy: float
    held_out: int
    queries: int
    bytes_per_round: list[int]
    seconds: float
    prompt: str


def run(
    name: str,
    seed_numbers: Sequence[int],
    overrides: Sequence[str],
    num_clients: int,
    folder: Path,
) -> list[SeedResult]:
    """Run every seed, then write ``NAME.json`` and ``NAME.md`` to ``folder``.

    Raises
    ------
    subprocess.CalledProcessError
        If a run fails; the folders of the runs before it stay under ``runs/``.
    """
    results = [run_once(seed, overrides, num_clients) for seed in dict.fromkeys(seed_numbers)]
    settings = {"num-clients": num_clients, "run-config": list(overrides)}
    header = {
        **stamp(),
        "settings": settings,
    }
    folder.mkdir(parents=True, exist_ok=True)
    content = {**header, "runs": [asdict(result) for result in results]}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    table = _table(name, header, results)
    (folder / f"{name}.md").write_text(table, encoding="utf-8")
    print(table)
    return results


def run_once(seed: int, overrides: Sequence[str], num_clients: int) -> SeedResult:
    """Run the app in simulation; its run folder stays under ``runs/``.

    Raises
    ------
    subprocess.CalledProcessError
        If the run fails.
    """
    RUNS.mkdir(exist_ok=True)
    parent = tempfile.mkdtemp(prefix=f"seed{seed}-", dir=RUNS)
    command = [sys.executable, "-m", "feddtpt_flwr.cli", "simulate", str(APP)]
    command += ["--num-clients", str(num_clients)]
    for override in (*overrides, f"seed={seed} run-folder='{parent}'"):
        command += ["--run-config", override]
    start = time.monotonic()
    subprocess.run(command, check=True)
    seconds = time.monotonic() - start
    (run_folder,) = Path(parent).iterdir()
    learned = json.loads((run_folder / "prompt.json").read_text(encoding="utf-8"))
    history = (run_folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
    rounds = [event for line in history if (event := json.loads(line))["event"] == "round"]
    accuracy: dict[str, Any] = learned["held-out-accuracy"]
    return SeedResult(
        seed=seed,
        seed_accuracy=accuracy["seed-prompt"]["accuracy"],
        learned_accuracy=accuracy["learned"]["accuracy"],
        held_out=accuracy["learned"]["examples"],
        queries=learned["queries"],
        bytes_per_round=[event["bytes"] for event in rounds],
        seconds=round(seconds, 1),
        prompt=learned["prompt"],
    )


def _table(name: str, header: dict[str, Any], results: Sequence[SeedResult]) -> str:
    lines = [
        f"# {name}",
        "",
        f"{as_text(header)}; settings: `{json.dumps(header['settings'])}`, otherwise the defaults.",
        "",
        f"Accuracy on {results[0].held_out} held-out examples.",
        "",
        "| seed | seed prompt | learned | gain | queries | bytes per round | seconds | prompt |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        gain = r.learned_accuracy - r.seed_accuracy
        size = round(sum(r.bytes_per_round) / len(r.bytes_per_round))
        lines.append(
            f"| {r.seed} | {r.seed_accuracy:.3f} | {r.learned_accuracy:.3f} | {gain:+.3f} | "
            f"{r.queries:,} | {size:,} | {r.seconds:.0f} | {r.prompt} |"
        )
    gains = np.array([r.learned_accuracy - r.seed_accuracy for r in results])
    line = f"Mean gain {gains.mean():+.3f}"
    if ends := by_t(gains):
        low, high = ends
        line += f", 95 % interval over seeds (t) [{low:+.3f}, {high:+.3f}]"
    return "\n".join([*lines, "", line + f", worst {gains.min():+.3f}.", ""])

"""What a federation is worth: against its members, the paper's step and all data in one place.

python -m simulations federation
"""

import json
import os
import platform
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from simulations.seeds import SeedResult, run_once


@dataclass(frozen=True)
class Method:
    """One way to spend about the same number of queries."""

    what: str
    num_clients: int
    settings: str


_ALONE = "min-available-clients=1"  # by default the server waits for a second client

METHODS = {
    "federation": Method("4 clients, guard (the defaults)", 4, ""),
    "paper": Method("4 clients, the paper's step", 4, "guard=false queries-per-round=340"),
    "best client": Method(
        "4 clients, the best local prompt by reported gain",
        4,
        "guard=false aggregation='best' queries-per-round=340",
    ),
    "lone client": Method("1 client with its own data", 1, f"{_ALONE} queries-per-round=1300"),
    "all data": Method(
        "1 client with the data of all 4", 1, f"{_ALONE} k-shot=64 queries-per-round=1150"
    ),
}


def run(seed_numbers: Sequence[int], jobs: int, folder: Path) -> str:
    """Run every method under every seed, write ``federation.json`` and ``.md`` to ``folder``.

    What was run before is read from ``federation.json`` and not run again.

    Returns
    -------
    str
        The table.
    """
    file = folder / "federation.json"
    known = json.loads(file.read_text(encoding="utf-8"))["runs"] if file.exists() else {}
    results = {
        name: {int(seed): SeedResult(**result) for seed, result in known.get(name, {}).items()}
        for name in METHODS
    }

    def one(job: tuple[int, str]) -> None:
        seed, name = job
        if seed not in results[name]:
            method = METHODS[name]
            overrides = [method.settings] if method.settings else []
            results[name][seed] = run_once(seed, overrides, method.num_clients)
            _write(file, results)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, product(seed_numbers, METHODS)))
    table = _table(results, seed_numbers)
    (folder / "federation.md").write_text(table, encoding="utf-8")
    return table


def _write(file: Path, results: dict[str, dict[int, SeedResult]]) -> None:
    content = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python "
        f"{platform.python_version()}",
        "methods": {name: asdict(method) for name, method in METHODS.items()},
        "runs": {
            name: {seed: asdict(result) for seed, result in sorted(runs.items())}
            for name, runs in results.items()
        },
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _table(results: dict[str, dict[int, SeedResult]], seeds: Sequence[int]) -> str:
    held_out = results["federation"][seeds[0]].held_out
    lines = [
        "# What a federation is worth",
        "",
        f"Accuracy on {held_out} held-out examples, the same for all methods of a seed; seeds "
        f"{', '.join(map(str, seeds))}. Intervals are over seeds (95 %, t). Queries are those of "
        "all clients in all rounds.",
        "",
        "| method | accuracy | 95 % | federation minus it, paired | 95 % | queries | prompts |",
        "|---|---|---|---|---|---|---|",
    ]
    ours = np.array([results["federation"][seed].learned_accuracy for seed in seeds])
    for name, method in METHODS.items():
        runs = [results[name][seed] for seed in seeds]
        accuracy = np.array([r.learned_accuracy for r in runs])
        queries = round(np.mean([r.queries for r in runs]))
        prompts = "<br>".join(f"{r.prompt} ({r.learned_accuracy:.3f})" for r in runs)
        gain = ours - accuracy
        lines.append(
            f"| {method.what} | {accuracy.mean():.3f} | {_interval(accuracy)} "
            f"| {gain.mean():+.3f} | {'' if name == 'federation' else _interval(gain)} "
            f"| {queries:,} | {prompts} |"
        )
    return "\n".join([*lines, ""])


def _interval(values: NDArray[np.float64]) -> str:
    if len(values) < 2 or np.ptp(values) == 0:
        return ""
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    return f"{low:.3f} to {high:.3f}"

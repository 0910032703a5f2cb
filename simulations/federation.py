"""What a federation is worth: against its members, its rivals, and all data in one place.

python -m simulations federation
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import ClientData, FederatedData
from feddtpt_flwr.experiment import load_data
from simulations import kept_runs
from simulations.kept_runs import accuracy_rows
from simulations.local_federation import Outcome, run_rounds

NUM_CLIENTS = 10
SETTINGS: dict[str, Any] = {
    "num-server-rounds": 2,
    "k-shot": 4,
    "public-per-class": 2,
    "race-candidates": 2,
    "test-size": 400,
}
EXAMPLES: dict[str, dict[str, Any]] = {
    "even labels": {},
    "uneven labels": {"partition": "dirichlet", "dirichlet-alpha": 0.1},
}
"""What each of the clients has."""

# All ask about as many queries in all, clients and rounds together.
METHODS: dict[str, dict[str, Any]] = {
    "federation": {"queries-per-round": 50},
    "the paper's step": {"queries-per-round": 98, "guard": False},
    "best client": {"queries-per-round": 98, "guard": False, "aggregation": "best"},
    "one client alone": {"queries-per-round": 980, "who": "alone"},
    "all data in one place": {"queries-per-round": 980, "who": "together"},
}
VARIANTS: dict[str, dict[str, Any]] = {
    f"{examples}: {method}": {**theirs, **ours}
    for examples, theirs in EXAMPLES.items()
    for method, ours in METHODS.items()
}


def who(data: FederatedData, takes_part: str) -> FederatedData:
    """Return the data with the clients that take part: ``"all"``, ``"alone"`` or ``"together"``."""
    if takes_part == "alone":
        return replace(data, clients=data.clients[:1])
    if takes_part == "together":
        train = tuple(chain.from_iterable(client.train for client in data.clients))
        validation = tuple(chain.from_iterable(client.validation for client in data.clients))
        return replace(data, clients=(ClientData(train, validation),))
    return data


def run_once(settings: Mapping[str, Any], seed: int) -> Outcome:
    """Run one method; ``settings`` are the app's and ``who``."""
    given = {key: value for key, value in settings.items() if key != "who"}
    config = RunConfig.from_run_config({**given, "seed": seed})
    data = load_data(config, NUM_CLIENTS)
    return run_rounds(config, who(data, settings.get("who", "all")))


def run(
    seeds: Sequence[int],
    folder: Path,
    variants: Sequence[str] = tuple(VARIANTS),
    common: Mapping[str, Any] = SETTINGS,
) -> str:
    """Run what is missing; write ``federation.json`` and ``federation.md`` to ``folder``.

    Returns
    -------
    str
        The tables, over all that was run.

    Raises
    ------
    ValueError
        If ``federation.json`` holds runs of other settings.
    """
    return kept_runs.complete(
        folder / "federation.json",
        {name: {**common, **differs} for name, differs in VARIANTS.items()},
        variants,
        seeds,
        lambda *of: asdict(run_once(*of)),
        lambda runs: table(runs, common),
    )


def table(kept: kept_runs.Runs, common: Mapping[str, Any]) -> str:
    """Return a table for each way the examples lie."""
    shown = " ".join(f"{key}={value}" for key, value in common.items())
    lines = [
        "# What a federation is worth",
        "",
        f"`python -m simulations federation`: {NUM_CLIENTS} clients on rotten_tomatoes, "
        "SmolLM2-135M-Instruct, at about the same number of queries in all. *One client alone* is "
        "the first of the ten. Means over seeds with 95 % bootstrap intervals; differences are of "
        f"the same seeds. Settings: `{shown}`, otherwise the defaults. The runs by seed and their "
        "date are in `federation.json`.",
    ]
    for examples in EXAMPLES:
        rows = [f"{examples}: {method}" for method in METHODS]
        if any(kept.get(row) for row in rows):
            base = f"{examples}: one client alone"
            lines += ["", f"## {examples[0].upper()}{examples[1:]}", ""]
            lines += accuracy_rows(kept, rows, base, "difference to one client alone")
    return "\n".join([*lines, ""])

"""What a federation is worth: against its members, its rivals, and all data in one place.

python -m simulations federation

And what bad clients do to it: they upload random tokens, claim that these answer everything, and
give random counts when prompts are compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import ClientData, FederatedData
from feddtpt_flwr.experiment import load_data
from feddtpt_flwr.node import Node
from simulations import figures, kept_runs
from simulations.bad_clients import BadClient
from simulations.kept_runs import accuracy_rows
from simulations.local_federation import Client, Federation, HonestClient, Outcome
from simulations.perplexity import of_texts
from simulations.several_alive import SeveralAlive

NUM_CLIENTS = 10
SETTINGS: dict[str, Any] = {
    "num-server-rounds": 2,
    "k-shot": 4,
    "public-per-class": 2,
    "test-size": 400,
}
UNEVEN: dict[str, Any] = {"partition": "dirichlet", "dirichlet-alpha": 0.1}
BAD = ("0", "3", "6")

# All ask about as many queries in all, clients and rounds together.
VARIANTS: dict[str, dict[str, Any]] = {
    "federation": {"queries-per-round": 200},
    "one client alone": {"queries-per-round": 2600, "who": "alone"},
    "best client": {"queries-per-round": 260, "guard": False, "aggregation": "best"},
    "the paper's step": {"queries-per-round": 260, "guard": False},
    "all data in one place": {"queries-per-round": 2600, "who": "together"},
    "federation, 3 bad clients": {"queries-per-round": 200, "bad": len(BAD)},
    "federation, 2 prompts alive": {"queries-per-round": 200, "alive": 2},
    "federation, these 3 away": {"queries-per-round": 200, "away": len(BAD)},
    "the paper's step, 3 bad clients": {"queries-per-round": 260, "guard": False, "bad": len(BAD)},
    "federation, in a chat": {"queries-per-round": 200, "chat": True},
    "one client alone, in a chat": {"queries-per-round": 2600, "who": "alone", "chat": True},
    "federation, uneven labels": {"queries-per-round": 200, **UNEVEN},
    "one client alone, uneven labels": {"queries-per-round": 2600, "who": "alone", **UNEVEN},
}
"""What differs from `SETTINGS`; and who takes part, how many are bad or away, and how many global
prompts live on."""

TABLES = {
    "Against its members and rivals": (
        "one client alone",
        [
            "federation",
            "federation, 2 prompts alive",
            "the paper's step",
            "best client",
            "one client alone",
            "all data in one place",
        ],
    ),
    "The model asked in a chat": (
        "one client alone, in a chat",
        ["federation, in a chat", "one client alone, in a chat"],
    ),
    "Uneven labels": (
        "one client alone, uneven labels",
        ["federation, uneven labels", "one client alone, uneven labels"],
    ),
    "Bad clients": (
        "federation",
        [
            "federation",
            "federation, 3 bad clients",
            "federation, these 3 away",
            "the paper's step",
            "the paper's step, 3 bad clients",
        ],
    ),
}
"""Title to what the others are compared with, and the rows."""


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
    """Run one method; ``settings`` are the app's and what `VARIANTS` has besides."""
    own = ("who", "bad", "away", "alive")
    given = {key: value for key, value in settings.items() if key not in own}
    config = RunConfig.from_run_config({**given, "seed": seed})
    bad, away = (BAD[: settings.get(key, 0)] for key in ("bad", "away"))

    def client(node: Node) -> Client | None:
        if node.name in away:
            return None
        return BadClient(node) if node.name in bad else HonestClient(node)

    data = load_data(config, NUM_CLIENTS)
    if alive := settings.get("alive"):
        return SeveralAlive(config, data, alive).run()
    return Federation(config, who(data, settings.get("who", "all")), client).run()


def run(
    seeds: Sequence[int],
    folder: Path,
    variants: Sequence[str] = tuple(VARIANTS),
    common: Mapping[str, Any] = SETTINGS,
) -> str:
    """Run what is missing; write ``federation.json``, ``.md`` and ``.png`` to ``folder``.

    Returns
    -------
    str
        The tables, over all that was run.

    Raises
    ------
    ValueError
        If ``federation.json`` holds runs of other settings.
    """
    file = folder / "federation.json"
    settings = {name: {**common, **differs} for name, differs in VARIANTS.items()}
    shown = kept_runs.complete(
        file,
        settings,
        variants,
        seeds,
        lambda *of: asdict(run_once(*of)),
        lambda runs: table(runs, common),
    )
    _plot(kept_runs.read(file, settings), file.with_suffix(".png"))
    return shown


def table(kept: kept_runs.Runs, common: Mapping[str, Any]) -> str:
    """Return all tables that have runs."""
    shown = " ".join(f"{key}={value}" for key, value in common.items())
    reads = partial(of_texts, RunConfig.from_run_config(common))
    lines = [
        "# What a federation is worth",
        "",
        f"`python -m simulations federation`: {NUM_CLIENTS} clients on rotten_tomatoes, "
        "SmolLM2-135M-Instruct, with about the same number of queries to spend. *One client alone* "
        "is the first of the ten; *in a chat*: by the model's chat template, not as plain text; "
        "*uneven labels*: a Dirichlet(0.1) partition; *bad clients* send random tokens, claim "
        "that these are always right, and compare with random counts; *away*: these do not take "
        "part, and the others are as they were; *2 prompts alive*: the second best of a round is "
        "searched from, too, by half of the clients. "
        "Means over seeds with 95 % bootstrap intervals; differences are of the same seeds, *by t* "
        "is their interval by Student's t; the "
        "pseudo-perplexity of learned prompts is a geometric mean, by the model that proposed. "
        f"Settings: `{shown}`, otherwise the defaults. The runs by seed, with date and machine, "
        "are in `federation.json`.",
    ]
    for title, (base, rows) in TABLES.items():
        if any(kept.get(row) for row in rows):
            lines += ["", f"## {title}", ""]
            lines += accuracy_rows(
                kept,
                rows,
                base,
                f"difference to {base}",
                reads,
            )
    return "\n".join([*lines, ""])


def _plot(kept: kept_runs.Runs, file: Path) -> None:
    """Draw the first table."""
    base, names = next(iter(TABLES.values()))
    runs = {name: kept[name].values() for name in names if kept.get(name)}
    if base in runs:
        rows = {name: [run["accuracy"] for run in of_seeds] for name, of_seeds in runs.items()}
        start = float(np.mean([run["seed_accuracy"] for run in runs[base]]))
        figures.seeds_and_means(rows, start).savefig(file, dpi=120)

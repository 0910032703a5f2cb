"""What three bad clients of ten do to the learned prompt, with and without the guard.

python -m simulations robustness

A bad client uploads random tokens, claims that they answer everything, and gives random counts when
prompts are compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from flwr.common import Scalar
from numpy.typing import NDArray

from feddtpt_flwr import models
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.experiment import load_data, load_task
from feddtpt_flwr.node import Node
from simulations import kept_runs
from simulations.kept_runs import accuracy_rows
from simulations.local_federation import Answer, Client, HonestClient, Outcome, run_rounds
from strategies.wire import ACCURACY_KEY, GAIN_KEY, SCORED_KEY, VOCABULARY_KEY, correct_key

NUM_CLIENTS = 10
BAD = ("0", "3", "6")
SETTINGS: dict[str, Any] = {
    "num-server-rounds": 2,
    "k-shot": 8,
    "public-per-class": 4,
    "queries-per-round": 150,
    "test-size": 400,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "clean": {"bad": 0, "guard": True},
    "bad": {"bad": len(BAD), "guard": True},
    "clean, no guard": {"bad": 0, "guard": False},
    "bad, no guard": {"bad": len(BAD), "guard": False},
}


class BadClient:
    """Asks nothing and lies.

    Parameters
    ----------
    node : Node
        Whose place it takes.
    """

    def __init__(self, node: Node) -> None:
        self._vocabulary = models.masked_lm(node.config, load_task(node.config)).vocabulary
        self._rng = np.random.default_rng([node.config.seed, int(node.name)])
        self._number = len(node.data.train) + len(node.data.validation)

    def search(self, prompt: NDArray[np.int64], server_round: int) -> Answer:
        """Return as many random tokens as the prompt has."""
        tokens = self._rng.integers(len(self._vocabulary), size=len(prompt))
        claims: dict[str, Scalar] = {
            GAIN_KEY: 1.0,
            ACCURACY_KEY: 1.0,
            VOCABULARY_KEY: self._vocabulary.fingerprint,
        }
        return [tokens], self._number, claims

    def score(self, candidates: Sequence[NDArray[np.int64]], server_round: int) -> Answer:
        """Return random counts."""
        counts = {
            correct_key(i): int(self._rng.integers(self._number + 1))
            for i in range(len(candidates))
        }
        return [], self._number, {SCORED_KEY: self._number, **counts}


def run_once(settings: Mapping[str, Any], seed: int) -> Outcome:
    """Run one federation."""
    bad = BAD[: settings["bad"]]
    given = {key: value for key, value in settings.items() if key != "bad"}
    config = RunConfig.from_run_config({**given, "seed": seed})

    def client(node: Node) -> Client:
        return BadClient(node) if node.name in bad else HonestClient(node)

    return run_rounds(config, load_data(config, NUM_CLIENTS), client)


def run(
    seeds: Sequence[int],
    folder: Path,
    common: Mapping[str, Any] = SETTINGS,
    variants: Sequence[str] = tuple(VARIANTS),
) -> str:
    """Run what is missing; write ``robustness.json`` and ``robustness.md`` to ``folder``.

    Returns
    -------
    str
        The table, over all that was run.

    Raises
    ------
    ValueError
        If ``robustness.json`` holds runs of other settings.
    """
    settings = {name: {**common, **differs} for name, differs in VARIANTS.items()}
    return kept_runs.complete(
        folder / "robustness.json",
        settings,
        variants,
        seeds,
        lambda *of: asdict(run_once(*of)),
        lambda runs: table(runs, common),
    )


def table(kept: kept_runs.Runs, common: Mapping[str, Any]) -> str:
    """Return accuracies over seeds, and what bad clients and a missing guard change."""
    shown = " ".join(f"{key}={value}" for key, value in common.items())
    lines = [
        "# Bad clients",
        "",
        f"`python -m simulations robustness`: {NUM_CLIENTS} clients on rotten_tomatoes, "
        f"SmolLM2-135M-Instruct; in the rows with bad clients, {len(BAD)} of them upload random "
        "tokens, claim that these are always right, and answer the guard with random counts. "
        "Means over seeds with 95 % bootstrap intervals; differences are of the same seeds. "
        f"Settings: `{shown}`, otherwise the defaults. The runs by seed and their date are in "
        "`robustness.json`.",
        "",
        *accuracy_rows(kept, VARIANTS, "clean", "difference to clean, with the guard"),
        "",
    ]
    return "\n".join(lines)

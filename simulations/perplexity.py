"""How well a suite's prompts read: their pseudo-perplexity by the model that proposed them."""

from collections.abc import Sequence
from itertools import product

import numpy as np

from feddtpt_flwr import models
from feddtpt_flwr.assets import AssetError
from feddtpt_flwr.config import ConfigError, RunConfig
from feddtpt_flwr.data import DataError
from feddtpt_flwr.experiment import load_task, seed_tokens
from feddtpt_flwr.language_model.base import ModelError
from feddtpt_flwr.readability import per_token
from simulations.grid import Grid
from simulations.outcome import Outcome
from simulations.tables import Table, variants
from strategies.candidates import Tokens


def perplexities(config: RunConfig, prompts: Sequence[Tokens]) -> list[float]:
    """Return the pseudo-perplexity of prompts by a run's masked language model.

    It is the exponential of the mean negative log-likelihood per token, each token given all others
    (Salazar et al., 2020, arXiv 1910.14659); of a causal model, given those before it.

    Raises
    ------
    ConfigError, DataError, AssetError
        If the run's models are not on this machine.
    """
    masked_lm = models.masked_lm(config, load_task(config))
    return [float(value) for value in np.exp(-per_token(masked_lm, prompts))]


def of_texts(config: RunConfig, prompts: Sequence[str]) -> str:
    """Return the geometric mean of prompts' pseudo-perplexities as text; see `perplexities`."""
    vocabulary = models.masked_lm(config, load_task(config)).vocabulary
    return typical(perplexities(config, [vocabulary.encode(prompt) for prompt in prompts]))


def before_and_after(outcome: Outcome) -> tuple[float, float]:
    """Return the pseudo-perplexity of a run's seed prompt and of its learned prompt, as texts."""
    config = outcome.config
    task = load_task(config)
    vocabulary = models.masked_lm(config, task).vocabulary
    learned = vocabulary.encode(outcome.prompt)
    before, after = perplexities(config, [seed_tokens(config, task, vocabulary), learned])
    return before, after


def perplexity_table(grid: Grid) -> Table | None:
    """Return pseudo-perplexities before and after, by method; None if no model is here."""
    rows = []
    for name, method, budget in variants(grid):
        if "baseline" in grid.suite.methods.get(method, {}):
            continue  # a soft prompt has no words
        axes = ("models", "partitions", "tasks")
        cells = [
            grid.cell(models=m, partitions=p, tasks=t, methods=method, budgets=budget)
            for m, p, t in product(*map(grid.labels, axes))
        ]
        outcomes = [outcome for cell in cells for outcome in cell.outcomes.values()]
        try:
            found = [before_and_after(outcome) for outcome in outcomes]
        except (ConfigError, DataError, AssetError, ModelError):
            continue  # its models are on another machine, or a service that does not answer
        if found:
            before, after = zip(*found, strict=True)
            rows.append([name, typical(before), typical(after)])
    if not rows:
        return None
    return Table(
        "Pseudo-perplexity",
        ["method", "seed prompt", "learned prompt"],
        rows,
        [
            "By the model that proposed the tokens, geometric mean over all runs; what reads like "
            "language has a low one."
        ],
    )


def typical(values: Sequence[float]) -> str:
    """Return the geometric mean as text."""
    return f"{np.exp(np.mean(np.log(values))):,.0f}"

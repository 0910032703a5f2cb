"""What each way of the server's step makes of the same uploads.

python -m simulations steps

Ten clients search once from the seed prompt. The paper's step, its ablations, what the field does
and the clients' comparison each make the next global prompt of what they found.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from feddtpt_flwr import models
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.experiment import load_data, load_task
from simulations import kept_runs
from simulations.federation import NUM_CLIENTS, UNEVEN
from simulations.local_federation import Federation
from simulations.perplexity import of_texts
from strategies.wire import Reply

SETTINGS: dict[str, Any] = {
    "k-shot": 4,
    "public-per-class": 2,
    "test-size": 400,
    "queries-per-round": 260,
    "guard": False,
}
BASE = "the paper's step"
STEPS: dict[str, dict[str, Any]] = {
    BASE: {},
    "its words alone": {"aggregation": "literal"},
    "with the prompt that reads best": {"fluent": True},
    "with noise kept": {"noise": "keep"},
    "weighted by accuracy": {"client_weights": "accuracy"},
    "weighted by examples": {"client_weights": "examples"},
    "attention without clusters": {"aggregation": "attention"},
    "a fixed number of clusters": {"aggregation": "kmeans"},
    "average of embeddings": {"aggregation": "average"},
    "vote by position": {"aggregation": "majority"},
    "best client, by its own word": {"aggregation": "best"},
    "comparison by the clients": {"guard": True, "fluent": True},
}
"""What differs from the server's settings; and whether it minds how its prompt reads."""

PARTITIONS: dict[str, dict[str, Any]] = {
    "": {},
    ", uneven labels": UNEVEN,
    ", unequal numbers": {"few": [1, 4, 7]},
}
"""What differs in the data; *few* are the clients that have an example of each label alone."""

VARIANTS: dict[str, dict[str, Any]] = {
    step + suffix: {**SETTINGS, **partition, "step": step}
    for suffix, partition in PARTITIONS.items()
    for step in STEPS
}


@dataclass
class Searched:
    """A federation whose clients have searched once.

    Attributes
    ----------
    federation : Federation
        The clients.
    config : RunConfig
        Its settings.
    replies : list[Reply]
        What they upload.
    accuracies : dict[str, float]
        Held-out accuracy of prompts, in [0, 1], as far as it is known.
    """

    federation: Federation
    config: RunConfig
    replies: list[Reply]
    accuracies: dict[str, float] = field(default_factory=dict)

    def accuracy(self, prompt: str) -> float:
        """Return the held-out accuracy of a prompt, in [0, 1]."""
        if prompt not in self.accuracies:
            (self.accuracies[prompt],) = self.federation.accuracy(prompt)
        return self.accuracies[prompt]


@lru_cache(maxsize=1)
def searched(config: RunConfig, few: tuple[int, ...] = ()) -> Searched:
    """Let all clients search; their uploads do for every step.

    Parameters
    ----------
    config : RunConfig
        Settings of the run.
    few : tuple[int, ...]
        Clients that have one example of each label to search on.
    """
    data = load_data(config, NUM_CLIENTS)
    clients = tuple(
        replace(own, train=tuple({example.label: example for example in own.train}.values()))
        if number in few
        else own
        for number, own in enumerate(data.clients)
    )
    federation = Federation(config, replace(data, clients=clients))
    return Searched(federation, config, federation.search(1))


def run_once(settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Make one step; ``settings`` are the app's and the step's name."""
    app = {key: value for key, value in settings.items() if key not in ("step", "few")}
    config = RunConfig.from_run_config({**app, "seed": seed})
    found = searched(config, tuple(settings.get("few", ())))
    federation, asked = found.federation, found.federation.queries
    own = dict(STEPS[settings["step"]])
    if own.pop("fluent", False):
        masked_lm = models.masked_lm(found.config, load_task(found.config))
        own["fluency_fn"] = masked_lm.log_likelihood
    prompt = federation.settle(
        federation.rounds(replace(federation.settings, **own)), 1, found.replies
    )
    queries, federation.queries = federation.queries, asked  # the next step's begin there again
    return {
        "seed_accuracy": found.accuracy(federation.prompt),
        "accuracy": found.accuracy(prompt),
        "queries": queries,
        "prompt": prompt,
    }


def run(
    seeds: Sequence[int],
    folder: Path,
    variants: Sequence[str] = tuple(VARIANTS),
    common: Mapping[str, Any] = SETTINGS,
) -> str:
    """Make what is missing; write ``steps.json`` and ``.md`` to ``folder``.

    Returns
    -------
    str
        The tables, over all that was made.

    Raises
    ------
    ValueError
        If ``steps.json`` holds runs of other settings.
    """
    settings = {name: {**own, **common} for name, own in VARIANTS.items()}
    return kept_runs.complete(
        folder / "steps.json",
        settings,
        variants,
        seeds,
        run_once,
        lambda kept: table(kept, common),
    )


def table(kept: kept_runs.Runs, common: Mapping[str, Any]) -> str:
    """Return a table for each partition that has runs."""
    shown = " ".join(f"{key}={value}" for key, value in common.items())
    reads = partial(of_texts, RunConfig.from_run_config(common))
    lines = [
        "# What the server makes of the same uploads",
        "",
        f"`python -m simulations steps`: {NUM_CLIENTS} clients on rotten_tomatoes, "
        "SmolLM2-135M-Instruct, search once from the seed prompt; each row is another way to make "
        "the next global prompt of what they upload. *Its words alone* adds nothing where the "
        "paper is silent; *comparison by the clients* is the app's default, with the queries that "
        "it takes besides; *uneven labels*: a Dirichlet(0.1) partition; *unequal numbers*: "
        "three of the ten have 2 examples to search on instead of 8. Means over seeds with 95 % "
        "bootstrap intervals; differences are of the same uploads, *by t* is their interval by "
        "Student's t; the pseudo-perplexity of the "
        "prompts is a geometric mean, by the model that proposed. "
        f"Settings: `{shown}`, otherwise the defaults. The prompts by seed, with date and machine, "
        "are in `steps.json`.",
    ]
    for suffix in PARTITIONS:
        rows = [step + suffix for step in STEPS]
        if any(kept.get(row) for row in rows):
            lines += ["", f"## {(suffix or ', even labels')[2:].capitalize()}", ""]
            base = BASE + suffix
            lines += kept_runs.accuracy_rows(
                kept,
                rows,
                base,
                f"difference to {BASE}",
                reads,
            )
    return "\n".join([*lines, ""])

"""How good learned prompts are where every label counts the same.

python -m simulations bench balanced --json -

Held-out examples have the labels of their source, some far more often than others, while searches
go by examples that are balanced: a prompt that leans to the commonest label gains in accuracy.
Here all prompts of a suite's kept runs are asked about their held-out examples once more.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feddtpt_flwr import models
from feddtpt_flwr.budget import QueryBudget
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import DataError, Example
from feddtpt_flwr.evaluation import Evaluator
from feddtpt_flwr.experiment import load_data, load_task
from simulations.grid import Grid, read_grid
from simulations.intervals import Mean, paired
from simulations.outcome import Results
from simulations.records import Kept
from simulations.stamp import as_text, stamp
from simulations.suite import BASELINE, load_suite

SEED_PROMPT = "the seed prompt"

TOGETHER = 10
"""Prompts that are asked with at a time."""

Scores = dict[str, dict[str, dict[int, float]]]
"""Accuracy by task, method and seed."""


def run(name: str, results: Path) -> dict[str, Any]:
    """Ask about the held-out examples of a suite's runs with the prompts that they learned.

    Parameters
    ----------
    name : str
        The suite.
    results : Path
        Folder of the reports' files.

    Returns
    -------
    dict[str, Any]
        ``balanced``, the mean of the labels' accuracies by task, method and seed; ``plain``, the
        accuracies as they are; ``commonest``, by task the mean share of the commonest label.

    Raises
    ------
    DataError
        If no run of the suite is kept.
    ValueError
        If a report's file is none of runs.
    """
    suite = load_suite(name)
    grid = read_grid(suite, Results(results / name, kept=Kept(results, name)))
    if not grid.num_runs:
        raise DataError(f"{results}: no run of suite {name!r} is kept there")
    plain, balanced, commonest = Scores(), Scores(), {}
    for task in grid.labels("tasks"):
        shares = []
        for seed, learned in _learned(grid, task).items():
            # The held-out examples depend on seed and task; of the clients' parts none is needed.
            test = load_data(learned.config, 0).test
            labels = np.array([example.label for example in test])
            counts = np.unique(labels, return_counts=True)[1]
            shares.append(counts.max() / len(labels))
            _put(plain, task, seed, learned.accuracies)
            if np.ptp(counts):
                _put(balanced, task, seed, _balanced(learned, test, labels))
            else:  # then both are the same
                _put(balanced, task, seed, learned.accuracies)
        if shares:
            commonest[task] = float(np.mean(shares))
    return {
        **stamp(),
        "suite": name,
        "compare": grid.compare,
        "commonest": commonest,
        "plain": plain,
        "balanced": balanced,
    }


def markdown(result: Mapping[str, Any]) -> str:
    """Return a table of the methods."""
    tasks, compare = list(result["balanced"]), result["compare"]
    methods = load_suite(result["suite"]).methods
    what = {label: str(told.get("what", label)) for label, told in methods.items()}
    shares = ", ".join(f"{task} {share:.3f}" for task, share in result["commonest"].items())
    lines = [
        f"# Every label counts the same: {result['suite']}",
        "",
        f"`python -m simulations bench balanced`, {as_text(result)}. The prompts with which the "
        "kept runs ended, asked about each run's held-out examples once more where their labels "
        "are uneven. An accuracy here is the mean of the labels' accuracies; one that knows "
        "nothing has 1 / labels. In brackets the run's accuracy as it is; the commonest label "
        f"alone would have: {shares}. Differences to “{what[compare]}” are of the tasks' mean "
        "within seeds, with 95 % intervals by Student's t; the last column is that of accuracies "
        "as they are. None is corrected for there being several.",
        "",
        f"| method | seeds | {' | '.join(tasks)} | mean | difference | as they are |",
        "|---|---|" + "---|" * (len(tasks) + 3),
    ]
    for method in (SEED_PROMPT, *what):
        balanced, plain = (_means(result[kind], tasks, method) for kind in ("balanced", "plain"))
        if not balanced:
            continue
        cells = [
            f"{_mean(result['balanced'][t][method]):.3f} ({_mean(result['plain'][t][method]):.3f})"
            for t in tasks
        ]
        ours = (_means(result[kind], tasks, compare) for kind in ("balanced", "plain"))
        gaps = [
            "" if method == compare else _shown(paired(theirs, own))
            for theirs, own in zip((balanced, plain), ours, strict=True)
        ]
        row = [what.get(method, method), str(len(balanced)), *cells, f"{_mean(balanced):.3f}"]
        lines.append(f"| {' | '.join([*row, *gaps])} |")
    return "\n".join([*lines, ""])


@dataclass(frozen=True)
class _Learned:
    """What one seed's runs on a task ended with, by method: the prompts and their accuracies."""

    config: RunConfig
    prompts: dict[str, str]
    accuracies: dict[str, float]


def _learned(grid: Grid, task: str) -> dict[int, _Learned]:
    """Return the outcomes of each seed, the seed prompt's among them."""
    found: dict[int, _Learned] = {}
    for method in grid.labels("methods"):
        if BASELINE in grid.suite.methods.get(method, {}):  # vectors are no words
            continue
        for seed, outcome in grid.cell(tasks=task, methods=method).outcomes.items():
            learned = found.setdefault(seed, _Learned(outcome.config, {}, {}))
            learned.prompts[method] = outcome.prompt
            learned.accuracies[method] = outcome.accuracy
            learned.prompts[SEED_PROMPT] = outcome.seed_prompt
            learned.accuracies[SEED_PROMPT] = outcome.seed_accuracy
    return found


def _balanced(
    learned: _Learned, test: Sequence[Example], labels: NDArray[np.int64]
) -> dict[str, float]:
    """Ask about all held-out examples; return the mean of the labels' accuracies by method."""
    config, prompts = learned.config, sorted(set(learned.prompts.values()))
    model, budget = models.language_model(config), QueryBudget(sys.maxsize)
    evaluator = Evaluator(model, load_task(config), budget)
    found = {}
    for start in range(0, len(prompts), TOGETHER):
        some = prompts[start : start + TOGETHER]
        for prompt, right in zip(some, evaluator.correct_all(some, test), strict=True):
            of_labels = [right[labels == label].mean() for label in np.unique(labels)]
            found[prompt] = float(np.mean(of_labels))
    return {method: found[prompt] for method, prompt in learned.prompts.items()}


def _put(scores: Scores, task: str, seed: int, found: Mapping[str, float]) -> None:
    for method, value in found.items():
        scores.setdefault(task, {}).setdefault(method, {})[seed] = round(value, 4)


def _means(scores: Scores, tasks: Sequence[str], method: str) -> dict[int, float]:
    """Return the mean over the tasks of each seed that has all of them."""
    of_tasks = [scores[task].get(method, {}) for task in tasks]
    seeds = set.intersection(*map(set, of_tasks))
    return {seed: float(np.mean([one[seed] for one in of_tasks])) for seed in seeds}


def _mean(by_seed: Mapping[int, float]) -> float:
    return float(np.mean(list(by_seed.values())))


def _shown(difference: Mean | None) -> str:
    if difference is None:
        return "-"
    return f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"

"""How good learned prompts are where every label counts the same.

python -m simulations bench balanced --json -

Held-out examples have the labels of their source, some far more often than others, while searches
go by examples that are balanced: a prompt that leans to the commonest label gains in accuracy.
Here all prompts of a suite's kept runs are asked about their held-out examples once more.
"""

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feddtpt_flwr import models
from feddtpt_flwr.budget import QueryBudget
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import DataError
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
        for seed, (config, methods) in _prompts(grid, task).items():
            labels, correct = _ask(config, sorted(set(methods.values())))
            shares.append(max(float((labels == label).mean()) for label in set(labels.tolist())))
            for method, prompt in methods.items():
                right = correct[prompt]
                of_labels = [right[labels == label].mean() for label in np.unique(labels)]
                _put(plain, task, method, seed, float(right.mean()))
                _put(balanced, task, method, seed, float(np.mean(of_labels)))
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
        "kept runs ended, asked about each run's held-out examples once more. An accuracy here is "
        "the mean of the labels' accuracies; one that knows nothing has 1 / labels. In brackets "
        f"the accuracy as it is; the commonest label alone would have: {shares}. Differences to "
        f"“{what[compare]}” are of the tasks' mean within seeds, with 95 % intervals by Student's "
        "t; the last column is that of accuracies as they are. None is corrected for there being "
        "several.",
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


def _prompts(grid: Grid, task: str) -> dict[int, tuple[RunConfig, dict[str, str]]]:
    """Return for each seed settings of a run and every method's prompt."""
    found: dict[int, tuple[RunConfig, dict[str, str]]] = {}
    for method in grid.labels("methods"):
        if BASELINE in grid.suite.methods.get(method, {}):  # vectors are no words
            continue
        for seed, outcome in grid.cell(tasks=task, methods=method).outcomes.items():
            _, prompts = found.setdefault(seed, (outcome.config, {}))
            prompts[method] = outcome.prompt
            prompts.setdefault(SEED_PROMPT, outcome.seed_prompt)
    return found


def _ask(
    config: RunConfig, prompts: Sequence[str]
) -> tuple[NDArray[np.int64], dict[str, NDArray[np.bool_]]]:
    """Return the held-out examples' labels and, for each prompt, which it answers right."""
    # The held-out examples depend on seed and task; of the clients' parts none is needed.
    test = load_data(config, 0).test
    model, budget = models.language_model(config), QueryBudget(sys.maxsize)
    evaluator = Evaluator(model, load_task(config), budget)
    correct: dict[str, NDArray[np.bool_]] = {}
    for start in range(0, len(prompts), TOGETHER):
        some = prompts[start : start + TOGETHER]
        correct |= zip(some, evaluator.correct_all(some, test), strict=True)
    return np.array([example.label for example in test]), correct


def _put(scores: Scores, task: str, method: str, seed: int, value: float) -> None:
    scores.setdefault(task, defaultdict(dict)).setdefault(method, {})[seed] = round(value, 4)


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

"""How good the best of all prompts are that kept runs have learned, on the same many examples.

python -m simulations bench known --json -

No single run may choose among them; the best are a bound for what is found so far.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feddtpt_flwr import models
from feddtpt_flwr.budget import QueryBudget
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import DataError, Example
from feddtpt_flwr.evaluation import Evaluator
from feddtpt_flwr.experiment import load_task
from feddtpt_flwr.language_model.weights import resolve_device
from simulations.bench_ceiling import examples
from simulations.records import place_of, read_records, suites_files
from simulations.stamp import as_text, stamp
from simulations.suite import BASELINE, load_suite

SEED = 302
"""Of no other table here; its examples are among those of other seeds."""

TOGETHER = 10
"""Prompts that are asked with at a time."""

SHOWN = 10
"""Prompts of the table."""


def run(
    task_name: str, num_first: int, num_all: int, finalists: int, results: Path, device: str
) -> dict[str, Any]:
    """Try every learned prompt on some examples, and the best of them on many others.

    Parameters
    ----------
    task_name : str
        One of the tasks that are embedded.
    num_first, num_all : int
        Examples that all prompts are tried on, and others for the best.
    finalists : int
        How many of the prompts these are.
    results : Path
        Folder of the reports' files.
    device : str
        What computes.

    Raises
    ------
    DeviceError
        If this machine has no such device.
    DataError
        If there is no such task, not so many examples of it, or no prompt learned on it.
    ValueError
        If a report's file is none of runs, or of a suite that is not there.
    """
    config = RunConfig.from_run_config({"task": task_name, "device": device, "seed": SEED})
    resolve_device(device)
    task = load_task(config)
    if not (learned := learned_prompts(results, task_name)):
        raise DataError(f"{results}: no suite's report there holds a prompt learned on {task_name}")
    first_ones, others = examples(task, max(num_first, len(task.answers)), num_all, SEED)
    evaluator = Evaluator(models.language_model(config), task, QueryBudget(sys.maxsize))
    prompts = sorted(learned)
    at_first = _accuracies(evaluator, prompts, first_ones)
    best = [prompts[i] for i in np.argsort(-at_first, kind="stable")[:finalists]]
    first = dict(zip(prompts, at_first.tolist(), strict=True))
    of_all = zip(best, _accuracies(evaluator, best, others).tolist(), strict=True)
    return {
        **stamp(),
        "task": task_name,
        "seed": SEED,
        "prompts": len(prompts),
        "first": len(first_ones),
        "others": len(others),
        "device": device,
        "best": [
            {"prompt": p, "run": learned[p], "first": round(first[p], 4), "others": round(a, 4)}
            for p, a in sorted(of_all, key=lambda pair: -pair[1])
        ],
    }


def learned_prompts(results: Path, task_name: str) -> dict[str, str]:
    """Return the prompts that the app's runs on a task ended with, and a run of each."""
    learned: dict[str, str] = {}
    for file in suites_files(results):
        suite = load_suite(file.stem)
        for record in read_records(file):
            label = record.get("tasks", "")
            named = suite.tasks.get(label, {}).get("task", suite.settings.get("task", label))
            method = suite.methods.get(record.get("methods", ""), {})
            if named == task_name and BASELINE not in method:  # vectors are no words
                learned.setdefault(record["prompt"], f"{suite.name}: {place_of(record)}")
    return learned


def markdown(result: Mapping[str, Any]) -> str:
    """Return the table."""
    best = result["best"]
    return "\n".join(
        [
            f"# The best learned prompts: {result['task']}",
            "",
            f"`python -m simulations bench known`, {as_text(result)}, seed {result['seed']}. All "
            f"{result['prompts']} different prompts with which the kept runs of the app and its "
            f"rivals on this task ended, by SmolLM2-135M-Instruct on {result['first']} examples, "
            f"the best {len(best)} of them on {result['others']} others. Runs have seen some of "
            "these examples, and who is best of so many is so in part by chance.",
            "",
            f"| on {result['others']} | on {result['first']} | prompt | a run |",
            "|---|---|---|---|",
            *(
                f"| {p['others']:.3f} | {p['first']:.3f} | {p['prompt']} | {p['run']} |"
                for p in best[:SHOWN]
            ),
            "",
        ]
    )


def _accuracies(
    evaluator: Evaluator, prompts: Sequence[str], examples: Sequence[Example]
) -> NDArray[np.float64]:
    """Return each prompt's share of right answers, shape ``(prompts,)``."""
    correct = [
        row
        for start in range(0, len(prompts), TOGETHER)
        for row in evaluator.correct_all(prompts[start : start + TOGETHER], examples)
    ]
    return np.array([row.mean() for row in correct])

"""Learned prompts on other models than the one they were learned on (paper, Table 2)."""

import json
from collections.abc import Callable, Iterable

from feddtpt_flwr import models
from feddtpt_flwr.budget import QueryBudget
from feddtpt_flwr.evaluation import AnswerCache, Evaluator
from feddtpt_flwr.experiment import load_data, load_task
from simulations.grid import Grid
from simulations.obstacles import obstacle
from simulations.outcome import Outcome, Results, write_atomically
from simulations.suite import AXES, Job, Suite

TRANSFER = "transfer.json"

Accuracies = dict[tuple[str, str, str], dict[int, float]]
"""Held-out accuracy by seed, for (model learned on, model asked, task)."""


def transfer(
    suite: Suite,
    results: Results,
    jobs: Iterable[Job] | None = None,
    say: Callable[[str], None] = print,
) -> Accuracies:
    """Ask every reachable model about the held-out examples with every other model's prompts.

    Only the suite's method of comparison, in its first partition and budget. What was asked before
    is not asked again.

    Parameters
    ----------
    suite : Suite
        Its first method is the one of comparison if it names none.
    results : Results
        The runs that have learned the prompts.
    jobs : Iterable[Job], optional
        The runs between whose models prompts are carried over; by default all of the suite.
    say : Callable[[str], None]
        Told every accuracy that was asked for.
    """

    def ask(results: Results, job: Job, outcome: Outcome, target: Job) -> float | None:
        return _ask(results, job, outcome, target, say)

    return _collect(suite, results, ask, suite.jobs() if jobs is None else jobs)


def known_transfer(grid: Grid, results: Results) -> Accuracies:
    """Return what `transfer` has found so far."""
    return _collect(grid.suite, results, _known, grid.suite.jobs())


def _collect(
    suite: Suite,
    results: Results,
    look: Callable[[Results, Job, Outcome, Job], float | None],
    jobs: Iterable[Job],
) -> Accuracies:
    found: Accuracies = {}
    by_labels = {(job.labels, job.seed): job for job in jobs}
    for job in by_labels.values():
        outcome = results.read(job)
        if not isinstance(outcome, Outcome) or not _counts(suite, job):
            continue
        for model in suite.models:
            # A model may have fewer of the seeds.
            target = by_labels.get(((model, *job.labels[1:]), job.seed))
            own = model == job.label("models")
            if target is None:
                continue
            accuracy = outcome.accuracy if own else look(results, job, outcome, target)
            if accuracy is not None:
                place = (job.label("models"), model, job.label("tasks"))
                found.setdefault(place, {})[job.seed] = accuracy
    return found


def _counts(suite: Suite, job: Job) -> bool:
    methods = suite.compare or next(iter(suite.methods), "")
    firsts = {axis: next(iter(suite.axis(axis)), "") for axis in AXES} | {"methods": methods}
    return all(job.label(axis) == firsts[axis] for axis in ("partitions", "methods", "budgets"))


def _known(results: Results, job: Job, outcome: Outcome, target: Job) -> float | None:
    try:
        text = (results.job_folder(job) / TRANSFER).read_text(encoding="utf-8")
    except OSError:
        return None
    entry = json.loads(text).get(target.label("models"), {})
    return entry["accuracy"] if entry.get("of") == _describe(outcome, target) else None


def _ask(
    results: Results, job: Job, outcome: Outcome, target: Job, say: Callable[[str], None]
) -> float | None:
    if (accuracy := _known(results, job, outcome, target)) is not None or obstacle(target):
        return accuracy
    config = target.config
    task = load_task(config)
    # The data depend on seed and task alone; of the clients' parts none is needed.
    test = load_data(config, 0).test
    store = models.answer_store(config)
    cache = AnswerCache(archives=() if store is None else (store,))
    evaluator = Evaluator(models.ready_language_model(config), task, QueryBudget(len(test)), cache)
    accuracy = float(evaluator.correct(outcome.prompt, test).mean())
    path = results.job_folder(job) / TRANSFER
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    content[target.label("models")] = {
        "of": _describe(outcome, target),
        "accuracy": accuracy,
        "examples": len(test),
    }
    write_atomically(path, json.dumps(content, indent=2) + "\n")
    say(f"{job.key} on {target.label('models')}: {accuracy:.3f}")
    return accuracy


def _describe(outcome: Outcome, target: Job) -> dict[str, object]:
    """Return all that decides the accuracy."""
    return {"prompt": outcome.prompt, "settings": target.config.to_run_config()}

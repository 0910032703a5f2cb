"""Run folders written by hand, in the app's format: what a report makes of known figures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from simulations.outcome import Outcome, Results, read_outcome
from simulations.suite import Job, Suite, load_suite

SUITE = """
title = "Written by hand"
question = "Are the figures the right ones?"
seeds = [0, 1, 2]
compare = "full"

[tasks.one]
task = "rotten_tomatoes"

[tasks.two]
task = "tweet_sentiment"

[methods.full]
what = "the full method"

[methods.blind]
what = "without feedback <b>"
feedback = false
"""

MADE = {"date": "2026-11-20", "machine": "2 cores, made up", "versions": {"flwr": "1.41.0"}}


def write_suite(folder: Path, text: str = SUITE, name: str = "written") -> Suite:
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return load_suite(str(path))


def write_run(
    results: Results,
    job: Job,
    accuracies: Sequence[float | None],
    *,
    prompt: str = "Is this film good?",
    tokens: Sequence[int] = (1, 2, 3, 4, 5),
    uploads: Sequence[Sequence[int]] = (),
    peak_mib: int | None = None,
    made: Mapping[str, Any] = MADE,
    end: float | None = None,
) -> Outcome:
    """Write a completed run; see `write_run_folder`."""
    folder = results.job_folder(job) / "try-1" / "run"
    write_run_folder(
        folder, job, accuracies, prompt=prompt, tokens=tokens, uploads=uploads, end=end
    )
    outcome = read_outcome(folder, 12.0, dict(made), peak_mib)
    results.write_outcome(job, outcome)
    return outcome


def write_run_folder(
    folder: Path,
    job: Job,
    accuracies: Sequence[float | None],
    *,
    prompt: str = "Is this film good?",
    tokens: Sequence[int] = (1, 2, 3, 4, 5),
    uploads: Sequence[Sequence[int]] = (),
    end: float | None = None,
) -> None:
    """Write what the app leaves, with the accuracies of the start and of every round.

    None is one that was not measured at that time. ``end`` is what the run knew at its end of the
    learned prompt; by default that of the last round.
    """
    folder.mkdir(parents=True)
    config = {**dict(job.settings), "seed": job.seed}
    (folder / "config.toml").write_text(tomli_w.dumps(config), encoding="utf-8")
    events: list[dict[str, object]] = [{"event": "start", "accuracy": accuracies[0]}]
    for number, accuracy in enumerate(accuracies[1:], 1):
        events.append(
            {
                "event": "round",
                "round": number,
                "queries": 100 * number,
                "accuracy": accuracy,
                "bytes": 1000 * number,
                "uploads": [list(upload) for upload in uploads],
            }
        )
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (folder / "history.jsonl").write_text(lines, encoding="utf-8")
    learned = {
        "prompt": prompt,
        "tokens": list(tokens),
        "seed-prompt": "Was this film good?",
        "queries": 100 * (len(accuracies) - 1),
        "held-out-accuracy": {
            "seed-prompt": {"accuracy": accuracies[0], "examples": 200},
            "learned": {"accuracy": accuracies[-1] if end is None else end, "examples": 200},
        },
    }
    (folder / "prompt.json").write_text(json.dumps(learned), encoding="utf-8")

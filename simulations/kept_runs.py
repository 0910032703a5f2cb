"""Finished runs of a comparison, kept in a JSON file so that none is done twice."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from simulations.intervals import Mean, bootstrap_mean, by_t, differences
from simulations.outcome import write_atomically
from simulations.stamp import stamp, time_and_place

Runs = dict[str, dict[int, dict[str, Any]]]
"""What each run gave, by variant and seed."""


def read(file: Path, settings: Mapping[str, Mapping[str, Any]]) -> Runs:
    """Return the runs that a file holds; none if it is not there.

    Parameters
    ----------
    file : Path
        What `write` wrote.
    settings : Mapping[str, Mapping[str, Any]]
        All settings of each variant.

    Raises
    ------
    ValueError
        If they were made with other settings: they cannot stand in one table with new ones.
    """
    if not file.exists():
        return {}
    content = json.loads(file.read_text(encoding="utf-8"))
    for variant in content["runs"]:
        if content["settings"].get(variant) != settings.get(variant):
            raise ValueError(
                f"{file} holds runs of other settings for {variant!r}; move it away to begin anew"
            )
    return {
        variant: {int(seed): run for seed, run in runs.items()}
        for variant, runs in content["runs"].items()
    }


def write(file: Path, settings: Mapping[str, Mapping[str, Any]], runs: Runs) -> None:
    """Write all runs and the stamp; the file is whole at any time."""
    content = {
        **stamp(),
        "settings": {variant: settings[variant] for variant in settings if variant in runs},
        "runs": {
            variant: dict(sorted(runs[variant].items())) for variant in settings if variant in runs
        },
    }
    write_atomically(file, json.dumps(content, indent=2) + "\n")


def complete(
    file: Path,
    settings: Mapping[str, Mapping[str, Any]],
    variants: Sequence[str],
    seeds: Sequence[int],
    run_once: Callable[[Mapping[str, Any], int], dict[str, Any]],
    table: Callable[[Runs], str],
) -> str:
    """Run what is missing, one seed after the other; keep every run and the table at once.

    A run is kept with its date and machine: the file may grow over days, and be taken elsewhere.

    Parameters
    ----------
    file : Path
        Where the runs are kept; the table is written beside it, as ``.md``.
    settings : Mapping[str, Mapping[str, Any]]
        All settings of each variant.
    variants, seeds : Sequence
        What to run.
    run_once : Callable[[Mapping[str, Any], int], dict[str, Any]]
        Settings and seed to what a run gave.
    table : Callable[[Runs], str]
        All runs that there are to their table.

    Returns
    -------
    str
        The table.

    Raises
    ------
    ValueError
        If the file holds runs of other settings.
    """

    def keep(new: Runs) -> tuple[Runs, str]:
        """Add runs to the file, which others may have added to meanwhile; write the table."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            runs = read(file, settings)
            for variant, of_seeds in new.items():
                runs[variant] = {**runs.get(variant, {}), **of_seeds}
            if new:
                write(file, settings, runs)
            shown = table(runs)
            file.with_suffix(".md").write_text(shown, encoding="utf-8")
        return runs, shown

    runs = read(file, settings)
    for seed in seeds:
        for variant in variants:
            if seed not in runs.get(variant, {}):
                found = run_once(settings[variant], seed)
                runs, _ = keep({variant: {seed: {**found, **time_and_place()}}})
    return keep({})[1]


def accuracy_rows(
    kept: Runs,
    variants: Iterable[str],
    base: str,
    difference: str = "difference",
    reads: Callable[[Sequence[str]], str] = lambda _: "",
) -> list[str]:
    """Return a Markdown table of held-out accuracy, and of the seed prompt's below it.

    Parameters
    ----------
    kept : Runs
        Each with ``accuracy``, ``seed_accuracy``, ``prompt`` and ``queries``.
    variants : Iterable[str]
        A row for each that has runs.
    base : str
        What the others are compared with, seed by seed.
    difference : str
        Heading of that column.
    reads : Callable[[Sequence[str]], str]
        What to say of learned prompts as language, such as their perplexity.
    """
    lines = [
        f"| run | seeds | held-out accuracy | {difference} | by t | pseudo-perplexity | queries |",
        "|---|---|---|---|---|---|---|",
    ]
    accuracy = {
        variant: {seed: float(run["accuracy"]) for seed, run in sorted(runs.items())}
        for variant, runs in kept.items()
    }
    shown = [variant for variant in variants if accuracy.get(variant)]
    for variant in shown:
        of_seeds = accuracy[variant]
        queries = np.mean([run["queries"] for run in kept[variant].values()])
        against = differences(of_seeds, accuracy.get(base, {}) if variant != base else {})
        ends = by_t(against)
        shown_accuracy = _shown(bootstrap_mean(np.array([*of_seeds.values()])))
        lines.append(
            f"| {variant} | {len(of_seeds)} | {shown_accuracy} "
            f"| {_shown(bootstrap_mean(against), sign='+') if len(against) else ''} "
            f"| {f'[{ends[0]:+.3f}, {ends[1]:+.3f}]' if ends else ''} "
            f"| {reads([run['prompt'] for run in kept[variant].values()])} | {queries:,.0f} |"
        )
    first = [run["seed_accuracy"] for variant in shown for run in kept[variant].values()]
    return [*lines, "", f"The seed prompt has an accuracy of {np.mean(first):.3f}."]


def _shown(value: Mean, sign: str = "") -> str:
    return f"{value.value:{sign}.3f} [{value.low:{sign}.3f}, {value.high:{sign}.3f}]"

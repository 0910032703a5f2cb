"""What FedPIT's beta costs in utility and saves in leakage, and the usual baselines.

python -m simulations fedpit
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from simulations import kept_runs
from simulations.fedpit_federation import Federation, Measured
from simulations.intervals import mean

SETTINGS: dict[str, Any] = {
    "num-server-rounds": 2,
    "examples-per-client": 12,
    "num-candidates": 16,
    "num-selected": 12,
    "local-epochs": 5,
    "batch-size": 4,
    "learning-rate": 0.002,
    "max-instruction-tokens": 64,
    "max-response-tokens": 24,
    "test-size": 64,
}
"""Small enough for minutes on two cores."""

BETAS = (0.0, 0.3, 0.5, 0.7, 1.0)


@dataclass(frozen=True)
class Method:
    """One way to tune.

    Attributes
    ----------
    what : str
        For the table.
    num_clients : int
        Simulated clients.
    settings : dict[str, Any]
        What differs from `SETTINGS`.
    """

    what: str
    num_clients: int
    settings: dict[str, Any]


METHODS = {
    **{f"beta-{beta}": Method(f"FedPIT, beta {beta}", 3, {"beta": beta}) for beta in BETAS},
    "beta-1.0": Method("FedIT (beta 1.0)", 3, {"beta": 1.0}),
    "fedprox": Method("FedProx (beta 1.0, mu 0.1)", 3, {"beta": 1.0, "proximal-mu": 0.1}),
    "fedmit": Method("FedMIT (mixed training)", 3, {"training": "mixed"}),
    "central": Method(
        "centralised: one client with all data", 1, {"beta": 1.0, "examples-per-client": 36}
    ),
}


@dataclass(frozen=True)
class Outcome:
    """What one run reported.

    Attributes
    ----------
    rouge_l, accuracy : tuple[float, float]
        Of the held-out responses and classifications, before and after.
    memorisation : tuple[float, float]
        Rouge-L of the private responses, before and after.
    synthetic_rouge_l : float or None
        Of synthetic and closest private texts; None without synthetic data.
    bytes_per_round : int
        Adapters, both directions, all clients.
    selected : tuple[int, ...]
        Synthetic examples of each client in each round; empty also of runs from before these were
        counted.
    """

    rouge_l: tuple[float, float]
    accuracy: tuple[float, float]
    memorisation: tuple[float, float]
    synthetic_rouge_l: float | None
    bytes_per_round: int
    selected: tuple[int, ...] = ()


def run(methods: Sequence[str], seeds: Sequence[int], folder: Path) -> str:
    """Run what is missing, write ``fedpit.json``, ``.md`` and ``.png`` to ``folder``.

    Every finished run is kept in ``fedpit.json``, and none there is run again; so are settings
    other than today's an error, and not a mixture.

    Returns
    -------
    str
        The table, of all methods that have runs.

    Raises
    ------
    ValueError
        If ``fedpit.json`` holds runs of other settings.
    """
    file = folder / "fedpit.json"
    settings = {
        name: {**SETTINGS, **method.settings, "clients": method.num_clients}
        for name, method in METHODS.items()
    }
    clients_of = lru_cache(maxsize=1)(lambda seed: Federation({**SETTINGS, "seed": seed}))
    shown = kept_runs.complete(
        file,
        settings,
        methods,
        seeds,
        lambda own, seed: asdict(run_once(clients_of(seed), own)),
        lambda kept: table(_outcomes(kept)),
    )
    _plot(_outcomes(kept_runs.read(file, settings)), folder / "fedpit.png")
    return shown


def _outcomes(kept: kept_runs.Runs) -> dict[str, dict[int, Outcome]]:
    names = [field.name for field in fields(Outcome)]  # a run has its date and machine besides
    return {
        method: {
            seed: Outcome(**{name: run[name] for name in names if name in run})
            for seed, run in runs.items()
        }
        for method, runs in kept.items()
    }


def run_once(federation: Federation, settings: Mapping[str, Any]) -> Outcome:
    """Tune by one method; ``settings`` has the number of ``clients`` besides."""
    own = {key: value for key, value in settings.items() if key != "clients"}
    tuned = federation.tune(settings["clients"], own)
    first, last = tuned.before, tuned.after
    return Outcome(
        rouge_l=(first.utility.rouge_l.value, last.utility.rouge_l.value),
        accuracy=(_accuracy(first), _accuracy(last)),
        memorisation=(first.memorisation, last.memorisation),
        synthetic_rouge_l=tuned.synthetic_rouge_l,
        selected=tuned.selected,
        bytes_per_round=tuned.bytes_per_round,
    )


def _accuracy(measured: Measured) -> float:
    if measured.utility.accuracy is None:
        raise ValueError("none of the held-out instructions classifies")
    return measured.utility.accuracy.value


def table(outcomes: dict[str, dict[int, Outcome]]) -> str:
    """Return the table of all methods, with intervals over their seeds."""
    settings = " ".join(f"{key}={value}" for key, value in SETTINGS.items())
    lines = [
        "# FedPIT: utility and leakage",
        "",
        "`python -m simulations fedpit`: SmolLM2-135M-Instruct on drug reviews; the runs by seed "
        "and their date are in `fedpit.json`. "
        f"Settings: `{settings}`, otherwise the defaults. Means over seeds with 95 % intervals "
        "(t). Utility is of held-out instructions, whose responses are cut where an answer has to "
        "end, as the private ones are. Memorisation is the Rouge-L between the true "
        "responses of private examples and what the global model answers to their prompts; the "
        "untouched model's is in the first row. All columns but the last two are between 0 and 1. "
        "Below, the differences to FedIT within seeds.",
        "",
        "| method | seeds | held-out Rouge-L | held-out accuracy | memorisation | "
        "synthetic to closest private text, Rouge-L | synthetic examples of a client in a round | "
        "bytes per round |",
        "|---|---|---|---|---|---|---|---|",
    ]
    if all_runs := [o for runs in outcomes.values() for o in runs.values()]:
        before = [
            _interval([pair[0] for pair in pairs])
            for pairs in (
                [o.rouge_l for o in all_runs],
                [o.accuracy for o in all_runs],
                [o.memorisation for o in all_runs],
            )
        ]
        means = " | ".join(text.split(" ")[0] for text in before)
        lines.append(f"| untouched model | | {means} | | | |")
    for name, method in METHODS.items():
        if not (runs := list(outcomes.get(name, {}).values())):
            continue
        synthetic = [o.synthetic_rouge_l for o in runs if o.synthetic_rouge_l is not None]
        cells = [
            method.what,
            str(len(runs)),
            _interval([o.rouge_l[1] for o in runs]),
            _interval([o.accuracy[1] for o in runs]),
            _interval([o.memorisation[1] for o in runs]),
            _interval(synthetic) if synthetic else "-",
            _shown([number for o in runs for number in o.selected]),
            f"{np.mean([o.bytes_per_round for o in runs]):,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_differences(outcomes), ""])


def _differences(outcomes: dict[str, dict[int, Outcome]]) -> list[str]:
    """Return what each method has more than FedIT; a seed decides examples, so within seeds."""
    plain = outcomes.get("beta-1.0", {})
    lines = [
        "| minus FedIT | seeds | held-out Rouge-L | held-out accuracy | memorisation |",
        "|---|---|---|---|---|",
    ]
    for name, method in METHODS.items():
        if name == "beta-1.0":
            continue
        runs = outcomes.get(name, {})
        if not (seeds := sorted(runs.keys() & plain.keys())):
            continue
        values: tuple[Callable[[Outcome], float], ...] = (
            lambda o: o.rouge_l[1],
            lambda o: o.accuracy[1],
            lambda o: o.memorisation[1],
        )
        cells = [
            _interval([value(runs[seed]) - value(plain[seed]) for seed in seeds])
            for value in values
        ]
        lines.append(f"| {method.what} | {len(seeds)} | {' | '.join(cells)} |")
    return lines


def _shown(selected: Sequence[int]) -> str:
    if not selected:
        return "-"
    return f"{np.mean(selected):.1f}; none {selected.count(0)} of {len(selected)} times"


def _interval(values: Sequence[float]) -> str:
    found = mean(np.array(values))
    shown = f"{found.value:.3f}"
    return shown if found.low == found.high else f"{shown} [{found.low:.3f}, {found.high:.3f}]"


def _plot(outcomes: dict[str, dict[int, Outcome]], file: Path) -> None:
    from matplotlib.figure import Figure

    curves: dict[str, Callable[[Outcome], float]] = {
        "utility: held-out accuracy": lambda o: o.accuracy[1],
        "utility: held-out Rouge-L": lambda o: o.rouge_l[1],
        "memorisation: Rouge-L of private responses": lambda o: o.memorisation[1],
    }
    there = [beta for beta in BETAS if outcomes.get(f"beta-{beta}")]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for label, value in curves.items():
        found = [
            mean(np.array([value(o) for o in outcomes[f"beta-{beta}"].values()])) for beta in there
        ]
        means = [m.value for m in found]
        errors = [[m.value - m.low for m in found], [m.high - m.value for m in found]]
        axes.errorbar(there, means, yerr=errors, marker="o", capsize=3, label=label)
    axes.set_xlabel("beta: share of the adapter trained on private data")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=120)

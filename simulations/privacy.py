"""What uploads give away of private texts, and what each defence changes and costs.

python -m simulations privacy

The rounds are those of the app, with the same clients and the same server steps, in one process:
that keeps every upload, also those that no candidate was made of.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import ClientData, Example, Task
from feddtpt_flwr.experiment import load_data, load_task
from feddtpt_flwr.privacy.clients import OWN_ACCURACY_KEY
from simulations import kept_runs
from simulations.intervals import by_t
from simulations.leakage import Leakage, Upload, measure
from simulations.local_federation import Federation

VARIANTS: dict[str, dict[str, Any]] = {
    "none": {},
    "none, without feedback": {"feedback": False},
    "none, random tokens": {"proposer": "random"},
    "none, prompt generator": {"proposer": "prompt-generator"},
    "public-tokens": {"privacy": "public-tokens"},
    "synthetic": {"privacy": "synthetic"},
    "exponential": {"privacy": "exponential"},
}
"""What differs from `SETTINGS`: each proposer without a defence, and each defence."""

NUM_CLIENTS = 4
SETTINGS: dict[str, Any] = {
    "num-server-rounds": 2,
    "k-shot": 8,
    "public-per-class": 4,
    "queries-per-round": 200,
    "test-size": 200,
}
CANARIES = (
    ("Zorvath", "Quillemar", "7482915", "brindlewick"),
    ("Ykselda", "Fjornheim", "3916047", "crumhorn"),
    ("Obuwasi", "Txakoli", "8250364", "gallimaufry"),
    ("Wrzesnia", "Ngaruawahia", "6173920", "snollygoster"),
)
"""For each client: two names, a number and a rare word, each at the end of every fourth text."""


@dataclass(frozen=True)
class Outcome:
    """What one run gave; accuracies in [0, 1].

    Attributes
    ----------
    leakage : Leakage
        Of all uploads.
    seed_accuracy, accuracy : float
        Of the seed prompt and the learned one on the held-out examples.
    own_accuracy : float or None
        Mean over the clients of their own prompt's accuracy on their validation examples, in the
        last round; None where clients have none.
    queries : int
        Of all clients.
    seconds : float
        Without loading the models.
    prompt : str
        The learned one.
    """

    leakage: Leakage
    seed_accuracy: float
    accuracy: float
    own_accuracy: float | None
    queries: int
    seconds: float
    prompt: str


def plant(data: ClientData, task: Task, canaries: Sequence[str]) -> ClientData:
    """Return the examples with one of the canaries at the end of each text."""
    end = task.render(dict.fromkeys(task.text_columns, "\0")).split("\0")[-1]

    def planted(examples: Sequence[Example]) -> tuple[Example, ...]:
        return tuple(
            replace(e, input=f"{e.input.removesuffix(end)} {canaries[i % len(canaries)]}{end}")
            for i, e in enumerate(examples)
        )

    return ClientData(train=planted(data.train), validation=planted(data.validation))


def run_once(settings: Mapping[str, Any], seed: int) -> Outcome:
    """Run a federation with canaries in its private texts."""
    config = RunConfig.from_run_config({**settings, "seed": seed})
    task = load_task(config)
    data = load_data(config, NUM_CLIENTS)
    clients = tuple(
        plant(client, task, canaries)
        for client, canaries in zip(data.clients, CANARIES, strict=True)
    )
    federation = Federation(config, replace(data, clients=clients))
    first = federation.prompt
    outcome = federation.run()
    own = [float(m[OWN_ACCURACY_KEY]) for m in federation.metrics if OWN_ACCURACY_KEY in m]
    uploads = [Upload(u.client, u.sent, f"{u.prompt} {u.tried}") for u in federation.uploads]
    texts = {
        str(i): [e.input for e in (*client.train, *client.validation)]
        for i, client in enumerate(clients)
    }
    public = [*(e.input for e in data.public), task.compose("", ""), *task.answers, first]
    canaries = {str(i): words for i, words in enumerate(CANARIES)}
    return Outcome(
        leakage=measure(uploads, texts, public, canaries),
        seed_accuracy=outcome.seed_accuracy,
        accuracy=outcome.accuracy,
        own_accuracy=float(np.mean(own)) if own else None,
        queries=outcome.queries,
        seconds=outcome.seconds,
        prompt=outcome.prompt,
    )


def run(
    seeds: Sequence[int],
    folder: Path,
    variants: Sequence[str] = tuple(VARIANTS),
    common: Mapping[str, Any] = SETTINGS,
) -> str:
    """Run every variant under every seed; write ``privacy.json`` and ``privacy.md`` to ``folder``.

    What was run before with the same settings is read from ``privacy.json`` and not run again.

    Returns
    -------
    str
        The table, over all that was run.

    Raises
    ------
    ValueError
        If ``privacy.json`` holds runs of other settings.
    """
    settings = {name: {**common, **differs} for name, differs in VARIANTS.items()}
    return kept_runs.complete(
        folder / "privacy.json",
        settings,
        variants,
        seeds,
        lambda *of: asdict(run_once(*of)),
        _table,
    )


def _table(results: kept_runs.Runs) -> str:
    lines = [
        "# What uploads give away",
        "",
        f"`python -m simulations privacy`: {NUM_CLIENTS} clients on rotten_tomatoes, SmolLM2-135M-"
        "Instruct, with canaries in all private texts. Settings, runs by seed and their date are "
        "in `privacy.json`. The first rows have no defence, and differ in what proposes. A word is "
        "new if the prompt that was sent did not have it; by chance it is also in another client's "
        "texts. Leak is the difference of the two shares; words of one client only, and parts of "
        "them, are counted the same way. Intervals are over seeds (95 %, t).",
        "",
        "| privacy | seeds | uploads | new words | in own texts | in another's | leak | 95 % "
        "| only in own / another's | part of such a word, own / another's | canaries "
        "| held-out accuracy | 95 % | minus none, within seeds | 95 % "
        "| own prompt, on validation | queries |",
        "|" + "---|" * 17,
    ]
    for variant in VARIANTS:
        if not (runs := results.get(variant)):
            continue
        leakages = [Leakage(**run["leakage"]) for run in runs.values()]
        total = sum(leakages, Leakage())
        leaks = np.array([leak for each in leakages if (leak := each.leak()) is not None])
        accuracy = np.array([run["accuracy"] for run in runs.values()])
        own = [run["own_accuracy"] for run in runs.values() if run["own_accuracy"] is not None]
        new = total.new_words
        lines.append(
            f"| {variant} | {len(runs)} | {total.uploads} | {new} | {_share(total.in_own, new)} "
            f"| {_share(total.in_others, new)} | {_share(total.in_own - total.in_others, new)} "
            f"| {_interval(leaks)} | {total.own_only:.0f} / {total.others_only:.1f} "
            f"| {total.own_parts:.0f} / {total.others_parts:.1f} | {total.canaries} "
            f"| {accuracy.mean():.3f} | {_interval(accuracy)} "
            f"| {'|' if variant == 'none' else _difference(runs, results.get('none', {}))} "
            f"| {f'{np.mean(own):.3f}' if own else ''} "
            f"| {np.mean([run['queries'] for run in runs.values()]):,.0f} |"
        )
    seed_prompt = [run["seed_accuracy"] for runs in results.values() for run in runs.values()]
    lines += ["", f"The seed prompt has an accuracy of {np.mean(seed_prompt):.3f}.", ""]
    return "\n".join(lines)


def _difference(
    runs: Mapping[int, Mapping[str, Any]], plain: Mapping[int, Mapping[str, Any]]
) -> str:
    """Return two cells: the mean difference in accuracy of the same seeds, and its interval."""
    seeds = runs.keys() & plain.keys()
    if not seeds:
        return "|"
    values = np.array([runs[seed]["accuracy"] - plain[seed]["accuracy"] for seed in seeds])
    return f"{values.mean():+.3f} | {_interval(values)}"


def _share(count: float, total: int) -> str:
    return f"{count / total:.3f}" if total else ""


def _interval(values: NDArray[np.float64]) -> str:
    ends = by_t(values)
    return "" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"

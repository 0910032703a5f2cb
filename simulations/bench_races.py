"""What a search and a comparison are worth, and how often they err, on recorded answers.

python -m simulations bench races --json -
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from feddtpt_flwr.config import RunConfig
from simulations.replay import NUM_CLIENTS, PUBLIC, SEED, TRAIN, Plan, Replay
from simulations.stamp import as_text, stamp

SEARCHES: Mapping[str, Mapping[str, Any]] = {
    "as it is": {},
    "races of 1, each on all examples": {"width": 1, "first_batch": TRAIN + PUBLIC},
    "races of 8": {"width": 8},
    "races of 12": {"width": 12},
    "first batch of 4": {"first_batch": 4},
    "first batch of 16": {"first_batch": 16},
    "any gain is enough": {"confidence": 0.5},
    "confidence 0.9": {"confidence": 0.9},
    "language counts for nothing": {"fluency": 0.0},
}
"""What differs from the search's defaults."""

COMPARISONS = (0, 64, 128, 256, 512, 640)
"""On how many examples of all clients together each candidate is tried."""

PLANS = (
    Plan(250, 48, 256),
    Plan(250, 24, 256),
    Plan(100, 48, 100),
    Plan(100, 24, 100),
    Plan(100, 12, 100),
    Plan(50, 24, 100),
    Plan(50, 12, 100),
)
"""Rounds of more and of fewer queries."""


def run(num_examples: int, num_changes: int, draws: int) -> dict[str, Any]:
    """Record a seed prompt, a better and a still better one; judge all rules by each.

    Parameters
    ----------
    num_examples, num_changes : int
        Examples, and changes of each prompt; every pair of them is one query. Of the second and
        third prompt they are other examples than of the first.
    draws : int
        Clients, and a tenth as many federations, that are drawn from them.

    Returns
    -------
    dict[str, Any]
        For each prompt its ``accuracy``, that of its changes, and what every rule is worth.
    """
    config = RunConfig.from_run_config({})
    replay = Replay(num_examples, config)
    limit = config.queries_per_round
    rounds: dict[str, dict[object, Plan]] = {
        "comparisons": {n: Plan(limit, replay.batch, n) for n in COMPARISONS},
        "plans": {f"{p.queries}, {p.examples}, {p.compared}": p for p in PLANS},
    }
    parents = []
    first = replay.record(replay.seed_prompt, num_changes, replay.first)
    best = np.argsort(-first.correct[1:].mean(1))
    better = [first.edits[best[i]].apply(first.parent) for i in (num_changes // 8, 0)]
    for recording in (
        first,
        *(replay.record(tokens, num_changes, replay.second) for tokens in better),
    ):
        accuracy = recording.correct.mean(1)
        parents.append(
            {
                "prompt": replay.text(recording.parent),
                "accuracy": round(float(accuracy[0]), 3),
                "changes_mean": round(float(accuracy[1:].mean()), 3),
                "changes_sd": round(float(accuracy[1:].std()), 3),
                "changes_better": round(float((accuracy[1:] > accuracy[0]).mean()), 3),
                "searches": {
                    name: replay.one_client(recording, draws, differs)
                    for name, differs in SEARCHES.items()
                },
                **{
                    what: {
                        str(name): replay.federation(recording, draws // 10, plan)
                        for name, plan in plans.items()
                    }
                    for what, plans in rounds.items()
                },
            }
        )
    return {
        **stamp(),
        "seed": SEED,
        "examples": num_examples,
        "changes": num_changes,
        "draws": draws,
        "queries": limit,
        "batch": replay.batch,
        "prompts": parents,
    }


def markdown(result: Mapping[str, Any]) -> str:
    """Return the tables."""
    prompts = result["prompts"]
    shared = 3 * result["examples"] // 5 - PUBLIC
    lines = [
        "# What a search and a comparison are worth, on recorded answers",
        "",
        f"`python -m simulations bench races`, {as_text(result)}. "
        f"SmolLM2-135M-Instruct answered {result['changes']} changes of each of three prompts on "
        f"{result['examples']} examples of rotten_tomatoes (seed {result['seed']}; some of "
        "them are held-out examples of other tables). From these answers "
        f"{result['draws']} clients were drawn, who judge by {result['batch']} examples and ask "
        f"{result['queries']} queries, as by default; gains are on the examples that a client had "
        "not seen. A search ends with its first accepted change here. The second and third prompt "
        "are changes of the first that did well with it, and have other examples from then on: "
        "what was chosen by an example is not judged by it.",
        "",
        "| prompt | accuracy | its changes, mean and sd | better ones |",
        "|---|---|---|---|",
        *(
            f"| {p['prompt']} | {p['accuracy']:.3f} | {p['changes_mean']:.3f}, "
            f"{p['changes_sd']:.3f} | {p['changes_better']:.0%} |"
            for p in prompts
        ),
        "",
        "## One client: gain, how often it changed the prompt, how often for the worse",
        "",
        *_table(prompts, "searches", _search_cell),
        "",
        f"## {NUM_CLIENTS} clients: gain and queries, by the examples of all together",
        "",
        "With 0 the upload is taken that gained most by its own client's count. In each draw the "
        f"private examples of all clients are of the same {shared}: of more compared ones most are "
        "repeated.",
        "",
        *_table(prompts, "comparisons", _round_cell),
        "",
        f"## {NUM_CLIENTS} clients: gain and queries, by the size of a round",
        "",
        "Queries of a search, by how many examples it judges, and on how many of all clients "
        "together each candidate is tried.",
        "",
        *_table(prompts, "plans", _round_cell),
    ]
    return "\n".join([*lines, ""])


def _search_cell(found: Mapping[str, float]) -> str:
    return f"{found['gain']:+.3f}, {found['changed']:.0%}, {found['worse']:.0%}"


def _round_cell(found: Mapping[str, float]) -> str:
    return f"{found['gain']:+.3f}, {found['queries']:,}"


def _table(
    prompts: Sequence[Mapping[str, Any]], what: str, cell: Callable[[Mapping[str, float]], str]
) -> list[str]:
    heads = " | ".join(f"from {p['accuracy']:.3f}" for p in prompts)
    lines = [f"| | {heads} |", "|---" * (len(prompts) + 1) + "|"]
    for name in prompts[0][what]:
        cells = " | ".join(cell(p[what][name]) for p in prompts)
        lines.append(f"| {name} | {cells} |")
    return lines

"""What feedback could be worth at most: searches that are told which proposals to try.

python -m simulations bench feedback --json -

Some hundred prompts are asked about once, changes of two good ones. Then clients search among them,
from a bad one: the real search, whose proposals are these prompts. Which are proposed first is
decided by nobody, by what the client has tried so far, or by the truth, which no client knows: of
as many prompts to choose from, no feedback can choose better ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import Example
from feddtpt_flwr.feedback import Feedback
from simulations.intervals import mean
from simulations.replay import SEED, Recording, Replay
from simulations.stamp import as_text, stamp
from strategies.candidates import Tokens
from strategies.edits import Edit

TASKS = ("rotten_tomatoes", "tweet_sentiment", "bbc_news")

BUDGETS = (250, 1000)
"""Queries of a search: those of a round by default, and those of `run search`."""

DRAWN = 3
"""So many times as many prompts are looked at as are proposed, the best of them."""

USABLE = 2
"""One in so many is proposed: of a language model's, many read too badly to be tried."""

SIGNAL = 0.2
NOISE = 0.5
"""Assumed standard deviations: of the accuracy of prompts at a distance of one, and of what a
change does to one answer. Not tuned."""

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Prompts:
    """Prompts, and what is known of them.

    Attributes
    ----------
    tokens : tuple[Tokens, ...]
        The prompts.
    correct : NDArray[np.bool_]
        Which examples each answers correctly, shape ``(prompts, examples)``.
    meanings : NDArray[np.float64]
        The mean of their tokens' embeddings, unit rows ``(prompts, d)``.
    """

    tokens: tuple[Tokens, ...]
    correct: NDArray[np.bool_]
    meanings: NDArray[np.float64]

    @classmethod
    def of(cls, recordings: Sequence[Recording], embeddings: NDArray[np.float32]) -> "Prompts":
        """Return all prompts of recordings about the same examples."""
        correct = {p: r.correct[row] for r in recordings for p, row in r.rows.items()}
        meanings = np.array([embeddings[list(p)].mean(0, dtype=np.float64) for p in correct])
        meanings /= np.linalg.norm(meanings, axis=1, keepdims=True)
        return cls(tuple(correct), np.array(list(correct.values())), meanings)

    def seen_from(self, start: int, examples: tuple[Example, ...]) -> Recording:
        """Return the answers about these examples, with one prompt as that which others change."""
        order = [start, *(i for i in range(len(self.tokens)) if i != start)]
        first, *others = (self.tokens[i] for i in order)
        edits = tuple(Edit(0, len(first), tokens) for tokens in others)
        return Recording(first, examples, edits, self.correct[order])


Judge = Callable[[Prompts, Sequence[int], Tokens, Feedback], Scores]
"""Says of some of the prompts, given the one to change and the feedback, how good they look."""


def nobody(prompts: Prompts, which: Sequence[int], tokens: Tokens, feedback: Feedback) -> Scores:
    """Return the same for all."""
    return np.zeros(len(which))


def experience(
    prompts: Prompts, which: Sequence[int], tokens: Tokens, feedback: Feedback
) -> Scores:
    """Return what the trials so far let expect: Bayesian regression on how meaning changes."""
    if not (trials := feedback.trials):
        return np.zeros(len(which))
    row = {prompt: i for i, prompt in enumerate(prompts.tokens)}
    meaning = prompts.meanings
    tried = np.array([meaning[row[t.after]] - meaning[row[t.before]] for t in trials])
    now = meaning[list(which)] - meaning[row[tokens]]
    gains = np.array([trial.gain for trial in trials])
    noise = np.diag([NOISE**2 / trial.num_examples for trial in trials])
    weights = np.linalg.solve(SIGNAL**2 * tried @ tried.T + noise, gains)
    expected: Scores = SIGNAL**2 * now @ tried.T @ weights
    return expected


def truth(prompts: Prompts, which: Sequence[int], tokens: Tokens, feedback: Feedback) -> Scores:
    """Return their accuracy on all examples."""
    accuracy: Scores = prompts.correct[list(which)].mean(1)
    return accuracy


JUDGES: Mapping[str, Judge] = {
    "in random order": nobody,
    "the best third by the trials so far": experience,
    "the best third by the truth": truth,
}


class Steered:
    """Proposes those of the prompts that a judge finds best among some drawn at random."""

    def __init__(self, prompts: Prompts, judge: Judge) -> None:
        self._prompts = prompts
        self._judge = judge

    def propose(
        self, tokens: Tokens, feedback: Feedback, rng: np.random.Generator, count: int
    ) -> list[Edit]:
        """Return edits that lead to prompts not tried before, the most promising first."""
        known = {tokens}.union(*({trial.before, trial.after} for trial in feedback.trials))
        new = [i for i, prompt in enumerate(self._prompts.tokens) if prompt not in known]
        usable = max(1, count // USABLE)
        drawn = rng.permutation(new)[: DRAWN * usable].tolist()
        scores = self._judge(self._prompts, drawn, tokens, feedback)
        best = [drawn[i] for i in np.argsort(-scores, kind="stable")[:usable]]
        return [Edit(0, len(tokens), self._prompts.tokens[i]) for i in best]


def run(num_examples: int, num_changes: int, draws: int) -> dict[str, Any]:
    """Record prompts of every task, and let clients search among them.

    Parameters
    ----------
    num_examples, num_changes : int
        Examples, and changes of each prompt; every pair of them is one query.
    draws : int
        Clients that are drawn for each task, budget and judge.

    Returns
    -------
    dict[str, Any]
        For each task and budget what the searches end with, by the examples that they did not see.
    """
    return {
        **stamp(),
        "seed": SEED,
        "examples": num_examples,
        "changes": num_changes,
        "draws": draws,
        "tasks": {name: _of_task(name, num_examples, num_changes, draws) for name in TASKS},
    }


def _of_task(name: str, num_examples: int, num_changes: int, draws: int) -> dict[str, Any]:
    replay = Replay(num_examples, RunConfig.from_run_config({"task": name}))
    first = replay.record(replay.seed_prompt, num_changes, replay.first)
    best = np.argsort(-first.correct[1:].mean(1), kind="stable")
    parents = [first.edits[best[i]].apply(first.parent) for i in (num_changes // 8, 0)]
    recordings = [replay.record(tokens, num_changes, replay.second) for tokens in parents]
    prompts = Prompts.of(recordings, replay.token_embeddings)
    return {
        "batch": replay.batch,
        "prompts": [replay.text(tokens) for tokens in parents],
        "best": round(float(prompts.correct.mean(1).max()), 3),
        "searches": {
            str(queries): _searches(replay, prompts, draws, queries) for queries in BUDGETS
        },
    }


def _searches(
    replay: Replay, prompts: Prompts, draws: int, queries: int
) -> dict[str, dict[str, Any]]:
    """Return for each judge the accuracy of what was found, and of the best that was tried."""
    results: dict[str, dict[str, Any]] = {}
    plain = np.zeros(draws)
    for name, judge in JUDGES.items():
        found, tried = np.zeros(draws), np.zeros(draws)
        for draw in range(draws):
            found[draw], tried[draw] = _search(replay, prompts, judge, queries, draw)
        if judge is nobody:
            plain = found
        more = mean(found - plain)
        results[name] = {
            "accuracy": round(float(found.mean()), 4),
            "best_tried": round(float(tried.mean()), 4),
            "more": [round(end, 4) for end in (more.value, more.low, more.high)],
        }
    return results


def _search(
    replay: Replay, prompts: Prompts, judge: Judge, queries: int, draw: int
) -> tuple[float, float]:
    """Return how good the prompt is that one client finds, and the best that it has tried.

    By the examples that it does not see. It starts from one of the worse third of all prompts.
    """
    rng = np.random.default_rng([SEED, draw])
    own, others = np.split(rng.permutation(prompts.correct.shape[1]), [replay.batch])
    worse = np.argsort(prompts.correct.mean(1), kind="stable")[: len(prompts.tokens) // 3]
    among = prompts.seen_from(int(rng.choice(worse)), replay.second)
    feedback = Feedback()
    result, _ = replay.search(among, own, rng, {}, queries, Steered(prompts, judge), feedback)
    accuracy, rows = among.correct[:, others].mean(1), among.rows
    upload = result.hunch.tokens if result.hunch else result.tokens
    tried = [rows[trial.after] for trial in feedback.trials]
    return float(accuracy[rows[upload]]), float(accuracy[[0, *tried]].max())


def markdown(result: Mapping[str, Any]) -> str:
    """Return the tables."""
    lines = [
        "# What feedback could be worth at most",
        "",
        f"`python -m simulations bench feedback`, {as_text(result)}. Of each task "
        f"SmolLM2-135M-Instruct answered {result['changes']} changes of each of two prompts on "
        f"{result['examples']} examples (seed {result['seed']}; some of them are held-out examples "
        f"of other tables). {result['draws']} clients search among these prompts, each from one "
        "of the worse third and with examples of its own; accuracies are on the examples that a "
        "client has not seen. It tries prompts in random order, or of three times as many the best "
        "third: by a Bayesian regression of its trials' gains on how the mean of a prompt's token "
        "embeddings changes, or by the truth, the accuracy on all examples, also those that it is "
        "judged by in the end. Differences to random order are within clients, with 95 % intervals "
        "by Student's t; all clients share the prompts and examples, and which is best of those "
        "tried is so in part by chance.",
    ]
    for name, task in result["tasks"].items():
        lines += [
            "",
            f"## {name}",
            "",
            f"A client judges by {task['batch']} examples. The best of all prompts has "
            f"{task['best']:.3f}.",
            "",
            "| queries | proposals | accuracy | more than in random order | best that was tried |",
            "|---|---|---|---|---|",
        ]
        for queries, judges in task["searches"].items():
            for judge, found in judges.items():
                value, low, high = found["more"]
                more = "" if value == low == high else f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
                lines.append(
                    f"| {queries} | {judge} | {found['accuracy']:.3f} | {more} | "
                    f"{found['best_tried']:.3f} |"
                )
    return "\n".join([*lines, ""])

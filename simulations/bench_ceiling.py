"""How good prompts get where examples and queries are no matter: what a search can hope for.

python -m simulations bench ceiling --json -
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from feddtpt_flwr import models
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import Example, Task, get_source, load_federated_data
from feddtpt_flwr.experiment import load_task, seed_tokens
from feddtpt_flwr.feedback import Feedback
from feddtpt_flwr.language_model.weights import resolve_device
from feddtpt_flwr.proposer import MaskedLMProposer
from simulations.stamp import as_text, stamp
from strategies.candidates import Tokens

SEED = 301
"""Of no other table here; some of its sentences are among those of other seeds."""

BEAM = 6
"""Prompts that every round's changes start from: the best of all so far."""

TOGETHER = 50
"""Changes that are proposed at a time."""

FINALISTS = 40
"""Changes of a round that are tried on all examples: the best on the first of them."""


class Climb:
    """A beam search by the app's own moves, with one pool of many labelled examples.

    Parameters
    ----------
    task_name : str
        One of the tasks that are embedded.
    num_train, num_first, num_test : int
        Examples that decide, how many of them every change is tried on, and those that only tell.
    device : str
        What computes.

    Attributes
    ----------
    seed_prompt : Tokens
        Where it begins.
    asked : int
        Questions about examples that decide, so far.
    """

    def __init__(
        self, task_name: str, num_train: int, num_first: int, num_test: int, device: str
    ) -> None:
        settings = {"task": task_name, "device": device, "seed": SEED}
        resolve_device(device)
        self._config = RunConfig.from_run_config(settings)
        self._task = load_task(self._config)
        masked_lm = models.masked_lm(self._config, self._task)
        self._proposer = MaskedLMProposer(masked_lm, max_tokens=self._config.max_prompt_tokens)
        self._vocabulary = masked_lm.vocabulary
        self._language_model = models.language_model(self._config)
        self.seed_prompt = seed_tokens(self._config, self._task, self._vocabulary)
        self._train, self._test = examples(self._task, num_train, num_test, SEED)
        self._first = self._train[:num_first]
        self._rng = np.random.default_rng(SEED)
        self._known: dict[Tokens, float] = {}
        self.asked = 0
        self._measure([self.seed_prompt])

    @property
    def num_deciding(self) -> int:
        """How many examples decide: as many of each label."""
        return len(self._train)

    def best(self) -> list[Tokens]:
        """Return the best prompts so far, by all examples that decide."""
        return sorted(self._known, key=lambda prompt: -self._known[prompt])[:BEAM]

    def rise(self, changes: int) -> None:
        """Try so many changes of the best prompts, and measure those that do best at first."""
        parents = self.best()
        each = changes // len(parents)
        new = list(dict.fromkeys(p for parent in parents for p in self._changed(parent, each)))
        at_first = {prompt: self._accuracy(prompt, self._first) for prompt in new}
        self.asked += len(new) * len(self._first)
        self._measure(sorted(new, key=lambda prompt: -at_first[prompt])[:FINALISTS])

    def report(self, prompt: Tokens) -> dict[str, Any]:
        """Return the text of a measured prompt, and its accuracy on either kind of examples."""
        return {
            "prompt": self._vocabulary.decode(prompt),
            "deciding": round(self._known[prompt], 4),
            "held_out": round(self._accuracy(prompt, self._test), 4),
        }

    def _measure(self, prompts: Sequence[Tokens]) -> None:
        self._known |= {prompt: self._accuracy(prompt, self._train) for prompt in prompts}
        self.asked += len(prompts) * len(self._train)

    def _changed(self, parent: Tokens, number: int) -> list[Tokens]:
        """Return new prompts from so many changes of ``parent``."""
        edits = [
            edit
            for start in range(0, number, TOGETHER)
            for edit in self._proposer.propose(
                parent, Feedback(), self._rng, min(TOGETHER, number - start)
            )
        ]
        prompts = (edit.apply(parent) for edit in edits)
        longest = self._config.max_prompt_tokens
        return [p for p in prompts if 1 <= len(p) <= longest and p not in self._known]

    def _accuracy(self, prompt: Tokens, examples: Sequence[Example]) -> float:
        text = self._vocabulary.decode(prompt)
        queries = [self._task.compose(text, example.input) for example in examples]
        answers = self._language_model.answer(queries, self._task.answers)
        right = (self._task.answers[e.label] == a for e, a in zip(examples, answers, strict=True))
        return sum(right) / len(examples)


def run(
    task_name: str, num_train: int, num_test: int, changes: int, rounds: int, device: str
) -> dict[str, Any]:
    """Climb, and tell after each round what was asked and what the best prompt is worth.

    Raises
    ------
    DeviceError
        If this machine has no such device.
    DataError
        If there is no such task, or not so many examples of it.
    """
    climb = Climb(task_name, num_train, min(150, num_train), num_test, device)
    steps = [{"asked": climb.asked, **climb.report(climb.seed_prompt)}]
    for _ in range(rounds):
        climb.rise(changes)
        steps.append({"asked": climb.asked, **climb.report(climb.best()[0])})
    return {
        **stamp(),
        "task": task_name,
        "seed": SEED,
        "deciding": climb.num_deciding,
        "held_out": num_test,
        "changes": changes,
        "device": device,
        "steps": steps,
        "last_beam": [climb.report(prompt) for prompt in climb.best()],
    }


def markdown(result: Mapping[str, Any]) -> str:
    """Return the table."""
    return "\n".join(
        [
            f"# What prompts can reach: {result['task']}",
            "",
            f"`python -m simulations bench ceiling`, {as_text(result)}, seed {result['seed']}. A "
            f"beam search with the app's own moves and SmolLM2-135M-Instruct: {result['changes']} "
            f"changes a round, judged by {result['deciding']} labelled examples in one place; of "
            f"the prompt that is best by these the accuracy on {result['held_out']} others, which "
            "some searches of other tables have seen.",
            "",
            "| queries | on the deciding ones | held out | the best prompt |",
            "|---|---|---|---|",
            *(
                f"| {step['asked']:,} | {step['deciding']:.3f} | {step['held_out']:.3f} | "
                f"{step['prompt']} |"
                for step in result["steps"]
            ),
            "",
            f"The {len(result['last_beam'])} best prompts of the last round have "
            f"{min(p['held_out'] for p in result['last_beam']):.3f} to "
            f"{max(p['held_out'] for p in result['last_beam']):.3f} held out.",
            "",
        ]
    )


def examples(
    task: Task, num_train: int, num_test: int, seed: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Return examples that decide, as many of each label, and others."""
    data = load_federated_data(
        task,
        get_source(task.name),
        num_clients=1,
        k_shot=num_train // len(task.answers),
        public_per_class=0,
        test_size=num_test,
        partition="iid",
        dirichlet_alpha=1.0,
        seed=seed,
    )
    return data.clients[0].train, data.test

"""An evolutionary search of prompts (EvoPrompt, arXiv 2309.08532, its genetic algorithm)."""

from collections.abc import Callable, Sequence

import numpy as np

from feddtpt_flwr.budget import BudgetExhaustedError
from feddtpt_flwr.data import Example
from feddtpt_flwr.evaluation import Evaluator
from feddtpt_flwr.evidence import Measured
from feddtpt_flwr.feedback import Feedback
from feddtpt_flwr.language_model import ModelError
from feddtpt_flwr.proposer import Proposer
from feddtpt_flwr.search import MAX_ATTEMPTS
from feddtpt_flwr.search_result import SearchResult
from feddtpt_flwr.vocabulary import Vocabulary
from strategies.candidates import Tokens

POPULATION = 10
"""Prompts that live at a time, as in the paper; fewer where they would eat the budget."""

INITIAL_SHARE = 0.25
"""Most of the budget that the first generation may cost."""


class EvolutionSearch:
    """Roulette wheel, crossover, mutation, and the best of parents and children live on.

    In EvoPrompt a large language model crosses and mutates the prompts. Here a black box answers
    with an answer word only, so crossing joins the beginning of one prompt to the end of another,
    and the masked language model mutates: with ``reword = true`` it puts every other prompt in
    other words as a whole, as EvoPrompt's model does, and changes one place of the others.

    Parameters
    ----------
    evaluator : Evaluator
        Asks the black box; its budget ends the search.
    proposer : Proposer
        Mutates; it is given no feedback.
    vocabulary : Vocabulary
        Turns tokens into text and words.
    examples : Sequence[Example]
        Every prompt is measured on all of them.
    rng : numpy.random.Generator
        Source of all randomness.
    max_tokens : int
        Longest prompt, in tokens.
    admissible : Callable[[Sequence[Tokens]], Sequence[bool]]
        Prompts for which it says false are not tried.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        proposer: Proposer,
        vocabulary: Vocabulary,
        examples: Sequence[Example],
        rng: np.random.Generator,
        *,
        max_tokens: int,
        admissible: Callable[[Sequence[Tokens]], Sequence[bool]],
    ) -> None:
        self._evaluator = evaluator
        self._proposer = proposer
        self._vocabulary = vocabulary
        self._examples = examples
        self._rng = rng
        self._max_tokens = max_tokens
        self._admissible = admissible

    def run(self, start: Tokens, feedback: Feedback) -> SearchResult:
        """Search from ``start`` until the budget is used up; ``feedback`` stays as it is.

        The result is never worse than ``start`` on the examples.

        Raises
        ------
        ModelError
            If the black box fails before ``start`` is measured.
        """
        try:
            (first,) = self._measure([start])
        except BudgetExhaustedError:
            return SearchResult(start, 0.0, 0.0, (), 0, measured=False)
        size = self._population_size()
        population, tried, failure = [first], {start}, None
        try:
            # As this app's search, it stops when every answer is right.
            while not population[0].correct.all() and (
                children := self._breed(population, tried, size)
            ):
                tried |= set(children)
                population += self._measure(children)
                # The sort is stable, so that of equals the older one lives on.
                population = sorted(population, key=lambda p: -p.accuracy)[:size]
        except ModelError as error:
            failure = error
        except BudgetExhaustedError:
            pass  # answers cost more than those before them
        best = population[0]
        return SearchResult(best.tokens, best.accuracy, first.accuracy, (), len(tried) - 1, failure)

    def _population_size(self) -> int:
        affordable = INITIAL_SHARE * self._evaluator.budget.left / len(self._examples)
        return max(2, min(POPULATION, int(affordable)))

    def _breed(self, population: Sequence[Measured], tried: set[Tokens], size: int) -> list[Tokens]:
        """Return new admissible prompts: as many as live, or as can be paid for."""
        children: dict[Tokens, None] = {}
        for _ in range(MAX_ATTEMPTS * size):
            # Proposing takes time as well.
            wanted = min(size, self._evaluator.budget.left // len(self._examples))
            if len(children) >= wanted:
                break
            child = self._child(population)
            new = child not in tried and child not in children
            if new and 1 <= len(child) <= self._max_tokens and all(self._admissible([child])):
                children[child] = None
        return list(children)[:wanted]

    def _child(self, population: Sequence[Measured]) -> Tokens:
        mother, father = self._select(population), self._select(population)
        crossed = self._cross(mother, father)
        edits = self._proposer.propose(crossed, Feedback(), self._rng, 1)
        # Where only public tokens may be put in, none may fit.
        return edits[0].apply(crossed) if edits else crossed

    def _select(self, population: Sequence[Measured]) -> Tokens:
        """Draw a parent, with chances in proportion to accuracy."""
        fitness = np.array([p.accuracy for p in population]) + 1e-9
        return population[int(self._rng.choice(len(fitness), p=fitness / fitness.sum()))].tokens

    def _cross(self, mother: Tokens, father: Tokens) -> Tokens:
        """Join the beginning of one to the end of the other, cut at the same share of words."""
        share = self._rng.random()
        ends = []
        for tokens in (mother, father):
            words = self._vocabulary.words(tokens)
            ends.append(
                [start for start, _ in [*words, (len(tokens), 0)]][round(share * len(words))]
            )
        crossed = mother[: ends[0]] + father[ends[1] :]
        return crossed[: self._max_tokens] or mother

    def _measure(self, prompts: Sequence[Tokens]) -> list[Measured]:
        texts = [self._vocabulary.decode(tokens) for tokens in prompts]
        rows = self._evaluator.correct_all(texts, self._examples)
        return [Measured(tokens, row) for tokens, row in zip(prompts, rows, strict=True)]

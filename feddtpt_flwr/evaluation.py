"""The single way to the black box: counted, cached, never over budget."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from feddtpt_flwr.data import Example, Task
from feddtpt_flwr.language_model import LanguageModel


class BudgetExhaustedError(RuntimeError):
    """The next answers would cost more queries than are left."""


@dataclass
class QueryBudget:
    """A number of LLM queries that is never exceeded.

    Parameters
    ----------
    limit : int
        Most queries, at least 0.
    used : int
        Queries asked so far.
    """

    limit: int
    used: int = 0

    @property
    def left(self) -> int:
        """Queries that may still be asked."""
        return self.limit - self.used

    def spend(self, queries: int) -> None:
        """Book ``queries``, or raise `BudgetExhaustedError` and book nothing."""
        if self.used + queries > self.limit:
            raise BudgetExhaustedError(f"{queries} queries wanted, {self.limit - self.used} left")
        self.used += queries


class AnswerCache:
    """Answers by question; the oldest are forgotten.

    Only a hash of the question is kept, so that a stored cache holds no private text.

    Parameters
    ----------
    capacity : int
        Most answers kept, at least 1.
    """

    def __init__(self, capacity: int = 4096) -> None:
        self._capacity = capacity
        self._answers: dict[str, str] = {}

    def __len__(self) -> int:
        """Return the number of answers kept."""
        return len(self._answers)

    def get(self, question: str) -> str | None:
        """Return the answer to ``question``, or None."""
        return self._answers.get(_digest(question))

    def update(self, answers: Iterable[tuple[str, str]]) -> None:
        """Keep ``(question, answer)`` pairs."""
        self._answers |= {_digest(question): answer for question, answer in answers}
        for old in list(self._answers)[: max(0, len(self) - self._capacity)]:
            del self._answers[old]

    def to_json(self) -> str:
        """Return the hashes and answers as JSON text."""
        return json.dumps(self._answers)

    @classmethod
    def from_json(cls, text: str, capacity: int = 4096) -> "AnswerCache":
        """Read what `to_json` wrote."""
        cache = cls(capacity)
        cache._answers = dict(json.loads(text))
        return cache


class Evaluator:
    """Tells which examples a prompt answers correctly.

    A question that was answered before is not asked again and costs nothing.

    Parameters
    ----------
    model : LanguageModel
        The black box.
    task : Task
        Puts prompt and input together and names the answers.
    budget : QueryBudget
        Charged one query for every question that reaches the black box.
    cache : AnswerCache, optional
        Answers to start from.
    """

    def __init__(
        self,
        model: LanguageModel,
        task: Task,
        budget: QueryBudget,
        cache: AnswerCache | None = None,
    ) -> None:
        self._model = model
        self._task = task
        self.budget = budget
        self.cache = AnswerCache() if cache is None else cache

    def correct(self, prompt: str, examples: Sequence[Example]) -> NDArray[np.bool_]:
        """Return whether each example is answered correctly, shape ``(len(examples),)``.

        Raises
        ------
        BudgetExhaustedError
            If the budget does not cover the questions still open; nothing is asked then.
        """
        row: NDArray[np.bool_] = self.correct_all([prompt], examples)[0]
        return row

    def correct_all(self, prompts: Sequence[str], examples: Sequence[Example]) -> NDArray[np.bool_]:
        """Return the same for several prompts at once, shape ``(len(prompts), len(examples))``.

        Raises
        ------
        BudgetExhaustedError
            If the budget does not cover the questions still open; nothing is asked then.
        """
        queries = [self._task.compose(p) + e.input for p in prompts for e in examples]
        known = {query: self.cache.get(self._question(query)) for query in queries}
        missing = [query for query, answer in known.items() if answer is None]
        if missing:
            self.budget.spend(len(missing))
            answers = self._model.answer(missing, self._task.answers)
            known |= dict(zip(missing, answers, strict=True))
            self.cache.update(zip(map(self._question, missing), answers, strict=True))
        given = np.array([known[query] for query in queries]).reshape(len(prompts), len(examples))
        expected = np.array([self._task.answers[e.label] for e in examples])
        correct: NDArray[np.bool_] = given == expected
        return correct

    def _question(self, query: str) -> str:
        return f"{self._model.name}\0{query}"


def stratified_order(examples: Sequence[Example], rng: np.random.Generator) -> list[Example]:
    """Return the examples shuffled so that every prefix holds the classes in proportion.

    A prompt that favours one answer looks good or bad by chance on an unbalanced prefix.
    """
    by_label: dict[int, list[Example]] = {}
    for example in examples:
        by_label.setdefault(example.label, []).append(example)
    ranked = []
    for label in sorted(by_label):
        group = by_label[label]
        for rank, index in enumerate(rng.permutation(len(group))):
            ranked.append(((rank + rng.random()) / len(group), group[index]))
    return [example for _, example in sorted(ranked, key=lambda pair: pair[0])]


def _digest(question: str) -> str:
    return hashlib.blake2b(question.encode(), digest_size=10).hexdigest()

"""The single way to the black box: counted, cached, never over budget."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from feddtpt_flwr.answer_store import AnswerStore
from feddtpt_flwr.data import Example, Task
from feddtpt_flwr.language_model import IncrementalLanguageModel, LanguageModel
from feddtpt_flwr.language_model.answers import parse_answer
from feddtpt_flwr.language_model.usage import Metered, Usage

UNPARSED = ""
"""What stands for an answer that fits no label; no answer word is empty."""


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

    def spend(self, queries: int) -> None:
        """Book ``queries``, or raise `BudgetExhaustedError` and book nothing."""
        if self.used + queries > self.limit:
            raise BudgetExhaustedError(f"{queries} queries wanted, {self.limit - self.used} left")
        self.used += queries

    def refund(self, queries: int) -> None:
        """Take back ``queries`` that were booked and not answered."""
        self.used -= queries


class AnswerCache:
    """Answers by question; the oldest are forgotten.

    Only a hash of the question is kept, so that a stored cache holds no private text.

    Parameters
    ----------
    capacity : int
        Most answers kept, at least 1.
    store : AnswerStore, optional
        Where answers are looked for that are not here, and where new ones go as well.
    """

    def __init__(self, capacity: int = 4096, store: AnswerStore | None = None) -> None:
        self._capacity = capacity
        self._store = store
        self._answers: dict[str, str] = {}

    def __len__(self) -> int:
        """Return the number of answers kept."""
        return len(self._answers)

    def get(self, question: str) -> str | None:
        """Return the answer to ``question``, or None."""
        digest = _digest(question)
        answer = self._answers.get(digest)
        if answer is None and self._store is not None:
            answer = self._store.get(digest)
        return answer

    def update(self, answers: Iterable[tuple[str, str]]) -> None:
        """Keep ``(question, answer)`` pairs."""
        new = {_digest(question): answer for question, answer in answers}
        if self._store is not None:  # an empty one is false
            self._store.put(new)
        self._answers |= new
        for old in list(self._answers)[: max(0, len(self) - self._capacity)]:
            del self._answers[old]

    def to_json(self) -> str:
        """Return the hashes and answers as JSON text."""
        return json.dumps(self._answers)

    @classmethod
    def from_json(
        cls, text: str, capacity: int = 4096, store: AnswerStore | None = None
    ) -> "AnswerCache":
        """Read what `to_json` wrote."""
        cache = cls(capacity, store)
        cache._answers = dict(json.loads(text))
        return cache


class Evaluator:
    """Tells which examples a prompt answers correctly.

    A question that was answered before is not asked again and costs nothing. What is kept of an
    answer is the answer word it stands for, never the text: that may repeat the question.

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

    Attributes
    ----------
    unparsed : int
        Answers of the black box that fitted no label. They count as wrong.
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
        self.unparsed = 0
        self._rules = json.dumps([task.answers, task.synonyms])
        self._usage_before = _usage(model)

    @property
    def usage(self) -> Usage | None:
        """What the black box has used since this evaluator was made; None if it does not count."""
        now = _usage(self._model)
        return now - self._usage_before if now and self._usage_before else None

    def correct(self, prompt: str, examples: Sequence[Example]) -> NDArray[np.bool_]:
        """Return whether each example is answered correctly, shape ``(len(examples),)``.

        Raises
        ------
        BudgetExhaustedError
            If the budget does not cover the questions still open; nothing is asked then.
        ModelError
            If the black box fails. The answers that did arrive are in the cache and were charged.
        """
        stem = self._task.compose(prompt)
        known = {e.input: self.cache.get(self._question(stem, e.input)) for e in examples}
        missing = [text for text, answer in known.items() if answer is None]
        if missing:
            known |= self._ask(stem, missing)
        expected = [self._task.answers[e.label] for e in examples]
        given = [known[e.input] for e in examples]
        return np.array([g == e for g, e in zip(given, expected, strict=True)], dtype=bool)

    def _ask(self, stem: str, inputs: Sequence[str]) -> dict[str, str]:
        """Return the answer to each input, and charge for what was answered, whatever happens."""
        answers: dict[str, str] = {}
        self.budget.spend(len(inputs))
        try:
            for index, text in self._arriving(stem, inputs):
                answer = parse_answer(text, self._task.answers, self._task.synonyms)
                answers[inputs[index]] = UNPARSED if answer is None else answer
                self.unparsed += answer is None
                self.cache.update([(self._question(stem, inputs[index]), answers[inputs[index]])])
        finally:
            self.budget.refund(len(inputs) - len(answers))
        return answers

    def _arriving(self, stem: str, inputs: Sequence[str]) -> Iterator[tuple[int, str]]:
        if isinstance(self._model, IncrementalLanguageModel):
            return self._model.iter_answers(stem, inputs, self._task.answers)
        return enumerate(self._model.answer(stem, inputs, self._task.answers))

    def _question(self, stem: str, text: str) -> str:
        # All that decides the answer word: the model with its settings, the words, the query.
        return f"{self._model.name}\0{self._rules}\0{stem}{text}"


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
    return hashlib.blake2b(question.encode(), digest_size=16).hexdigest()


def _usage(model: LanguageModel) -> Usage | None:
    return model.usage if isinstance(model, Metered) else None

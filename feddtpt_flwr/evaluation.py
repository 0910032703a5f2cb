"""The single way to the black box: counted, cached, never over budget."""

import hashlib
import json
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from feddtpt_flwr.budget import QueryBudget
from feddtpt_flwr.data import Example, Task
from feddtpt_flwr.language_model import IncrementalLanguageModel, LanguageModel
from feddtpt_flwr.language_model.answers import parse_answer
from feddtpt_flwr.language_model.usage import Metered, Usage

CAPACITY = 4096
"""Answers that a cache keeps unless it is told otherwise."""

UNPARSED = ""
"""What stands for an answer that fits no label; no answer word is empty."""


class AnswerArchive(Protocol):
    """Where answers outlast a process."""

    def get(self, digest: str) -> str | None:
        """Return the answer to the question with this hash, or None."""
        ...

    def put(self, answers: Mapping[str, str]) -> None:
        """Keep answers by the hashes of their questions."""
        ...


class AnswerCache:
    """Answers by question; those that were not used for longest are forgotten.

    Only a hash of the question is kept, so that a stored cache holds no private text.

    What a search has asked itself is known to it and free. What lies in an archive, because an
    earlier attempt or another process has asked, is not paid for again, but counts as if it were:
    so a search takes the same course whether archives are full or empty.

    Parameters
    ----------
    capacity : int
        Most answers kept, at least 1.
    archives : Sequence[AnswerArchive]
        Where answers may be that are not here, and where new ones go as well.
    known : Mapping[str, str], optional
        Answers that such a cache held before, the last used ones last.
    """

    def __init__(
        self,
        capacity: int = CAPACITY,
        archives: Sequence[AnswerArchive] = (),
        known: Mapping[str, str] | None = None,
    ) -> None:
        self._capacity = capacity
        self._archives = archives
        self._answers = _last(known or {}, capacity)  # last used last
        self._passing: set[str] = set()

    def __len__(self) -> int:
        """Return the number of answers kept."""
        return len(self._answers)

    def get(self, question: str) -> str | None:
        """Return the answer to ``question``, or None if it is not known."""
        digest = _digest(question)
        answer = self._answers.pop(digest, None)
        if answer is not None:
            self._answers[digest] = answer
        return answer

    def archived(self, question: str) -> str | None:
        """Return the answer to ``question`` from the archives, or None."""
        digest = _digest(question)
        found = (archive.get(digest) for archive in self._archives)
        return next((answer for answer in found if answer is not None), None)

    def update(self, answers: Iterable[tuple[str, str]], *, keep: bool = True) -> None:
        """Know ``(question, answer)`` pairs from now on, and ``keep`` them for later."""
        new = {_digest(question): answer for question, answer in answers}
        self._passing = self._passing - new.keys() if keep else self._passing | new.keys()
        for archive in self._archives if keep else ():
            archive.put(new)
        for digest, answer in new.items():
            self._answers.pop(digest, None)
            self._answers[digest] = answer
        for old in list(islice(self._answers, max(0, len(self) - self._capacity))):
            del self._answers[old]

    def to_json(self, most: int | None = None) -> str:
        """Return kept hashes and answers as JSON text; of more than ``most`` the last used ones."""
        kept = {
            digest: answer
            for digest, answer in self._answers.items()
            if digest not in self._passing
        }
        return json.dumps(kept if most is None else _last(kept, most))


class Evaluator:
    """Tells which examples a prompt answers correctly.

    A question that was answered before is not asked again. What is kept of an answer is the answer
    word it stands for, never the text: that may repeat the question.

    Parameters
    ----------
    model : LanguageModel
        The black box.
    task : Task
        Puts prompt and input together and names the answers.
    budget : QueryBudget
        Charged one query for every question whose answer the cache does not know, whether the
        black box or an archive answers it.
    cache : AnswerCache, optional
        Answers to start from.

    Attributes
    ----------
    from_archive : int
        Queries that were charged and answered from an archive: they reached no black box.
    unparsed : int
        Answers of the black box that fitted no label, and questions that it refused. They count as
        wrong.
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
        self.from_archive = 0
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
            If the budget does not cover the questions still open. If it is the queries that do not
            suffice, nothing is asked; what else an answer costs shows as answers arrive, and those
            that did are in the cache and were charged.
        ModelError
            If the black box fails. The answers that did arrive are in the cache and were charged.
        """
        row: NDArray[np.bool_] = self.correct_all([prompt], examples)[0]
        return row

    def correct_all(self, prompts: Sequence[str], examples: Sequence[Example]) -> NDArray[np.bool_]:
        """Return the same for several prompts at once, shape ``(len(prompts), len(examples))``.

        Raises
        ------
        BudgetExhaustedError, ModelError
            As `correct`.
        """
        queries = [self._task.compose(p, e.input) for p in prompts for e in examples]
        known = {query: self.cache.get(self._question(query)) for query in queries}
        missing = [query for query, answer in known.items() if answer is None]
        if missing:
            known |= self._ask(missing)
        given = np.array([known[query] for query in queries]).reshape(len(prompts), len(examples))
        expected = np.array([self._task.answers[e.label] for e in examples])
        correct: NDArray[np.bool_] = given == expected
        return correct

    def known(
        self, prompt: str, examples: Sequence[Example], *, archived: bool = True
    ) -> NDArray[np.bool_] | None:
        """Return the same as `correct` if all answers are known or ``archived``; None if not.

        Nothing is asked or charged: this is for what another attempt has paid for.
        """
        expected = [self._task.answers[example.label] for example in examples]
        correct = []
        for example, right in zip(examples, expected, strict=True):
            question = self._question(self._task.compose(prompt, example.input))
            answer = self.cache.get(question)
            if answer is None and archived:
                answer = self.cache.archived(question)
            if answer is None:
                return None
            correct.append(answer == right)
        return np.array(correct, dtype=bool)

    def _ask(self, queries: Sequence[str]) -> dict[str, str]:
        """Return the answer to each query, and charge for what was answered, whatever happens."""
        self.budget.spend(len(queries))
        questions = {query: self._question(query) for query in queries}
        found = {query: self.cache.archived(question) for query, question in questions.items()}
        answers = {query: answer for query, answer in found.items() if answer is not None}
        self.cache.update((questions[query], answer) for query, answer in answers.items())
        self.from_archive += len(answers)
        missing = [query for query in queries if query not in answers]
        try:
            while missing:
                sent = missing[: self.budget.admit(missing)]
                self._send(sent, answers)
                missing = missing[len(sent) :]
        finally:
            self.budget.refund(len(queries) - len(answers))
        return answers

    def _send(self, queries: Sequence[str], answers: dict[str, str]) -> None:
        """Ask the black box; add each answer to ``answers`` as it arrives."""
        before = _usage(self._model)
        try:
            for index, text in self._arriving(queries):
                query = queries[index]
                given = None if text is None else self._parse(text)
                answers[query] = UNPARSED if given is None else given
                self.unparsed += given is None
                # What was refused may be answered by another process, another day. The model's
                # name may tell more now than when it had not been asked.
                question = self._question(query)
                self.cache.update([(question, answers[query])], keep=text is not None)
        finally:
            now = _usage(self._model)
            self.budget.settle(now - before if now and before else None)

    def _parse(self, text: str) -> str | None:
        return parse_answer(text, self._task.answers, self._task.synonyms)

    def _arriving(self, queries: Sequence[str]) -> Iterator[tuple[int, str | None]]:
        if isinstance(self._model, IncrementalLanguageModel):
            return self._model.iter_answers(queries, self._task.answers)
        return enumerate(self._model.answer(queries, self._task.answers))

    def _question(self, query: str) -> str:
        # All that decides the answer word: the model with its settings, the words, the query.
        return f"{self._model.name}\0{self._rules}\0{query}"


def mixed_order(kinds: Sequence[Hashable], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return a random order in which every beginning holds each kind in proportion, or nearly so.

    Parameters
    ----------
    kinds : Sequence[Hashable]
        What kind each of ``n`` items is of.
    rng : numpy.random.Generator
        Source of all randomness.

    Returns
    -------
    NDArray[np.int64]
        Indices of the items, shape ``(n,)``.
    """
    members: dict[Hashable, list[int]] = {}
    for index in rng.permutation(len(kinds)).tolist():
        members.setdefault(kinds[index], []).append(index)
    places = np.empty(len(kinds))
    for indices in members.values():
        # Evenly spread from a random start.
        places[indices] = (np.arange(len(indices)) + rng.random()) / len(indices)
    return np.argsort(places)


def _last(answers: Mapping[str, str], number: int) -> dict[str, str]:
    return dict(islice(answers.items(), max(0, len(answers) - number), None))


def _digest(question: str) -> str:
    return hashlib.blake2b(question.encode(), digest_size=16).hexdigest()


def _usage(model: LanguageModel) -> Usage | None:
    return model.usage if isinstance(model, Metered) else None

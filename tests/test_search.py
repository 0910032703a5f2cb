from collections.abc import Sequence

import numpy as np
import pytest

from feddtpt_flwr.budget import QueryBudget
from feddtpt_flwr.data import Example, Task
from feddtpt_flwr.evaluation import Evaluator
from feddtpt_flwr.evidence import Runner
from feddtpt_flwr.feedback import Feedback, Trial
from feddtpt_flwr.language_model import FatalModelError, ModelError, ModelUnavailableError
from feddtpt_flwr.language_model.local import LocalLanguageModel
from feddtpt_flwr.masked_lm.causal import CausalInfiller
from feddtpt_flwr.proposer import MaskedLMProposer
from feddtpt_flwr.search import PromptSearch
from feddtpt_flwr.search_result import SearchResult
from feddtpt_flwr.vocabulary import Vocabulary
from strategies.candidates import Tokens
from strategies.edits import Edit

NUM_EXAMPLES = 12
START = "Movie review."


class Counting:
    """The real model, the queries that reached it, and a failure after so many if wanted."""

    def __init__(self, model: LocalLanguageModel) -> None:
        self._model = model
        self.questions: list[str] = []
        self.fails_after: int | None = None
        self.failure: ModelError = ModelUnavailableError("down")

    @property
    def asked(self) -> int:
        return len(self.questions)

    @property
    def name(self) -> str:
        return self._model.name

    def answer(self, queries: Sequence[str], choices: Sequence[str]) -> list[str]:
        if self.fails_after is not None and self.asked + len(queries) > self.fails_after:
            raise self.failure
        self.questions += queries
        return self._model.answer(queries, choices)


class Searching:
    """Everything that a search needs, from the real small models."""

    def __init__(
        self,
        model: LocalLanguageModel,
        infiller: CausalInfiller,
        task: Task,
        examples: Sequence[Example],
    ) -> None:
        self.model = Counting(model)
        self.infiller = infiller
        self.task = task
        self.examples = examples
        self.vocabulary = infiller.vocabulary
        self.start = self.vocabulary.encode(START)
        self.heard: list[Trial] = []

    def run(self, limit: int, seed: int = 0, feedback: Feedback | None = None) -> SearchResult:
        rng = np.random.default_rng(seed)
        self.evaluator = Evaluator(self.model, self.task, QueryBudget(limit))
        self.feedback = Feedback() if feedback is None else feedback
        self.heard = []
        search = PromptSearch(
            self.evaluator,
            MaskedLMProposer(self.infiller, max_tokens=8),
            self.infiller,
            self.examples,
            rng,
            max_tokens=8,
            on_accept=self.heard.append,
        )
        return search.run(self.start, self.feedback)

    def accuracy(self, tokens: Tokens) -> float:
        evaluator = Evaluator(self.model, self.task, QueryBudget(len(self.examples)))
        return float(evaluator.correct(self.vocabulary.decode(tokens), self.examples).mean())


@pytest.fixture(scope="module")
def searching(
    language_model: LocalLanguageModel,
    infiller: CausalInfiller,
    task: Task,
    short_reviews: tuple[Example, ...],
) -> Searching:
    return Searching(language_model, infiller, task, short_reviews[:NUM_EXAMPLES])


@pytest.mark.slow
def test_nothing_is_asked_when_nothing_can_be_won(
    searching: Searching, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = Evaluator(searching.model, searching.task, QueryBudget(NUM_EXAMPLES))
    right = evaluator.correct(START, searching.examples)
    answered = [e for e, ok in zip(searching.examples, right, strict=True) if ok]
    monkeypatch.setattr(searching, "examples", answered)
    result = searching.run(500)
    assert searching.evaluator.budget.used == len(answered) > 0
    assert (result.tokens, result.accuracy, result.num_trials) == (searching.start, 1.0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_result_is_never_worse_on_the_same_examples(seed: int, searching: Searching) -> None:
    before = searching.model.asked
    result = searching.run(90, seed)
    budget = searching.evaluator.budget
    assert searching.model.asked - before == budget.used <= 90
    # The next batch would not have fitted, so at most one batch is left over.
    assert budget.used > 90 - NUM_EXAMPLES

    assert result.accuracy == pytest.approx(searching.accuracy(result.tokens))
    assert result.start_accuracy == pytest.approx(searching.accuracy(searching.start))
    assert result.accuracy >= result.start_accuracy
    assert (result.accuracy > result.start_accuracy) == bool(result.accepted)
    assert 1 <= len(result.tokens) <= 8

    trials = searching.feedback.trials
    assert 0 < len(trials) <= result.num_trials
    assert tuple(trial for trial in trials if trial.accepted) == result.accepted
    assert tuple(searching.heard) == result.accepted
    accuracies = [result.start_accuracy, *(trial.accuracy for trial in result.accepted)]
    assert accuracies == sorted(set(accuracies)), "each accepted change is a gain"
    assert accuracies[-1] == pytest.approx(result.accuracy)

    tokens = searching.start
    for trial in result.accepted:
        length = 0 if trial.operator == "insert" else len(trial.before)
        edit = Edit(trial.position, trial.position + length, trial.after)
        tokens = edit.apply(tokens)
    assert tokens == result.tokens, "the accepted changes lead from the start to the result"


@pytest.mark.slow
def test_the_same_seed_gives_the_same_result(searching: Searching) -> None:
    first = searching.run(50, 3)
    trials = searching.feedback.trials
    assert searching.run(50, 3) == first
    assert searching.feedback.trials == trials
    searching.run(50, 4)
    assert searching.feedback.trials != trials


@pytest.mark.slow
def test_feedback_grows_from_search_to_search(searching: Searching) -> None:
    feedback = Feedback()
    searching.run(40, 0, feedback)
    first = feedback.trials
    searching.run(40, 1, feedback)
    assert feedback.trials[: len(first)] == first
    assert len(feedback.trials) > len(first)


@pytest.mark.parametrize("limit", [0, 1, NUM_EXAMPLES - 1])
def test_a_budget_that_does_not_cover_the_start(limit: int, searching: Searching) -> None:
    before = searching.model.asked
    result = searching.run(limit)
    assert result == SearchResult(searching.start, 0.0, 0.0, (), 0, measured=False)
    assert searching.model.asked == before
    assert searching.feedback.trials == ()


def test_a_budget_for_the_start_alone(searching: Searching) -> None:
    result = searching.run(NUM_EXAMPLES)
    assert result.tokens == searching.start
    assert result.accuracy == result.start_accuracy == searching.accuracy(searching.start)
    assert result.accepted == ()
    assert searching.evaluator.budget.used == NUM_EXAMPLES


class FewEdits:
    """A double of a proposer that knows three changes and proposes them over and over."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        words = [vocabulary.encode(word) for word in ("good", "bad", "film")]
        self.edits = [Edit(0, 1, word) for word in words]
        self.calls = 0

    def propose(
        self, tokens: Tokens, feedback: Feedback, rng: np.random.Generator, count: int
    ) -> list[Edit]:
        self.calls += 1
        return [self.edits[(self.calls + i) % 3] for i in range(count)]


def test_a_budget_larger_than_useful_ends(searching: Searching) -> None:
    proposer = FewEdits(searching.vocabulary)
    evaluator = Evaluator(searching.model, searching.task, QueryBudget(10**6))
    search = PromptSearch(
        evaluator,
        proposer,
        searching.infiller,
        searching.examples[:4],
        np.random.default_rng(0),
        max_tokens=8,
    )
    result = search.run(searching.start, Feedback())
    assert result.num_trials == 3
    assert evaluator.budget.used <= 4 * 4
    assert proposer.calls < 10_000


class CountingProposer(FewEdits):
    """A double of a proposer that notes how many changes it is asked for."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__(vocabulary)
        self.counts: list[int] = []

    def propose(
        self, tokens: Tokens, feedback: Feedback, rng: np.random.Generator, count: int
    ) -> list[Edit]:
        self.counts.append(count)
        return super().propose(tokens, feedback, rng, count)


@pytest.mark.parametrize(("left", "most"), [(8, 1), (8 + 3 * 4, 4), (1000, 4 * 4)])
def test_no_more_is_proposed_than_can_be_tried(searching: Searching, left: int, most: int) -> None:
    """Of eight examples, four in a first batch: one change to the end, each other four queries."""
    proposer = CountingProposer(searching.vocabulary)
    search = PromptSearch(
        Evaluator(searching.model, searching.task, QueryBudget(8 + left)),
        proposer,
        searching.infiller,
        searching.examples[:8],
        np.random.default_rng(0),
        max_tokens=8,
        first_batch=4,
    )
    search.run(searching.start, Feedback())
    assert proposer.counts[0] == most


def test_no_prompt_is_tried_twice(searching: Searching) -> None:
    before = len(searching.model.questions)
    result = searching.run(90, 5)
    questions = searching.model.questions[before:]
    assert len(set(questions)) == len(questions) == searching.evaluator.budget.used
    assert result.num_trials >= len(searching.feedback.trials) >= 5


@pytest.fixture
def failing(
    language_model: LocalLanguageModel,
    infiller: CausalInfiller,
    task: Task,
    short_reviews: tuple[Example, ...],
) -> Searching:
    """A search of its own, as the others go on with their model."""
    return Searching(language_model, infiller, task, short_reviews[:NUM_EXAMPLES])


@pytest.mark.slow
@pytest.mark.parametrize("failure", [ModelUnavailableError("down"), FatalModelError("no key")])
def test_a_failure_ends_the_search_with_the_best_prompt_so_far(
    failure: ModelError, failing: Searching
) -> None:
    failing.model.fails_after, failing.model.failure = 120, failure
    result = failing.run(200)
    asked = failing.model.asked
    assert result.failure is failure
    assert failing.evaluator.budget.used == asked <= 120
    assert len(failing.feedback.trials) > 0
    failing.model.fails_after = None
    assert result.accuracy == failing.accuracy(result.tokens) >= result.start_accuracy
    same = failing.run(asked)
    assert same.failure is None
    assert result.tokens == same.tokens, "what was found before is what a smaller budget finds"


def test_a_failure_before_anything_is_measured_is_told(failing: Searching) -> None:
    failing.model.fails_after = 0
    with pytest.raises(ModelUnavailableError):
        failing.run(200)
    assert failing.evaluator.budget.used == 0


def test_a_races_answers_go_back_into_the_examples_own_order() -> None:
    order = np.array([2, 0, 3, 1])
    own = np.array([True, False, False, True])
    runner = Runner(Edit(0, 1, (5,)), order, own[order], np.zeros(4, dtype=bool), np.ones(4))
    assert runner.in_order.tolist() == own.tolist()


@pytest.mark.slow
def test_every_race_begins_with_other_examples(searching: Searching) -> None:
    """Where a prompt answers some by chance, no change would get past a race that begins there."""
    before = searching.model.asked
    result = searching.run(200)
    assert result.num_trials > 8
    beginnings: dict[str, list[str]] = {}
    for question in searching.model.questions[before + NUM_EXAMPLES :]:
        [example] = [e for e in searching.examples if question.startswith(e.input)]
        beginnings.setdefault(question.removeprefix(example.input), []).append(example.input)
    assert len({tuple(sorted(inputs[:8])) for inputs in beginnings.values()}) > 1

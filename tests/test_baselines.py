"""The field's searches: their own arithmetic, and one run of each on the real small models."""

import re
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from random import Random
from typing import Any

import numpy as np
import pytest

from feddtpt_flwr.amounts import Amounts
from feddtpt_flwr.baselines.bdpl import PolicyGradientSearch, ngram_vocabulary, softmax
from feddtpt_flwr.baselines.evolution import EvolutionSearch
from feddtpt_flwr.baselines.random_words import RandomProposer
from feddtpt_flwr.budget import ClientBudget, QueryBudget, Span
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import Example, Task
from feddtpt_flwr.evaluation import Evaluator
from feddtpt_flwr.feedback import Feedback, change
from feddtpt_flwr.language_model import ModelUnavailableError
from feddtpt_flwr.language_model.local import LocalLanguageModel
from feddtpt_flwr.masked_lm.causal import CausalInfiller
from feddtpt_flwr.search_result import SearchResult
from feddtpt_flwr.searches import PROPOSERS, SEARCHES, Search, SearchParts, build_search
from feddtpt_flwr.vocabulary import Vocabulary
from strategies.edits import Edit

NUM_EXAMPLES = 8
START = "Movie review."


class Counting:
    """The real model, the queries that reached it, and a failure after so many if wanted."""

    def __init__(self, model: LocalLanguageModel) -> None:
        self._model = model
        self.name = model.name
        self.asked = 0
        self.fails_after: int | None = None

    def answer(self, queries: Sequence[str], choices: Sequence[str]) -> list[str]:
        if self.fails_after is not None and self.asked + len(queries) > self.fails_after:
            raise ModelUnavailableError("down")
        self.asked += len(queries)
        return self._model.answer(queries, choices)


class Searching:
    """Runs the search that a setting names, on the real small models."""

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
        self.start = infiller.vocabulary.encode(START)
        self.feedback = Feedback()

    def run(self, limit: int, **settings: object) -> SearchResult:
        return self.build(limit, **settings).run(self.start, self.feedback)

    def build(self, limit: int, **settings: object) -> Search:
        config = RunConfig.from_run_config(
            {"seed-prompt": START, "max-prompt-tokens": 8, "max-fluency-loss": 100.0, **settings}
        )
        rng = np.random.default_rng(0)
        self.evaluator = Evaluator(self.model, self.task, QueryBudget(limit))
        parts = SearchParts(
            config=config,
            task=self.task,
            public=(),
            masked_lm=self.infiller,
            evaluator=self.evaluator,
            examples=self.examples,
            rng=rng,
            on_accept=lambda _: None,
        )
        return build_search(parts)

    def accuracy(self, tokens: tuple[int, ...]) -> float:
        evaluator = Evaluator(self.model, self.task, QueryBudget(len(self.examples)))
        text = self.infiller.vocabulary.decode(tokens)
        return float(evaluator.correct(text, self.examples).mean())


@pytest.fixture
def searching(
    language_model: LocalLanguageModel,
    infiller: CausalInfiller,
    task: Task,
    short_reviews: tuple[Example, ...],
) -> Searching:
    return Searching(language_model, infiller, task, short_reviews[:NUM_EXAMPLES])


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"search": "sequential"},
        {"search": "sequential", "proposer": "random"},
        {"search": "bdpl"},
        {"search": "evolution"},
    ],
    ids=lambda settings: "-".join(settings.values()),
)
def test_every_search_keeps_its_budget_and_what_it_says_of_its_prompt(
    settings: dict[str, str], searching: Searching
) -> None:
    limit = 160 if settings["search"] == "bdpl" else 60
    result = searching.run(limit, **settings)
    assert searching.model.asked == searching.evaluator.budget.used <= limit
    assert searching.evaluator.budget.used > NUM_EXAMPLES
    assert result.num_trials > 0
    assert 1 <= len(result.tokens) <= 8
    assert result.accuracy == pytest.approx(searching.accuracy(result.tokens))
    assert result.start_accuracy == pytest.approx(searching.accuracy(searching.start))
    assert result.accuracy >= result.start_accuracy


@pytest.mark.parametrize("search", ["bdpl", "evolution"])
@pytest.mark.parametrize("limit", [0, NUM_EXAMPLES - 1, NUM_EXAMPLES])
def test_a_budget_for_the_start_at_most(limit: int, search: str, searching: Searching) -> None:
    result = searching.run(limit, search=search)
    assert result.tokens == searching.start
    assert result.num_trials == 0
    assert searching.model.asked in (0, NUM_EXAMPLES)
    assert (result.accuracy > 0) == (limit == NUM_EXAMPLES)


@pytest.mark.parametrize("search", ["bdpl", "evolution"])
def test_a_failure_ends_with_what_was_measured(search: str, searching: Searching) -> None:
    searching.model.fails_after = NUM_EXAMPLES
    result = searching.run(400, search=search)
    assert isinstance(result.failure, ModelUnavailableError)
    assert result.tokens == searching.start
    assert result.accuracy == result.start_accuracy


@pytest.mark.parametrize("search", ["bdpl", "evolution"])
def test_a_failure_before_anything_is_measured_is_told(search: str, searching: Searching) -> None:
    searching.model.fails_after = 0
    with pytest.raises(ModelUnavailableError):
        searching.run(400, search=search)


def test_random_words_are_words_and_never_answers(vocabulary: Vocabulary, task: Task) -> None:
    proposer = RandomProposer(vocabulary, excluded_words=task.answers)
    allowed = vocabulary.proposable(task.answers)
    tokens = vocabulary.encode("Classify this unbelievably sentimental film")
    edits = proposer.propose(tokens, Feedback(), np.random.default_rng(0), 50)
    assert len(edits) == 50
    assert {edit.operator for edit in edits} == {"replace"}
    assert all(allowed[edit.tokens[0]] for edit in edits)
    assert {(edit.start, edit.stop) for edit in edits} <= set(vocabulary.words(tokens))


def test_ngrams_are_joined_where_words_come_together_often(vocabulary: Vocabulary) -> None:
    texts = ["good old times", "good old days", "a film", "a day", "old a film", "a positive day"]
    examples = [Example(f" {text}", 0) for text in texts]
    ngrams = [
        vocabulary.decode(n) for n in ngram_vocabulary(examples, vocabulary, 9, ("positive",))
    ]
    assert "good old" in ngrams
    assert "a film" in ngrams
    assert not [ngram for ngram in ngrams if "positive" in ngram]
    assert len(ngram_vocabulary(examples, vocabulary, 2)) == 2


def test_texts_without_words_that_may_be_proposed_are_told(
    vocabulary: Vocabulary, warned: list[str], task: Task
) -> None:
    examples = [Example(" Очень хороший фильм", 0)] * 4
    evaluator = Evaluator(Liking("x"), task, QueryBudget(100))
    rng = np.random.default_rng(0)
    PolicyGradientSearch(evaluator, vocabulary, examples, rng, max_tokens=8)
    assert "no word of the examples" in warned[0]


class Liking:
    """A double of the black box, for the arithmetic alone: right more often the more it likes.

    Answers as wanted if a prompt has the word, and one in two otherwise.
    """

    name = "liking"

    def __init__(self, word: str) -> None:
        self._word = word

    def answer(self, queries: Sequence[str], choices: Sequence[str]) -> list[str]:
        return [choices[0 if self._word in q.split() else len(q) % 2] for q in queries]


@pytest.mark.parametrize("search", ["bdpl", "evolution"])
def test_what_helps_is_found(search: str, wordpiece: Vocabulary, task: Task) -> None:
    texts = ["a fine plot", "the plot was fine", "fine actors", "the actors were there", "fine"]
    examples = [Example(f"{text} {'x' * i}", 0) for i, text in enumerate(texts * 4)]
    evaluator = Evaluator(Liking("fine"), task, QueryBudget(3000))
    rng = np.random.default_rng(0)
    start = wordpiece.encode("what about this one")
    if search == "bdpl":
        result = PolicyGradientSearch(evaluator, wordpiece, examples, rng, max_tokens=8).run(
            start, Feedback()
        )
    else:
        result = EvolutionSearch(
            evaluator,
            SomeWords(wordpiece),
            wordpiece,
            examples,
            rng,
            max_tokens=8,
            admissible=lambda prompts: [True] * len(prompts),
        ).run(start, Feedback())
    assert "fine" in wordpiece.decode(result.tokens).split()
    assert result.accuracy == 1.0 > result.start_accuracy
    assert evaluator.budget.used <= 3000


class Worth:
    """A double of the black box, for the arithmetic alone: some words of a prompt are worth more.

    Each of them makes an answer right 15 times in a hundred more often, whatever else there is. An
    example's text stands in brackets, and does not count.
    """

    name = "worth"

    def __init__(self, words: Sequence[str]) -> None:
        self.words = frozenset(words)

    def answer(self, queries: Sequence[str], choices: Sequence[str]) -> list[str]:
        right = [Random(q).random() < 0.55 + 0.15 * self.count(q) for q in queries]
        return [choices[0 if r else 1] for r in right]

    def count(self, text: str) -> int:
        return len(self.words & set(re.sub(r"\[.*\]", "", text).split()))


def worth_something(vocabulary: Vocabulary) -> tuple[list[str], list[Example]]:
    """Return 100 words and 48 examples whose texts hold them all."""
    allowed = vocabulary.proposable()
    pieces = (vocabulary.piece(token) for token in range(len(vocabulary)) if allowed[token])
    words = [p for p in pieces if p.islower() and len(p) > 5][:100]
    texts = (" ".join(words[(2 * i + j) % 100] for j in range(6)) for i in range(48))
    return words, [Example(f"[{text} {i}]", 0) for i, text in enumerate(texts)]


@pytest.mark.parametrize(("limit", "least"), [(354, 7), (1000, 9)])
def test_the_policy_gradient_finds_an_easy_improvement(
    limit: int, least: int, wordpiece: Vocabulary, task: Task
) -> None:
    words, examples = worth_something(wordpiece)
    model = Worth(words[::5])
    start = wordpiece.encode("Is what this one says about it for us or not")
    assert model.count(wordpiece.decode(start)) == 0
    found = 0
    for seed in range(10):
        evaluator = Evaluator(model, task, QueryBudget(limit))
        rng = np.random.default_rng(seed)
        search = PolicyGradientSearch(evaluator, wordpiece, examples, rng, max_tokens=24)
        result = search.run(start, Feedback())
        assert evaluator.budget.used <= limit
        assert evaluator.budget.left < len(examples)
        assert result.accuracy >= result.start_accuracy
        text = wordpiece.decode(result.tokens)
        measured = Evaluator(model, task, QueryBudget(48)).correct(text, examples)
        assert result.accuracy == measured.mean()
        found += model.count(text) > 0 and result.accuracy > result.start_accuracy + 0.1
    assert found >= least


@pytest.mark.parametrize("reword", [True, False])
def test_evolution_rewords_whole_prompts_where_that_is_wanted(
    reword: bool, searching: Searching
) -> None:
    settings = {"search": "evolution", "reword": reword, "max-prompt-tokens": 24}
    search = searching.build(60, **settings)
    assert isinstance(search, EvolutionSearch)
    # More words than a change of a part ever takes.
    tokens = searching.infiller.vocabulary.encode("Is what this one says of it good or not so")
    edits = search._proposer.propose(tokens, Feedback(), np.random.default_rng(0), 8)
    assert ("rewrite" in {change(edit, tokens) for edit in edits}) == reword


class SomeWords(RandomProposer):
    """Random words, one in ten of which is the right one."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__(vocabulary)
        (self._right,) = vocabulary.encode("fine")

    def propose(
        self, tokens: tuple[int, ...], feedback: Feedback, rng: np.random.Generator, count: int
    ) -> list[Edit]:
        edits = super().propose(tokens, feedback, rng, count)
        return [replace(e, tokens=(self._right,)) if rng.random() < 0.1 else e for e in edits]


def test_a_policy_that_draws_what_it_knows_comes_to_an_end(
    wordpiece: Vocabulary, task: Task
) -> None:
    examples = [Example("a fine plot", 0), Example("the plot was fine", 1)]
    evaluator = Evaluator(Liking("nothing"), task, QueryBudget(1_000_000))
    search = PolicyGradientSearch(
        evaluator, wordpiece, examples, np.random.default_rng(0), max_tokens=4
    )
    search.run(wordpiece.encode("what"), Feedback())
    assert evaluator.budget.left > 0


def test_a_small_budget_has_smaller_steps(wordpiece: Vocabulary, task: Task) -> None:
    """A policy that moves once at most is drawing at random."""
    examples = [Example("a fine plot", i % 2) for i in range(12)]
    for limit, steps, samples in ((80, 2, 2), (130, 2, 4), (196, 2, 8), (400, 4, 8)):
        evaluator = Evaluator(Liking("nothing"), task, QueryBudget(limit))
        search = PolicyGradientSearch(
            evaluator, wordpiece, examples, np.random.default_rng(0), max_tokens=4
        )
        result = search.run(wordpiece.encode("what about this"), Feedback())
        assert result.num_trials >= steps * samples, limit


@pytest.mark.parametrize("search", ["bdpl", "evolution"])
def test_a_search_without_a_mistake_left_asks_nothing(search: str, searching: Searching) -> None:
    answers = searching.model.answer
    label = searching.examples[0].label
    searching.examples = tuple(replace(e, label=label) for e in searching.examples)
    with pytest.MonkeyPatch.context() as patch:
        right = searching.task.answers[label]
        patch.setattr(searching.model, "answer", lambda q, o: answers(q, o) and [right for _ in q])
        result = searching.run(400, search=search)
    assert result.num_trials == 0
    assert result.accuracy == 1.0
    assert searching.evaluator.budget.used == NUM_EXAMPLES


def test_evolution_goes_on_where_nothing_may_be_put_in(wordpiece: Vocabulary, task: Task) -> None:
    class Nothing:
        """A double of a proposer that finds nothing that is allowed."""

        def propose(self, *_: Any) -> list[Edit]:
            return []

    examples = [Example("a fine plot", 0), Example("the plot was fine", 1)]
    evaluator = Evaluator(Liking("nothing"), task, QueryBudget(40))
    start = wordpiece.encode("what about this one")
    result = EvolutionSearch(
        evaluator,
        Nothing(),
        wordpiece,
        examples,
        np.random.default_rng(0),
        max_tokens=8,
        admissible=lambda prompts: [True] * len(prompts),
    ).run(start, Feedback())
    assert result.failure is None


def test_evolution_stops_breeding_when_time_is_up(wordpiece: Vocabulary, task: Task) -> None:
    """Proposals take time as well; here all of it, one by one."""
    now = [0.0]

    class Slow(RandomProposer):
        """Random words, and each takes a second of a clock that is made up."""

        asked = 0

        def propose(
            self, tokens: tuple[int, ...], feedback: Feedback, rng: np.random.Generator, count: int
        ) -> list[Edit]:
            self.asked += 1
            now[0] += 1.0
            return super().propose(tokens, feedback, rng, count)

    examples = [Example("a fine plot", 0), Example("the plot was fine", 1)]
    limits = Amounts(inf, inf, inf, 5.0, inf)
    budget = ClientBudget(1000, Span("round", limits), clock=lambda: now[0])
    proposer = Slow(wordpiece)
    EvolutionSearch(
        Evaluator(Liking("nothing"), task, budget),
        proposer,
        wordpiece,
        examples,
        np.random.default_rng(0),
        max_tokens=8,
        admissible=lambda prompts: [False] * len(prompts),  # so that all go on being made
    ).run(wordpiece.encode("what about this one"), Feedback())
    assert 0 < proposer.asked <= 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 1}, "samples must be at least 2, got 1"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"num_ngrams": 0}, "num_ngrams must be at least 1, got 0"),
        ({"step_size": 0.0}, "step_size must be above 0, got 0.0"),
        ({"start_probability": 1.0}, "start_probability must be above 0 and below 1, got 1.0"),
    ],
)
def test_a_policy_takes_no_settings_without_sense(
    settings: dict[str, Any], message: str, wordpiece: Vocabulary, task: Task
) -> None:
    evaluator = Evaluator(Liking("nothing"), task, QueryBudget(0))
    with pytest.raises(ValueError, match=message):
        PolicyGradientSearch(
            evaluator,
            wordpiece,
            [Example("a fine plot", 0)],
            np.random.default_rng(0),
            max_tokens=4,
            **settings,
        )


def test_a_prompt_generator_without_a_writer(searching: Searching) -> None:
    with pytest.raises(ValueError, match="'masked-lm' and 'random' are allowed"):
        searching.run(60, proposer="prompt-generator")


def test_evolution_knows_no_feedback(searching: Searching) -> None:
    asked = []
    for feedback in (True, False):
        searching.run(60, search="evolution", feedback=feedback)
        asked.append(searching.evaluator.cache.to_json())
    assert asked[0] == asked[1]


def test_softmax_does_not_overflow() -> None:
    assert softmax(np.array([1000.0, 1000.0, -1000.0])) == pytest.approx([0.5, 0.5, 0.0])


def test_every_name_in_the_settings_has_a_line_in_the_registry() -> None:
    for search in SEARCHES:
        for proposer in PROPOSERS:
            if search != "bdpl" or proposer == "masked-lm":  # else refused: bdpl proposes itself
                RunConfig.from_run_config({"search": search, "proposer": proposer})

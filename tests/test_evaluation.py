import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feddtpt_flwr.budget import BudgetExhaustedError, QueryBudget
from feddtpt_flwr.data import Example, Task
from feddtpt_flwr.evaluation import AnswerCache, Evaluator, mixed_order
from feddtpt_flwr.language_model.local import LocalLanguageModel


class CountingModel:
    """A fake language model, for accounting only: answers by rule and counts what it is asked."""

    def __init__(self, name: str = "fake") -> None:
        self.name = name
        self.asked: list[str] = []

    def answer(self, queries: Sequence[str], choices: Sequence[str]) -> list[str]:
        self.asked += queries
        return [choices[query.count("x") % len(choices)] for query in queries]


def examples(*numbers: int) -> list[Example]:
    return [Example("x" * number, number % 3 % 2) for number in numbers]


@given(limit=st.integers(0, 40), wanted=st.lists(st.integers(0, 15), max_size=12))
def test_budget_is_never_exceeded(limit: int, wanted: list[int]) -> None:
    budget, booked = QueryBudget(limit), 0
    for queries in wanted:
        fits = booked + queries <= limit
        if fits:
            budget.spend(queries)
            booked += queries
        else:
            with pytest.raises(BudgetExhaustedError, match=f"{queries} queries wanted"):
                budget.spend(queries)
        assert budget.used == booked <= limit


@settings(deadline=None)
@given(
    limit=st.integers(0, 30),
    calls=st.lists(
        st.tuples(st.sampled_from(["a", "b"]), st.lists(st.integers(0, 9), min_size=1, max_size=9)),
        max_size=10,
    ),
)
def test_every_question_is_paid_for_once(limit: int, calls: list[tuple[str, list[int]]]) -> None:
    from feddtpt_flwr.data import get_task

    model, task = CountingModel(), get_task("rotten_tomatoes")
    evaluator = Evaluator(model, task, QueryBudget(limit))
    for prompt, numbers in calls:
        before = len(model.asked)
        new = {task.compose(prompt, "x" * number) for number in numbers} - set(model.asked)
        if before + len(new) > limit:
            with pytest.raises(BudgetExhaustedError):
                evaluator.correct(prompt, examples(*numbers))
            assert len(model.asked) == before, "nothing is asked that is not paid for"
        else:
            correct = evaluator.correct(prompt, examples(*numbers))
            assert correct.tolist() == [
                len(e.input) % task.num_labels == e.label for e in examples(*numbers)
            ]
        assert len(set(model.asked)) == len(model.asked) == evaluator.budget.used <= limit


def test_cached_answers_cost_nothing(
    language_model: LocalLanguageModel, task: Task, short_reviews: tuple[Example, ...]
) -> None:
    some = short_reviews[:4]
    first = Evaluator(language_model, task, QueryBudget(4))
    correct = first.correct(task.seed_prompt, some)
    assert correct.shape == (4,)
    assert correct.dtype == bool
    assert first.budget.used == 4
    assert first.correct(task.seed_prompt, [*some, some[0]])[:4].tolist() == correct.tolist()
    with pytest.raises(BudgetExhaustedError, match="1 queries wanted, 0 left"):
        first.correct(task.seed_prompt, short_reviews[:5])

    cache = AnswerCache(known=json.loads(first.cache.to_json()))
    second = Evaluator(language_model, task, QueryBudget(0), cache)
    assert second.correct(task.seed_prompt, some).tolist() == correct.tolist()
    with pytest.raises(BudgetExhaustedError):
        second.correct("Good or bad?", some)


def test_correct_means_equal_to_the_expected_answer(
    language_model: LocalLanguageModel, task: Task, short_reviews: tuple[Example, ...]
) -> None:
    some = short_reviews[:6]
    queries = [task.compose(task.seed_prompt, e.input) for e in some]
    answers = language_model.answer(queries, task.answers)
    expected = [a == task.answers[e.label] for a, e in zip(answers, some, strict=True)]
    evaluator = Evaluator(language_model, task, QueryBudget(6))
    assert evaluator.correct(task.seed_prompt, some).tolist() == expected


def test_one_models_answers_are_not_anothers(task: Task) -> None:
    one, other = CountingModel("one"), CountingModel("other")
    cache = AnswerCache()
    Evaluator(one, task, QueryBudget(9), cache).correct("p", examples(1, 2))
    Evaluator(other, task, QueryBudget(9), cache).correct("p", examples(1, 2))
    assert len(other.asked) == 2


def test_answers_to_more_questions_than_the_cache_holds(task: Task) -> None:
    model = CountingModel()
    evaluator = Evaluator(model, task, QueryBudget(20), AnswerCache(capacity=2))
    correct = evaluator.correct("p", examples(*range(6)))
    assert correct.tolist() == [len(e.input) % 2 == e.label for e in examples(*range(6))]
    assert len(evaluator.cache) == 2


@given(st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3))), st.integers(1, 5))
def test_cache_keeps_the_newest(pairs: list[tuple[str, str]], capacity: int) -> None:
    cache = AnswerCache(capacity)
    distinct = dict(pairs)
    for pair in distinct.items():
        cache.update([pair])
    kept = list(distinct)[-capacity:]
    assert len(cache) == len(kept)
    for question in distinct:
        assert cache.get(question) == (distinct[question] if question in kept else None)


def test_a_cache_keeps_what_is_used() -> None:
    cache = AnswerCache(3)
    for number in range(10):
        cache.update([("global", "yes")] if not number else [(str(number), "no")])
        assert cache.get("global") == "yes"
    assert cache.get("7") is None
    cache.update([("8", "no"), ("10", "no")])
    assert (cache.get("8"), cache.get("9")) == ("no", None)
    assert len(json.loads(cache.to_json(2))) == 2
    assert AnswerCache(known=json.loads(cache.to_json(1))).get("8") == "no"


def test_what_is_known_or_archived_is_told_for_nothing(task: Task) -> None:
    archive = Archive()
    model = CountingModel()
    cache = AnswerCache(archives=[archive])
    correct = Evaluator(model, task, QueryBudget(6), cache).correct("p", examples(*range(6)))
    for known in (cache, AnswerCache(archives=[archive])):
        evaluator = Evaluator(model, task, QueryBudget(0), known)
        assert evaluator.known("p", examples(6)) is None
        told = evaluator.known("p", examples(*range(6)))
        assert told is not None
        assert told.tolist() == correct.tolist()
        assert evaluator.from_archive == 0
    assert len(model.asked) == 6


@given(st.dictionaries(st.text(), st.text(), max_size=20))
def test_cache_survives_json(answers: dict[str, str]) -> None:
    cache = AnswerCache()
    cache.update(answers.items())
    copy = AnswerCache(known=json.loads(cache.to_json()))
    assert len(copy) == len(cache) == len(answers)
    assert all(copy.get(question) == answer for question, answer in answers.items())


def test_a_stored_cache_holds_no_question(task: Task, short_reviews: tuple[Example, ...]) -> None:
    evaluator = Evaluator(CountingModel(), task, QueryBudget(20))
    evaluator.correct("Tell a secret.", short_reviews[:10])
    text = evaluator.cache.to_json()
    words = {word for e in short_reviews[:10] for word in e.input.split() if len(word) > 3}
    assert len(json.loads(text)) == 10
    assert "secret" not in text
    assert not [word for word in words if word in text]


def ordered_by_label(pool: list[Example], seed: int) -> list[Example]:
    order = mixed_order([e.label for e in pool], np.random.default_rng(seed))
    return [pool[i] for i in order]


@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=4).filter(any),
    seed=st.integers(0, 2**32),
)
def test_every_prefix_holds_the_classes_in_proportion(sizes: list[int], seed: int) -> None:
    given_examples = [
        Example(f"{label} {i}", label) for label, size in enumerate(sizes) for i in range(size)
    ]
    ordered = ordered_by_label(given_examples, seed)
    assert Counter(ordered) == Counter(given_examples)
    total = len(ordered)
    for length in range(1, total + 1):
        counts = Counter(e.label for e in ordered[:length])
        for label, size in enumerate(sizes):
            # Each class is spread evenly with one place of play, so are the others it stands among.
            assert abs(counts[label] - length * size / total) <= len(sizes)


def test_two_equal_classes_stay_within_one() -> None:
    pool = [Example(f"{label} {i}", label) for label in (0, 1) for i in range(20)]
    for seed in range(20):
        labels = [e.label for e in ordered_by_label(pool, seed)]
        for length in range(0, 41, 2):
            assert sum(labels[:length]) == length // 2


def test_order_depends_on_the_seed_alone() -> None:
    pool = [Example(str(i), i % 2) for i in range(20)]
    orders = [ordered_by_label(pool, seed) for seed in (1, 1, 2)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


class Talkative:
    """A fake language model, for what is made of answers in its own words."""

    name = "talkative"

    def answer(self, queries: Sequence[str], choices: Sequence[str]) -> list[str]:
        says = ["I think it is Negative.", "Lovely, as you say: xx.", "No idea."]
        return [says[query.count("x") - 1] for query in queries]


def test_answers_in_other_words(task: Task) -> None:
    some = [Example("x", 0), Example("xx", 1), Example("xxx", 1)]
    evaluator = Evaluator(Talkative(), task, QueryBudget(3))
    assert evaluator.correct("p", some).tolist() == [True, False, False]
    assert evaluator.unparsed == 2
    assert evaluator.correct("p", some).tolist() == [True, False, False]
    assert evaluator.unparsed == 2, "what is known is not counted again"
    assert set(json.loads(evaluator.cache.to_json()).values()) == {"negative", ""}, (
        "an answer may repeat the question; what is kept of it does not"
    )


def test_answers_of_other_rules_are_not_reused(task: Task) -> None:
    some = [Example("xx", 1)]
    cache = AnswerCache()
    assert not Evaluator(Talkative(), task, QueryBudget(1), cache).correct("p", some).any()
    lenient = dataclasses.replace(task, synonyms=((), ("lovely",)))
    evaluator = Evaluator(Talkative(), lenient, QueryBudget(1), cache)
    assert evaluator.correct("p", some).all()
    assert (evaluator.unparsed, evaluator.budget.used) == (0, 1)
    assert evaluator.usage is None, "this model does not count"


class Interrupted(CountingModel):
    """A fake language model that is interrupted after some answers."""

    def iter_answers(
        self, queries: Sequence[str], choices: Sequence[str]
    ) -> Iterator[tuple[int, str | None]]:
        for index in reversed(range(len(queries))):
            if len(self.asked) == 3:
                raise KeyboardInterrupt
            yield index, self.answer([queries[index]], choices)[0]


def test_what_arrived_before_an_interruption_is_kept_and_charged(task: Task) -> None:
    model, cache = Interrupted(), AnswerCache()
    evaluator = Evaluator(model, task, QueryBudget(10), cache)
    with pytest.raises(KeyboardInterrupt):
        evaluator.correct("p", examples(*range(6)))
    assert evaluator.budget.used == len(cache) == 3
    whole = Evaluator(CountingModel(), task, QueryBudget(3), cache)
    assert whole.correct("p", examples(*range(6))).tolist() == [
        number % 2 == number % 3 % 2 for number in range(6)
    ]
    assert whole.budget.used == 3


class Refusing(CountingModel):
    """A fake language model that refuses every question."""

    def iter_answers(
        self, queries: Sequence[str], choices: Sequence[str]
    ) -> Iterator[tuple[int, str | None]]:
        yield from ((index, None) for index in range(len(queries)))


class Archive(dict[str, str]):
    """Answers in this process's memory alone."""

    put = dict.update


def test_what_was_refused_is_wrong_now_and_may_be_answered_later(task: Task) -> None:
    archive = Archive()
    evaluator = Evaluator(Refusing(), task, QueryBudget(9), AnswerCache(archives=[archive]))
    assert not evaluator.correct("p", examples(*range(3))).any()
    assert not evaluator.correct("p", examples(*range(3))).any()
    assert (evaluator.unparsed, evaluator.budget.used) == (3, 3)
    assert not archive
    later = Evaluator(CountingModel(), task, QueryBudget(9), AnswerCache(archives=[archive]))
    assert later.correct("p", examples(*range(3))).any()
    assert len(archive) == 3


def test_an_archived_answer_is_charged_once(task: Task) -> None:
    archive = Archive()
    first = Evaluator(CountingModel(), task, QueryBudget(2), AnswerCache(archives=[archive]))
    first.correct("p", examples(1, 2))
    model = CountingModel()
    again = Evaluator(model, task, QueryBudget(3), AnswerCache(archives=[archive]))
    for _ in range(2):
        again.correct("p", examples(1, 2, 4))
    assert (again.budget.used, again.from_archive, len(model.asked)) == (3, 2, 1)

"""Limits are kept, whatever answers turn out to cost."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feddtpt_flwr.amounts import Amounts, Tariff
from feddtpt_flwr.budget import FIRST_WAVE, BudgetExhaustedError, ClientBudget, Span
from feddtpt_flwr.data import Example, get_task
from feddtpt_flwr.evaluation import AnswerCache, Evaluator
from feddtpt_flwr.language_model.usage import Prices, Usage

TARIFF = Tariff(Prices(3.0, 7.0), longest_answer=5, around=20, probes=1, counted=True)
NONE = Amounts(inf, inf, inf, inf, inf)


def at_most(**limits: float) -> Amounts:
    return Amounts(
        **{**dict.fromkeys(("queries", "tokens", "cost", "seconds", "asked"), inf), **limits}
    )


class Priced:
    """A fake black box, for accounting only: answers cost what a script says, within the tariff.

    Its answers come in another order than the questions, as those of a concurrent one do.
    """

    name = "priced"

    def __init__(self, share: Iterator[float], on_use: Callable[[], None] = lambda: None) -> None:
        self._share = share
        self._on_use = on_use
        self.usage = Usage()
        self.asked: list[str] = []

    def answer(self, queries: Sequence[str], choices: Sequence[str]) -> list[str]:
        return [answer for _, answer in sorted(self.iter_answers(queries, choices))]

    def iter_answers(
        self, queries: Sequence[str], choices: Sequence[str]
    ) -> Iterator[tuple[int, str]]:
        # All are on their way before the first answer comes.
        self.asked += queries
        for query in queries:
            read = int(next(self._share) * (len(query.encode()) + TARIFF.around))
            self.usage += Usage(1, 0, max(1, read), int(next(self._share) * TARIFF.longest_answer))
        self._on_use()
        for index in reversed(range(len(queries))):
            yield index, choices[0]


shares = st.floats(0, 1).flatmap(
    lambda first: st.lists(st.floats(0, 1), max_size=20).map(lambda more: [first, *more])
)
limit = st.just(inf) | st.floats(0, 3000)


def forever(values: list[float]) -> Iterator[float]:
    while True:
        yield from values


@settings(deadline=None, max_examples=200)
@given(
    script=shares,
    queries=st.integers(0, 60),
    tokens=limit,
    cost=st.just(inf) | st.floats(0, 0.01),
    before=st.floats(0, 500),
    calls=st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=9, unique=True), max_size=8),
)
def test_no_limit_is_passed_and_what_is_left_is_less_than_a_question(
    script: list[float],
    queries: int,
    tokens: float,
    cost: float,
    before: float,
    calls: list[list[int]],
) -> None:
    task, model = get_task("rotten_tomatoes"), Priced(forever(script))
    told: list[Amounts] = []
    run = Span("run", at_most(tokens=tokens), Amounts(tokens=before, asked=1))
    budget = ClientBudget(
        queries, Span("round", at_most(cost=cost)), run, tariff=TARIFF, on_use=told.append
    )
    evaluator = Evaluator(model, task, budget, AnswerCache())
    for number, lengths in enumerate(calls):
        examples = [Example("é" * length, 0) for length in lengths]
        try:
            evaluator.correct(f"prompt {number}", examples)
            ended = ""
        except BudgetExhaustedError as error:
            ended = str(error)
        used = TARIFF.of(model.usage)
        assert budget.used == len(model.asked) <= queries
        assert model.usage.requests == 0 or before + used.tokens <= tokens
        assert used.cost <= cost + 1e-12
        assert budget.spent.tokens == pytest.approx(used.tokens)
        assert budget.spent.cost == pytest.approx(used.cost)
        assert sum(told, Amounts()).tokens == pytest.approx(used.tokens)
        assert sum(told, Amounts()).queries == budget.used
        if "another question" in ended:
            assert ended.startswith(budget.tightest)
            assert budget.left == 0
            # Another question could have passed a limit.
            most = max(
                TARIFF.most(task.compose(f"prompt {number}", e.input)).tokens for e in examples
            )
            start = 0 if model.asked else TARIFF.beginning.tokens
            room_in_tokens = tokens - before - used.tokens
            room_in_cost = (cost - used.cost) / TARIFF.prices.output * 1e6
            assert min(room_in_tokens, room_in_cost) < most + start + 1e-6


@given(limit=st.integers(0, 100), more=st.integers(0, 100), reserve=st.integers(0, 30))
def test_a_search_leaves_what_comparing_may_take(limit: int, more: int, reserve: int) -> None:
    budget = ClientBudget(more, Span("run", at_most(queries=limit), reserve=reserve))
    assert budget.limit == min(limit, more)
    assert budget.left == max(0, min(more, limit - reserve))


def test_what_another_attempt_has_paid_for_is_planned_for_once_more() -> None:
    before = Amounts(tokens=950, cost=0.95, seconds=5, asked=100)
    for kind in ("tokens", "cost"):
        limits = at_most(**{kind: 1000 if kind == "tokens" else 1.0})
        budget = ClientBudget(500, Span("run", limits, before), tariff=TARIFF, to_find=100)
        assert budget.left == 84
        budget.spend(60)  # found in an archive
        assert budget.left == 36
        with pytest.raises(BudgetExhaustedError):
            budget.admit(["x" * 100_000])
        assert budget.left == 0, "the limit itself holds"
    budget = ClientBudget(500, Span("run", limits, before), tariff=TARIFF, to_find=100)
    budget.spend(60)
    assert budget.admit(["x"]) == 1
    assert budget.left <= 4, "it takes another course than the attempt before"


def test_time_that_a_killed_attempt_has_used_was_for_what_it_asked() -> None:
    """Its queries are not counted before they come again."""
    before = Amounts(tokens=100, seconds=100, asked=200)
    budget = ClientBudget(
        10_000, Span("run", at_most(seconds=1000), before), tariff=TARIFF, clock=lambda: 0.0
    )
    assert budget.left == 1440


def test_what_others_have_cost_says_how_many_are_left() -> None:
    before = Amounts(queries=20, tokens=400, cost=2.0, asked=10)
    budget = ClientBudget(1000, Span("run", at_most(tokens=1000), before), tariff=TARIFF)
    assert (budget.left, budget.tightest) == (12, "tokens-per-run")
    budget = ClientBudget(1000, Span("run", at_most(cost=3.0), before), tariff=TARIFF)
    assert (budget.left, budget.tightest) == (4, "cost-per-run")
    budget = ClientBudget(3, Span("run", at_most(cost=3.0), before), tariff=TARIFF)
    assert (budget.left, budget.tightest) == (3, "")


def test_an_endpoint_that_reports_no_tokens_is_charged_what_it_may_have_used() -> None:
    budget = ClientBudget(10, Span("round", at_most(tokens=10_000)), tariff=TARIFF)
    questions = ["one", "two"]
    assert budget.admit(questions) == 2
    budget.settle(Usage(requests=2, uncounted=2))
    most = TARIFF.beginning + TARIFF.most("one") + TARIFF.most("two")
    assert budget.spent.tokens == most.tokens > 0


def test_answers_without_a_report_of_tokens_are_charged_beside_those_with_one() -> None:
    budget = ClientBudget(10, Span("round", at_most(tokens=10_000)), tariff=TARIFF)
    budget.admit(["one", "two"])
    budget.settle(Usage(2, 0, 4, 1, uncounted=1))
    booked = TARIFF.beginning + TARIFF.most("one") + TARIFF.most("two")
    assert budget.spent.tokens == 5 + booked.tokens / 2
    spent = budget.spent.tokens
    budget.admit(["one"])
    budget.settle(Usage(2, 0, 24, 1, uncounted=1))
    assert budget.spent.tokens == spent + TARIFF.most("one").tokens, "no more than was booked"


def test_two_models_at_the_same_price_each_have_a_first_question() -> None:
    other = replace(TARIFF)
    assert other == TARIFF
    budget = ClientBudget(10, Span("round", at_most(tokens=10_000)), tariff=TARIFF)
    each = TARIFF.beginning + TARIFF.most("one")
    for tariff, tokens in ((None, 1), (other, 2)):
        budget.admit(["one"], tariff)
        budget.settle(Usage(requests=1, uncounted=1), tariff)
        assert budget.spent.tokens == tokens * each.tokens
    budget.admit(["one"], other)
    assert budget.spent.tokens == 2 * each.tokens + TARIFF.most("one").tokens


class Clock:
    """A simulated clock: real seconds would make these tests slow or uncertain."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@settings(deadline=None)
@given(
    seconds=st.floats(0.1, 50),
    each=st.floats(0.01, 3),
    sizes=st.lists(st.integers(1, 30), max_size=9),
)
def test_time_is_passed_by_the_questions_on_their_way_at_most(
    seconds: float, each: float, sizes: list[int]
) -> None:
    clock, waves = Clock(), list[int]()

    def ask(budget: ClientBudget, number: int) -> None:
        budget.spend(number)
        done = 0
        try:
            while done < number:
                wave = budget.admit(["q"] * (number - done))
                waves.append(wave)
                assert clock.now - 100 < seconds, "nothing is sent after its time"
                clock.now += wave * each
                budget.settle(None)
                done += wave
        finally:
            budget.refund(number - done)

    budget = ClientBudget(10**6, Span("round", at_most(seconds=seconds)), clock=clock)
    for size in sizes:
        try:
            ask(budget, size)
        except BudgetExhaustedError:
            assert (budget.left, budget.tightest) == (0, "seconds-per-round")
    # Once it is known how long an answer takes, one more than planned at the most.
    assert clock.now - 100 <= max(seconds + each, FIRST_WAVE * each) + 1e-6


def test_nothing_is_held_back_without_limits() -> None:
    budget = ClientBudget(500, Span("round", NONE), Span("run", NONE), tariff=TARIFF)
    budget.spend(400)
    assert budget.admit(["q"] * 400) == 400
    budget.settle(Usage(400, 0, 4000, 400))
    budget.refund(0)
    assert (budget.left, budget.tightest, budget.limit) == (100, "", 500)
    free: Any = ClientBudget(5, Span("round", NONE))
    assert free.admit(["q"] * 9) == 9


def test_a_question_that_failed_gives_back_what_was_booked() -> None:
    budget = ClientBudget(10, Span("round", at_most(tokens=10_000)), tariff=TARIFF)
    budget.admit(["one"])
    budget.settle(Usage())
    assert budget.spent.tokens == 0


def test_a_generator_that_costs_too_much_leaves_the_rest() -> None:
    budget = ClientBudget(10, Span("round", at_most(tokens=1000)), tariff=TARIFF)
    with pytest.raises(BudgetExhaustedError):
        budget.admit(["x" * 5000], replace(TARIFF))
    assert budget.left > 0


def test_when_time_is_just_up_nothing_is_asked() -> None:
    times = iter([0.0, *[5.0] * 99])
    budget = ClientBudget(10, Span("round", at_most(seconds=5)), clock=lambda: next(times))
    with pytest.raises(BudgetExhaustedError, match="seconds-per-round"):
        budget.admit(["q"])

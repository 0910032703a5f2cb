"""Races and acceptance by hand: the answers are given, the search's arithmetic is looked at."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from math import inf
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from feddtpt_flwr.budget import QueryBudget
from feddtpt_flwr.data import Example
from feddtpt_flwr.evidence import Runner
from feddtpt_flwr.feedback import Feedback
from feddtpt_flwr.language_model import ModelUnavailableError
from feddtpt_flwr.search import WIDTH, PromptSearch, _still_fitting
from feddtpt_flwr.search_result import SearchResult
from strategies.candidates import Tokens
from strategies.edits import Edit

NUMBER = 32
START: Tokens = (0,)
EXAMPLES = [Example(str(number), number % 2) for number in range(NUMBER)]
HALF = np.arange(NUMBER) % 4 < 2  # of each label as many right as wrong


class Given:
    """An evaluator whose answers are given; as the real one, it asks nothing twice.

    After so many answers the black box fails, if wanted.
    """

    def __init__(
        self,
        answers: Mapping[Tokens, NDArray[np.bool_]],
        limit: int,
        fails_after: float = inf,
    ) -> None:
        self._fails_after = fails_after
        self._answers = {str(tokens): correct for tokens, correct in answers.items()}
        self.budget = QueryBudget(limit)
        self._known: set[tuple[str, str]] = set()

    @property
    def asked(self) -> Counter[str]:
        return Counter(prompt for prompt, _ in self._known)

    def correct_all(self, prompts: Sequence[str], examples: Sequence[Example]) -> NDArray[np.bool_]:
        new = {(p, e.input) for p in prompts for e in examples} - self._known
        if len(self._known) + len(new) > self._fails_after:
            raise ModelUnavailableError("down")
        self.budget.spend(len(new))
        self._known |= new
        which = [int(example.input) for example in examples]
        return np.array([self._answers[prompt][which] for prompt in prompts])


class GivenChanges:
    """Proposes every prompt there is, once."""

    def __init__(self, prompts: Sequence[Tokens]) -> None:
        self._edits = [Edit(0, 1, tokens) for tokens in prompts]

    def propose(
        self, tokens: Tokens, feedback: Feedback, rng: np.random.Generator, count: int
    ) -> list[Edit]:
        edits, self._edits = self._edits[:count], self._edits[count:]
        return edits


def language(likelihood: Mapping[Tokens, float]) -> Any:
    """A masked language model that only says how well prompts of one token read, in nats."""
    return SimpleNamespace(
        vocabulary=SimpleNamespace(decode=str),
        log_likelihood=lambda prompts: np.array([likelihood.get(p, 0.0) for p in prompts]),
    )


def idle(likelihood: Mapping[Tokens, float], **settings: Any) -> PromptSearch:
    """A search that has nothing to ask or to propose."""
    return PromptSearch(
        Given({}, 0),  # type: ignore[arg-type]
        GivenChanges([]),
        language(likelihood),
        EXAMPLES,
        np.random.default_rng(0),
        max_tokens=1,
        **settings,
    )


def raced(
    changes: Sequence[NDArray[np.bool_]],
    limit: int = 10_000,
    *,
    fails_after: float = inf,
    feedback: Feedback | None = None,
    likelihood: Mapping[Tokens, float] | None = None,
) -> tuple[SearchResult, list[int], Given]:
    """Search from a prompt that has half the answers; return how often each change was asked."""
    prompts: list[Tokens] = [(number,) for number in range(1, len(changes) + 1)]
    answers = dict(zip([START, *prompts], [HALF, *changes], strict=True))
    evaluator = Given(answers, limit, fails_after)
    search = PromptSearch(
        evaluator,  # type: ignore[arg-type]
        GivenChanges(prompts),
        language(likelihood or {}),
        EXAMPLES,
        np.random.default_rng(0),
        max_tokens=1,
    )
    result = search.run(START, Feedback() if feedback is None else feedback)
    return result, [evaluator.asked[str(prompt)] for prompt in prompts], evaluator


def better_by(number: int) -> NDArray[np.bool_]:
    """``number`` answers more than the prompt, and none lost."""
    correct = HALF.copy()
    correct[np.flatnonzero(~HALF)[:number]] = True
    return correct


def test_batches_double_and_the_better_half_goes_on() -> None:
    result, asked, _ = raced([better_by(16)] * WIDTH)
    assert sorted(asked) == [8, 8, 16, 32]
    assert result.accuracy == 1
    assert len(result.accepted) == 1


@pytest.mark.parametrize(("fails_after", "tried"), [(NUMBER, 0), (NUMBER + 40, WIDTH), (70, 4)])
def test_what_was_tried_before_a_failure_is_remembered(fails_after: int, tried: int) -> None:
    """However late in a race the black box fails."""
    feedback = Feedback()
    result, _, _ = raced([better_by(16)] * WIDTH, fails_after=fails_after, feedback=feedback)
    assert isinstance(result.failure, ModelUnavailableError)
    assert result.tokens == START
    assert len(feedback.trials) == result.num_trials == tried
    assert not any(trial.accepted for trial in feedback.trials)


def test_what_was_tried_is_remembered_if_nobody_can_judge_its_language(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The masked language model stands in for a service that is down."""

    def down(*_: object) -> None:
        raise ModelUnavailableError("503 Service Unavailable")

    monkeypatch.setattr("feddtpt_flwr.search.per_token", down)
    feedback = Feedback()
    result, _, _ = raced([better_by(16)] * WIDTH, feedback=feedback)
    assert isinstance(result.failure, ModelUnavailableError)
    assert result.tokens == START
    assert len(feedback.trials) == result.num_trials == WIDTH


@pytest.mark.parametrize("change", [~HALF & HALF, HALF], ids=["all wrong", "nothing changed"])
def test_what_hurts_or_does_nothing_costs_the_first_batch_only(
    change: NDArray[np.bool_],
) -> None:
    result, asked, evaluator = raced([change] * 3)
    assert asked == [8, 8, 8]
    assert result.tokens == START
    assert evaluator.budget.used == NUMBER + 3 * 8, "the prompt itself is asked about once"


def test_what_has_not_convinced_is_a_hunch() -> None:
    """The likeliest of all races, by answers and language, unless one was accepted."""
    nothing = [HALF] * WIDTH
    unreadable: dict[Tokens, float] = {(WIDTH + 1,): -9.0}
    reads_worse: dict[Tokens, float] = {**unreadable, (WIDTH + 2,): -2.5, (WIDTH + 3,): -2.4}
    result, _, _ = raced([*nothing, better_by(16), *nothing], likelihood=unreadable)
    assert (result.tokens, result.hunch) == (START, None), "no answers buy a prompt like this"
    some = [*nothing, better_by(16), HALF, better_by(16), HALF]
    result, _, _ = raced([*some, *nothing], likelihood=reads_worse)
    assert (result.tokens, result.accuracy, result.accepted) == (START, 0.5, ())
    assert result.hunch is not None
    assert result.hunch.tokens == (WIDTH + 3,)
    assert 0 < result.hunch.log_odds < 0.84
    assert result.hunch.gain in {4 / NUMBER, 8 / NUMBER, 0.5}, "on as many as it was tried on"
    assert not result.hunch.trial.accepted
    result, _, _ = raced(
        [*nothing, better_by(16), *nothing[1:], better_by(16)], likelihood=reads_worse
    )
    assert (result.tokens, result.hunch) == ((2 * WIDTH + 1,), None)
    result, _, _ = raced(nothing)
    assert result.hunch is None


def test_what_was_dropped_early_is_no_hunch() -> None:
    """Of four that answer alike, two are asked about half of the examples, and one about all."""
    likelihood: dict[Tokens, float] = {(1,): -9.0, (2,): -9.0, (3,): -2.4, (4,): -2.4}
    result, asked, _ = raced([better_by(16)] * WIDTH, likelihood=likelihood)
    assert asked == [32, 16, 8, 8]
    assert result.hunch is None
    result, _, _ = raced([better_by(16)] * WIDTH, likelihood={**likelihood, (2,): -2.4})
    assert result.hunch is not None
    assert result.hunch.tokens == (2,)


def test_as_many_race_as_the_budget_lets_one_of_them_finish() -> None:
    _, asked, evaluator = raced([better_by(16)] * WIDTH, limit=2 * NUMBER + 8)
    assert sorted(asked) == [0] * (WIDTH - 2) + [8, 32]
    assert evaluator.budget.left == 0


def test_nothing_is_tried_that_could_not_be_finished() -> None:
    result, asked, _ = raced([better_by(16)] * WIDTH, limit=2 * NUMBER - 1)
    assert asked == [0] * WIDTH
    assert result.accuracy == 0.5


@pytest.mark.parametrize(
    ("won", "lost", "nats", "convinces"),
    [
        (1, 0, 0.0, True),  # 0.75 likely to help; 0.7 is asked for
        (1, 0, -0.5, False),
        (1, 1, 0.0, False),
        (0, 0, 1.0, False),  # reading better is not enough
        (3, 0, -1.0, True),
        (16, 0, -2.0, True),
        (16, 0, -2.5, False),  # no number of answers buys what nobody can read
    ],
)
def test_evidence_is_weighed_against_language(
    won: int, lost: int, nats: float, convinces: bool
) -> None:
    correct = better_by(won)
    correct[np.flatnonzero(HALF)[:lost]] = False
    search = idle({START: -3.0, (1,): -3.0 + nats})
    runner = Runner(Edit(0, 1, (1,)), np.arange(NUMBER), correct, HALF, np.ones(NUMBER))
    assert search._convinces(runner, START) is convinces


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"confidence": 1.0}, r"confidence must be in \[0.5, 1\), got 1.0"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"first_batch": 0}, "first_batch must be at least 1, got 0"),
        ({"fluency": -0.5}, "fluency must be at least 0, got -0.5"),
    ],
)
def test_a_search_takes_no_settings_without_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        idle({}, **settings)


def test_of_equals_the_one_that_reads_best_wins() -> None:
    search = idle({START: -3.0, (1,): -3.5, (2,): -2.5})
    runners = [
        Runner(Edit(0, 1, (token,)), np.arange(NUMBER), better_by(4), HALF, np.ones(NUMBER))
        for token in (1, 2)
    ]
    for raced in (runners, runners[::-1]):
        winner, _ = search._winner(raced, START)
        assert winner is not None
        assert winner.edit.tokens == (2,)


def test_other_words_for_the_whole_are_not_joined_to_a_change_of_it() -> None:
    whole, part, end = Edit(0, 3, (7, 8)), Edit(1, 2, (9,)), Edit(3, 3, (4,))
    assert _still_fitting([whole, part, end], Edit(3, 3, (5,)), 3) == [part], "end is taken"
    assert _still_fitting([part, end], whole, 3) == []
    assert _still_fitting([end], part, 3) == [end]


def test_a_change_that_was_not_tried_on_all_examples_never_convinces() -> None:
    search = idle({})
    order = np.flatnonzero(~HALF)
    right, wrong = np.ones(16, dtype=bool), np.zeros(16, dtype=bool)
    runner = Runner(Edit(0, 1, (1,)), order, right, wrong, np.ones(16))
    assert not search._convinces(runner, START)


def test_each_label_counts_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 28 of one label and 4 of another, four won of the many do not make up for one lost."""
    module = sys.modules[__name__]
    uneven = [Example(str(number), int(number >= 28)) for number in range(32)]
    before = np.ones(32, dtype=bool)
    before[[0, 1, 2, 3, 31]] = False
    change = before.copy()
    change[:4] = True
    change[28] = False
    monkeypatch.setattr(module, "EXAMPLES", uneven)
    monkeypatch.setattr(module, "HALF", before)
    result, _, _ = raced([change])
    assert result.tokens == START


def test_every_first_batch_holds_right_and_wrong_answers() -> None:
    """Of 32 answers 8 are wrong; of the first 8 of a race about 2, and so some always are."""
    before = np.ones(32, dtype=bool)
    before[:8] = False
    wrong = []
    for seed in range(100):
        asked: list[list[int]] = []

        class Watched(Given):
            """A double that also keeps which examples it was asked about."""

            def correct_all(
                self, prompts: Sequence[str], examples: Sequence[Example]
            ) -> NDArray[np.bool_]:
                asked.append([int(example.input) for example in examples])  # noqa: B023
                return super().correct_all(prompts, examples)

        search = PromptSearch(
            Watched({START: before, (1,): before}, 10_000),  # type: ignore[arg-type]
            GivenChanges([(1,)]),
            language({}),
            EXAMPLES,
            np.random.default_rng(seed),
            max_tokens=1,
        )
        search.run(START, Feedback())
        wrong.append(sum(not before[i] for i in asked[1]))
    assert min(wrong) >= 1
    assert max(wrong) <= 3

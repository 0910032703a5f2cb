from typing import get_args

import pytest

from strategies.by_model import ChooseFor, Count, by_model, compared_by, model_name
from strategies.candidates import Candidate, Score, choose

OLD, GOOD_FOR_MOST, GOOD_FOR_ALL = (1,), (2,), (3,)
CANDIDATES = [Candidate(tokens, "x") for tokens in (OLD, GOOD_FOR_MOST, GOOD_FOR_ALL)]


def count(model: str, *correct: int) -> Count:
    scores = {c.tokens: Score(n, 10) for c, n in zip(CANDIDATES, correct, strict=True)}
    return Count(model, scores)


COUNTS = [count("large", 5, 9, 7), count("large", 5, 9, 7), count("small", 5, 2, 6)]


def test_the_mean_is_over_all_answers() -> None:
    scores = compared_by(COUNTS, "mean")
    assert scores[GOOD_FOR_MOST] == Score(20, 30)
    assert choose(CANDIDATES, scores)[0].tokens == GOOD_FOR_MOST


def test_the_worst_is_the_model_with_the_lowest_accuracy() -> None:
    scores = compared_by(COUNTS, "worst")
    assert scores == {OLD: Score(10, 20), GOOD_FOR_MOST: Score(2, 10), GOOD_FOR_ALL: Score(6, 10)}
    assert choose(CANDIDATES, scores)[0].tokens == GOOD_FOR_ALL


def test_with_one_model_both_are_the_same() -> None:
    counts = [count("one", 5, 9, 7), count("one", 4, 4, 4)]
    assert compared_by(counts, "worst") == compared_by(counts, "mean")


def test_counts_of_each_model() -> None:
    scores = by_model(COUNTS)
    assert list(scores) == ["large", "small"]
    assert scores["small"][GOOD_FOR_ALL] == Score(6, 10)


def test_without_counts_there_are_no_scores() -> None:
    assert by_model([]) == {}
    assert compared_by([], "worst") == {}


@pytest.mark.parametrize(
    ("metrics", "name"),
    [({}, ""), ({"model": " a\nb "}, "a b"), ({"model": 3}, "3"), ({"model": "x" * 99}, "x" * 64)],
)
def test_a_models_name_is_one_short_line(metrics: dict[str, object], name: str) -> None:
    assert model_name(metrics) == name


def test_of_two_clients_both_are_believed_and_of_three_none_too_far() -> None:
    far = [count("one", 0, 0, 10), count("one", 6, 5, 4)]
    assert compared_by(far, "mean")[GOOD_FOR_ALL] == Score(14, 20)
    more = [*far, count("one", 6, 5, 4)]
    # 10 of 10 where its mean is 10 / 3: of the rest counts what chance makes of its variance.
    rest = (1 / 40) / (2 / 9) * (10 - 10 / 3)
    for choose_for in get_args(ChooseFor):
        assert compared_by(more, choose_for)[GOOD_FOR_ALL].correct == pytest.approx(
            10 / 3 + rest + 4 + 4, abs=0.01
        )


def test_three_liars_of_ten_do_not_decide() -> None:
    """They say that the worst prompt answers everything, and the others nothing."""
    honest, liars = [count("one", 5, 8, 7)] * 7, [count("one", 10, 0, 0)] * 3
    scores = compared_by([*honest, *liars], "mean")
    assert choose(CANDIDATES, scores)[0].tokens == GOOD_FOR_MOST
    believed = {
        c.tokens: sum(x.scores[c.tokens].correct for x in honest + liars) for c in CANDIDATES
    }
    assert max(believed, key=believed.__getitem__) == OLD

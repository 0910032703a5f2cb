import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from feddtpt_flwr.statistics import Proportion, paired_difference


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (81, 263, 0.2553, 0.3662),  # Newcombe (1998), table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval(correct: int, total: int, low: float, high: float) -> None:
    share = Proportion(correct, total)
    assert share.value == correct / total
    assert share.low == pytest.approx(low, abs=1e-4)
    assert share.high == pytest.approx(high, abs=1e-4)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_share(counts: tuple[int, int]) -> None:
    share = Proportion(*counts)
    assert -1e-12 <= share.low <= share.value + 1e-12
    assert share.value - 1e-12 <= share.high <= 1 + 1e-12
    assert share.low < share.high


def test_a_share_in_words() -> None:
    assert str(Proportion(5, 10)) == "50.0% [23.7%, 76.3%]"


def answers(right: int, wrong: int) -> NDArray[np.bool_]:
    return np.array([True] * right + [False] * wrong)


@pytest.mark.parametrize("number", [2, 12])
def test_few_examples_without_a_difference_do_not_say_that_there_is_none(number: int) -> None:
    same = answers(number // 2, number - number // 2)
    mean, low, high = paired_difference(same, same)
    assert mean == 0.0
    assert low < -0.05 < 0.05 < high
    mean, low, high = paired_difference(answers(0, number), answers(number, 0))
    assert -1 <= low < mean == high == 1.0


@pytest.mark.parametrize("number", [10, 20, 100])
def test_the_interval_holds_the_difference_as_often_as_it_says(number: int) -> None:
    """Of a prompt that gains a tenth of the answers and loses a twentieth."""
    rng, held, runs = np.random.default_rng(number), 0, 2_000
    for _ in range(runs):
        drawn = rng.choice(4, number, p=[0.6, 0.1, 0.05, 0.25])  # both, won, lost, neither
        _, low, high = paired_difference(np.isin(drawn, [0, 2]), np.isin(drawn, [0, 1]))
        held += low <= 0.05 <= high
    assert 0.93 <= held / runs <= 0.995


def test_difference_and_sign() -> None:
    before, after = answers(50, 50), answers(70, 30)
    mean, low, high = paired_difference(before, after)
    assert mean == pytest.approx(0.2)
    assert 0.1 < low < 0.2 < high < 0.3
    back = paired_difference(after, before)
    assert back[0] == pytest.approx(-mean)
    assert back[1] < back[0] < back[2] < 0


def test_the_interval_is_that_of_pairs() -> None:
    """Answers that change together tell more than two shares of the same size that do not."""
    base = np.tile([True, False], 100)
    paired = base.copy()
    paired[1:41:2] = True
    shuffled = np.random.default_rng(0).permutation(paired)
    _, low, high = paired_difference(base, paired)
    _, wide_low, wide_high = paired_difference(base, shuffled)
    assert high - low < 0.7 * (wide_high - wide_low)
    assert low > 0
    # 20 of 200 changed: the textbook's standard error of a mean, twice to each side.
    error = np.sqrt(0.1 * 0.9 / 200)
    assert (high - low) == pytest.approx(2 * 1.96 * error, rel=0.15)

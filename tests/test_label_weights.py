"""With uneven labels, a client judges as if it had as many examples of each."""

import numpy as np
import pytest

from feddtpt_flwr.data import Example
from feddtpt_flwr.evidence import Runner, probability_of_gain
from feddtpt_flwr.label_weights import accuracy, label_weights
from strategies.edits import Edit

EVEN = [Example(str(number), number % 3) for number in range(12)]
UNEVEN = [Example(str(number), int(number >= 10)) for number in range(12)]  # 10 and 2
FIRST = np.arange(12) < 10


def test_examples_of_even_labels_count_one_exactly() -> None:
    weights = label_weights(EVEN)
    assert weights.tolist() == [1.0] * 12
    assert label_weights([Example("alone", 1)] * 5).tolist() == [1.0] * 5


def test_all_labels_weigh_the_same_together() -> None:
    weights = label_weights(UNEVEN)
    assert weights.mean() == pytest.approx(1)
    assert weights[FIRST].sum() == pytest.approx(weights[~FIRST].sum())
    assert accuracy(FIRST, weights) == pytest.approx(0.5)


def test_to_give_the_commonest_label_always_is_no_gain() -> None:
    """Six answers are won and two lost, but all of the rare label's."""
    weights, before = label_weights(UNEVEN), np.arange(12) >= 6
    runner = Runner(Edit(0, 1, (5,)), np.arange(12), FIRST, before, weights)
    trial = runner.trial((1,), accepted=False)
    assert runner.helps < 0.5
    assert trial.gain == pytest.approx(-0.2)
    assert trial.accuracy == pytest.approx(0.5)
    counted = Runner(Edit(0, 1, (5,)), np.arange(12), FIRST, before, np.ones(12))
    assert counted.helps > 0.8, "as it would be by number"


@pytest.mark.parametrize(("won", "lost"), [(0.4, 0.0), (2.7, 1.3), (5.5, 0.25), (0.1, 3.0)])
def test_parts_of_answers_tell_something_between_whole_ones(won: float, lost: float) -> None:
    low = probability_of_gain(np.floor(won), np.ceil(lost))
    assert low <= probability_of_gain(won, lost) <= probability_of_gain(np.ceil(won), int(lost))
    assert probability_of_gain(won, lost) == pytest.approx(1 - probability_of_gain(lost, won))
    assert probability_of_gain(won, won) == 0.5
    assert probability_of_gain(won + 0.01, lost) > probability_of_gain(won, lost)


def test_a_draw_of_weighted_answers_is_no_gain() -> None:
    """Three answers of a tenth more than weigh what one of three tenths does."""
    weights = np.array([0.1, 0.1, 0.1, 0.3])
    before = np.array([True, True, True, False])
    runner = Runner(Edit(0, 1, (5,)), np.arange(4), ~before, before, weights)
    assert weights[:3].sum() != weights[3]
    assert runner.net_gain == 0.0
    assert runner.helps == 0.5

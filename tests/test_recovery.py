"""Which of the searches that were killed a client goes on from."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from feddtpt_flwr.attempts import Attempt
from feddtpt_flwr.data import Example
from feddtpt_flwr.evaluation import Evaluator
from feddtpt_flwr.recovery import Recovery
from feddtpt_flwr.vocabulary import Vocabulary


class Known:
    """A double of an evaluator that has every answer."""

    def __init__(self, **right: int) -> None:
        self.right = right
        self.budget = SimpleNamespace(left=100)

    def known(self, text: str, examples: list[Example]) -> NDArray[np.bool_]:
        return np.arange(len(examples)) < self.right[text]

    def correct_all(self, texts: list[str], examples: list[Example]) -> NDArray[np.bool_]:
        return np.array([self.known(text, examples) for text in texts])


def test_the_best_of_killed_searches_counts() -> None:
    examples = [Example(str(i), 0) for i in range(4)]
    vocabulary: Any = SimpleNamespace(decode=lambda tokens: f"p{tokens[0]}")
    known = cast(Evaluator, Known(p0=1, p1=3, p2=2, p3=1))
    recovery = Recovery((0,), known, cast(Vocabulary, vocabulary), examples)
    best = recovery.found([Attempt((1,)), None, Attempt((2,))])
    assert best is not None
    assert (best.tokens, best.accuracy, best.start_accuracy) == ((1,), 0.75, 0.25)
    assert recovery.found([Attempt((3,))]) is None, "as good is no gain"
    assert recovery.start(Attempt((3,))) == ((0,), 0.25)
    assert recovery.start(Attempt((2,))) == ((2,), 0.25)
    assert recovery.start(None) == ((0,), None)

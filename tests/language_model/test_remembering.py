from collections.abc import Sequence

import pytest

from feddtpt_flwr.data import Example
from feddtpt_flwr.language_model.local import LocalLanguageModel
from feddtpt_flwr.language_model.remembering import RememberingLanguageModel

CHOICES = ("negative", "positive")


class Counting:
    """The real model, and what it was asked."""

    def __init__(self, model: LocalLanguageModel) -> None:
        self._model = model
        self.name = model.name
        self.asked: list[tuple[str, ...]] = []

    def answer(self, queries: Sequence[str], choices: Sequence[str]) -> list[str]:
        self.asked.append(tuple(queries))
        return self._model.answer(queries, choices)


@pytest.mark.slow
def test_nothing_is_computed_twice(
    language_model: LocalLanguageModel, short_reviews: tuple[Example, ...]
) -> None:
    queries = [f"Movie review.{example.input}" for example in short_reviews[:6]]
    expected = language_model.answer(queries, CHOICES)
    counting = Counting(language_model)
    model = RememberingLanguageModel(counting)
    assert model.name == language_model.name
    assert model.answer(queries[:4], CHOICES) == expected[:4]
    assert model.answer(queries[2:] + queries[:1], CHOICES) == expected[2:] + expected[:1]
    assert counting.asked == [tuple(queries[:4]), tuple(queries[4:])]
    # Other answer words are another question.
    assert set(model.answer(queries[:1], ("yes", "no"))) <= {"yes", "no"}
    assert counting.asked[2:] == [tuple(queries[:1])]
    assert model.answer([], CHOICES) == []


@pytest.mark.slow
def test_the_oldest_answers_are_forgotten(
    language_model: LocalLanguageModel, short_reviews: tuple[Example, ...]
) -> None:
    queries = [f"Movie review.{example.input}" for example in short_reviews[:4]]
    counting = Counting(language_model)
    model = RememberingLanguageModel(counting, capacity=2)
    model.answer(queries, CHOICES)
    model.answer(queries[2:], CHOICES)
    assert len(counting.asked) == 1
    model.answer(queries[:1], CHOICES)
    assert counting.asked[1:] == [tuple(queries[:1])]

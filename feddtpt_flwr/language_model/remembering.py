"""A model that computes no answer twice."""

from collections.abc import Sequence

from feddtpt_flwr.language_model.base import LanguageModel
from feddtpt_flwr.memory import Memory

CAPACITY = 16384
"""Answers kept for each list of answer words; of 500 characters each, some 10 MB of questions."""


class RememberingLanguageModel:
    """Answers of a deterministic model, kept for all who ask in this process.

    Simulated clients at work in one process ask the same about the public examples, and rounds ask
    again what earlier ones asked. It spares time only: whoever asks counts its queries as before.

    Parameters
    ----------
    model : LanguageModel
        Always gives a question the same answer.
    capacity : int, optional
        Most answers kept; the least recently used are forgotten. Defaults to `CAPACITY`.
    """

    def __init__(self, model: LanguageModel, capacity: int = CAPACITY) -> None:
        self._model = model
        self._capacity = capacity
        self._answers: dict[tuple[str, ...], Memory[str, str]] = {}

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model.name

    def answer(self, queries: Sequence[str], choices: Sequence[str]) -> list[str]:
        """Answer every query (see `LanguageModel.answer`)."""
        words = tuple(choices)
        if words not in self._answers:
            self._answers[words] = Memory(
                lambda missing: self._model.answer(missing, words), self._capacity
            )
        return self._answers[words].get(queries)

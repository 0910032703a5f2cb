"""What the search may know of a language model: text in, text out."""

from collections.abc import Sequence
from typing import Protocol


class FatalModelError(RuntimeError):
    """A model will not answer, however often it is asked: a refused key, an unknown model."""


class ModelUnavailableError(RuntimeError):
    """A model did not answer for now, although it was asked repeatedly."""


class LanguageModel(Protocol):
    """A black-box language model.

    Implementations return text and nothing else: no probabilities, no gradients. That is what keeps
    a learned prompt honest about any provider, and what makes it transferable.
    """

    @property
    def name(self) -> str:
        """Human-readable identity of the model and of its settings that change answers."""
        ...

    def answer(self, prompt: str, inputs: Sequence[str], choices: Sequence[str]) -> list[str]:
        """Answer ``prompt + input`` for every input.

        Parameters
        ----------
        prompt : str
            The instruction, shared by all inputs.
        inputs : Sequence[str]
            What follows the prompt in each query, separator included.
        choices : Sequence[str]
            Answer words. A backend that can constrain its output returns one of them; one that
            cannot returns the text as it came, and the caller compares. Empty for free text.

        Returns
        -------
        list[str]
            One answer per input, in order.
        """
        ...

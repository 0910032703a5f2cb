"""What the search may know of a language model: text in, text out."""

from collections.abc import Sequence
from typing import Protocol


class LanguageModel(Protocol):
    """A black-box language model.

    Implementations return text and nothing else: no probabilities, no gradients. That is what keeps
    a learned prompt honest about any provider, and what makes it transferable.
    """

    @property
    def name(self) -> str:
        """Human-readable identity of the model and of its settings that change answers."""
        ...

    def answer(self, queries: Sequence[str], choices: Sequence[str]) -> list[str]:
        """Answer every query.

        Parameters
        ----------
        queries : Sequence[str]
            Instruction and input in one text each. A backend does well to notice what they begin
            with in common, and to work on many at once.
        choices : Sequence[str]
            Answer words. A backend that can constrain its output returns one of them; one that
            cannot returns the text as it came, and the caller compares. Empty for free text.

        Returns
        -------
        list[str]
            One answer per query, in order.
        """
        ...

"""What the search may know of a language model: text in, text out."""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

FREE_TOKENS = 64
"""Longest free text, in tokens: a sentence or two. Answer words are shorter."""


class ModelError(RuntimeError):
    """The black box gives no answer.

    The message names the endpoint and what is wrong, and holds neither a key nor a question.

    Parameters
    ----------
    message : str
        What is told to all.
    said : str
        What the server said: for this node's own log.
    """

    def __init__(self, message: str = "", said: str = "") -> None:
        super().__init__(message)
        self.said = said


class FatalModelError(ModelError):
    """Asking again cannot help: the key is refused, the model unknown, the account empty."""


class ModelUnavailableError(ModelError):
    """The model did not answer, however often it was asked; it may do so later."""


class UnansweredError(ModelUnavailableError):
    """The model was reached every time and gave no answer."""


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

        Raises
        ------
        ModelError
            If a model somewhere else does not answer.
        """
        ...


@runtime_checkable
class IncrementalLanguageModel(Protocol):
    """A black box whose answers come one by one, and may stop coming.

    What has arrived before a failure or an interruption is already with the caller.
    """

    def iter_answers(
        self, queries: Sequence[str], choices: Sequence[str]
    ) -> Iterator[tuple[int, str | None]]:
        """Yield the index of a query and its answer, in the order of their arrival.

        The answer is None where the model refuses the query, as too long for instance: it may
        take it another time.

        Raises
        ------
        ModelError
            After the answers that did arrive.
        """
        ...

"""What answers cost: requests, tokens and money."""

from dataclasses import astuple, dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Usage:
    """Requests to an endpoint, and the tokens that it says it has counted.

    Parameters
    ----------
    requests : int
        Requests that were answered.
    retries : int
        Requests that failed and were sent again.
    prompt_tokens, completion_tokens : int
        Tokens read and written; 0 if the endpoint reports none.
    uncounted : int
        Requests that were answered without a word about tokens.
    """

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        """Return the sum of both."""
        return Usage(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, earlier: "Usage") -> "Usage":
        """Return what was used since ``earlier``."""
        return Usage(*(a - b for a, b in zip(astuple(self), astuple(earlier), strict=True)))


@dataclass(frozen=True)
class Prices:
    """Prices per million tokens, in any currency, at least 0."""

    input: float = 0.0
    output: float = 0.0

    def cost(self, usage: Usage) -> float:
        """Return the price of ``usage`` in the same currency."""
        return (
            self.input * usage.prompt_tokens + self.output * usage.completion_tokens
        ) / 1_000_000


@runtime_checkable
class Metered(Protocol):
    """A black box that knows what it has used."""

    @property
    def usage(self) -> Usage:
        """What was used since the model was made."""
        ...

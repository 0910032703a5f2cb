"""Amounts of what a client may use, and what a question costs of them."""

from dataclasses import astuple, dataclass, fields

from feddtpt_flwr.language_model.constraints import PROBE
from feddtpt_flwr.language_model.usage import Prices, Usage

CHAT_TOKENS = 128
"""Most tokens that a chat template puts around a question."""

PLAIN_TOKENS = 4
"""The same without one: a mark of the beginning."""


@dataclass(frozen=True)
class Amounts:
    """Amounts of all that is limited: used, left, or allowed.

    Parameters
    ----------
    queries : float
        Questions, whether the black box or an archive answers them.
    tokens : float
        Tokens read and written.
    cost : float
        Money, in the currency of the prices.
    seconds : float
        Time.
    asked : float
        Questions that the black box answered; not limited, but what an answer costs is per one.
    """

    queries: float = 0
    tokens: float = 0
    cost: float = 0.0
    seconds: float = 0.0
    asked: float = 0

    def __add__(self, other: "Amounts") -> "Amounts":
        """Return the sum of both."""
        return Amounts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: "Amounts") -> "Amounts":
        """Return the difference."""
        return Amounts(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))


KINDS = tuple(field.name for field in fields(Amounts) if field.name != "asked")
"""Kinds of limits, as the settings name them before ``-per-round`` and ``-per-run``."""


@dataclass(frozen=True)
class Tariff:
    """What questions to a black box cost.

    Parameters
    ----------
    prices : Prices
        Of its tokens.
    longest_answer : int
        Most tokens that it writes.
    around : int
        Most tokens that it reads besides the question.
    probes : int
        Most questions of one line by which a process gets to know an endpoint.
    counted : bool
        Whether it counts tokens at all; one in this process does not.
    """

    prices: Prices = Prices(0.0, 0.0)  # noqa: RUF009 (it is frozen)
    longest_answer: int = 0
    around: int = 0
    probes: int = 0
    counted: bool = False

    def most(self, question: str) -> Amounts:
        """Return what one question may cost at most.

        No token of the common tokenizers stands for less than a byte.
        """
        if not self.counted:
            return Amounts()
        return self.of(Usage(0, 0, len(question.encode()) + self.around, self.longest_answer))

    @property
    def beginning(self) -> Amounts:
        """What the first question of a process may cost besides: the probes."""
        probe = self.most(PROBE)
        return Amounts(tokens=self.probes * probe.tokens, cost=self.probes * probe.cost)

    def of(self, used: Usage) -> Amounts:
        """Return tokens and money of what was used."""
        return Amounts(
            tokens=used.prompt_tokens + used.completion_tokens, cost=self.prices.cost(used)
        )

"""Which prompts still read as language."""

from functools import cached_property

from feddtpt_flwr.masked_lm import MaskedLM
from strategies.candidates import Tokens


class Readability:
    """Tells whether a prompt reads at most so much worse than the seed prompt.

    Accuracy alone does not keep a prompt readable: where many prompts are equally right, most are
    word salad. What is refused here costs no query.

    Parameters
    ----------
    masked_lm : MaskedLM
        Judges the language.
    seed : Tokens
        The seed prompt.
    max_loss : float
        Most nats per token that a prompt may be less likely than the seed prompt, at least 0.
    """

    def __init__(self, masked_lm: MaskedLM, seed: Tokens, max_loss: float) -> None:
        self._masked_lm = masked_lm
        self._seed = seed
        self._max_loss = max_loss

    @cached_property
    def _floor(self) -> float:
        return self._per_token(self._seed) - self._max_loss

    def __call__(self, tokens: Tokens) -> bool:
        """Return whether the prompt ``tokens`` is readable."""
        return tokens == self._seed or self._per_token(tokens) >= self._floor

    def _per_token(self, tokens: Tokens) -> float:
        # Per token: the sum would call every shorter prompt the better one.
        return self._masked_lm.log_likelihood(tokens) / len(tokens)

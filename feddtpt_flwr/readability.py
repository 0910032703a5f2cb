"""Which prompts still read as language."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

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
        return float(per_token(self._masked_lm, [self._seed])[0]) - self._max_loss

    def __call__(self, tokens: Tokens) -> bool:
        """Return whether the prompt ``tokens`` is readable."""
        return self.each([tokens])[0]

    def each(self, prompts: Sequence[Tokens]) -> list[bool]:
        """Return of each prompt whether it is readable."""
        scores = per_token(self._masked_lm, prompts)
        pairs = zip(prompts, scores, strict=True)
        return [tokens == self._seed or bool(score >= self._floor) for tokens, score in pairs]


def per_token(masked_lm: MaskedLM, prompts: Sequence[Tokens]) -> NDArray[np.float64]:
    """Return each prompt's log-likelihood in nats per token.

    Per token, since the sum would call every shorter prompt the better one.
    """
    lengths = np.array([len(tokens) for tokens in prompts])
    scores: NDArray[np.float64] = masked_lm.log_likelihood(prompts) / lengths
    return scores

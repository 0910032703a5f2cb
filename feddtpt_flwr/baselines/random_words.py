"""Proposals without any model: the paper's first ablation of the client (Table 4)."""

import numpy as np

from feddtpt_flwr.feedback import Feedback
from feddtpt_flwr.vocabulary import Vocabulary
from strategies.candidates import Tokens
from strategies.edits import Edit


class RandomProposer:
    """Replaces any word of the prompt by any word of the vocabulary.

    Nothing steers it, neither a language model nor the feedback.

    Parameters
    ----------
    vocabulary : Vocabulary
        Says which tokens are words.
    excluded_words : tuple[str, ...]
        Words never proposed.
    """

    def __init__(self, vocabulary: Vocabulary, *, excluded_words: tuple[str, ...] = ()) -> None:
        self._vocabulary = vocabulary
        self._allowed = np.flatnonzero(vocabulary.proposable(excluded_words))

    def propose(
        self, tokens: Tokens, feedback: Feedback, rng: np.random.Generator, count: int
    ) -> list[Edit]:
        """Return ``count`` replacements in the prompt ``tokens``, not necessarily different."""
        words = self._vocabulary.words(tokens)
        spans = [words[place] for place in rng.integers(len(words), size=count)]
        chosen = rng.choice(self._allowed, size=count)
        return [Edit(a, b, (int(new),)) for (a, b), new in zip(spans, chosen, strict=True)]

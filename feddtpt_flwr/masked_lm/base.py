"""Masked language models: what fits into a gap between tokens, and how well a prompt reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from feddtpt_flwr.vocabulary import Vocabulary
from strategies.candidates import Tokens

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Fillings:
    """Tokens for a gap, most likely first.

    Parameters
    ----------
    tokens : NDArray[np.int64]
        Shape ``(k,)``.
    log_probs : NDArray[np.float64]
        Natural logarithms of probabilities that sum to one over ``tokens``, shape ``(k,)``.
    """

    tokens: NDArray[np.int64]
    log_probs: NDArray[np.float64]


Gap = tuple[Tokens, Tokens]
"""The tokens to the left and to the right of a gap."""


class MaskedLM(Protocol):
    """Fills gaps between two token sequences."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens that this model reads and proposes."""
        ...

    @property
    def token_embeddings(self) -> NDArray[np.float32] | None:
        """Where each token lies in meaning, unit rows ``(vocabulary, d)``; None if not known."""
        ...

    def fill(self, gaps: Sequence[Gap]) -> list[Fillings]:
        """Propose one token for every gap; deterministic."""
        ...

    def log_likelihood(self, prompts: Sequence[Tokens]) -> NDArray[np.float64]:
        """Return how well each prompt reads as language: log-probabilities in nats, at most 0."""
        ...


class TokenEmbedder(Protocol):
    """Gives every token of a prompt its contextual embedding."""

    def embed(self, prompts: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        """Return ``E_k^n = z(p_k^n)`` (equation 3): for each prompt ``(N_k,)`` one ``(N_k, d)``."""
        ...


def ranked(tokens: "torch.Tensor", scores: "torch.Tensor") -> Fillings:
    """Return tokens and their log-probabilities among themselves, likeliest first."""
    log_probs, order = scores.log_softmax(0).sort(descending=True)
    return Fillings(
        tokens[order].cpu().numpy().astype(np.int64), log_probs.cpu().numpy().astype(np.float64)
    )


def centred_unit_rows(weight: "torch.Tensor") -> NDArray[np.float32]:
    """Return the rows of an embedding matrix without their mean, each of length one."""
    import torch

    # One copy, changed in place: of a large vocabulary each further one would take its time.
    copied = weight.detach().to("cpu", torch.float32, copy=True)
    rows: NDArray[np.float32] = copied.numpy()
    # All rows share a large common direction; without it, cosines tell words apart.
    rows -= rows.mean(0)
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    rows /= np.maximum(lengths, 1e-9)[:, None]
    return rows

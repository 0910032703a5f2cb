"""What the clients of one round sent, laid out flat and in an order of its own."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.attention import log_softmax, mean_one, similarity_to_others, unit_rows

Embeddings = NDArray[np.floating[Any]]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

WEIGHT_DECIMALS = 9
"""Log attention weights that agree to so many decimals are equal: the rest is rounding."""

LARGEST_TOKEN = int(np.iinfo(np.int64).max)
"""Unsigned token ids beyond would become negative ones."""


@dataclass(frozen=True)
class Uploads:
    """Local prompts of one round, one row per token, clients in canonical order.

    The canonical order sorts clients by what they sent, never by when they sent it. Everything
    computed from it is therefore the same for every order of arrival, down to the last bit.

    Attributes
    ----------
    tokens, clients, positions
        Shape ``(n,)``: token id, client (canonical), position in that client's prompt from 0.
    embeddings
        One array per client, shape ``(N_k, d)``.
    client_weights
        Shape ``(K,)``, mean 1.
    accuracies
        Shape ``(K,)``, or ``None`` when the clients reported none.
    arrival
        Shape ``(K,)``: place of each client in the caller's sequences.
    similarity, log_weights
        Shape ``(n,)``: ``w`` and ``log(alpha * N_k)`` of section 3.4. The factor ``N_k`` makes
        prompts of unequal length comparable, because alpha sums to 1 over a prompt however long
        it is; with equal lengths it changes no comparison. The logarithm does not underflow.
    """

    tokens: Ints
    clients: Ints
    positions: Ints
    embeddings: tuple[Embeddings, ...]
    client_weights: Floats
    accuracies: Floats | None
    arrival: Ints
    similarity: Floats
    log_weights: Floats

    @property
    def lengths(self) -> Ints:
        """Length of each client's prompt, shape ``(K,)``."""
        return np.bincount(self.clients)

    @property
    def relative_positions(self) -> Floats:
        """Position over prompt length, shape ``(n,)``, in [0, 1)."""
        return np.asarray(self.positions / self.lengths[self.clients], dtype=np.float64)

    @property
    def mean_length(self) -> int:
        """Mean prompt length, halves rounded up."""
        return int(np.floor(self.lengths.mean() + 0.5))

    @property
    def repetitions(self) -> dict[int, int]:
        """For each uploaded token, how often the prompt that repeats it most holds it."""
        pairs = np.unique(np.column_stack([self.tokens, self.clients]), axis=0, return_counts=True)
        most: dict[int, int] = {}
        for token, count in zip(pairs[0][:, 0].tolist(), pairs[1].tolist(), strict=True):
            most[token] = max(count, most.get(token, 0))
        return most

    @property
    def occurrences(self) -> Ints:
        """Shape ``(n,)``: how often the token stood earlier in the same prompt."""
        order = np.lexsort([self.positions, self.clients, self.tokens])
        key = np.column_stack([self.tokens, self.clients])[order]
        new = np.r_[True, (key[1:] != key[:-1]).any(axis=1)]
        run_start = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
        earlier = np.empty(len(order), dtype=np.int64)
        earlier[order] = np.arange(len(order)) - run_start
        return earlier

    def prompt(self, client: int) -> Ints:
        """Rows of one client's tokens, in prompt order."""
        return np.flatnonzero(self.clients == client)

    def points(self) -> NDArray[np.float32]:
        """All embeddings scaled to unit length (zero rows stay zero), shape ``(n, d)``."""
        # Squares of float32 overflow beyond 1e19, so that only what has unit length becomes it; and
        # client by client, lest all rows be in memory as float64.
        return np.concatenate([unit_rows(e).astype(np.float32) for e in self.embeddings])


def _check(prompts: Sequence[NDArray[np.integer[Any]]], embeddings: Sequence[Embeddings]) -> None:
    if not prompts:
        raise ValueError("prompts is empty: at least one client must have answered")
    if len(prompts) != len(embeddings):
        raise ValueError(f"{len(prompts)} prompts but {len(embeddings)} embedding arrays")
    for k, (prompt, embedding) in enumerate(zip(prompts, embeddings, strict=True)):
        if prompt.ndim != 1 or not len(prompt):
            raise ValueError(f"prompt {k} must be a non-empty row of token ids")
        if prompt.dtype.kind not in "iu":
            raise ValueError(f"prompt {k} must hold integers, got {prompt.dtype}")
        if int(prompt.max()) > LARGEST_TOKEN:
            raise ValueError(f"prompt {k} holds a token id above {LARGEST_TOKEN}")
        if embedding.ndim != 2 or len(embedding) != len(prompt):
            raise ValueError(
                f"embeddings {k} must have shape ({len(prompt)}, d), got {embedding.shape}"
            )
        if embedding.shape[1] != embeddings[0].shape[1]:
            raise ValueError(f"embeddings {k} differ in width from those of client 0")
        if not np.isfinite(embedding).all():
            raise ValueError(f"embeddings {k} hold values that are not finite")


def collect(
    prompts: Sequence[NDArray[np.integer[Any]]],
    embeddings: Sequence[Embeddings],
    accuracies: Sequence[float] | None = None,
    client_weights: Sequence[float] | None = None,
) -> Uploads:
    """Check the uploads, bring them into canonical order and weigh their tokens.

    Parameters
    ----------
    prompts
        One row of integer token ids per client, shapes ``(N_k,)``, ``N_k`` at least 1; those of
        an unsigned type at most :data:`LARGEST_TOKEN`.
    embeddings
        One array per client, shapes ``(N_k, d)``, finite.
    accuracies, client_weights
        One number per client, or ``None``.

    Returns
    -------
    Uploads
        In canonical order: by prompt, then embeddings, then weight, then accuracy.

    Raises
    ------
    ValueError
        If anything is empty, of unfitting shape or not finite, or token ids are no integers or too
        large.
    """
    prompts = [np.asarray(p) for p in prompts]
    embeddings = [np.asarray(e) for e in embeddings]
    _check(prompts, embeddings)
    # One by one: NumPy concatenates signed and unsigned integers to floats.
    prompts = [p.astype(np.int64) for p in prompts]
    weights = mean_one(client_weights, len(prompts))
    scores = np.zeros(len(prompts)) if accuracies is None else np.asarray(accuracies, np.float64)
    if scores.shape != weights.shape or not np.isfinite(scores).all():
        raise ValueError(f"{len(prompts)} finite accuracies are needed, one per client")

    def sent(k: int) -> tuple[list[int], bytes, float, float]:
        # Zero has two bit patterns that compare equal; adding 0.0 leaves one of them.
        embedding = hashlib.blake2b((embeddings[k] + 0.0).tobytes(), digest_size=16).digest()
        return prompts[k].tolist(), embedding, float(weights[k]), float(scores[k])

    arrival = np.array(sorted(range(len(prompts)), key=sent), dtype=np.int64)
    prompts, embeddings = [prompts[k] for k in arrival], [embeddings[k] for k in arrival]
    similarity = similarity_to_others(embeddings, weights[arrival].tolist())
    log_weights = [log_softmax(w) + np.log(len(w)) for w in similarity]
    return Uploads(
        tokens=np.concatenate(prompts),
        clients=np.repeat(np.arange(len(prompts)), [len(p) for p in prompts]),
        positions=np.concatenate([np.arange(len(p)) for p in prompts]),
        embeddings=tuple(embeddings),
        client_weights=weights[arrival],
        accuracies=None if accuracies is None else scores[arrival],
        arrival=arrival,
        similarity=np.concatenate(similarity),
        log_weights=np.round(np.concatenate(log_weights), WEIGHT_DECIMALS),
    )

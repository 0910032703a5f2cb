"""From clusters to a prompt: representatives, repetitions, length and order."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from strategies.uploads import Uploads

Ints = NDArray[np.int64]
Noise = Literal["drop", "keep"]

DECIMALS = 9
"""Mean positions that agree to so many decimals are equal: the rest is rounding."""


def representatives(
    labels: NDArray[np.integer[Any]],
    weights: NDArray[np.floating[Any]],
    tie_breakers: Sequence[NDArray[Any]] = (),
    *,
    noise: Noise = "drop",
) -> Ints:
    """Choose the token with the largest attention weight in each cluster (section 3.4).

    Parameters
    ----------
    labels
        Shape ``(n,)``: cluster of each token, negative for noise.
    weights
        Shape ``(n,)``: attention weights, or anything that orders tokens alike.
    tie_breakers
        Arrays of shape ``(n,)``. Among equal weights the smallest value of the first wins, then
        of the second, and so on; what is still tied falls to the smallest index. Give keys that
        do not depend on the order of clients, such as token ids and relative positions.
    noise
        ``"drop"`` leaves noise out, ``"keep"`` makes each noise token a cluster of its own. The
        paper does not say; dropping keeps only what several clients support.

    Returns
    -------
    NDArray[np.int64]
        Indices of the representatives, heaviest first, ties as above; empty if all is noise.

    Raises
    ------
    ValueError
        If ``noise`` is unknown.
    """
    if noise not in ("drop", "keep"):
        raise ValueError(f"unknown noise {noise!r}; allowed: drop, keep")
    order = np.lexsort([*reversed(tie_breakers), -np.asarray(weights, dtype=np.float64)])
    clustered = order[labels[order] >= 0]
    _, first = np.unique(labels[clustered], return_index=True)
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[clustered[first]] = True
    if noise == "keep":
        chosen |= labels < 0
    return order[chosen[order]]


def heaviest(uploads: Uploads, labels: NDArray[np.integer[Any]], noise: Noise = "drop") -> Ints:
    """Choose the representatives of uploaded tokens, heaviest first.

    Equal weights: the smaller token id wins, then the smaller relative position, then the
    canonical order of clients. No part of the rule depends on which client answered first.
    """
    ties = (uploads.tokens, uploads.relative_positions)
    return representatives(labels, uploads.log_weights, ties, noise=noise)


def limit_repetitions(uploads: Uploads, rows: Ints) -> Ints:
    """Drop repeated tokens that no single prompt repeats as often.

    Two clusters may be represented by the same token. It stays as often as the prompt that
    repeats it most holds it ("the first and the second" may come back), the heaviest first.

    Parameters
    ----------
    uploads
        All uploads.
    rows
        Chosen rows of ``uploads``, heaviest first.

    Returns
    -------
    NDArray[np.int64]
        The rows that stay, in the same order.
    """
    allowed, used = uploads.repetitions, Counter[int]()
    stay = []
    for row in rows.tolist():
        token = int(uploads.tokens[row])
        used[token] += 1
        if used[token] <= allowed[token]:
            stay.append(row)
    return np.array(stay, dtype=np.int64)


def in_order(uploads: Uploads, rows: Ints, labels: NDArray[np.integer[Any]]) -> Ints:
    """Put rows in the order of their original positions (Algorithm 2, last step).

    A representative stands for its cluster, so its place is the mean of where the cluster's tokens
    stood, each as position over prompt length, which lets prompts of unequal length combine. The
    paper does not say more than "original positions". The representative's own place depends on
    how its client lengthened or shortened the rest of the prompt, so that words which all clients
    were sent may change places.

    Parameters
    ----------
    uploads
        All uploads.
    rows
        Chosen rows of ``uploads``.
    labels
        Shape ``(n,)``: cluster of each token; one that is negative, noise, is on its own.

    Returns
    -------
    NDArray[np.int64]
        The rows in order. Equal places: the heavier token first, then the smaller token id, then
        the canonical order of clients.
    """
    places = uploads.relative_positions
    clustered = labels >= 0
    counts = np.maximum(np.bincount(labels[clustered]), 1)
    means = np.bincount(labels[clustered], weights=places[clustered]) / counts
    own = [means[labels[row]] if clustered[row] else places[row] for row in rows]
    keys = [rows, uploads.tokens[rows], -uploads.log_weights[rows]]
    # Sums of floats depend on their order in the last bits; equal places must stay equal.
    return rows[np.lexsort([*keys, np.round(np.array(own), DECIMALS)])]


def cut(uploads: Uploads, rows: Ints, max_tokens: int | None) -> Ints:
    """Keep at most ``max_tokens`` rows, the heaviest (ties as in :func:`heaviest`), in order."""
    if max_tokens is None or len(rows) <= max_tokens:
        return rows
    ties = [rows, uploads.relative_positions[rows], uploads.tokens[rows]]
    kept = np.lexsort([*ties, -uploads.log_weights[rows]])[:max_tokens]
    return rows[np.sort(kept)]

"""Attention weights of uploaded prompt tokens (FedDTPT, arXiv 2411.00985, section 3.4)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Embeddings = NDArray[np.floating[Any]]
Floats = NDArray[np.float64]


def unit_rows(rows: Embeddings) -> Floats:
    """Scale every row to length one, so that dot products are the cosines of equation (5).

    A zero row stays zero: it has no direction, so its similarity to everything is defined as 0.

    Parameters
    ----------
    rows
        Shape ``(n, d)``, finite.

    Returns
    -------
    NDArray[np.float64]
        Shape ``(n, d)``, each row of Euclidean length 1 or 0.

    Raises
    ------
    ValueError
        If a value is not finite.
    """
    rows = np.asarray(rows, dtype=np.float64)
    peaks = np.abs(rows).max(axis=1, keepdims=True, initial=0)
    if not np.isfinite(peaks).all():
        raise ValueError("embeddings hold values that are not finite")
    # Lest squares over- or underflow; dividing by a power of two rounds nothing.
    rows = rows / np.ldexp(1.0, np.frexp(peaks)[1] - 1)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Floats = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return unit


def similarity_to_others(
    embeddings: Sequence[Embeddings], client_weights: Sequence[float] | None = None
) -> list[Floats]:
    r"""Sum, for every token, the cosine similarities to all tokens of the *other* clients.

    Equation (6): :math:`w_k^n = \sum_{k' \ne k} \sum_{n'} sim(E_k^n, E_{k'}^{n'})`, with the cosine
    similarity of equation (5). The double sum over unit vectors is one dot product,
    :math:`e_k^n \cdot (S - S_k)` with :math:`S` the sum of all unit vectors and :math:`S_k` that of
    client :math:`k`, so time and memory are linear in the number of tokens.

    Parameters
    ----------
    embeddings
        One array per client, shapes ``(N_k, d)``, finite.
    client_weights
        How much each client's tokens count in the others' sums, nonnegative with a positive sum;
        scaled to mean 1, so that equal weights give the paper's formula. ``None``: all equal.

    Returns
    -------
    list of NDArray[np.float64]
        Shapes ``(N_k,)``; with equal weights within plus or minus the number of foreign tokens.

    Raises
    ------
    ValueError
        No client, an embedding that is not finite, no number per client, or weights that are
        negative or sum to zero.
    """
    if not len(embeddings):
        raise ValueError("embeddings is empty: at least one client is needed")
    shares = mean_one(client_weights, len(embeddings))
    sums = np.array([c * unit_rows(e).sum(axis=0) for c, e in zip(shares, embeddings, strict=True)])
    total = sums.sum(axis=0)
    return [unit_rows(e) @ (total - own) for e, own in zip(embeddings, sums, strict=True)]


def log_softmax(values: Floats) -> Floats:
    """Logarithm of the softmax with which the paper makes alpha of ``w`` (after equation 6).

    Parameters
    ----------
    values
        Shape ``(n,)``, ``n`` at least 1, finite.

    Returns
    -------
    NDArray[np.float64]
        Shape ``(n,)``, at most 0; the maximum is subtracted first, so that nothing overflows.
    """
    shifted = values - values.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()), dtype=np.float64)


def attention_weights(
    embeddings: Sequence[Embeddings], client_weights: Sequence[float] | None = None
) -> list[Floats]:
    r"""Attention weight of every uploaded token within its own prompt.

    :math:`\alpha_k^n = \exp(w_k^n) / \sum_m \exp(w_k^m)`, in the text after equation (6), with
    :math:`w` from :func:`similarity_to_others`. With one client there are no others, every
    :math:`w` is 0 and all weights are equal. With hundreds of clients :math:`w` spans hundreds and
    small weights underflow to 0; compare tokens by :func:`log_softmax` of :math:`w` where that
    matters.

    Parameters
    ----------
    embeddings, client_weights
        As for :func:`similarity_to_others`.

    Returns
    -------
    list of NDArray[np.float64]
        Shapes ``(N_k,)``, in [0, 1], summing to 1 for each client.

    Raises
    ------
    ValueError
        As :func:`similarity_to_others`.
    """
    similarity = similarity_to_others(embeddings, client_weights)
    return [np.exp(log_softmax(w)) for w in similarity]


def mean_one(client_weights: Sequence[float] | None, num_clients: int) -> Floats:
    """Scale client weights to mean 1; ``None`` gives ones.

    Raises
    ------
    ValueError
        Another number of weights than clients, a negative or non-finite one, or only zeros.
    """
    if client_weights is None:
        return np.ones(num_clients)
    weights = np.asarray(client_weights, dtype=np.float64)
    if weights.shape != (num_clients,):
        raise ValueError(f"{num_clients} client weights are needed, got shape {weights.shape}")
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise ValueError("client weights must be finite and nonnegative, with one above zero")
    return np.asarray(weights / weights.mean(), dtype=np.float64)

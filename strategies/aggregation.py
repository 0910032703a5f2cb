"""The server's step: local prompts in, global prompt out (FedDTPT, section 3.4, Algorithm 2).

The section word for word is ``method="literal"``. Its parts and where they are:

========================================== ==================================================
``E_k^n``, embeddings (equations 3 and 4)  given by the caller
similarity ``sim(a, b)`` (equation 5)      :func:`strategies.attention.unit_rows`, dot product
``w_k^n``, over other clients (equation 6) :func:`strategies.attention.similarity_to_others`
``alpha_k^n``, the softmax over a prompt   :func:`strategies.attention.attention_weights`
sorted distances and their elbow           :mod:`strategies.elbow`
DBSCAN over all tokens                     :mod:`strategies.clustering`
representatives                            :func:`strategies.selection.representatives`
order of the original positions            :func:`strategies.selection.in_order`
========================================== ==================================================

What the paper leaves open, and what ``method="feddtpt"`` does:

- *Noise points* are dropped: what only one client has is supported by nobody else. With
  ``noise="keep"`` each is a cluster of its own; the prompt is then 28 tokens long instead of 13,
  and 14 instead of 1 are what single clients wrote (means over made-up federations whose seed
  prompts have 14, ``python -m simulations bench choices``). Cut at 24 tokens it holds 9 of them.
  If all is noise, as where there are fewer than ``min_samples`` tokens, the prompt whose tokens
  are on average most similar to the other clients' is the answer.
- *Ties* of weight fall to the smaller token id, then to the smaller relative position, then to the
  canonical order of clients, which sorts them by what they sent. Arrival never decides. In the
  same federations no two different tokens of a cluster tied.
- *Repeated tokens*: two clusters may have the same token as representative. It stays as often as
  the prompt that repeats it most holds it; with every repetition prompts read worse (6.05 instead
  of 5.83 nats a token).
- *Unequal lengths*: "original position" is position over prompt length, and a representative's is
  the mean of its cluster's; neighbours then stand as most prompts that hold both have them: see
  :func:`strategies.selection.in_order`. By the means alone 3.1 instead of 2.8 % of the pairs of
  seed tokens change places, and a token costs 5.87 instead of 5.83 nats. Alpha sums to 1 over a
  prompt however long it is, so weights are compared as alpha times length.
- *Fluency*: none in the paper. With ``fluency_fn``, of a cluster's tokens that are about as similar
  to the other clients' as its representative, the one with which the prompt reads best:
  :func:`strategies.selection.most_fluent`. It exchanges 3 % of the tokens, for 5.71 nats a token,
  and 2.1 % of the pairs then change places.
- *One client*, or clients who all sent the same prompt: that prompt comes back, as there is nothing
  to choose from.
- *The softmax overflows* for large sums: weights are compared as logarithms.
- *Weights of clients*: none in the paper. ``client_weights`` is off unless given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from strategies.elbow import ELBOWS, ElbowMethod
from strategies.methods import METHODS, Choice, Settings, Vocabulary
from strategies.selection import FluencyFn, Noise, cut
from strategies.uploads import Uploads, collect

Method = Literal["feddtpt", "literal", "average", "attention", "kmeans", "best", "majority"]


@dataclass(frozen=True)
class Aggregate:
    """The next global prompt and how it came about.

    Attributes
    ----------
    tokens
        Shape ``(N,)``, ``N`` at least 1: token ids of the global prompt.
    sources
        Shape ``(N, 2)``: client and position each token came from, in the caller's order of
        clients; (-1, -1) for a token of the vocabulary that nobody uploaded.
    weights
        Attention weights alpha, one array of shape ``(N_k,)`` per client. Among many clients most
        are too small for a float: compare ``log_weights``.
    log_weights
        ``log(alpha * N_k)``, of the same shapes; comparable between prompts of unequal length.
    labels
        Cluster of every uploaded token, -1 for noise, one array of shape ``(N_k,)`` per client;
        ``None`` where the method does not cluster or did not need to.
    eps
        The radius the elbow gave DBSCAN, in [0, 2], or ``None``.
    """

    tokens: NDArray[np.int64]
    sources: NDArray[np.int64]
    weights: tuple[NDArray[np.float64], ...]
    log_weights: tuple[NDArray[np.float64], ...]
    labels: tuple[NDArray[np.int64], ...] | None
    eps: float | None


def aggregate(
    prompts: Sequence[NDArray[np.integer[Any]]],
    embeddings: Sequence[NDArray[np.floating[Any]]],
    *,
    method: Method = "feddtpt",
    min_samples: int | None = None,
    elbow_method: ElbowMethod = "split",
    noise: Noise = "drop",
    max_tokens: int | None = None,
    accuracies: Sequence[float] | None = None,
    client_weights: Sequence[float] | None = None,
    vocabulary: Vocabulary | None = None,
    n_clusters: int | None = None,
    fluency_fn: FluencyFn | None = None,
) -> Aggregate:
    """Combine the clients' local prompts into the next global prompt.

    The order of clients changes nothing. One client, or clients who all sent the same prompt,
    get that prompt back whatever the method, cut to ``max_tokens``.

    Parameters
    ----------
    prompts
        Token ids, one array of shape ``(N_k,)`` per client; lengths may differ.
    embeddings
        Contextual token embeddings, one array of shape ``(N_k, d)`` per client.
    method
        ``"feddtpt"``, the paper's; ``"literal"``, the same without what is added where the paper is
        silent; or one of its server ablations and baselines: see
        :data:`strategies.methods.METHODS`.
    min_samples
        Tokens, itself included, within ``eps`` of a core point of DBSCAN; at least 1. ``None``
        grows with the number of clients: :func:`~strategies.clustering.min_samples_for`.
    elbow_method
        How ``eps`` is read off the sorted neighbour distances: see :func:`elbow`. ``"literal"`` has
        its own, ``"lines"``.
    noise
        What becomes of tokens in no cluster: ``"drop"`` or ``"keep"``.
    max_tokens
        Longest prompt allowed, at least 1. The heaviest clusters stay; ``"average"`` and
        ``"majority"``, which go by position, stop there.
    accuracies
        One per client; only ``"best"`` reads them, and it must have them.
    client_weights
        How much each client counts in the others' attention, in k-means, averages and votes.
    vocabulary
        Token ids ``(V,)`` and embeddings ``(V, d)`` that ``"average"`` decodes to; without it,
        to uploaded tokens only.
    n_clusters
        For ``"kmeans"``; ``None`` means the mean prompt length.
    fluency_fn
        How well each of some prompts reads, larger is better. Of the tokens of a cluster that are
        about as similar to the other clients' it takes the one that reads best. ``None``, as in the
        paper: the heaviest, however little heavier it is.

    Returns
    -------
    Aggregate
        Its prompt is never empty.

    Raises
    ------
    ValueError
        No client, an empty prompt, unfitting shapes, values out of range, or an unknown name.
    """
    for name, value, allowed in (
        ("method", method, METHODS),
        ("elbow_method", elbow_method, ELBOWS),
        ("noise", noise, ("drop", "keep")),
    ):
        if value not in allowed:
            raise ValueError(f"unknown {name} {value!r}; allowed: {', '.join(allowed)}")
    for name, number in (("min_samples", min_samples), ("max_tokens", max_tokens)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be None or at least 1, got {number}")
    uploads = collect(prompts, embeddings, accuracies, client_weights)
    if all(np.array_equal(prompt, prompts[0]) for prompt in prompts):
        rows = cut(uploads, uploads.prompt(0), max_tokens)
        return _report(uploads, Choice(rows, uploads.tokens[rows]))
    settings = Settings(
        min_samples, elbow_method, noise, max_tokens, vocabulary, n_clusters, fluency_fn
    )
    return _report(uploads, METHODS[method](uploads, settings))


def _report(uploads: Uploads, choice: Choice) -> Aggregate:
    """Translate rows in canonical order to the caller's clients and positions."""
    came_from = np.column_stack([uploads.arrival[uploads.clients], uploads.positions])
    sources = np.where(choice.rows[:, None] < 0, -1, came_from[choice.rows])
    ends, back = np.cumsum(uploads.lengths)[:-1], np.argsort(uploads.arrival)
    alpha = np.exp(uploads.log_weights) / uploads.lengths[uploads.clients]
    weights, log_weights = np.split(alpha, ends), np.split(uploads.log_weights, ends)
    labels = None if choice.labels is None else np.split(choice.labels, ends)
    return Aggregate(
        tokens=choice.tokens,
        sources=sources,
        weights=tuple(weights[k] for k in back),
        log_weights=tuple(log_weights[k] for k in back),
        labels=None if labels is None else tuple(labels[k] for k in back),
        eps=choice.eps,
    )

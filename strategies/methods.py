"""The paper's aggregation and its server ablations, each a function from uploads to a choice."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.clustering import cluster_tokens, min_samples_for
from strategies.elbow import ElbowMethod, elbow, neighbour_distances
from strategies.selection import (
    DECIMALS,
    FluencyFn,
    Noise,
    cut,
    heaviest,
    in_order,
    limit_repetitions,
    most_fluent,
    representatives,
)
from strategies.uploads import Uploads

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Vocabulary = tuple[NDArray[np.integer[Any]], NDArray[np.floating[Any]]]

ELBOW_SAMPLE = 1000
"""The elbow is read off the neighbour distances of at most so many tokens, each to all others."""


@dataclass(frozen=True)
class Settings:
    """Options of :func:`strategies.aggregation.aggregate`, described there."""

    min_samples: int | None = None
    elbow_method: ElbowMethod = "split"
    noise: Noise = "drop"
    max_tokens: int | None = None
    vocabulary: Vocabulary | None = None
    n_clusters: int | None = None
    fluency_fn: FluencyFn | None = None


@dataclass(frozen=True)
class Choice:
    """The outcome of a method.

    Attributes
    ----------
    rows
        Rows of the uploads in prompt order; -1 for a token that nobody uploaded.
    tokens
        Their token ids, same shape.
    labels
        Cluster of every uploaded token, -1 for noise, or ``None`` without clustering.
    eps
        DBSCAN's radius, or ``None`` without DBSCAN.
    """

    rows: Ints
    tokens: Ints
    labels: Ints | None = None
    eps: float | None = None


def _assemble(uploads: Uploads, labels: Ints, settings: Settings) -> Ints:
    chosen = limit_repetitions(uploads, heaviest(uploads, labels, settings.noise))
    rows = in_order(uploads, chosen[: settings.max_tokens], labels)
    if settings.fluency_fn is None:
        return rows
    return most_fluent(uploads, rows, labels, settings.fluency_fn)


def typical_prompt(uploads: Uploads) -> Ints:
    """Rows of the prompt whose tokens are on average most similar to the other clients'.

    Ties fall to the first in canonical order.
    """
    means = np.bincount(uploads.clients, weights=uploads.similarity) / uploads.lengths
    return uploads.prompt(int(np.argmax(np.round(means, 9))))


def feddtpt(uploads: Uploads, settings: Settings) -> Choice:
    """Elbow, DBSCAN, representatives in original order (section 3.4, Algorithm 2).

    All tokens are noise only if there are fewer than ``min_samples`` of them. If noise is dropped
    then, the typical prompt is the answer, lest it be empty.
    """
    labels, eps = _clusters(uploads, settings)
    rows = _assemble(uploads, labels, settings)
    return _choice(uploads, rows, labels, eps, settings)


def literal(uploads: Uploads, settings: Settings) -> Choice:
    """Section 3.4 word for word, without what `feddtpt` adds where it is silent.

    The elbow is the strongest change of slope. Of each cluster the token with the largest alpha
    stays, as alpha is, and stands where it stood in its own prompt, counted in tokens. A token may
    come back as often as clusters have it as their representative.
    """
    labels, eps = _clusters(uploads, replace(settings, elbow_method="lines"))
    alpha = np.round(uploads.log_weights - np.log(uploads.lengths[uploads.clients]), DECIMALS)
    ties = (uploads.tokens, uploads.relative_positions)
    chosen = representatives(labels, alpha, ties, noise=settings.noise)[: settings.max_tokens]
    keys = [chosen, uploads.tokens[chosen], -alpha[chosen], uploads.positions[chosen]]
    return _choice(uploads, chosen[np.lexsort(keys)], labels, eps, settings)


def _clusters(uploads: Uploads, settings: Settings) -> tuple[Ints, float]:
    """Return each token's cluster, -1 for noise, and DBSCAN's radius from the elbow.

    The neighbour counted for the elbow is number ``min_samples - 1`` (at least 1): exactly the
    distance that decides whether a point is a core point, which counts itself. So the token at
    the elbow is one.
    """
    points = uploads.points()
    min_samples = settings.min_samples or min_samples_for(len(uploads.arrival))
    curve = neighbour_distances(points, max(1, min_samples - 1), max_queries=ELBOW_SAMPLE)
    eps = elbow(curve, settings.elbow_method)
    # One part in a million more, lest rounding leave the token at the elbow outside its radius.
    return cluster_tokens(points, eps * (1 + 1e-6), min_samples), eps


def _choice(uploads: Uploads, rows: Ints, labels: Ints, eps: float, settings: Settings) -> Choice:
    if not len(rows):
        rows = cut(uploads, typical_prompt(uploads), settings.max_tokens)
    return Choice(rows, uploads.tokens[rows], labels, eps)


def attention(uploads: Uploads, settings: Settings) -> Choice:
    """Table 5, attention without clustering: the heaviest tokens, as many as the mean length.

    Copies of a token in different prompts are one candidate, its second occurrence within a
    prompt another; otherwise the heaviest token would fill the prompt with its copies.
    """
    keys = np.column_stack([uploads.tokens, uploads.occurrences])
    labels = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    limit = min(uploads.mean_length, settings.max_tokens or uploads.mean_length)
    rows = _assemble(uploads, labels, replace(settings, noise="drop", max_tokens=limit))
    return Choice(rows, uploads.tokens[rows])


def kmeans(uploads: Uploads, settings: Settings) -> Choice:
    """Table 5, a fixed number of clusters: k-means, by default as many as the mean length.

    Never more clusters than distinct embeddings. The seed is fixed.
    """
    from sklearn.cluster import KMeans  # slow to import, and the clients never need it

    points = uploads.points()
    wanted = uploads.mean_length if settings.n_clusters is None else settings.n_clusters
    if wanted < 1:
        raise ValueError(f"n_clusters must be at least 1, got {wanted}")
    if wanted >= len(points) / 2:  # only then can the distinct points run out; counting is slow
        wanted = min(wanted, len(np.unique(points, axis=0)))
    model = KMeans(n_clusters=wanted, n_init=4, random_state=0)
    weight = uploads.client_weights[uploads.clients]
    labels = np.asarray(model.fit(points, sample_weight=weight).labels_, dtype=np.int64)
    rows = _assemble(uploads, labels, replace(settings, noise="drop"))
    return Choice(rows, uploads.tokens[rows], labels)


def average(uploads: Uploads, settings: Settings) -> Choice:
    """Table 5, averaging as in FedAvg: the mean embedding at each position, decoded.

    The prompt has the mean length. A position is averaged over the clients that have it, by
    client weight, and decoded to the token of largest cosine similarity among all uploaded
    tokens, or in ``vocabulary`` when given; ties fall to the smallest token id.
    """
    length = min(uploads.mean_length, settings.max_tokens or uploads.mean_length)
    stacked = np.concatenate([np.asarray(e, dtype=np.float32) for e in uploads.embeddings])
    means = np.empty((length, stacked.shape[1]))
    for position in range(length):
        rows = np.flatnonzero(uploads.positions == position)
        weight = uploads.client_weights[uploads.clients[rows]]
        means[position] = weight @ stacked[rows]  # the scale does not change the cosine
    ids: NDArray[np.integer[Any]] = uploads.tokens
    if settings.vocabulary is not None:
        ids, stacked = settings.vocabulary[0], np.asarray(settings.vocabulary[1], dtype=np.float32)
        if stacked.shape != (len(ids), means.shape[1]):
            raise ValueError(f"vocabulary embeddings must be ({len(ids)}, {means.shape[1]})")
    norms = np.linalg.norm(stacked, axis=1)
    norms[norms == 0] = 1
    cosine = np.round(stacked @ means.T.astype(np.float32) / norms[:, None], 6)
    by_id = np.argsort(ids, kind="stable")
    best = by_id[np.argmax(cosine[by_id], axis=0)]
    rows = best if settings.vocabulary is None else np.full(length, -1)
    return Choice(rows, np.asarray(ids[best], dtype=np.int64))


def majority(uploads: Uploads, settings: Settings) -> Choice:
    """Vote for the token at each position, up to the mean length.

    Votes count by client weight among the clients that have the position; ties fall to the
    smallest token id.
    """
    length = min(uploads.mean_length, settings.max_tokens or uploads.mean_length)
    rows = np.empty(length, dtype=np.int64)
    for position in range(length):
        voters = np.flatnonzero(uploads.positions == position)
        tokens, first, vote = np.unique(
            uploads.tokens[voters], return_index=True, return_inverse=True
        )
        weight = uploads.client_weights[uploads.clients[voters]]
        votes = np.bincount(vote, weights=weight, minlength=len(tokens))
        rows[position] = voters[first[np.argmax(np.round(votes, 9))]]
    return Choice(rows, uploads.tokens[rows])


def best(uploads: Uploads, settings: Settings) -> Choice:
    """Take the prompt of the highest reported accuracy; ties fall to the canonical order.

    Each accuracy is on the client's own examples and its own word. The strategies rank clients that
    report none, or none in [0, 1], last, among themselves by gain.
    """
    if uploads.accuracies is None:
        raise ValueError("method 'best' needs the clients' accuracies")
    rows = uploads.prompt(int(np.argmax(uploads.accuracies)))
    rows = cut(uploads, rows, settings.max_tokens)
    return Choice(rows, uploads.tokens[rows])


METHODS: dict[str, Callable[[Uploads, Settings], Choice]] = {
    "feddtpt": feddtpt,
    "literal": literal,
    "average": average,
    "attention": attention,
    "kmeans": kmeans,
    "best": best,
    "majority": majority,
}

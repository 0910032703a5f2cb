"""DBSCAN over all uploaded tokens, without a distance matrix (FedDTPT, section 3.4)."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.blocked_dbscan import blocked_dbscan

Ints = NDArray[np.int64]

SMALL = 4000
"""Up to so many distinct points scikit-learn is used; its lists of neighbours then stay small."""

SMALLEST_EPS = 1e-6
"""Radius at or below this means "equal up to rounding": scikit-learn rejects a radius of 0."""


SUPPORT = 0.05
"""Share of the clients whose tokens make a core point, where ``min_samples`` is not given."""


def min_samples_for(num_clients: int) -> int:
    """Choose DBSCAN's ``min_samples`` for a number of clients: one in twenty, at least 2.

    The points are tokens, so the neighbourhood of a token that every client kept holds about one
    point per client, and ``min_samples`` says how many clients must agree. A fixed number means
    less the more clients there are: among 1,000, two tokens lie close by chance in hundreds of
    places. The usual rules, 5 or twice the number of dimensions, are about the dimension of the
    data, and scikit-learn's guide says no more than to raise the number for large and noisy data.

    Measured with synthetic uploads, prompts of 20 tokens edited in three places by each client
    (``python -m simulations bench choices``), two seeds: ``min_samples = 2`` finds 20 clusters
    with 4 and with 10 clients, 29 and 31 with 100, 615 and 635 with 1,000. A fiftieth of the
    clients still finds 29 and 31 with 100. A twentieth, a tenth, a fifth and three tenths find 20
    everywhere; the smallest of these loses least of what only some clients found. Up to 40 clients
    it is 2.

    Parameters
    ----------
    num_clients
        Clients that uploaded a prompt, at least 1.

    Returns
    -------
    int
        ``max(2, ceil(num_clients / 20))``.
    """
    return max(2, math.ceil(SUPPORT * num_clients))


def distinct_rows(points: NDArray[np.floating[Any]]) -> tuple[Ints, Ints]:
    """Find the distinct rows of an array.

    Rows are sorted by their first three values only and compared in full with their neighbour in
    that order. Two equal rows with an unequal one between them may so both survive: that costs
    time later, never correctness.

    Parameters
    ----------
    points
        Shape ``(n, d)``.

    Returns
    -------
    first : NDArray[np.int64]
        Shape ``(u,)``, ascending: the index of the first of each group of equal rows.
    inverse : NDArray[np.int64]
        Shape ``(n,)``, in ``[0, u)``, with ``points[first][inverse]`` equal to ``points``.
    """
    order = np.lexsort(points[:, :3].T)
    equal_head = (points[order[1:], :3] == points[order[:-1], :3]).all(axis=1)
    maybe = np.flatnonzero(equal_head)
    equal = np.zeros(len(points), dtype=bool)
    equal[maybe + 1] = (points[order[maybe + 1]] == points[order[maybe]]).all(axis=1)
    starts = np.flatnonzero(~equal)
    group = np.empty(len(points), dtype=np.int64)
    group[order] = np.cumsum(~equal) - 1
    first = np.minimum.reduceat(order, starts).astype(np.int64)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return np.sort(first), rank[group]


def cluster_tokens(points: NDArray[np.floating[Any]], eps: float, min_samples: int = 2) -> Ints:
    """Cluster token embeddings with DBSCAN.

    Equal points, common when clients share most of a prompt, are merged into one weighted point
    first. Few distinct points go to :class:`sklearn.cluster.DBSCAN`, more to
    :func:`~strategies.blocked_dbscan.blocked_dbscan`. Both give scikit-learn's labels exactly, up
    to float32 rounding of distances that lie within a few parts in a million of ``eps``.

    Parameters
    ----------
    points
        Shape ``(n, d)``, finite; Euclidean distance, so pass unit vectors to cluster by cosine.
    eps
        Radius, at least 0. Zero clusters equal points only.
    min_samples
        Points within ``eps``, the point itself included, that make it a core point; at least 1.

    Returns
    -------
    NDArray[np.int64]
        Shape ``(n,)``: clusters 0, 1, ... in the order of their first core point, -1 for noise.

    Raises
    ------
    ValueError
        If ``eps`` is negative or not finite, ``min_samples`` below 1, or a point not finite.
    """
    from sklearn.cluster import DBSCAN  # slow to import, and the clients never need it

    if not (np.isfinite(eps) and eps >= 0):
        raise ValueError(f"eps must be finite and at least 0, got {eps}")
    if min_samples < 1:
        raise ValueError(f"min_samples must be at least 1, got {min_samples}")
    if not len(points):
        return np.empty(0, dtype=np.int64)
    if not np.isfinite(points).all():  # scikit-learn would say so, the blocked way would not
        raise ValueError("points must be finite")
    first, inverse = distinct_rows(points)
    counts = np.bincount(inverse, minlength=len(first))
    distinct = points if len(first) == len(points) else points[first]
    radius = max(float(eps), SMALLEST_EPS)
    if len(first) > SMALL:
        return blocked_dbscan(distinct, counts, radius, min_samples)[inverse]
    dbscan = DBSCAN(eps=radius, min_samples=min_samples, algorithm="brute")
    labels = np.asarray(dbscan.fit(distinct, sample_weight=counts).labels_, dtype=np.int64)
    return labels[inverse]

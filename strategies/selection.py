"""From clusters to a prompt: representatives, repetitions, length and order."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from strategies.uploads import Uploads

Ints = NDArray[np.int64]
Noise = Literal["drop", "keep"]

Fluencies = Sequence[float] | NDArray[np.float64]
FluencyFn = Callable[[Sequence[tuple[int, ...]]], Fluencies]
"""Prompts to how well each reads, larger is better: their log-likelihoods, for instance."""

EQUAL = 0.1
"""Tokens of a cluster whose mean similarity to the other clients' tokens is at most this share less
than their representative's are as good as it, where a prompt is to read well. Not the weights are
compared: these are exponentials of sums over clients, and never alike where there are many."""

MOST_OPTIONS = 8
"""At most so many tokens are tried in a place."""

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
        Shape ``(n,)``: attention weights alpha (after equation 6), or anything that orders tokens
        alike.
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
    stood, each as position over prompt length, which lets prompts of unequal length combine; a
    client counts by its weight. The paper does not say more than "original positions". Means over
    prompts that were lengthened and shortened elsewhere let neighbours change places that stand
    alike in every prompt. So from left to right each then moves before its neighbour as long as
    most clients whose prompts hold tokens of both clusters have them so: the local Kemenization of
    Dwork et al. (2001), "Rank aggregation methods for the Web". Only neighbours are compared, so
    two tokens with one between them about which prompts disagree may stand as no prompt has them.

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
    rows = by_mean_place(uploads, rows, labels)
    votes = _precedence(uploads, rows, labels)
    order: list[int] = []
    for slot in range(len(rows)):
        place = slot
        while place and votes.get((slot, order[place - 1]), 0.0) > 0:
            place -= 1
        order.insert(place, slot)
    return rows[order]


def by_mean_place(uploads: Uploads, rows: Ints, labels: NDArray[np.integer[Any]]) -> Ints:
    """Put rows in the order of their clusters' mean positions, each over its prompt's length."""
    places = uploads.relative_positions
    clustered = labels >= 0
    share = uploads.client_weights[uploads.clients]
    # A cluster of clients that count for nothing still stands somewhere.
    size = labels.max(initial=-1) + 1
    counted = np.bincount(labels[clustered], share[clustered], minlength=size + 1)
    share = np.where(counted[labels] > 0, share, 1.0)
    counts = np.bincount(labels[clustered], share[clustered], minlength=size)
    counts = np.maximum(counts, np.finfo(np.float64).tiny)  # there may be no token of some number
    means = np.bincount(labels[clustered], (places * share)[clustered], minlength=size) / counts
    own = [means[labels[row]] if clustered[row] else places[row] for row in rows]
    keys = [rows, uploads.tokens[rows], -uploads.log_weights[rows]]
    # Sums of floats depend on their order in the last bits; equal places must stay equal.
    return rows[np.lexsort([*keys, np.round(np.array(own), DECIMALS)])]


def _precedence(
    uploads: Uploads, rows: Ints, labels: NDArray[np.integer[Any]]
) -> dict[tuple[int, int], float]:
    """Return by how much more client weight has the first of two rows' clusters before the second.

    Only pairs that some prompt holds are in it: linear in clients, however many rows there are.
    """
    size = len(rows)
    of_cluster = np.full(labels.max(initial=-1) + 2, -1)  # the last one stands for noise
    of_cluster[labels[rows]] = np.arange(size)
    of_cluster[-1] = -1
    slots = of_cluster[labels]
    slots[rows] = np.arange(size)
    there = np.flatnonzero(slots >= 0)
    # A prompt's tokens of one cluster stand at their mean position.
    keys, group = np.unique(uploads.clients[there] * size + slots[there], return_inverse=True)
    places = np.bincount(group, weights=uploads.positions[there]) / np.bincount(group)
    firsts, seconds = [], []
    for own in np.split(np.arange(len(keys)), np.flatnonzero(np.diff(keys // size)) + 1):
        ordered = own[np.argsort(places[own], kind="stable")]
        first, second = np.triu_indices(len(ordered), 1)
        firsts.append(ordered[first])
        seconds.append(ordered[second])
    first, second = np.concatenate(firsts), np.concatenate(seconds)
    votes = uploads.client_weights[keys[first] // size] * (places[first] < places[second])
    codes, pair = np.unique(keys[first] % size * size + keys[second] % size, return_inverse=True)
    totals = np.round(np.bincount(pair, weights=votes), DECIMALS)
    pairs = map(divmod, codes.tolist(), repeat(size))
    ahead: dict[tuple[int, int], float] = dict(zip(pairs, totals.tolist(), strict=True))
    return {(a, b): won - ahead.get((b, a), 0.0) for (a, b), won in ahead.items()}


def most_fluent(
    uploads: Uploads, rows: Ints, labels: NDArray[np.integer[Any]], fluency_fn: FluencyFn
) -> Ints:
    """Exchange representatives for others that are as good, where the prompt then reads better.

    From left to right, each place takes the token with which the whole prompt reads best, among
    those of its cluster that are nearly as similar to the other clients' tokens (`EQUAL`). The
    paper takes the largest weight, however little larger it is, and no account of the neighbours.

    Parameters
    ----------
    uploads
        All uploads.
    rows
        Chosen rows of ``uploads``, in the prompt's order.
    labels
        Shape ``(n,)``: cluster of each token, negative for noise, which stays.
    fluency_fn
        How well prompts read; of one that it calls not a number, not well.

    Returns
    -------
    NDArray[np.int64]
        As many rows; the same where nothing reads better.

    Raises
    ------
    ValueError
        If ``fluency_fn`` does not return a number for each prompt.
    """
    chosen, allowed = rows.copy(), uploads.repetitions
    held = Counter(uploads.tokens[rows].tolist())
    for place, row in enumerate(rows.tolist()):
        options = [row]
        for other in _equals(uploads, row, labels):
            token = int(uploads.tokens[other])
            if held[token] < allowed[token]:
                options.append(other)
        if len(options) == 1:
            continue
        prompts = []
        for option in options:
            chosen[place] = option
            prompts.append(tuple(uploads.tokens[chosen].tolist()))
        scores = np.nan_to_num(np.array(fluency_fn(prompts), dtype=np.float64), nan=-np.inf)
        if scores.shape != (len(prompts),):
            raise ValueError(
                f"fluency_fn must return a number for each of {len(prompts)} prompts, got shape "
                f"{scores.shape}"
            )
        chosen[place] = options[int(np.argmax(scores))]
        held[int(uploads.tokens[row])] -= 1
        held[int(uploads.tokens[chosen[place]])] += 1
    return chosen


def _equals(uploads: Uploads, row: int, labels: NDArray[np.integer[Any]]) -> list[int]:
    """Return a row of every other token that is as good as ``row``'s, the most similar first."""
    if labels[row] < 0:
        return []
    similarity = uploads.similarity
    least = similarity[row] - EQUAL * abs(similarity[row])
    members = np.flatnonzero((labels == labels[row]) & (similarity >= least))
    order = members[np.lexsort([members, uploads.tokens[members], -similarity[members]])]
    _, first = np.unique(uploads.tokens[order], return_index=True)
    others = [r for r in order[np.sort(first)].tolist() if uploads.tokens[r] != uploads.tokens[row]]
    return others[: MOST_OPTIONS - 1]


def cut(uploads: Uploads, rows: Ints, max_tokens: int | None) -> Ints:
    """Keep at most ``max_tokens`` rows, the heaviest (ties as in :func:`heaviest`), in order."""
    if max_tokens is None or len(rows) <= max_tokens:
        return rows
    ties = [rows, uploads.relative_positions[rows], uploads.tokens[rows]]
    kept = np.lexsort([*ties, -uploads.log_weights[rows]])[:max_tokens]
    return rows[np.sort(kept)]

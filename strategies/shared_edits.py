"""Edits that several clients found, each on its own.

A client's gain is counted on few examples, and the best of many clients' gains flatters: it was
chosen for being the best. Two clients that come to the same edit have each found it on private
examples that the other has not seen, if in part on the same public ones. What "the same" is the
paper's clusters say: two edits of one place are alike if the tokens they put in are, one by one, in
the same clusters.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from math import fsum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.candidates import LocalPrompt, Tokens
from strategies.edits import Edit, edits_between


def shared_edits(
    base: Tokens,
    uploads: Sequence[LocalPrompt],
    labels: Sequence[NDArray[np.integer[Any]]] | None = None,
    log_weights: Sequence[NDArray[np.floating[Any]]] | None = None,
    *,
    min_clients: int = 2,
) -> tuple[Edit, ...]:
    """Return the edits of ``base`` that several clients made, the one that gained most first.

    An edit's gain is the sum over the clients that made it, each by its whole prompt's gain, since
    a client does not say which of its edits gained what; where they lost by it together, it is left
    out. So are, of edits that conflict, all but the one that gained most. The order of the clients
    changes nothing.

    Parameters
    ----------
    base
        The prompt that was sent.
    uploads
        What came back.
    labels
        Cluster of every token, negative for noise, one array of shape ``(N_k,)`` per client, as
        `strategies.aggregation.Aggregate` has them. Without them only equal tokens are alike.
    log_weights
        Logarithms of attention weights, of the same shapes, as `strategies.aggregation.Aggregate`
        has them. Of edits that are alike the heaviest is taken, by the mean over its tokens;
        without them, or among equals, the first in the order of tokens.
    min_clients
        Clients that must have made an edit, at least 2: among very many, two agree by chance.
    """
    alike: dict[tuple[int, int, Hashable], list[tuple[float, Tokens, float]]] = defaultdict(list)
    for number, upload in enumerate(uploads):
        for edit, there in _located(base, upload.tokens):
            clusters = [-1] * len(edit.tokens) if labels is None else labels[number][there].tolist()
            meanings = tuple(
                ("cluster", cluster) if cluster >= 0 else ("token", token)
                for cluster, token in zip(clusters, edit.tokens, strict=True)
            )
            weight = 0.0
            if log_weights is not None and edit.tokens:
                weight = float(log_weights[number][there].mean())
            place = (edit.start, edit.stop, meanings)
            alike[place].append((-round(weight, 9), edit.tokens, upload.gain))
    groups = [
        # Exact, so that no rounding breaks or makes a tie.
        (fsum(gain for *_, gain in made), Edit(start, stop, min(made)[1]))
        for (start, stop, _), made in alike.items()
        if len(made) >= min_clients
    ]
    chosen: list[Edit] = []
    for gain, edit in sorted(groups, key=lambda g: (-g[0], g[1].start, g[1].stop, g[1].tokens)):
        if gain >= 0 and not any(edit.conflicts(other) for other in chosen):
            chosen.append(edit)
    return tuple(chosen)


def _located(base: Tokens, prompt: Tokens) -> Iterator[tuple[Edit, slice]]:
    """Yield the edits that made ``prompt`` of ``base``, and where in it what they put in stands."""
    shift = 0
    for edit in edits_between(base, prompt):
        first = edit.start + shift
        yield edit, slice(first, first + len(edit.tokens))
        shift += len(edit.tokens) - (edit.stop - edit.start)

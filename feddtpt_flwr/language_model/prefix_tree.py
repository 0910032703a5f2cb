"""Sequences that begin alike as one tree, through which a causal model goes once.

Tokens that several sequences begin with stand in the tree once, whatever they share: a prompt that
many inputs follow, the first words that several prompts have in common. What earlier calls have
computed of them (see `prefix_cache`) does not go through the model at all. All other tokens of the
tree do so as one packed sequence without padding. Only attention looks at the sequences themselves,
each token at those before it on its path through the tree.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

CACHED_PER_TOKEN = 8
"""How many cached tokens count as one that is computed, when sequences are put into batches.

They go through no layer, but their keys and values are gathered in each.
"""

TokenIds = tuple[int, ...]


@dataclass(frozen=True)
class Added:
    """What one sequence adds to a tree.

    Attributes
    ----------
    start, stop : int
        The half-open range of its tokens in the tree.
    path : list[int]
        The nodes of the whole sequence.
    shared : int
        How many of them its predecessor in the tree begins with, too.
    """

    start: int
    stop: int
    path: list[int]
    shared: int


@dataclass(frozen=True)
class PrefixTree:
    """Sequences with their common beginnings merged.

    The tree's nodes are numbered: first those with cached keys and values, then the tokens.

    Attributes
    ----------
    slots : list[int]
        Where the keys and values of the cached nodes are.
    tokens : list[int]
        The tokens to be computed; those that one sequence adds to the tree stand together.
    positions : list[int]
        The place of each of ``tokens`` in the sequences that it belongs to.
    paths : list[list[int]]
        For each sequence its nodes.
    added : list[Added]
        For each sequence that adds tokens, these.
    """

    slots: list[int]
    tokens: list[int]
    positions: list[int]
    paths: list[list[int]]
    added: list[Added]

    @classmethod
    def of(
        cls, sequences: Sequence[TokenIds], cached: Sequence[Sequence[int]] | None = None
    ) -> "PrefixTree":
        """Build the tree of ``sequences``.

        Parameters
        ----------
        sequences : Sequence[TokenIds]
            In any order.
        cached : Sequence[Sequence[int]], optional
            For each sequence the slots of its first tokens. Where two sequences share tokens, the
            same of them are cached for both. Nothing is by default.
        """
        cached = cached or [()] * len(sequences)
        slots = {slot: node for node, slot in enumerate(dict.fromkeys(chain(*cached)))}
        tokens: list[int] = []
        positions: list[int] = []
        paths: list[list[int]] = [[]] * len(sequences)
        added = []
        before: TokenIds = ()
        path: list[int] = []
        # In this order a sequence shares most with the one before it.
        for row in sorted(range(len(sequences)), key=sequences.__getitem__):
            sequence = sequences[row]
            shared = common_length(before, sequence)
            known = max(shared, len(cached[row]))
            start, stop = len(tokens), len(tokens) + len(sequence) - known
            tokens += sequence[known:]
            positions += range(known, len(sequence))
            path = [
                *path[:shared],
                *(slots[slot] for slot in cached[row][shared:]),
                *range(len(slots) + start, len(slots) + stop),
            ]
            paths[row] = path
            if start < stop:
                added.append(Added(start, stop, path, shared))
            before = sequence
        return cls(list(slots), tokens, positions, paths, added)

    def ends(self, last: Sequence[int]) -> list[int]:
        """Return where each sequence's last tokens are among the tree's, sequence by sequence.

        Parameters
        ----------
        last : Sequence[int]
            How many of each sequence's last tokens are wanted; none of these is cached.
        """
        return [
            node - len(self.slots)
            for path, n in zip(self.paths, last, strict=True)
            for node in path[len(path) - n :]
        ]


def common_length(first: TokenIds, second: TokenIds) -> int:
    """Return how many leading tokens two sequences share."""
    length = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        length += 1
    return length


def batches(
    sequences: Sequence[TokenIds], max_tokens: int, cached: Sequence[int] | None = None
) -> Iterator[list[int]]:
    """Yield the sequences' indices in batches of about equal work.

    In sorted order, neighbours share most, and a batch computes what they share once.

    Parameters
    ----------
    sequences : Sequence[TokenIds]
        In any order.
    max_tokens : int
        Most tokens that are computed in a batch, unless a single sequence has more.
    cached : Sequence[int], optional
        How many of each sequence's first tokens need not be. Defaults to 0.
    """
    batch: list[int] = []
    size = 0.0
    for row in sorted(range(len(sequences)), key=sequences.__getitem__):
        known = cached[row] if cached else 0
        gathered = known / CACHED_PER_TOKEN
        shared = common_length(sequences[batch[-1]], sequences[row]) if batch else 0
        if batch and size + len(sequences[row]) - max(shared, known) + gathered > max_tokens:
            yield batch
            batch, size, shared = [], 0, 0
        batch.append(row)
        size += len(sequences[row]) - max(shared, known) + gathered
    if batch:
        yield batch

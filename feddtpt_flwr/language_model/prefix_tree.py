"""Sequences that begin alike as one tree, through which a causal model goes once.

Tokens that several sequences begin with stand in the tree once, whatever they share: a prompt that
many inputs follow, the first words that several prompts have in common. All tokens of the tree go
through the model as one packed sequence without padding. Only attention looks at the sequences
themselves, each token at those before it on its path through the tree.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

STRETCH = 128
"""Tokens whose attention is computed together, unless one sequence has more of its own."""

TokenIds = tuple[int, ...]

Added = tuple[int, int, list[int]]
"""What one sequence adds to a tree: the half-open range of its tokens there, and its path."""


@dataclass(frozen=True)
class PrefixTree:
    """Sequences with their common beginnings merged.

    Attributes
    ----------
    tokens : list[int]
        The tree's tokens; those that one sequence adds to the tree stand together.
    positions : list[int]
        Each token's place in the sequences that it belongs to.
    paths : list[list[int]]
        For each sequence the indices of its tokens in ``tokens``.
    added : list[Added]
        For each sequence that adds tokens, these.
    """

    tokens: list[int]
    positions: list[int]
    paths: list[list[int]]
    added: list[Added]

    @classmethod
    def of(cls, sequences: Sequence[TokenIds]) -> "PrefixTree":
        """Build the tree of ``sequences``."""
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
            start, stop = len(tokens), len(tokens) + len(sequence) - shared
            tokens += sequence[shared:]
            positions += range(shared, len(sequence))
            path = [*path[:shared], *range(start, stop)]
            paths[row] = path
            if start < stop:
                added.append((start, stop, path))
            before = sequence
        return cls(tokens, positions, paths, added)

    def ends(self, states: "torch.Tensor", last: Sequence[int]) -> "list[torch.Tensor]":
        """Return of each sequence the states of its last tokens.

        Parameters
        ----------
        states : torch.Tensor
            Of the tree's tokens, shape ``(tokens, hidden size)``.
        last : Sequence[int]
            How many of each sequence's last tokens are wanted.
        """
        return [states[path[len(path) - n :]] for path, n in zip(self.paths, last, strict=True)]


@dataclass(frozen=True)
class Stretch:
    """Neighbouring tokens of a tree, and all that one of them or another attends to.

    Attributes
    ----------
    start, stop : int
        The half-open range of the tokens.
    keys : torch.Tensor
        Indices of the tokens on their paths, shape ``(keys,)``.
    mask : torch.Tensor
        0 for the keys on a token's own path up to itself, else -inf; ``(stop - start, keys)``.
    """

    start: int
    stop: int
    keys: "torch.Tensor"
    mask: "torch.Tensor"

    @classmethod
    def of(cls, rows: Sequence[Added], dtype: "torch.dtype", device: "torch.device") -> "Stretch":
        """Take what neighbouring sequences add to a tree together."""
        import torch

        first, last = rows[0][0], rows[-1][1]
        keys = sorted({token for _, _, path in rows for token in path})
        column = {token: index for index, token in enumerate(keys)}
        mask = torch.full((last - first, len(keys)), -torch.inf, dtype=dtype)
        for start, stop, path in rows:
            added = stop - start
            seen = mask.new_full((added, len(path)), -torch.inf).triu(len(path) - added + 1)
            mask[start - first : stop - first, [column[token] for token in path]] = seen
        return cls(first, last, torch.tensor(keys, device=device), mask.to(device))


@dataclass(frozen=True)
class TreeAttention:
    """Attention of every token of a tree to those before it on its path.

    It is computed stretch by stretch between all tokens concerned and masked; to gather each
    sequence's own tokens costs more. Long sequences are stretches of their own, and many short
    ones that begin alike make up one.
    """

    stretches: tuple[Stretch, ...]

    @classmethod
    def over(
        cls, tree: PrefixTree, dtype: "torch.dtype", device: "torch.device"
    ) -> "TreeAttention":
        """Return the attention over ``tree`` for states of this type on this device."""
        groups: list[list[Added]] = []
        for added in tree.added:
            if not groups or added[1] - groups[-1][0][0] > STRETCH:
                groups.append([])
            groups[-1].append(added)
        return cls(tuple(Stretch.of(group, dtype, device) for group in groups))

    def __call__(
        self,
        query: "torch.Tensor",
        key: "torch.Tensor",
        value: "torch.Tensor",
        scaling: float | None = None,
    ) -> "torch.Tensor":
        """Attend.

        Parameters
        ----------
        query, key, value : torch.Tensor
            Shape ``(1, heads, tokens, head size)``. Keys and values may have fewer heads; each is
            then shared by as many neighbouring queries.
        scaling : float, optional
            What the products of queries and keys are multiplied by. Defaults to one over the root
            of the head size.

        Returns
        -------
        torch.Tensor
            Shape ``(1, heads, tokens, head size)``.
        """
        import torch

        attended = [
            torch.nn.functional.scaled_dot_product_attention(
                query[:, :, stretch.start : stretch.stop],
                key[:, :, stretch.keys],
                value[:, :, stretch.keys],
                attn_mask=stretch.mask,
                scale=scaling,
                enable_gqa=True,
            )
            for stretch in self.stretches
        ]
        return torch.cat(attended, 2)


def common_length(first: TokenIds, second: TokenIds) -> int:
    """Return how many leading tokens two sequences share."""
    length = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        length += 1
    return length


def batches(sequences: Sequence[TokenIds], max_tokens: int) -> Iterator[list[int]]:
    """Yield the sequences' indices in batches of about equal size and at most ``max_tokens``.

    In sorted order, neighbours share most, and a batch computes what they share once.
    """
    batch: list[int] = []
    size = 0
    for row in sorted(range(len(sequences)), key=sequences.__getitem__):
        shared = common_length(sequences[batch[-1]], sequences[row]) if batch else 0
        if batch and size + len(sequences[row]) - shared > max_tokens:
            yield batch
            batch, size, shared = [], 0, 0
        batch.append(row)
        size += len(sequences[row]) - shared
    if batch:
        yield batch

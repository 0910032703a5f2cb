"""Attention over a prefix tree: every token looks at those before it on its path, and no others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from feddtpt_flwr.language_model.prefix_tree import Added, PrefixTree

if TYPE_CHECKING:
    import torch

    AllNodes = Callable[[int, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

GATHERING = 16
"""In how many products of a query and a key the time passes that it takes to gather one key.

This and the next are rough measurements with SmolLM2-135M on two CPU cores.
"""

CALLING = {"cpu": 2048, "cuda": 2**19}
"""In how many such products the time passes that one more call of the attention function takes, by
the type of device; a GPU has computed many before the next call is there. Its number is a guess."""

SHARES_HEADS = {"cpu"}
"""Types of device whose fast attention takes keys and values with fewer heads than queries, under a
mask of any width. On a GPU torch then takes its plainest way, which computes in float32."""

ALIGNED = 16
"""In multiples of how many numbers the rows of a mask begin for a GPU's fast attention."""


@dataclass(frozen=True)
class Stretch:
    """Neighbouring tokens of a tree, and all that one of them or another attends to.

    Attributes
    ----------
    rows : list[Added]
        What neighbouring sequences add.
    keys : int
        How many nodes their paths have together.
    """

    rows: list[Added]
    keys: int

    @property
    def length(self) -> int:
        """How many tokens these are."""
        return self.rows[-1].stop - self.rows[0].start

    @property
    def cost(self) -> int:
        """How long its attention takes, in products of a query and a key."""
        return self.cost_of(self.length, self.keys)

    @staticmethod
    def cost_of(length: int, keys: int) -> int:
        """Return how long the attention of so many tokens to so many keys takes."""
        return keys * (length + GATHERING)

    @classmethod
    def all_of(cls, tree: PrefixTree) -> "list[Stretch]":
        """Divide a tree: neighbours stay together if they share enough of what they attend to."""
        stretches: list[Stretch] = []
        for added in tree.added:
            alone = cls([added], len(added.path))
            if stretches:
                before = stretches[-1]
                joined = cls([*before.rows, added], before.keys + len(added.path) - added.shared)
                if joined.cost <= before.cost + alone.cost:
                    stretches[-1] = joined
                    continue
            stretches.append(alone)
        return stretches

    def fill(self, keys: NDArray[np.int64], mask: NDArray[np.float32]) -> None:
        """Write down what the tokens attend to.

        Parameters
        ----------
        keys : NDArray[np.int64]
            Gets the nodes on the tokens' paths, at the beginning of shape ``(at least keys,)``.
        mask : NDArray[np.float32]
            Gets 0 for the keys on a token's own path up to itself; it is -inf before. Shape
            ``(at least length, at least keys)``.
        """
        columns: list[int] = []
        end = 0
        for added in self.rows:
            shared = min(added.shared, len(columns))
            new = len(added.path) - shared
            keys[end : end + new] = added.path[shared:]
            columns = [*columns[:shared], *range(end, end + new)]
            end += new
            first, last = added.start - self.rows[0].start, added.stop - self.rows[0].start
            # The tokens that the sequence adds are the last of its path; each sees one more.
            earlier = len(columns) - (last - first)
            mask[first:last, columns[:earlier]] = 0
            own = slice(columns[earlier], columns[earlier] + last - first)
            mask[first:last, own][np.tri(last - first, dtype=bool)] = 0


@dataclass(frozen=True)
class StretchBatch:
    """Stretches of about equal size, padded to the same, for one call of the attention function.

    Attributes
    ----------
    queries : torch.Tensor
        Indices of the stretches' tokens, one after the other; ``(stretches * length,)``.
    keys : torch.Tensor
        The nodes that they attend to; ``(stretches * keys,)``.
    mask : torch.Tensor
        0 for the keys on a token's own path up to itself, else -inf;
        ``(stretches, 1, length, keys)``.
    """

    queries: "torch.Tensor"
    keys: "torch.Tensor"
    mask: "torch.Tensor"

    @classmethod
    def of(
        cls, stretches: Sequence[Stretch], dtype: "torch.dtype", device: "torch.device"
    ) -> "StretchBatch":
        """Pad ``stretches``."""
        import torch

        length = max(stretch.length for stretch in stretches)
        width = max(stretch.keys for stretch in stretches)
        queries = np.zeros((len(stretches), length), np.int64)
        keys = np.zeros((len(stretches), width), np.int64)
        mask = np.full((len(stretches), 1, length, width), -np.inf, np.float32)
        for index, stretch in enumerate(stretches):
            queries[index, : stretch.length] = np.arange(
                stretch.rows[0].start, stretch.rows[-1].stop
            )
            stretch.fill(keys[index], mask[index, 0])
            # What is read for padding is never used; to see nothing at all would be no number.
            mask[index, 0, stretch.length :] = 0
        return cls(
            torch.from_numpy(queries.ravel()).to(device),
            torch.from_numpy(keys.ravel()).to(device),
            _aligned(torch.from_numpy(mask).to(device, dtype)),
        )

    @classmethod
    def all_of(
        cls, stretches: Sequence[Stretch], dtype: "torch.dtype", device: "torch.device"
    ) -> "tuple[tuple[StretchBatch, ...], torch.Tensor]":
        """Put stretches into few batches with little padding.

        Returns
        -------
        tuple[StretchBatch, ...]
            The batches.
        torch.Tensor
            Where each token of the tree is among all their queries, shape ``(tokens,)``.
        """
        import torch

        calling = CALLING.get(device.type, CALLING["cpu"])
        groups: list[list[Stretch]] = []
        width = cost = 0
        for stretch in sorted(stretches, key=lambda s: (s.length, s.keys), reverse=True):
            width, cost = max(width, stretch.keys), cost + stretch.cost
            if groups:
                longest, count = groups[-1][0].length, len(groups[-1]) + 1
                padded = count * Stretch.cost_of(longest, width)
            if not groups or padded > cost + calling:
                groups.append([])
                width, cost = stretch.keys, stretch.cost
            groups[-1].append(stretch)
        where = np.zeros(sum(stretch.length for stretch in stretches), np.int64)
        start = 0
        for group in groups:
            for stretch in group:
                first, last = stretch.rows[0].start, stretch.rows[-1].stop
                where[first:last] = np.arange(start, start + last - first)
                start += group[0].length
        batches = tuple(cls.of(group, dtype, device) for group in groups)
        return batches, torch.from_numpy(where).to(device)


@dataclass(frozen=True)
class TreeAttention:
    """Attention of every token of a tree to those before it on its path.

    A sequence's tokens, or those of neighbours that share most of their paths, are a stretch.
    Stretches of about equal size go through the attention function together.

    Attributes
    ----------
    batches : tuple[StretchBatch, ...]
        All stretches of the tree.
    order : torch.Tensor
        Where each token of the tree is among their queries, shape ``(tokens,)``.
    earlier : AllNodes
        Returns a layer's keys and values of all nodes of the tree, given those of its tokens: the
        others have been computed by earlier calls.
    """

    batches: tuple[StretchBatch, ...]
    order: "torch.Tensor"
    earlier: "AllNodes"

    @classmethod
    def over(
        cls,
        tree: PrefixTree,
        dtype: "torch.dtype",
        device: "torch.device",
        earlier: "AllNodes",
    ) -> "TreeAttention":
        """Return the attention over ``tree`` for states of this type on this device."""
        return cls(*StretchBatch.all_of(Stretch.all_of(tree), dtype, device), earlier)

    def __call__(
        self,
        layer: int,
        query: "torch.Tensor",
        key: "torch.Tensor",
        value: "torch.Tensor",
        scaling: float | None = None,
    ) -> "torch.Tensor":
        """Attend.

        Parameters
        ----------
        layer : int
            Which of the model's layers these are of.
        query, key, value : torch.Tensor
            Shape ``(tokens, heads, head size)``. Keys and values may have fewer heads; each is
            then shared by as many neighbouring queries.
        scaling : float, optional
            What the products of queries and keys are multiplied by. Defaults to one over the root
            of the head size.

        Returns
        -------
        torch.Tensor
            Shape ``(tokens, heads, head size)``.
        """
        import torch

        key, value = self.earlier(layer, key, value)
        shares = query.device.type in SHARES_HEADS
        times = 1 if shares else query.shape[1] // key.shape[1]
        attended = [
            torch.nn.functional.scaled_dot_product_attention(
                _batched(query, batch.queries, len(batch.mask)),
                _batched(key, batch.keys, len(batch.mask), times),
                _batched(value, batch.keys, len(batch.mask), times),
                attn_mask=batch.mask,
                scale=scaling,
                enable_gqa=shares,
            )
            for batch in self.batches
        ]
        flat = torch.cat([heads.transpose(1, 2).flatten(0, 1) for heads in attended])
        return flat.index_select(0, self.order)


def _aligned(mask: "torch.Tensor") -> "torch.Tensor":
    """Return a mask of which each row begins at a multiple of `ALIGNED`, where that matters."""
    import torch

    if mask.device.type in SHARES_HEADS:
        return mask
    width = mask.shape[-1]
    return torch.nn.functional.pad(mask, (0, -width % ALIGNED))[..., :width]


def _batched(
    states: "torch.Tensor", indices: "torch.Tensor", stretches: int, times: int = 1
) -> "torch.Tensor":
    """Select tokens' states, as ``(stretches, heads, tokens of each, head size)``.

    Each head comes several ``times``, one after the other.
    """
    chosen = states.index_select(0, indices)
    batched = chosen.view(stretches, -1, *states.shape[1:]).transpose(1, 2)
    return batched if times == 1 else batched.repeat_interleave(times, 1)

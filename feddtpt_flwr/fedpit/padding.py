"""Sequences of different lengths as the rectangles that a model takes."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

TokenIds = tuple[int, ...]


def pad_left(
    rows: Sequence[TokenIds], pad: int, device: str
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Return ids and attention mask, both of shape ``(rows, longest)``; all rows end together."""
    import torch

    ids = torch.full((len(rows), max(map(len, rows))), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, ids.shape[1] - len(row) :] = torch.tensor(row)
        mask[number, ids.shape[1] - len(row) :] = 1
    return ids.to(device), mask.to(device)


def batches(rows: Sequence[TokenIds], size: int) -> Iterator[list[int]]:
    """Yield the rows' numbers in batches of ``size``, those of about one length together."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for first in range(0, len(order), size):
        yield order[first : first + size]

"""Forward passes of a causal language model over many sequences that begin alike.

The sequences form a prefix tree: tokens that several of them begin with stand in it once, whatever
they share: a prompt that many inputs follow, the first words that several prompts have in common.
All tokens of the tree go through the model as one packed sequence without padding. Only attention
looks at the sequences themselves, each token at those before it on its path through the tree.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

TokenIds = tuple[int, ...]

ATTENTION = "feddtpt_prefix_tree"
"""The name under which the attention over a prefix tree is registered with transformers."""


class CausalForward:
    """Computes last-layer states of a causal language model, each shared token once.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A causal language model. If transformers cannot give it another attention function, or if
        its layers do more than attend to all earlier tokens, sequences are padded instead.
    max_tokens : int
        Most tokens that go through the model at once. More hardly raise the throughput, but the
        memory.
    """

    def __init__(self, model: Any, *, max_tokens: int = 1024) -> None:
        self._model = model
        self._max_tokens = max_tokens
        self._packs = _can_pack(model)
        if self._packs:
            from transformers import AttentionInterface

            AttentionInterface.register(ATTENTION, _attend)
            model.set_attn_implementation(ATTENTION)

    def states(self, sequences: Sequence[TokenIds], last: Sequence[int]) -> "list[torch.Tensor]":
        """Return the last layer's states at the end of each sequence.

        Parameters
        ----------
        sequences : Sequence[TokenIds]
            None of them empty.
        last : Sequence[int]
            How many of each sequence's last tokens are wanted.

        Returns
        -------
        list[torch.Tensor]
            For each sequence an array of shape ``(its last, hidden size)``.
        """
        import torch

        compute = self._packed if self._packs else self._padded
        states: list[torch.Tensor] = [torch.empty(0)] * len(sequences)
        with torch.inference_mode():
            for batch in _batches(sequences, self._max_tokens):
                found = compute([sequences[row] for row in batch], [last[row] for row in batch])
                for row, rows_states in zip(batch, found, strict=True):
                    states[row] = rows_states
        return states

    def last_states(self, sequences: Sequence[TokenIds]) -> "torch.Tensor":
        """Return the state of each sequence's last token, shape ``(sequences, hidden size)``."""
        import torch

        return torch.cat(self.states(sequences, [1] * len(sequences)))

    def _packed(self, sequences: list[TokenIds], last: list[int]) -> "list[torch.Tensor]":
        import torch

        tree = PrefixTree.of(sequences)
        device = self._model.device
        hidden = self._model.base_model(
            torch.tensor([tree.tokens], device=device),
            position_ids=torch.tensor([tree.positions], device=device),
            use_cache=False,
            layout=_Layout.of(tree, self._model.dtype, device),
        ).last_hidden_state[0]
        return [hidden[path[len(path) - n :]] for path, n in zip(tree.paths, last, strict=True)]

    def _padded(self, sequences: list[TokenIds], last: list[int]) -> "list[torch.Tensor]":
        """Pad on the right: no token of a causal model sees what comes after it."""
        import torch

        ids = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.tensor(sequence)
            mask[row, : len(sequence)] = 1
        device = self._model.device
        hidden = self._model.base_model(
            ids.to(device), attention_mask=mask.to(device), use_cache=False
        ).last_hidden_state
        ends = [len(sequence) for sequence in sequences]
        rows = zip(hidden, ends, last, strict=True)
        return [states[end - n : end] for states, end, n in rows]


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
    added : list[tuple[int, int, list[int]]]
        For each sequence that adds tokens: the half-open range of these in ``tokens``, and its
        path.
    """

    tokens: list[int]
    positions: list[int]
    paths: list[list[int]]
    added: list[tuple[int, int, list[int]]]

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


@dataclass(frozen=True)
class _Layout:
    """Where the attention finds the queries and keys of each row, padded to a rectangle."""

    queries: "torch.Tensor"  # (rows, most queries): indices of tokens
    keys: "torch.Tensor"  # (rows, most keys): indices of tokens
    mask: "torch.Tensor"  # (rows, 1, most queries, most keys): 0 where a query may look, else -inf
    back: "torch.Tensor"  # (tokens,): each token's place among the flattened queries

    @classmethod
    def of(cls, tree: PrefixTree, dtype: "torch.dtype", device: "torch.device") -> "_Layout":
        import torch

        most_queries = max(stop - start for start, stop, _ in tree.added)
        most_keys = max(len(path) for _, _, path in tree.added)
        queries = torch.zeros(len(tree.added), most_queries, dtype=torch.long)
        keys = torch.zeros(len(tree.added), most_keys, dtype=torch.long)
        first = torch.zeros(len(tree.added), dtype=torch.long)
        back = torch.zeros(len(tree.tokens), dtype=torch.long)
        for row, (start, stop, path) in enumerate(tree.added):
            queries[row, : stop - start] = torch.arange(start, stop)
            keys[row, : len(path)] = torch.tensor(path)
            first[row] = len(path) - (stop - start)
            back[start:stop] = row * most_queries + torch.arange(stop - start)
        places = first[:, None] + torch.arange(most_queries)
        hidden = torch.arange(most_keys) > places[:, :, None]
        mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)
        return cls(*(t.to(device) for t in (queries, keys, mask[:, None], back)))


def _attend(
    module: Any,
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: "torch.Tensor | None",
    *,
    scaling: float | None = None,
    layout: _Layout | None = None,
    **kwargs: Any,
) -> tuple["torch.Tensor", None]:
    """Attend along the paths of a prefix tree; the signature is transformers' own.

    Parameters
    ----------
    query, key, value : torch.Tensor
        Shape ``(1, heads, tokens, head size)``; keys and values may have fewer heads.
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if layout is None:  # an ordinary call, such as the model's own generation of text
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return output, None

    def rows(states: "torch.Tensor", indices: "torch.Tensor") -> "torch.Tensor":
        return states[0].transpose(0, 1)[indices].transpose(1, 2)

    groups = query.shape[1] // key.shape[1]
    attended = torch.nn.functional.scaled_dot_product_attention(
        rows(query, layout.queries),
        rows(key, layout.keys).repeat_interleave(groups, 1),
        rows(value, layout.keys).repeat_interleave(groups, 1),
        attn_mask=layout.mask,
        scale=scaling,
    )
    return attended.transpose(1, 2).flatten(0, 1)[layout.back][None], None


def _can_pack(model: Any) -> bool:
    """Return whether every layer attends to all earlier tokens by a function that can be set."""
    config = model.config
    plain = set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
    capped = getattr(config, "attn_logit_softcapping", None) or getattr(
        config, "sliding_window", None
    )
    return bool(type(model)._supports_attention_backend) and plain and not capped


def common_length(first: TokenIds, second: TokenIds) -> int:
    """Return how many leading tokens two sequences share."""
    length = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        length += 1
    return length


def _batches(sequences: Sequence[TokenIds], max_tokens: int) -> Iterator[list[int]]:
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

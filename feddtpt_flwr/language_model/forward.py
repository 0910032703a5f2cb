"""Forward passes of a causal language model over many sequences that begin alike."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any, Protocol

from feddtpt_flwr.language_model.prefix_cache import PrefixCache
from feddtpt_flwr.language_model.prefix_tree import TokenIds, batches, common_length
from feddtpt_flwr.language_model.products import use_faster_products
from feddtpt_flwr.language_model.tree_attention import TreeAttention

if TYPE_CHECKING:
    import torch
    from torch.nn.attention import SDPBackend

ATTENTION = "feddtpt_prefix_tree"
"""The name under which the attention over a prefix tree is registered with transformers."""


MAX_TOKENS = {"cpu": 1024, "cuda": 8192}
"""Most tokens that go through a model at once, by the type of device, unless a single sequence has
more. A processor gains hardly anything from more, but needs the memory. A GPU gains much; its
number is a choice with an eye on the memory of long texts, no optimum that was measured."""


class Backbone(Protocol):
    """The layers of a causal language model."""

    def cached(self, sequences: Sequence[TokenIds], last: Sequence[int]) -> list[int]:
        """Return how many tokens of each sequence `states` need not compute, as of now.

        Parameters
        ----------
        sequences, last
            As of `states`.
        """
        ...

    def states(
        self, sequences: Sequence[TokenIds], last: Sequence[int], again: Sequence[int] = ()
    ) -> "list[torch.Tensor]":
        """Return the last layer's states at the end of each sequence, all in one pass.

        Parameters
        ----------
        sequences : Sequence[TokenIds]
            None of them empty.
        last : Sequence[int]
            How many of each sequence's last tokens are wanted.
        again : Sequence[int]
            How many of each sequence's first tokens will come again; unknown by default.

        Returns
        -------
        list[torch.Tensor]
            For each sequence an array of shape ``(its last, hidden size)``.
        """
        ...


class CausalForward:
    """Computes last-layer states of a causal language model, in batches.

    Parameters
    ----------
    backbone : Backbone
        The model's layers.
    max_tokens : int
        Most tokens that go through the model at once, unless a single sequence has more.
    """

    def __init__(self, backbone: Backbone, *, max_tokens: int = MAX_TOKENS["cpu"]) -> None:
        self._backbone = backbone
        self._max_tokens = max_tokens

    def states(
        self, sequences: Sequence[TokenIds], last: Sequence[int], again: Sequence[int] = ()
    ) -> "list[torch.Tensor]":
        """Return the states at the end of each sequence (see `Backbone.states`)."""
        import torch
        from torch.nn.attention import sdpa_kernel

        states: list[torch.Tensor] = [torch.empty(0)] * len(sequences)
        with torch.inference_mode(), sdpa_kernel(_kernels()):
            cached = self._backbone.cached(sequences, last)
            for batch in batches(sequences, self._max_tokens, cached):
                found = self._backbone.states(
                    [sequences[row] for row in batch],
                    [last[row] for row in batch],
                    [again[row] for row in batch] if again else (),
                )
                for row, rows_states in zip(batch, found, strict=True):
                    states[row] = rows_states
        return states

    def last_states(self, sequences: Sequence[TokenIds]) -> "torch.Tensor":
        """Return the state of each sequence's last token, shape ``(sequences, hidden size)``.

        What comes before an ending that all have is taken to come again: texts, with another prompt
        behind them.
        """
        import torch

        return torch.cat(self.states(sequences, [1] * len(sequences), without_ending(sequences)))


def _kernels() -> "list[SDPBackend]":
    """Return torch's kernels for attention but cuDNN's.

    That one is planned for each shape, and hardly two passes here have the same.
    """
    from torch.nn.attention import SDPBackend

    left_out = {SDPBackend.CUDNN_ATTENTION, SDPBackend.ERROR}
    return [kernel for kernel in SDPBackend.__members__.values() if kernel not in left_out]


class TransformersBackbone:
    """The layers of a model of transformers, each shared token through them once.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A causal language model. If transformers cannot give it another attention function, or if
        its layers do more than attend to all earlier tokens, sequences are padded instead.

    Attributes
    ----------
    packs : bool
        Whether they are not.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        use_faster_products(model)
        self.packs = _can_pack(model)
        self._cache = PrefixCache()
        self._own_attention = model.config._attn_implementation
        if self.packs:
            from transformers import AttentionInterface

            AttentionInterface.register(ATTENTION, _attend)
            model.set_attn_implementation(ATTENTION)

    def pad(self) -> None:
        """Pad sequences from now on, with the model's own attention."""
        self._model.set_attn_implementation(self._own_attention)
        self.packs, self._cache = False, PrefixCache()

    def cached(self, sequences: Sequence[TokenIds], last: Sequence[int]) -> list[int]:
        """Return how many tokens of each sequence need not be computed (see `Backbone.cached`)."""
        return self._cache.lengths(sequences, last)

    def states(
        self, sequences: Sequence[TokenIds], last: Sequence[int], again: Sequence[int] = ()
    ) -> "list[torch.Tensor]":
        """Return the states at the end of each sequence (see `Backbone.states`)."""
        if self.packs:
            return self._packed(sequences, last, again)
        return self._padded(sequences, last)

    def _packed(
        self, sequences: Sequence[TokenIds], last: Sequence[int], again: Sequence[int]
    ) -> "list[torch.Tensor]":
        import torch

        dtype, device = self._model.dtype, self._model.device
        with self._cache.tree(sequences, last, dtype, device, again) as (tree, attention):
            hidden = self._model.base_model(
                torch.tensor([tree.tokens], device=device),
                position_ids=torch.tensor([tree.positions], device=device),
                use_cache=False,
                tree_attention=attention,
            ).last_hidden_state[0]
        return list(torch.split(hidden[tree.ends(last)], list(last)))

    def _padded(self, sequences: Sequence[TokenIds], last: Sequence[int]) -> "list[torch.Tensor]":
        """Pad on the right: no token of a causal model sees what comes after it.

        What sequences share goes through the model with each of them, so they may be too many.
        """
        import torch

        most = most_tokens(self._model.device)
        states: list[torch.Tensor] = [torch.empty(0)] * len(sequences)
        for rows in rectangles([len(sequence) for sequence in sequences], most):
            found = self._rectangle([sequences[row] for row in rows], [last[row] for row in rows])
            for row, rows_states in zip(rows, found, strict=True):
                states[row] = rows_states
        return states

    def _rectangle(
        self, sequences: Sequence[TokenIds], last: Sequence[int]
    ) -> "list[torch.Tensor]":
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


def most_tokens(device: "torch.device") -> int:
    """Return how many tokens go through a model at once (`MAX_TOKENS`)."""
    return MAX_TOKENS.get(device.type, MAX_TOKENS["cpu"])


def rectangles(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Yield sequences' indices in batches of at most ``most`` tokens, padding among them.

    Parameters
    ----------
    lengths : Sequence[int]
        Of the sequences.
    most : int
        A single sequence may have more.
    """
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[row] > most:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def without_ending(sequences: Sequence[TokenIds]) -> list[int]:
    """Return each sequence's length without what all end with; none if they rather begin alike.

    Those of one prompt behind many texts have more in common at their end than neighbours in order
    have at their beginning. With the prompt before the texts, or with several prompts behind each,
    it is the other way round.
    """
    if len(sequences) < 2:
        return []
    ordered, backwards = sorted(sequences), sorted(sequence[::-1] for sequence in sequences)
    beginning = fmean(common_length(*pair) for pair in pairwise(ordered))
    ending = common_length(backwards[0], backwards[-1])  # then all between them share it
    return [len(sequence) - ending for sequence in sequences] if ending > beginning else []


def _attend(
    module: Any,
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: "torch.Tensor | None",
    *,
    scaling: float | None = None,
    tree_attention: TreeAttention | None = None,
    **kwargs: Any,
) -> tuple["torch.Tensor", None]:
    """Attend along the paths of a prefix tree; the signature is transformers' own."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if tree_attention is None:  # an ordinary call, such as the model's own generation of text
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return output, None
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    return tree_attention(module.layer_idx, query, key, value, scaling)[None], None


def _can_pack(model: Any) -> bool:
    """Return whether every layer attends to all earlier tokens by a function that can be set."""
    config = model.config.get_text_config()  # of one that reads pictures as well
    plain = set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
    capped = getattr(config, "attn_logit_softcapping", None) or getattr(
        config, "sliding_window", None
    )
    return bool(type(model)._supports_attention_backend) and plain and not capped

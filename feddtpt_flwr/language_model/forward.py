"""Forward passes of a causal language model over sequences that begin alike."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

TokenIds = tuple[int, ...]


class SharedPrefix:
    """Tokens that many sequences begin with, computed once.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A causal language model.
    tokens : TokenIds
        The shared beginning; may be empty.

    Attributes
    ----------
    last_hidden : torch.Tensor or None
        The last layer's state of the last shared token, shape ``(hidden size,)``.
    """

    def __init__(self, model: Any, tokens: TokenIds) -> None:
        import torch
        from transformers import DynamicCache

        self._model = model
        self._length = len(tokens)
        self._cache = None
        self.last_hidden: torch.Tensor | None = None
        if tokens:
            self._cache = DynamicCache(config=model.config)
            ids = torch.tensor([tokens], device=model.device)
            with torch.inference_mode():
                states = model.base_model(ids, past_key_values=self._cache, use_cache=True)
            self.last_hidden = states.last_hidden_state[0, -1]

    def hidden_states(self, tails: Sequence[TokenIds]) -> "torch.Tensor":
        """Return the last layer's states of each tail after the prefix.

        Tails are padded on the right: under the causal mask no real token sees the padding, so no
        attention mask is needed and every tail begins at the same position.

        Parameters
        ----------
        tails : Sequence[TokenIds]
            Sequences without the prefix, none empty.

        Returns
        -------
        torch.Tensor
            Shape ``(len(tails), longest tail, hidden size)``; meaningless in the padding.
        """
        import torch

        size, length = len(tails), max(map(len, tails))
        ids = torch.zeros(size, length, dtype=torch.long)
        for row, tail in enumerate(tails):
            ids[row, : len(tail)] = torch.tensor(tail)
        positions = torch.arange(self._length, self._length + length, device=self._model.device)
        with torch.inference_mode():
            hidden: torch.Tensor = self._model.base_model(
                ids.to(self._model.device),
                past_key_values=self._expanded(size),
                use_cache=self._cache is not None,
                position_ids=positions.expand(size, -1),
            ).last_hidden_state
        return hidden

    def _expanded(self, size: int) -> Any:
        """Return a copy of the cached keys and values for ``size`` sequences."""
        from transformers import DynamicCache

        if self._cache is None:
            return None
        copy = DynamicCache(config=self._model.config)
        for index, layer in enumerate(self._cache.layers):
            keys, values = layer.keys, layer.values
            copy.update(keys.expand(size, -1, -1, -1), values.expand(size, -1, -1, -1), index)
        return copy


def common_prefix_length(sequences: Sequence[TokenIds]) -> int:
    """Return how many leading tokens all sequences share, at least one token of each left over."""
    low, high = min(sequences), max(sequences)
    limit = min(map(len, sequences)) - 1
    length = 0
    while length < limit and low[length] == high[length]:
        length += 1
    return length

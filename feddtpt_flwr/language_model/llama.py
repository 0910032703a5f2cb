"""The layers of a Llama model, read from a file and nothing else.

What transformers loads before it can do the same takes several seconds, and every process that
asks the model pays for it. The numbers are those of transformers.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feddtpt_flwr.language_model.prefix_cache import PrefixCache
from feddtpt_flwr.language_model.prefix_tree import PrefixTree, TokenIds
from feddtpt_flwr.language_model.products import linear
from feddtpt_flwr.language_model.tree_attention import TreeAttention

if TYPE_CHECKING:
    import torch

EMBEDDINGS = "model.embed_tokens.weight"


def is_plain_llama(config: Mapping[str, Any]) -> bool:
    """Return whether `Llama` computes what a model's ``config.json`` says."""
    rope = config.get("rope_parameters") or {}
    return (
        config.get("model_type") == "llama"
        and config.get("hidden_act") == "silu"
        and rope.get("rope_type") == "default"
        and not (config.get("attention_bias") or config.get("mlp_bias"))
        and config.get("tie_word_embeddings") is True
    )


@dataclass(frozen=True)
class _Layer:
    before_attention: "torch.Tensor"  # (hidden,): weights of the norm
    query: "torch.Tensor"  # (heads * head size, hidden)
    key: "torch.Tensor"  # (key heads * head size, hidden), as the values
    value: "torch.Tensor"
    output: "torch.Tensor"  # (hidden, heads * head size)
    before_mlp: "torch.Tensor"  # (hidden,)
    gate: "torch.Tensor"  # (intermediate, hidden), as the next
    up: "torch.Tensor"
    down: "torch.Tensor"  # (hidden, intermediate)

    @classmethod
    def of(cls, weights: "Mapping[str, torch.Tensor]", number: int) -> "_Layer":
        names = (
            "input_layernorm",
            *(f"self_attn.{name}_proj" for name in "qkvo"),
            "post_attention_layernorm",
            *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
        )
        return cls(*(weights[f"model.layers.{number}.{name}.weight"] for name in names))


class Llama:
    """Llama's layers (Touvron et al., arXiv 2302.13971) over a prefix tree.

    Parameters
    ----------
    config : Mapping[str, Any]
        What ``config.json`` says; see `is_plain_llama`.
    weights : Mapping[str, torch.Tensor]
        By their names in a file of transformers, all of one numeric type and on one device.
    """

    def __init__(self, config: Mapping[str, Any], weights: "Mapping[str, torch.Tensor]") -> None:
        self.embeddings = weights[EMBEDDINGS]
        self._layers = [_Layer.of(weights, i) for i in range(config["num_hidden_layers"])]
        self._final_norm = weights["model.norm.weight"]
        self._epsilon: float = config["rms_norm_eps"]
        heads: int = config["num_attention_heads"]
        self._head_size: int = config.get("head_dim") or config["hidden_size"] // heads
        self._theta: float = config["rope_parameters"]["rope_theta"]
        self._cache = PrefixCache()

    @classmethod
    def read(cls, folder: Path, device: str) -> "Llama":
        """Read the weights of a folder, mapped into memory, with the numeric type they have."""
        from safetensors.torch import load_file

        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return cls(config, load_file(folder / "model.safetensors", device=device))

    def cached(self, sequences: Sequence[TokenIds], last: Sequence[int]) -> list[int]:
        """Return how many tokens of each sequence need not be computed (see `Backbone.cached`)."""
        return self._cache.lengths(sequences, last)

    def states(
        self, sequences: Sequence[TokenIds], last: Sequence[int], again: Sequence[int] = ()
    ) -> "list[torch.Tensor]":
        """Return the states at the end of each sequence (see `Backbone.states`)."""
        import torch

        dtype, device = self.embeddings.dtype, self.embeddings.device
        with self._cache.tree(sequences, last, dtype, device, again) as (tree, attend):
            states = self._compute(tree, attend, tree.ends(last))
        return list(torch.split(self._norm(states, self._final_norm), list(last)))

    def _compute(
        self, tree: PrefixTree, attend: TreeAttention, wanted: Sequence[int]
    ) -> "torch.Tensor":
        """Return the states of the wanted tokens after all layers, ``(wanted, hidden size)``."""
        import torch
        from torch.nn.functional import silu

        device = self.embeddings.device
        turn = self._rotation(torch.tensor(tree.positions, device=device))
        states = self.embeddings[torch.tensor(tree.tokens, device=device)]
        for number, layer in enumerate(self._layers):
            normed = self._norm(states, layer.before_attention)
            query, key, value = (
                linear(normed, weight).view(len(normed), -1, self._head_size)
                for weight in (layer.query, layer.key, layer.value)
            )
            attended = attend(number, _rotate(query, turn), _rotate(key, turn), value)
            if layer is self._layers[-1]:  # the others' states have been looked at
                rows = torch.tensor(wanted, device=device)
                states, attended = states[rows], attended[rows]
            states = states + linear(attended.flatten(1), layer.output)
            normed = self._norm(states, layer.before_mlp)
            gated = silu(linear(normed, layer.gate), inplace=True).mul_(linear(normed, layer.up))
            states = states + linear(gated, layer.down)
        return states

    def _norm(self, states: "torch.Tensor", weight: "torch.Tensor") -> "torch.Tensor":
        """Divide by the root mean square, in float32 as the model was trained."""
        precise = states.float()
        scale = precise.square().mean(-1, keepdim=True).add_(self._epsilon).rsqrt_()
        return weight * (precise * scale).to(states.dtype)

    def _rotation(self, positions: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
        """Return cosine and sine of each position's angles, ``(tokens, 1, head size / 2)``."""
        import torch

        steps = torch.arange(0, self._head_size, 2, device=positions.device) / self._head_size
        angles = positions[:, None, None] / self._theta**steps
        dtype = self.embeddings.dtype
        return angles.cos().to(dtype), angles.sin().to(dtype)


def _rotate(heads: "torch.Tensor", turn: "tuple[torch.Tensor, torch.Tensor]") -> "torch.Tensor":
    """Turn each half of a head's numbers by the other (Su et al., arXiv 2104.09864)."""
    import torch

    cosine, sine = turn
    one, other = heads.chunk(2, -1)
    return torch.cat([one * cosine - other * sine, other * cosine + one * sine], -1)

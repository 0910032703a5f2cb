"""A causal language model as the black box and the infiller use it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feddtpt_flwr.language_model.forward import (
    Backbone,
    CausalForward,
    TransformersBackbone,
    most_tokens,
)
from feddtpt_flwr.language_model.llama import Llama, is_plain_llama
from feddtpt_flwr.language_model.prefix_tree import TokenIds
from feddtpt_flwr.language_model.weights import converted, load_causal_lm

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class CausalLM:
    """A model's tokenizer, layers, and the matrices at both ends of them.

    Attributes
    ----------
    tokenizer : tokenizers.Tokenizer or transformers.PreTrainedTokenizerBase
        What turns text into token ids.
    end_token : int, optional
        The token that ends a text.
    backbone : Backbone
        The layers.
    embeddings, output_weight : torch.Tensor
        Both of shape ``(vocabulary, hidden size)``.
    output_bias : torch.Tensor, optional
        Shape ``(vocabulary,)``.
    """

    tokenizer: Any
    end_token: int | None
    backbone: Backbone
    embeddings: "torch.Tensor"
    output_weight: "torch.Tensor"
    output_bias: "torch.Tensor | None" = None

    @property
    def forward(self) -> CausalForward:
        """Passes of many sequences through the layers."""
        return CausalForward(self.backbone, max_tokens=most_tokens(self.embeddings.device))

    def encode(self, texts: Sequence[str], *, special: bool = True) -> list[TokenIds]:
        """Return the token ids of each text, with the special tokens that the model expects."""
        from tokenizers import Tokenizer

        if isinstance(self.tokenizer, Tokenizer):
            encoded = self.tokenizer.encode_batch(list(texts), add_special_tokens=special)
            return [tuple(item.ids) for item in encoded]
        rows = self.tokenizer(list(texts), add_special_tokens=special)["input_ids"]
        return [tuple(ids) for ids in rows]


@cache
def causal_lm(model: str, device: str, dtype: str) -> CausalLM:
    """Return a model that is ready to compute, the same for all callers of a process.

    Parameters
    ----------
    model, device, dtype : str
        As of `read_causal_lm`.
    """
    folder = converted(model, dtype)
    if folder and is_plain_llama(json.loads((folder / "config.json").read_text(encoding="utf-8"))):
        return _from_folder(folder, device)
    loaded, tokenizer = load_causal_lm(model, device, dtype)
    output_layer = loaded.get_output_embeddings()
    return CausalLM(
        tokenizer,
        tokenizer.eos_token_id,
        TransformersBackbone(loaded),
        loaded.get_input_embeddings().weight,
        output_layer.weight,
        getattr(output_layer, "bias", None),
    )


def _from_folder(folder: Path, device: str) -> CausalLM:
    """Read a folder that `converted` wrote, without transformers."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    layers = Llama.read(folder, device)
    return CausalLM(
        tokenizer,
        tokenizer.token_to_id(settings["eos_token"]),
        layers,
        layers.embeddings,
        layers.embeddings,
    )

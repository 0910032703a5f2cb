"""Where tokens lie in meaning, by an encoder that reads other tokens than the prompts'."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from feddtpt_flwr.assets import embedded_encoder
from feddtpt_flwr.vocabulary import Vocabulary
from strategies.candidates import Tokens

if TYPE_CHECKING:
    import torch


class EncoderEmbedder:
    """An encoder with another vocabulary than the prompts': all-MiniLM-L6-v2.

    The prompt goes through the encoder as text; a prompt token's embedding is the mean of the
    states of the encoder's pieces that overlap it in the text. Tokens that make up one word, such
    as "Class" and "ify", may so share a piece and would be one point to the server, which keeps
    one of them. Therefore the second, third and any further token of a word each get a direction
    of their own on top.

    Parameters
    ----------
    vocabulary : Vocabulary
        The prompts' vocabulary.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        from tokenizers import Tokenizer

        folder = embedded_encoder()
        self._vocabulary = vocabulary
        self._encoder = BertEncoder.read(folder)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self._encoder.max_length)

    def embed(self, prompts: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        """Return the embedding of every token, one array ``(N_k, d + 3)`` per prompt.

        The last three values tell apart the tokens of a word. A token that no piece overlaps, such
        as a lone space, gets zeros, as does what lies behind the encoder's 512 pieces.
        """
        return [self._embed(tuple(prompt.tolist())) for prompt in prompts]

    def _embed(self, tokens: Tokens) -> NDArray[np.float32]:
        text, spans = self._vocabulary.spans(tokens)
        encoded = self._tokenizer.encode(text)
        pieces = encoded.offsets
        states = self._encoder.states(encoded.ids)
        rows = np.zeros((len(tokens), states.shape[1]), dtype=np.float32)
        for row, (start, stop) in enumerate(spans):
            inside = [i for i, (a, b) in enumerate(pieces) if a < stop and start < b]
            if inside:
                rows[row] = states[inside].mean(0)
        return np.hstack([rows, self._continuations(tokens, np.linalg.norm(rows, axis=1))])

    def _continuations(
        self, tokens: Tokens, lengths: NDArray[np.floating[Any]]
    ) -> NDArray[np.float32]:
        """Return what tells a word's tokens apart, as long as their embeddings, ``(N, 3)``."""
        marks = np.zeros((len(tokens), 3), dtype=np.float32)
        for start, stop in self._vocabulary.words(tokens):
            for place in range(start + 1, stop):
                marks[place, min(place - start, 3) - 1] = lengths[place]
        return marks


class BertEncoder:
    """A BERT encoder (Devlin et al., arXiv 1810.04805), out of torch's own layers.

    What transformers loads before it can do the same takes longer than all that the server computes
    with it. The numbers are those of transformers.

    Parameters
    ----------
    config : Mapping[str, Any]
        What ``config.json`` says.
    weights : Mapping[str, torch.Tensor]
        By their names in a file of transformers.
    """

    def __init__(self, config: Mapping[str, Any], weights: "Mapping[str, torch.Tensor]") -> None:
        from torch import nn

        width, self._epsilon = config["hidden_size"], config["layer_norm_eps"]
        self.max_length: int = config["max_position_embeddings"]
        layer = nn.TransformerEncoderLayer(
            width,
            config["num_attention_heads"],
            config["intermediate_size"],
            activation=config["hidden_act"],
            layer_norm_eps=self._epsilon,
            batch_first=True,
        )
        self._layers = nn.TransformerEncoder(
            layer, config["num_hidden_layers"], enable_nested_tensor=False
        ).eval()
        for number, own in enumerate(self._layers.layers):
            own.load_state_dict(_layer_weights(weights, f"encoder.layer.{number}."))
        self._words = weights["embeddings.word_embeddings.weight"]
        # All pieces are of the first of BERT's two segments.
        segment = weights["embeddings.token_type_embeddings.weight"][0]
        self._places = weights["embeddings.position_embeddings.weight"] + segment
        self._scale = weights["embeddings.LayerNorm.weight"]
        self._shift = weights["embeddings.LayerNorm.bias"]

    @classmethod
    def read(cls, folder: Path) -> "BertEncoder":
        """Read a folder that transformers wrote."""
        from safetensors.torch import load_file

        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return cls(config, load_file(folder / "model.safetensors"))

    def states(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the last layer's state of every piece, shape ``(pieces, hidden size)``."""
        import torch
        from torch.nn.functional import layer_norm

        with torch.inference_mode():
            embedded = self._words[torch.tensor(ids)] + self._places[: len(ids)]
            width = embedded.shape[-1:]
            normed = layer_norm(embedded, width, self._scale, self._shift, self._epsilon)
            states: NDArray[np.float32] = self._layers(normed[None])[0].numpy()
        return states


def _layer_weights(weights: "Mapping[str, torch.Tensor]", prefix: str) -> "dict[str, torch.Tensor]":
    """Return one layer's weights under the names that torch's layer has for them."""
    import torch

    names = {
        "self_attn.out_proj": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "linear1": "intermediate.dense",
        "linear2": "output.dense",
        "norm2": "output.LayerNorm",
    }
    found: dict[str, torch.Tensor] = {}
    for kind in ("weight", "bias"):
        found |= {f"{own}.{kind}": weights[f"{prefix}{name}.{kind}"] for own, name in names.items()}
        parts = (f"attention.self.{name}.{kind}" for name in ("query", "key", "value"))
        found[f"self_attn.in_proj_{kind}"] = torch.cat([weights[prefix + part] for part in parts])
    return found

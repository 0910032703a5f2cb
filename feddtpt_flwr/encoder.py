"""Where tokens lie in meaning, by an encoder that reads other tokens than the prompts'."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feddtpt_flwr.assets import embedded_encoder
from feddtpt_flwr.vocabulary import Vocabulary
from strategies.candidates import Tokens


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
        from transformers import AutoModel, AutoTokenizer

        folder = embedded_encoder()
        self._vocabulary = vocabulary
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModel.from_pretrained(folder).eval()

    def embed(self, prompts: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        """Return the embedding of every token, one array ``(N_k, d + 3)`` per prompt.

        The last three values tell apart the tokens of a word. A token that no piece overlaps, such
        as a lone space, gets zeros, as does what lies behind the encoder's 512 pieces.
        """
        return [self._embed(tuple(prompt.tolist())) for prompt in prompts]

    def _embed(self, tokens: Tokens) -> NDArray[np.float32]:
        import torch

        text, spans = self._vocabulary.spans(tokens)
        encoded = self._tokenizer(
            text, truncation=True, return_offsets_mapping=True, return_tensors="pt"
        )
        pieces = encoded.pop("offset_mapping")[0].tolist()
        with torch.inference_mode():
            states = self._model(**encoded).last_hidden_state[0].float().numpy()
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

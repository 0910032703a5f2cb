"""Masked language models: which token fits into a gap, and where tokens lie in meaning."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from feddtpt_flwr.assets import embedded_encoder
from feddtpt_flwr.language_model.forward import SharedPrefix
from feddtpt_flwr.language_model.weights import load_causal_lm, resolve_device, resolve_dtype
from feddtpt_flwr.vocabulary import Vocabulary
from strategies.candidates import Tokens

FRAME = "Read the text below and follow this instruction.\n\nInstruction:"
"""What an infiller reads before the prompt.

After a bare "Instruction:" SmolLM2-135M went on as if in a program, and did not tell readable
prompts from word salad: -3.7 to -5.6 against -5.1 to -6.2 nats per token, six prompts each. After
this frame it does: -2.2 to -4.4 against -4.9 to -6.2.
"""


@dataclass(frozen=True)
class Fillings:
    """Tokens for a gap, most likely first.

    Parameters
    ----------
    tokens : NDArray[np.int64]
        Shape ``(k,)``.
    log_probs : NDArray[np.float64]
        Natural logarithms of probabilities that sum to one over ``tokens``, shape ``(k,)``.
    """

    tokens: NDArray[np.int64]
    log_probs: NDArray[np.float64]


class MaskedLM(Protocol):
    """Fills a gap between two token sequences."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens that this model reads and proposes."""
        ...

    @property
    def token_embeddings(self) -> NDArray[np.float32] | None:
        """Where each token lies in meaning, unit rows ``(vocabulary, d)``; None if not known."""
        ...

    def fill(self, left: Tokens, right: Tokens) -> Fillings:
        """Propose one token between ``left`` and ``right``; deterministic."""
        ...

    def log_likelihood(self, tokens: Tokens) -> float:
        """Return how well ``tokens`` read as language: a log-probability in nats, at most 0."""
        ...


class TokenEmbedder(Protocol):
    """Gives every token of a prompt its contextual embedding."""

    def embed(self, prompts: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        """Return ``E_k^n = z(p_k^n)``: for each prompt of shape ``(N_k,)`` one ``(N_k, d)``."""
        ...


class CausalInfiller:
    """A causal language model that fills gaps.

    The likely continuations of the left context are weighed by how well the right context follows
    each of them: ``log p(token | left) + log p(right | left, token)``.

    Parameters
    ----------
    model : str
        ``"embedded"``, a hub name, a folder or a ``.gguf`` file.
    excluded_words : tuple[str, ...]
        Words never proposed.
    num_candidates : int
        How many continuations are weighed.
    right_tokens : int
        How many tokens of the right context are looked at.
    """

    def __init__(
        self,
        model: str,
        *,
        excluded_words: tuple[str, ...] = (),
        num_candidates: int = 24,
        right_tokens: int = 4,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        import torch

        self._device = resolve_device(device)
        self._model, tokenizer = load_causal_lm(
            model, self._device, resolve_dtype(dtype, self._device)
        )
        self._vocabulary = Vocabulary(tokenizer)
        self._frame = tuple(tokenizer(FRAME)["input_ids"])
        self._num_candidates = num_candidates
        self._right_tokens = right_tokens
        allowed = np.flatnonzero(self._vocabulary.proposable(excluded_words))
        self._allowed = torch.from_numpy(allowed).to(self._device)
        # Neighbouring proposals ask about the same gaps of the same prompt.
        self.fill = lru_cache(maxsize=4096)(self._fill)
        self._prefix = lru_cache(maxsize=64)(
            lambda left: SharedPrefix(self._model, self._frame + left)
        )

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens that this model reads and proposes."""
        return self._vocabulary

    @cached_property
    def token_embeddings(self) -> NDArray[np.float32]:
        """Where each token lies in meaning, unit rows ``(vocabulary, d)``."""
        return _centred_unit_rows(self._model.get_input_embeddings().weight)

    def _fill(self, left: Tokens, right: Tokens) -> Fillings:
        import torch

        right = right[: self._right_tokens]
        prefix = self._prefix(left)
        output_layer = self._model.get_output_embeddings()
        with torch.inference_mode():
            after_left = torch.log_softmax(output_layer(prefix.last_hidden).float(), 0)
            top = after_left[self._allowed].topk(min(self._num_candidates, len(self._allowed)))
            candidates, scores = self._allowed[top.indices], top.values
            if right:
                # Each candidate's tail predicts the right context, one token after the other.
                tails = [(candidate, *right[:-1]) for candidate in candidates.tolist()]
                log_probs = torch.log_softmax(output_layer(prefix.hidden_states(tails)).float(), -1)
                wanted = torch.tensor(right, device=self._device).expand(len(tails), -1)
                scores = scores + log_probs.gather(-1, wanted[..., None])[..., 0].sum(-1)
            scores, order = torch.log_softmax(scores, 0).sort(descending=True)
        tokens = candidates[order].cpu().numpy().astype(np.int64)
        return Fillings(tokens, scores.cpu().numpy().astype(np.float64))

    def log_likelihood(self, tokens: Tokens) -> float:
        """Return ``log p(tokens)``, in nats."""
        import torch

        ids = torch.tensor([[*self._frame, *tokens]], device=self._device)
        with torch.inference_mode():
            hidden = self._model.base_model(ids, use_cache=False).last_hidden_state
            before = hidden[0, len(self._frame) - 1 : -1]
            log_probs = torch.log_softmax(self._model.get_output_embeddings()(before).float(), -1)
        wanted = ids[0, len(self._frame) :, None]
        return float(log_probs.gather(-1, wanted).sum())


class HuggingFaceMaskedLM:
    """A masked language model of the BERT family: fills gaps and embeds tokens.

    Parameters
    ----------
    model : str
        A hub name, such as ``"FacebookAI/roberta-base"``, or a folder.
    excluded_words : tuple[str, ...]
        Words never proposed.
    num_candidates : int
        How many fillings a gap gets.
    """

    def __init__(
        self,
        model: str,
        *,
        excluded_words: tuple[str, ...] = (),
        num_candidates: int = 24,
        device: str = "auto",
    ) -> None:
        import torch
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        self._device = resolve_device(device)
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._model = AutoModelForMaskedLM.from_pretrained(model).to(self._device).eval()
        self._vocabulary = Vocabulary(self._tokenizer)
        self._num_candidates = num_candidates
        allowed = np.flatnonzero(self._vocabulary.proposable(excluded_words))
        self._allowed = torch.from_numpy(allowed).to(self._device)
        # Neighbouring proposals ask about the same gaps of the same prompt.
        self.fill = lru_cache(maxsize=4096)(self._fill)

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens that this model reads and proposes."""
        return self._vocabulary

    @cached_property
    def token_embeddings(self) -> NDArray[np.float32]:
        """Where each token lies in meaning, unit rows ``(vocabulary, d)``."""
        return _centred_unit_rows(self._model.get_input_embeddings().weight)

    def _fill(self, left: Tokens, right: Tokens) -> Fillings:
        import torch

        ids, start = self._with_special((*left, self._tokenizer.mask_token_id, *right))
        with torch.inference_mode():
            logits = self._model(ids).logits[0, start + len(left)].float()[self._allowed]
            top = logits.topk(min(self._num_candidates, len(self._allowed)))
            log_probs = torch.log_softmax(top.values, 0)
        tokens = self._allowed[top.indices].cpu().numpy().astype(np.int64)
        return Fillings(tokens, log_probs.cpu().numpy().astype(np.float64))

    def log_likelihood(self, tokens: Tokens) -> float:
        """Return the pseudo-log-likelihood: each token predicted from all others, in nats."""
        import torch

        ids, start = self._with_special(tokens)
        positions = torch.arange(start, start + len(tokens), device=self._device)
        masked = ids.repeat(len(tokens), 1)
        rows = torch.arange(len(tokens), device=self._device)
        masked[rows, positions] = self._tokenizer.mask_token_id
        with torch.inference_mode():
            logits = self._model(masked).logits[rows, positions].float()
        wanted = ids[0, positions, None]
        return float(torch.log_softmax(logits, -1).gather(-1, wanted).sum())

    def embed(self, prompts: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        """Return the last layer's state of every token, one array ``(N_k, d)`` per prompt."""
        import torch

        embedded = []
        for prompt in prompts:
            ids, start = self._with_special(tuple(prompt.tolist()))
            with torch.inference_mode():
                states = self._model.base_model(ids).last_hidden_state[0]
            embedded.append(states[start : start + len(prompt)].float().cpu().numpy())
        return embedded

    def _with_special(self, tokens: Tokens) -> tuple[Any, int]:
        """Return the model's input for ``tokens`` and where they begin in it."""
        import torch

        start = 0 if self._tokenizer.cls_token_id is None else 1
        ends = [] if self._tokenizer.sep_token_id is None else [self._tokenizer.sep_token_id]
        ids = [self._tokenizer.cls_token_id] * start + list(tokens) + ends
        return torch.tensor([ids], device=self._device), start


class EncoderEmbedder:
    """An encoder with another vocabulary than the prompts': all-MiniLM-L6-v2.

    The prompt goes through the encoder as text; a prompt token's embedding is the mean of the
    states of the encoder's pieces that overlap it in the text.

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
        """Return the embedding of every token, one array ``(N_k, d)`` per prompt.

        A token that no piece overlaps, such as a lone space, gets zeros, as does what lies behind
        the encoder's 512 pieces.
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
        return rows


def _centred_unit_rows(weight: Any) -> NDArray[np.float32]:
    rows: NDArray[np.float32] = weight.detach().float().cpu().numpy()
    # All rows share a large common direction; without it, cosines tell words apart.
    rows = rows - rows.mean(0)
    unit: NDArray[np.float32] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    return unit

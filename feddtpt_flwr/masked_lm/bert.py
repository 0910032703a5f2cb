"""A masked language model of the BERT family."""

import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from feddtpt_flwr.language_model.products import use_faster_products
from feddtpt_flwr.language_model.weights import resolve_device
from feddtpt_flwr.masked_lm.base import Fillings, Gap, centred_unit_rows, ranked
from feddtpt_flwr.memory import Memory
from feddtpt_flwr.vocabulary import Vocabulary
from strategies.candidates import Tokens

if TYPE_CHECKING:
    import torch

MAX_LOGITS = 2**25
"""Most logits of a pass, 128 MiB: the model gives those of all tokens, wanted or not."""


class HuggingFaceMaskedLM:
    """A masked language model of the BERT family: fills gaps and embeds tokens.

    Parameters
    ----------
    model : str
        A hub name, such as ``"FacebookAI/roberta-base"``, or a folder.
    excluded_words : tuple[str, ...]
        Words never proposed.
    beyond_ascii : bool
        Whether words with other letters than A to Z are proposed.
    num_candidates : int
        How many fillings a gap gets.
    """

    def __init__(
        self,
        model: str,
        *,
        excluded_words: tuple[str, ...] = (),
        beyond_ascii: bool = False,
        num_candidates: int = 24,
        device: str = "auto",
    ) -> None:
        import torch
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        self._device = resolve_device(device)
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._model = AutoModelForMaskedLM.from_pretrained(model).to(self._device).eval()
        use_faster_products(self._model)
        self._vocabulary = Vocabulary(self._tokenizer, beyond_ascii=beyond_ascii)
        self._num_candidates = num_candidates
        allowed = np.flatnonzero(self._vocabulary.proposable(excluded_words))
        self._allowed = torch.from_numpy(allowed).to(self._device)
        self._fillings: Memory[Gap, Fillings] = Memory(self._fill)
        self._likelihoods: Memory[Tokens, float] = Memory(self._log_likelihood)

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens that this model reads and proposes."""
        return self._vocabulary

    @cached_property
    def _room(self) -> int:
        """How many tokens fit beside a mask and the special tokens."""
        positions = getattr(self._model.config, "max_position_embeddings", sys.maxsize)
        return int(min(self._tokenizer.model_max_length, positions)) - 3

    @cached_property
    def token_embeddings(self) -> NDArray[np.float32]:
        """Where each token lies in meaning, unit rows ``(vocabulary, d)``."""
        return centred_unit_rows(self._model.get_input_embeddings().weight)

    def fill(self, gaps: Sequence[Gap]) -> list[Fillings]:
        """Propose one token for every gap, in as few passes as `MAX_LOGITS` lets it."""
        return self._fillings.get(gaps)

    def log_likelihood(self, prompts: Sequence[Tokens]) -> NDArray[np.float64]:
        """Return pseudo-log-likelihoods: each token predicted from all others, in nats."""
        return np.array(self._likelihoods.get(prompts))

    def _fill(self, gaps: list[Gap]) -> list[Fillings]:
        # Of a context that is too long, what stands next to the gap counts.
        gaps = [(left[-max(1, self._room - len(right)) :], right) for left, right in gaps]
        masked = [(*left, self._tokenizer.mask_token_id, *right) for left, right in gaps]
        fillings = []
        for logits in self._logits(masked, [len(left) for left, _ in gaps]):
            rows = logits[:, self._allowed]
            tops = [row.topk(min(self._num_candidates, len(row))) for row in rows]
            fillings += [ranked(self._allowed[top.indices], top.values) for top in tops]
        return fillings

    def _log_likelihood(self, prompts: list[Tokens]) -> list[float]:
        import torch

        masked, places, wanted = [], [], list[int]()
        for prompt in prompts:
            wanted += prompt
            for place in range(len(prompt)):
                masked.append(
                    (*prompt[:place], self._tokenizer.mask_token_id, *prompt[place + 1 :])
                )
                places.append(place)
        log_probs: list[torch.Tensor] = []
        for logits in self._logits(masked, places):
            tokens = wanted[len(log_probs) : len(log_probs) + len(logits)]
            log_probs += torch.log_softmax(logits, -1)[range(len(tokens)), tokens]
        lengths = [len(prompt) for prompt in prompts]
        return [float(part.sum()) for part in torch.split(torch.stack(log_probs), lengths)]

    def _logits(self, prompts: list[Tokens], places: list[int]) -> "Iterator[torch.Tensor]":
        """Yield the logits at one place of each prompt, ``(some of the prompts, vocabulary)``."""
        longest = max(map(len, prompts)) + 2  # with special tokens
        size = max(1, MAX_LOGITS // (longest * len(self._vocabulary)))
        for i in range(0, len(prompts), size):
            yield self._logits_at(prompts[i : i + size], places[i : i + size])

    def _logits_at(self, prompts: list[Tokens], places: list[int]) -> "torch.Tensor":
        import torch

        start, ids = 0, []
        for prompt in prompts:
            row, start = self._with_special(prompt)
            ids.append({"input_ids": row})
        batch = self._tokenizer.pad(ids, return_tensors="pt").to(self._device)
        rows = torch.arange(len(prompts), device=self._device)
        wanted = start + torch.tensor(places, device=self._device)
        with torch.inference_mode():
            logits: torch.Tensor = self._model(**batch).logits[rows, wanted].float()
        return logits

    def embed(self, prompts: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        """Return the last layer's state of every token, one array ``(N_k, d)`` per prompt."""
        import torch

        embedded = []
        for prompt in prompts:
            row, start = self._with_special(tuple(prompt.tolist()))
            ids = torch.tensor([row], device=self._device)
            with torch.inference_mode():
                states = self._model.base_model(ids).last_hidden_state[0]
            embedded.append(states[start : start + len(prompt)].float().cpu().numpy())
        return embedded

    def _with_special(self, tokens: Tokens) -> tuple[list[int], int]:
        """Return the model's input for ``tokens`` and where they begin in it."""
        start = 0 if self._tokenizer.cls_token_id is None else 1
        ends = [] if self._tokenizer.sep_token_id is None else [self._tokenizer.sep_token_id]
        ids = [self._tokenizer.cls_token_id] * start + list(tokens) + ends
        return ids, start

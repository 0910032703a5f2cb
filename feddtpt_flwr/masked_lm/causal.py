"""A causal language model that fills gaps."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from feddtpt_flwr.language_model.causal_lm import causal_lm
from feddtpt_flwr.language_model.weights import resolve_device, resolve_dtype
from feddtpt_flwr.masked_lm.base import Fillings, Gap, centred_unit_rows, ranked
from feddtpt_flwr.memory import Memory
from feddtpt_flwr.vocabulary import Vocabulary
from strategies.candidates import Tokens

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

FRAME = "Read the text below and follow this instruction.\n\nInstruction:"
"""What an infiller reads before the prompt.

After a bare "Instruction:" SmolLM2-135M went on as if in a program, and did not tell readable
prompts from word salad: -3.7 to -5.6 against -5.1 to -6.2 nats per token, six prompts each. After
this frame it does: -2.2 to -4.4 against -4.9 to -6.2.
"""


FINALISTS = 6
"""Continuations that are weighed by more than one token to their right: for all of them, every
further token would go through the model as often as the first."""

ROWS = 256
"""Positions whose logits are computed at once: of a vocabulary of 250,000 tokens 256 MB."""


class CausalInfiller:
    """A causal language model that fills gaps.

    The likely continuations of the left context are weighed by how well the right context follows
    each of them: ``log p(token | left) + log p(right | left, token)``. First by the right context's
    first token; the others are looked at for the best few, and count for the rest as for the worst
    of these.

    Parameters
    ----------
    model : str
        ``"embedded"``, a hub name, a folder or a ``.gguf`` file.
    excluded_words : tuple[str, ...]
        Words never proposed.
    beyond_ascii : bool
        Whether words with other letters than A to Z are proposed.
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
        beyond_ascii: bool = False,
        num_candidates: int = 16,
        right_tokens: int = 3,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        import torch

        self._device = resolve_device(device)
        self._model = causal_lm(model, self._device, resolve_dtype(dtype, self._device))
        self._vocabulary = Vocabulary(self._model.tokenizer, beyond_ascii=beyond_ascii)
        [self._frame] = self._model.encode([FRAME])
        self._num_candidates = num_candidates
        self._right_tokens = right_tokens
        allowed = np.flatnonzero(self._vocabulary.proposable(excluded_words))
        self._allowed = torch.from_numpy(allowed).to(self._device)
        self._continuations: Memory[Tokens, tuple[torch.Tensor, torch.Tensor]] = Memory(
            self._continue
        )
        self._fillings: Memory[Gap, Fillings] = Memory(self._fill)
        self._likelihoods: Memory[Tokens, float] = Memory(self._log_likelihood)

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens that this model reads and proposes."""
        return self._vocabulary

    @cached_property
    def token_embeddings(self) -> NDArray[np.float32]:
        """Where each token lies in meaning, unit rows ``(vocabulary, d)``."""
        return centred_unit_rows(self._model.embeddings)

    def fill(self, gaps: Sequence[Gap]) -> list[Fillings]:
        """Propose one token for every gap, all gaps in common passes."""
        return self._fillings.get([(left, right[: self._right_tokens]) for left, right in gaps])

    def log_likelihood(self, prompts: Sequence[Tokens]) -> NDArray[np.float64]:
        """Return ``log p(prompt)`` for each prompt, in nats."""
        return np.array(self._likelihoods.get(prompts))

    def _fill(self, gaps: list[Gap]) -> list[Fillings]:
        # What a context begins with costs hardly more, and is likely to be asked for as well.
        beginnings = [left[:end] for left, _ in gaps for end in range(len(left) + 1)]
        continued = dict(zip(beginnings, self._continuations.get(beginnings), strict=True))
        lefts = [left for left, _ in gaps]
        starts = [continued[left] for left in lefts]
        rights = [right for _, right in gaps]
        next_to_it = [right[:1] for right in rights]
        near = self._follow(lefts, [tokens for tokens, _ in starts], next_to_it)
        scores = [log_probs + first for (_, log_probs), first in zip(starts, near, strict=True)]
        # All that is weighed by more of the right context are those that fit its first token best.
        best = [row.topk(min(FINALISTS, len(row))).indices for row in scores]
        finalists = [tokens[rows] for (tokens, _), rows in zip(starts, best, strict=True)]
        far = self._follow(lefts, finalists, rights, after=1)
        fillings = []
        for (tokens, _), row, rows, rest in zip(starts, scores, best, far, strict=True):
            row = row + rest.min()
            row[rows] += rest - rest.min()
            fillings.append(ranked(tokens, row))
        return fillings

    def _follow(
        self,
        lefts: "Sequence[Tokens]",
        candidates: "Sequence[torch.Tensor]",
        rights: Sequence[Tokens],
        after: int = 0,
    ) -> "list[torch.Tensor]":
        """Return how likely the right context, from token ``after`` on, follows each candidate."""
        import torch

        tails, wanted = [], []
        for left, tokens, right in zip(lefts, candidates, rights, strict=True):
            if right[after:]:
                before = right[:-1]
                tails += [(*self._frame, *left, token, *before) for token in tokens.tolist()]
                wanted += [right[after:]] * len(tokens)
        found = iter(self._log_probs(tails, wanted))
        return [
            torch.tensor(
                [next(found) if right[after:] else 0.0 for _ in range(len(tokens))],
                device=self._device,
            )
            for tokens, right in zip(candidates, rights, strict=True)
        ]

    def _continue(self, lefts: list[Tokens]) -> "list[tuple[torch.Tensor, torch.Tensor]]":
        """Return the likeliest continuations of each left context and their scores.

        These are log-probabilities but for a constant, which is of no interest: in the end the
        continuations' probabilities sum to one.
        """
        sequences = [self._frame + left for left in lefts]
        # Most are asked about once more, with one of these continuations at their end.
        lengths = [len(sequence) for sequence in sequences]
        number = min(self._num_candidates, len(self._allowed))

        def best(logits: "torch.Tensor", _: slice) -> "list[tuple[torch.Tensor, torch.Tensor]]":
            top = logits[:, self._allowed].topk(number)
            return list(zip(self._allowed[top.indices], top.values, strict=True))

        return self._read(sequences, [1] * len(lefts), best, again=lengths)

    def _log_likelihood(self, prompts: list[Tokens]) -> list[float]:
        return self._log_probs([(*self._frame, *prompt[:-1]) for prompt in prompts], prompts)

    def _log_probs(self, sequences: list[Tokens], wanted: Sequence[Tokens]) -> list[float]:
        """Return the log-probability of what is wanted at the end of each sequence.

        The last of the wanted tokens comes after the sequence, the others are its last tokens.
        """
        import torch

        if not sequences:
            return []
        last = [len(tokens) for tokens in wanted]
        tokens = torch.tensor([token for row in wanted for token in row], device=self._device)

        def log_probs(logits: "torch.Tensor", rows: slice) -> "list[torch.Tensor]":
            found = logits.gather(1, tokens[rows, None])[:, 0] - logits.logsumexp(1)
            return list(found.cpu())

        found = torch.stack(self._read(sequences, last, log_probs))
        return [float(part.sum()) for part in torch.split(found, last)]

    def _read(
        self,
        sequences: list[Tokens],
        last: list[int],
        take: "Callable[[torch.Tensor, slice], list[T]]",
        again: Sequence[int] = (),
    ) -> "list[T]":
        """Return what ``take`` makes of the logits after each sequence's last tokens.

        It is given them in parts, each of shape ``(at most ROWS, vocabulary)`` and with the slice
        of all rows that it is. ``again`` is as for `Backbone.states`.
        """
        import torch

        with torch.inference_mode():
            states = torch.cat(self._model.forward.states(sequences, last, again))
            starts = range(0, len(states), ROWS)
            parts = [slice(start, start + ROWS) for start in starts]
            return [item for p in parts for item in take(self._model.logits(states[p]), p)]

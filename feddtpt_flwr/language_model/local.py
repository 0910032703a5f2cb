"""A local Hugging Face causal language model as the black box.

Three things make it fast, none of which changes an answer: tokens that several queries begin with
go through the model once (see `prefix_tree`), or not at all if queries began with them before,
as they do with a text that one prompt after the other follows (see `prefix_cache`); no padding is
computed; and only the last position, and there only the rows of the answer words, go through the
output layer.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from logging import WARNING
from typing import Any

from flwr.common import log

from feddtpt_flwr.language_model.answers import THOUGHT, thinks, without_thinking
from feddtpt_flwr.language_model.base import FREE_TOKENS, FatalModelError
from feddtpt_flwr.language_model.causal_lm import causal_lm
from feddtpt_flwr.language_model.prefix_tree import TokenIds
from feddtpt_flwr.language_model.weights import (
    load_causal_lm,
    read_tokenizer,
    resolve_device,
    resolve_dtype,
)


class LocalLanguageModel:
    """Answer with a causal language model in this process, greedily.

    Parameters
    ----------
    model : str
        ``"embedded"`` (SmolLM2-135M-Instruct), a hub name, a folder or a ``.gguf`` file.
    chat : bool
        Whether to wrap each query in the model's chat template; plain text otherwise.
    device : str
        A torch device, or ``"auto"``: the GPU if there is one.
    dtype : str
        ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
    max_new_tokens : int
        Longest free-text answer, in tokens; in plain format it ends at the first blank line.
    """

    def __init__(
        self,
        model: str,
        *,
        chat: bool = False,
        device: str = "auto",
        dtype: str = "auto",
        max_new_tokens: int = FREE_TOKENS,
    ) -> None:
        self._device = resolve_device(device)
        dtype = resolve_dtype(dtype, self._device)
        self._source = (model, self._device, dtype)
        self._model = causal_lm(*self._source)
        self._chat = chat
        if chat and not self._template_tokenizer.chat_template:
            raise ValueError("chat = true: the model has no chat template; set chat = false")
        self._max_new_tokens = max_new_tokens
        self._warned = False
        self._name = f"{model} ({dtype}, {'chat' if chat else 'plain'})"

    @property
    def name(self) -> str:
        """The model, its numeric type and the query format."""
        return self._name

    def answer(self, queries: Sequence[str], choices: Sequence[str]) -> list[str]:
        """Answer every query (see `LanguageModel.answer`).

        One that is longer than the model can read has no answer word: "" is returned for it. Free
        text for such a one ends in a `FatalModelError`.
        """
        if not queries:
            return []
        different = list(dict.fromkeys(queries))
        rendered = [self._render(query) for query in different]
        if choices:
            answers = self._choose(rendered, choices)
        else:
            answers = [self._generate(query) for query in rendered]
        by_query = dict(zip(different, answers, strict=True))
        return [by_query[query] for query in queries]

    @cached_property
    def _template_tokenizer(self) -> Any:
        model, _, dtype = self._source
        return read_tokenizer(model, dtype)

    def _render(self, query: str) -> str:
        if not self._chat:
            return query
        message = [{"role": "user", "content": query}]
        # An answer comes at once: reasoning models are told not to think before it, as Qwen3's
        # template knows, or, where the template has them begin (DeepSeek-R1's), that they have.
        rendered = str(
            self._template_tokenizer.apply_chat_template(
                message, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        )
        return f"{rendered.rstrip()}\n\n{THOUGHT}\n\n" if thinks(rendered) else rendered

    def _encode(self, texts: Sequence[str]) -> list[TokenIds]:
        # A rendered chat template already carries its special tokens.
        return self._model.encode(texts, special=not self._chat)

    def _generate(self, query: str) -> str:
        import torch

        model, tokenizer = load_causal_lm(*self._source)
        encoded = self._encode([query])
        if message := self._too_long(encoded[0], self._max_new_tokens):
            raise FatalModelError(f"{message}; shorten the texts")
        ids = torch.tensor(encoded, device=self._device)
        # In plain text nothing but a blank line tells that a passage is over.
        stop = {} if self._chat else {"stop_strings": ["\n\n"], "tokenizer": tokenizer}
        with torch.inference_mode():
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=self._max_new_tokens,
                pad_token_id=tokenizer.eos_token_id,
                **stop,
            )
        written = str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
        return without_thinking(written)

    def _choose(self, queries: Sequence[str], choices: Sequence[str]) -> list[str]:
        """Decode greedily among the token sequences of the choices.

        Almost always the first token decides and one pass is enough; queries whose candidates
        still share it go through another pass with that token appended.
        """
        # A space at the end and the one before an answer would be two.
        queries = [query.rstrip(" ") for query in queries]
        options = self._choice_tokens(queries[0], choices)
        contexts = self._encode(queries)
        answers: list[str] = [""] * len(queries)
        open_queries = {}
        for index, context in enumerate(contexts):
            if message := self._too_long(context, max(map(len, options))):
                self._warn(message)
            else:
                open_queries[index] = context, options
        depth = 0
        while open_queries:
            next_tokens = sorted({o[depth] for _, left in open_queries.values() for o in left})
            logits = self._next_logits([c for c, _ in open_queries.values()], next_tokens)
            still_open = {}
            for row, (index, (context, left)) in zip(logits, open_queries.items(), strict=True):
                allowed = {option[depth] for option in left}
                scores = dict(zip(next_tokens, row, strict=True))
                token = max(allowed, key=scores.__getitem__)
                remaining = {o: word for o, word in left.items() if o[depth] == token}
                if len(remaining) == 1:
                    answers[index] = next(iter(remaining.values()))
                else:
                    still_open[index] = ((*context, token), remaining)
            open_queries, depth = still_open, depth + 1
        return answers

    def _choice_tokens(self, query: str, choices: Sequence[str]) -> dict[TokenIds, str]:
        """Return the tokens with which each choice would continue ``query``."""
        separator = "" if query[-1:].isspace() else " "
        stem = self._encode([query])[0]
        whole = self._encode([query + separator + choice for choice in choices])
        alone = self._model.encode(choices, special=False)
        end = () if self._model.end_token is None else (self._model.end_token,)
        options = {
            # Where a query ends in several line breaks, what follows may merge with them.
            (*(ids[len(stem) :] if ids[: len(stem)] == stem else bare), *end): choice
            for ids, bare, choice in zip(whole, alone, choices, strict=True)
        }
        # The end token keeps a choice that is the beginning of another one apart from it.
        ordered = sorted(options)
        nested = any(b[: len(a)] == a for a, b in pairwise(ordered))
        if len(options) < len(choices) or nested:
            raise ValueError(f"answer words {list(choices)} are not told apart by the tokenizer")
        return options

    def _too_long(self, context: TokenIds, more: int) -> str:
        """Return by how much a context and ``more`` tokens exceed what the model reads, if so."""
        length, most = len(context) + more, self._model.context
        if most is None or length <= most:
            return ""
        return (
            f"language-model = {self._source[0]!r} reads {most:,} tokens, and a query with its "
            f"answer has {length:,}"
        )

    def _warn(self, message: str) -> None:
        if not self._warned:
            log(WARNING, "%s: it counts as a wrong answer, and so do others that long", message)
        self._warned = True

    def _next_logits(
        self, contexts: Sequence[TokenIds], next_tokens: Sequence[int]
    ) -> list[list[float]]:
        """Return the logits of ``next_tokens`` after each context, shape (contexts, tokens)."""
        import torch

        with torch.inference_mode():
            weight = self._model.output_weight[list(next_tokens)].float()
            logits = self._model.forward.last_states(contexts).float() @ weight.T
            if self._model.output_bias is not None:
                logits = logits + self._model.output_bias[list(next_tokens)].float()
            if not bool(logits.isfinite().all()):
                model, _, dtype = self._source
                raise FatalModelError(
                    f"language-model = {model!r}: with dtype = {dtype!r} it computes what is no "
                    "number; float32 and bfloat16 hold larger ones"
                )
        rows: list[list[float]] = logits.tolist()
        return rows

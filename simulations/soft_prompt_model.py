"""A local language model that reads vectors where a prompt would stand."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from feddtpt_flwr.config import ConfigError, RunConfig
from feddtpt_flwr.data import Example, Task

if TYPE_CHECKING:
    import torch

BATCH = 8

KEPT = 512
"""Texts before a prompt of which keys and values are kept: 45 KiB a token with SmolLM2-135M."""

_PROMPT, _INPUT = "\0prompt\0", "\0input\0"  # where vectors and an example's text come in


class SoftPromptModel:
    """A causal language model that reads vectors in the prompt's place.

    Parameters
    ----------
    config : RunConfig
        Names a local model, and says whether it is asked in a chat.
    task : Task
        Template and answer words; the first tokens of these must differ.

    Raises
    ------
    ConfigError
        If the model is behind an endpoint, or the answer words begin alike.
    """

    def __init__(self, config: RunConfig, task: Task) -> None:
        from feddtpt_flwr.language_model.weights import load_causal_lm, resolve_device

        if config.endpoint:
            raise ConfigError(f"endpoint = {config.endpoint!r}: soft prompts need a local model")
        self._device = resolve_device(config.device)
        self._model, self._tokenizer = load_causal_lm(
            config.language_model, self._device, "float32"
        )
        self._model.requires_grad_(False)
        self._table = self._model.get_input_embeddings()
        query = task.compose(_PROMPT, _INPUT)
        if config.chat:
            query = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": query}], tokenize=False, add_generation_prompt=True
            )
        self._before, self._after = query.split(_PROMPT)
        # As in the black box, an answer word follows a space or a line's end.
        space = "" if query[-1:].isspace() else " "
        self._answers = [
            self._tokenizer(space + word, add_special_tokens=False)["input_ids"][0]
            for word in task.answers
        ]
        if len(set(self._answers)) < len(self._answers):
            raise ConfigError(f"answer words {task.answers} begin with the same token")
        self._read_before = lru_cache(KEPT)(self._read)

    def embed(self, text: str) -> "torch.Tensor":
        """Return the vectors of a text's tokens, shape ``(n, d)``."""
        import torch

        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        vectors: torch.Tensor = self._table(
            torch.tensor(ids, device=self._device, dtype=torch.long)
        )
        return vectors

    def _around(self, example: Example) -> tuple[str, str]:
        """Return a query's text before the prompt and after it."""
        return (
            self._before.replace(_INPUT, example.input),
            self._after.replace(_INPUT, example.input),
        )

    @property
    def scale(self) -> float:
        """Standard deviation of the vocabulary's vectors."""
        return float(self._table.weight.std())

    def log_probs(self, prompt: "torch.Tensor", examples: Sequence[Example]) -> "torch.Tensor":
        """Return the answer words' log-probabilities among themselves, ``(examples, words)``.

        What stands before the prompt does not depend on it, and goes through the model once.
        """
        import torch
        from transformers import DynamicCache

        texts = [self._around(example) for example in examples]
        read = [self._read_before(before) for before, _ in texts]
        rows = [torch.cat([prompt, self.embed(after)]) for _, after in texts]
        before, lengths = [keys.shape[-2] for keys, _ in read], [len(row) for row in rows]
        width, longest = max(before), max(lengths)
        # What was read is padded on the left, what is new on the right.
        mask = torch.zeros(len(rows), width + longest, dtype=torch.long)
        for row, known, new in zip(mask, before, lengths, strict=True):
            row[width - known : width + new] = 1
        keys, values = (
            torch.stack([torch.nn.functional.pad(s, (0, 0, width - s.shape[-2], 0)) for s in part])
            for part in zip(*read, strict=True)
        )
        # By place, since releases of transformers call the fourth by different names.
        states = self._model.base_model(
            None,
            mask.to(self._device),
            (torch.tensor(before)[:, None] + torch.arange(longest)).to(self._device),
            DynamicCache(list(zip(keys.unbind(1), values.unbind(1), strict=True))),
            inputs_embeds=torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
        ).last_hidden_state
        last = states[torch.arange(len(rows)), [length - 1 for length in lengths]]
        weight = self._model.get_output_embeddings().weight[self._answers]
        return torch.log_softmax((last @ weight.T).float(), dim=-1)

    def _read(self, text: str) -> "tuple[torch.Tensor, torch.Tensor]":
        """Return a text's keys and values, each ``(layers, heads, tokens, head size)``."""
        import torch

        # Where nothing stands before the prompt, any token shows the shape.
        vectors, tokens = self.embed(text or "."), len(self.embed(text))
        with torch.no_grad():
            read = self._model.base_model(inputs_embeds=vectors[None], use_cache=True)
        layers = read.past_key_values.layers
        keys = torch.cat([layer.keys for layer in layers])
        values = torch.cat([layer.values for layer in layers])
        return keys[:, :, :tokens], values[:, :, :tokens]

    def loss(self, prompt: "torch.Tensor", examples: Sequence[Example]) -> "torch.Tensor":
        """Return the mean cross-entropy."""
        import torch

        labels = torch.tensor([example.label for example in examples], device=self._device)
        return torch.nn.functional.nll_loss(self.log_probs(prompt, examples), labels)

    def accuracy(self, prompt: "torch.Tensor", examples: Sequence[Example]) -> float:
        """Return the share of right answers."""
        import torch

        right = 0
        with torch.inference_mode():
            for start in range(0, len(examples), BATCH):
                batch = examples[start : start + BATCH]
                best = self.log_probs(prompt, batch).argmax(-1).tolist()
                right += sum(b == e.label for b, e in zip(best, batch, strict=True))
        return right / len(examples)

"""A causal language model with one LoRA adapter: answer, measure, train, exchange the adapter.

A client of FedPIT has several adapters in a round. They are plain arrays here, loaded into the
model one after the other, so that nothing of one can stay behind in another.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from feddtpt_flwr.fedpit.instructions import Instruction
from feddtpt_flwr.fedpit.padding import TokenIds, batches, pad_left
from feddtpt_flwr.language_model.products import use_faster_products
from feddtpt_flwr.language_model.weights import read_causal_lm, resolve_device, resolve_dtype
from strategies.adapters import Adapter

if TYPE_CHECKING:
    import torch

PROMPT = "### Instruction:\n{instruction}\n\n### Response:\n"
"""How an instruction is put to the model; the response follows, and then the end token."""

STOPS = ("\n### Instruction:", "\n### Response:")
"""Where one of several demonstrations ends, which have no end tokens."""

_STOP = re.compile("|".join(map(re.escape, STOPS)))

_LAST = 4
"""Of an instruction that is too long one part in so many of what is kept is its end: there may be
the question about a text before it."""

_NO_LABEL = -100  # torch's own mark of a token that no loss is computed for


class Continuation(NamedTuple):
    """What a model wrote after demonstrations.

    Attributes
    ----------
    text : str
        Up to where the next demonstration or the end was to come.
    finished : bool
        Whether that came before the limit of tokens.
    """

    text: str
    finished: bool


class AdaptedModel:
    """A frozen causal language model and one trainable adapter.

    Parameters
    ----------
    model : str
        ``"embedded"`` (SmolLM2-135M-Instruct), a hub name, a folder or a ``.gguf`` file.
    rank : int
        Rank of the adapter (LoRA, arXiv 2106.09685), on the layers that PEFT adapts by default.
    seed : int
        Seed of its first values.
    device, dtype : str
        As `resolve_device` and `resolve_dtype` take them. The adapter is in float32 in any case.
    max_instruction_tokens, max_response_tokens : int
        Longer ones are cut: of a response its end, of an instruction something before its end.
    batch_size : int
        Sequences that go through the model at once where nothing is trained.
    """

    def __init__(
        self,
        model: str,
        *,
        rank: int = 16,
        seed: int = 0,
        device: str = "auto",
        dtype: str = "auto",
        max_instruction_tokens: int = 128,
        max_response_tokens: int = 48,
        batch_size: int = 16,
    ) -> None:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import GenerationConfig

        self._device = resolve_device(device)
        dtype = resolve_dtype(dtype, self._device)
        base, self._tokenizer = read_causal_lm(model, self._device, dtype)
        use_faster_products(base)
        lora = LoraConfig(r=rank, lora_alpha=2 * rank, task_type="CAUSAL_LM")
        with torch.random.fork_rng(), warnings.catch_warnings():
            # PEFT asks transformers by a name that this is about to give up.
            warnings.simplefilter("ignore", FutureWarning)
            torch.manual_seed(seed)
            self._peft: Any = get_peft_model(base, lora)
        # The same layers, without PEFT's wrapping of every call.
        self._model: Any = self._peft.get_base_model()
        # Given a slice of the states, torch's CPU matmul copies the output layer's weights for
        # every sequence of a batch, which takes longer than all layers before it.
        self._model.get_output_embeddings().register_forward_pre_hook(
            lambda _, states: (states[0].contiguous(),)
        )
        self._pad = self._tokenizer.eos_token_id
        self._stop_tokens = max(len(self._ids(f"\n{stop}")) for stop in STOPS)
        bos = self._tokenizer.bos_token_id
        self._begin = (bos,) if bos in self._tokenizer("a")["input_ids"][:1] else ()
        own = self._model.generation_config.eos_token_id
        ends = {*(own if isinstance(own, list) else [own]), self._pad} - {None}
        # Greedy is greedy: models of a hub bring penalties and temperatures of their own.
        self._model.generation_config = GenerationConfig(eos_token_id=sorted(ends))
        self._max_instruction_tokens = max_instruction_tokens
        self._max_response_tokens = max_response_tokens
        self._batch_size = batch_size

    @property
    def context(self) -> int | None:
        """Tokens that the model reads at once; None if it does not say."""
        return getattr(self._model.config, "max_position_embeddings", None)

    def longest(self, num_demonstrations: int) -> int:
        """Return how many tokens a new example can have with so many others before it."""
        texts = self._max_instruction_tokens + self._max_response_tokens
        # Each ends with an empty line, or with what stands for the next one.
        each = len(self._ids(PROMPT.format(instruction=""))) + texts + self._stop_tokens
        return len(self._begin) + (num_demonstrations + 1) * each

    @property
    def adapter(self) -> Adapter:
        """A copy of the adapter's weights."""
        from peft import get_peft_model_state_dict

        # Otherwise PEFT asks the hub about the model each time.
        state = get_peft_model_state_dict(self._peft, save_embedding_layers=False)
        return {
            name: tensor.detach().float().cpu().numpy().copy() for name, tensor in state.items()
        }

    def load(self, adapter: Adapter) -> None:
        """Replace the adapter's weights.

        Raises
        ------
        ValueError
            If names or shapes do not fit the model.
        """
        import torch
        from peft import set_peft_model_state_dict

        own = self.adapter
        if {n: a.shape for n, a in adapter.items()} != {n: a.shape for n, a in own.items()}:
            raise ValueError("the adapter does not fit the model: other layers or another rank")
        state = {name: torch.from_numpy(array.copy()) for name, array in adapter.items()}
        set_peft_model_state_dict(self._peft, state)

    def save(self, folder: Path) -> None:
        """Write the adapter as PEFT does, for ``PeftModel.from_pretrained``.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        from safetensors import SafetensorError

        try:
            self._peft.save_pretrained(folder, save_embedding_layers=False)
        except SafetensorError as error:  # on a full disk, for instance
            raise OSError(str(error)) from None

    def read(self, folder: Path) -> None:
        """Replace the adapter's weights by what `save` wrote.

        Raises
        ------
        OSError
            If there is no adapter.
        ValueError
            If it is of another model or rank, scaled in another way, or damaged.
        """
        from peft import LoraConfig
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        file = folder / "adapter_model.safetensors"
        try:
            weights = load_file(file)
        except (SafetensorError, TypeError) as error:  # TypeError: NumPy has no bfloat16
            raise ValueError(f"{file} is damaged or not in float32: {error}") from None
        if not all(np.isfinite(array).all() for array in weights.values()):
            raise ValueError(f"{file} holds numbers that are not finite")
        config, own = LoraConfig.from_pretrained(str(folder)), self._peft.peft_config["default"]
        if (config.r, config.lora_alpha) != (own.r, own.lora_alpha):
            raise ValueError(
                f"the adapter has rank {config.r} and alpha {config.lora_alpha}, {own.r} and "
                f"{own.lora_alpha} are needed"
            )
        self.load(weights)

    def shorten(self, row: Instruction) -> Instruction:
        """Return an instruction and response cut as the model would see them.

        What is short enough stays as it is, character by character.
        """
        asked, answered = self._ids(row.instruction), self._ids(row.response)
        decode = self._tokenizer.decode
        if len(asked) > self._max_instruction_tokens:
            row = replace(row, instruction=str(decode(self._instruction_ids(row.instruction))))
        if len(answered) > self._max_response_tokens:
            row = replace(row, response=str(decode(answered[: self._max_response_tokens])))
        return row

    def num_tokens(self, text: str) -> int:
        """Return how many tokens a text has."""
        return len(self._ids(text))

    def answer(self, instructions: Sequence[str]) -> list[str]:
        """Answer every instruction, greedily, up to the end token or the limit."""
        prompts = [self._prompt_ids(instruction) for instruction in instructions]
        written = self._generate((), prompts, self._max_response_tokens)
        return [text.strip() for text, _ in written]

    def continue_text(
        self,
        beginning: str,
        continuations: Sequence[str],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Continuation]:
        """Continue ``beginning + continuation`` for every continuation.

        The beginning, such as demonstrations, goes through the model once. What is written ends
        before one of `STOPS`.

        Parameters
        ----------
        beginning : str
            Common beginning, not empty.
        continuations : Sequence[str]
            Each ends with a line break.
        max_new_tokens : int
            Longest text that counts as finished.
        temperature : float
            Of sampling; 0 writes greedily.
        seed : int
            Of sampling.
        """
        shared = self._begin + self._ids(beginning)
        rows = [self._ids(text) for text in continuations]
        most = max_new_tokens + self._stop_tokens
        written = []
        for text, ended in self._generate(shared, rows, most, STOPS, temperature, seed):
            # The line break at the beginning of a stop may be the last of the continuation.
            before, *after = _STOP.split(f"\n{text}", maxsplit=1)
            text = before.strip()
            fits = len(self._ids(text)) <= max_new_tokens
            written.append(Continuation(text, fits and (ended or bool(after))))
        return written

    def response_losses(
        self, rows: Sequence[Instruction], *, with_instruction: bool = True
    ) -> NDArray[np.float64]:
        """Return the mean loss of each response's tokens, in nats, shape ``(rows,)``.

        Parameters
        ----------
        rows : Sequence[Instruction]
            Instructions with responses.
        with_instruction : bool
            Whether the instruction is before the response, or nothing but the mark that one begins.
        """
        import torch

        found = np.zeros(len(rows))
        encoded = [self._example_ids(row, with_instruction) for row in rows]
        self._model.eval()
        with torch.inference_mode():
            for batch in batches([p + r for p, r in encoded], self._batch_size):
                losses, counts = self._losses([encoded[i] for i in batch])
                found[batch] = (losses.sum(dim=1) / counts).double().cpu().numpy()
        return found

    def train(
        self,
        rows: Sequence[Instruction],
        *,
        epochs: int,
        batch_size: int,
        learning_rate: float,
        rng: np.random.Generator,
        proximal_mu: float = 0.0,
    ) -> float:
        """Train the adapter with AdamW; return the mean loss of all steps, in nats per token.

        Parameters
        ----------
        rows : Sequence[Instruction]
            At least one.
        epochs, batch_size : int
            Passes over the rows, and rows in a step.
        learning_rate : float
            Above 0.
        rng : numpy.random.Generator
            Shuffles the rows; and the seed of dropout.
        proximal_mu : float
            Weight of ``||w - w_start||^2 / 2`` in the loss (FedProx, arXiv 1812.06127).
        """
        import torch

        weights = [weight for weight in self._peft.parameters() if weight.requires_grad]
        start = [weight.detach().clone() for weight in weights] if proximal_mu else []
        encoded = [self._example_ids(row, True) for row in rows]
        optimizer = torch.optim.AdamW(weights, lr=learning_rate)
        self._model.train()
        steps = []
        with torch.random.fork_rng():
            torch.manual_seed(int(rng.integers(2**63)))  # of dropout, in models that have it
            for _ in range(epochs):
                order = rng.permutation(len(encoded))
                for first in range(0, len(order), batch_size):
                    losses, counts = self._losses([encoded[i] for i in order[first:][:batch_size]])
                    loss = losses.sum() / counts.sum()
                    steps.append(float(loss.detach()))
                    for weight, before in zip(weights, start, strict=bool(start)):
                        loss = loss + proximal_mu / 2 * (weight - before).square().sum()
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
        self._model.eval()
        return float(np.mean(steps))

    def _ids(self, text: str) -> TokenIds:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _prompt_ids(self, instruction: str) -> TokenIds:
        before, after = PROMPT.split("{instruction}")
        asked = self._ids(before) + self._instruction_ids(instruction) + self._ids(after)
        return self._begin + asked

    def _instruction_ids(self, instruction: str) -> TokenIds:
        ids, most = self._ids(instruction), self._max_instruction_tokens
        last = most // _LAST
        return ids if len(ids) <= most else ids[: most - last] + ids[-last:]

    def _example_ids(self, row: Instruction, with_instruction: bool) -> tuple[TokenIds, TokenIds]:
        mark = self._begin + self._ids(PROMPT.split("{instruction}")[1].lstrip())
        prompt = self._prompt_ids(row.instruction) if with_instruction else mark
        response, most = self._ids(row.response), self._max_response_tokens
        # A response that goes on after its limit must not teach the model to end there.
        end = (self._tokenizer.eos_token_id,) if len(response) <= most else ()
        return prompt, (*response[:most], *end)

    def _losses(
        self, batch: Sequence[tuple[TokenIds, TokenIds]]
    ) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Return each response token's loss, shape ``(batch, longest)``, and how many each has.

        Rows are padded on the left, so that all responses end together and only their positions
        go through the output layer.
        """
        import torch

        ids, mask = pad_left(
            [prompt + response for prompt, response in batch], self._pad, self._device
        )
        longest = max(len(response) for _, response in batch)
        labels = torch.full((len(batch), longest), _NO_LABEL, device=self._device)
        for row, (_, response) in enumerate(batch):
            labels[row, longest - len(response) :] = torch.tensor(response, device=self._device)
        logits = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            logits_to_keep=longest + 1,
            use_cache=False,
        ).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(
            logits.float().transpose(1, 2), labels, ignore_index=_NO_LABEL, reduction="none"
        )
        return losses, (labels != _NO_LABEL).sum(dim=1)

    def _generate(
        self,
        shared: TokenIds,
        rows: Sequence[TokenIds],
        max_new_tokens: int,
        stops: Sequence[str] = (),
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[tuple[str, bool]]:
        """Return what is written after each row, and whether an end token came."""
        import torch

        sampling = {"do_sample": True, "temperature": temperature, "top_p": 0.95, "top_k": 0}
        texts = [("", False)] * len(rows)
        ends = torch.tensor(self._model.generation_config.eos_token_id, device=self._device)
        self._model.eval()
        with torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(seed)
            for batch in batches(rows, self._batch_size):
                ids, mask = pad_left([rows[i] for i in batch], self._pad, self._device)
                first = torch.tensor([shared] * len(batch), dtype=torch.long, device=self._device)
                output = self._model.generate(
                    torch.cat([first, ids], dim=1),
                    attention_mask=torch.cat([torch.ones_like(first), mask], dim=1),
                    past_key_values=self._computed(shared, len(batch)) if shared else None,
                    max_new_tokens=max_new_tokens,
                    pad_token_id=self._pad,
                    **(
                        {"stop_strings": list(stops), "tokenizer": self._tokenizer} if stops else {}
                    ),
                    **(sampling if temperature else {"do_sample": False}),
                )
                written = output[:, first.shape[1] + ids.shape[1] :]
                for i, row in zip(batch, written, strict=True):
                    text = str(self._tokenizer.decode(row, skip_special_tokens=True))
                    texts[i] = text, bool(torch.isin(row, ends).any())
        return texts

    def _computed(self, shared: TokenIds, copies: int) -> Any:
        """Return keys and values of a common beginning, for a batch of sequences."""
        import torch

        ids = torch.tensor([shared], device=self._device)
        computed = self._model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
        computed.batch_repeat_interleave(copies)
        return computed

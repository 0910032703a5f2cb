"""Whether the fast engine answers as the plain one does.

python -m simulations bench labels --json -
"""

import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from feddtpt_flwr import models
from feddtpt_flwr.assets import EMBEDDED
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import Task, get_task
from feddtpt_flwr.experiment import readability, seed_tokens
from feddtpt_flwr.feedback import Feedback
from feddtpt_flwr.language_model.local import LocalLanguageModel
from feddtpt_flwr.language_model.weights import read_causal_lm, resolve_device, resolve_dtype
from feddtpt_flwr.proposer import MaskedLMProposer
from simulations.sentences import held_out
from simulations.stamp import stamp


def run(num_sentences: int, num_prompts: int, device: str = "cpu") -> dict[str, Any]:
    """Compare a device's answers to every sentence under every prompt with the processor's.

    The reference pads each batch and computes every token of every query in float32 on the
    processor, as transformers does by itself.

    Raises
    ------
    DeviceError
        If this machine has no such device.
    """
    resolve_device(device)
    task = get_task("rotten_tomatoes")
    examples = held_out(task, num_sentences)
    prompts = some_prompts(task, num_prompts)
    queries = [[task.compose(prompt, e.input) for e in examples] for prompt in prompts]
    start = time.perf_counter()
    expected = [_plain(batch, task.answers) for batch in queries]
    result: dict[str, Any] = {
        **stamp(),
        "device": device,
        "sentences": num_sentences,
        "prompts": prompts,
        "plain_seconds": round(time.perf_counter() - start, 1),
    }
    labels = [[task.answers[e.label] for e in examples]] * num_prompts
    total = num_sentences * num_prompts
    result["plain_accuracy"] = _equal(expected, labels) / total
    # Where bfloat16 is not multiplied natively, it takes many times longer than float32.
    for dtype in dict.fromkeys(("float32", resolve_dtype("auto", device))):
        model = LocalLanguageModel(EMBEDDED, dtype=dtype, device=device)
        start = time.perf_counter()
        given = [model.answer(batch, task.answers) for batch in queries]
        result[dtype] = {
            "seconds": round(time.perf_counter() - start, 1),
            "different_answers": total - _equal(given, expected),
            "accuracy": _equal(given, labels) / total,
        }
    return result


def some_prompts(task: Task, number: int) -> list[str]:
    """Return different prompts such as a search tries, the seed prompt first.

    Each is an edit of the one before, and no less readable than the default settings allow.
    """
    config = RunConfig.from_run_config({"dtype": "float32"})
    masked_lm, is_readable = models.masked_lm(config, task), readability(config, task)
    proposer = MaskedLMProposer(masked_lm, max_tokens=config.max_prompt_tokens)
    tokens = seed_tokens(config, task, masked_lm.vocabulary)
    prompts, rng = [tokens], np.random.default_rng(0)
    while len(prompts) < number:
        [edit] = proposer.propose(tokens, Feedback(), rng, 1)
        changed = edit.apply(tokens)
        if changed not in prompts and is_readable(changed):
            tokens = changed
            prompts.append(changed)
    return [masked_lm.vocabulary.decode(prompt) for prompt in prompts]


def _equal(some: Sequence[Sequence[str]], others: Sequence[Sequence[str]]) -> int:
    pairs = zip(some, others, strict=True)
    return sum(a == b for one, other in pairs for a, b in zip(one, other, strict=True))


@cache
def _plain_model() -> tuple[Any, Any]:
    model, tokenizer = read_causal_lm(EMBEDDED, "cpu", "float32")
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    return model, tokenizer


def _plain(queries: Sequence[str], answers: Sequence[str]) -> list[str]:
    """Answer with the model's own forward pass over padded batches of 16."""
    import torch

    model, tokenizer = _plain_model()
    first = [tokenizer(" " + answer)["input_ids"][0] for answer in answers]
    chosen: list[str] = []
    for start in range(0, len(queries), 16):
        batch = tokenizer(list(queries[start : start + 16]), padding=True, return_tensors="pt")
        with torch.inference_mode():
            best = model(**batch, logits_to_keep=1).logits[:, -1, first].argmax(-1)
        chosen += [answers[index] for index in best.tolist()]
    return chosen

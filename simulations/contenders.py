"""The usual ways to ask the embedded black box, and this project's, behind one signature."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from feddtpt_flwr.assets import EMBEDDED
from feddtpt_flwr.data import get_task
from feddtpt_flwr.language_model.local import LocalLanguageModel
from feddtpt_flwr.language_model.weights import load_causal_lm

BATCH = {"cpu": 16, "cuda": 64}
"""Queries in a padded batch, by the type of device."""

Ask = Callable[[Sequence[str]], Sequence[str]]
"""Answers queries about movie reviews."""


def load(way: str, dtype: str, device: str, url: str) -> Ask:
    """Load a model that answers in this way.

    Parameters
    ----------
    way : {"ours", "pipeline", "padded", "llama.cpp"}
    dtype, device : str
        Of torch; llama.cpp has its own.
    url : str
        Where llama.cpp's server is.
    """
    match way:
        case "ours":
            return _ours(dtype, device)
        case "padded":
            return _padded(dtype, device)
        case "pipeline":
            return _pipeline(device)
    return _llama_cpp(url)


def _ours(dtype: str, device: str) -> Ask:
    model = LocalLanguageModel(EMBEDDED, dtype=dtype, device=device)
    return lambda texts: model.answer(texts, get_task("rotten_tomatoes").answers)


def _pipeline(device: str) -> Ask:
    """One by one, the first token of free text, which decides."""
    from transformers import pipeline

    model, tokenizer = load_causal_lm(EMBEDDED, device, "float32")
    generate = pipeline("text-generation", model=model, tokenizer=tokenizer)

    def ask(texts: Sequence[str]) -> list[str]:
        return [
            generate(text, max_new_tokens=1, do_sample=False, return_full_text=False)[0][
                "generated_text"
            ]
            .strip()
            .split(" ")[0]
            for text in texts
        ]

    return ask


def _padded(dtype: str, device: str) -> Ask:
    """Batches in the order in which they come; the likelier answer's first token wins.

    The output layer is applied to the last position alone, as in transformers' own generation.
    """
    import torch

    size = BATCH[device]
    model, tokenizer = load_causal_lm(EMBEDDED, device, dtype)
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    answers = get_task("rotten_tomatoes").answers
    first = [tokenizer(" " + answer)["input_ids"][0] for answer in answers]

    def ask(texts: Sequence[str]) -> list[str]:
        chosen: list[str] = []
        for start in range(0, len(texts), size):
            batch = tokenizer(list(texts[start : start + size]), padding=True, return_tensors="pt")
            batch = batch.to(device)
            with torch.inference_mode():
                best = model(**batch, logits_to_keep=1).logits[:, -1, first].argmax(-1)
            chosen += [answers[index] for index in best.tolist()]
        return chosen

    return ask


def _llama_cpp(url: str) -> Ask:
    """Constrained by a grammar; the server keeps the prompt's state between requests."""
    import httpx

    client = httpx.Client(timeout=600)
    answers = get_task("rotten_tomatoes").answers
    grammar = "root ::= " + " | ".join(f'" {answer}"' for answer in answers)

    def one(text: str) -> str:
        body = {
            "prompt": text,
            "temperature": 0,
            "max_tokens": 1,
            "grammar": grammar,
            "cache_prompt": True,
        }
        response = client.post(f"{url}/completions", json=body).raise_for_status()
        return str(response.json()["choices"][0]["text"]).strip()

    def ask(texts: Sequence[str]) -> list[str]:
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(one, texts))

    return ask

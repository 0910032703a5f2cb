"""Throughput of the client for endpoints, against a bare loop of single requests.

python -m simulations bench endpoint --json -
"""

import time
from collections.abc import Sequence
from typing import Any

from feddtpt_flwr.data import get_source, get_task, to_examples
from feddtpt_flwr.language_model.api import ApiLanguageModel
from feddtpt_flwr.language_model.constraints import constraint_fields
from simulations.llama_server import llama_server

CONCURRENCY = (1, 2, 4, 8)
MODEL = "smollm2"


def run(sentences: int = 48, threads: int = 1) -> dict[str, Any]:
    """Ask the same sentences in every way, nothing cached by us.

    Every measurement has a prompt of its own, so that the server's cache of earlier questions helps
    none of them. The bare loop is timed first and last; the machine may have changed its pace.

    Parameters
    ----------
    sentences
        Number of embedded movie reviews.
    threads
        Threads of the server.

    Returns
    -------
    dict
        ``bare_per_second``: questions per second of both bare loops; ``client``: for each
        concurrency, questions per second and the ratio to the mean of the bare loops; settings.
    """
    task = get_task("rotten_tomatoes")
    examples = to_examples(task, get_source(task.name, "embedded").load(task).test)
    inputs = [example.input for example in examples[:sentences]]
    with llama_server(threads=threads, parallel=max(CONCURRENCY)) as url:
        _bare(url, "Warm", inputs[:4], task.answers)
        bare = [_bare(url, "First", inputs, task.answers)]
        client = {
            level: _client(url, f"Case {level}", inputs, task.answers, level)
            for level in CONCURRENCY
        }
        bare.append(_bare(url, "Last", inputs, task.answers))
    mean = sum(bare) / len(bare)
    return {
        "sentences": len(inputs),
        "server_threads": threads,
        "bare_per_second": [round(rate, 3) for rate in bare],
        "client": {
            str(level): {"per_second": round(rate, 3), "ratio": round(rate / mean, 3)}
            for level, rate in client.items()
        },
    }


def _prompt(name: str) -> str:
    return f"{name}: is this movie review positive or negative?"


def _bare(url: str, name: str, inputs: Sequence[str], choices: Sequence[str]) -> float:
    """Return the questions per second of a loop over single requests."""
    import httpx

    fields = {
        "model": MODEL,
        "max_tokens": 16,
        "temperature": 0,
        "seed": 0,
        "stop": "\n",
        **constraint_fields("grammar", choices, chat=False),
    }
    with httpx.Client(timeout=600) as client:
        start = time.perf_counter()
        for text in inputs:
            body = {"prompt": _prompt(name) + text, **fields}
            client.post(f"{url}/completions", json=body).raise_for_status()
        return len(inputs) / (time.perf_counter() - start)


def _client(
    url: str, name: str, inputs: Sequence[str], choices: Sequence[str], concurrency: int
) -> float:
    model = ApiLanguageModel(url, MODEL, concurrency=concurrency)
    model.prepare()
    start = time.perf_counter()
    model.answer([_prompt(name) + text for text in inputs], choices)
    return len(inputs) / (time.perf_counter() - start)

"""How fast a local black box answers: the usual ways and this project's, timed side by side.

python -m simulations bench evaluation --json -
"""

import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from statistics import median
from typing import Any

from feddtpt_flwr.assets import EMBEDDED
from feddtpt_flwr.data import get_task
from feddtpt_flwr.language_model.prefix_tree import PrefixTree, common_length
from feddtpt_flwr.language_model.products import linear
from feddtpt_flwr.language_model.weights import load_causal_lm, resolve_device, resolve_dtype
from simulations import contenders
from simulations.bench_aggregation import peak_mib
from simulations.contenders import Ask
from simulations.llama_server import llama_process
from simulations.sentences import held_out
from simulations.stamp import as_text, stamp

PROMPTS = (
    "Decide whether this movie review is positive or negative.",
    "Did the critic like the film?",
    "What is the sentiment of the review above?",
    "In one word, the review was",
    "All in all, the critic's verdict on the film:",
    "Say whether people should go and see it.",
    "Is it a good film?",
)
"""One for every turn; the last one is asked before the clock starts."""

MOST_REPEATS = len(PROMPTS) - 1
"""In a further turn some would be asked again what they were asked before, word for word."""

TEXTS = 1000
WARM_UP = 8
"""So many of the texts, the last ones, are asked about before the clock starts only."""

MOST_QUERIES = (TEXTS - WARM_UP) // MOST_REPEATS
"""There are texts for so many in each turn, so that new ones are new."""

KNOWN = ", known texts"
CONTENDERS = {
    "pipeline": "transformers.pipeline, one by one, float32",
    "padded": "left-padded batches, float32",
    "padded, bfloat16": "left-padded batches, bfloat16",
    "llama.cpp": "llama.cpp's server, prompt cache, two requests at a time",
    "ours, float32": "LocalLanguageModel, float32, new texts",
    "ours, bfloat16": "LocalLanguageModel, bfloat16, new texts",
    "ours, float32" + KNOWN: "LocalLanguageModel, float32, texts that one prompt was asked about",
    "ours, bfloat16" + KNOWN: "LocalLanguageModel, bfloat16, the same",
}
"""A search asks about the same texts with one prompt after the other: all but its first find them
known."""

NEW = {"ours, float32", "ours, bfloat16"}
"""These are asked about other texts in every turn: whoever remembers texts would know them."""

REFERENCE = "ours, float32" + KNOWN

SLOW = {"pipeline", "llama.cpp"}
"""These answer a quarter of the queries in each repetition: they have no batches to fill."""

WANTED = {"vs_pipeline": 4.0, "vs_padded_same_dtype": 1.8, "vs_llama_cpp": 2.5, "of_peak": 0.6}
"""What this project's way is to reach at least: times as fast as others, a share of the peak."""

RATIOS = {
    "vs_pipeline": "times the pipeline",
    "vs_padded_same_dtype": "times padded batches of the same type",
    "vs_llama_cpp": "times llama.cpp's server",
    "of_peak": "of the peak",
}


def run(queries: int, repeats: int, device: str = "cpu") -> dict[str, Any]:
    """Time every contender in turns, each in a process of its own.

    All ask with the turn's prompt. `SLOW` ones ask about the first quarter of the texts that ours
    are asked about; `NEW` ones about as many texts as the others of ours, but other ones each turn.

    Parameters
    ----------
    queries : int
        Queries of ours in each turn, at most `MOST_QUERIES`.
    repeats : int
        Turns, at most `MOST_REPEATS`.
    device : str
        ``"cpu"`` or ``"cuda"``; on a GPU without llama.cpp, whose wheel computes on the processor.

    Returns
    -------
    dict[str, Any]
        For each contender milliseconds per query (median over the repetitions), queries and
        tokens per second, share of the device's matrix-multiplication peak in its numeric type
        and peak memory of what answers (the GPU's, where one computes); then the ratios of the
        project's ways to the others.

    Raises
    ------
    DeviceError
        If this machine has no such device.
    """
    resolve_device(device)
    context = multiprocessing.get_context("spawn")
    # Where bfloat16 is not multiplied natively, it takes many times longer than float32.
    default = resolve_dtype("auto", device)
    types = ("float32", "bfloat16") if default == "bfloat16" else ("float32",)
    names = [name for name in CONTENDERS if "bfloat16" not in name or "bfloat16" in types]
    if device != "cpu":
        names.remove("llama.cpp")
    pools = {name: ProcessPoolExecutor(1, mp_context=context) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    given: dict[str, list[list[str]]] = {name: [] for name in names}
    rows: dict[str, dict[str, Any]] = {}
    with _llama_server(device) as (url, server):
        for turn in range(repeats):
            for name, pool in pools.items():
                row = pool.submit(_measure, name, url, device, queries, turn).result()
                times[name].append(row.pop("seconds_per_query"))
                given[name].append(row.pop("answers"))
                rows[name] = row
        if "llama.cpp" in rows:
            with suppress(OSError):
                rows["llama.cpp"]["peak_mib"] = round(peak_mib(server))
    peaks = {dtype: max(_peak(dtype, device) for _ in range(3)) for dtype in types}
    for name, row in rows.items():
        seconds = median(times[name])
        tokens, flops = _work(_number(name, queries), known=name.endswith(KNOWN))
        peak = peaks["bfloat16" if "bfloat16" in name else "float32"]
        row["ms_per_query"] = round(seconds * 1e3, 2)
        row["queries_per_second"] = round(1 / seconds, 1)
        row["tokens_per_second"] = round(tokens / seconds)
        row["of_peak"] = round(flops / seconds / peak, 3)
        if name not in NEW:  # these were asked about other texts
            same = [
                answer == expected
                for answers, reference in zip(given[name], given[REFERENCE], strict=True)
                for answer, expected in zip(answers, reference, strict=False)
            ]
            row["same"], row["answered"] = sum(same), len(same)
    for pool in pools.values():
        pool.shutdown()
    return {
        **stamp(),
        "device": device,
        "batch": contenders.BATCH[device],
        "default": f"ours, {default}{KNOWN}",
        "queries": queries,
        "repeats": repeats,
        "gflops_peak": {dtype: round(peak / 1e9) for dtype, peak in peaks.items()},
        "contenders": rows,
        "ratios": {
            name: {
                "vs_pipeline": _ratio(times["pipeline"], times[name]),
                "vs_padded": _ratio(times["padded"], times[name]),
                "vs_padded_same_dtype": _ratio(
                    times["padded" if "float32" in name else "padded, bfloat16"], times[name]
                ),
                **(
                    {"vs_llama_cpp": _ratio(times["llama.cpp"], times[name])}
                    if "llama.cpp" in names
                    else {}
                ),
                "of_peak": rows[name]["of_peak"],
            }
            for name in names
            if name.startswith("ours")
        },
    }


def markdown(result: dict[str, Any]) -> str:
    """Return the figures as tables."""
    lines = [
        "# How fast a local black box answers",
        "",
        f"{as_text(result)}; SmolLM2-135M on embedded movie reviews, "
        f"{result['repeats']} turns of {result['queries']} queries about the same texts, each turn "
        f"with a prompt of its own (about the first quarter of the texts for {_slow(result)}; "
        "about other texts each turn where they are to be new), medians. The device is "
        f"{result['device']}; padded batches have {result['batch']} queries. Memory is the most "
        "that the process that answers held, on a GPU of the GPU's. Peaks "
        "of matrix multiplication in GFLOP/s: "
        + ", ".join(f"{peak} ({dtype})" for dtype, peak in result["gflops_peak"].items())
        + f". The default here is {result['default'].split(', ')[1]}.",
        "",
        "| way | ms per query | queries/s | tokens/s | of peak | MiB | same answers |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in result["contenders"].items():
        same = f"{row['same']} of {row['answered']}" if "same" in row else ""
        memory = f"{row['peak_mib']:,}" if "peak_mib" in row else ""
        lines.append(
            f"| {CONTENDERS[name]} | {row['ms_per_query']} | {row['queries_per_second']} "
            f"| {row['tokens_per_second']:,} | {row['of_peak']:.2f} | {memory} | {same} |"
        )
    ratios = list(next(iter(result["ratios"].values())))
    lines += ["", f"| way | {' | '.join(ratios)} |", "|---" * (len(ratios) + 1) + "|"]
    for name, row in result["ratios"].items():
        lines.append(f"| {CONTENDERS[name]} | {' | '.join(str(row[key]) for key in ratios)} |")
    wanted = ", ".join(f"{least:g} {RATIOS[key]}" for key, least in WANTED.items() if key in ratios)
    lines += ["", f"Wanted were at least {wanted}.", ""]
    lines += [f"- {CONTENDERS[name]}: {verdict(row)}." for name, row in result["ratios"].items()]
    dtype = result["default"].removesuffix(KNOWN).split(", ")[1]
    share = result["contenders"][result["default"]]["of_peak"]
    lines += [
        "",
        f"At {share:.0%} of the peak, a runtime that multiplies in {dtype} as well can be at most "
        f"{1 / share:.1f} times as fast; no other was tried.",
    ]
    return "\n".join(lines) + "\n"


def _slow(result: Mapping[str, Any]) -> str:
    """Return the ways that answered fewer queries than ours."""
    all_queries = result["queries"] * result["repeats"]
    rows = result["contenders"].items()
    slow = [name for name, row in rows if row.get("answered", all_queries) < all_queries]
    return " and ".join(dict.fromkeys(name.split(",")[0] for name in slow))


def verdict(ratios: Mapping[str, float]) -> str:
    """Return which of the `WANTED` ratios are missed."""
    missed = [
        f"{ratios[key]:g} instead of {least:g} {RATIOS[key]}"
        for key, least in WANTED.items()
        if ratios.get(key, least) < least
    ]
    return f"missed, {'; '.join(missed)}" if missed else "all reached"


def _ratio(other: Sequence[float], ours: Sequence[float]) -> float:
    """Return how many times longer the other way took, median over the turns."""
    return round(median(a / b for a, b in zip(other, ours, strict=True)), 2)


@contextmanager
def _llama_server(device: str) -> Iterator[tuple[str, int]]:
    """Give llama.cpp's address and process; nobody's where a GPU computes."""
    if device != "cpu":
        yield "", -1
        return
    with llama_process(threads=os.cpu_count() or 1, parallel=2) as served:
        yield served


def _peak(dtype: str, device: str) -> float:
    """Return this device's rate of matrix multiplication, in operations a second."""
    import torch

    rows, side = (1024, 1536) if device == "cpu" else (8192, 8192)
    a = torch.randn(rows, side, dtype=getattr(torch, dtype), device=device)
    b = torch.randn(side, side, dtype=getattr(torch, dtype), device=device)
    best = float("inf")
    for _ in range(40):
        start = time.perf_counter()
        with torch.inference_mode():
            linear(a, b)
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * rows * side * side / best


def _memory(device: str) -> float:
    """Return the most memory that this process held, in MiB."""
    if device == "cpu":
        return peak_mib()
    import torch

    return torch.cuda.max_memory_allocated() / 2**20


def _measure(name: str, url: str, device: str, queries: int, turn: int) -> dict[str, Any]:
    """Answer the turn's queries in the way ``name``; the first call loads and warms up."""
    number = _number(name, queries)
    ask = _contender(name, url, device)
    if name.endswith(KNOWN) and turn == 0:
        ask(_queries(number, -1))
    texts = _queries(number, turn, first=number * turn if name in NEW else 0)
    start = time.perf_counter()
    answers = ask(texts)
    seconds = time.perf_counter() - start
    row = {"seconds_per_query": seconds / len(texts), "answers": list(answers)}
    # Its server is another process than this one.
    return row if name == "llama.cpp" else {**row, "peak_mib": round(_memory(device))}


def _number(name: str, queries: int) -> int:
    return queries // 4 if name in SLOW else queries


def _queries(number: int, turn: int, *, first: int = 0) -> list[str]:
    """Return queries with the turn's prompt about ``number`` texts from the ``first`` on."""
    task = get_task("rotten_tomatoes")
    examples = held_out(task, TEXTS)[first : first + number]
    return [task.compose(PROMPTS[turn % len(PROMPTS)], example.input) for example in examples]


def _work(number: int, *, known: bool) -> tuple[float, float]:
    """Return the tokens of a query, and the operations without which it cannot be answered.

    That is two per weight of the layers for every token that nothing asked before began with;
    attention itself is a few per cent of it, and not counted.
    """
    model, tokenizer = load_causal_lm(EMBEDDED, "cpu", "float32")
    one, other = (
        [tuple(ids) for ids in tokenizer(_queries(number, turn))["input_ids"]] for turn in (0, 1)
    )
    weights = sum(p.numel() for name, p in model.named_parameters() if "layers" in name)
    if known:
        computed = sum(len(a) - common_length(a, b) for a, b in zip(one, other, strict=True))
    else:
        computed = len(PrefixTree.of(one).tokens)
    return sum(map(len, one)) / number, 2 * weights * computed / number


@cache
def _contender(name: str, url: str, device: str) -> Ask:
    """Load what answers in this way, and let it answer once."""
    way, _, dtype = name.removesuffix(KNOWN).partition(", ")
    ask = contenders.load(way, dtype or "float32", device, url)
    ask(_queries(WARM_UP, -1, first=TEXTS - WARM_UP))
    return ask

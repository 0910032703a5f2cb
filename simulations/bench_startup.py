"""How soon a process has its first answer, and what a second one adds in memory.

python -m simulations bench startup --json -
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import IO, Any, cast

from feddtpt_flwr.assets import EMBEDDED
from feddtpt_flwr.language_model.weights import converted, resolve_dtype
from simulations.processes import proportional_kib
from simulations.stamp import stamp

QUERY = "Is this movie review positive or negative? I loved every minute of it."
ANSWERS = ["positive", "negative"]

OURS = f"""
from feddtpt_flwr.language_model.local import LocalLanguageModel
answer = LocalLanguageModel({EMBEDDED!r}).answer([{QUERY!r}], {ANSWERS!r})[0]
"""

TRANSFORMERS = f"""
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, dtype = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
words = {ANSWERS!r}
first = [tokenizer(" " + word)["input_ids"][0] for word in words]
with torch.inference_mode():
    logits = model(**tokenizer({QUERY!r}, return_tensors="pt")).logits[0, -1]
answer = words[int(logits[first].argmax())]
"""

AND_WAIT = "print(answer, flush=True)\nsys.stdin.readline()\n"


def run(repeats: int) -> dict[str, Any]:
    """Time starts from the process's beginning to its first answer, ways in turns.

    Returns
    -------
    dict[str, Any]
        ``first_seconds``: with an empty cache folder, where the weights are de-quantised;
        ``ours_seconds`` and ``transformers_seconds``: medians of later starts, and ``ratio``;
        ``one_mib`` and ``two_mib``: memory of one process with the model and of two at a time,
        pages that they share counted once.
    """
    dtype = resolve_dtype("auto", "cpu")
    folder = str(converted(EMBEDDED, dtype))
    with tempfile.TemporaryDirectory() as empty:
        first = _seconds(OURS, {"FEDDTPT_CACHE": empty})
    times: dict[str, list[float]] = {"ours": [], "transformers": []}
    for _ in range(repeats):
        times["ours"].append(_seconds(OURS))
        times["transformers"].append(_seconds(TRANSFORMERS, {}, folder, dtype))
    ours, theirs = median(times["ours"]), median(times["transformers"])
    ratios = [b / a for a, b in zip(times["ours"], times["transformers"], strict=True)]
    return {
        **stamp(),
        "model": EMBEDDED,
        "dtype": dtype,
        "repeats": repeats,
        "first_seconds": round(first, 2),
        "ours_seconds": round(ours, 2),
        "transformers_seconds": round(theirs, 2),
        "ratio": round(median(ratios), 2),
        "one_mib": _memory(1),
        "two_mib": _memory(2),
    }


def _start(code: str, variables: Mapping[str, str], *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", f"import sys\n{code}{AND_WAIT}", *arguments]
    return subprocess.Popen(
        command,
        env={**os.environ, **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _answer(process: "subprocess.Popen[str]") -> str:
    if not (answer := cast(IO[str], process.stdout).readline()):
        raise RuntimeError("the process that was to be timed has failed")
    return answer


def _seconds(code: str, variables: Mapping[str, str] = {}, *arguments: str) -> float:
    start = time.perf_counter()
    process = _start(code, variables, *arguments)
    _answer(process)
    seconds = time.perf_counter() - start
    process.communicate("\n")
    return seconds


def _memory(number: int) -> int:
    """Return what ``number`` processes take together while all of them hold the model, in MiB."""
    processes = [_start(OURS, {}) for _ in range(number)]
    for process in processes:
        _answer(process)
    kib = sum(proportional_kib(Path(f"/proc/{process.pid}")) for process in processes)
    for process in processes:
        process.communicate("\n")
    return round(kib / 1024)

"""What a train message to a thin node costs beyond Flower's own work and the models' answers.

python -m simulations bench message --json -
"""

import json
import os
import shutil
import statistics
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from feddtpt_flwr.assets import embedded_encoder
from feddtpt_flwr.data import get_task
from simulations.llama_server import llama_server
from simulations.local_deployment import deployment
from simulations.sentences import held_out

APP = Path(__file__).parent.parent
MODEL = "smollm2"
K_SHOT = 2
HEAVY = ("torch", "transformers", "sklearn", "scipy", "datasets", "ray")

_PROJECT = """
[project]
name = "bench-message"
version = "1.0.0"
license = { file = "LICENSE" }
dependencies = ["flwr>=1.41,<2"]

[tool.flwr.app]
publisher = "bench"
fab-format-version = 1
flwr-version-target = "1.41.0"

[tool.flwr.app.components]
serverapp = "bench_app:server"
clientapp = "bench_app:client"

[tool.flwr.app.config]
"""

# The client's process begins with the message and ends with the reply. Both kinds of message are
# answered by one ClientApp, so that Flower does the same for both.
_APP = f"""
import json, os, sys, time
import numpy as np
from pathlib import Path
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

client = ClientApp()
server = ServerApp()


def age():
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    now = float(Path("/proc/uptime").read_text().split()[0])
    return now - int(fields[19]) / os.sysconf("SC_CLK_TCK")


@client.train()
def train(message, context):
    requests, cpu = 0, time.process_time()
    if message.content["config"]["kind"] == "empty":
        reply = Message(RecordDict(), reply_to=message)
    else:
        from feddtpt_flwr import message_client
        reply = message_client.train(message, context)
        assert "failure" not in reply.content["report"], reply.content["report"]
        requests = reply.content["metrics"]["requests"]
    line = {{
        "kind": message.content["config"]["kind"],
        "seconds": age(),
        "cpu_seconds": time.process_time() - cpu,
        "requests": requests,
        "heavy": [name for name in {HEAVY!r} if name in sys.modules],
    }}
    with open(os.environ["BENCH_MESSAGE_FILE"], "a") as file:
        file.write(json.dumps(line) + "\\n")
    return reply


@server.main()
def main(grid, context):
    from feddtpt_flwr import models
    from feddtpt_flwr.config import RunConfig
    from feddtpt_flwr.experiment import load_task
    config = RunConfig.from_run_config(context.run_config)
    vocabulary = models.masked_lm(config, load_task(config)).vocabulary
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(1)
    for number in range(2 * REPEATS):
        kind = ("empty", "app")[number % 2]
        told = ConfigRecord({{"kind": kind, "server-round": 1 + number, "run": "bench"}})
        # Another prompt each time: what was answered before would leave queries to search with.
        prompt = np.array(vocabulary.encode(f"{{config.seed_prompt}} {{number}}"))
        content = RecordDict({{"arrays": ArrayRecord([prompt]), "config": told}})
        (reply,) = grid.send_and_receive([Message(content, nodes[0], "train")])
        assert not reply.has_error(), reply.error
"""


def run(repeats: int = 5) -> dict[str, Any]:
    """Send empty and real train messages in turn; measure the client's process.

    A real message is one of a run in which nothing but the first prompt is measured: it loads
    settings, data, vocabulary and state, asks the black box about every private example, and
    writes its state. What is left after subtracting the empty message and the answers is this
    app's own. The proposer's service is asked for nothing.

    Parameters
    ----------
    repeats
        Messages of each kind.

    Returns
    -------
    dict
        Medians in seconds: ``empty``, ``app``, ``answers`` (waiting for the black box, taken from
        bare requests of the same kind), ``overhead`` (what is left); ``overhead_each``; ``heavy``,
        the model libraries that were imported; and the load of the machine.
    """
    with tempfile.TemporaryDirectory(prefix="bench-message-") as name:
        folder = Path(name)
        app, rows = _app(folder, repeats), folder / "rows.jsonl"
        examples = held_out(get_task("rotten_tomatoes"), 40)
        own = folder / "own.jsonl"
        texts = [e.input.removeprefix("Review: ").strip() for e in examples]
        lines = [
            json.dumps({"text": text, "label": e.label})
            for text, e in zip(texts, examples, strict=True)
        ]
        own.write_text("\n".join(lines), encoding="utf-8")
        load = os.getloadavg()[0]
        with (
            llama_server() as endpoint,
            deployment(folder / "flower", {"BENCH_MESSAGE_FILE": str(rows)}) as running,
        ):
            bare = statistics.median(_bare(endpoint, text) for text in texts[:8])
            running.start_node("node", **{"data-path": str(own)})
            run_id = running.run(app, _settings(endpoint))
            status = running.wait(run_id, 60.0 * repeats)
            if status != "finished:completed":
                raise RuntimeError(running.logs(run_id))
        measured = [json.loads(line) for line in rows.read_text().splitlines()]
    empty = [row["seconds"] for row in measured if row["kind"] == "empty"]
    real = [row for row in measured if row["kind"] == "app"]
    base = statistics.median(empty)
    overhead = [row["seconds"] - base - bare * row["requests"] for row in real]
    return {
        "repeats": repeats,
        "empty": round(base, 3),
        "app": round(statistics.median(row["seconds"] for row in real), 3),
        "answers": round(statistics.median(bare * row["requests"] for row in real), 3),
        "overhead": round(statistics.median(overhead), 3),
        "overhead_each": [round(value, 3) for value in overhead],
        "cpu": round(statistics.median(row["cpu_seconds"] for row in real), 3),
        "requests": [row["requests"] for row in real],
        "heavy": sorted({name for row in measured for name in row["heavy"]}),
        "load_before": round(load, 2),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cores": os.cpu_count(),
    }


def markdown(result: dict[str, Any]) -> str:
    """Return the figures as a table."""
    heavy = ", ".join(result["heavy"]) or "none"
    return (
        "# A train message to a thin node\n\n"
        f"`python -m simulations bench message`, {result['date']}, {result['cores']} cores, load "
        f"before {result['load_before']}; medians of {result['repeats']} messages of each kind, in "
        "turn, to one SuperNode on loopback. The black box is SmolLM2-135M-Instruct behind "
        "llama.cpp's server; examples are of Rotten Tomatoes.\n\n"
        "| what | seconds |\n|---|---|\n"
        f"| process of an empty ClientApp, from its start to its reply | {result['empty']:.2f} |\n"
        f"| the same with this app | {result['app']:.2f} |\n"
        f"| of it, waiting for the black box | {result['answers']:.2f} |\n"
        f"| beyond both: this app's own | {result['overhead']:.2f} |\n"
        f"| the processor's share of the message | {result['cpu']:.2f} |\n\n"
        f"Model libraries imported: {heavy}.\n"
    )


def _app(folder: Path, repeats: int) -> Path:
    app = folder / "app"
    for name in ("feddtpt_flwr", "strategies"):
        shutil.copytree(APP / name, app / name, ignore=shutil.ignore_patterns("__pycache__"))
    (app / "LICENSE").write_text("None.\n", encoding="utf-8")
    (app / "bench_app.py").write_text(f"REPEATS = {repeats}\n{_APP}", encoding="utf-8")
    defaults = "\n".join(f"{k} = {json.dumps(v)}" for k, v in _settings("").items())
    (app / "pyproject.toml").write_text(_PROJECT + defaults + "\n", encoding="utf-8")
    return app


def _settings(endpoint: str) -> dict[str, Any]:
    return {
        "endpoint": endpoint,
        "language-model": MODEL,
        "api-key-env": "NO_KEY",
        "constrain": "grammar",
        # Only the tokenizer is read; a question to the service would fail.
        "masked-lm": str(embedded_encoder()),
        "masked-lm-endpoint": "http://127.0.0.1:9",
        "clients": "own-data",
        "public-per-class": 0,
        "k-shot": K_SHOT,
        "queries-per-round": 2 * K_SHOT,
        "seed-prompt": "Classify the sentiment.",
    }


def _bare(endpoint: str, text: str) -> float:
    """Return the seconds of one request that no client library sends."""
    body = {"model": MODEL, "prompt": f"Review: {text}\n\nIs it good?", "max_tokens": 2}
    request = urllib.request.Request(
        f"{endpoint}/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    start = time.perf_counter()
    urllib.request.urlopen(request, timeout=60).read()
    return time.perf_counter() - start

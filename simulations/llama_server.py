"""llama.cpp's own server on loopback with a GGUF file, for benchmarks and tests.

It needs the package ``xllamacpp`` (``pip install 'feddtpt-flwr[dev]'``).
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from feddtpt_flwr.assets import embedded_language_model

CONTEXT_TOKENS = 1024  # for each question at a time

# A program of its own: the server computes in native threads and cannot be stopped from Python.
_PROGRAM = """
import sys
import xllamacpp

model, threads, parallel, context, key = sys.argv[1:]
params = xllamacpp.CommonParams()
params.model.path = model
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
params.n_parallel = int(parallel)
params.n_ctx = int(parallel) * int(context)
params.hostnames = ["127.0.0.1"]
params.port = 0
params.verbosity = 0
if key:
    params.api_keys = [key]
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()  # until whoever started it ends
"""


@contextmanager
def llama_server(
    model: Path | None = None, *, threads: int = 1, parallel: int = 4, key: str = ""
) -> Iterator[str]:
    """Start a server on a free port, yield the base URL of its API, and stop it at the end.

    Parameters and errors are those of `llama_process`.
    """
    with llama_process(model, threads=threads, parallel=parallel, key=key) as (url, _):
        yield url


@contextmanager
def llama_process(
    model: Path | None = None, *, threads: int = 1, parallel: int = 4, key: str = ""
) -> Iterator[tuple[str, int]]:
    """Start a server on a free port, yield its API's base URL and its process's number.

    It is stopped at the end.

    Parameters
    ----------
    model : Path, optional
        A GGUF file; by default the embedded language model.
    threads : int
        Threads that compute. On a busy machine, more of them wait for each other.
    parallel : int
        Most questions that it answers at a time; others wait.
    key : str
        The key that it asks for; empty for none.

    Raises
    ------
    RuntimeError
        If it does not start; the message is what it printed.
    """
    arguments = [str(model or embedded_language_model()), threads, parallel, CONTEXT_TOKENS, key]
    command = [sys.executable, "-c", _PROGRAM, *map(str, arguments)]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        try:
            address = process.stdout.readline().strip() if process.stdout else ""
            if not address:
                process.wait()
                log.seek(0)
                raise RuntimeError(f"llama.cpp did not start: {log.read()}")
            yield f"{address}/v1", process.pid
        finally:
            process.kill()

"""A small service that answers the fill-mask task of Hugging Face's inference API over HTTP.

The model behind it is real, and so is the pipeline of transformers that hosted services run. What
is not real are the faults that a test may ask for.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from time import sleep
from typing import Any

Fault = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class FillMaskService:
    """A running service, and what happened at it."""

    url: str
    key: str
    questions: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    """Seconds that were waited between tries, if a test writes them here."""
    faults: list[Fault] = field(default_factory=list)
    """The next questions get these instead of an answer."""


@contextmanager
def fill_mask_server(folder: Path, key: str = "") -> Iterator[FillMaskService]:
    """Serve the model in ``folder`` on loopback; with a key, nobody without it is answered."""
    from transformers import pipeline

    pipe: Any = pipeline("fill-mask", model=str(folder), device="cpu")
    lock = Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                service.questions.append(body)
                service.headers.append({k.lower(): v for k, v in self.headers.items()})
                fault = service.faults.pop(0) if service.faults else None
            if fault:
                fault(self)
            elif key and self.headers.get("Authorization") != f"Bearer {key}":
                reply(self, 401, {"error": "Invalid credentials in Authorization header"})
            else:
                with lock:
                    answer = pipe(body["inputs"], **body.get("parameters", {}))
                reply(self, 200, answer)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service = FillMaskService(f"http://127.0.0.1:{server.server_address[1]}/fill", key)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()


def reply(handler: BaseHTTPRequestHandler, status: int, answer: Any, **headers: str) -> None:
    """Send JSON."""
    text = json.dumps(answer).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(text)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(text)


def status(code: int, **headers: str) -> Fault:
    """Answer with an HTTP status that is not 200."""
    return lambda handler: reply(handler, code, {"error": "no"}, **headers)


def say(answer: Any) -> Fault:
    """Answer with this JSON."""
    return lambda handler: reply(handler, 200, answer)


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    """Close the connection without a word."""
    handler.close_connection = True
    handler.connection.shutdown(2)


def cut_off(handler: BaseHTTPRequestHandler) -> None:
    """Send JSON that ends too early."""
    handler.send_response(200)
    handler.send_header("Content-Length", "9")
    handler.end_headers()
    handler.wfile.write(b'[{"score"')


def trickle(handler: BaseHTTPRequestHandler) -> None:
    """Begin a long answer, and let it come byte by byte for ten seconds."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    for _ in range(100):
        try:
            handler.wfile.write(b" ")
            handler.wfile.flush()
        except OSError:
            return
        sleep(0.1)

"""A proxy that stands before a real endpoint and spoils some of its responses."""

import json
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from feddtpt_flwr.language_model.constraints import PROBE

Body = dict[str, Any]

_OPENER = build_opener(ProxyHandler({}))  # whatever proxies a test sets


def question(body: Body) -> str:
    """The text that a request asks about."""
    return str(body["prompt"] if "prompt" in body else body["messages"][-1]["content"])


@dataclass
class Response:
    """What a server sends."""

    content: bytes
    status: int = 200
    type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


Fault = Callable[["Handler", Body], Response | None]
"""Answers a request in place of the real server; with None, the connection is dropped."""


def error(status: int, message: str = "spoilt", **headers: str) -> Fault:
    """An error as OpenAI's API sends it; `retry_after` gives the header of that name."""
    content = json.dumps({"error": {"message": message, "code": None, "type": "spoilt"}}).encode()
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return lambda handler, body: Response(content, status, headers=named)


def drop(handler: "Handler", body: Body) -> None:
    """Close the connection without a response."""


def echo(handler: "Handler", body: Body) -> None:
    """Answer in another protocol than HTTP, with the question in it."""
    handler.wfile.write(f"error: cannot parse {question(body)}\r\n\r\n".encode())


def delay(seconds: float) -> Fault:
    """Answer late."""

    def fault(handler: "Handler", body: Body) -> Response:
        time.sleep(seconds)
        return handler.proxy.forward(handler.path, body)

    return fault


def truncated(handler: "Handler", body: Body) -> Response:
    """Send the beginning of the real response, as if that were all of it."""
    real = handler.proxy.forward(handler.path, body)
    return Response(real.content[: len(real.content) // 2])


def web_page(handler: "Handler", body: Body) -> Response:
    """What a gateway may send in place of an API."""
    return Response(b"<html><body>Please log in</body></html>", type="text/html")


def mislabelled(handler: "Handler", body: Body) -> Response:
    """The real response, declared as plain text."""
    return Response(handler.proxy.forward(handler.path, body).content, type="text/plain")


def no_choices(handler: "Handler", body: Body) -> Response:
    """A response without an answer in it."""
    return Response(b'{"object": "text_completion", "choices": []}')


def null(handler: "Handler", body: Body) -> Response:
    """JSON, but nothing in it."""
    return Response(b"null")


def trickle(handler: "Handler", body: Body) -> None:
    """Begin a long response, and let it come byte by byte for a minute."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "600")
    handler.end_headers()
    for _ in range(600):
        try:
            handler.wfile.write(b" ")
            handler.wfile.flush()
        except OSError:
            return  # whoever asked has given up
        time.sleep(0.1)


@dataclass
class FaultProxy:
    """The proxy's script, and what it has seen.

    Parameters
    ----------
    target : str
        Base URL of the real endpoint.
    faults : list[Fault | None]
        What happens to the first questions; None lets one through.
    afterwards : Fault, optional
        What happens to all others.
    spares_probes : bool
        Whether harmless questions of the program's own are let through even then.
    rewrite : Callable[[Body], Response | None], optional
        Changes every request first, or answers it: a server of another kind.
    asked : list[Body]
        All questions that came.
    answered : Counter[str]
        How often the real server's answer to each question was delivered.
    most_at_a_time : int
        Most questions that were open at the same time.
    times : list[float]
        When they came.
    """

    target: str
    faults: list[Fault | None] = field(default_factory=list)
    afterwards: Fault | None = None
    spares_probes: bool = True
    rewrite: Callable[[Body], Response | None] = lambda body: None
    asked: list[Body] = field(default_factory=list)
    probes: list[Body] = field(default_factory=list)
    answered: Counter[str] = field(default_factory=Counter)
    authorization: str | None = None
    user_agent: str | None = None
    most_at_a_time: int = 0
    times: list[float] = field(default_factory=list)
    url: str = ""
    _open: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def forward(self, path: str, body: Body) -> Response:
        headers = {"Content-Type": "application/json"}
        if self.authorization:
            headers["Authorization"] = self.authorization
        request = Request(
            self.target + path.removeprefix("/v1"), json.dumps(body).encode(), headers
        )
        try:
            with _OPENER.open(request, timeout=60) as response:
                return Response(response.read())
        except HTTPError as error:
            return Response(error.read(), error.code)

    def handle(self, handler: "Handler", body: Body) -> Response | None:
        self.authorization = handler.headers["Authorization"]
        self.user_agent = handler.headers["User-Agent"]
        if (rewritten := self.rewrite(body)) is not None:
            return rewritten
        if question(body) == PROBE:
            self.probes.append(body)
            if self.afterwards and not self.faults and not self.spares_probes:
                return self.afterwards(handler, body)
            return self.forward(handler.path, body)
        with self._lock:
            self.asked.append(body)
            self.times.append(time.monotonic())
            fault = self.faults.pop(0) if self.faults else self.afterwards
            self._open += 1
            self.most_at_a_time = max(self.most_at_a_time, self._open)
        try:
            if fault:
                return fault(handler, body)
            response = self.forward(handler.path, body)
            with self._lock:
                self.answered[question(body)] += response.status == 200
            return response
        finally:
            with self._lock:
                self._open -= 1


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        response = self.proxy.handle(self, body)
        if response is None:
            self.close_connection = True
            return
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", response.type)
        self.send_header("Content-Length", str(len(response.content)))
        self.end_headers()
        self.wfile.write(response.content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@contextmanager
def fault_proxy(
    target: str, certificate: Path | None = None, port: int = 0
) -> Iterator[FaultProxy]:
    """Run a proxy on a port of loopback, by default a free one.

    With a certificate and its key it speaks TLS.
    """
    proxy = FaultProxy(target)
    handler = type("BoundHandler", (Handler,), {"proxy": proxy})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    scheme = "https" if certificate else "http"
    proxy.url = f"{scheme}://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()

"""Flower's own grid before a SuperLink that fails now and then."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import httpx
import pytest
from flwr.proto.runtime_pb2 import GetNodesResponse
from flwr.superlink.grid.http_grid import HttpGrid

from feddtpt_flwr.patience import make_patient

NODE = 17


class SuperLink(ThreadingHTTPServer):
    """Stands in for a SuperLink: answers with ``statuses`` first, then that one node is there."""

    statuses: list[int]
    asked = 0


class Handler(BaseHTTPRequestHandler):
    server: SuperLink

    def do_POST(self) -> None:
        self.server.asked += 1
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        content = b""
        if status == 200:
            response = GetNodesResponse()
            response.nodes.add(node_id=NODE)
            content = response.SerializeToString()
        self.send_response(status)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def superlink() -> Iterator[SuperLink]:
    with SuperLink(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def grid(superlink: SuperLink) -> Iterator[HttpGrid]:
    grid = HttpGrid(f"127.0.0.1:{superlink.server_port}", insecure=True, token="token")
    yield grid
    grid.close()


def test_flower_gives_up_at_once(superlink: SuperLink, grid: HttpGrid) -> None:
    """Once it does not, there is no need for any of this."""
    superlink.statuses = [500]
    with pytest.raises(httpx.HTTPStatusError, match="500"):
        grid.get_node_ids()


def test_an_internal_error_is_outlasted(
    superlink: SuperLink, grid: HttpGrid, caplog: pytest.LogCaptureFixture
) -> None:
    superlink.statuses = [500, 500]
    assert list(make_patient(grid).get_node_ids()) == [NODE]
    assert superlink.asked == 3
    assert caplog.text.count("the SuperLink has failed and is asked again: Server error '500") == 2


def test_one_that_stays_is_raised(superlink: SuperLink, grid: HttpGrid) -> None:
    superlink.statuses = [500] * 1000
    with pytest.raises(httpx.HTTPStatusError, match="500"):
        make_patient(grid, patience=0.5).get_node_ids()
    assert superlink.asked >= 1


def test_a_refusal_is_no_failure(superlink: SuperLink, grid: HttpGrid) -> None:
    superlink.statuses = [404]
    with pytest.raises(httpx.HTTPStatusError, match="404"):
        make_patient(grid).get_node_ids()
    assert superlink.asked == 1

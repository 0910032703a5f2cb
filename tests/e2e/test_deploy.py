"""The commands of docs/deploy.md, run as they stand there on loopback, and what they leave behind.

With ``WRITE_DOCS=1`` in the environment the recorded upload is written into the document.
"""

import csv
import json
import os
import re
import shutil
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from feddtpt_flwr.assets import cache_folder
from feddtpt_flwr.private_flower import _free_port, _wait_until_up
from feddtpt_flwr.vocabulary import Vocabulary
from strategies.wire import CLIENT_KEY
from tests.e2e.document import Machine, Terminal, blocks, terminal
from tests.e2e.recording import VARIABLE, Recorded, describe, recorded, recording_app

REPOSITORY = Path(__file__).parents[2]
DOCUMENT = REPOSITORY / "docs" / "deploy.md"
CANARY = "qzvx"  # begins everything that must stay on a node
KEY = f"{CANARY}-api-key"
UPLOAD = re.compile(r"(?<=<!-- upload -->\n).*(?=<!-- end of upload -->)", re.DOTALL)

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Deployed:
    """A federation that has done a run and is still there."""

    machine: Machine
    terminals: dict[str, Terminal]
    output: str
    messages: list[Recorded]

    @property
    def run_folder(self) -> Path:
        (folder,) = (self.machine.home / "federation" / "runs").iterdir()
        return folder

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = (self.run_folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
        return [line for line in map(json.loads, lines) if line["event"] == name]


def plant_canaries(table: Path) -> None:
    """Mark every text, and add a column that the app has no use for."""
    with table.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    marked = [
        [f"{row[0]} {CANARY}-text-{number}", *row[1:], f"{CANARY}-patient-{number}"]
        for number, row in enumerate(rows)
    ]
    with table.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([[*header, f"{CANARY}-column"], *marked])


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture(scope="module")
def deployed(embedded_assets: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("deploy")
    home, messages = folder / "home", folder / "messages"
    home.mkdir()
    messages.mkdir()
    app = recording_app(folder / "app")
    link, *nodes = (_free_port() for _ in range(3))
    ports = {"8000": str(link), "9094": str(nodes[0]), "9095": str(nodes[1])}
    variables = {
        "PYTHONPATH": str(REPOSITORY),
        "FEDDTPT_CACHE": str(cache_folder()),
        "OPENAI_API_KEY": KEY,
        VARIABLE: str(messages),
    }
    machine = Machine(home, app, ports, variables)
    terminals: dict[str, Terminal] = {}
    output = ""
    with ExitStack() as stack:
        for block in blocks(DOCUMENT, "On one machine"):
            if name := terminal(block):
                started = terminals[name] = stack.enter_context(machine.start(block))
                if name == "SuperLink":
                    _wait_until_up(started.process, link, started.log)
                continue
            if "flwr run" in block:
                until(lambda: terminals["SuperLink"].text.count("Activated node_id") == 2)
            output += machine.run(block)
            for table in (home / "federation").glob("*.csv"):
                if CANARY not in table.read_text(encoding="utf-8"):
                    plant_canaries(table)
        yield Deployed(machine, terminals, output, list(recorded(messages)))


def test_both_nodes_search_and_vote(deployed: Deployed) -> None:
    assert deployed.output.count("registered successfully") == 2
    assert deployed.output.count("│ online │") == 2
    for event in ("search", "race"):
        assert {line["client"] for line in deployed.events(event)} == {"north", "south"}
    (settled,) = deployed.events("round")
    assert settled["failures"] == 0


def test_nothing_private_leaves_a_node_or_is_written_anywhere(deployed: Deployed) -> None:
    tables = [*(deployed.machine.home / "federation").glob("*.csv")]
    assert all(CANARY in table.read_text(encoding="utf-8") for table in tables)
    assert len(deployed.messages) == 8, "two nodes, two phases, received and sent"
    leaked = [message for message in deployed.messages if CANARY.encode() in message.content]
    assert not leaked
    assert CANARY not in deployed.output
    # Logs, run folder, the SuperLink's database, Flower's home: all but the tables themselves.
    written = [path for path in deployed.machine.home.rglob("*") if path.is_file()]
    names = {path.name for path in written}
    assert {"SuperLink.log", "north.log", "history.jsonl", "superlink.db", "config.toml"} <= names
    assert [path for path in written if CANARY.encode() in path.read_bytes()] == tables


def test_a_nodes_log_shows_no_prompt(deployed: Deployed, vocabulary: Vocabulary) -> None:
    """What a search found is told to the server; the log on the node may be read by others."""
    uploads = [m for m in deployed.messages if (m.kind, m.way) == ("train", "sent")]
    for message in uploads:
        (arrays,) = message.records.array_records.values()
        prompt = vocabulary.decode(arrays.to_numpy_ndarrays()[0].tolist())
        for name in ("north", "south"):
            assert prompt not in deployed.terminals[name].text


def test_the_document_shows_an_upload_as_it_is(deployed: Deployed) -> None:
    sent = [m for m in deployed.messages if (m.kind, m.way) == ("train", "sent")]
    (south,) = [m for m in sent if flat(m)[CLIENT_KEY] == "south"]
    table = describe(south)
    text = DOCUMENT.read_text(encoding="utf-8")
    if os.environ.get("WRITE_DOCS"):
        text = UPLOAD.sub(lambda _: f"\n{table}\n\n", text)
        DOCUMENT.write_text(text, encoding="utf-8")
    shown = UPLOAD.search(text)
    assert shown
    first_column = re.compile(r"^\| ([^|]+) \|", re.MULTILINE)
    # The values differ with the machine's arithmetic, and so does what a search finds.
    shown_parts, parts = (
        [part for part in first_column.findall(text) if part != "`hunch`"]
        for text in (shown.group(), table)
    )
    assert shown_parts == parts


def flat(message: Recorded) -> dict[str, Any]:
    """All values of a message that are no arrays."""
    values: dict[str, Any] = {}
    for config in message.records.config_records.values():
        values |= config
    for metrics in message.records.metric_records.values():
        values |= metrics
    return {key.removeprefix("fitres.metrics."): value for key, value in values.items()}


def test_the_certificate_passes_the_strictest_check(deployed: Deployed) -> None:
    """That of Python from 3.13 on."""
    command = "cd ~/federation; openssl verify -x509_strict -CAfile ca.pem server.pem"
    assert deployed.machine.run(command) == "server.pem: OK\n"


def test_nginx_lets_nodes_in_and_nobody_start_runs(deployed: Deployed, tmp_path: Path) -> None:
    if not (program := shutil.which("nginx")):
        pytest.skip("nginx is not installed")
    text = DOCUMENT.read_text(encoding="utf-8")
    (server,) = re.findall(r"```nginx\n(.*?)```", text, re.DOTALL)
    port, link = _free_port(), deployed.machine.replaced["8000"]
    keys = deployed.machine.home / "federation"
    server = server.replace("8443", f"127.0.0.1:{port}").replace(
        "127.0.0.1:8000", f"127.0.0.1:{link}"
    )
    server = server.replace("/home/flower/federation", str(keys))
    temporary = "client_body", "proxy", "fastcgi", "uwsgi", "scgi"
    folders = "".join(f"{name}_temp_path {tmp_path / name};\n" for name in temporary)
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; pid {tmp_path / 'pid'}; events {{}}\n"
        f"http {{ access_log off;\n{folders}{server} }}",
        encoding="utf-8",
    )
    block = f"# terminal: nginx\nexec {program} -c {tmp_path}/nginx.conf -e {tmp_path}/errors"
    outside = f"https://localhost:{port}/v1"
    with deployed.machine.start(block) as nginx, httpx.Client(verify=context(keys)) as client:
        _wait_until_up(nginx.process, port, nginx.log)
        assert client.post(f"{outside}/control/list-nodes").status_code == 403
        assert client.post(f"{outside}/runtime/anything").status_code == 403
        answer = client.post(f"{outside}/fleet/activate-node", content=b"")
        assert answer.status_code not in (403, 404, 502), "the SuperLink itself has answered"
        inside = client.post(f"https://localhost:{link}/v1/fleet/activate-node", content=b"")
        assert answer.content == inside.content


def context(keys: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(keys / "ca.pem"))


def test_an_unregistered_node_is_shut_out(deployed: Deployed) -> None:
    north = deployed.terminals["north"]
    identifier = re.search(r"SuperNode ID: (\d+)", north.text)
    assert identifier
    (block,) = blocks(DOCUMENT, "Updating, removing, keeping")
    said = deployed.machine.run(block, NODE_ID=identifier.group(1))
    assert "unregistered successfully" in said
    until(lambda: north.process.poll() is not None)
    assert deployed.terminals["south"].process.poll() is None

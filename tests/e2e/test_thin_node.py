"""Nodes without torch and transformers, with data of their own, in a real deployment with TLS.

The commands are those of docs/deploy.md for several machines, with loopback for their names.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from feddtpt_flwr.data import Example
from feddtpt_flwr.private_flower import _free_port, _wait_until_up
from simulations.llama_server import llama_server
from tests.e2e.copies import REPOSITORY, copy_app
from tests.e2e.document import Machine, blocks
from tests.fill_mask_server import FillMaskService

COMMANDS = blocks(REPOSITORY / "docs" / "deploy.md", "On several machines")
CERTIFICATES, SUPERLINK, INSTALL, NODE_KEYS, REGISTER, CHECK, SUPERNODE, RUN = COMMANDS
KEYS = {"THIN_LLM_KEY": "llm-secret-7", "THIN_FILL_KEY": ""}
QUERIES, K_SHOT, TEST_SIZE = 20, 2, 10

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def thin_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment that the document makes on a node."""
    folder = copy_app(tmp_path_factory.mktemp("thin"), "simulations", "requirements-node.txt")
    Machine(folder, folder, {}, {}).run(INSTALL, timeout=600)
    return folder / "node" / "bin" / "python"


def packages(python: Path) -> set[str]:
    command = [str(python), "-m", "pip", "list", "--format", "json"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {package["name"].lower() for package in json.loads(listed)}


def test_a_nodes_environment_is_thin(thin_python: Path) -> None:
    heavy = {"torch", "transformers", "scikit-learn", "scipy", "datasets", "ray", "matplotlib"}
    assert not heavy & packages(thin_python)


@pytest.fixture(scope="module")
def app(reviews: tuple[Example, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The app with the public set and the held-out examples beside it, as Flower packs them."""
    folder = copy_app(tmp_path_factory.mktemp("app"))
    for name, examples in (("public", reviews[:40]), ("test", reviews[40:80])):
        lines = [json.dumps({"text": sentence(e), "label": e.label}) for e in examples]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def sentence(example: Example) -> str:
    return example.input.removeprefix("Review: ").strip()


@pytest.fixture(scope="module")
def node_configs(
    reviews: tuple[Example, ...], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """Two organisations that keep their reviews in their own way."""
    folder = tmp_path_factory.mktemp("organisations")
    table = folder / "table.tsv"
    rows = [f"{sentence(e)}\t{('bad', 'good')[e.label]}" for e in reviews[100:140]]
    table.write_text("\n".join(["comment\tverdict", *rows]), encoding="utf-8")
    lines = folder / "lines.jsonl"
    records = [json.dumps({"text": sentence(e), "label": e.label}) for e in reviews[140:180]]
    lines.write_text("\n".join(records), encoding="utf-8")
    return [
        {
            "node-name": "north",
            "data-path": str(table),
            "data-columns": "comment=text, verdict=label",
            "data-labels": "bad=0, good=1",
        },
        {"node-name": "south", "data-path": str(lines)},
    ]


@dataclass(frozen=True)
class Deployed:
    log: str
    check: str
    node_logs: list[str]
    folder: Path

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = (self.folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
        return [line for line in map(json.loads, lines) if line["event"] == name]


def as_text(node_config: dict[str, Any]) -> str:
    return " ".join(f"{key}='{value}'" for key, value in node_config.items())


@dataclass(frozen=True)
class Organisation:
    """A node's machine; what the document calls ``north`` is this node."""

    machine: Machine

    @classmethod
    def make(
        cls, folder: Path, link: int, python: Path, config: dict[str, Any], keys: dict[str, str]
    ) -> "Organisation":
        folder.mkdir()
        replaced = {
            "superlink.example.org:8000": f"localhost:{link}",
            "node-name='north' data-path='/data/tickets.csv'": as_text(config),
            "--auth-supernode-private-key": f"--port {_free_port()} --auth-supernode-private-key",
        }
        return cls(Machine(folder, folder, replaced, keys, python))

    def give_keys_to(self, coordinator: Machine) -> None:
        """Make the node's keys, have the public one registered, and take what comes back."""
        self.machine.run(NODE_KEYS)
        ours, theirs = self.machine.home / "feddtpt", coordinator.home / "federation"
        shutil.copy(ours / "node.key.pub", coordinator.folder)
        assert "registered successfully" in coordinator.run(REGISTER)
        for path in (theirs / "ca.pem", *coordinator.folder.glob("*.jsonl")):
            shutil.copy(path, ours)
        shutil.copy(coordinator.folder / "run.toml", ours)


@pytest.fixture(scope="module")
def services(
    tiny_bert: Path, fill_mask_service: FillMaskService
) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    """Settings for the models of all, and the keys that these ask for."""
    keys = {"THIN_LLM_KEY": KEYS["THIN_LLM_KEY"], "THIN_FILL_KEY": fill_mask_service.key}
    with llama_server(key=keys["THIN_LLM_KEY"]) as endpoint:
        settings = {
            "endpoint": endpoint,
            "language-model": "smollm2",
            "api-key-env": "THIN_LLM_KEY",
            "cache-size-mib": 0,
            "masked-lm": str(tiny_bert),
            "masked-lm-endpoint": fill_mask_service.url,
            "masked-lm-key-env": "THIN_FILL_KEY",
            "max-fluency-loss": 50.0,
        }
        yield settings, keys


@pytest.fixture(scope="module")
def deployed(
    thin_python: Path,
    app: Path,
    node_configs: list[dict[str, Any]],
    services: tuple[dict[str, Any], dict[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Deployed:
    folder, link = tmp_path_factory.mktemp("deployment"), _free_port()
    models, keys = services
    settings = {
        **models,
        "clients": "own-data",
        "data-source": "files",
        "train-file": "public.jsonl",
        "test-file": "test.jsonl",
        "test-size": TEST_SIZE,
        "public-per-class": 2,
        "k-shot": K_SHOT,
        "num-server-rounds": 1,
        "queries-per-round": QUERIES,
        "reword": False,  # which asks the proposer for many more words
        "seed-prompt": "Movie review.",
        "run-folder": str(folder / "runs"),
    }
    (app / "run.toml").write_text(tomli_w.dumps(settings), encoding="utf-8")
    home = folder / "coordinator"
    (home / ".flwr").mkdir(parents=True)
    (home / ".flwr" / "config.toml").write_text(
        f'[superlink.federation]\naddress = "localhost:{link}"\n'
        f'root-certificates = "{home}/federation/ca.pem"\n',
        encoding="utf-8",
    )
    replaced = {"superlink.example.org": "localhost", "0.0.0.0": "127.0.0.1", "8000": str(link)}
    coordinator = Machine(home, app, replaced, keys)
    coordinator.run(CERTIFICATES)
    with ExitStack() as stack:
        running = stack.enter_context(coordinator.start(SUPERLINK))
        _wait_until_up(running.process, link, running.log)
        organisations = [
            Organisation.make(folder / config["node-name"], link, thin_python, config, keys)
            for config in node_configs
        ]
        for organisation in organisations:
            organisation.give_keys_to(coordinator)
        check = organisations[0].machine.run(CHECK)
        nodes = [stack.enter_context(o.machine.start(SUPERNODE)) for o in organisations]
        log = coordinator.run(RUN, timeout=400)
        texts = [node.text for node in nodes]
        log += running.text
    (run_folder,) = (folder / "runs").iterdir()
    return Deployed(log, check, texts, run_folder)


def test_the_check_finds_all_well(deployed: Deployed) -> None:
    assert "Nothing to fix." in deployed.check
    assert re.search(r"different texts: 20 'negative', 20 'positive'", deployed.check)


def test_both_nodes_searched_and_voted_on_their_own_data(deployed: Deployed) -> None:
    searches, races = deployed.events("search"), deployed.events("race")
    assert {line["client"] for line in searches} == {"north", "south"}
    for line in searches:
        assert 0 < line["queries"] <= QUERIES
        assert line["num_examples"] == 2 * K_SHOT + 4, "their own and the public ones"
        assert line["trials"] > 0
        assert "failure" not in line
    for line in races:
        assert line["num-scored"] == 4 * K_SHOT
    (settled,) = deployed.events("round")
    assert settled["failures"] == 0


def test_keys_and_private_text_stay_where_they_are(
    deployed: Deployed, node_configs: list[dict[str, Any]], fill_mask_service: FillMaskService
) -> None:
    written = deployed.log + "".join(
        path.read_text(encoding="utf-8", errors="replace")
        for path in deployed.folder.iterdir()
        if path.suffix != ".png"
    )
    everything = written + deployed.check + "".join(deployed.node_logs)
    for key in (KEYS["THIN_LLM_KEY"], fill_mask_service.key):
        assert key not in everything
    private = Path(node_configs[1]["data-path"]).read_text(encoding="utf-8").splitlines()
    sentences = [json.loads(line)["text"] for line in private]
    assert not [text for text in sentences if len(text) > 20 and text in everything]


def test_no_node_computed_with_a_model_of_its_own(deployed: Deployed) -> None:
    for log in deployed.node_logs:
        assert "Traceback" not in log
        assert "torch" not in log

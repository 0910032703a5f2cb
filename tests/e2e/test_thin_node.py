"""Nodes without torch and transformers, with data of their own, in a real deployment."""

import json
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from feddtpt_flwr.data import Example
from simulations.llama_server import llama_server
from tests.e2e.deployment import superlink, supernode
from tests.fill_mask_server import FillMaskService

REPOSITORY = Path(__file__).parents[2]
KEYS = {"THIN_LLM_KEY": "llm-secret-7", "THIN_FILL_KEY": ""}
QUERIES, K_SHOT, TEST_SIZE = 20, 2, 10

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def thin_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment that the README makes on a node."""
    folder = tmp_path_factory.mktemp("thin") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    install = ["-m", "pip", "install", "--quiet", "--require-hashes", "-r", "requirements-node.txt"]
    subprocess.run([str(python), *install], check=True, cwd=REPOSITORY, timeout=600)
    return python


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
    folder = tmp_path_factory.mktemp("app")
    for name in ("feddtpt_flwr", "strategies"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder / name)
    for name, examples in (("public", reviews[:40]), ("test", reviews[40:80])):
        lines = [json.dumps({"text": sentence(e), "label": e.label}) for e in examples]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def sentence(example: Example) -> str:
    return example.input.removeprefix("\n\nReview: ").removesuffix("\nSentiment:")


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
    status: str
    log: str
    node_logs: list[str]
    folder: Path

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = (self.folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
        return [line for line in map(json.loads, lines) if line["event"] == name]


@pytest.fixture(scope="module")
def deployed(
    thin_python: Path,
    app: Path,
    node_configs: list[dict[str, Any]],
    tiny_bert: Path,
    fill_mask_service: FillMaskService,
    tmp_path_factory: pytest.TempPathFactory,
) -> Deployed:
    folder = tmp_path_factory.mktemp("deployment")
    keys = {"THIN_LLM_KEY": KEYS["THIN_LLM_KEY"], "THIN_FILL_KEY": fill_mask_service.key}
    with ExitStack() as stack:
        endpoint = stack.enter_context(llama_server(key=keys["THIN_LLM_KEY"]))
        link = stack.enter_context(superlink(folder, **keys))
        logs = [
            stack.enter_context(
                supernode(link, thin_python, folder / config["node-name"], config, **keys)
            )
            for config in node_configs
        ]
        status, log = link.run(
            app,
            f'endpoint="{endpoint}" language-model="smollm2" api-key-env="THIN_LLM_KEY"',
            f'masked-lm-endpoint="{fill_mask_service.url}" masked-lm-key-env="THIN_FILL_KEY"',
            f'masked-lm="{tiny_bert}" max-fluency-loss=50.0 cache-size-mib=0',
            'clients="own-data" data-source="files" train-file="public.jsonl"',
            f'test-file="test.jsonl" test-size={TEST_SIZE} public-per-class=2 k-shot={K_SHOT}',
            f'num-server-rounds=1 queries-per-round={QUERIES} seed-prompt="Movie review."',
            f'run-folder="{folder / "runs"}"',
        )
        texts = [path.read_text(encoding="utf-8") for path in logs]
    assert status == "finished:completed", log + "".join(texts)
    (run_folder,) = (folder / "runs").iterdir()
    return Deployed(status, log, texts, run_folder)


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
    everything = written + "".join(deployed.node_logs)
    for key in (KEYS["THIN_LLM_KEY"], fill_mask_service.key):
        assert key not in everything
    private = Path(node_configs[1]["data-path"]).read_text(encoding="utf-8").splitlines()
    sentences = [json.loads(line)["text"] for line in private]
    assert not [text for text in sentences if len(text) > 20 and text in everything]


def test_no_node_computed_with_a_model_of_its_own(deployed: Deployed) -> None:
    for log in deployed.node_logs:
        assert "Traceback" not in log
        assert "torch" not in log

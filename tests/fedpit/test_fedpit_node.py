import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from feddtpt_flwr.config import ConfigError
from feddtpt_flwr.fedpit.config import FedPITConfig
from feddtpt_flwr.fedpit.instructions import Instruction, InstructionData
from feddtpt_flwr.fedpit.node import adapted_model, check_choices, load_node

OWN = {"clients": "own-data", "examples-per-client": 3}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "notes.jsonl"
    rows = [{"instruction": f"Ask {i}", "response": f"Say {i}"} for i in (1, 2, 3, 4, 4)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_a_node_with_data_of_its_own(file: Path) -> None:
    node = load_node(OWN, {"data-path": str(file), "node-name": "north", "device": "cpu"}, 7)
    assert node.name == "north"
    assert node.config.device == "cpu"
    assert len(set(node.private)) == 3
    assert load_node(OWN, {"data-path": str(file)}, 7).name == "node-7"


def test_simulated_nodes_share_nothing(drugs: InstructionData) -> None:
    parts = [
        load_node({"examples-per-client": 5}, {"partition-id": i, "num-partitions": 2}, i)
        for i in range(2)
    ]
    assert [part.name for part in parts] == ["0", "1"]
    assert len({row for part in parts for row in part.private}) == 10


@pytest.mark.parametrize(
    ("run", "node", "words"),
    [
        (OWN, {}, "data-path is missing"),
        (OWN, {"data-path": "x.jsonl", "partition-id": 0}, "only clients = 'simulated'"),
        ({}, {"data-path": "x.jsonl"}, "data of the nodes' own need"),
        ({}, {"partition-id": 0}, "num-partitions is missing"),
        ({}, {"partition-id": 2, "num-partitions": 2}, "0 to num-partitions - 1 = 1"),
        ({}, {"partition": 2}, "unknown key 'partition'; keys: node-name"),
        ({"beta": 2.0}, {}, "beta = 2.0"),
    ],
)
def test_what_does_not_fit(run: dict[str, Any], node: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_node(run, node, 0)


def test_a_short_file_of_its_own_is_taken_whole(file: Path) -> None:
    node = load_node({**OWN, "examples-per-client": 5}, {"data-path": str(file)}, 0)
    assert {row.instruction for row in node.private} == {f"Ask {i}" for i in (1, 2, 3, 4)}


def test_a_choice_that_no_answer_could_be() -> None:
    model: Any = SimpleNamespace(num_tokens=lambda text: len(text.split()))
    rows = [Instruction("a", "b"), Instruction("a", "b", "", ("b", "c d e"))]
    check_choices(FedPITConfig.from_run_config({"max-response-tokens": 3}), model, rows)
    config = FedPITConfig.from_run_config({"max-response-tokens": 2})
    check_choices(config, model, rows[:1])
    with pytest.raises(ConfigError, match=r"max-response-tokens = 2: .*; 3 or more") as error:
        check_choices(config, model, rows)
    assert "c d e" not in str(error.value)


def test_a_model_that_does_not_exist(tmp_path: Path) -> None:
    config = FedPITConfig.from_run_config({"language-model": str(tmp_path / "none")})
    with pytest.raises(ConfigError, match=r"language-model = .*none.*: no model can be adapted"):
        adapted_model(config)

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.common import Context, RecordDict

from feddtpt_flwr.app_files import find_file
from feddtpt_flwr.client_app import client_fn
from feddtpt_flwr.config import ConfigError, RunConfig
from feddtpt_flwr.data import DataError, Example
from feddtpt_flwr.data.own import OwnFile
from feddtpt_flwr.experiment import load_data
from feddtpt_flwr.language_model.local import LocalLanguageModel
from feddtpt_flwr.node import OVERRIDES, NodeConfig, load_node, load_public, of_this_app
from feddtpt_flwr.node_settings import Part
from feddtpt_flwr.privacy.ledger import LedgerFile
from strategies.wire import ROUND_KEY

OWN: dict[str, Any] = {"clients": "own-data"}
EXPONENTIAL: dict[str, Any] = {"privacy": "exponential"}
PARTS = {"partition-id": 1, "num-partitions": 3}


@pytest.fixture
def reviews_file(reviews: tuple[Example, ...], tmp_path: Path) -> Path:
    """Real reviews in a hospital's own words."""
    path = tmp_path / "reviews.tsv"
    lines = [f"{e.input.split(': ', 1)[1].split(chr(10))[0]}\t{'-+'[e.label]}" for e in reviews]
    path.write_text("\n".join(["sentence\topinion", *lines[:200]]), encoding="utf-8")
    return path


def own(path: Path) -> dict[str, Any]:
    return {
        "data-path": str(path),
        "data-columns": "sentence=text, opinion=label",
        "data-labels": "-=0, +=1",
        "node-name": "st-mary",
    }


def test_a_simulated_node_has_a_part() -> None:
    config = NodeConfig.read({}, PARTS)
    assert config.examples == Part(1, 3)
    assert config.run == RunConfig.from_run_config({})


def test_a_node_with_data_of_its_own(reviews_file: Path) -> None:
    config = NodeConfig.read({**OWN, "k-shot": 4, "public-per-class": 2}, own(reviews_file))
    node = load_node(config, 7)
    assert node.name == "st-mary"
    assert len(node.data.train) == len(node.data.validation) == 8
    assert len(node.public) == 4
    private = {e.input for e in (*node.data.train, *node.data.validation)}
    assert not private & {e.input for e in node.public}


def test_without_a_name_it_is_the_nodes_number(reviews_file: Path) -> None:
    settings = own(reviews_file)
    del settings["node-name"]
    config = NodeConfig.read({**OWN, "k-shot": 2, "public-per-class": 0}, settings)
    assert load_node(config, 7).name == "node-7"


def test_all_nodes_and_the_server_have_the_same_public_set(embedded_assets: None) -> None:
    config = RunConfig.from_run_config({**OWN, "public-per-class": 3, "test-size": 20})
    public, shared = load_public(config)
    on_the_server = load_data(config, 0)
    assert public == on_the_server.public
    assert len(public) == 6
    assert shared >= {e.input for e in on_the_server.test}
    assert on_the_server.clients == ()


def test_without_a_public_set_the_runs_data_is_not_needed() -> None:
    config = RunConfig.from_run_config({**OWN, "task": "sst2", "public-per-class": 0})
    assert load_public(config) == ((), frozenset())


def test_the_run_data_may_lie_in_the_apps_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Flower packs is on every node, wherever the node was started."""
    folder = tmp_path / "app"
    folder.mkdir()
    lines = [f'{{"sentence": "text {i}", "label": {i % 2}}}' for i in range(40)]
    (folder / "public.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "task.toml").write_text(
        'name = "mine"\ntemplate = "{prompt} {sentence}"\nlabel_column = "label"\n'
        'labels = [0, 1]\nanswers = ["no", "yes"]\nseed_prompt = "Say."\n',
        encoding="utf-8",
    )
    monkeypatch.setattr("feddtpt_flwr.app_files._APP", folder)
    settings = {"task": "task.toml", "data-source": "files", "train-file": "public.jsonl"}
    config = RunConfig.from_run_config({**OWN, **settings, "test-size": 0, "public-per-class": 2})
    assert len(load_public(config)[0]) == 4


def test_a_task_of_ones_own_may_bear_the_name_of_one_of_glues(tmp_path: Path) -> None:
    lines = [f"{i % 2}\ttext {i}" for i in range(40)]
    (tmp_path / "train.tsv").write_text("\n".join(["label\tsentence", *lines]), encoding="utf-8")
    (tmp_path / "task.toml").write_text(
        'name = "cola"\ntemplate = "{prompt} {sentence}"\nlabel_column = "label"\n'
        'labels = [0, 1]\nanswers = ["no", "yes"]\nseed_prompt = "Say."\n',
        encoding="utf-8",
    )
    files = {"task": str(tmp_path / "task.toml"), "train-file": str(tmp_path / "train.tsv")}
    settings = {**files, "data-source": "files", "test-size": 0, "public-per-class": 2}
    assert len(load_data(RunConfig.from_run_config(settings), 0).public) == 4


def test_a_file_that_came_with_the_app_is_taken_before_one_that_lies_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, here = tmp_path / "app", tmp_path / "here"
    for folder in (packed, here):
        folder.mkdir()
        (folder / "both.jsonl").touch()
    (here / "mine.jsonl").touch()
    monkeypatch.setattr("feddtpt_flwr.app_files._APP", packed)
    monkeypatch.chdir(here)
    assert find_file("both.jsonl") == packed / "both.jsonl"
    assert find_file("mine.jsonl") == here / "mine.jsonl"
    assert find_file(str(here / "both.jsonl")) == here / "both.jsonl"
    monkeypatch.setenv("HOME", str(here))
    assert find_file("~/both.jsonl") == here / "both.jsonl"
    with pytest.raises(DataError, match=r"~nobody-here/a\.csv: "):
        find_file("~nobody-here/a.csv")


def test_settings_of_somebody_elses_app_are_left_out() -> None:
    theirs: dict[str, Any] = {"fraction-train": 0.5, "dataset-path": "/d"}
    context = Context(1, 2, {**PARTS, **theirs}, RecordDict(), {"k-shot": 3, **theirs})
    ours = of_this_app(context)
    assert (ours.node_config, ours.run_config) == (PARTS, {"k-shot": 3})
    assert ours.state is context.state, "what a client keeps there stays"


NODES_OWN: dict[str, Any] = {
    "language-model": "there",
    "endpoint": "http://node/v1",
    "api-key-env": "NODE_KEY",
    "extra-body": '{"reasoning_effort": "low"}',
    "concurrency": 3,
    "requests-per-minute": 10,
    "tokens-per-minute": 1000,
    "timeout": 5.0,
    "price-per-million-input": 0.5,
    "price-per-million-output": 1.5,
    "cache-size-mib": 1,
    "masked-lm": "/models/bert",
    "masked-lm-endpoint": "http://node/fill",
    "masked-lm-key-env": "NODE_FILL_KEY",
    "device": "cpu",
    "dtype": "float32",
    "train-file": "/data/public.csv",
    "queries-per-round": 25,
    "generator-endpoint": "http://node/v1",
    "generator-model": "there",
    "generator-key-env": "NODE_WRITER_KEY",
    "generator-price-per-million-input": 2.5,
    "generator-price-per-million-output": 3.5,
    "tokens-per-round": 5000,
    "cost-per-round": 0.5,
    "seconds-per-round": 60.0,
    "queries-per-run": 500,
    "tokens-per-run": 50_000,
    "cost-per-run": 2.5,
    "seconds-per-run": 600.0,
}


@pytest.mark.parametrize("key", OVERRIDES)
def test_what_a_node_may_replace(key: str) -> None:
    run_config = {
        "language-model": "runs",
        "data-source": "files",
        "train-file": "public.jsonl",
        "endpoint": "http://runs/v1",
        "masked-lm": "runs",
        "masked-lm-endpoint": "http://runs",
        "proposer": "prompt-generator",
        "generator-endpoint": "http://runs/v1",
        "generator-model": "runs",
        "price-per-million-input": 1.0,
    }
    config = NodeConfig.read(run_config, {**PARTS, key: NODES_OWN[key]})
    assert config.run.to_run_config()[key] == NODES_OWN[key] != run_config.get(key)


@pytest.mark.parametrize(
    ("run_config", "node_config", "words"),
    [
        ({}, {}, "partition-id or num-partitions is missing.*set clients = 'own-data'"),
        ({}, {"partition-id": 0}, "partition-id or num-partitions is missing"),
        ({}, {"partition-id": 3, "num-partitions": 3}, "partition-id = 3: 0 to .* = 2"),
        ({}, {"partition-id": -1, "num-partitions": 3}, "partition-id = -1: .*greater"),
        ({}, {**PARTS, "data-path": "a.csv"}, "data-path = 'a.csv': .*'simulated'.*'own-data'"),
        ({}, {**PARTS, "data-labels": "a=0"}, "data-labels = 'a=0': .*'simulated'"),
        (OWN, {}, "data-path is missing"),
        (OWN, {"data-path": ""}, "data-path is missing"),
        (OWN, {"data-path": 3}, "data-path = 3: .*valid string"),
        (OWN, {**PARTS, "data-path": "a.csv"}, "partition-id = 1: .*'own-data'"),
        (OWN, {"data-path": "a", "data-labels": "bad"}, "data-labels = 'bad': pairs"),
        (OWN, {"data-path": "a", "data-columns": "a=b=c"}, "data-columns = 'a=b=c': pairs"),
        (OWN, {"data-path": "a", "data-columns": "=b"}, "data-columns = '=b': pairs"),
        (OWN, {"data-path": "a", "data-columns": "a=b, a=c"}, "'a' stands 2 times on the left"),
        (OWN, {"data-path": "a", "data-labels": '{"a": "0", "a": "1"}'}, "'a' stands 2 times"),
        (OWN, {"data-path": "a", "data-labels": '{"a, b": "0"'}, "or a JSON object, as in"),
        (OWN, {"data-path": "a", "data-labels": '{"a": {"b": "0"}}'}, "or a JSON object, as in"),
        (OWN, {"data-path": "a", "data-labels": '{"a": ""}'}, "or a JSON object, as in"),
        (OWN, {"datapath": "a"}, "unknown key 'datapath'; keys: .*data-path.*language-model"),
        (OWN, {"data-path": "a", "k-shot": 3}, "unknown key 'k-shot'"),
        (OWN, {"data-path": "a", "masked-lm-endpoint": "x"}, "masked-lm-endpoint = 'x'"),
        (OWN, {"data-path": "a", "epsilon-limit": 2.0}, "epsilon-limit = 2.0: .*privacy = 'none'"),
        (OWN, {"data-path": "a", "epsilon-ledger": "b"}, "epsilon-ledger = 'b': .*'exponential'"),
        (OWN, {"data-path": "a", "epsilon-limit": -1.0}, "epsilon-limit = -1.0: .*greater"),
        (EXPONENTIAL, {**PARTS, "epsilon-limit": 2}, "epsilon-limit = 2.0: .*'own-data'"),
        (OWN | EXPONENTIAL, {"data-path": "a", "epsilon-ledger": "b"}, "= 'b': a whole path"),
        ({"clients": "mine"}, PARTS, "clients = 'mine': .*'simulated' or 'own-data'"),
    ],
)
def test_a_node_config_that_does_not_fit(
    run_config: dict[str, Any], node_config: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        NodeConfig.read(run_config, node_config)


def test_names_with_commas_and_equals_signs_are_mapped_in_a_json_object() -> None:
    labels = '{"Billing, refunds": "0", " a=b ": 1}'
    examples = NodeConfig.read(OWN, {"data-path": "a.csv", "data-labels": labels}).examples
    assert isinstance(examples, OwnFile)
    assert examples.labels == {"Billing, refunds": "0", "a=b": "1"}


def test_a_nodes_ledger_lies_beside_its_data_unless_its_operator_says_where(tmp_path: Path) -> None:
    own = {**OWN, **EXPONENTIAL}
    data = tmp_path / "own.csv"
    beside = NodeConfig.read(own, {"data-path": str(data)}).ledger
    assert beside == LedgerFile(tmp_path / "own.csv.epsilon.jsonl")
    said = {"epsilon-ledger": "~/spent.jsonl", "epsilon-limit": 3}
    elsewhere = NodeConfig.read(own, {"data-path": str(data), **said}).ledger
    assert elsewhere == LedgerFile(Path.home() / "spent.jsonl", limit=3.0)
    assert NodeConfig.read(OWN, {"data-path": str(data)}).ledger is None


def test_a_ledger_lies_beside_the_file_and_not_beside_a_link_to_it(tmp_path: Path) -> None:
    data, link = tmp_path / "export-7.csv", tmp_path / "links" / "current.csv"
    data.touch()
    link.parent.mkdir()
    link.symlink_to(data)
    ledger = NodeConfig.read({**OWN, **EXPONENTIAL}, {"data-path": str(link)}).ledger
    assert ledger == LedgerFile(tmp_path / "export-7.csv.epsilon.jsonl")


@pytest.mark.parametrize("key", ["train-file", "test-file"])
def test_a_nodes_own_file_is_not_a_public_one(key: str, tmp_path: Path) -> None:
    own, link = tmp_path / "own.csv", tmp_path / "link.csv"
    own.touch()
    link.symlink_to(own)
    files = {"data-source": "files", "train-file": str(tmp_path / "public.csv"), key: str(link)}
    with pytest.raises(ConfigError, match=f"data-path: it is the file of {key} = "):
        NodeConfig.read({**OWN, **files}, {"data-path": str(own)})


def test_what_is_wrong_with_public_files_stays_in_the_nodes_log(
    reviews_file: Path, tmp_path: Path, warned: list[str]
) -> None:
    public = tmp_path / "public.csv"
    public.write_text("text,label\nfine,private words\n", encoding="utf-8")
    files = {"data-source": "files", "train-file": str(public)}
    config = NodeConfig.read({**OWN, **files}, {"data-path": str(reviews_file)})
    with pytest.raises(DataError, match="cannot be loaded on this node") as caught:
        load_node(config, 7)
    assert "private words" not in str(caught.value)
    assert "private words" in warned[0]


def test_an_unknown_key_is_named_without_its_value() -> None:
    with pytest.raises(ConfigError) as caught:
        NodeConfig.read(OWN, {"data-path": "a", "api-key": "a-secret"})
    assert "a-secret" not in str(caught.value)


def test_the_same_app_serves_a_node_with_own_data(
    reviews_file: Path, language_model: LocalLanguageModel
) -> None:
    context = Context(
        run_id=1,
        node_id=5,
        node_config=own(reviews_file),
        state=RecordDict(),
        run_config={**OWN, "k-shot": 2, "public-per-class": 1, "test-size": 4, "dtype": "float32"},
    )
    client: Any = client_fn(context)
    inner = client.numpy_client
    prompt = inner._vocabulary.encode("Movie review.")
    _, num_examples, metrics = inner.evaluate([np.array(prompt)], {ROUND_KEY: 1})
    assert metrics["client"] == "st-mary"
    assert num_examples == metrics["num-scored"] == 8


def test_a_client_with_a_faulty_file_asks_nothing(tmp_path: Path, embedded_assets: None) -> None:
    path = tmp_path / "own.csv"
    path.write_text("text,label\nfine,1\n", encoding="utf-8")
    context = Context(
        run_id=1,
        node_id=5,
        node_config={"data-path": str(path)},
        state=RecordDict(),
        run_config=OWN,
    )
    with pytest.raises(DataError, match="32 examples of each class are needed"):
        client_fn(context)

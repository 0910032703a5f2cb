import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.client import NumPyClient
from flwr.common import NDArrays, Scalar
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from feddtpt_flwr.client_app import PromptTuningClient
from feddtpt_flwr.config import ConfigError, RunConfig
from feddtpt_flwr.data import ClientData, Example
from feddtpt_flwr.language_model.local import LocalLanguageModel
from feddtpt_flwr.message_client import app, client_of, reply_to_evaluate, reply_to_train
from feddtpt_flwr.privacy.exponential_client import ExponentialClient
from feddtpt_flwr.privacy.ledger import LedgerFile
from feddtpt_flwr.vocabulary import Vocabulary
from strategies.wire import (
    CLIENT_KEY,
    FAILURE_KEY,
    FROM_ARCHIVE_KEY,
    GAIN_KEY,
    MODEL_KEY,
    QUERIES_KEY,
    ROUND_KEY,
    SCORED_KEY,
    UNPARSED_KEY,
    VOCABULARY_KEY,
    UploadError,
    correct_key,
)

START = "Movie review."
SETTINGS: dict[str, bool | float | int | str] = {
    "queries-per-round": 24,
    "seed-prompt": START,
    "max-prompt-tokens": 8,
    "k-shot": 2,
    "public-per-class": 1,
    "test-size": 4,
    "dtype": "float32",
    "device": "cpu",
}


def question(kind: str, *prompts: NDArray[np.int64], **config: int) -> Message:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    content = RecordDict({"arrays": ArrayRecord(list(prompts)), "config": ConfigRecord({**config})})
    return Message(content, dst_node_id=5, message_type=kind)


@pytest.fixture
def start(vocabulary: Vocabulary) -> NDArray[np.int64]:
    return np.array(vocabulary.encode(START), dtype=np.int64)


@pytest.fixture
def client(
    language_model: LocalLanguageModel, short_reviews: tuple[Example, ...]
) -> PromptTuningClient:
    data = ClientData(train=short_reviews[:4], validation=short_reviews[4:6])
    config = RunConfig.from_run_config(SETTINGS)
    return PromptTuningClient("ward 3", data, short_reviews[6:8], config, RecordDict())


@pytest.mark.slow
def test_a_reply_is_what_the_client_says(
    client: PromptTuningClient, start: NDArray[np.int64], vocabulary: Vocabulary
) -> None:
    message = question("train", start, **{ROUND_KEY: 2})
    reply = reply_to_train(message, client)
    assert reply.metadata.dst_node_id == message.metadata.src_node_id
    (arrays,) = reply.content.array_records.values()
    (tokens,) = arrays.to_numpy_ndarrays()
    assert tokens.dtype == np.int64
    (numbers,) = reply.content.metric_records.values()
    (report,) = reply.content.config_records.values()
    assert numbers["num-examples"] == 6
    searched = {GAIN_KEY, QUERIES_KEY, FROM_ARCHIVE_KEY, UNPARSED_KEY, "accuracy", "trials"}
    assert numbers.keys() == searched | {"num-examples"}
    assert report.keys() == {CLIENT_KEY, ROUND_KEY, VOCABULARY_KEY, MODEL_KEY, "accepted"}
    assert report[VOCABULARY_KEY] == vocabulary.fingerprint
    assert (report[CLIENT_KEY], report[ROUND_KEY]) == ("ward 3", 2)
    assert isinstance(json.loads(str(report["accepted"])), list)

    reply = reply_to_evaluate(question("evaluate", start, tokens, **{ROUND_KEY: 2}), client)
    assert not reply.content.array_records
    (numbers,) = reply.content.metric_records.values()
    assert numbers[SCORED_KEY] == 6
    assert {correct_key(0), correct_key(1), "loss", "accuracy", "num-examples"} < numbers.keys()


class Reporting(NumPyClient):
    """A client that reports numbers of several kinds."""

    def fit(self, parameters: NDArrays, config: dict[str, Scalar]) -> Any:
        numbers = {"gain": np.float32(0.5), "loss": np.int64(2), "done": True, "sure": np.bool_(1)}
        return parameters, np.int64(6), numbers


def test_numbers_of_numpy_and_truth_values_reach_the_server() -> None:
    reply = reply_to_train(question("train", np.array([1, 2]), **{ROUND_KEY: 1}), Reporting())
    (numbers,) = reply.content.metric_records.values()
    (report,) = reply.content.config_records.values()
    assert dict(numbers) == {"num-examples": 6, "gain": 0.5, "loss": 2}
    assert dict(report) == {"done": True, "sure": True}


@pytest.mark.slow
def test_both_doors_run_the_same_search(
    language_model: LocalLanguageModel, start: NDArray[np.int64]
) -> None:
    """The ready-made app answers as the NumPyClient does for the same node."""
    from feddtpt_flwr.client_app import client_for

    def context() -> Context:
        node_config: dict[str, bool | float | int | str] = {"partition-id": 1, "num-partitions": 2}
        return Context(1, 5, node_config, RecordDict(), SETTINGS)

    reply = app(question("train", start, **{ROUND_KEY: 1}), context())
    arrays, num_examples, metrics = client_for(context()).fit([start], {ROUND_KEY: 1})
    (ours,) = reply.content.array_records["arrays"].to_numpy_ndarrays()
    assert ours.tolist() == arrays[0].tolist()
    numbers, report = (
        reply.content.metric_records["metrics"],
        reply.content.config_records["report"],
    )
    assert {**numbers, **report} == {**metrics, "num-examples": num_examples}


def test_a_malformed_message_costs_nothing(
    client: PromptTuningClient, start: NDArray[np.int64]
) -> None:
    for message in (
        question("train", start),
        Message(RecordDict(), dst_node_id=5, message_type="train"),
    ):
        with pytest.raises(UploadError, match="one ArrayRecord and one ConfigRecord"):
            reply_to_train(message, client)
        with pytest.raises(UploadError, match="one ArrayRecord and one ConfigRecord"):
            reply_to_evaluate(message, client)
    with pytest.raises(UploadError, match="1 to 8 tokens"):
        reply_to_train(question("train", np.arange(9), **{ROUND_KEY: 1}), client)


def context(**settings: bool | float | int | str) -> Context:
    return Context(7, 5, {"ours": "x"}, RecordDict(), {**SETTINGS, **settings})


def test_an_app_of_ones_own_keeps_to_the_runs_privacy(
    short_reviews: tuple[Example, ...], start: NDArray[np.int64]
) -> None:
    pytest.importorskip("opendp")
    data = ClientData(train=short_reviews[:4], validation=short_reviews[4:6])
    here = context(privacy="exponential", **{"my-own-setting": 3})
    client = client_of(here, data, short_reviews[6:8], name="ward 3")
    assert isinstance(client, ExponentialClient)
    told = reply_to_evaluate(question("evaluate", start, **{ROUND_KEY: 1}), client).content
    assert correct_key(0) in told["metrics"]
    again = reply_to_evaluate(question("evaluate", start, **{ROUND_KEY: 1}), client).content
    assert again["report"][FAILURE_KEY] == "the round's epsilon is spent"


def test_a_ledger_of_ones_own_keeps_to_its_limit(
    short_reviews: tuple[Example, ...], start: NDArray[np.int64], tmp_path: Path
) -> None:
    pytest.importorskip("opendp")
    data = ClientData(train=short_reviews[:4], validation=short_reviews[4:6])
    ledger = LedgerFile(tmp_path / "ledger.jsonl", limit=1.0)
    with pytest.raises(ConfigError, match="privacy = 'none': nothing keeps to the epsilon"):
        client_of(context(), data, ledger=ledger)
    told = []
    for run in (1, 2, 3):  # half of an epsilon each
        here = replace(context(privacy="exponential"), run_id=run)
        client = client_of(here, data, short_reviews[6:8], ledger=ledger)
        reply = reply_to_evaluate(question("evaluate", start, **{ROUND_KEY: 1}), client)
        told.append(reply.content["report"].get(FAILURE_KEY))
    assert told == [None, None, "this node's epsilon-limit is reached"]


@pytest.mark.parametrize("privacy", ["public-tokens", "synthetic", "exponential"])
def test_a_client_that_would_not_keep_to_it_is_refused(
    privacy: str, short_reviews: tuple[Example, ...], start: NDArray[np.int64]
) -> None:
    config = RunConfig.from_run_config({**SETTINGS, "privacy": privacy})
    data = ClientData(train=short_reviews[:4], validation=short_reviews[4:6])
    bare = PromptTuningClient("ward 3", data, short_reviews[6:8], config, RecordDict())
    for kind, reply in (("train", reply_to_train), ("evaluate", reply_to_evaluate)):
        with pytest.raises(ConfigError, match=f"privacy = '{privacy}'.*client_of"):
            reply(question(kind, start, **{ROUND_KEY: 1}), bare)

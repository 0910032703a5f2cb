"""A client whose black box is behind an endpoint, and may fail."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.common import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from feddtpt_flwr import models
from feddtpt_flwr.client_app import PromptTuningClient
from feddtpt_flwr.client_state import STATE_KEY
from feddtpt_flwr.config import ConfigError, RunConfig
from feddtpt_flwr.data import ClientData, Example
from feddtpt_flwr.language_model.api import ApiLanguageModel
from feddtpt_flwr.vocabulary import Vocabulary
from strategies.wire import (
    COMPLETION_TOKENS_KEY,
    COST_KEY,
    FAILURE_KEY,
    FROM_ARCHIVE_KEY,
    PROMPT_TOKENS_KEY,
    QUERIES_KEY,
    ROUND_KEY,
    SCORED_KEY,
    UNPARSED_KEY,
    failure,
)
from tests.conftest import ENDPOINT_KEY
from tests.language_model import fault_proxy as faults
from tests.language_model.fault_proxy import FaultProxy

START = "Movie review."
QUERIES = 30


@pytest.fixture
def proxy(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    monkeypatch.setenv("FEDDTPT_CACHE", str(tmp_path))
    monkeypatch.setenv("TEST_ENDPOINT_KEY", ENDPOINT_KEY)
    models._answer_store.cache_clear()
    with faults.fault_proxy(endpoint) as proxy:
        yield proxy
    models._answer_store.cache_clear()


def config(proxy: FaultProxy, **settings: Any) -> RunConfig:
    return RunConfig.from_run_config(
        {
            "queries-per-round": QUERIES,
            "seed-prompt": START,
            "max-prompt-tokens": 8,
            "dtype": "float32",
            "device": "cpu",
            "endpoint": proxy.url,
            "language-model": "smollm2",
            "api-key-env": "TEST_ENDPOINT_KEY",
            "constrain": "grammar",
            "price-per-million-input": 1.0,
            "price-per-million-output": 2.0,
            **{name.replace("_", "-"): value for name, value in settings.items()},
        }
    )


class Node:
    def __init__(self, config: RunConfig, examples: tuple[Example, ...]) -> None:
        self.config, self.examples = config, examples
        self.state = RecordDict()

    def client(self) -> PromptTuningClient:
        self.state = recorddict_from_proto(recorddict_to_proto(self.state))
        train, validation, public = self.examples[:6], self.examples[6:8], self.examples[8:10]
        data = ClientData(train=train, validation=validation)
        return PromptTuningClient("0", data, public, self.config, self.state)


@pytest.fixture
def start(vocabulary: Vocabulary) -> list[Any]:
    return [np.array(vocabulary.encode(START), dtype=np.int64)]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait two minutes for a server that is down."""
    monkeypatch.setattr(
        "feddtpt_flwr.models.ApiLanguageModel",
        partial(ApiLanguageModel, patience=0.0),
    )
    models._api_language_model.cache_clear()


@pytest.mark.slow
def test_a_search_reports_what_it_used_and_pays_for_nothing_twice(
    proxy: FaultProxy, start: list[Any], short_reviews: tuple[Example, ...]
) -> None:
    node = Node(config(proxy), short_reviews)
    tokens, _, metrics = node.client().fit(start, {ROUND_KEY: 1})
    queries = metrics[QUERIES_KEY]
    assert isinstance(queries, int)
    assert 0 < queries == proxy.answered.total() <= QUERIES
    assert metrics["requests"] == queries + len(proxy.probes)
    read, written = metrics[PROMPT_TOKENS_KEY], metrics[COMPLETION_TOKENS_KEY]
    assert isinstance(read, int)
    assert isinstance(written, int)
    assert read > 15 * queries
    assert metrics[COST_KEY] == pytest.approx((read + 2 * written) / 1e6)
    assert metrics[UNPARSED_KEY] == 0
    assert FAILURE_KEY not in metrics

    # Another run on the same machine: it finds the answers on disk and takes the same course.
    models._answer_store.cache_clear()
    again = Node(config(proxy), short_reviews)
    other, _, same = again.client().fit(start, {ROUND_KEY: 1})
    assert proxy.answered.total() == queries
    assert (same[QUERIES_KEY], same[FROM_ARCHIVE_KEY]) == (queries, queries)
    assert metrics[FROM_ARCHIVE_KEY] == same["requests"] == same[COST_KEY] == 0
    assert other[0].tolist() == tokens[0].tolist()
    assert same["accepted"] == metrics["accepted"]


def test_a_model_that_answers_and_writes_counts_each_apart(proxy: FaultProxy) -> None:
    """With these settings both ask the same model in the same way."""
    both = config(proxy, constrain="none", max_answer_tokens=models.WRITTEN_TOKENS)
    assert models.generator_settings(both) == both
    assert models.writing_model(both) is models.writing_model(both)
    assert models.writing_model(both) is not models.language_model(both)


def test_without_a_cache_everything_is_asked_again(
    proxy: FaultProxy, start: list[Any], short_reviews: tuple[Example, ...]
) -> None:
    for _ in range(2):
        node = Node(config(proxy, cache_size_mib=0), short_reviews)
        node.client().evaluate(start, {ROUND_KEY: 1})
    assert set(proxy.answered.values()) == {2}


@pytest.mark.parametrize(
    ("key", "sent"), [(f"{ENDPOINT_KEY}\n", True), ("se\ncret", False), ("sécret", False)]
)
def test_a_key_that_no_header_can_hold_is_refused_and_not_repeated(
    key: str, sent: bool, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_ENDPOINT_KEY", key)
    if sent:
        models.ready_language_model(config(proxy))
        return
    with pytest.raises(ConfigError, match="variable TEST_ENDPOINT_KEY: the key") as caught:
        models.ready_language_model(config(proxy))
    assert "cret" not in str(caught.value)
    assert not proxy.probes


@pytest.mark.usefixtures("patient")
def test_a_failed_scoring_is_reported_and_nothing_is_lost(
    proxy: FaultProxy, start: list[Any], short_reviews: tuple[Example, ...], warned: list[str]
) -> None:
    proxy.faults, proxy.afterwards = [None] * 3, faults.error(503)
    proxy.spares_probes = False
    node = Node(config(proxy, concurrency=1), short_reviews)
    _, num_examples, metrics = node.client().evaluate(start, {ROUND_KEY: 1})
    assert num_examples == 0
    assert metrics[QUERIES_KEY] == 3
    assert SCORED_KEY not in metrics
    assert failure(metrics).startswith("endpoint: HTTP 503"), (
        "its address is nobody else's business"
    )
    assert f"client 0: {proxy.url}: HTTP 503" in warned[-1]
    assert ENDPOINT_KEY not in str(metrics) + str(warned)
    record = node.state.config_records[STATE_KEY]
    assert len(json.loads(str(record["answers"]))) == 3

    proxy.afterwards = None
    _, _, metrics = node.client().evaluate(start, {ROUND_KEY: 2})
    assert metrics[QUERIES_KEY] == 5
    assert metrics[SCORED_KEY] == 8
    assert max(proxy.answered.values()) == 1


@pytest.mark.usefixtures("patient")
def test_a_search_that_could_not_begin_uploads_no_prompt(
    proxy: FaultProxy, start: list[Any], short_reviews: tuple[Example, ...]
) -> None:
    proxy.faults, proxy.afterwards = [None] * 2, faults.error(401)
    node = Node(config(proxy, concurrency=1), short_reviews)
    arrays, num_examples, metrics = node.client().fit(start, {ROUND_KEY: 1})
    assert (arrays, num_examples) == ([], 0)
    assert metrics[QUERIES_KEY] == 2
    assert "HTTP 401" in failure(metrics)
    assert "accuracy" not in metrics
    assert len(proxy.asked) == 3, "the key is refused: nothing more is asked"


@pytest.mark.slow
@pytest.mark.usefixtures("patient")
def test_a_search_cut_short_uploads_the_best_so_far(
    proxy: FaultProxy, start: list[Any], short_reviews: tuple[Example, ...]
) -> None:
    # Enough for the first prompt and one race of four changes, not for the next.
    proxy.faults, proxy.afterwards = [None] * 44, faults.drop
    proxy.spares_probes = False
    settings = config(proxy, concurrency=1, queries_per_round=100, reword=False)
    node = Node(settings, short_reviews)
    arrays, num_examples, metrics = node.client().fit(start, {ROUND_KEY: 1})
    assert len(arrays) == 1
    assert num_examples == 8
    assert metrics[QUERIES_KEY] == proxy.answered.total() == 44
    assert "no connection" in failure(metrics)
    assert float(metrics["accuracy"]) >= 0
    assert json.loads(str(node.state.config_records[STATE_KEY]["feedback"])) != []

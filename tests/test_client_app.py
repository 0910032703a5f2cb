import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.common import ConfigRecord, RecordDict, Scalar
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from numpy.typing import NDArray

from feddtpt_flwr import __version__
from feddtpt_flwr.assets import cache_folder
from feddtpt_flwr.budget import QueryBudget
from feddtpt_flwr.client_app import PromptTuningClient, client_fn
from feddtpt_flwr.client_state import RUN_KEY, STATE_KEY, STATE_VERSION, VERSION_KEY
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import ClientData, Example, Task
from feddtpt_flwr.evaluation import Evaluator
from feddtpt_flwr.feedback import Trial
from feddtpt_flwr.language_model import ModelUnavailableError
from feddtpt_flwr.language_model.local import LocalLanguageModel
from feddtpt_flwr.search_result import Hunch, SearchResult
from feddtpt_flwr.searches import SearchParts
from feddtpt_flwr.vocabulary import Vocabulary
from strategies.wire import (
    CLIENT_KEY,
    COMPARED_KEY,
    FAILURE_KEY,
    GAIN_KEY,
    LIMIT_KEY,
    QUERIES_KEY,
    RACE_EXAMPLES_KEY,
    ROUND_KEY,
    SCORED_KEY,
    VOCABULARY_KEY,
    UploadError,
    correct_key,
    read_scores,
)

QUERIES = 40
START = "Movie review."
CONFIG = RunConfig.from_run_config(
    {
        "queries-per-round": QUERIES,
        "seed-prompt": START,
        "max-prompt-tokens": 8,
        "dtype": "float32",
        "device": "cpu",
    }
)


@pytest.fixture
def data(short_reviews: tuple[Example, ...]) -> ClientData:
    return ClientData(train=short_reviews[:6], validation=short_reviews[6:10])


@pytest.fixture
def public(short_reviews: tuple[Example, ...]) -> tuple[Example, ...]:
    return short_reviews[10:12]


class Node:
    """One node of a federation: its client is made anew for every message, its state stays."""

    def __init__(self, name: str, data: ClientData, public: tuple[Example, ...]) -> None:
        self.name, self.data, self.public = name, data, public
        self.state = RecordDict()

    def client(self) -> PromptTuningClient:
        # As it travels between processes in a deployment.
        self.state = recorddict_from_proto(recorddict_to_proto(self.state))
        return PromptTuningClient(self.name, self.data, self.public, CONFIG, self.state)

    def fit(
        self, prompt: NDArray[np.int64], server_round: int = 1
    ) -> tuple[NDArray[Any], int, dict[str, Any]]:
        arrays, num_examples, metrics = self.client().fit([prompt], {ROUND_KEY: server_round})
        assert len(arrays) == 1
        return arrays[0], num_examples, metrics

    def evaluate(
        self, *prompts: NDArray[np.int64], server_round: int = 1, **config: Scalar
    ) -> tuple[float, int, dict[str, Any]]:
        return self.client().evaluate(list(prompts), {ROUND_KEY: server_round, **config})

    def saved(self, key: str) -> Any:
        record = self.state.config_records[STATE_KEY]
        return json.loads(str(record[key]))


@pytest.fixture
def node(language_model: LocalLanguageModel, data: ClientData, public: tuple[Example, ...]) -> Node:
    return Node("0", data, public)


@pytest.fixture
def start(vocabulary: Vocabulary) -> NDArray[np.int64]:
    return np.array(vocabulary.encode(START), dtype=np.int64)


@pytest.mark.slow
def test_a_search_uploads_tokens_and_counts(
    node: Node,
    start: NDArray[np.int64],
    vocabulary: Vocabulary,
    language_model: LocalLanguageModel,
    task: Task,
) -> None:
    tokens, num_examples, metrics = node.fit(start)
    assert tokens.dtype == np.int64
    assert tokens.ndim == 1
    assert 1 <= len(tokens) <= 8
    examples = [*node.data.train, *node.public]
    assert num_examples == len(examples)

    evaluator = Evaluator(language_model, task, QueryBudget(100))
    before, after = (
        float(evaluator.correct(vocabulary.decode(t.tolist()), examples).mean())
        for t in (start, tokens)
    )
    assert metrics["accuracy"] == pytest.approx(after)
    assert metrics[GAIN_KEY] == pytest.approx(after - before)
    assert metrics[GAIN_KEY] >= 0
    assert 0 < metrics[QUERIES_KEY] <= QUERIES
    assert metrics[VOCABULARY_KEY] == vocabulary.fingerprint
    assert (metrics[CLIENT_KEY], metrics[ROUND_KEY]) == ("0", 1)
    assert metrics["trials"] >= len(json.loads(metrics["accepted"]))
    for change in json.loads(metrics["accepted"]):
        assert change.keys() == {"position", "operator", "before", "after", "accuracy"}

    told = json.dumps({key: value for key, value in metrics.items() if key != "accepted"})
    words = {w for e in [*examples, *node.data.validation] for w in e.input.split() if len(w) > 5}
    assert words
    assert not [word for word in words if word in told], "no private text leaves the client"


@pytest.mark.parametrize("told", [{COMPARED_KEY: True}, {}])
@pytest.mark.parametrize("accuracy", [0.5, 0.9])
def test_a_hunch_is_uploaded_where_it_is_compared(
    told: dict[str, Scalar],
    accuracy: float,
    node: Node,
    start: NDArray[np.int64],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where nothing better was found; the search's result is given."""
    trial = Trial(0, (4,), (7,), "replace", 0.25, 4, 0.75, accepted=False)
    found = SearchResult((5, 6), accuracy, 0.5, (), 4, hunch=Hunch((7,), 0.1, 0.125, trial))
    search = SimpleNamespace(run=lambda *_: found)
    monkeypatch.setattr(PromptTuningClient, "_build_search", lambda *_: search)
    (tokens,), _, metrics = node.client().fit([start], {ROUND_KEY: 1, **told})
    assert metrics["accepted"] == "[]"
    if told and accuracy == 0.5:
        assert tokens.tolist() == [7]
        assert (metrics[GAIN_KEY], metrics["accuracy"]) == (0.125, 0.625)
        assert json.loads(str(metrics["hunch"]))[0]["operator"] == "replace"
    else:
        assert tokens.tolist() == [5, 6]
        assert (metrics[GAIN_KEY], metrics["accuracy"]) == (accuracy - 0.5, accuracy)
        assert "hunch" not in metrics


@pytest.mark.slow
def test_the_same_message_gets_the_same_answer(
    node: Node, start: NDArray[np.int64], data: ClientData, public: tuple[Example, ...]
) -> None:
    tokens, _, metrics = node.fit(start)
    again, _, same = Node("0", data, public).fit(start)
    assert again.tolist() == tokens.tolist()
    assert same == metrics
    other = Node("1", data, public)
    other.fit(start)
    assert other.saved("feedback") != node.saved("feedback"), "clients search on their own"


@pytest.mark.slow
def test_feedback_and_answers_survive_from_message_to_message(
    node: Node, start: NDArray[np.int64]
) -> None:
    node.fit(start, 1)
    first, answers = node.saved("feedback"), node.saved("answers")
    assert len(first) > 0
    assert len(answers) > 0
    node.fit(start, 2)
    second = node.saved("feedback")
    assert second[: len(first)] == first
    assert len(second) > len(first)
    assert answers.items() <= node.saved("answers").items()


@pytest.mark.slow
def test_a_search_does_not_pay_for_answers_it_has(node: Node, start: NDArray[np.int64]) -> None:
    """The first measurement of the second search is known from the first."""
    _, _, metrics = node.fit(start)
    answers = len(node.saved("answers"))
    assert metrics[QUERIES_KEY] == answers
    _, _, metrics = node.fit(start, 2)
    assert len(node.saved("answers")) == answers + metrics[QUERIES_KEY]


def test_evaluate_counts_right_answers(
    node: Node,
    start: NDArray[np.int64],
    vocabulary: Vocabulary,
    language_model: LocalLanguageModel,
    task: Task,
) -> None:
    other = np.array(vocabulary.encode("Is it good?"))
    loss, num_examples, metrics = node.evaluate(start, other, server_round=3)
    everything = [*node.data.train, *node.data.validation]
    evaluator = Evaluator(language_model, task, QueryBudget(100))
    for index, prompt in enumerate((START, "Is it good?")):
        assert metrics[correct_key(index)] == evaluator.correct(prompt, everything).sum()
    accuracy = evaluator.correct(START, everything).mean()
    assert loss == pytest.approx(1 - accuracy)
    assert metrics["accuracy"] == pytest.approx(accuracy)
    assert num_examples == metrics[SCORED_KEY] == len(everything)
    assert (metrics[CLIENT_KEY], metrics[ROUND_KEY]) == ("0", 3)
    read_scores(metrics, [tuple(start.tolist()), tuple(other.tolist())])


def test_evaluate_asks_nothing_twice(
    node: Node, start: NDArray[np.int64], vocabulary: Vocabulary
) -> None:
    size = len(node.data.train) + len(node.data.validation)
    _, _, first = node.evaluate(start, start)
    assert first[QUERIES_KEY] == size
    other = np.array(vocabulary.encode("Is it good?"))
    _, _, second = node.evaluate(start, other, server_round=2)
    assert second[QUERIES_KEY] == size
    loss, _, third = node.evaluate(other, start, server_round=3)
    assert third[QUERIES_KEY] == 0
    assert third[correct_key(1)] == first[correct_key(0)]
    assert third[correct_key(0)] == second[correct_key(1)]
    assert loss == pytest.approx(1 - third["accuracy"])


def test_evaluate_takes_as_many_examples_as_are_wanted(
    node: Node, start: NDArray[np.int64], language_model: LocalLanguageModel, task: Task
) -> None:
    """Those of the search first, whose answers may be known; of every label in proportion."""
    evaluator = Evaluator(language_model, task, QueryBudget(100))
    right = evaluator.correct(START, node.data.train).sum()
    client = node.client()
    everything = client._to_score({ROUND_KEY: 1, RACE_EXAMPLES_KEY: 1000})
    assert set(everything) == {*node.data.train, *node.data.validation}
    _, number, metrics = node.evaluate(start, **{RACE_EXAMPLES_KEY: 6})
    assert number == metrics[SCORED_KEY] == metrics[QUERIES_KEY] == 6
    assert metrics[correct_key(0)] == right


@pytest.mark.parametrize(
    ("num_prompts", "wanted", "reason"),
    [
        (6, 4, "race-candidates = 4: at most 5 prompts are compared, 6 were sent"),
        (2, 0, "race-examples = 0: at least 1 is needed"),
        (2, -3, "race-examples = -3: at least 1 is needed"),
    ],
)
def test_a_server_cannot_have_more_compared_than_the_settings_say(
    num_prompts: int, wanted: int, reason: str, node: Node, start: NDArray[np.int64]
) -> None:
    _, number, metrics = node.evaluate(*[start] * num_prompts, **{RACE_EXAMPLES_KEY: wanted})
    assert (number, metrics[QUERIES_KEY], metrics[FAILURE_KEY]) == (0, 0, reason)


def test_evaluate_keeps_the_feedback(node: Node, start: NDArray[np.int64]) -> None:
    trial = {
        "position": 0,
        "before": [1],
        "after": [2],
        "operator": "replace",
        "gain": 0.5,
        "num_examples": 8,
        "accuracy": 0.5,
        "accepted": True,
    }
    node.evaluate(start)
    record = node.state.config_records[STATE_KEY]
    record["feedback"] = json.dumps([trial])
    node.evaluate(start)
    assert node.saved("feedback") == [trial]


def test_the_state_of_another_version_is_ignored(node: Node, start: NDArray[np.int64]) -> None:
    node.state[STATE_KEY] = ConfigRecord({"version": 99, "feedback": "?", "answers": "?"})
    _, _, metrics = node.evaluate(start)
    assert metrics[QUERIES_KEY] == len(node.data.train) + len(node.data.validation)
    assert node.saved("feedback") == []
    assert node.state.config_records[STATE_KEY]["version"] == STATE_VERSION


def test_a_state_without_a_version_is_ignored(node: Node, start: NDArray[np.int64]) -> None:
    node.state[STATE_KEY] = ConfigRecord({"feedback": "?", "answers": "?"})
    node.evaluate(start)
    assert node.saved("feedback") == []


def test_the_state_holds_no_private_text(node: Node, start: NDArray[np.int64]) -> None:
    node.evaluate(start)
    text = str(dict(node.state.config_records[STATE_KEY]))
    words = {w for e in node.data.validation for w in e.input.split() if len(w) > 5}
    assert words
    assert not [word for word in words if word in text]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (np.array([1.5]), "float64"),
        (np.array([], dtype=np.int64), "1 to 8 tokens, got 0"),
        (np.arange(9), "1 to 8 tokens, got 9"),
        (np.array([10**6]), "token ids must lie in"),
    ],
)
def test_a_malformed_prompt_from_the_server_costs_nothing(
    prompt: NDArray[Any], message: str, node: Node
) -> None:
    with pytest.raises(UploadError, match=message):
        node.fit(prompt)
    with pytest.raises(UploadError, match=message):
        node.evaluate(prompt)
    assert STATE_KEY not in node.state


def test_a_simulated_node_gets_its_own_part(language_model: LocalLanguageModel) -> None:
    from flwr.common import Context

    run_config: dict[str, Any] = {
        "k-shot": 2,
        "public-per-class": 1,
        "test-size": 4,
        "dtype": "float32",
    }
    clients = []
    for partition in (0, 1):
        context = Context(
            run_id=1,
            node_id=partition,
            node_config={"partition-id": partition, "num-partitions": 2},
            state=RecordDict(),
            run_config=run_config,
        )
        client: Any = client_fn(context)
        clients.append(client.numpy_client)
    first, second = clients
    assert (first._name, second._name) == ("0", "1")
    assert first._public == second._public
    texts = [{e.input for e in (*c._data.train, *c._data.validation)} for c in clients]
    assert not texts[0] & texts[1]
    assert len(texts[0]) == 2 * 2 * 2


class Searches:
    """A double of the search: what each one found, and what it drew first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found = SearchResult((5, 6), 0.9, 0.5, (), 4)
        self.drawn: list[float] = []

    def __call__(self, parts: SearchParts) -> Any:
        self.drawn.append(parts.rng.random())
        return SimpleNamespace(run=lambda *_: self.found)


@pytest.fixture
def searches(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, language_model: LocalLanguageModel
) -> Searches:
    (tmp_path / "models").symlink_to(cache_folder() / "models")
    monkeypatch.setenv("FEDDTPT_CACHE", str(tmp_path))
    double = Searches(tmp_path)
    monkeypatch.setattr("feddtpt_flwr.client_app.build_search", double)
    return double


@pytest.fixture
def fit(
    searches: Searches,
    data: ClientData,
    public: tuple[Example, ...],
    start: NDArray[np.int64],
) -> Callable[..., dict[str, Scalar]]:
    def fit(server_round: int = 1, **settings: Any) -> dict[str, Scalar]:
        config = CONFIG.model_copy(update=settings)
        client = PromptTuningClient("0", data, public, config, RecordDict())
        told: dict[str, Scalar] = {ROUND_KEY: server_round, COMPARED_KEY: True}
        told |= {RUN_KEY: "run", VERSION_KEY: __version__}
        return client.fit([start], told)[2]

    return fit


Fit = Callable[..., dict[str, Scalar]]


def test_a_limit_that_did_not_end_a_search_is_not_told(fit: Fit) -> None:
    assert LIMIT_KEY not in fit(queries_per_run=1000, queries_per_round=2000)


def test_each_round_draws_anew(fit: Fit, searches: Searches) -> None:
    for number in (1, 2):
        fit(number)
    assert len(set(searches.drawn)) == 2


def test_a_search_that_failed_is_made_again(fit: Fit, searches: Searches) -> None:
    done, failed = searches.found, ModelUnavailableError("down")
    searches.found = replace(done, failure=failed)
    for _ in range(2):
        fit()
    assert len(searches.drawn) == 2
    searches.found = done
    for _ in range(2):
        fit()
    assert len(searches.drawn) == 3, "and one that did not is not"


def test_without_a_cache_nothing_is_on_disk(fit: Fit, searches: Searches) -> None:
    fit(cache_size_mib=0)
    assert not (searches.folder / "clients").exists()
    fit()
    assert (searches.folder / "clients").exists()


def test_a_hunch_promises_no_more_than_all_answers(fit: Fit, searches: Searches) -> None:
    trial = Trial(0, (4,), (7,), "replace", 0.25, 4, 0.75, accepted=False)
    hunch = Hunch((7,), 0.1, 0.75, trial)
    searches.found = SearchResult((5, 6), 0.5, 0.5, (), 4, hunch=hunch)
    assert fit()["accuracy"] == 1.0

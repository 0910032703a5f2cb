import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from flwr.client import NumPyClient
from flwr.common import Context, NDArrays, RecordDict, Scalar
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from numpy.typing import NDArray

from feddtpt_flwr.assets import cache_folder
from feddtpt_flwr.client_app import PromptTuningClient, client_fn, plain_client
from feddtpt_flwr.client_limits import Sizes, too_few_queries
from feddtpt_flwr.client_state import RUN_KEY, VERSION_KEY
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import ClientData, DataError, Example, Task
from feddtpt_flwr.discretion import discreet
from feddtpt_flwr.evaluation import Evaluator
from feddtpt_flwr.language_model.local import LocalLanguageModel
from feddtpt_flwr.node import Node
from feddtpt_flwr.privacy.clients import (
    OWN_ACCURACY_KEY,
    OWN_PROMPT_KEY,
    SYNTHETIC_KEY,
    PublicTokensClient,
    protected,
)
from feddtpt_flwr.privacy.ledger import LIMIT_REACHED, SPENT, LedgerFile
from feddtpt_flwr.privacy.own_prompts import OwnPrompt, kept, search_name
from feddtpt_flwr.privacy.public_tokens import public_texts, public_tokens
from feddtpt_flwr.vocabulary import Vocabulary
from strategies.wire import (
    CLIENT_KEY,
    COMPARED_KEY,
    FAILURE_KEY,
    GAIN_KEY,
    MODEL_KEY,
    QUERIES_KEY,
    RACE_EXAMPLES_KEY,
    ROUND_KEY,
    SCORED_KEY,
    VOCABULARY_KEY,
    correct_key,
    read_scores,
)

START = "Movie review."
SETTINGS = {
    "num-server-rounds": 2,
    "seed-prompt": START,
    "max-prompt-tokens": 8,
    "k-shot": 1,
    "dtype": "float32",
    "device": "cpu",
}


@pytest.fixture
def start(vocabulary: Vocabulary) -> NDArray[np.int64]:
    return np.array(vocabulary.encode(START), dtype=np.int64)


def node(reviews: tuple[Example, ...], privacy: str, queries: int) -> Node:
    config = RunConfig.from_run_config(
        SETTINGS | {"privacy": privacy, "queries-per-round": queries}
    )
    data = ClientData(train=reviews[:4], validation=reviews[4:8])
    return Node("north", config, data, reviews[8:10])


def moved(state: RecordDict) -> RecordDict:
    """Return the state as it travels between processes in a deployment."""
    return recorddict_from_proto(recorddict_to_proto(state))


def private_words(node: Node) -> set[str]:
    examples = [*node.data.train, *node.data.validation]
    words = {word for e in examples for word in e.input.split() if len(word) > 5}
    return words - {"Review:", "Sentiment:"}


@pytest.mark.slow
def test_public_tokens_go_out(
    language_model: LocalLanguageModel,
    vocabulary: Vocabulary,
    task: Task,
    short_reviews: tuple[Example, ...],
    start: NDArray[np.int64],
) -> None:
    here = node(short_reviews, "public-tokens", 40)
    client = protected(here, RecordDict(), plain_client)
    (prompt,), _, metrics = client.fit([start], {ROUND_KEY: 1})
    public = public_tokens(vocabulary, public_texts(task, START, here.public))
    assert public[prompt].all()
    assert int(metrics["trials"]) > 0
    _, _, scored = client.evaluate([start], {ROUND_KEY: 1})
    assert correct_key(0) in scored


class Uploader(NumPyClient):
    """A double of a client: it uploads what it is given."""

    def __init__(self, *tokens: int) -> None:
        self.tokens = tokens

    def fit(self, parameters: NDArrays, config: Any) -> tuple[NDArrays, int, dict[str, Scalar]]:
        changed = json.dumps([{"after": "secret"}])
        told: dict[str, Scalar] = {"accepted": changed, "hunch": changed, "new": "secret"}
        return [np.array(self.tokens)], 6, {GAIN_KEY: 0.5, CLIENT_KEY: "n", **told}


def test_the_gate_lets_no_other_token_out(
    vocabulary: Vocabulary, short_reviews: tuple[Example, ...], start: NDArray[np.int64]
) -> None:
    rare = int(np.flatnonzero(vocabulary.proposable())[-1])
    here = node(short_reviews, "public-tokens", 40)
    (prompt,), _, metrics = PublicTokensClient(here, Uploader(rare)).fit([start], {})
    assert prompt.tolist() == start.tolist()
    assert metrics == {GAIN_KEY: 0.0, "accepted": "[]", CLIENT_KEY: "n"}
    allowed = PublicTokensClient(here, Uploader(*start.tolist()))
    assert allowed.fit([start], {})[2][GAIN_KEY] == 0.5


@pytest.mark.slow
def test_what_is_uploaded_was_tuned_on_synthetic_examples(
    language_model: LocalLanguageModel,
    vocabulary: Vocabulary,
    short_reviews: tuple[Example, ...],
    start: NDArray[np.int64],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = cache_folder() / "models"
    (tmp_path / "models").symlink_to(weights)
    monkeypatch.setenv("FEDDTPT_CACHE", str(tmp_path))
    here = node(short_reviews, "synthetic", 40)
    given: list[tuple[str, ClientData, int]] = []

    def watched(inner: Node, state: RecordDict) -> PromptTuningClient:
        given.append((inner.name, inner.data, inner.config.queries_per_round))
        return plain_client(inner, state)

    compared: dict[str, bool] = {}

    def fit(client: PromptTuningClient, prompts: NDArrays, config: dict[str, Scalar]) -> Any:
        compared[client._name] = COMPARED_KEY in config
        return search(client, prompts, config)

    limited: list[bool] = []

    def evaluate(client: PromptTuningClient, prompts: NDArrays, config: dict[str, Scalar]) -> Any:
        limited.append(RACE_EXAMPLES_KEY in config)
        return scoring(client, prompts, config)

    search, scoring = PromptTuningClient.fit, PromptTuningClient.evaluate
    monkeypatch.setattr(PromptTuningClient, "fit", fit)
    monkeypatch.setattr(PromptTuningClient, "evaluate", evaluate)
    state = RecordDict()
    (prompt,), _, metrics = protected(here, state, watched).fit(
        [start], {ROUND_KEY: 1, RUN_KEY: "a run", COMPARED_KEY: True, RACE_EXAMPLES_KEY: 1}
    )
    assert limited == [False], "what stays is validated on all validation examples"
    assert compared == {"north": True, search_name("north"): False}, "what stays has to convince"
    assert metrics[CLIENT_KEY] == "north"
    assert 0 < int(metrics[QUERIES_KEY]) <= 40
    assert 0 <= float(metrics[OWN_ACCURACY_KEY]) <= 1

    synthetic = json.loads(str(state.config_records[SYNTHETIC_KEY]["examples"]))
    assert 1 <= len(synthetic) <= 2
    uploading = next(data for name, data, _ in given if data.train != here.data.train)
    assert [[e.input, e.label] for e in uploading.train] == synthetic
    names = {data.train: name for name, data, _ in given}
    assert names[here.data.train] == search_name("north"), "apart from the search that uploads"

    own = str(state.config_records[OWN_PROMPT_KEY]["prompt"])
    accuracy = float(metrics[OWN_ACCURACY_KEY])
    assert kept(tmp_path) == [OwnPrompt("a run", "north", 1, own, accuracy)]
    told = json.dumps(metrics)
    assert own == START or own == vocabulary.decode(prompt.tolist()) or own not in told
    assert not [word for word in private_words(here) if word in json.dumps(synthetic)]

    state = moved(state)
    again = protected(here, state, watched)
    _, _, second = again.fit([start], {ROUND_KEY: 2})
    assert json.loads(str(state.config_records[SYNTHETIC_KEY]["examples"])) == synthetic
    assert int(second[QUERIES_KEY]) <= 40
    assert again.evaluate([start], {ROUND_KEY: 2})[2][SCORED_KEY] == 8


@pytest.fixture
def dp_node(short_reviews: tuple[Example, ...]) -> Node:
    pytest.importorskip("opendp")
    return node(short_reviews, "exponential", 24)


@pytest.mark.slow
def test_a_drawn_choice_and_noised_counts_are_all_that_goes_out(
    language_model: LocalLanguageModel,
    vocabulary: Vocabulary,
    dp_node: Node,
    start: NDArray[np.int64],
) -> None:
    state = RecordDict()
    (prompt,), num_examples, told = protected(dp_node, state, plain_client).fit(
        [start], {ROUND_KEY: 1}
    )
    always = {CLIENT_KEY, ROUND_KEY, MODEL_KEY, QUERIES_KEY}
    assert told.keys() == {*always, VOCABULARY_KEY, "candidates"}
    assert num_examples == 4
    assert 1 <= len(prompt) <= 8
    assert int(told[QUERIES_KEY]) <= 24

    other = replace(dp_node, data=replace(dp_node.data, train=dp_node.data.validation))
    _, _, same = protected(other, RecordDict(), plain_client).fit([start], {ROUND_KEY: 1})
    assert same == told, "all but the choice is the same for any other examples"

    prompts = [start, prompt]
    loss, counted, scored = protected(dp_node, state, plain_client).evaluate(
        prompts, {ROUND_KEY: 1}
    )
    assert scored.keys() == {
        *always,
        SCORED_KEY,
        "accuracy",
        correct_key(0),
        correct_key(1),
    }
    assert (counted, scored[SCORED_KEY], scored[QUERIES_KEY]) == (8, 8, 16)
    assert scored["accuracy"] == int(scored[correct_key(0)]) / 8
    assert loss == pytest.approx(1 - float(scored["accuracy"]))
    read_scores(scored, [tuple(p.tolist()) for p in prompts])


class Counter(NumPyClient):
    """A double of a client: it counts as it is told."""

    def __init__(self, metrics: Mapping[str, Scalar]) -> None:
        self.metrics = dict(metrics)

    def evaluate(self, *_: Any) -> tuple[float, int, dict[str, Scalar]]:
        return 0.5, 4, self.metrics


def test_the_mechanisms_decide_with_their_shares_of_epsilon(
    dp_node: Node, start: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[tuple[Any, ...]] = []

    def choose(counts: list[int], epsilon: float) -> int:
        used.append((counts, epsilon))
        return 1

    def noised(counts: list[int], total: int, epsilon: float) -> list[int]:
        used.append((counts, total, epsilon))
        return [7]

    class Listening(Counter):
        """A double of a client that keeps what it was told."""

        def evaluate(self, _: Any, config: Any) -> tuple[float, int, dict[str, Scalar]]:
            heard.append(config)
            return super().evaluate()

    heard: list[dict[str, Scalar]] = []
    candidates, correct = [(5,), (6,)], np.array([[True] * 4, [False] * 4])
    module = "feddtpt_flwr.privacy.exponential"
    monkeypatch.setattr(f"{module}.public_candidates", lambda *_, **__: candidates)
    monkeypatch.setattr(Evaluator, "correct_all", lambda *_: correct)
    monkeypatch.setattr(f"{module}.choose", choose)
    monkeypatch.setattr(f"{module}.noised", noised)
    exact = Listening({correct_key(0): 4, SCORED_KEY: 8})
    client = protected(dp_node, RecordDict(), lambda *_: exact)
    (prompt,), _, told = client.fit([start], {ROUND_KEY: 1})
    assert prompt.tolist() == [6], "the second, as was drawn, though the first has more answers"
    assert told[QUERIES_KEY] == 2 * 4, "as planned: the true number would tell of the examples"
    _, _, told = client.evaluate([start], {ROUND_KEY: 1, RACE_EXAMPLES_KEY: 1})
    assert told[correct_key(0)] == 7
    assert used == [([4, 0], 0.5), ([4], 8, 0.5)]
    assert RACE_EXAMPLES_KEY not in heard[0], "all examples are counted, whatever the server wants"


def test_a_second_answer_is_refused(dp_node: Node, start: NDArray[np.int64]) -> None:
    exact = Counter({correct_key(0): 4, SCORED_KEY: 8, "unparsed": 3, "cost": 1.5})
    state = RecordDict()
    _, counted, told = protected(dp_node, state, lambda *_: exact).evaluate([start], {ROUND_KEY: 1})
    assert counted == 4
    assert not {"unparsed", "cost"} & told.keys()
    again = protected(dp_node, moved(state), lambda *_: exact)
    for server_round in (1, 3, 0):
        _, counted, told = again.evaluate([start], {ROUND_KEY: server_round})
        assert (counted, told[FAILURE_KEY]) == (0, "the round's epsilon is spent")
        assert correct_key(0) not in told
    assert again.evaluate([start], {ROUND_KEY: 2})[1] == 4


def test_a_failure_is_told_without_its_text(dp_node: Node, start: NDArray[np.int64]) -> None:
    failing = Counter({FAILURE_KEY: "too long: 'my private text'", QUERIES_KEY: 3})
    state = RecordDict()
    _, _, told = protected(dp_node, state, lambda *_: failing).evaluate([start], {ROUND_KEY: 1})
    assert told == {
        CLIENT_KEY: "north",
        ROUND_KEY: 1,
        MODEL_KEY: "embedded",
        QUERIES_KEY: 0,
        FAILURE_KEY: "the language model did not answer",
    }
    again = protected(dp_node, moved(state), lambda *_: Counter({correct_key(0): 4, SCORED_KEY: 8}))
    _, counted, told = again.evaluate([start], {ROUND_KEY: 1})
    assert counted == 0, "that it failed may have told something of an example"
    assert told[FAILURE_KEY] == "the round's epsilon is spent"


def test_an_error_that_is_no_models_is_told_without_its_text(
    dp_node: Node, start: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> NoReturn:
        raise IndexError("'my private text' is too long")

    class Failing(Counter):
        def evaluate(self, *_: Any) -> NoReturn:
            fail()

    state = RecordDict()
    client = protected(dp_node, state, lambda *_: Failing({}))
    _, counted, told = client.evaluate([start], {ROUND_KEY: 1})
    assert (counted, told[FAILURE_KEY]) == (0, "the language model did not answer")
    monkeypatch.setattr(
        "feddtpt_flwr.privacy.exponential.public_candidates", lambda *_, **__: [(5,)]
    )
    monkeypatch.setattr("feddtpt_flwr.evaluation.Evaluator.correct_all", fail)
    arrays, counted, told = client.fit([start], {ROUND_KEY: 1})
    assert (arrays, counted) == ([], 0)
    assert told[FAILURE_KEY] == "the language model did not answer"
    _, _, told = client.fit([start], {ROUND_KEY: 1})
    assert told[FAILURE_KEY] == "the round's epsilon is spent"


def test_a_supernode_that_is_started_anew_knows_what_it_has_answered(
    dp_node: Node, start: NDArray[np.int64], tmp_path: Path
) -> None:
    exact = Counter({correct_key(0): 4, SCORED_KEY: 8})

    def answer(file: LedgerFile, server_round: int) -> object:
        client = protected(replace(dp_node, ledger=file), RecordDict(), lambda *_: exact)
        return client.evaluate([start], {ROUND_KEY: server_round})[2].get(FAILURE_KEY)

    file = LedgerFile(tmp_path / "ledger.jsonl", limit=1.0, run="7")
    assert answer(file, 1) is None
    assert answer(file, 1) == SPENT
    assert answer(file, 2) is None, "half of two epsilons of 1"
    assert answer(replace(file, run="8"), 1) == LIMIT_REACHED
    nowhere = LedgerFile(file.path / "ledger.jsonl")
    assert answer(nowhere, 1) == "this node's epsilon-ledger cannot be used; its own log says why"


def test_nothing_is_asked_where_no_epsilon_is_left(
    dp_node: Node, start: NDArray[np.int64], tmp_path: Path
) -> None:
    file = LedgerFile(tmp_path / "ledger.jsonl", limit=0.4)
    client = protected(replace(dp_node, ledger=file), RecordDict(), plain_client)
    arrays, counted, told = client.fit([start], {ROUND_KEY: 1})
    assert (arrays, counted, told[QUERIES_KEY], told[FAILURE_KEY]) == ([], 0, 0, LIMIT_REACHED)


def test_without_a_guard_nobody_counts(
    short_reviews: tuple[Example, ...], start: NDArray[np.int64]
) -> None:
    pytest.importorskip("opendp")
    here = node(short_reviews, "exponential", 40)
    config = here.config.model_copy(update={"guard": False})
    client = protected(replace(here, config=config), RecordDict(), lambda *_: Counter({}))
    _, counted, told = client.evaluate([start], {ROUND_KEY: 1})
    assert (counted, told[FAILURE_KEY]) == (0, "the round's epsilon is spent")


@pytest.mark.parametrize("privacy", ["none", "exponential"])
def test_what_is_in_a_file_is_not_told_under_differential_privacy(
    privacy: str, tmp_path: Path
) -> None:
    pytest.importorskip("opendp")
    own = tmp_path / "own.csv"
    rows = ["text,label", *(f"text {i},0" for i in range(9)), "a text,1"]
    own.write_text("\n".join(rows), encoding="utf-8")
    context = Context(
        run_id=1,
        node_id=1,
        node_config={"data-path": str(own)},
        state=RecordDict(),
        run_config={"clients": "own-data", "privacy": privacy, "k-shot": 4},
    )
    with pytest.raises((DataError, RuntimeError)) as raised, discreet(context):
        client_fn(context)
    told = str(raised.value)
    assert ("of each class are needed" in told) == (privacy == "none")
    assert ("its own log says why" in told) == (privacy == "exponential")


@pytest.mark.parametrize("privacy", ["synthetic", "exponential"])
def test_a_node_that_cannot_take_part_asks_and_spends_nothing(
    privacy: str, short_reviews: tuple[Example, ...], start: NDArray[np.int64]
) -> None:
    pytest.importorskip("opendp")
    here, state = node(short_reviews, privacy, 40), RecordDict()
    client = protected(here, state, plain_client)
    for told in ({VOCABULARY_KEY: "another"}, {VERSION_KEY: "0.0.1"}):
        arrays, counted, metrics = client.fit([start], {ROUND_KEY: 1, **told})
        assert (arrays, counted, metrics[QUERIES_KEY]) == ([], 0, 0)
        assert "all nodes need the same" in str(
            metrics[FAILURE_KEY]
        ) or "need the same version" in (str(metrics[FAILURE_KEY]))
        _, counted, metrics = client.evaluate([start], {ROUND_KEY: 1, **told})
        assert (counted, metrics[QUERIES_KEY]) == (0, 0)
    assert not state, "neither examples are written nor epsilon is spent"


@pytest.mark.parametrize(
    ("privacy", "queries", "least"),
    [("none", 5, 12), ("public-tokens", 5, 12), ("synthetic", 39, 40), ("exponential", 15, 16)],
)
def test_too_few_queries_are_refused_before_one_is_asked(
    privacy: str,
    queries: int,
    least: int,
    short_reviews: tuple[Example, ...],
    start: NDArray[np.int64],
) -> None:
    pytest.importorskip("opendp")
    here = node(short_reviews, privacy, queries)
    arrays, _, metrics = protected(here, RecordDict(), plain_client).fit([start], {ROUND_KEY: 1})
    assert arrays == []
    assert metrics[QUERIES_KEY] == 0
    told = f"queries-per-round = {queries}: {least} or more are needed for "
    assert str(metrics[FAILURE_KEY]).startswith(told)
    few, enough = (node(short_reviews, privacy, number) for number in (least - 1, least))
    assert too_few_queries(few.config, Sizes.of(few.data, few.public))
    assert not too_few_queries(enough.config, Sizes.of(enough.data, enough.public))


def test_without_privacy_the_client_is_the_plain_one(short_reviews: tuple[Example, ...]) -> None:
    here = node(short_reviews, "none", 40)
    assert isinstance(protected(here, RecordDict(), plain_client), PromptTuningClient)


@pytest.mark.parametrize("privacy", ["public-tokens", "synthetic", "exponential"])
def test_flower_finds_both_methods(privacy: str, short_reviews: tuple[Example, ...]) -> None:
    pytest.importorskip("opendp")
    client = protected(node(short_reviews, privacy, 40), RecordDict(), plain_client)
    for method in ("fit", "evaluate"):
        assert getattr(type(client), method) is not getattr(NumPyClient, method)

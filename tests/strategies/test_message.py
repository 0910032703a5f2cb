import re
from collections.abc import Sequence
from typing import Any, NoReturn, cast

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from strategies import METHODS, aggregate
from strategies.candidates import Tokens
from strategies.message import FedDTPT
from strategies.rounds import RoundResult
from strategies.wire import (
    ACCURACY_KEY,
    CLIENT_KEY,
    COMPARED_KEY,
    COST_KEY,
    FAILURE_KEY,
    GAIN_KEY,
    GENERATOR_COST_KEY,
    QUERIES_KEY,
    RACE_EXAMPLES_KEY,
    ROUND_KEY,
    SCORED_KEY,
    VOCABULARY_KEY,
    correct_key,
)

SEED = (1, 2, 3, 4, 5)
A, B, C = (9, 2, 3, 4, 5), (1, 2, 8, 4, 5), (1, 2, 3, 4, 7)

# Messages carry who sends them; Flower's processes set this when they start.
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
QUESTION = Message(RecordDict(), dst_node_id=7, message_type="train")

NUMBERS: dict[str, Any] = {
    "num-examples": 10,
    ACCURACY_KEY: 0.5,
    QUERIES_KEY: 8,
    "recall": [0.5, 0.25],
}
SPOILT: list[tuple[dict[str, Any], str]] = [
    ({"num-examples": -10}, "the number of examples must be a number above 0, got -10"),
    ({"num-examples": 0}, "the number of examples must be a number above 0, got 0"),
    ({"num-examples": float("nan")}, "the number of examples must be a number above 0, got nan"),
    ({"num-examples": float("inf")}, "the number of examples must be a number above 0, got inf"),
    ({"num-examples": [10]}, "the number of examples must be a number above 0, got [10]"),
    ({ACCURACY_KEY: [0.5, 0.6]}, "accuracy must be a number that is finite, got [0.5, 0.6]"),
    ({ACCURACY_KEY: float("inf")}, "accuracy must be a number that is finite, got inf"),
    ({QUERIES_KEY: float("nan")}, "queries must be a number that is finite, got nan"),
    ({"recall": float("nan")}, "recall must be a number that is finite, got nan"),
    ({"recall": [0.5, float("nan")]}, "recall must be a number that is finite, got [0.5, nan]"),
]


class Nodes:
    """A double of Flower's grid that only knows who is connected."""

    def __init__(self, number: int) -> None:
        self.number = number

    def get_node_ids(self) -> list[int]:
        return list(range(1, self.number + 1))


def nodes_connected(number: int) -> Grid:
    return cast(Grid, Nodes(number))


def embed(prompts: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float64]]:
    return [np.eye(20)[prompt] for prompt in prompts]


class Server:
    """A strategy in the middle of a round, as Flower's `Strategy.start` drives it."""

    def __init__(self, **options: Any) -> None:
        self.rounds: list[RoundResult] = []
        options = {
            "min_train_nodes": 1,
            "min_evaluate_nodes": 1,
            "min_available_nodes": 1,
        } | options
        self.strategy = FedDTPT(
            embed, 20, vocabulary="abc", max_tokens=6, on_round=self.rounds.append, **options
        )

    def train(self, *replies: Message, nodes: int | None = None) -> tuple[Tokens, ...]:
        grid = nodes_connected(nodes or len(replies))
        sent = self.strategy.configure_train(1, record(SEED), ConfigRecord(), grid)
        assert len(list(sent)) == (nodes or len(replies))
        arrays, self.metrics = self.strategy.aggregate_train(1, replies)
        assert arrays is not None
        return prompts_in(arrays)

    def score(self, *replies: Message, nodes: int | None = None) -> MetricRecord | None:
        candidates = [candidate.tokens for candidate in self.strategy._rounds.candidates]
        grid = nodes_connected(nodes or len(replies))
        sent = self.strategy.configure_evaluate(1, record(*candidates), ConfigRecord(), grid)
        assert len(list(sent)) == (nodes or len(replies))
        return self.strategy.aggregate_evaluate(1, replies)


def record(*prompts: Tokens) -> ArrayRecord:
    return ArrayRecord([np.array(tokens) for tokens in prompts])


def prompts_in(arrays: ArrayRecord) -> tuple[Tokens, ...]:
    return tuple(tuple(int(t) for t in array) for array in arrays.to_numpy_ndarrays())


def upload(
    tokens: Any, client: str = "0", gain: Any = 0.1, numbers: Any = None, **report: Any
) -> Message:
    arrays = tokens if isinstance(tokens, ArrayRecord) else ArrayRecord([np.array(tokens)])
    metrics = MetricRecord({"num-examples": 10, GAIN_KEY: gain} | (numbers or {}))
    known = {CLIENT_KEY: client, VOCABULARY_KEY: "abc"} | report
    content = RecordDict({"arrays": arrays, "metrics": metrics, "report": ConfigRecord(known)})
    return Message(content, reply_to=QUESTION)


def uploads(*tokens: Tokens) -> list[Message]:
    return [upload(t, client=str(i)) for i, t in enumerate(tokens)]


def scores(candidates: Sequence[Tokens], correct: dict[Tokens, Any], of: Any = 10) -> Message:
    numbers: dict[str, Any] = {
        correct_key(i): correct.get(tokens, 0) for i, tokens in enumerate(candidates)
    }
    metrics = MetricRecord({"num-examples": 10, SCORED_KEY: of} | numbers)
    return Message(RecordDict({"metrics": metrics}), reply_to=QUESTION)


def lost() -> Message:
    return Message(Error(code=1, reason="out of memory"), reply_to=QUESTION)


def raw(data: bytes, stype: str = "numpy.ndarray") -> ArrayRecord:
    return ArrayRecord({"0": Array("int64", (1,), stype, data)})


MALFORMED: dict[str, tuple[Message, str]] = {
    "dtype": (upload([1.5, 2.0]), "float64; mods that clip"),
    "bool": (upload([True, False]), "dtype bool"),
    "time": (upload(np.array([1, 2], dtype="timedelta64[s]")), "dtype timedelta64[s]"),
    "shape": (upload([[1, 2]]), "shape (1, 2)"),
    "empty": (upload(np.array([], dtype=np.int64)), "1 to 6 tokens, got 0"),
    "long": (upload([1, 2, 3, 4, 5, 6, 7]), "1 to 6 tokens, got 7"),
    "too large": (upload([1, 20]), "must lie in [0, 20), got 1 to 20"),
    "negative": (upload([-1]), "must lie in [0, 20)"),
    "garbage": (upload(raw(b"garbage")), "unreadable array"),
    "no array": (upload(ArrayRecord()), "one array, got 0"),
    "two arrays": (upload(record(A, B)), "one array, got 2"),
    "nan": (upload([float("nan")]), "float64"),
    "gain nan": (upload(A, gain=float("nan")), "gain must be a number"),
    "gain 2": (upload(A, gain=2.0), "gain must be a number"),
    "gain list": (upload(A, gain=[0.1]), "gain must be a number"),
    "vocabulary": (upload(A, vocabulary="xyz"), "'xyz' is not the server's 'abc'"),
    "nothing": (Message(RecordDict(), reply_to=QUESTION), "one array, got 0"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_upload_is_a_failure_and_the_round_goes_on(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad, reason = MALFORMED[name]
    server = Server()
    candidates = server.train(bad, upload(B, client="1"), lost(), nodes=4)
    assert set(candidates) == {SEED, B}
    assert re.search(
        f"round 1: the upload of client .* is rejected: .*{re.escape(reason)}", caplog.text
    )
    server.score(scores(candidates, {B: 9, SEED: 1}))
    assert server.strategy.prompt == B
    # One malformed, one error, one that never answered.
    assert server.rounds[0].failures == 3


@pytest.mark.parametrize("guard", [True, False])
@pytest.mark.parametrize("replies", [[], [bad for bad, _ in MALFORMED.values()], [lost()]])
def test_without_a_usable_upload_the_prompt_stays(guard: bool, replies: list[Message]) -> None:
    server = Server(guard=guard)
    assert server.train(*replies, nodes=20) == (SEED,)
    assert server.strategy.prompt == SEED
    (result,) = server.rounds
    counted = {"bytes": result.num_bytes, "failures": 20, "chosen": 0}
    assert server.metrics == counted, "there is nothing to compare in either case"
    assert (result.chosen.tokens, result.failures) == (SEED, 20)


def test_a_guarded_round() -> None:
    server = Server()
    candidates = server.train(*uploads(A, B))
    assert candidates[0] == SEED
    assert {A, B} < set(candidates)
    assert server.rounds == [], "nothing is settled before the clients have counted"
    assert server.metrics == {GAIN_KEY: pytest.approx(0.1)}
    metrics = server.score(scores(candidates, {A: 9, SEED: 5}), scores(candidates, {A: 6}))
    assert metrics is not None
    assert metrics["accuracy"] == pytest.approx(15 / 20)
    assert server.strategy.prompt == A
    assert prompts_in(server.strategy.arrays) == (A,)
    (result,) = server.rounds
    assert result.chosen.tokens == A
    assert [candidate.tokens for candidate in result.candidates] == list(candidates)
    assert (result.scores[A].correct, result.scores[A].total) == (15, 20)
    assert (result.failures, result.central) == (0, None)
    assert result.num_bytes > 4 * 8 * sum(map(len, candidates))


@pytest.mark.parametrize("aggregation", METHODS)
def test_without_a_guard_the_papers_aggregate_is_the_prompt(aggregation: Any) -> None:
    server = Server(guard=False, aggregation=aggregation)
    prompts: list[NDArray[np.int64]] = [np.array(p) for p in (A, B, C)]
    expected = aggregate(
        prompts, embed(prompts), method=aggregation, max_tokens=6, accuracies=[0.1, 0.3, 0.2]
    )
    settled = tuple(int(token) for token in expected.tokens)
    replies = [
        upload(tokens, str(k), gain, numbers={ACCURACY_KEY: accuracy})
        for k, (tokens, gain, accuracy) in enumerate([(A, 0.3, 0.1), (B, 0.1, 0.3), (C, 0.2, 0.2)])
    ]
    assert server.train(*replies) == (settled,)
    assert server.rounds[0].chosen.origin == "aggregate"
    metrics = server.score(scores([settled], {settled: 7}))
    assert metrics is not None
    assert metrics["accuracy"] == pytest.approx(0.7)
    assert len(server.rounds) == 1


@pytest.mark.parametrize(("count", "of"), [(11, 10), (-1, 10), (9.0, 10), ([9], 10), (9, 0)])
def test_liars_are_not_counted(count: Any, of: Any, caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    candidates = server.train(*uploads(A, B))
    honest = scores(candidates, {A: 6, B: 4, SEED: 5})
    server.score(scores(candidates, {B: count}, of=of), honest, lost(), nodes=4)
    assert server.strategy.prompt == A
    assert server.rounds[0].scores[B].total == 10
    assert server.rounds[0].failures == 3
    assert "the count of client 7 is rejected" in caplog.text


def test_one_node_cannot_outvote_the_others_by_a_number() -> None:
    server = Server()
    candidates = server.train(*uploads(A, B))
    honest = [scores(candidates, {A: 9, B: 3, SEED: 5})] * 2
    server.score(*honest, scores(candidates, {B: 10**9}, of=10**9))
    assert server.strategy.prompt == A


def test_the_count_does_not_wait_for_a_node_that_has_left() -> None:
    server = Server(min_available_nodes=3)
    candidates = server.train(*uploads(A, B), nodes=3)
    server.score(scores(candidates, {B: 9}), scores(candidates, {B: 9}))
    assert server.strategy.prompt == B


def test_a_round_that_waited_asks_those_who_came_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Growing(Nodes):
        """A double of a grid to which a node connects whenever it is looked at, up to four."""

        def get_node_ids(self) -> list[int]:
            there = super().get_node_ids()
            self.number = min(self.number + 1, 4)
            return there

    monkeypatch.setattr("flwr.serverapp.strategy.strategy_utils.sleep", lambda _: None)
    server = Server(min_available_nodes=4)
    grid = cast(Grid, Growing(1))
    assert len(list(server.strategy.configure_train(1, record(SEED), ConfigRecord(), grid))) == 4


def test_a_node_that_leaves_while_nodes_are_drawn_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Shrinking(Nodes):
        """A double of a grid that a node leaves whenever it is looked at."""

        def get_node_ids(self) -> list[int]:
            there = super().get_node_ids()
            self.number -= 1
            return there

    def wait(_: float) -> NoReturn:
        raise AssertionError("it waits")

    monkeypatch.setattr("flwr.serverapp.strategy.strategy_utils.sleep", wait)
    server = Server()
    candidates = server.train(*uploads(A, B), nodes=5)
    grid = cast(Grid, Shrinking(5))
    sent = server.strategy.configure_evaluate(1, record(*candidates), ConfigRecord(), grid)
    assert len(list(sent)) == 5


@pytest.mark.parametrize("replies", [0, 1, 2])
def test_without_enough_counts_the_prompt_stays(replies: int) -> None:
    server = Server(min_evaluate_nodes=3)
    candidates = server.train(*uploads(A, B))
    metrics = server.score(*[scores(candidates, {A: 9})] * replies, nodes=3)
    assert metrics is not None
    assert ("accuracy" in metrics) == (replies > 0)
    assert (metrics["failures"], metrics["chosen"]) == (3 - replies, 0)
    assert server.strategy.prompt == SEED
    assert server.rounds[0].failures == 3 - replies


def test_fewer_usable_uploads_than_the_minimum_keep_the_prompt() -> None:
    server = Server(min_train_nodes=3)
    assert server.train(*uploads(A, B), MALFORMED["dtype"][0]) == (SEED,)
    assert server.rounds[0].failures == 1


def test_metrics_that_some_nodes_lack_cost_no_others(caplog: pytest.LogCaptureFixture) -> None:
    """As where one node asks a service and counts tokens, and one a model of its own."""
    service = {QUERIES_KEY: 12, COST_KEY: 0.5, "requests": 7}
    server = Server()
    candidates = server.train(
        upload(A, numbers={QUERIES_KEY: 30, "only\nhere": 1}), upload(B, numbers=service)
    )
    assert {A, B} < set(candidates)
    assert server.metrics == {QUERIES_KEY: 42, COST_KEY: 0.5, GAIN_KEY: pytest.approx(0.1)}
    assert "that not all nodes report alike are left out: only here, requests" in caplog.text


def test_replies_without_one_record_of_metrics_do_not_end_the_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server()
    candidates = server.train(*uploads(A, B))
    metrics = server.score(
        scores(candidates, {A: 9}),
        Message(
            RecordDict({"a": MetricRecord(), **scores(candidates, {A: 9}).content}),
            reply_to=QUESTION,
        ),
    )
    assert metrics is not None
    assert metrics["accuracy"] == pytest.approx(0.9)
    assert metrics[SCORED_KEY] == 10, "of the node whose metrics can be read"
    assert "the metrics of 1 of 2 nodes are left out: " in caplog.text


def test_a_record_of_another_kind_under_the_metrics_name_does_not_end_the_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each node's metrics are found under the name that it gave them, and by their kind."""
    odd = RecordDict(
        {
            "arrays": record(B),
            "metrics": ConfigRecord({"num-examples": 10, GAIN_KEY: 0.1, VOCABULARY_KEY: "abc"}),
            "y": MetricRecord({"z": 1}),
        }
    )
    server = Server()
    candidates = server.train(upload(A), Message(odd, reply_to=QUESTION))
    assert {A, B} < set(candidates)
    assert server.metrics == {GAIN_KEY: pytest.approx(0.1)}, "of the other node"
    told = caplog.text.replace("\n", " ")
    assert "left out: one MetricRecord with a number 'num-examples' is needed" in told


def test_what_failed_nodes_spent_is_counted() -> None:
    server = Server()
    spent = {QUERIES_KEY: 200, COST_KEY: 1.5, ACCURACY_KEY: 0.0}
    failed = RecordDict(
        {
            "metrics": MetricRecord({"num-examples": 0, **spent}),
            "config": ConfigRecord({FAILURE_KEY: "no answer", VOCABULARY_KEY: "abc"}),
        }
    )
    numbers = {QUERIES_KEY: 50, ACCURACY_KEY: 0.5}
    server.train(
        upload(A, numbers=numbers),
        upload(B, numbers=numbers),
        Message(failed, reply_to=QUESTION),
    )
    assert server.metrics == {
        GAIN_KEY: pytest.approx(0.1),
        ACCURACY_KEY: 0.5,
        QUERIES_KEY: 300,
        COST_KEY: 1.5,
    }
    assert server.strategy.prompt == SEED


@pytest.mark.parametrize(("bad", "reason"), SPOILT, ids=str)
def test_numbers_that_would_spoil_an_average_cost_their_reply_and_nothing_else(
    bad: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server()
    candidates = server.train(
        upload(A, "bad", numbers=NUMBERS | bad), upload(B, numbers=NUMBERS), nodes=2
    )
    assert candidates == (SEED, B)
    assert f"the upload of client bad is rejected: {reason}" in caplog.text
    averages = {ACCURACY_KEY: 0.5, QUERIES_KEY: 8, "recall": [0.5, 0.25]}
    assert server.metrics == {GAIN_KEY: 0.1, **averages}

    good, spoilt = scores(candidates, {B: 9}), scores(candidates, {SEED: 9})
    good.content.metric_records["metrics"].update(NUMBERS)
    spoilt.content.metric_records["metrics"].update(NUMBERS | bad)
    metrics = server.score(spoilt, good)
    assert f"the count of client 7 is rejected: {reason}" in caplog.text
    assert metrics is not None
    assert metrics[QUERIES_KEY] == 8
    assert metrics["recall"] == [0.5, 0.25]
    assert metrics[ACCURACY_KEY] == pytest.approx(0.9)
    assert server.strategy.prompt == B
    assert server.rounds[0].failures == 2


@pytest.mark.parametrize("guard", [True, False])
@pytest.mark.parametrize(("bad", "reason"), SPOILT, ids=str)
def test_if_all_numbers_are_spoilt_the_prompt_stays(
    bad: dict[str, Any], reason: str, guard: bool
) -> None:
    server = Server(guard=guard)
    assert server.train(*[upload(A, numbers=NUMBERS | bad)] * 2) == (SEED,)
    assert server.strategy.prompt == SEED
    assert server.rounds[0].failures == 2


@pytest.mark.parametrize("other", [0.5, [0.5], [0.5, 0.25, 0.1], []])
def test_lists_of_unequal_length_cost_no_other_metric(
    other: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """As where each node lists its own classes: nothing is wrong with the rest."""
    server = Server()
    candidates = server.train(
        upload(A, numbers=NUMBERS), upload(B, numbers=NUMBERS | {"recall": other})
    )
    assert {A, B} < set(candidates)
    assert server.metrics == {GAIN_KEY: 0.1, ACCURACY_KEY: 0.5, QUERIES_KEY: 16}
    assert "metrics that not all nodes report alike are left out: recall" in caplog.text


def test_what_nodes_count_is_added_up_and_the_rest_averaged() -> None:
    server = Server()
    candidates = server.train(
        upload(A, numbers={QUERIES_KEY: 30, COST_KEY: 0.5, GENERATOR_COST_KEY: 0.25}),
        upload(B, gain=0.3, numbers={QUERIES_KEY: 12, COST_KEY: 0.25, GENERATOR_COST_KEY: 1.0}),
    )
    assert server.metrics == {
        QUERIES_KEY: 42,
        COST_KEY: 0.75,
        GENERATOR_COST_KEY: 1.25,
        GAIN_KEY: pytest.approx(0.2),
    }
    metrics = server.score(scores(candidates, {A: 9, SEED: 5}), scores(candidates, {A: 6}))
    assert metrics is not None
    incumbent, chosen = metrics["candidate-0-accuracy"], candidates.index(A)
    assert incumbent == pytest.approx(5 / 20)
    assert metrics["chosen"] == chosen
    assert metrics[f"candidate-{chosen}-accuracy"] == metrics["accuracy"]


def test_metrics_functions_see_usable_replies() -> None:
    seen: list[tuple[int, str]] = []

    def collect(contents: list[RecordDict], key: str) -> MetricRecord:
        seen.append((len(contents), key))
        return MetricRecord({"clients": len(contents)})

    server = Server(
        train_metrics_aggr_fn=collect,
        evaluate_metrics_aggr_fn=collect,
        weighted_by_key="num-scored-too",
    )
    ours = {"num-scored-too": 3}
    candidates = server.train(upload(A, numbers=ours), upload(B, numbers=ours), MALFORMED["nan"][0])
    assert server.metrics == {"clients": 2}
    good = scores(candidates, {A: 9})
    good.content.metric_records["metrics"]["num-scored-too"] = 3
    metrics = server.score(good, scores(candidates, {A: 11}))
    assert metrics is not None
    assert metrics["clients"] == 1
    assert metrics["accuracy"] == pytest.approx(0.9)
    assert seen == [(2, "num-scored-too"), (1, "num-scored-too")]


def test_nodes_can_be_weighed_by_their_examples() -> None:
    server = Server(guard=False, aggregation="majority", client_weights="examples")
    good = [upload(p, numbers={"num-examples": n}) for p, n in ((A, 2), (C, 3), (B, 10**6))]
    assert server.train(*good, upload(A, numbers={"num-examples": 0.5}), nodes=4) == (
        (1, 2, 3, 4, 5),
    )
    assert server.rounds[0].failures == 1


def test_what_is_sent() -> None:
    server = Server(arrayrecord_key="prompt", configrecord_key="settings", fraction_train=0.5)
    config = ConfigRecord({"extra": 3})
    sent = list(server.strategy.configure_train(1, record(SEED), config, nodes_connected(6)))
    assert len(sent) == 3
    for message in sent:
        assert prompts_in(message.content.array_records["prompt"]) == (SEED,)
        assert message.content.config_records["settings"] == {
            "extra": 3,
            ROUND_KEY: 1,
            VOCABULARY_KEY: "abc",
            RACE_EXAMPLES_KEY: 43,  # of six nodes that compare
            COMPARED_KEY: True,
        }


def test_a_guard_without_evaluation_is_refused() -> None:
    with pytest.raises(ValueError, match="fraction_evaluate above 0"):
        Server(fraction_evaluate=0.0)
    Server(fraction_evaluate=0.0, guard=False)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (ArrayRecord(), "one array of token ids, got 0"),
        (record(A, B), "one array of token ids, got 2"),
        (ArrayRecord([np.array([0.5])]), "the initial prompt is malformed"),
        (record((20,)), r"must lie in \[0, 20\)"),
        (record((1,) * 7), "1 to 6 tokens, got 7"),
    ],
)
def test_a_bad_first_prompt_is_named_before_anything_is_sent(
    arrays: ArrayRecord, message: str
) -> None:
    grid = nodes_connected(2)
    with pytest.raises(ValueError, match=message):
        Server().strategy.start(grid, arrays)
    with pytest.raises(ValueError, match=message):
        Server().strategy.configure_train(1, arrays, ConfigRecord(), grid)


def test_summary_logs_the_settings(caplog: pytest.LogCaptureFixture) -> None:
    Server(
        aggregation="kmeans",
        race_candidates=7,
        min_samples=3,
        n_clusters=4,
        choose_for="worst",
        fluency_fn=lambda prompts: [0.0] * len(prompts),
    ).strategy.summary()
    Server().strategy.summary()
    for line in (
        "Aggregation: kmeans",
        "core point: 3",
        "core point: grows with the nodes",
        "besides the incumbent: 7",
        "Guard: True",
        "Client weights: equal",
        "Elbow of the neighbour distances: split",
        "Tokens in no cluster: drop",
        "Clusters of k-means: 4",
        "Clusters of k-means: as many as tokens",
        "Minds how prompts read: True",
        "Minds how prompts read: False",
        "Examples each is tried on: 256",
        "Chosen for: worst",
        "Chosen for: mean",
        "Longest prompt: 6 tokens",
        "Vocabulary: 20 tokens",
        "Fraction: train (1.00)",
        "ArrayRecord key: 'arrays'",
    ):
        assert line in caplog.text

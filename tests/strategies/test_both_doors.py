"""Whole runs through Flower's own loops, in this process, with both kinds of strategy.

The clients' objective is a stand-in for a language model: a prompt is right at every place where
it equals a hidden one. It shows what the rounds do, not what a search finds.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.client import Client, NumPyClient
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import (
    LocalDpMod,
    adaptiveclipping_mod,
    arrays_size_mod,
    fixedclipping_mod,
    message_size_mod,
)
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.server import ServerConfig
from flwr.server import strategy as legacy_strategies
from flwr.server.compat import start_grid
from flwr.server.strategy import DPFedAvgAdaptive, DPFedAvgFixed
from flwr.serverapp import Grid
from flwr.serverapp import strategy as message_strategies
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from strategies import Aggregate, aggregate, feddtpt, message, step
from strategies.candidates import Tokens
from strategies.rounds import RoundResult
from strategies.wire import (
    COMPARED_KEY,
    GAIN_KEY,
    RACE_EXAMPLES_KEY,
    ROUND_KEY,
    SCORED_KEY,
    correct_key,
)

SEED, HIDDEN = (1, 2, 3, 4, 5, 6), (11, 12, 13, 14, 15, 16)
VOCABULARY_SIZE = 20
DOORS = ("legacy", "message")
DOORS_OF_FLOWER = {"legacy": legacy_strategies, "message": message_strategies}

Answer = tuple[list[NDArray[Any]], dict[str, Any]]
both_doors = pytest.mark.parametrize("door", DOORS)


def embed(prompts: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float64]]:
    return [np.eye(VOCABULARY_SIZE)[prompt] for prompt in prompts]


def search(prompt: NDArray[Any], node: int, server_round: int) -> Answer:
    """Every client finds one token, by node and round another."""
    found = prompt.copy()
    place = (node + 2 * server_round) % len(HIDDEN)
    found[place] = HIDDEN[place]
    return [found], {GAIN_KEY: (found != prompt).sum() / 6 - node / 1000}


def count(prompts: Sequence[NDArray[Any]], node: int) -> dict[str, Any]:
    right = [
        int((prompt == np.array(HIDDEN)).sum()) if len(prompt) == 6 else 0 for prompt in prompts
    ]
    return {correct_key(i): number for i, number in enumerate(right)} | {SCORED_KEY: 6}


def legacy_app(node_search: Callable[..., Answer], mods: list[Any]) -> ClientApp:
    class Toy(NumPyClient):
        def __init__(self, node: int) -> None:
            self.node = node

        def fit(self, parameters: Any, config: Any) -> Any:
            arrays, metrics = node_search(parameters[0], self.node, config[ROUND_KEY])
            return arrays, 6, {key: float(value) for key, value in metrics.items()}

        def evaluate(self, parameters: Any, config: Any) -> Any:
            return 0.5, 6, count(parameters, self.node)

    def client_fn(context: Context) -> Client:
        return Toy(context.node_id).to_client()

    return ClientApp(client_fn, mods=mods)


def message_app(
    node_search: Callable[..., Answer],
    mods: list[Any],
    arrayrecord_key: str = "arrays",
    configrecord_key: str = "config",
) -> ClientApp:
    app = ClientApp(mods=mods)

    @app.train()
    def train(question: Message, context: Context) -> Message:
        (prompt,) = question.content.array_records[arrayrecord_key].to_numpy_ndarrays()
        server_round = question.content.config_records[configrecord_key][ROUND_KEY]
        arrays, metrics = node_search(prompt, context.node_id, server_round)
        numbers = MetricRecord({"num-examples": 6})
        numbers.update({key: float(value) for key, value in metrics.items()})
        content = RecordDict({arrayrecord_key: ArrayRecord(arrays), "metrics": numbers})
        return Message(content, reply_to=question)

    @app.evaluate()
    def evaluate(question: Message, context: Context) -> Message:
        prompts = question.content.array_records[arrayrecord_key].to_numpy_ndarrays()
        numbers = {"num-examples": 6} | count(prompts, context.node_id)
        return Message(RecordDict({"metrics": MetricRecord(numbers)}), reply_to=question)

    return app


class Federation(Grid):
    """Flower's grid in one process: every message goes through the ClientApp at once.

    Parameters
    ----------
    door
        "legacy" or "message".
    nodes
        Who is connected, by the number of search phases so far.
    """

    def __init__(
        self,
        door: str,
        nodes: Callable[[int], Sequence[int]],
        node_search: Callable[..., Answer] = search,
        mods: Sequence[Any] = (),
    ) -> None:
        self.door, self.nodes = door, nodes
        make = legacy_app if door == "legacy" else message_app
        self.app = make(node_search, list(mods))
        self.asked: dict[tuple[str, int], list[int]] = defaultdict(list)
        self.told: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
        self.states: dict[int, RecordDict] = {}
        # NumPy reads the headers of arrays with ast.literal_eval, which in threads of one process
        # fails now and then (CPython issue 106905). Real clients have processes of their own.
        self.one_at_a_time = Lock()
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

    def run_rounds(self, strategy: Any, num_rounds: int, evaluate: Any = None) -> Any:
        if self.door == "legacy":
            config = ServerConfig(num_rounds=num_rounds)
            return start_grid(grid=self, config=config, strategy=strategy)
        inner = getattr(strategy, "strategy", strategy)
        arrays = inner.arrays if inner.prompt else ArrayRecord([np.array(SEED)])
        return strategy.start(self, arrays, num_rounds=num_rounds, evaluate_fn=evaluate)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        # flwr.server sends one message at a time, each from a thread of its own.
        return [self._deliver(question) for question in messages]

    def _deliver(self, question: Message) -> Message:
        node = question.metadata.dst_node_id
        (config,) = question.content.config_records.values()
        server_round = cast(int, config[ROUND_KEY])
        self.asked[question.metadata.message_type, server_round].append(node)
        self.told[question.metadata.message_type, server_round].append(dict(config))
        context = Context(1, node, {}, self.states.setdefault(node, RecordDict()), {})
        # As it would come out of the other end of a connection.
        copy = recorddict_from_proto(recorddict_to_proto(question.content))
        received = Message(copy, dst_node_id=node, message_type=question.metadata.message_type)
        try:
            with self.one_at_a_time:
                reply = self.app(received, context)
        except Exception as error:
            reply = Message(Error(code=2, reason=repr(error)), reply_to=received)
        reply.metadata.__dict__["_src_node_id"] = node
        return reply

    def get_node_ids(self) -> list[int]:
        return list(self.nodes(sum(kind == "train" for kind, _ in self.asked)))

    @property
    def run(self) -> Any:
        return SimpleNamespace(run_id=1)

    def set_run(self, run: Any) -> None: ...

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Any) -> list[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Any) -> list[Message]:
        raise NotImplementedError


class Central:
    """Central evaluation for both doors, which writes down what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, Tokens]] = []

    def legacy(self, server_round: int, arrays: Any, _: Any) -> tuple[float, dict[str, Any]]:
        return 0.0, dict(self.message(server_round, ArrayRecord(arrays)))

    def message(self, server_round: int, record: ArrayRecord) -> MetricRecord:
        (array,) = record.to_numpy_ndarrays()
        self.asked.append((server_round, tuple(array.tolist())))
        return MetricRecord({"right": int((array == np.array(HIDDEN)).sum())})


def make(door: str, **options: Any) -> Any:
    """A strategy; options have the names of the message door."""
    common: dict[str, Any] = {
        "embed_fn": options.pop("embed_fn", embed),
        "vocabulary_size": VOCABULARY_SIZE,
        "max_tokens": 8,
    }
    if door == "message":
        return message.FedDTPT(**common, **options)
    names = {
        "fraction_train": "fraction_fit",
        "min_train_nodes": "min_fit_clients",
        "min_evaluate_nodes": "min_evaluate_clients",
        "min_available_nodes": "min_available_clients",
    }
    options = {names.get(name, name): value for name, value in options.items()}
    return feddtpt.FedDTPT(initial_prompt=np.array(SEED), **common, **options)


def four(_: int) -> range:
    return range(1, 5)


def right(prompt: Tokens) -> int:
    return sum(a == b for a, b in zip(prompt, HIDDEN, strict=True))


@both_doors
def test_edits_that_several_clients_found_are_compared_together(door: str) -> None:
    """Each finds two of three tokens, and each of the three is found by two clients or more."""

    def in_pairs(prompt: NDArray[Any], node: int, server_round: int) -> Answer:
        found = prompt.copy()
        for place in (2 * (node % 3), 2 * ((node + 1) % 3)):
            found[place] = HIDDEN[place]
        return [found], {GAIN_KEY: 0.1}

    rounds: list[RoundResult] = []
    strategy = make(door, on_round=rounds.append)
    Federation(door, four, in_pairs).run_rounds(strategy, 1)
    assert rounds[0].chosen.origin == "shared edits"
    assert right(strategy.prompt) == 3


@both_doors
def test_a_run_learns_and_evaluates_what_is_settled(door: str) -> None:
    central, rounds = Central(), cast(list[RoundResult], [])
    options: dict[str, Any] = {"on_round": rounds.append}
    if door == "legacy":
        options["evaluate_fn"] = central.legacy
    strategy = make(door, **options)
    outcome = Federation(door, four).run_rounds(strategy, 3, central.message)
    assert right(strategy.prompt) == 6
    settled = [(r.server_round, r.chosen.tokens) for r in rounds]
    assert central.asked == [(0, SEED), *settled], "once for each settled prompt, and nothing else"
    assert [r.central for r in rounds] == [{"right": right(r.chosen.tokens)} for r in rounds]
    assert [r.failures for r in rounds] == [0, 0, 0]
    assert strategy.prompt == rounds[-1].chosen.tokens
    if door == "message":
        (final,) = outcome.arrays.to_numpy_ndarrays()
        assert tuple(final.tolist()) == strategy.prompt
        assert outcome.evaluate_metrics_serverapp == {
            0: {"right": 0},
            **{r.server_round: {"right": right(r.chosen.tokens)} for r in rounds},
        }
    else:
        compared = [r.server_round for r in rounds if len(r.candidates) > 1]
        assert [number for number, _ in outcome.losses_distributed] == compared
        assert compared


def test_start_returns_what_was_settled() -> None:
    strategy = make("message")
    rounds: list[RoundResult] = []
    strategy = make("message", on_round=rounds.append)
    outcome = Federation("message", four).run_rounds(strategy, 1)
    assert len(rounds[0].candidates) > 1, "or Flower would hold the settled prompt anyway"
    (final,) = outcome.arrays.to_numpy_ndarrays()
    assert tuple(final.tolist()) == strategy.prompt


@both_doors
@pytest.mark.parametrize("guard", [True, False])
def test_flowers_own_records_hold_the_numbers_of_every_round(door: str, guard: bool) -> None:
    rounds: list[RoundResult] = []
    strategy = make(door, guard=guard, on_round=rounds.append)
    outcome = Federation(door, four).run_rounds(strategy, 3)
    for result in rounds:
        number = result.server_round
        compared = len(result.candidates) > 1  # where all agree, nobody is asked once more
        if door == "message":
            records = (
                outcome.evaluate_metrics_clientapp if compared else outcome.train_metrics_clientapp
            )
            metrics = records[number]
        else:
            kept = outcome.metrics_distributed if compared else outcome.metrics_distributed_fit
            metrics = {key: dict(values).get(number) for key, values in kept.items()}
        chosen = metrics["chosen"]
        assert (metrics["bytes"], metrics["failures"]) == (result.num_bytes, 0)
        assert result.candidates[chosen] == result.chosen
        accuracies = [metrics.get(f"candidate-{i}-accuracy") for i in range(len(result.candidates))]
        expected = [right(c.tokens) / 6 for c in result.candidates] if compared else [None]
        assert accuracies == pytest.approx(expected)
    assert len({len(result.candidates) > 1 for result in rounds}) == 1 + guard


def test_both_doors_find_the_same() -> None:
    results: list[list[RoundResult]] = []
    for door in DOORS:
        rounds: list[RoundResult] = []
        Federation(door, four).run_rounds(make(door, on_round=rounds.append), 3)
        results.append(rounds)
    legacy, messages = results
    for ours, theirs in zip(legacy, messages, strict=True):
        assert ours.chosen.tokens == theirs.chosen.tokens
        assert [c.tokens for c in ours.candidates] == [c.tokens for c in theirs.candidates]
        assert ours.scores == theirs.scores


@both_doors
@pytest.mark.parametrize(
    "options", [{"guard": True}, {"guard": False, "aggregation": "best"}], ids=["guard", "bare"]
)
def test_a_stopped_run_goes_on_as_if_it_had_not(door: str, options: dict[str, Any]) -> None:
    whole: list[RoundResult] = []
    strategy = make(door, on_round=whole.append, **options)
    Federation(door, four).run_rounds(strategy, 4)
    assert len({r.chosen.tokens for r in whole}) > 1, "rounds differ, or the test shows nothing"

    parts: list[RoundResult] = []
    first = make(door, on_round=parts.append, **options)
    Federation(door, four).run_rounds(first, 1)
    saved = json.dumps(first.state_dict())
    second = make(door, on_round=parts.append, **options)
    second.load_state_dict(json.loads(saved))
    Federation(door, four).run_rounds(second, 2)
    # And once more, with the strategy that is still there.
    Federation(door, four).run_rounds(second, 1)
    assert parts == whole
    assert second.state_dict() == strategy.state_dict()
    assert second.state_dict()["round"] == 4


def test_the_documents_code_goes_on_from_a_file(tmp_path: Path) -> None:
    document = Path(__file__).parents[2] / "docs/strategy.md"
    code = document.read_text(encoding="utf-8").split("# my_app/going_on.py\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    file = tmp_path / "state.json"
    for _ in range(3):
        names["start"](file, make("message"), Federation("message", four), np.array(SEED))
    whole = make("message")
    Federation("message", four).run_rounds(whole, 3)
    assert json.loads(file.read_text(encoding="utf-8")) == whole.state_dict()


@both_doors
def test_the_state_is_plain(door: str) -> None:
    state = make(door).state_dict()
    assert json.loads(json.dumps(state)) == state
    assert state.keys() == {"version", "round", "prompt", "vocabulary"}


@both_doors
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 2}, "state of version 2"),
        ({"vocabulary": "xyz"}, "state of vocabulary 'xyz', not ''"),
        ({"round": -1}, "round is a number from 0, got -1"),
        ({"round": None}, "round is a number from 0"),
        ({"prompt": []}, "malformed"),
        ({"prompt": [99]}, "malformed"),
        ({"prompt": "?"}, "malformed"),
        ({"prompt": None}, "malformed"),
    ],
)
def test_a_bad_state_is_named_and_changes_nothing(
    door: str, change: dict[str, Any], reason: str
) -> None:
    strategy = make(door)
    before = strategy.state_dict()
    good = {"version": 1, "round": 3, "prompt": [7, 8], "vocabulary": ""}
    with pytest.raises(ValueError, match=reason):
        strategy.load_state_dict(good | change)
    assert strategy.state_dict() == before
    strategy.load_state_dict(good)
    assert strategy.state_dict() == good


def test_a_restored_run_does_not_start_from_another_prompt() -> None:
    strategy = make("message")
    strategy.load_state_dict({"version": 1, "round": 3, "prompt": [7, 8], "vocabulary": ""})
    with pytest.raises(ValueError, match=r"round 3 ended with the prompt \[7, 8\]"):
        strategy.start(Federation("message", four), ArrayRecord([np.array(SEED)]))


@both_doors
@pytest.mark.parametrize(
    "options",
    [
        {"elbow_method": "lines"},
        {"noise": "keep"},
        {"aggregation": "kmeans", "n_clusters": 3},
        {"min_samples": 3},
        {"fluency_fn": lambda prompts: [0.0] * len(prompts)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_the_papers_step_is_set_up_by_the_strategys_options(
    door: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def watched(*prompts: Any, **told: Any) -> Aggregate:
        asked.append(told)
        return aggregate(*prompts, **told)

    monkeypatch.setattr(step, "aggregate", watched)
    defaults = {
        "method": "feddtpt",
        "elbow_method": "split",
        "noise": "drop",
        "n_clusters": None,
        "min_samples": None,
        "fluency_fn": None,
    }
    strategy = make(door, guard=False, **options)
    Federation(door, four).run_rounds(strategy, 1)
    expected = defaults | {{"aggregation": "method"}.get(k, k): v for k, v in options.items()}
    assert {key: asked[0][key] for key in defaults} == expected
    if options == {"noise": "keep"}:
        assert {11, 12, 13, 14, 15, 16} & set(strategy.prompt), "what one client found stays"
    if "n_clusters" in options:
        assert len(strategy.prompt) == 3


@both_doors
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("elbow_method", "knee", "unknown elbow_method 'knee'; allowed: split, lines, chord, gap"),
        ("noise", "some", "unknown noise 'some'; allowed: drop, keep"),
        ("n_clusters", 0, "n_clusters must be None or at least 1, got 0"),
    ],
)
def test_a_bad_option_of_the_papers_step_is_named(
    door: str, option: str, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(door, **{option: value})


@both_doors
def test_a_sample_of_the_clients_searches_and_all_score(door: str) -> None:
    federation = Federation(door, lambda _: range(1, 11))
    rounds: list[RoundResult] = []
    strategy = make(door, fraction_train=0.3, on_round=rounds.append)
    federation.run_rounds(strategy, 3)
    for result in rounds:
        number = result.server_round
        assert len(federation.asked["train", number]) == 3
        compared = len(result.candidates) > 1
        assert len(federation.asked.get(("evaluate", number), [])) == 10 * compared
    assert len(rounds[0].candidates) > 1
    assert right(strategy.prompt) >= 3


@both_doors
def test_without_a_comparison_no_client_need_evaluate(door: str) -> None:
    federation = Federation(door, four)
    strategy = make(door, guard=False, aggregation="best", fraction_evaluate=0.0)
    federation.run_rounds(strategy, 3)
    assert {kind for kind, _ in federation.asked} == {"train"}
    assert right(strategy.prompt) == 3, "one token a round"


@both_doors
def test_where_no_share_of_the_clients_searches(door: str) -> None:
    """As in Flower: its older strategies ask the smallest number still, the newer ones nobody."""
    federation = Federation(door, four)
    strategy = make(door, fraction_train=0.0)
    federation.run_rounds(strategy, 2)
    asked = [len(federation.asked.get(("train", number), [])) for number in (1, 2)]
    assert asked == ([2, 2] if door == "legacy" else [0, 0])
    assert (right(strategy.prompt) > 0) == (door == "legacy")


def test_records_may_have_names_of_ones_own() -> None:
    names = {"arrayrecord_key": "prompt", "configrecord_key": "settings"}
    federation = Federation("message", four)
    federation.app = message_app(search, [], **names)
    strategy = make("message", **names)
    federation.run_rounds(strategy, 2)
    usual = make("message")
    Federation("message", four).run_rounds(usual, 2)
    assert strategy.prompt == usual.prompt != SEED


@both_doors
@pytest.mark.parametrize(("fraction", "number"), [(0.5, 5), (0.39, 3), (0.01, 2)])
def test_all_search_and_a_sample_scores(door: str, fraction: float, number: int) -> None:
    """At least `min_evaluate_nodes` score, by default two."""
    federation = Federation(door, lambda _: range(1, 11))
    rounds: list[RoundResult] = []
    strategy = make(door, fraction_evaluate=fraction, on_round=rounds.append)
    federation.run_rounds(strategy, 2)
    for result in rounds:
        assert len(federation.asked["train", result.server_round]) == 10
        assert len(federation.asked["evaluate", result.server_round]) == number
        assert {score.total for score in result.scores.values()} == {6 * number}
        assert result.failures == 0
    assert right(strategy.prompt) >= 2


@both_doors
def test_configuration_of_ones_own_reaches_the_clients(door: str) -> None:
    federation = Federation(door, four)
    if door == "legacy":
        strategy = make(
            door,
            on_fit_config_fn=lambda server_round: {"temperature": 0.5 * server_round},
            on_evaluate_config_fn=lambda server_round: {"batch": server_round},
        )
        federation.run_rounds(strategy, 2)
    else:
        # The message API has a configuration for all rounds.
        strategy, arrays = make(door), ArrayRecord([np.array(SEED)])
        configs = ConfigRecord({"temperature": 0.5}), ConfigRecord({"batch": 1})
        strategy.start(federation, arrays, 2, 3600, *configs)
    for number in (1, 2):
        in_round = number if door == "legacy" else 1
        assert len(federation.told["train", number]) == 4
        for config in federation.told["train", number]:
            assert config == {
                "temperature": 0.5 * in_round,
                ROUND_KEY: number,
                RACE_EXAMPLES_KEY: 256 // 4,
                COMPARED_KEY: True,
            }
        for config in federation.told["evaluate", number]:
            assert config == {"batch": in_round, ROUND_KEY: number, RACE_EXAMPLES_KEY: 256 // 4}


@both_doors
def test_without_a_guard_no_search_hears_of_a_comparison(door: str) -> None:
    federation = Federation(door, four)
    federation.run_rounds(make(door, guard=False), 1)
    assert [config.keys() for config in federation.told["train", 1]] == [{ROUND_KEY}] * 4


@both_doors
@pytest.mark.parametrize(("wanted", "share"), [(0, None), (1, 1), (4, 1), (5, 2), (20, 5)])
def test_clients_share_the_examples_of_a_comparison(
    door: str, wanted: int, share: int | None
) -> None:
    federation = Federation(door, four)
    federation.run_rounds(make(door, race_examples=wanted), 1)
    assert [config.get(RACE_EXAMPLES_KEY) for config in federation.told["evaluate", 1]] == [
        share
    ] * 4


@both_doors
def test_who_joins_late_starts_from_the_prompt_so_far(door: str) -> None:
    seen: dict[int, list[Tokens]] = {}

    def watched(prompt: NDArray[Any], node: int, server_round: int) -> Answer:
        seen.setdefault(node, []).append(tuple(prompt.tolist()))
        return search(prompt, node, server_round)

    def joining(phases: int) -> Sequence[int]:
        return (1, 2) if phases < 2 else (1, 2, 9)

    rounds: list[RoundResult] = []
    strategy = make(door, on_round=rounds.append)
    federation = Federation(door, joining, watched)
    federation.run_rounds(strategy, 3)
    assert sorted(federation.asked["train", 3]) == [1, 2, 9]
    assert seen[9] == [rounds[1].chosen.tokens]
    assert rounds[1].chosen.tokens != SEED


@both_doors
def test_who_leaves_is_not_missed(door: str) -> None:
    federation = Federation(door, lambda phases: (1, 2, 3) if phases < 2 else (1, 2))
    strategy = make(door)
    federation.run_rounds(strategy, 3)
    assert [len(federation.asked["train", number]) for number in (1, 2, 3)] == [3, 3, 2]
    assert right(strategy.prompt) >= 4


@both_doors
def test_a_client_that_breaks_down_is_a_failure(door: str) -> None:
    def breaking(prompt: NDArray[Any], node: int, server_round: int) -> Answer:
        if node == 2:
            raise RuntimeError("out of memory")
        return search(prompt, node, server_round)

    rounds: list[RoundResult] = []
    strategy = make(door, on_round=rounds.append)
    Federation(door, four, breaking).run_rounds(strategy, 2)
    assert [r.failures for r in rounds] == [1, 1]
    assert right(strategy.prompt) > 0


@both_doors
def test_mods_that_measure_change_nothing(door: str, caplog: pytest.LogCaptureFixture) -> None:
    plain, measured = make(door), make(door)
    Federation(door, four).run_rounds(plain, 2)
    mods = [message_size_mod, arrays_size_mod]
    Federation(door, four, mods=mods).run_rounds(measured, 2)
    assert measured.prompt == plain.prompt
    assert "Outgoing message size" in caplog.text
    assert "Total array elements sent" in caplog.text


@both_doors
@pytest.mark.parametrize("aggregation", ["feddtpt", "majority"])
def test_local_differential_privacy_is_refused_or_harmless(door: str, aggregation: Any) -> None:
    """It adds noise to token ids: other tokens, or none. The guard lets none of them through."""
    rng = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002, Flower's mod draws from it
    try:
        rounds: list[RoundResult] = []
        strategy = make(door, aggregation=aggregation, on_round=rounds.append)
        mods = [LocalDpMod(clipping_norm=1.0, sensitivity=1.0, epsilon=0.5, delta=1e-5)]
        Federation(door, four, mods=mods).run_rounds(strategy, 2)
    finally:
        np.random.set_state(rng)  # noqa: NPY002
    assert right(strategy.prompt) >= right(SEED)
    assert all(r.failures or r.chosen.tokens == SEED for r in rounds)


@both_doors
def test_a_clipping_mod_without_its_wrapper_is_a_failure(door: str) -> None:
    rounds: list[RoundResult] = []
    strategy = make(door, on_round=rounds.append)
    Federation(door, four, mods=[fixedclipping_mod]).run_rounds(strategy, 1)
    assert strategy.prompt == SEED
    assert rounds[0].failures >= 4


# Clients take part in the last two kinds with a mod of their own.
WRAPPERS: dict[str, tuple[str, list[Any]]] = {
    "ServerSideFixedClipping": ("clipping_norm", []),
    "ServerSideAdaptiveClipping": ("initial_clipping_norm", []),
    "ClientSideFixedClipping": ("clipping_norm", [fixedclipping_mod]),
    "ClientSideAdaptiveClipping": ("initial_clipping_norm", [adaptiveclipping_mod]),
}


@both_doors
@pytest.mark.parametrize("kind", WRAPPERS)
@pytest.mark.parametrize("norm", [0.5, 1000.0])
def test_central_differential_privacy_is_refused(door: str, kind: str, norm: float) -> None:
    """The wrapper clips ids, or adds noise to what the strategy returns."""
    wrapper = getattr(DOORS_OF_FLOWER[door], f"DifferentialPrivacy{kind}")
    name, mods = WRAPPERS[kind]
    strategy = make(door)
    private = wrapper(strategy, noise_multiplier=0.1, num_sampled_clients=4, **{name: norm})
    # Clients that clip token ids have nothing to upload; the wrapper keeps that from the strategy.
    dropped = bool(mods) and norm < 1
    with nullcontext() if dropped else pytest.raises((ValueError, TypeError, KeyError)):
        Federation(door, four, mods=mods).run_rounds(private, 3)
    assert strategy.prompt == SEED


@both_doors
@pytest.mark.parametrize("guard", [True, False])
def test_noise_below_a_whole_number_is_noticed(door: str, guard: bool) -> None:
    strategy = make(door, guard=guard)
    wrapper = DOORS_OF_FLOWER[door].DifferentialPrivacyClientSideFixedClipping
    private = wrapper(strategy, noise_multiplier=1.0, clipping_norm=1.0, num_sampled_clients=4)
    with pytest.raises(ValueError, match="the prompts were changed"):
        Federation(door, four).run_rounds(private, 2)


def without_vectors(_: Any) -> Any:
    return []


def not_finite(prompts: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float64]]:
    return [np.full((len(prompt), 3), np.nan) for prompt in prompts]


@both_doors
@pytest.mark.parametrize("embed_fn", [None, without_vectors, not_finite])
def test_functions_that_do_not_work_show_before_anybody_has_searched(
    door: str, embed_fn: Any
) -> None:
    federation = Federation(door, four)
    strategy = make(door, embed_fn=embed_fn)
    with pytest.raises((TypeError, ValueError)):
        federation.run_rounds(strategy, 1)
    assert not federation.asked


@both_doors
@pytest.mark.parametrize(
    ("name", "value"), [("fraction_train", 1.5), ("fraction_evaluate", -0.1), ("min_samples", 2.5)]
)
def test_settings_out_of_range_are_named(door: str, name: str, value: float) -> None:
    told = {"fraction_train": "fraction_fit"}.get(name, name) if door == "legacy" else name
    with pytest.raises(ValueError, match=f"{told} must be .* got {value}"):
        make(door, **{name: value})


def test_a_plain_dictionary_is_a_central_evaluation_too() -> None:
    outcome = Federation("message", four).run_rounds(
        make("message"), 2, lambda number, _: {"number": number}
    )
    assert outcome.evaluate_metrics_serverapp == {n: {"number": n} for n in range(3)}


def test_who_was_not_asked_has_not_failed() -> None:
    class EveryOther(message.FedDTPT):
        def configure_evaluate(self, server_round: int, *args: Any) -> Iterable[Message]:
            return super().configure_evaluate(server_round, *args) if server_round == 2 else []

    rounds: list[RoundResult] = []
    strategy = EveryOther(
        embed_fn=embed, vocabulary_size=VOCABULARY_SIZE, max_tokens=8, on_round=rounds.append
    )
    Federation("message", four).run_rounds(strategy, 2)
    assert [result.failures for result in rounds] == [0, 0]
    assert [result.server_round for result in rounds] == [1, 2]


@pytest.mark.parametrize("server_side", [True, False])
def test_flowers_older_wrappers_are_refused_or_harmless(server_side: bool) -> None:
    for wrapper, name in ((DPFedAvgFixed, "clip_norm"), (DPFedAvgAdaptive, "init_clip_norm")):
        strategy = make("legacy")
        options: dict[str, Any] = {name: 0.5, "server_side_noising": server_side}
        private = wrapper(strategy, num_sampled_clients=4, **options)
        # The first adds noise to uploads, which are rejected; the second needs clients of its own.
        with suppress(ValueError, TypeError, KeyError):
            Federation("legacy", four).run_rounds(private, 3)
        assert strategy.prompt == SEED

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
from flwr.common import (
    Code,
    EvaluateRes,
    FitRes,
    Parameters,
    Scalar,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from numpy.typing import NDArray

from strategies import METHODS, aggregate
from strategies.candidates import Score, Tokens
from strategies.feddtpt import FedDTPT
from strategies.rounds import RoundResult
from strategies.wire import (
    ACCURACY_KEY,
    CLIENT_KEY,
    FAILURE_KEY,
    GAIN_KEY,
    MODEL_KEY,
    QUERIES_KEY,
    RACE_EXAMPLES_KEY,
    ROUND_KEY,
    SCORED_KEY,
    VOCABULARY_KEY,
    correct_key,
)

SEED = (1, 2, 3, 4, 5)
A, B, C = (9, 2, 3, 4, 5), (1, 2, 8, 4, 5), (1, 2, 3, 4, 7)
OK = Status(Code.OK, "")

Fit = tuple[ClientProxy, FitRes]
Evaluate = tuple[ClientProxy, EvaluateRes]


class Proxy:
    """A double of a client that is only ever told apart from others."""

    def __init__(self, cid: str) -> None:
        self.cid = cid


class Clients:
    """A double of Flower's client manager that gives out the first clients it has.

    Whoever waits for more finds them at once.
    """

    def __init__(self, number: int) -> None:
        self.proxies = [Proxy(str(i)) for i in range(number)]

    def wait_for(self, num_clients: int, timeout: int) -> bool:
        self.proxies += [Proxy(str(i)) for i in range(len(self.proxies), num_clients)]
        return True

    def num_available(self) -> int:
        return len(self.proxies)

    def sample(self, num_clients: int, min_num_clients: int) -> list[Proxy]:
        enough = len(self.proxies) >= max(num_clients, min_num_clients)
        return self.proxies[:num_clients] if enough else []


def manager(number: int = 3) -> ClientManager:
    return cast(ClientManager, Clients(number))


def embed(prompts: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float64]]:
    return [np.eye(20)[prompt] for prompt in prompts]


class Central:
    """Central evaluation that writes down what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, Tokens]] = []

    def __call__(
        self, server_round: int, arrays: list[NDArray[Any]], _: dict[str, Scalar]
    ) -> tuple[float, dict[str, Scalar]]:
        self.asked.append((server_round, tuple(int(token) for token in arrays[0])))
        return 0.25, {"accuracy": 0.75}


class Server:
    """A strategy with everything that it calls, and Flower's order of calls."""

    def __init__(self, **options: Any) -> None:
        self.central = Central()
        self.rounds: list[RoundResult] = []
        options = {"min_fit_clients": 1, "min_evaluate_clients": 1} | options
        self.strategy = FedDTPT(
            initial_prompt=np.array(SEED),
            embed_fn=embed,
            vocabulary_size=20,
            vocabulary="abc",
            max_tokens=6,
            evaluate_fn=self.central,
            on_round=self.rounds.append,
            **options,
        )

    def start(self) -> Parameters:
        return self.strategy.initialize_parameters(manager())

    def fit(self, *results: Fit, failures: int = 0) -> tuple[Tokens, ...]:
        lost = [cast(Any, RuntimeError("lost")) for _ in range(failures)]
        parameters, self.metrics = self.strategy.aggregate_fit(1, list(results), lost)
        assert parameters is not None
        return prompts_in(parameters)

    def score(self, *results: Evaluate, failures: int = 0) -> tuple[float | None, dict[str, Any]]:
        lost = [cast(Any, RuntimeError("lost")) for _ in range(failures)]
        return self.strategy.aggregate_evaluate(1, list(results), lost)


def prompts_in(parameters: Parameters) -> tuple[Tokens, ...]:
    return tuple(tuple(int(t) for t in array) for array in parameters_to_ndarrays(parameters))


def uploads(*tokens: Tokens, gain: float = 0.1) -> list[Fit]:
    return [upload(t, client=str(i), gain=gain) for i, t in enumerate(tokens)]


def upload(tokens: Any, client: str = "0", gain: Any = 0.1, **metrics: Any) -> Fit:
    if not isinstance(tokens, Parameters):
        tokens = ndarrays_to_parameters([np.array(tokens)])
    known = {CLIENT_KEY: client, GAIN_KEY: gain, VOCABULARY_KEY: "abc"} | metrics
    return cast(ClientProxy, Proxy(client)), FitRes(OK, tokens, 10, known)


def scores(candidates: Sequence[Tokens], correct: dict[Tokens, Any], of: Any = 10) -> Evaluate:
    metrics: dict[str, Any] = {
        correct_key(i): correct.get(tokens, 0) for i, tokens in enumerate(candidates)
    }
    result = EvaluateRes(OK, 0.5, 10, metrics | {SCORED_KEY: of})
    return cast(ClientProxy, Proxy("0")), result


MALFORMED = [
    upload([1.5, 2.0]),
    upload([[1, 2]]),
    upload(np.array([], dtype=np.int64)),
    upload([1, 2, 3, 4, 5, 6, 7]),
    upload([1, 20]),
    upload([-1]),
    upload(np.array([1, 2], dtype="timedelta64[s]")),
    upload(Parameters([b"garbage"], "numpy.ndarray")),
    upload(Parameters([], "numpy.ndarray")),
    upload(A, gain=float("nan")),
    upload(A, gain=2.0),
    upload(A, vocabulary="xyz"),
]


def test_round_zero_is_evaluated_once() -> None:
    server = Server()
    parameters = server.strategy.initialize_parameters(manager())
    assert parameters is not None
    assert prompts_in(parameters) == (SEED,)
    assert server.strategy.evaluate(0, parameters) == (0.25, {"accuracy": 0.75})
    assert server.central.asked == [(0, SEED)]


def test_a_guarded_round() -> None:
    server = Server()
    candidates = server.fit(*uploads(A, B))
    assert candidates[0] == SEED
    assert {A, B} < set(candidates)
    assert server.strategy.evaluate(1, ndarrays_to_parameters([])) is None
    assert server.central.asked == [], "nothing is settled before the clients have counted"

    best = candidates[2]
    loss, metrics = server.score(
        scores(candidates, {best: 9, SEED: 5}), scores(candidates, {best: 6, SEED: 8})
    )
    assert loss == pytest.approx(1 - 15 / 20)
    assert metrics["accuracy"] == pytest.approx(15 / 20)
    assert metrics["central-accuracy"] == 0.75
    assert server.strategy.prompt == best
    assert server.central.asked == [(1, best)]

    (record,) = server.rounds
    assert record.server_round == 1
    assert record.chosen.tokens == best
    assert [candidate.tokens for candidate in record.candidates] == list(candidates)
    assert record.candidates[0].origin == "incumbent"
    assert (record.scores[best].correct, record.scores[best].total) == (15, 20)
    assert (record.scores[SEED].correct, record.scores[SEED].total) == (13, 20)
    assert record.failures == 0
    assert record.num_bytes > 0
    assert record.central == {"accuracy": 0.75}


def test_clients_weigh_by_their_examples() -> None:
    server = Server()
    candidates = server.fit(*uploads(A, B))
    small, large = scores(candidates, {A: 4, B: 1}, of=4), scores(candidates, {A: 10, B: 20}, of=40)
    server.score(small, large, large)
    assert server.strategy.prompt == B


def test_one_client_cannot_outvote_the_others_by_a_number() -> None:
    server = Server()
    candidates = server.fit(*uploads(A, B))
    honest = [scores(candidates, {A: 9, B: 3, SEED: 5})] * 2
    server.score(*honest, scores(candidates, {B: 10**9}, of=10**9))
    assert server.strategy.prompt == A
    (record,) = server.rounds
    assert (record.scores[A].correct, record.scores[A].total) == (18, 30)
    assert (record.scores[B].correct, record.scores[B].total) == (16, 30)


@pytest.mark.parametrize("counts", [{}, {SEED: 5, A: 5, B: 5}, {SEED: 5, A: 4}])
def test_nothing_replaces_the_prompt_that_is_not_better(counts: dict[Tokens, int]) -> None:
    server = Server()
    candidates = server.fit(*uploads(A, B))
    server.score(scores(candidates, {t: counts.get(t, 0) for t in candidates}))
    assert server.strategy.prompt == SEED
    assert server.rounds[0].chosen.origin == "incumbent"
    assert server.central.asked == [(1, SEED)]


@pytest.mark.parametrize("bad", MALFORMED, ids=lambda bad: str(bad[1].metrics)[:60])
def test_a_malformed_upload_is_a_failure_and_the_round_goes_on(bad: Fit) -> None:
    server = Server()
    candidates = server.fit(bad, upload(B, client="1"), failures=1)
    assert set(candidates) == {SEED, B}
    server.score(scores(candidates, {B: 9, SEED: 1}))
    assert server.strategy.prompt == B
    assert server.rounds[0].failures == 2


@pytest.mark.parametrize("guard", [True, False])
@pytest.mark.parametrize("results", [[], MALFORMED])
def test_without_a_usable_upload_the_prompt_stays(guard: bool, results: list[Fit]) -> None:
    server = Server(guard=guard)
    assert server.fit(*results, failures=3) == (SEED,)
    assert server.strategy.prompt == SEED
    (record,) = server.rounds
    assert record.chosen.tokens == SEED
    assert record.failures == 3 + len(results)
    assert server.strategy.evaluate(1, ndarrays_to_parameters([])) == (0.25, {"accuracy": 0.75})
    assert server.central.asked == [(1, SEED)]


@pytest.mark.parametrize("aggregation", METHODS)
def test_without_a_guard_the_papers_aggregate_is_the_prompt(aggregation: Any) -> None:
    server = Server(guard=False, aggregation=aggregation)
    results = [
        upload(A, "0", 0.3, accuracy=0.1),
        upload(B, "1", 0.1, accuracy=0.3),
        upload(C, "2", 0.2, accuracy=0.2),
    ]
    prompts = [np.array(p) for p in (A, B, C)]
    expected = aggregate(
        prompts, embed(prompts), method=aggregation, max_tokens=6, accuracies=[0.1, 0.3, 0.2]
    )
    settled = tuple(int(token) for token in expected.tokens)
    assert server.fit(*results) == (settled,)
    assert server.strategy.prompt == settled
    assert server.strategy.evaluate(1, ndarrays_to_parameters([])) == (0.25, {"accuracy": 0.75})
    loss, metrics = server.score(scores([settled], {settled: 7}))
    assert server.central.asked == [(1, settled)]
    assert loss == pytest.approx(0.3)
    assert metrics["accuracy"] == pytest.approx(0.7)
    (record,) = server.rounds
    assert record.chosen.origin == "aggregate"
    assert record.scores == {}


def test_unchanged_uploads_settle_the_round_at_once() -> None:
    server = Server()
    assert server.fit(*uploads(SEED, SEED)) == (SEED,)
    server.score(scores([SEED], {SEED: 5}))
    assert len(server.rounds) == 1
    assert server.central.asked == [(1, SEED)]


@pytest.mark.parametrize(
    ("count", "of"), [(11, 10), (10**6, 10), (-1, 10), (9.0, 10), ("9", 10), (9, 0), (9, None)]
)
def test_liars_are_not_counted(count: Any, of: Any) -> None:
    server = Server()
    candidates = server.fit(*uploads(A, B))
    honest = scores(candidates, {A: 6, B: 4, SEED: 5})
    loss, _ = server.score(scores(candidates, {B: count}, of=of), honest)
    assert server.strategy.prompt == A
    assert loss == pytest.approx(0.4)
    assert server.rounds[0].scores[B].total == 10
    # What fails after the round is settled is still part of its record.
    assert server.rounds[0].failures == 1


@pytest.mark.parametrize("failures", [0, 2])
def test_without_any_count_the_prompt_stays(failures: int) -> None:
    server = Server()
    candidates = server.fit(*uploads(A, B))
    liar = scores(candidates, {A: 11})
    loss, metrics = server.score(liar, failures=failures)
    assert server.strategy.prompt == SEED
    (result,) = server.rounds
    assert result.failures == 1 + failures
    assert (loss, metrics) == (
        None,
        {
            "bytes": result.num_bytes,
            "failures": 1 + failures,
            "chosen": 0,
            "central-loss": 0.25,
            "central-accuracy": 0.75,
        },
    )


@pytest.mark.parametrize(("bad", "failures"), [(True, 0), (False, 1)])
def test_failures_can_be_refused_in_the_search(bad: bool, failures: int) -> None:
    server = Server(accept_failures=False)
    results = [*uploads(A, B), *([MALFORMED[0]] if bad else [])]
    assert server.fit(*results, failures=failures) == (SEED,)
    assert server.strategy.prompt == SEED
    assert server.rounds[0].failures == 1


@pytest.mark.parametrize(("liar", "failures"), [(True, 0), (False, 1)])
def test_failures_can_be_refused_in_the_count(liar: bool, failures: int) -> None:
    server = Server(accept_failures=False)
    candidates = server.fit(*uploads(A, B))
    results = [scores(candidates, {A: 9})]
    results += [scores(candidates, {A: 99})] if liar else []
    server.score(*results, failures=failures)
    assert server.strategy.prompt == SEED
    assert server.rounds[0].chosen.origin == "incumbent"
    assert server.rounds[0].failures == 1


def test_all_is_well_without_failures_when_they_are_refused() -> None:
    server = Server(accept_failures=False)
    candidates = server.fit(*uploads(A, B))
    server.score(scores(candidates, {A: 9}))
    assert server.strategy.prompt == A


def test_the_settled_prompt_is_sent_not_the_candidates() -> None:
    server = Server()
    candidates = server.fit(*uploads(A, B))
    server.score(scores(candidates, {A: 9}))
    # Flower's server still holds what aggregate_fit returned.
    stale = ndarrays_to_parameters([np.array(tokens) for tokens in candidates])
    instructions = server.strategy.configure_fit(2, stale, manager())
    assert len(instructions) == 3
    for _, instruction in instructions:
        assert prompts_in(instruction.parameters) == (A,)
        assert instruction.config[ROUND_KEY] == 2
        assert instruction.config[VOCABULARY_KEY] == "abc"


def test_the_candidates_are_sent_to_be_counted() -> None:
    server = Server(on_evaluate_config_fn=lambda server_round: {"extra": server_round})
    candidates = server.fit(*uploads(A, B))
    sent = ndarrays_to_parameters([np.array(tokens) for tokens in candidates])
    for _, instruction in server.strategy.configure_evaluate(1, sent, manager()):
        assert prompts_in(instruction.parameters) == candidates
        told = {ROUND_KEY: 1, VOCABULARY_KEY: "abc", RACE_EXAMPLES_KEY: 86}
        assert instruction.config == {"extra": 1, **told}


def test_the_count_does_not_wait_for_a_client_that_has_left() -> None:
    server = Server(min_available_clients=4)
    assert len(server.strategy.configure_fit(1, server.start(), manager(4))) == 4
    candidates = server.fit(*uploads(A, B), failures=2)
    sent = ndarrays_to_parameters([np.array(tokens) for tokens in candidates])
    assert len(server.strategy.configure_evaluate(1, sent, manager(3))) == 3


def test_a_round_that_waits_for_clients_says_so(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(min_available_clients=4)
    sent = server.strategy.configure_fit(1, server.start(), manager(3))
    assert "round 1 waits: 3 of 4 clients connected" in caplog.text
    assert len(sent) == 4, "those who came meanwhile search as well"


@pytest.mark.parametrize(("fraction", "clients"), [(1.0, 10), (0.5, 5), (0.01, 1)])
def test_a_fraction_of_the_clients_searches(fraction: float, clients: int) -> None:
    server = Server(fraction_fit=fraction)
    sent = server.strategy.configure_fit(1, server.start(), manager(10))
    assert len(sent) == clients


def test_bytes_grow_with_every_message() -> None:
    server = Server()
    server.strategy.configure_fit(1, server.start(), manager(2))
    candidates = server.fit(*uploads(A, B))
    sent = ndarrays_to_parameters([np.array(tokens) for tokens in candidates])
    server.strategy.configure_evaluate(1, sent, manager(2))
    server.score(scores(candidates, {A: 9}))
    alone = Server()
    alone.fit(*uploads(A, B))
    alone.score(scores(candidates, {A: 9}))
    tokens = sum(map(len, candidates)) + len(SEED)
    assert server.rounds[0].num_bytes - alone.rounds[0].num_bytes > 2 * 8 * tokens
    server.strategy.configure_fit(2, sent, manager(2))
    server.fit(*uploads(A, A))
    server.score(scores([A], {A: 9}))
    assert server.rounds[1].num_bytes < server.rounds[0].num_bytes, "each round counts anew"


def test_metrics_of_valid_clients_are_handed_on() -> None:
    seen: list[list[tuple[int, dict[str, Any]]]] = []

    def collect(metrics: list[tuple[int, dict[str, Any]]]) -> dict[str, Scalar]:
        seen.append(metrics)
        return {"clients": len(metrics)}

    server = Server(fit_metrics_aggregation_fn=collect, evaluate_metrics_aggregation_fn=collect)
    candidates = server.fit(*uploads(A, B), MALFORMED[0])
    assert server.metrics == {"clients": 2}
    liar = scores(candidates, {B: 11})
    _, metrics = server.score(scores(candidates, {A: 9}), liar)
    assert metrics["clients"] == 1
    assert [len(part) for part in seen] == [2, 1]
    assert seen[0][1][1][CLIENT_KEY] == "1"


def weighted(results: list[tuple[int, dict[str, Any]]]) -> dict[str, Scalar]:
    """What a user's function for metrics usually is."""
    total = sum(number for number, _ in results)
    return {QUERIES_KEY: sum(number * m[QUERIES_KEY] for number, m in results) / total}


@pytest.mark.parametrize(
    ("number", "metrics"),
    [
        (0, {}),
        (-10, {}),
        (10, {QUERIES_KEY: float("nan")}),
        (10, {QUERIES_KEY: float("-inf")}),
        (10, {QUERIES_KEY: "8"}),
        (10, {ACCURACY_KEY: float("nan")}),
        (10, {"loss": float("inf")}),
    ],
)
def test_numbers_that_would_spoil_an_average_cost_their_answer_and_nothing_else(
    number: int, metrics: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(fit_metrics_aggregation_fn=weighted, evaluate_metrics_aggregation_fn=weighted)
    bad, good = upload(A, "bad", queries=8), upload(B, queries=8)
    bad[1].num_examples = number
    bad[1].metrics |= metrics
    candidates = server.fit(bad, good)
    assert candidates == (SEED, B)
    assert server.metrics == {QUERIES_KEY: 8}
    assert "the upload of client bad is rejected: " in caplog.text

    spoilt, fine = scores(candidates, {SEED: 9}), scores(candidates, {B: 9})
    for _, result in (spoilt, fine):
        result.metrics[QUERIES_KEY] = 8
    spoilt[1].num_examples = number
    spoilt[1].metrics |= metrics
    _, told = server.score(spoilt, fine)
    assert told[QUERIES_KEY] == 8
    assert "the count of client 0 is rejected: " in caplog.text
    assert server.strategy.prompt == B
    assert server.rounds[0].failures == 2


@pytest.mark.parametrize("number", [0, -10])
def test_a_client_that_failed_may_have_no_examples_but_no_fewer(number: int) -> None:
    told: list[tuple[int, dict[str, Any]]] = []

    def collect(metrics: list[tuple[int, dict[str, Any]]]) -> dict[str, Scalar]:
        told.extend(metrics)
        return {}

    server = Server(fit_metrics_aggregation_fn=collect, metrics_of_failed=True)
    failed: dict[str, Scalar] = {FAILURE_KEY: "the model is down", QUERIES_KEY: 3}
    nothing = FitRes(OK, ndarrays_to_parameters([]), number, failed)
    server.fit((cast(ClientProxy, Proxy("2")), nothing))
    assert told == ([(0, failed)] if number == 0 else [])
    assert server.rounds[0].failures == 1


def test_a_client_that_failed_is_kept_from_functions_that_average() -> None:
    server = Server(fit_metrics_aggregation_fn=weighted, evaluate_metrics_aggregation_fn=weighted)
    failed = {FAILURE_KEY: "the model is down"}
    nothing = FitRes(OK, ndarrays_to_parameters([]), 0, dict(failed))
    searched = upload(A, queries=8)
    candidates = server.fit(searched, (cast(ClientProxy, Proxy("2")), nothing))
    assert server.metrics == {QUERIES_KEY: 8}
    counted = scores(candidates, {A: 9})
    counted[1].metrics[QUERIES_KEY] = 5
    _, metrics = server.score(
        counted, (cast(ClientProxy, Proxy("2")), EvaluateRes(OK, 1.0, 0, dict(failed)))
    )
    assert metrics[QUERIES_KEY] == 5


def test_a_metrics_function_that_fails_costs_no_round(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(fit_metrics_aggregation_fn=weighted, evaluate_metrics_aggregation_fn=weighted)
    candidates = server.fit(*uploads(A, B))  # without the metric that it reads
    server.score(scores(candidates, {A: 9}))
    assert server.strategy.prompt == A
    assert caplog.text.count("the round has no metrics: their function failed") == 2
    assert "KeyError" in caplog.text


def test_a_round_that_nobody_can_compare_is_settled(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    server.start()
    candidates = server.fit(*uploads(A, B))
    handed = ndarrays_to_parameters([np.array(tokens) for tokens in candidates])
    assert server.strategy.configure_evaluate(1, handed, manager(0)) == []
    (result,) = server.rounds
    assert (result.server_round, result.chosen.tokens) == (1, SEED)
    assert server.strategy.state_dict()["round"] == 1
    assert "0 usable counts, 1 needed; the prompt stays" in caplog.text


def test_the_order_of_arrival_does_not_matter() -> None:
    results = [upload(A, "0", 0.1), upload(B, "1", 0.3), upload(C, "2", 0.2)]
    assert Server().fit(*results) == Server().fit(*results[::-1])


def test_more_rounds_start_from_the_settled_prompt() -> None:
    server = Server()
    candidates = server.fit(*uploads(A, B))
    server.score(scores(candidates, {A: 9}))
    candidates = server.fit(upload((9, 2, 8, 4, 5)))
    assert candidates == (A, (9, 2, 8, 4, 5))
    server.score(scores(candidates, {A: 9, (9, 2, 8, 4, 5): 8}))
    assert server.strategy.prompt == A
    assert [record.chosen.tokens for record in server.rounds] == [A, A]


def test_a_guard_without_evaluation_is_refused() -> None:
    with pytest.raises(ValueError, match="fraction_evaluate above 0"):
        Server(fraction_evaluate=0.0)
    Server(fraction_evaluate=0.0, guard=False)


def test_repr_names_the_settings() -> None:
    text = repr(Server(aggregation="kmeans", guard=False, race_candidates=7).strategy)
    assert text == (
        "FedDTPT(aggregation='kmeans', min_samples=None, elbow_method='split', noise='drop', "
        "n_clusters=None, client_weights='equal', guard=False, choose_for='mean', "
        "race_candidates=7, race_examples=256, max_tokens=6, fraction_fit=1.0, "
        "fraction_evaluate=1.0)"
    )


@pytest.mark.parametrize("guard", [True, False])
def test_fewer_usable_uploads_than_the_minimum_keep_the_prompt(
    guard: bool, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(guard=guard, min_fit_clients=3)
    assert server.fit(*uploads(A, B), MALFORMED[0]) == (SEED,)
    assert server.strategy.prompt == SEED
    assert server.rounds[0].failures == 1
    assert "2 usable uploads, 3 needed; the prompt stays" in caplog.text


def test_fewer_usable_counts_than_the_minimum_keep_the_prompt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server(min_evaluate_clients=2)
    candidates = server.fit(*uploads(A, B))
    server.score(scores(candidates, {A: 9}), scores(candidates, {A: 11}))
    assert server.strategy.prompt == SEED
    assert server.rounds[0].scores[A].correct == 9
    assert "1 usable counts, 2 needed; the prompt stays" in caplog.text


def test_a_rejected_upload_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    Server().fit(upload([1, 20], client="ward 3"), upload(B))
    assert "the upload of client ward 3 is rejected: token ids must lie in [0, 20)" in caplog.text


def test_clients_can_be_weighed_by_their_examples() -> None:
    """Two clients of three positions; the weight decides what stands at the first."""
    results = uploads((9, 2), (9, 2), (1, 2))
    for (_, result), number in zip(results, (4, 4, 4000), strict=True):
        result.num_examples = number
    server = Server(guard=False, aggregation="majority", client_weights="examples")
    assert server.fit(*results) == ((9, 2),), "at most the median client's number counts"
    for (_, result), number in zip(results, (2, 4, 7), strict=True):
        result.num_examples = number
    server = Server(guard=False, aggregation="majority", client_weights="examples")
    assert server.fit(*results) == ((9, 2),)
    results = [
        upload((9, 2), accuracy=0.2),
        upload((1, 2), accuracy=0.3),
        upload((5, 2), accuracy=0.0),
    ]
    server = Server(guard=False, aggregation="majority", client_weights="accuracy")
    assert server.fit(*results) == ((1, 2),)
    nobody = [upload((9, 2), accuracy=0.0), upload((1, 2), accuracy=0.0)]
    server = Server(guard=False, aggregation="majority", client_weights="accuracy")
    assert server.fit(*nobody) == ((1, 2),), "if all have no weight, all count alike"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("aggregation", "mean", "unknown aggregation 'mean'; allowed: feddtpt"),
        ("client_weights", "size", "unknown client_weights 'size'; allowed: equal, examples"),
        ("min_samples", 0, "min_samples must be None or at least 1, got 0"),
        ("race_candidates", 0, "race_candidates must be at least 1"),
        ("race_examples", -1, "race_examples must be at least 0, got -1"),
    ],
)
def test_a_bad_setting_is_named(option: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Server(**{option: value})


@pytest.mark.parametrize("prompt", [[], [1.5], [20], [1] * 7])
def test_a_bad_first_prompt_is_named(prompt: list[Any]) -> None:
    with pytest.raises(ValueError, match="the initial prompt is malformed"):
        FedDTPT(initial_prompt=np.array(prompt), embed_fn=embed, vocabulary_size=20, max_tokens=6)


def test_when_nobody_is_left_to_count_the_prompt_stays_and_the_round_is_recorded() -> None:
    server = Server()
    sent = server.start()
    server.strategy.configure_fit(1, sent, manager(2))
    candidates = server.fit(*uploads(A, B))
    assert server.rounds == []
    stale = ndarrays_to_parameters([np.array(tokens) for tokens in candidates])
    server.strategy.configure_fit(2, stale, manager(2))
    assert server.strategy.prompt == SEED
    assert [(record.server_round, record.chosen.tokens) for record in server.rounds] == [(1, SEED)]


def test_after_a_round_in_which_nobody_searches_nothing_is_compared() -> None:
    server = Server(min_fit_clients=4)
    sent = server.start()
    server.strategy.configure_fit(1, sent, manager(4))
    candidates = server.fit(*uploads(A, B, A, B))
    server.score(scores(candidates, {B: 9}))
    stale = ndarrays_to_parameters([np.array(tokens) for tokens in candidates])
    # Enough clients are there for the run, but too few to search.
    assert server.strategy.configure_fit(2, stale, manager(3)) == []
    assert server.strategy.configure_evaluate(2, stale, manager(3)) == []
    assert [(r.server_round, r.chosen.tokens) for r in server.rounds] == [(1, B), (2, B)]


class Leaving(Clients):
    """A double of a client manager that one client leaves between two looks at who is there."""

    def num_available(self) -> int:
        there = super().num_available()
        self.proxies = self.proxies[:4]
        return there


def test_who_leaves_while_clients_are_drawn_costs_no_round() -> None:
    server = Server()
    sent = server.start()
    leaving = cast(ClientManager, Leaving(5))
    assert len(server.strategy.configure_fit(1, sent, leaving)) == 4
    candidates = server.fit(*uploads(A, B))
    compared = ndarrays_to_parameters([np.array(tokens) for tokens in candidates])
    leaving = cast(ClientManager, Leaving(5))
    assert len(server.strategy.configure_evaluate(1, compared, leaving)) == 4


def test_a_client_that_cannot_says_why(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    server.fit(*uploads(A, B))
    cannot = Status(Code.EVALUATE_NOT_IMPLEMENTED, "Client does not implement `evaluate`")
    answer = cast(ClientProxy, Proxy("0")), EvaluateRes(cannot, 0.0, 0, {})
    server.strategy.aggregate_evaluate(1, [], [answer, RuntimeError("lost\n\x1b[2Jon the way")])
    assert "no answer of a client: Client does not implement `evaluate`" in caplog.text
    assert "no answer of a client: lost [2Jon the way" in caplog.text


def test_a_search_cut_short_is_an_upload_like_any_other() -> None:
    server = Server()
    candidates = server.fit(upload(A, "0", **{FAILURE_KEY: "the model is down"}), upload(B, "1"))
    assert A in candidates
    server.score(scores(candidates, {A: 9}))
    assert server.rounds[-1].failures == 0


def test_a_client_whose_model_failed_is_a_failure_that_is_reported() -> None:
    reports: list[dict[str, Scalar]] = []

    def collect(metrics: list[tuple[int, dict[str, Any]]]) -> dict[str, Scalar]:
        reports.extend(each for _, each in metrics)
        return {}

    server = Server(
        fit_metrics_aggregation_fn=collect,
        evaluate_metrics_aggregation_fn=collect,
        metrics_of_failed=True,
    )
    failed: dict[str, Scalar] = {
        CLIENT_KEY: "2",
        FAILURE_KEY: "the model\nis down",
        "queries": 3,
    }
    nothing = FitRes(OK, ndarrays_to_parameters([]), 0, dict(failed))
    candidates = server.fit(*uploads(A, B), (cast(ClientProxy, Proxy("2")), nothing))
    no_counts = EvaluateRes(OK, 1.0, 0, dict(failed))
    server.score(scores(candidates, {A: 9}), (cast(ClientProxy, Proxy("2")), no_counts))
    assert server.strategy.prompt == A
    assert server.rounds[-1].failures == 2
    assert reports.count(failed) == 2
    assert len(reports) == 5


def test_if_every_model_fails_the_prompt_stays() -> None:
    server = Server()
    failed: dict[str, Scalar] = {FAILURE_KEY: "the model is down"}
    server.fit((cast(ClientProxy, Proxy("0")), FitRes(OK, ndarrays_to_parameters([]), 0, failed)))
    assert server.strategy.prompt == SEED
    assert server.rounds[-1].failures == 1


@pytest.mark.parametrize(("choose_for", "chosen"), [("mean", A), ("worst", B)])
def test_the_prompt_is_chosen_for_all_answers_or_the_worst_model(
    choose_for: Any, chosen: Tokens
) -> None:
    server = Server(choose_for=choose_for)
    candidates = server.fit(*uploads(A, B))
    large = scores(candidates, {**dict.fromkeys(candidates, 6), A: 8})
    small = scores(candidates, {**dict.fromkeys(candidates, 3), B: 5})
    for (_, result), model in ((large, "large"), (small, "small")):
        result.metrics[MODEL_KEY] = model
    loss, _ = server.score(large, large, small)
    assert server.strategy.prompt == chosen
    (record,) = server.rounds
    assert record.scores_by_model["large"][A] == Score(16, 20)
    assert record.scores_by_model["small"][A] == Score(3, 10)
    assert loss == pytest.approx(1 - record.scores[chosen].accuracy), "reported over all answers"


def test_why_a_client_gave_no_answer_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    with caplog.at_level("WARNING", logger="flwr"):
        server.fit(*uploads(A), failures=1)
    assert "round 1: no answer of a client: lost" in caplog.text

"""One client with the real small model behind a real server, and each of the limits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.common import RecordDict

from feddtpt_flwr import __version__, models
from feddtpt_flwr.client_app import PromptTuningClient
from feddtpt_flwr.client_limits import Sizes, num_compared, too_few_in_run
from feddtpt_flwr.client_state import RUN_KEY, VERSION_KEY
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import ClientData, Example
from feddtpt_flwr.data.tasks import TASKS
from feddtpt_flwr.vocabulary import Vocabulary
from strategies.wire import (
    COMPLETION_TOKENS_KEY,
    COST_KEY,
    FAILURE_KEY,
    GAIN_KEY,
    LIMIT_KEY,
    PROMPT_TOKENS_KEY,
    QUERIES_KEY,
    RACE_EXAMPLES_KEY,
    ROUND_KEY,
    SCORED_KEY,
    USED_UP_KEY,
)
from tests.conftest import ENDPOINT_KEY

START = "Movie review."
OWN, PUBLIC = 8, 2
EXAMPLES = 6 + PUBLIC


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDDTPT_CACHE", str(tmp_path))
    monkeypatch.setenv("TEST_ENDPOINT_KEY", ENDPOINT_KEY)
    monkeypatch.setattr(models, "answer_store", lambda _: None)  # so that every answer is paid for
    return tmp_path


@pytest.fixture
def start(vocabulary: Vocabulary) -> list[Any]:
    return [np.array(vocabulary.encode(START), dtype=np.int64)]


@pytest.mark.parametrize(
    ("settings", "clients", "least", "scored"),
    [
        ({}, 4, 2 * 48 + 5 * 64, 64),
        ({}, 10, 2 * 48 + 5 * 26, 26),
        ({"fraction-evaluate": 0.5}, 10, 2 * 48 + 5 * 52, 52),
        ({"race-examples": 0}, 10, 2 * 48 + 5 * 64, 64),
        ({"race-candidates": 1, "queries-per-round": 40}, 10, 2 * 10 + 2 * 26, 26),
    ],
)
def test_a_limit_of_the_run_under_which_nothing_would_be_asked(
    settings: dict[str, Any], clients: int, least: int, scored: int
) -> None:
    def told(limit: int) -> str:
        config = RunConfig.from_run_config({**settings, "queries-per-run": limit})
        return too_few_in_run(config, Sizes.wanted(config, TASKS["rotten_tomatoes"]), clients)

    assert told(least - 1).startswith(f"queries-per-run = {least - 1}: {least} or more are needed")
    assert told(least - 1).endswith(f"on {scored}")
    assert not told(least)
    assert not told(0)


class Node:
    """A node of a deployment: a process for each message, and the disk alone remembers."""

    def __init__(self, url: str, examples: tuple[Example, ...], **limits: float) -> None:
        self.config = RunConfig.from_run_config(
            {
                "queries-per-round": 40,
                "seed-prompt": START,
                "max-prompt-tokens": 8,
                "race-candidates": 1,
                "dtype": "float32",
                "device": "cpu",
                "endpoint": url,
                "language-model": "smollm2",
                "api-key-env": "TEST_ENDPOINT_KEY",
                "constrain": "grammar",
                "price-per-million-input": 1.0,
                "price-per-million-output": 2.0,
                **{name.replace("_", "-"): value for name, value in limits.items()},
            }
        )
        self.examples = examples
        self.share = 0
        self.reports: list[dict[str, Any]] = []

    def client(self) -> PromptTuningClient:
        data = ClientData(train=self.examples[:6], validation=self.examples[6:OWN])
        public = self.examples[OWN : OWN + PUBLIC]
        return PromptTuningClient("0", data, public, self.config, RecordDict())

    def message(self, server_round: int) -> dict[str, Any]:
        told = {ROUND_KEY: server_round, RUN_KEY: "run", VERSION_KEY: __version__}
        return {**told, RACE_EXAMPLES_KEY: self.share} if self.share else told

    def fit(self, prompts: list[Any], server_round: int = 1) -> tuple[list[Any], dict[str, Any]]:
        arrays, _, metrics = self.client().fit(prompts, self.message(server_round))
        self.reports.append(metrics)
        return arrays, metrics

    def evaluate(self, prompts: list[Any], server_round: int = 1) -> dict[str, Any]:
        _, _, metrics = self.client().evaluate(prompts, self.message(server_round))
        self.reports.append(metrics)
        return metrics

    def used(self, *keys: str) -> float:
        return sum(float(report[key]) for report in self.reports for key in keys)


TOKENS = (PROMPT_TOKENS_KEY, COMPLETION_TOKENS_KEY)


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("limit", "value", "keys"),
    [("tokens_per_round", 1000, TOKENS), ("cost_per_round", 0.001, (COST_KEY,))],
)
def test_a_search_ends_at_its_limit_with_the_best_so_far(
    limit: str,
    value: float,
    keys: tuple[str, ...],
    endpoint: str,
    start: list[Any],
    short_reviews: tuple[Example, ...],
) -> None:
    node = Node(endpoint, short_reviews, **{limit: value})
    (tokens,), metrics = node.fit(start)
    assert metrics[LIMIT_KEY] == limit.replace("_", "-")
    used = node.used(*keys)
    assert used <= value
    assert metrics[QUERIES_KEY] < 40, "it was not the queries that ended it"
    # A change on all examples would not have fitted with all that has to be booked for it.
    assert used + EXAMPLES * used / metrics[QUERIES_KEY] > 0.8 * value
    assert 1 <= len(tokens) <= 8
    assert float(metrics["accuracy"]) >= float(metrics["accuracy"]) - float(metrics[GAIN_KEY])
    assert metrics["trials"] > 0
    assert FAILURE_KEY not in metrics


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_a_search_ends_in_time(
    endpoint: str, start: list[Any], short_reviews: tuple[Example, ...]
) -> None:
    node = Node(endpoint, short_reviews, seconds_per_round=1.5, queries_per_round=100_000)
    _, metrics = node.fit(start)
    assert metrics[LIMIT_KEY] == "seconds-per-round"
    assert 0 < metrics[QUERIES_KEY] < 100_000


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("limit", "value", "keys"),
    [
        ("queries_per_run", 70, (QUERIES_KEY,)),
        ("cost_per_run", 0.0026, (COST_KEY,)),
    ],
)
def test_a_run_limit_holds_over_processes_and_scorings(
    limit: str,
    value: float,
    keys: tuple[str, ...],
    endpoint: str,
    start: list[Any],
    short_reviews: tuple[Example, ...],
) -> None:
    node = Node(endpoint, short_reviews, **{limit: value})
    prompts, metrics = node.fit(start)
    scored = node.evaluate([*start, *prompts])
    assert scored[SCORED_KEY] == OWN, "the search left enough to compare what it found"
    rounds = 1
    while USED_UP_KEY not in metrics:
        rounds += 1
        assert rounds < 9
        prompts, metrics = node.fit(start, rounds)
        assert node.used(*keys) <= value
        # What a round compares is new to it: a prompt of another client.
        node.evaluate([*start, np.array([100 + rounds, 200 + rounds])], rounds)
        assert node.used(*keys) <= value
    assert rounds > 1
    assert metrics[USED_UP_KEY] == limit.replace("_", "-")
    assert metrics[QUERIES_KEY] == metrics["requests"] == 0
    assert prompts[0].tolist() == start[0].tolist(), "it sends back what it was sent"
    assert metrics[GAIN_KEY] == 0
    # It still compares what others found until that is too much as well.
    for number in range(9):
        scored = node.evaluate([np.array([300 + number, 400 + number])], rounds + 1 + number)
        if FAILURE_KEY in scored:
            break
    assert SCORED_KEY not in scored
    assert limit.replace("_", "-") in scored[FAILURE_KEY]
    assert node.used(*keys) <= value
    assert num_compared(node.config) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_a_search_leaves_what_its_share_of_the_comparison_asks_and_no_more(
    endpoint: str, start: list[Any], short_reviews: tuple[Example, ...]
) -> None:
    """Of many clients each compares on a few of its examples."""
    node = Node(endpoint, short_reviews, queries_per_run=2 * EXAMPLES + 2 * 3)
    _, refused = node.fit(start)
    assert refused[USED_UP_KEY] == "queries-per-run", "for a comparison on all its examples"
    assert too_few_in_run(node.config, Sizes(6, 2, PUBLIC), 1)
    node.share = 4
    _, refused = node.fit(start)
    assert refused[USED_UP_KEY] == "queries-per-run", "no change could be tried"
    assert refused[QUERIES_KEY] == 0, "nor is the prompt it was sent measured then"
    node.share = 3
    prompts, metrics = node.fit(start, 2)
    assert USED_UP_KEY not in metrics
    assert metrics["trials"] > 0
    assert node.evaluate([*start, *prompts], 2)[SCORED_KEY] == 3


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("limit", ["tokens_per_round", "tokens_per_run"])
def test_a_message_that_comes_again_has_its_reply_whatever_is_left(
    limit: str, endpoint: str, start: list[Any], short_reviews: tuple[Example, ...]
) -> None:
    """A run that was stopped between a search and the end of its round, and goes on."""
    first = Node(endpoint, short_reviews, **{limit: 1500})
    (prompt,), metrics = first.fit(start)
    counts = first.evaluate([*start, prompt])
    # Nothing listens where this one would ask.
    again = Node("http://127.0.0.1:9/v1", short_reviews, **{limit: 1500})
    (same,), told = again.fit(start)
    assert same.tolist() == prompt.tolist()
    assert told == metrics
    assert again.evaluate([*start, prompt]) == counts


@pytest.mark.slow
def test_a_killed_search_has_used_what_it_paid_for(
    folder: Path,
    endpoint: str,
    start: list[Any],
    short_reviews: tuple[Example, ...],
) -> None:
    whole = Node(endpoint, short_reviews, tokens_per_run=4000)
    whole.fit(start)
    (file,) = (folder / "clients").iterdir()
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    assert "reply" in lines[-1]
    file.write_text("".join(lines[:-1]), encoding="utf-8")  # as if killed before its end
    node = Node(endpoint, short_reviews, tokens_per_run=4000)
    # The same message again, with another attempt's answers and tokens on disk.
    node.fit(start)
    assert node.used(*TOKENS) == 0, "it finds every answer"
    assert node.used(QUERIES_KEY) == whole.used(QUERIES_KEY), "which count as queries again"
    node.fit(start, 2)
    assert whole.used(*TOKENS) + node.used(*TOKENS) <= 4000
    state = node.client()._recall(node.message(3), "search")
    assert state.used_in_run.tokens == whole.used(*TOKENS) + node.used(*TOKENS)
    assert state.used_in_run.queries == node.used(QUERIES_KEY)

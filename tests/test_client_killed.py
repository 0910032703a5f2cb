"""A client whose process is killed, and the message that comes again.

The black box is the real one, except where answers near a limit are made up. Only the moment at
which the process ends is made: nothing of the client runs after it, as after a kill.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.common import RecordDict

from feddtpt_flwr import __version__, models
from feddtpt_flwr.amounts import Amounts
from feddtpt_flwr.budget import QueryBudget
from feddtpt_flwr.client_app import PromptTuningClient
from feddtpt_flwr.client_state import RUN_KEY, VERSION_KEY, ClientState, state_file, step
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import ClientData, Example, Task
from feddtpt_flwr.evaluation import Evaluator
from feddtpt_flwr.feedback import Trial
from feddtpt_flwr.language_model.local import LocalLanguageModel
from feddtpt_flwr.language_model.usage import Usage
from feddtpt_flwr.vocabulary import Vocabulary
from strategies.wire import (
    FAILURE_KEY,
    FROM_ARCHIVE_KEY,
    GAIN_KEY,
    LIMIT_KEY,
    QUERIES_KEY,
    ROUND_KEY,
    USED_UP_KEY,
    VOCABULARY_KEY,
)

START = "Movie review."
CONFIG = RunConfig.from_run_config(
    {
        "queries-per-round": 90,
        "seed-prompt": START,
        "max-prompt-tokens": 8,
        "dtype": "float32",
        "device": "cpu",
    }
)


class Killed(BaseException):
    """The process ends here."""


class Mortal:
    """The real black box in a process that ends before its next answers."""

    def __init__(self, model: LocalLanguageModel) -> None:
        self.name = model.name
        self.model = model
        self.asked: list[str] = []
        self.last = 10.0**6

    def answer(self, queries: Sequence[str], choices: Sequence[str]) -> list[str]:
        if len(self.asked) >= self.last:
            raise Killed
        self.asked += queries
        return self.model.answer(queries, choices)


@pytest.fixture
def mortal(
    language_model: LocalLanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Mortal:
    model = Mortal(language_model)
    monkeypatch.setattr(models, "language_model", lambda _: model)
    monkeypatch.setenv("FEDDTPT_CACHE", str(tmp_path))
    return model


@pytest.fixture
def start(vocabulary: Vocabulary) -> list[Any]:
    return [np.array(vocabulary.encode(START), dtype=np.int64)]


def client(examples: tuple[Example, ...]) -> PromptTuningClient:
    """A new process on the same node: Flower hands on nothing of one that was killed."""
    data = ClientData(train=examples[:12], validation=examples[12:14])
    return PromptTuningClient("north", data, examples[14:16], CONFIG, RecordDict())


def message(run: str, server_round: int = 1) -> dict[str, Any]:
    return {ROUND_KEY: server_round, RUN_KEY: run, VERSION_KEY: __version__}


@pytest.mark.slow
def test_a_killed_search_ends_where_it_would_have(
    mortal: Mortal, start: list[Any], short_reviews: tuple[Example, ...]
) -> None:
    (expected,), _, metrics = client(short_reviews).fit(start, message("undisturbed"))
    everything = list(mortal.asked)
    mortal.asked, mortal.last = [], len(everything) / 2
    with pytest.raises(Killed):
        client(short_reviews).fit(start, message("killed"))
    paid = len(mortal.asked)
    assert 0 < paid < len(everything)
    mortal.last = 10.0**6
    (tokens,), _, again = client(short_reviews).fit(start, message("killed"))
    assert tokens.tolist() == expected.tolist()
    assert sorted(mortal.asked) == sorted(everything), "each question reached the model once"
    assert again == metrics | {FROM_ARCHIVE_KEY: paid}
    assert metrics[FROM_ARCHIVE_KEY] == 0


@pytest.mark.slow
def test_what_a_killed_search_had_found_is_not_lost(
    mortal: Mortal,
    start: list[Any],
    short_reviews: tuple[Example, ...],
    vocabulary: Vocabulary,
    language_model: LocalLanguageModel,
    task: Task,
    tmp_path: Path,
) -> None:
    before = tuple(start[0].tolist())
    better = tuple(vocabulary.encode("Is this movie review positive or negative?"))[:8]
    change = Trial(0, before, better, "replace", 0.5, 8, 0.75, accepted=True)
    killed = ClientState(RecordDict(), state_file(tmp_path, "run", "north"), step(1, "search"))
    killed.begin(before)
    killed.feedback.record(change)

    _, _, metrics = client(short_reviews).fit(start, message("run", 2))
    examples = [*short_reviews[:12], *short_reviews[14:16]]
    ours, theirs = (
        Evaluator(language_model, task, QueryBudget(100)).correct(
            vocabulary.decode(tokens), examples
        )
        for tokens in (before, better)
    )
    accuracy, gain = float(str(metrics["accuracy"])), float(str(metrics[GAIN_KEY]))
    assert accuracy >= max(ours.mean(), theirs.mean())
    assert accuracy - gain == pytest.approx(ours.mean()), "the gain is over the global prompt"
    assert int(str(metrics[QUERIES_KEY])) <= CONFIG.queries_per_round


class MadeUp:
    """A black box whose answers are made up: any other prompt is better than the first one.

    Its process ends before an answer, if wanted.
    """

    name = "made up"

    def __init__(self, examples: Sequence[Example], task: Task) -> None:
        self._labels = {e.input: e.label for e in examples}
        self._never = examples[0].input
        self._words = task.answers
        self.usage = Usage()
        self.asked: list[str] = []
        self.last = 10.0**6

    def iter_answers(
        self, queries: Sequence[str], choices: Sequence[str]
    ) -> Iterator[tuple[int, str]]:
        for index, query in enumerate(queries):
            if len(self.asked) >= self.last:
                raise Killed
            self.asked.append(query)
            self.usage += Usage(1, 0, len(query) // 4, 1)
            text = next(text for text in self._labels if query.startswith(text))
            right = text != self._never and (START not in query or self._labels[text])
            yield index, self._words[self._labels[text] if right else 1 - self._labels[text]]

    def answer(self, queries: Sequence[str], choices: Sequence[str]) -> list[str]:
        return [answer for _, answer in self.iter_answers(queries, choices)]


@pytest.fixture
def made_up(
    short_reviews: tuple[Example, ...],
    task: Task,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> MadeUp:
    model = MadeUp(short_reviews[:16], task)
    monkeypatch.setattr(models, "language_model", lambda _: model)
    # The client's own memory alone has the answers.
    monkeypatch.setattr(models, "answer_store", lambda _: None)
    monkeypatch.setenv("FEDDTPT_CACHE", str(tmp_path))
    return model


def limited(examples: tuple[Example, ...], **limits: float) -> PromptTuningClient:
    settings = CONFIG.to_run_config() | {
        "endpoint": "http://127.0.0.1:9/v1",
        "language-model": "made-up",
        "constrain": "grammar",
        "queries-per-round": 1000,
        "race-candidates": 1,
        "race-examples": 1,
        **{name.replace("_", "-"): value for name, value in limits.items()},
    }
    data = ClientData(train=examples[:12], validation=examples[12:14])
    config = RunConfig.from_run_config(settings)
    return PromptTuningClient("north", data, examples[14:16], config, RecordDict())


TOKENS = 4000


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["tokens_per_round", "tokens_per_run"])
@pytest.mark.parametrize("share", [0.6, 0.9, 1.0])
def test_a_search_that_was_killed_near_its_limit_loses_nothing(
    limit: str, share: float, made_up: MadeUp, start: list[Any], short_reviews: tuple[Example, ...]
) -> None:
    node = partial(limited, short_reviews, **{limit: TOKENS})
    (undisturbed,), _, first = node().fit(start, message("undisturbed"))
    assert first[LIMIT_KEY] == limit.replace("_", "-"), "it is the tokens that end it"
    assert float(str(first[GAIN_KEY])) > 0
    everything = list(made_up.asked)
    made_up.asked, made_up.usage = [], Usage()
    for _ in range(2):
        made_up.last = share * len(everything) - 1
        with pytest.raises(Killed):
            node().fit(start, message("killed"))
    made_up.last = 10.0**6
    (tokens,), _, metrics = node().fit(start, message("killed"))
    assert tokens.tolist() == undisturbed.tolist()
    assert metrics["accuracy"] == first["accuracy"]
    assert metrics[GAIN_KEY] == first[GAIN_KEY]
    assert len(set(made_up.asked)) == len(made_up.asked), "nothing is asked twice"
    assert made_up.usage.prompt_tokens + made_up.usage.completion_tokens <= TOKENS
    assert USED_UP_KEY not in metrics
    (kept,), _, _ = node().fit(start, message("killed"))
    assert kept.tolist() == tokens.tolist()


@pytest.mark.slow
def test_what_was_found_is_sent_where_nothing_can_be_asked_any_more(
    made_up: MadeUp, start: list[Any], short_reviews: tuple[Example, ...], tmp_path: Path
) -> None:
    node = partial(limited, short_reviews, seconds_per_run=1000.0, queries_per_round=100)
    (undisturbed,), _, first = node().fit(start, message("undisturbed"))
    made_up.last = 2 * len(made_up.asked) - 1
    with pytest.raises(Killed):
        node().fit(start, message("killed"))
    made_up.last = asked = len(made_up.asked)
    file = state_file(tmp_path, "killed", "north")
    ClientState(RecordDict(), file, step(1, "search")).use(Amounts(seconds=1000.0))
    (tokens,), number, metrics = node().fit(start, message("killed"))
    assert tokens.tolist() == undisturbed.tolist()
    assert number == 14
    assert len(made_up.asked) == asked
    for key in ("accuracy", GAIN_KEY, "accepted"):
        assert metrics[key] == first[key]
    assert metrics[LIMIT_KEY] == "seconds-per-run"
    # There is no more to be had in the next round.
    (same,), _, metrics = node().fit(start, message("killed", 2))
    assert same.tolist() == start[0].tolist()
    assert metrics[USED_UP_KEY] == "seconds-per-run"


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        (
            {VOCABULARY_KEY: "another"},
            "not the server's, another; all nodes need the same masked-lm",
        ),
        ({VERSION_KEY: "9.9"}, "the server 9.9; both need the same version"),
    ],
)
def test_a_node_that_does_not_fit_asks_nothing_and_says_why(
    told: dict[str, str],
    reason: str,
    mortal: Mortal,
    start: list[Any],
    short_reviews: tuple[Example, ...],
) -> None:
    arrays, _, searched = client(short_reviews).fit(start, message("run") | told)
    _, _, scored = client(short_reviews).evaluate(start, message("run") | told)
    assert arrays == []
    for metrics in (searched, scored):
        assert reason in str(metrics[FAILURE_KEY])
        assert metrics[QUERIES_KEY] == 0
    assert mortal.asked == []

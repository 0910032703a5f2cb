"""A client whose process is killed, and the message that comes again.

The black box is the real one. Only the moment at which the process ends is made: nothing of the
client runs after it, as after a kill.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.common import RecordDict

from feddtpt_flwr import __version__, models
from feddtpt_flwr.budget import QueryBudget
from feddtpt_flwr.client_app import PromptTuningClient
from feddtpt_flwr.client_state import RUN_KEY, VERSION_KEY, ClientState, state_file, step
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import ClientData, Example, Task
from feddtpt_flwr.evaluation import Evaluator
from feddtpt_flwr.feedback import Trial
from feddtpt_flwr.language_model.local import LocalLanguageModel
from feddtpt_flwr.vocabulary import Vocabulary
from strategies.wire import (
    FAILURE_KEY,
    FROM_ARCHIVE_KEY,
    GAIN_KEY,
    QUERIES_KEY,
    ROUND_KEY,
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

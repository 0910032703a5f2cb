import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from feddtpt_flwr.budget import QueryBudget
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import Example, Task
from feddtpt_flwr.evaluation import Evaluator
from feddtpt_flwr.language_model import ModelUnavailableError
from feddtpt_flwr.language_model.local import LocalLanguageModel
from feddtpt_flwr.language_model.usage import Usage
from feddtpt_flwr.recorder import Recorder
from feddtpt_flwr.run_folder import RunFolder
from feddtpt_flwr.text_table import render
from feddtpt_flwr.vocabulary import Vocabulary
from strategies.candidates import Candidate, Score
from strategies.rounds import RoundResult
from strategies.wire import (
    CLIENT_KEY,
    COMPLETION_TOKENS_KEY,
    COST_KEY,
    FAILURE_KEY,
    GENERATOR_KEYS,
    LIMIT_KEY,
    PROMPT_TOKENS_KEY,
    QUERIES_KEY,
    ROUND_KEY,
    UNPARSED_KEY,
    USED_UP_KEY,
)

SEED, LEARNED = "Judge this review.", "Is this film good?"
TEST_SIZE = 6


@pytest.fixture
def test_set(short_reviews: tuple[Example, ...]) -> tuple[Example, ...]:
    return short_reviews[:TEST_SIZE]


@pytest.fixture
def recorder(
    tmp_path: Path,
    task: Task,
    vocabulary: Vocabulary,
    language_model: LocalLanguageModel,
    test_set: tuple[Example, ...],
) -> Recorder:
    return Recorder(
        RunConfig.from_run_config({"seed": 5}),
        task,
        vocabulary,
        Evaluator(language_model, task, QueryBudget(100)),
        test_set,
        RunFolder(tmp_path, "run"),
        language_model.name,
    )


def arrays(vocabulary: Vocabulary, text: str) -> list[NDArray[Any]]:
    return [np.array(vocabulary.encode(text))]


def search_metrics(client: str, **changes: Any) -> tuple[int, dict[str, Any]]:
    accepted = [{"position": 1, "before": "a", "after": "b", "accuracy": 0.5}]
    metrics = {
        CLIENT_KEY: client,
        ROUND_KEY: 1,
        QUERIES_KEY: 30,
        "accuracy": 0.5,
        "accepted": json.dumps(accepted),
    }
    return 10, metrics | changes


def file(recorder: Recorder, name: str) -> str:
    return (recorder._folder.path / name).read_text(encoding="utf-8")


def history(recorder: Recorder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file(recorder, "history.jsonl").splitlines()]


def test_a_whole_run(
    recorder: Recorder,
    vocabulary: Vocabulary,
    language_model: LocalLanguageModel,
    task: Task,
    test_set: tuple[Example, ...],
) -> None:
    first = recorder.evaluate(0, arrays(vocabulary, SEED), {})
    assert first
    loss, metrics = first
    answers = language_model.answer([task.compose(SEED, e.input) for e in test_set], task.answers)
    expected = sum(a == task.answers[e.label] for a, e in zip(answers, test_set, strict=True))
    assert metrics == {"accuracy": expected / TEST_SIZE}
    assert loss == pytest.approx(1 - expected / TEST_SIZE)

    fit = recorder.fit_metrics([search_metrics("0"), search_metrics("1", accuracy=1.0, queries=10)])
    assert fit == {QUERIES_KEY: 40, "accuracy": 0.75}
    race: dict[str, Any] = {CLIENT_KEY: "0", ROUND_KEY: 1, QUERIES_KEY: 8, "accuracy": 0.5}
    assert recorder.evaluate_metrics([(4, race)]) == {QUERIES_KEY: 8}

    central = recorder.evaluate(1, arrays(vocabulary, LEARNED), {})
    assert central
    seed, learned = vocabulary.encode(SEED), vocabulary.encode(LEARNED)
    candidates = (Candidate(seed, "incumbent"), Candidate(learned, "client 1"))
    scores = {seed: Score(3, 8)}
    recorder.round(RoundResult(1, candidates[1], candidates, scores, 2, 1234, central[1]))
    table = recorder.close()

    events = [line["event"] for line in history(recorder)]
    assert events == ["start", "search", "search", "race", "round"]
    start, search, _, _, settled = history(recorder)
    assert start["prompt"] == SEED
    assert search["accepted"][0]["after"] == "b"
    assert (search["round"], search["num_examples"], search[CLIENT_KEY]) == (1, 10, "0")
    assert settled["chosen"] == "client 1"
    assert settled["prompt"] == LEARNED
    assert settled["candidates"][0] == {
        "origin": "incumbent",
        "prompt": SEED,
        "correct": 3,
        "total": 8,
    }
    assert settled["candidates"][1]["correct"] is None
    assert (settled["failures"], settled["bytes"], settled["queries"]) == (2, 1234, 48)
    assert settled["accuracy"] == central[1]["accuracy"]

    for text in (SEED, LEARNED, "48", "1,234", f"{TEST_SIZE} held-out"):
        assert text in table
    names = {path.name for path in recorder._folder.path.iterdir()}
    assert names == {"accuracy.png", "config.toml", "history.jsonl", "prompt.json", "resume.toml"}


def test_the_prompt_file_says_all_that_one_needs_to_use_it(
    recorder: Recorder, vocabulary: Vocabulary, task: Task, language_model: LocalLanguageModel
) -> None:
    recorder.evaluate(0, arrays(vocabulary, SEED), {})
    recorder.evaluate(1, arrays(vocabulary, LEARNED), {})
    prompt = json.loads(file(recorder, "prompt.json"))
    assert prompt["prompt"] == LEARNED
    assert prompt["seed-prompt"] == SEED
    assert vocabulary.decode(prompt["tokens"]) == LEARNED
    assert prompt["vocabulary"] == vocabulary.fingerprint
    assert prompt["task"] == task.name
    assert prompt["template"] == task.template
    assert tuple(prompt["labels"]) == task.labels
    assert tuple(prompt["answers"]) == task.answers
    assert prompt["synonyms"] == []
    row = {"text": "a warm and funny film"}
    query = prompt["template"].format(prompt=prompt["prompt"], **row)
    assert query == task.compose(LEARNED, task.render(row)), "as README.md says"
    assert prompt["language-model"] == language_model.name
    assert (prompt["chat"], prompt["masked-lm"], prompt["seed"]) == (False, "embedded", 5)
    assert prompt["rounds"] == 1
    accuracy = prompt["held-out-accuracy"]
    for which in ("learned", "seed-prompt"):
        low, high = accuracy[which]["interval-95"]
        assert 0 <= low <= accuracy[which]["accuracy"] <= high <= 1
        assert accuracy[which]["examples"] == TEST_SIZE
    assert {"python", "feddtpt-flwr", "flwr", "torch", "transformers"} <= prompt["versions"].keys()
    assert "unknown" not in prompt["versions"].values()


def test_the_prompt_is_there_before_the_first_round(
    recorder: Recorder, vocabulary: Vocabulary
) -> None:
    """A run that is interrupted leaves the best prompt so far."""
    recorder.evaluate(0, arrays(vocabulary, SEED), {})
    prompt = json.loads(file(recorder, "prompt.json"))
    assert (prompt["prompt"], prompt["rounds"]) == (SEED, 0)


def test_a_prompt_that_stays_costs_nothing(recorder: Recorder, vocabulary: Vocabulary) -> None:
    recorder.evaluate(0, arrays(vocabulary, SEED), {})
    recorder.evaluate(1, arrays(vocabulary, SEED), {})
    assert recorder._held_out.queries == TEST_SIZE


@pytest.mark.parametrize(
    "changes",
    [
        {"accepted": "no JSON"},
        {"accuracy": "high"},
        {"accuracy": None},
        {QUERIES_KEY: "many"},
        {QUERIES_KEY: None},
        {QUERIES_KEY: -1_000_000},
        {QUERIES_KEY: 1e20},
        {QUERIES_KEY: 10**20},
        {"accepted": "[" * 200_000},
        {ROUND_KEY: None},
        {"num_examples": 9},
        {"photo": b"bytes are no JSON"},
    ],
)
def test_what_a_client_tells_cannot_stop_the_run(
    changes: dict[str, Any], recorder: Recorder
) -> None:
    """The prompt of such a client may be good; only what it tells about itself is not."""
    number, metrics = search_metrics("1", **changes)
    metrics = {key: value for key, value in metrics.items() if value is not None}
    total = recorder.fit_metrics([search_metrics("0"), (number, metrics)])
    assert [line[CLIENT_KEY] for line in history(recorder)] == ["0"]
    assert total == {QUERIES_KEY: 30, "accuracy": 0.5}


def test_two_clients_of_one_name_are_warned_of(recorder: Recorder, warned: list[str]) -> None:
    recorder.fit_metrics([search_metrics(name) for name in ("north", "north", "south")])
    assert warned == ["2 clients call themselves north; names must differ"]


def test_clients_without_examples_cannot_stop_the_run(recorder: Recorder) -> None:
    _, metrics = search_metrics("0")
    recorder.fit_metrics([(0, metrics)])
    assert [line["event"] for line in history(recorder)] == ["search"]


class Unsteady:
    """The real model, behind a fake endpoint that fails when told to and counts by rule."""

    def __init__(self, model: LocalLanguageModel) -> None:
        self._model = model
        self.name = model.name
        self.down = False
        self.usage = Usage()

    def answer(self, queries: Sequence[str], choices: Sequence[str]) -> list[str]:
        if self.down:
            raise ModelUnavailableError("http://127.0.0.1:1/v1: HTTP 503, after 4 attempts")
        self.usage += Usage(len(queries), 0, 10 * len(queries), 2 * len(queries))
        return self._model.answer(queries, choices)


@pytest.fixture
def unsteady(language_model: LocalLanguageModel) -> Unsteady:
    return Unsteady(language_model)


@pytest.fixture
def remote(
    tmp_path: Path,
    task: Task,
    vocabulary: Vocabulary,
    unsteady: Unsteady,
    test_set: tuple[Example, ...],
) -> Recorder:
    config = {"price-per-million-input": 1000.0, "price-per-million-output": 5000.0}
    return Recorder(
        RunConfig.from_run_config(config),
        task,
        vocabulary,
        Evaluator(unsteady, task, QueryBudget(100)),
        test_set,
        RunFolder(tmp_path, "run"),
        unsteady.name,
    )


def settled(vocabulary: Vocabulary, text: str) -> RoundResult:
    candidate = Candidate(tuple(vocabulary.encode(text)), "client 1")
    return RoundResult(1, candidate, (candidate,), {}, 0, 1, None)


def test_an_outage_costs_the_figure_and_not_the_run(
    remote: Recorder, vocabulary: Vocabulary, unsteady: Unsteady, warned: list[str]
) -> None:
    unsteady.down = True
    assert remote.evaluate(0, arrays(vocabulary, SEED), {}) is None
    assert "round 0: no held-out accuracy: http://127.0.0.1:1/v1: HTTP 503" in warned[0]
    prompt = json.loads(file(remote, "prompt.json"))
    assert prompt["prompt"] == SEED
    assert prompt["held-out-accuracy"] == {"learned": None, "seed-prompt": None}
    assert history(remote)[0]["accuracy"] is None

    unsteady.down = False
    assert remote.evaluate(1, arrays(vocabulary, LEARNED), {})
    remote.round(settled(vocabulary, LEARNED))
    table = remote.close()
    assert "not known" not in table, "the seed prompt is measured at the end"
    assert json.loads(file(remote, "prompt.json"))["held-out-accuracy"]["seed-prompt"]


def test_a_run_without_any_held_out_accuracy_still_ends(
    remote: Recorder, vocabulary: Vocabulary, unsteady: Unsteady
) -> None:
    unsteady.down = True
    for server_round, text in enumerate((SEED, LEARNED)):
        assert remote.evaluate(server_round, arrays(vocabulary, text), {}) is None
    table = remote.close()
    assert "not known: the language model did not answer" in table
    assert LEARNED in table


def test_tokens_costs_and_failures_are_added_up(
    remote: Recorder, vocabulary: Vocabulary, unsteady: Unsteady
) -> None:
    remote.evaluate(0, arrays(vocabulary, SEED), {})
    spent = {UNPARSED_KEY: 2, PROMPT_TOKENS_KEY: 1000, COMPLETION_TOKENS_KEY: 50, COST_KEY: 0.5}
    reports = [search_metrics("0", **spent), search_metrics("1", **spent, **{FAILURE_KEY: "down"})]
    failed: dict[str, Any] = {CLIENT_KEY: "2", ROUND_KEY: 1, QUERIES_KEY: 3, FAILURE_KEY: "down"}
    metrics = remote.fit_metrics([*reports, (0, failed | spent)])
    assert metrics == {QUERIES_KEY: 63, "accuracy": 0.5}, "who measured nothing has no accuracy"
    assert history(remote)[3][FAILURE_KEY] == "down"
    remote.round(settled(vocabulary, SEED))
    remote.round(settled(vocabulary, SEED))
    first, second = history(remote)[-2:]
    assert (first[UNPARSED_KEY], first[PROMPT_TOKENS_KEY], first[COST_KEY]) == (6, 3000, 1.5)
    assert (second[UNPARSED_KEY], second[PROMPT_TOKENS_KEY], second[COST_KEY]) == (0, 0, 0)
    table = " ".join(remote.close().split())
    assert "clients 6, held-out 0" in table
    assert "clients 3,000 + 150, held-out 60 + 12" in table
    assert "clients 1.5000, held-out 0.1200" in table
    assert "scorings cut short │ 2" in table


@pytest.mark.parametrize("amount", ["many", -1, float("nan"), float("inf"), b"1"])
def test_impossible_amounts_are_left_out(amount: Any, recorder: Recorder) -> None:
    recorder.fit_metrics([search_metrics("0"), search_metrics("1", **{COST_KEY: amount})])
    assert [line[CLIENT_KEY] for line in history(recorder)] == ["0"]


def test_a_recorder_goes_on_where_another_one_stopped(
    recorder: Recorder,
    vocabulary: Vocabulary,
    tmp_path: Path,
    task: Task,
    language_model: LocalLanguageModel,
    test_set: tuple[Example, ...],
) -> None:
    recorder.evaluate(0, arrays(vocabulary, SEED), {})
    recorder.fit_metrics([search_metrics("0")])
    recorder.evaluate(1, arrays(vocabulary, LEARNED), {})
    recorder.round(settled(vocabulary, LEARNED))
    state = json.loads(json.dumps(recorder.state_dict()))

    evaluator = Evaluator(language_model, task, QueryBudget(100))
    folder = RunFolder.existing(recorder._folder.path)
    config = RunConfig.from_run_config({"seed": 5})
    again = Recorder(config, task, vocabulary, evaluator, test_set, folder, language_model.name)
    again.load_state_dict(state)
    assert json.loads(json.dumps(again.state_dict())) | {"seconds": 0} == state | {"seconds": 0}
    # Flower evaluates the prompt that it starts from; that is known.
    before = history(recorder)
    assert again.evaluate(1, arrays(vocabulary, LEARNED), {})
    assert history(again) == before
    assert evaluator.from_archive == 0
    assert again.state_dict()["held-out-queries"] == state["held-out-queries"]
    table = again.close()
    assert SEED in table
    assert json.loads(file(again, "prompt.json"))["rounds"] == 1


def test_models_are_told_apart_if_there_are_several(
    recorder: Recorder, vocabulary: Vocabulary
) -> None:
    recorder.evaluate(0, arrays(vocabulary, SEED), {})
    tokens = tuple(vocabulary.encode(SEED))
    candidate = Candidate(tokens, "incumbent")
    by_model = {"large": {tokens: Score(3, 4)}, "small": {tokens: Score(1, 4)}}
    result = RoundResult(1, candidate, (candidate,), {tokens: Score(4, 8)}, 0, 1, None, by_model)
    recorder.round(result)
    (written,) = history(recorder)[-1]["candidates"]
    assert written["by-model"] == {
        "large": {"correct": 3, "total": 4},
        "small": {"correct": 1, "total": 4},
    }
    table = recorder.close()
    assert "large: 75.0% of 4" in table
    assert "small: 25.0% of 4" in table


def test_what_a_generator_used_and_what_limits_ended(
    tmp_path: Path,
    task: Task,
    vocabulary: Vocabulary,
    language_model: LocalLanguageModel,
    test_set: tuple[Example, ...],
    warned: list[str],
) -> None:
    recorder = Recorder(
        RunConfig.from_run_config({"proposer": "prompt-generator"}),
        task,
        vocabulary,
        Evaluator(language_model, task, QueryBudget(100)),
        test_set,
        RunFolder(tmp_path, "run"),
        language_model.name,
    )
    recorder.evaluate(0, arrays(vocabulary, SEED), {})
    used = dict.fromkeys(GENERATOR_KEYS, 3)
    searched = search_metrics("a", **used, **{LIMIT_KEY: "cost-per-round"})
    _, sent_back = search_metrics("b", **{QUERIES_KEY: 0, USED_UP_KEY: "cost-per-run"})
    del sent_back["accuracy"]
    assert recorder.fit_metrics([searched, (10, sent_back)])["accuracy"] == 0.5
    assert warned == []
    recorder.round(settled(vocabulary, SEED))
    recorder.ended_early()
    a, b = (line for line in history(recorder) if line["event"] == "search")
    assert (a[LIMIT_KEY], b[USED_UP_KEY]) == ("cost-per-round", "cost-per-run")
    (line,) = (line for line in history(recorder) if line["event"] == "round")
    assert {key: line[key] for key in GENERATOR_KEYS} == used
    assert history(recorder)[-1]["event"] == "used-up"
    table = recorder.close()
    assert "3 requests, 3 + 3 tokens read + written, cost 3.0000" in table
    assert "3 times the masked LM proposed in its place" in table
    assert "after 0 of 3 rounds: every client has used up" in table


def test_prompts_and_names_are_not_markup() -> None:
    table = render("FedDTPT", {"seed prompt": "[INST] Classify [/INST]", "model": "[/x] [red]"})
    assert "[INST] Classify [/INST]" in table
    assert "[/x] [red]" in table


def test_no_path_is_cut() -> None:
    path = "/" + "/".join(["a_long_name_of_a_folder"] * 6)
    assert path in render("FedDTPT", {"run folder": path, "seed prompt": "Is it good?"})


def test_what_nodes_spent_is_told_where_the_server_spends_nothing(recorder: Recorder) -> None:
    spent = {UNPARSED_KEY: 2, PROMPT_TOKENS_KEY: 1000, COMPLETION_TOKENS_KEY: 50, COST_KEY: 12.5}
    prompt = recorder._vocabulary
    recorder.evaluate(0, arrays(prompt, SEED), {})
    recorder.fit_metrics([search_metrics("0", **spent)])
    recorder.round(settled(prompt, SEED))
    table = " ".join(recorder.close().split())
    assert "clients 12.5000, held-out 0.0000" in table


def test_what_held_out_questions_cost_outlasts_the_process(
    remote: Recorder, vocabulary: Vocabulary, test_set: tuple[Example, ...]
) -> None:
    remote.evaluate(0, arrays(vocabulary, SEED), {})
    state = json.loads(json.dumps(remote.state_dict()))
    once = 10 * len(test_set)
    assert state["held-out-usage"]["prompt_tokens"] == once
    remote.load_state_dict(state)
    again = remote.state_dict()["held-out-usage"]
    assert again["prompt_tokens"] == 2 * once, "on top of what this process has asked"


def test_uneven_labels_are_told_and_counted_alike(
    tmp_path: Path,
    task: Task,
    vocabulary: Vocabulary,
    language_model: LocalLanguageModel,
    short_reviews: tuple[Example, ...],
    warned: list[str],
) -> None:
    good, bad = ([e for e in short_reviews if e.label == label] for label in (1, 0))

    def closed(test: list[Example], name: str) -> tuple[str, Recorder]:
        recorder = Recorder(
            RunConfig.from_run_config({}),
            task,
            vocabulary,
            Evaluator(language_model, task, QueryBudget(100)),
            tuple(test),
            RunFolder(tmp_path, name),
            language_model.name,
        )
        recorder.evaluate(0, arrays(vocabulary, SEED), {})
        recorder.evaluate(1, arrays(vocabulary, LEARNED), {})
        return recorder.close(), recorder

    assert "labels' accuracies" not in closed([*good[:3], *bad[:3]], "even")[0]
    assert not warned
    table, recorder = closed([*good[:4], bad[0]], "uneven")
    assert "1 'negative', 4 'positive'; 'positive' to all: 80.0% right" in table
    correct = recorder._held_out._correct[vocabulary.encode(LEARNED)]
    balanced = (correct[:4].mean() + correct[4]) / 2
    assert f"learned prompt {balanced:.1%}" in table.split("mean of the labels'")[1]
    learned = json.loads(file(recorder, "prompt.json"))["held-out-accuracy"]["learned"]
    assert learned["balanced-accuracy"] == balanced
    closed(good[:2], "one")
    assert warned == ["no held-out example has the answer 'negative'"]

import json
from collections.abc import Sequence
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.common import RecordDict
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from feddtpt_flwr import models
from feddtpt_flwr.amounts import Amounts, Tariff
from feddtpt_flwr.answer_store import AnswerStore
from feddtpt_flwr.baselines.random_words import RandomProposer
from feddtpt_flwr.budget import ClientBudget, QueryBudget, Span
from feddtpt_flwr.client_app import PromptTuningClient
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import ClientData, Example, Task
from feddtpt_flwr.evaluation import AnswerCache
from feddtpt_flwr.feedback import Feedback, Trial
from feddtpt_flwr.generator import PromptGenerator, Writer, spanning_edit
from feddtpt_flwr.language_model import ModelUnavailableError
from feddtpt_flwr.language_model.usage import Usage
from feddtpt_flwr.proposer import NothingBetterError
from feddtpt_flwr.search import RACES_AHEAD, WIDTH, PromptSearch
from feddtpt_flwr.vocabulary import Vocabulary
from feddtpt_flwr.written_prompts import read_prompts, writing_request
from strategies.candidates import Tokens
from strategies.edits import Edit
from strategies.wire import (
    COST_KEY,
    GENERATOR_COMPLETION_TOKENS_KEY,
    GENERATOR_COST_KEY,
    GENERATOR_KEYS,
    GENERATOR_PROMPT_TOKENS_KEY,
    GENERATOR_REQUESTS_KEY,
    QUERIES_KEY,
    ROUND_KEY,
)
from tests.conftest import ENDPOINT_KEY

START = "Judge this film review."
ONE_RACE = WIDTH
NOUNS = ["film", "movie", "story", "plot", "book", "play", "song", "text"]
WORDS = [
    "Old",
    "Great",
    "Long",
    "Short",
    "Big",
    "Small",
    "Nice",
    "Fine",
    "Dark",
    "Light",
    "Warm",
    "Cold",
]
TWO = ["Say what the critic felt.", "Is the tone friendly or hostile?"]


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(TWO),
        f" {TWO[0]}\n2. {TWO[1]}",
        f"1) {TWO[0]}\n2) {TWO[1]}\n",
        f'- "{TWO[0]}"\n- "{TWO[1]}"',
        f"Here are two instructions:\n\n* {TWO[0]}\n\n* **{TWO[1]}**",
        f"Instruction 1: {TWO[0]}\nInstruction 2: {TWO[1]}",
        json.dumps(TWO),
        f"Sure!\n```json\n{json.dumps({'instructions': TWO})}\n```\nGood luck.",
        json.dumps([{"instruction": text} for text in TWO]),
        f"{TWO[0]}\n{TWO[0]}\n<html>\n\n17\n{TWO[1]}\n",
    ],
)
def test_what_models_write_is_read(text: str) -> None:
    assert read_prompts(text) == TWO


@given(st.text() | st.lists(st.text()).map(json.dumps))
def test_whatever_is_written_a_prompt_is_letters_and_simple_punctuation(text: str) -> None:
    prompts = read_prompts(text)
    assert len(set(prompts)) == len(prompts)
    for prompt in prompts:
        assert prompt == " ".join(prompt.split())
        assert any(sign.isalpha() for sign in prompt)
        assert not set(prompt) & set("{}[]<>#*_@\\|`$+\n\t")


@pytest.mark.parametrize(
    "prompt",
    [
        "¿Es positiva o negativa esta crítica?",
        "Is the review’s tone warm (or cold) – on a scale of 1/10?",  # noqa: RUF001
        "क्या यह समीक्षा सकारात्मक है?",
        "这条评论是正面的还是负面的？",  # noqa: RUF001
        "هل هذه المراجعة إيجابية أم سلبية؟",
    ],
)
def test_prompts_of_any_language_are_read(prompt: str) -> None:
    assert read_prompts(f"Here they are:\n1. {prompt}\n2. x = {{y}}\n") == [prompt]


tokens = st.lists(st.integers(0, 3), max_size=8).map(tuple)


@given(before=tokens, after=tokens)
def test_an_edit_leads_from_one_prompt_to_the_other(
    before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    edit = spanning_edit(before, after)
    assert edit.apply(before) == after
    assert 0 <= edit.start <= edit.stop <= len(before)
    if before != after:
        assert before[edit.start : edit.start + 1] != after[edit.start : edit.start + 1]


def test_a_request_says_what_it_is_about(task: Task) -> None:
    request = writing_request(
        task, START, ["'a' left out: +10%"], count=3, max_words=9, excluded_words=("bad",)
    )
    for part in ("<instruction>", "<text>", *task.answers, START, "'a' left out: +10%", "3", "bad"):
        assert part in request
    assert not request.endswith("1.")
    assert writing_request(task, START, [], count=3, max_words=9, chat=False).endswith("\n1.")


class Scripted:
    """A fake language model that writes what it is told to, for what is no use or too expensive."""

    name = "scripted"

    def __init__(self, *texts: str | Exception) -> None:
        self.texts = list(texts)
        self.requests: list[str] = []
        self.usage = Usage()

    def answer(self, queries: Sequence[str], choices: Sequence[str]) -> list[str]:
        assert not choices
        self.requests += queries
        text = self.texts.pop(0)
        if isinstance(text, Exception):
            raise text
        self.usage += Usage(1, 0, 50, 20)
        return [text]


def generator(
    model: Scripted,
    vocabulary: Vocabulary,
    task: Task,
    budget: QueryBudget | None = None,
    cache: AnswerCache | None = None,
) -> tuple[PromptGenerator, Writer]:
    tariff = Tariff(longest_answer=100, counted=True)
    writer = Writer(
        model,
        tariff,
        budget or QueryBudget(0),
        AnswerCache() if cache is None else cache,
        chat=True,
    )
    proposer = PromptGenerator(
        writer, RandomProposer(vocabulary), task, vocabulary, max_tokens=8, excluded_words=("bad",)
    )
    return proposer, writer


def propose(
    proposer: PromptGenerator, vocabulary: Vocabulary, feedback: Feedback | None = None
) -> list[str]:
    start = vocabulary.encode(START)
    count = RACES_AHEAD * ONE_RACE
    edits = proposer.propose(start, feedback or Feedback(), np.random.default_rng(0), count)
    return [vocabulary.decode(edit.apply(start)) for edit in edits]


def test_only_new_prompts_within_the_limits_are_proposed(
    vocabulary: Vocabulary, task: Task
) -> None:
    long = "Judge this film review as well as you can, if you please."
    text = f"Judge this movie.\nIs it Bad?\n{START}\n{long}\nJudge this movie.\nFriendly?"
    proposer, writer = generator(Scripted(text), vocabulary, task)
    assert propose(proposer, vocabulary) == ["Judge this movie.", "Friendly?"]
    assert (writer.requests, writer.fallbacks) == (1, 0)
    # The same request has the same answer, which is known: somebody else has to propose.
    assert len(propose(proposer, vocabulary)) == ONE_RACE
    assert (writer.requests, writer.fallbacks) == (1, 1)


def test_what_was_tried_is_shown_but_no_more_than_some(vocabulary: Vocabulary, task: Task) -> None:
    model, start = Scripted("Friendly?"), vocabulary.encode(START)
    feedback = Feedback()
    for number, word in enumerate(vocabulary.encode("a b c d e f g h i j k l")):
        edit = Edit(0, 1, (word,))
        correct = np.ones(20, dtype=bool)
        feedback.record(Trial.of(edit, start, gain=number - 6, correct=correct, accepted=False))
    propose(generator(model, vocabulary, task)[0], vocabulary, feedback)
    (request,) = model.requests
    lines = [line for line in request.splitlines() if "instead of" in line]
    assert lines[0] == '"l" instead of "Judge": +25% of 20 examples'
    assert lines[-1] == '"a" instead of "Judge": -30% of 20 examples'
    assert len(lines) == 10


def test_a_gain_on_few_examples_ranks_behind_a_smaller_one_on_many(
    vocabulary: Vocabulary, task: Task
) -> None:
    model, start = Scripted("Friendly?"), vocabulary.encode(START)
    feedback = Feedback()
    for word, won, number in (("Rate", 1, 8), ("Weigh", 5, 48), ("Test", -1, 8), ("Try", -5, 48)):
        edit = Edit(0, 1, vocabulary.encode(word))
        correct = np.ones(number, dtype=bool)
        feedback.record(Trial.of(edit, start, gain=won, correct=correct, accepted=False))
    propose(generator(model, vocabulary, task)[0], vocabulary, feedback)
    (request,) = model.requests
    assert [line for line in request.splitlines() if "instead of" in line] == [
        '"Weigh" instead of "Judge": +10% of 48 examples',
        '"Rate" instead of "Judge": +12% of 8 examples',
        '"Test" instead of "Judge": -12% of 8 examples',
        '"Try" instead of "Judge": -10% of 48 examples',
    ]


def test_an_answer_of_no_use_is_counted_and_another_proposes(
    vocabulary: Vocabulary, task: Task
) -> None:
    proposer, writer = generator(Scripted("17 <html>"), vocabulary, task)
    assert len(propose(proposer, vocabulary)) == ONE_RACE
    assert (writer.requests, writer.fallbacks) == (1, 1)


def test_a_model_that_fails_is_not_asked_again(
    vocabulary: Vocabulary, task: Task, warned: list[str]
) -> None:
    model = Scripted(ModelUnavailableError("down"), "never asked for")
    proposer, writer = generator(model, vocabulary, task)
    for _ in range(2):
        assert len(propose(proposer, vocabulary)) == ONE_RACE
    assert len(model.requests) == 1
    assert (writer.requests, writer.fallbacks) == (0, 2)
    assert warned == ["the prompt generator does not answer: down"]


def test_what_was_written_is_not_paid_for_twice(vocabulary: Vocabulary, task: Task) -> None:
    cache, model = AnswerCache(), Scripted("Friendly?")
    expected = propose(generator(model, vocabulary, task, cache=cache)[0], vocabulary)
    proposer, writer = generator(model, vocabulary, task, cache=cache)
    assert propose(proposer, vocabulary) == expected
    assert (writer.requests, writer.fallbacks) == (0, 0)


def test_half_a_character_is_no_use_and_does_no_harm(
    vocabulary: Vocabulary, task: Task, tmp_path: Path
) -> None:
    store = AnswerStore(tmp_path / "answers.sqlite", 2**20)
    cache, model = AnswerCache(archives=(store,)), Scripted("Friendly \ud83d film?")
    proposer, writer = generator(model, vocabulary, task, cache=cache)
    propose(proposer, vocabulary)
    assert writer.requests == 1
    assert len(store) == 1, "it is kept as it can be"


def test_requests_are_charged_and_are_no_queries(vocabulary: Vocabulary, task: Task) -> None:
    limits = Amounts(queries=inf, tokens=700, cost=inf, seconds=inf)
    budget = ClientBudget(5, Span("round", limits), tariff=Tariff(counted=True))
    model = Scripted("Friendly film?", "Hostile film?")
    proposer, writer = generator(model, vocabulary, task, budget)
    assert propose(proposer, vocabulary) == ["Friendly film?"]
    assert budget.spent.tokens == 70

    budget.admit(["a question to the black box"])
    budget.settle(Usage(1, 0, 500, 0))
    shown = Feedback()
    edit, correct = Edit(0, 1, vocabulary.encode("Rate")), np.ones(4, dtype=bool)
    start = vocabulary.encode(START)
    shown.record(Trial.of(edit, start, gain=1, correct=correct, accepted=False))
    assert len(propose(proposer, vocabulary, shown)) == ONE_RACE
    assert (writer.requests, writer.fallbacks) == (1, 1), "it might cost more than is left"
    assert budget.used == 0


class StandIn:
    """A double of the masked language model's proposer: puts in one word after the other."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._words = iter(np.flatnonzero(vocabulary.proposable(())).tolist())
        self.counts: list[int] = []

    def propose(
        self, tokens: Tokens, feedback: Feedback, rng: np.random.Generator, count: int
    ) -> list[Edit]:
        self.counts.append(count)
        return [Edit(0, 1, (next(self._words),)) for _ in range(count)]


class SameAnswers:
    """A double of an evaluator under which no prompt is better than another."""

    def __init__(self, limit: int) -> None:
        self.budget = QueryBudget(limit)
        self.races: list[list[str]] = []

    def correct_all(self, prompts: Sequence[str], examples: Sequence[Example]) -> NDArray[np.bool_]:
        self.budget.spend(len(prompts) * len(examples))
        self.races.append(list(prompts))
        return np.array([[example.label == 0 for example in examples] for _ in prompts])


def raced(
    texts: Sequence[str],
    vocabulary: Vocabulary,
    task: Task,
    *,
    use_feedback: bool = True,
    unreadable: Sequence[str] = (),
) -> tuple[list[list[str]], StandIn, Writer, Scripted]:
    """Search with a model that writes ``texts`` until the budget of 12 prompts is used up."""
    examples = [Example(str(number), number % 2) for number in range(8)]
    model, stand_in = Scripted(*texts), StandIn(vocabulary)
    tariff = Tariff(longest_answer=100, counted=True)
    writer = Writer(model, tariff, QueryBudget(0), AnswerCache(), chat=True)
    evaluator = SameAnswers(13 * len(examples))
    search = PromptSearch(
        evaluator,  # type: ignore[arg-type]
        PromptGenerator(
            writer, stand_in, task, vocabulary, max_tokens=8, use_feedback=use_feedback
        ),
        SimpleNamespace(vocabulary=vocabulary),
        examples,
        np.random.default_rng(0),
        max_tokens=8,
        admissible=lambda prompts: [vocabulary.decode(p) not in unreadable for p in prompts],
    )
    search.run(vocabulary.encode(START), Feedback())
    return evaluator.races[1:], stand_in, writer, model


@pytest.mark.parametrize("number", [1, 3, 4, 6, 8])
def test_what_was_written_is_raced_however_little_it_is(
    number: int, vocabulary: Vocabulary, task: Task
) -> None:
    prompts = [f"{word} {noun}?" for word in WORDS for noun in NOUNS[:number]]
    texts = ["\n".join(prompts[i : i + number]) for i in range(0, len(prompts), number)]
    races, stand_in, writer, model = raced(texts, vocabulary, task)
    assert [prompt for race in races for prompt in race] == prompts[:12]
    assert {len(race) for race in races[:-1]} <= {min(number, WIDTH), number - WIDTH}
    assert (stand_in.counts, writer.fallbacks) == ([], 0)
    assert len(model.requests) == -(-12 // number), "one for each step that needs any"


def test_a_step_with_nothing_new_is_one_race_of_the_stand_in(
    vocabulary: Vocabulary, task: Task
) -> None:
    texts = ["Friendly?\nHostile?", "Friendly?", "17", "Tender?", "Bold?"]
    races, stand_in, writer, _ = raced(texts, vocabulary, task)
    assert races[0] == ["Friendly?", "Hostile?"]
    assert [len(race) for race in races] == [2, WIDTH, WIDTH, 1, 1]
    assert races[3:] == [["Tender?"], ["Bold?"]]
    assert stand_in.counts == [WIDTH, WIDTH]
    assert writer.fallbacks == 2


@pytest.mark.parametrize("number", [2, 8])
def test_where_nothing_that_was_written_may_be_tried_the_stand_in_proposes(
    number: int, vocabulary: Vocabulary, task: Task
) -> None:
    unreadable = [f"Good {noun}?" for noun in NOUNS[:number]]
    texts = ["\n".join(unreadable), *(f"{word}?" for word in WORDS)]
    races, stand_in, writer, _ = raced(texts, vocabulary, task, unreadable=unreadable)
    assert len(races[0]) == WIDTH
    assert races[1:] == [[f"{word}?"] for word in WORDS[:8]]
    assert (stand_in.counts, writer.fallbacks) == ([WIDTH], 1)


def test_what_waits_for_its_race_comes_before_the_stand_in(
    vocabulary: Vocabulary, task: Task
) -> None:
    """Without feedback the request is the same for as many prompts, and nothing new is written."""
    text = "\n".join(f"Good {noun}?" for noun in NOUNS[:6])
    races, stand_in, writer, model = raced([text, "17", "17"], vocabulary, task, use_feedback=False)
    for request, count in zip(model.requests, (8, 6, 2), strict=True):
        assert f"Write {count} different instructions" in request
    assert [len(race) for race in races] == [4, 2, 4, 2]
    assert [prompt for race in races[:2] for prompt in race] == text.splitlines()
    assert (stand_in.counts, writer.fallbacks) == ([WIDTH, 2], 2)


def test_the_stand_in_is_announced(vocabulary: Vocabulary, task: Task) -> None:
    """A search that has something left is told so before another proposer's is given to it."""
    proposer, writer = generator(Scripted("Friendly?"), vocabulary, task)
    feedback = Feedback()
    assert propose(proposer, vocabulary, feedback) == ["Friendly?"]
    with pytest.raises(NothingBetterError):
        propose(proposer, vocabulary, feedback)
    assert writer.fallbacks == 0
    assert len(propose(proposer, vocabulary, feedback)) == ONE_RACE
    assert writer.fallbacks == 1


def test_where_one_change_is_a_race_the_stand_in_proposes_one(
    vocabulary: Vocabulary, task: Task
) -> None:
    stand_in = StandIn(vocabulary)
    tariff = Tariff(longest_answer=100, counted=True)
    writer = Writer(Scripted("17"), tariff, QueryBudget(0), AnswerCache(), chat=True)
    proposer = PromptGenerator(writer, stand_in, task, vocabulary, max_tokens=8, race=1)
    start = vocabulary.encode(START)
    assert len(proposer.propose(start, Feedback(), np.random.default_rng(0), RACES_AHEAD)) == 1
    assert stand_in.counts == [1]


class Node:
    """One client with the real embedded models."""

    def __init__(self, examples: tuple[Example, ...], **settings: Any) -> None:
        self.config = RunConfig.from_run_config(
            {
                "queries-per-round": 40,
                "seed-prompt": START,
                "max-prompt-tokens": 16,
                "dtype": "float32",
                "device": "cpu",
                "proposer": "prompt-generator",
                **{name.replace("_", "-"): value for name, value in settings.items()},
            }
        )
        data = ClientData(train=examples[:6], validation=examples[6:8])
        self.client = PromptTuningClient("0", data, examples[8:10], self.config, RecordDict())

    def fit(self, vocabulary: Vocabulary) -> tuple[str, dict[str, Any]]:
        start = np.array(vocabulary.encode(START))
        (tokens,), _, metrics = self.client.fit([start], {ROUND_KEY: 1})
        return vocabulary.decode(tokens.tolist()), dict(metrics)


@pytest.mark.slow
@pytest.mark.parametrize("privacy", ["none", "public-tokens"])
def test_the_embedded_model_writes_prompts(
    privacy: str, vocabulary: Vocabulary, short_reviews: tuple[Example, ...]
) -> None:
    prompt, metrics = Node(short_reviews, privacy=privacy).fit(vocabulary)
    assert metrics.keys() >= set(GENERATOR_KEYS)
    assert metrics[GENERATOR_REQUESTS_KEY] > 0
    assert metrics[GENERATOR_PROMPT_TOKENS_KEY] == 0, "a model in this process does not count"
    assert 0 < metrics[QUERIES_KEY] <= 40
    assert metrics["trials"] > 0
    assert 1 <= len(vocabulary.encode(prompt)) <= 16


@pytest.mark.slow
def test_a_model_behind_an_endpoint_writes_prompts(
    endpoint: str,
    vocabulary: Vocabulary,
    short_reviews: tuple[Example, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TEST_GENERATOR_KEY", ENDPOINT_KEY)
    settings = {
        "generator_endpoint": endpoint,
        "generator_model": "smollm2",
        "generator_key_env": "TEST_GENERATOR_KEY",
        "generator_price_per_million_input": 2.0,
        "generator_price_per_million_output": 4.0,
    }
    _, metrics = Node(short_reviews, **settings).fit(vocabulary)
    assert metrics[GENERATOR_REQUESTS_KEY] > 0
    read, written = (
        metrics[GENERATOR_PROMPT_TOKENS_KEY],
        metrics[GENERATOR_COMPLETION_TOKENS_KEY],
    )
    assert read > 100
    assert written > 0
    assert metrics[GENERATOR_COST_KEY] == pytest.approx((2 * read + 4 * written) / 1e6)
    assert COST_KEY not in metrics, "the black box is in this process"

    before = metrics[GENERATOR_COST_KEY]
    _, metrics = Node(short_reviews, **settings, cost_per_round=before / 2).fit(vocabulary)
    assert metrics[GENERATOR_COST_KEY] <= before / 2
    assert metrics[QUERIES_KEY] > 0, "with what was written, or what the masked LM proposes"
    models._api_language_model.cache_clear()

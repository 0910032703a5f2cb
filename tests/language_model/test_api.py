import json
import time
from pathlib import Path
from typing import Any

import pytest

from feddtpt_flwr import __version__
from feddtpt_flwr.answer_store import AnswerStore
from feddtpt_flwr.budget import QueryBudget
from feddtpt_flwr.data import Example, Task
from feddtpt_flwr.evaluation import AnswerCache, Evaluator
from feddtpt_flwr.language_model import (
    FatalModelError,
    ModelError,
    retries,
)
from feddtpt_flwr.language_model.answers import parse_answer
from feddtpt_flwr.language_model.api import ApiLanguageModel
from feddtpt_flwr.language_model.local import LocalLanguageModel
from tests.conftest import ENDPOINT_KEY
from tests.language_model import fault_proxy as faults
from tests.language_model.fault_proxy import Body, FaultProxy, Response
from tests.language_model.service import MODEL, PROMPT, evaluator, model

# What a server can do


@pytest.mark.parametrize(("chat", "constrain"), [(False, "grammar"), (True, "json-schema")])
def test_constrained_answers_are_answers(
    chat: bool, constrain: str, endpoint: str, task: Task, some: tuple[Example, ...]
) -> None:
    llm = model(endpoint, chat=chat, constrain=constrain)
    answers = llm.answer([task.compose(PROMPT, e.input) for e in some], task.answers)
    assert {parse_answer(text, task.answers) for text in answers} <= set(task.answers)
    assert llm.usage.requests == len(some) + 1
    assert llm.usage.prompt_tokens > 20 * len(some)
    assert llm.usage.completion_tokens >= 2 * len(some)


def test_free_text_is_not_constrained(endpoint: str) -> None:
    (text,) = model(endpoint, max_answer_tokens=4).answer(["One, two, three, four,"], ())
    assert "five" in text


def test_no_input_no_question(proxy: FaultProxy) -> None:
    assert model(proxy.url).answer([], ("a", "b")) == []
    assert not proxy.asked
    assert not proxy.probes


def test_chat_sends_the_system_message(proxy: FaultProxy, task: Task) -> None:
    llm = model(proxy.url, chat=True, system_message="Be terse.", temperature=0.5, seed=7)
    llm.answer(["px"], task.answers)
    (body,) = proxy.asked
    assert body["messages"] == [
        {"role": "system", "content": "Be terse."},
        {"role": "user", "content": "px"},
    ]
    assert (body["model"], body["temperature"], body["seed"]) == (MODEL, 0.5, 7)
    assert body["max_tokens"] == 16


@pytest.mark.parametrize("end", ["", "/"])
def test_what_every_request_says_of_its_sender(end: str, proxy: FaultProxy, task: Task) -> None:
    model(proxy.url + end).answer(["px"], task.answers)
    assert proxy.authorization == f"Bearer {ENDPOINT_KEY}"
    assert proxy.user_agent == f"feddtpt-flwr/{__version__}"


def test_half_a_character_is_asked_about_as_well(proxy: FaultProxy, task: Task) -> None:
    # The real server refuses it.
    proxy.afterwards = lambda handler, body: Response(b'{"choices": [{"text": "a"}]}')
    assert model(proxy.url).answer(["\ud83d é"], task.answers) == ["a"]
    assert proxy.asked[0]["prompt"] == "\ud83d é"


def test_without_a_key_none_is_sent(proxy: FaultProxy) -> None:
    with pytest.raises(FatalModelError, match="a key is needed"):
        model(proxy.url, key="").prepare()
    assert proxy.probes
    assert proxy.authorization is None


def without_grammar(body: Body) -> None:
    """A server that ignores llama.cpp's field, as most do."""
    body.pop("grammar", None)


def without_any(body: Body) -> None:
    """A server that can constrain nothing."""
    without_grammar(body)
    body.pop("response_format", None)


def like_vllm(body: Body) -> None:
    """A server with vLLM's field: the real one gets its meaning as a grammar."""
    without_grammar(body)
    if choices := body.pop("structured_outputs", {}).get("choice"):
        body["grammar"] = "root ::= " + " | ".join(f'"{choice}"' for choice in choices)


def like_a_cloud(body: Body) -> Response | None:
    """A server that refuses unknown fields, and the old name of the limit."""
    if unknown := body.keys() & {"grammar", "structured_outputs", "guided_choice"}:
        return faults.error(400, f"Unrecognized request argument supplied: {unknown}")(None, body)  # type: ignore[arg-type]
    if "max_tokens" in body:
        say = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        return faults.error(400, say)(None, body)  # type: ignore[arg-type]
    body["max_tokens"] = body.pop("max_completion_tokens")
    return None


@pytest.mark.parametrize(
    ("rewrite", "chat", "found"),
    [
        (lambda body: None, False, "grammar"),
        (without_grammar, True, "json-schema"),
        (without_grammar, False, "none"),  # llama.cpp knows no response_format there
        (without_any, True, "none"),
        (like_vllm, False, "choice"),
        (like_vllm, True, "choice"),
        (like_a_cloud, True, "json-schema"),
    ],
)
def test_what_a_server_can_do_is_found_out_once(
    rewrite: Any, chat: bool, found: str, proxy: FaultProxy, task: Task
) -> None:
    proxy.rewrite = rewrite
    llm = model(proxy.url, chat=chat, constrain="auto")
    assert llm.prepare() == found
    probes = len(proxy.probes)
    assert llm.prepare() == found
    (answer,) = llm.answer(["Good or bad? A warm film. Sentiment:"], task.answers)
    assert found == "none" or parse_answer(answer, task.answers)
    assert len(proxy.probes) == probes


@pytest.mark.parametrize("constrain", ["choice", "json-schema"])
def test_a_constraint_that_is_not_kept_is_refused_at_once(
    constrain: str, proxy: FaultProxy
) -> None:
    with pytest.raises(FatalModelError, match=f"constrain = '{constrain}'.*does not keep to it"):
        model(proxy.url, constrain=constrain).answer(["px"], ("a", "b"))
    assert not proxy.asked


def unless(field: str, said: str) -> Any:
    """A server that refuses a field."""

    def rewrite(body: Body) -> Response | None:
        return faults.error(400, said)(None, body) if field in body else None  # type: ignore[arg-type]

    return rewrite


@pytest.mark.parametrize(
    ("field", "said", "temperature", "warnings"),
    [
        ("temperature", "Unsupported value: 'temperature' does not support 0", 0.0, 1),
        ("temperature", "`temperature` is deprecated for this model.", 0.7, 1),
        ("seed", "[{'type': 'extra_forbidden', 'loc': ['body', 'seed']}]", 0.7, 0),
    ],
)
def test_a_field_of_the_sampling_that_is_refused_is_left_out(
    field: str,
    said: str,
    temperature: float,
    warnings: int,
    proxy: FaultProxy,
    task: Task,
    warned: list[str],
) -> None:
    proxy.rewrite = unless(field, said)
    llm = model(proxy.url, temperature=temperature, constrain="auto")
    assert llm.prepare() == "grammar"
    llm.answer(["px"], task.answers)
    (body,) = proxy.asked
    assert field not in body
    assert ("seed" in body) == (field == "temperature" and temperature > 0)
    assert len(warned) == warnings


def test_further_fields_are_sent(proxy: FaultProxy, task: Task) -> None:
    llm = model(proxy.url, extra_body={"reasoning_effort": "low"})
    llm.answer(["px"], task.answers)
    assert proxy.asked[0]["reasoning_effort"] == "low"
    assert '"reasoning_effort": "low"' in llm.name


def test_a_server_that_fails_at_a_constraint_is_asked_without(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_at_schemas(body: Body) -> Response | None:
        without_grammar(body)
        return Response(b"{}", 500) if "response_format" in body else None

    monkeypatch.setattr(retries, "FEWEST_ATTEMPTS", 1)
    proxy.rewrite = fails_at_schemas
    assert model(proxy.url, constrain="auto", chat=True).prepare(patience=0.0) == "none"


def test_a_constraint_that_has_failed_is_tried_once_more(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [Response(b"{}", 500)]
    monkeypatch.setattr(retries, "FEWEST_ATTEMPTS", 1)
    proxy.rewrite = lambda body: failures.pop() if failures and "grammar" in body else None
    llm = model(proxy.url, constrain="auto")
    name = llm.name
    assert llm.prepare(patience=0.0) == "grammar"
    assert llm.name == name


def test_answers_without_the_better_constraint_are_kept_apart(
    proxy: FaultProxy,
    task: Task,
    some: tuple[Example, ...],
    warned: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(retries, "FEWEST_ATTEMPTS", 1)
    store = AnswerStore(tmp_path / "answers.sqlite", 2**20)

    def found(llm: ApiLanguageModel) -> int:
        judge = Evaluator(llm, task, QueryBudget(9), AnswerCache(archives=[store]))
        judge.correct(PROMPT, some)
        return judge.from_archive

    proxy.rewrite = lambda body: Response(b"{}", 500) if "grammar" in body else None
    llm = model(proxy.url, constrain="auto", patience=0.0)
    assert found(llm) == 0
    assert llm.prepare() == "none"
    assert "constrain = 'auto' has found 'none'; it failed at what would be better" in warned[0]
    assert found(llm) == len(some)

    proxy.rewrite = lambda body: None
    assert found(model(proxy.url, constrain="auto")) == 0


# Limits


def test_concurrency_is_used_and_kept(
    proxy: FaultProxy, task: Task, short_reviews: tuple[Example, ...]
) -> None:
    proxy.afterwards = faults.delay(0.2)
    evaluator(model(proxy.url, concurrency=3), task).correct(PROMPT, short_reviews[:9])
    assert proxy.most_at_a_time == 3


def test_requests_per_minute_are_kept(
    proxy: FaultProxy, task: Task, some: tuple[Example, ...]
) -> None:
    llm = model(proxy.url, requests_per_minute=60)
    evaluator(llm, task).correct(PROMPT, some)
    assert proxy.times[-1] - proxy.times[0] >= 0.95 * (len(some) - 1)


def test_the_tokens_of_an_answer_correct_what_was_reserved(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = model(proxy.url, constrain="none", tokens_per_minute=1_000_000)
    llm.prepare()
    corrections: list[int] = []
    monkeypatch.setattr(llm._asker._pacer, "correct", corrections.append)
    usage = {"prompt_tokens": 7, "completion_tokens": 2}
    content = {"choices": [{"text": "a"}], "usage": usage}
    proxy.rewrite = lambda body: Response(json.dumps(content).encode(), 200)
    llm.answer(["x" * 400], ["a"])
    assert corrections == [9 - (400 // 4 + 16)]

    corrections.clear()
    answer = proxy.rewrite
    refused = Response(b"{}", 400)
    proxy.rewrite = lambda body: refused if "x" in faults.question(body) else answer(body)
    llm.answer(["x" * 400], ["a"])
    assert corrections[0] == -(400 // 4 + 16), "what is refused uses none"


@pytest.mark.parametrize("status", [429, 500])
def test_whoever_waits_for_its_turn_waits_for_the_server_too(
    status: int, proxy: FaultProxy, task: Task, some: tuple[Example, ...]
) -> None:
    llm = model(proxy.url, concurrency=2, requests_per_minute=120, patience=10.0)
    llm.prepare()
    proxy.faults = [faults.error(status, retry_after="2")]
    evaluator(llm, task).correct(PROMPT, some[:2])
    assert proxy.times[1] - proxy.times[0] >= 2


def test_the_budget_is_exact_whatever_fails(
    proxy: FaultProxy, task: Task, short_reviews: tuple[Example, ...], tmp_path: Path
) -> None:
    paid = 0
    for fault in (faults.error(401), faults.error(500), faults.no_choices, None, None):
        proxy.faults = [None, fault, None]
        cache = AnswerCache(archives=[AnswerStore(tmp_path / "answers.sqlite", 2**20)])
        budget = QueryBudget(7)
        judge = Evaluator(model(proxy.url, patience=0.0), task, budget, cache)
        try:
            judge.correct(PROMPT, short_reviews[:7])
        except ModelError:
            assert fault is not None
        paid += budget.used - judge.from_archive
        assert paid == proxy.answered.total() <= budget.limit
    assert budget.used == paid == 7
    assert max(proxy.answered.values()) == 1


def test_an_abandoned_call_asks_no_more(proxy: FaultProxy, task: Task) -> None:
    proxy.afterwards = faults.delay(0.3)
    llm = model(proxy.url, concurrency=1)
    answers = llm.iter_answers([f"Good or bad? {n}" for n in range(20)], task.answers)
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    asked = len(proxy.asked)
    time.sleep(1.0)
    assert len(proxy.asked) <= asked + 1


# Names and secrets


def test_the_name_tells_all_that_changes_answers_and_no_secret(endpoint: str) -> None:
    settings: list[dict[str, Any]] = [
        {},
        {"chat": True},
        {"temperature": 0.5},
        {"seed": 1},
        {"max_answer_tokens": 3},
        {"constrain": "none"},
        {"chat": True, "system_message": "Be terse."},
        {"extra_body": {"top_p": 0.5}},
    ]
    models = [model(endpoint, **each) for each in settings]
    models.append(model("http://127.0.0.1:1/v1"))
    assert model(f"{endpoint}/").name == models[0].name
    assert len({each.name for each in models}) == len(models)
    assert model(endpoint, concurrency=1, timeout=1.0).name == models[0].name
    for each in models:
        assert ENDPOINT_KEY not in each.name + repr(each) + str(vars(each))


# The same model, in this process and behind the server


@pytest.mark.slow
@pytest.mark.parametrize("chat", [False, True])
def test_server_and_local_model_agree(
    chat: bool, endpoint: str, task: Task, short_reviews: tuple[Example, ...]
) -> None:
    """They differ in arithmetic alone: the server computes on 4-bit weights and rounds inputs.

    With this prompt half of the answers are closer than 0.3 logits.
    """
    queries = [task.compose(PROMPT, e.input) for e in short_reviews[:120]]
    local = LocalLanguageModel("embedded", dtype="float32", chat=chat)
    here = local.answer(queries, task.answers)
    there = model(endpoint, chat=chat).answer(queries, task.answers)
    parsed = [parse_answer(text, task.answers) for text in there]
    same = sum(a == b for a, b in zip(here, parsed, strict=True))
    assert None not in parsed
    assert len(set(here)) == len(set(parsed)) == 2, "both answers are given, so both can differ"
    assert same >= 0.9 * len(queries), f"{same} of {len(queries)}"

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from feddtpt_flwr.data import Example, Task
from feddtpt_flwr.language_model import (
    FatalModelError,
    ModelError,
    ModelUnavailableError,
    api,
    retries,
)
from feddtpt_flwr.language_model.constraints import PROBE
from feddtpt_flwr.private_flower import _free_port
from tests.conftest import ENDPOINT_KEY
from tests.language_model import fault_proxy as faults
from tests.language_model.fault_proxy import Body, Fault, FaultProxy, Response
from tests.language_model.service import PROMPT, evaluator, model

# What goes wrong once


@pytest.mark.parametrize(
    "fault",
    [
        faults.delay(0.3),
        faults.drop,
        faults.error(500),
        faults.error(503, retry_after="1"),
        faults.error(429),
        faults.truncated,
        faults.web_page,
        faults.mislabelled,
        faults.no_choices,
        faults.null,
    ],
)
def test_what_passes_is_not_noticed(
    fault: Fault,
    proxy: FaultProxy,
    task: Task,
    some: tuple[Example, ...],
    expected: list[bool],
) -> None:
    proxy.faults = [None, fault]
    judge = evaluator(model(proxy.url), task)
    assert judge.correct(PROMPT, some).tolist() == expected
    assert judge.budget.used == len(some), "a question counts once, however often it is sent"
    harmless = len(proxy.asked) == len(some)
    assert judge.usage
    assert judge.usage.retries == (0 if harmless else 1)
    assert len(judge.cache) == len(some)


def test_a_slow_trickle_is_given_up(
    proxy: FaultProxy, task: Task, some: tuple[Example, ...], expected: list[bool]
) -> None:
    proxy.faults = [faults.trickle]
    llm = model(proxy.url, timeout=5.0)
    start = time.monotonic()
    assert evaluator(llm, task).correct(PROMPT, some).tolist() == expected
    assert time.monotonic() - start < 30
    assert llm.usage.retries >= 1


def test_retry_after_holds_for_all_questions(
    proxy: FaultProxy, task: Task, some: tuple[Example, ...]
) -> None:
    proxy.faults = [faults.error(429, retry_after="3")]
    judge = evaluator(model(proxy.url, concurrency=1, patience=10.0), task)
    judge.correct(PROMPT, some)
    assert proxy.times[1] - proxy.times[0] >= 3
    assert len(proxy.asked) == len(some) + 1


def test_a_server_that_is_busy_at_the_start_is_waited_for(proxy: FaultProxy) -> None:
    busy = [Response(b"{}", 429, headers={"retry-after": "1"})]
    proxy.rewrite = lambda body: busy.pop() if busy else None
    assert model(proxy.url).prepare(patience=0.0) == "grammar"
    assert not busy


# What goes wrong for good


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (faults.drop, "no connection"),
        (faults.error(500), "HTTP 500"),
        (faults.error(429, retry_after="3600"), "HTTP 429, after 1 attempts"),
        (faults.truncated, "no valid JSON"),
        (faults.web_page, "no valid JSON"),
        (faults.no_choices, "holds no answer"),
        (faults.null, "holds no answer"),
        (faults.trickle, "no answer in timeout = 2 s"),
    ],
)
def test_a_server_that_stays_down(
    fault: Fault,
    message: str,
    proxy: FaultProxy,
    task: Task,
    some: tuple[Example, ...],
    expected: list[bool],
) -> None:
    proxy.faults, proxy.afterwards = [None, None], fault
    llm = model(proxy.url, concurrency=1, patience=0.0)
    judge = evaluator(llm, task, budget=len(some))
    proxy.spares_probes = False
    llm.prepare()
    llm._endpoint._timeout = 2.0 if fault is faults.trickle else 30.0
    with pytest.raises(ModelUnavailableError, match=message) as caught:
        judge.correct(PROMPT, some)
    assert proxy.url in str(caught.value)
    assert ENDPOINT_KEY not in str(caught.value)
    assert judge.budget.used == 2, "what was answered is paid for, nothing else"
    assert len(judge.cache) == 2

    proxy.afterwards = None
    llm._endpoint._timeout = 30.0
    assert judge.correct(PROMPT, some).tolist() == expected
    assert judge.budget.used == len(some)
    assert max(proxy.answered.values()) == 1, "no answer is paid for twice"


def test_answers_on_their_way_are_kept(
    proxy: FaultProxy, task: Task, some: tuple[Example, ...]
) -> None:
    """One question fails for good while the others wait for a slow server."""
    refused = faults.error(401)
    proxy.faults = [faults.delay(1.0), faults.delay(1.0), refused]
    llm = model(proxy.url, concurrency=3)
    judge = evaluator(llm, task, budget=4)
    with pytest.raises(FatalModelError, match="HTTP 401"):
        judge.correct(PROMPT, some)
    assert judge.budget.used == len(judge.cache) == 2
    assert len(proxy.asked) == 3, "after a failure nothing new is asked"


def test_what_waits_to_be_repeated_is_given_up(
    proxy: FaultProxy, task: Task, some: tuple[Example, ...]
) -> None:
    def refused_later(handler: faults.Handler, body: Body) -> Response | None:
        time.sleep(0.5)
        return faults.error(401)(handler, body)

    proxy.faults = [faults.error(503, retry_after="20"), refused_later]
    start = time.monotonic()
    with pytest.raises(FatalModelError, match="HTTP 401"):
        evaluator(model(proxy.url, concurrency=2, patience=60.0), task).correct(PROMPT, some)
    assert time.monotonic() - start < 10
    assert len(proxy.asked) == 2


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "the key is refused"), (404, "no such model"), (402, "the account is used up")],
)
def test_what_cannot_pass_ends_at_once(
    status: int, message: str, proxy: FaultProxy, task: Task, some: tuple[Example, ...]
) -> None:
    proxy.afterwards = faults.error(status, f"Incorrect API key provided: {ENDPOINT_KEY}")
    judge = evaluator(model(proxy.url, concurrency=1), task)
    with pytest.raises(FatalModelError, match=message) as caught:
        judge.correct(PROMPT, some)
    assert len(proxy.asked) == 1
    assert judge.budget.used == 0
    assert ENDPOINT_KEY not in str(caught.value)


def test_certificates_are_those_of_the_environment(
    endpoint: str, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "server.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1"
    command += " -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    written = ["-keyout", str(file), "-out", str(file)]
    subprocess.run([*command.split(), *written], check=True, capture_output=True)
    both = file.read_text()
    assert both.count("BEGIN") == 2, "the key and the certificate"
    with faults.fault_proxy(endpoint, file) as proxy:
        with pytest.raises(ModelUnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
            model(proxy.url).prepare(0.1)
        assert not proxy.probes
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        assert len(model(proxy.url).answer(["px"], task.answers)) == 1


def test_no_proxy_sees_what_is_for_this_machine(
    proxy: FaultProxy, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")
    nobody = f"http://127.0.0.1:{_free_port()}"
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, nobody)
    assert len(model(proxy.url).answer(["px"], task.answers)) == 1
    with pytest.raises(ModelUnavailableError, match="no connection"):
        model("http://192.0.2.1/v1", patience=0.1).prepare(0.1)


def test_a_redirect_is_not_followed(proxy: FaultProxy, task: Task) -> None:
    with faults.fault_proxy(proxy.target) as elsewhere:
        proxy.afterwards = faults.error(307, location=f"{elsewhere.url}/completions")
        with pytest.raises(FatalModelError, match="HTTP 307: it sends to another address"):
            model(proxy.url).answer(["px"], task.answers)
        assert not elsewhere.asked


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"error": {"code": "context_length_exceeded", "message": "too long"}}, "too long"),
        ({"error": {"code": 400, "message": "too long"}}, "too long"),
        ({"code": "context_length_exceeded", "message": "too long"}, "too long"),
        ({"error": "too long"}, "too long"),
        ({"detail": [{"msg": "too long"}]}, "too long"),
        (["too long"], "too long"),
        ("too long", "too long"),
        ({"error": {"code": None, "message": f"not with {ENDPOINT_KEY}"}}, "not with ***"),
    ],
)
def test_a_refusal_may_have_any_form(
    content: Any, said: str, proxy: FaultProxy, warned: list[str]
) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    proxy.rewrite = lambda body: Response(text.encode(), 400)
    with pytest.raises(FatalModelError) as caught:
        model(proxy.url, constrain="none").prepare()
    has_code = "context_length" in text
    code = " (context_length_exceeded)" if has_code else ""
    assert str(caught.value) == f"{proxy.url}: HTTP 400{code}"
    (warning,) = warned
    assert said in warning
    assert ENDPOINT_KEY not in warning


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        ({"error": {"code": 402, "message": "pay"}}, FatalModelError, "HTTP 402: the account"),
        ({"error": {"code": 400, "message": "no"}}, FatalModelError, "HTTP 400"),
        ({"error": "upstream"}, ModelUnavailableError, "HTTP 502"),
        ({"choices": [{"error": {"code": 401}}]}, FatalModelError, "HTTP 401"),
        ({"choices": [{"finish_reason": "error", "text": ""}]}, ModelUnavailableError, "HTTP 502"),
    ],
)
def test_an_error_may_come_with_status_200(
    content: Any, error: type[Exception], said: str, proxy: FaultProxy
) -> None:
    proxy.rewrite = lambda body: Response(json.dumps(content).encode(), 200)
    with pytest.raises(error, match=said):
        model(proxy.url, constrain="none").prepare(patience=0.0)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": [{"type": "text", "text": "a"}, {"type": "image"}]}, "a"),
        ({"content": "<think>\nIs it a or b? a…\n</think>\n\nb"}, "b"),
        ({"content": "Is it a or b? a…</think>b"}, "b"),
    ],
)
def test_an_answer_may_have_any_form(message: Any, text: str, proxy: FaultProxy) -> None:
    llm = model(proxy.url, constrain="none", chat=True)
    llm.prepare()
    usage = {"prompt_tokens": 5, "completion_tokens": 1}
    content = {"choices": [{"message": message}], "usage": usage}
    before = llm.usage
    proxy.rewrite = lambda body: Response(json.dumps(content).encode(), 200)
    assert llm.answer(["q"], []) == [text]
    assert (llm.usage - before).prompt_tokens == 5


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        ({"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 331}, 327),
        ({"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}, 2),
        ({"prompt_tokens": 4, "completion_tokens": 2}, 2),
        ({"prompt_tokens": 4.0, "completion_tokens": "2"}, 2),
        ({"input_tokens": 4, "output_tokens": 2}, 2),
        ({"total_tokens": "many"}, 0),
    ],
)
def test_what_was_thought_is_counted(
    usage: dict[str, Any], counted: int, proxy: FaultProxy
) -> None:
    llm = model(proxy.url, constrain="none", chat=True)
    llm.prepare()
    before = llm.usage
    content = {"choices": [{"message": {"content": "a"}}], "usage": usage}
    proxy.rewrite = lambda body: Response(json.dumps(content).encode(), 200)
    llm.answer(["q"], [])
    used = llm.usage - before
    assert used.completion_tokens == counted
    assert used.uncounted == (not counted)


def test_an_answer_that_was_cut_off_in_thought_is_told_once(
    proxy: FaultProxy, warned: list[str]
) -> None:
    llm = model(proxy.url, constrain="none", chat=True)
    llm.prepare()
    choice = {"message": {"content": "<think> good or"}, "finish_reason": "length"}
    content = {"choices": [choice]}
    proxy.rewrite = lambda body: Response(json.dumps(content).encode(), 200)
    assert llm.answer(["q", "r"], ["good", "bad"]) == ["", ""]
    (warning,) = warned
    assert "max-answer-tokens = 16" in warning


def test_a_model_that_has_no_tokens_left_to_answer_is_named(proxy: FaultProxy) -> None:
    content = {"choices": [{"message": {"content": ""}, "finish_reason": "length"}]}
    proxy.rewrite = lambda body: Response(json.dumps(content).encode(), 200)
    with pytest.raises(FatalModelError, match=r"max-answer-tokens = 16: .* several hundred"):
        model(proxy.url, constrain="auto", chat=True).prepare()


def test_no_seed_is_sent_where_nothing_is_drawn(proxy: FaultProxy, task: Task) -> None:
    model(proxy.url, seed=7).answer(["px"], task.answers)
    (body,) = proxy.asked
    assert "seed" not in body


def test_an_account_that_is_used_up_is_not_asked_again(proxy: FaultProxy) -> None:
    content = b'{"error": {"code": "insufficient_quota", "message": "You exceeded your quota"}}'
    proxy.rewrite = lambda body: Response(content, 429)
    with pytest.raises(FatalModelError, match=r"HTTP 429 \(insufficient_quota\): the account"):
        model(proxy.url).prepare()


def test_a_url_that_nothing_can_be_sent_to() -> None:
    with pytest.raises(FatalModelError, match="no valid URL"):
        model("http://é é/v1").prepare()


@pytest.mark.parametrize(
    ("key", "message"), [("wrong", "the key is refused"), ("", "a key is needed, and the variable")]
)
def test_the_real_server_refuses_a_wrong_key(key: str, message: str, endpoint: str) -> None:
    with pytest.raises(FatalModelError, match=message) as caught:
        model(endpoint, key=key).prepare()
    assert "HTTP 401" in str(caught.value)
    assert "wrong" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "said", "told"),
    [
        (404, "This is a chat model. Did you mean to use v1/chat/completions?", "no such model"),
        (403, "Forbidden.", "HTTP 403; the key may not be allowed to use this model"),
        (200, "Unexpected endpoint or method.", "HTTP 502"),
    ],
)
def test_at_the_start_the_server_has_its_say(
    status: int, said: str, told: str, proxy: FaultProxy, warned: list[str]
) -> None:
    """In the log alone: errors go to the federation's server, and it may be about the account."""
    proxy.rewrite = lambda body: Response(json.dumps({"error": said}).encode(), status)
    with pytest.raises(ModelError, match=told) as caught:
        model(proxy.url).prepare(patience=0.0)
    assert said not in str(caught.value)
    assert warned == [f"{proxy.url} says: {said}"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks://127.0.0.1:7890/"),
        ("NO_PROXY", "localhost,[::1]"),
        ("SSL_CERT_FILE", "/nowhere/ca.pem"),
    ],
)
def test_an_environment_that_cannot_be_used_is_named(
    name: str, value: str, proxy: FaultProxy, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(name.lower(), raising=False)  # it would come first
    monkeypatch.setenv(name, value)
    with pytest.raises(FatalModelError, match=r"the environment's proxies or certificates .*"):
        model("https://192.0.2.1/v1")
    assert len(model(proxy.url).answer(["px"], task.answers)) == 1, "of no interest to loopback"


def test_a_proxys_password_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://hospital:S3cret#x@proxy.intern:3128")
    with pytest.raises(FatalModelError, match=r"HTTPS_PROXY.*: a URL is not valid") as caught:
        model("https://192.0.2.1/v1")
    assert "S3cret" not in str(caught.value)


def test_what_comes_in_place_of_http_is_not_told(
    proxy: FaultProxy, task: Task, some: tuple[Example, ...]
) -> None:
    proxy.faults, proxy.afterwards = [None], faults.echo
    llm = model(proxy.url, concurrency=1, patience=0.0)
    llm.prepare()
    proxy.spares_probes = False
    with pytest.raises(ModelUnavailableError, match="no connection") as caught:
        evaluator(llm, task).correct(PROMPT, some)
    assert PROMPT not in str(caught.value)
    assert "cannot parse" not in str(caught.value)


def test_nobody_listens() -> None:
    with pytest.raises(ModelUnavailableError, match=r"http://127.0.0.1:9/v1: no connection"):
        model("http://127.0.0.1:9/v1").prepare(0.1)


def test_a_question_that_is_refused_is_a_wrong_answer(
    endpoint: str, task: Task, some: tuple[Example, ...], warned: list[str]
) -> None:
    long = Example(" secretword" * 3000, 1)
    judge = evaluator(model(endpoint), task)
    correct = judge.correct(PROMPT, [*some, long, Example(long.input + "!", 1)])
    assert not correct[4:].any()
    assert judge.unparsed == 2
    assert judge.budget.used == len(some) + 2
    (warning,) = warned
    assert "HTTP 400" in warning
    assert "secretword" not in warning


def only(question: str, response: Response) -> Any:
    """A server that has this response to one question, and answers all others."""
    return lambda body: response if question in faults.question(body) else None


def choice(**fields: Any) -> Response:
    """A response with one answer, and what it cost."""
    usage = {"prompt_tokens": 9, "total_tokens": 12}
    return Response(json.dumps({"choices": [fields], "usage": usage}).encode())


COST = b'"usage": {"prompt_tokens": 9, "total_tokens": 12}}'


@pytest.mark.parametrize(
    "response",
    [
        Response(b'{"error": {"message": "flagged"}}', 403),
        Response(b'{"error": {"message": "illegal"}}', 451),
        Response(b'{"error": {"message": "Context size has been exceeded."}}', 500),
        Response(b"<html>Bad gateway</html>", 502),
        Response(b"[" * 100_000),
        Response(b'{"error": {"code": 524}, ' + COST),
        Response(b'{"choices": [], ' + COST),
        choice(text="", finish_reason="stop"),
        choice(text=" positive", finish_reason="content_filter"),
    ],
    ids=["403", "451", "500", "502", "no JSON", "error", "no choices", "empty", "filtered"],
)
def test_one_text_without_an_answer_is_a_wrong_answer(
    response: Response,
    proxy: FaultProxy,
    task: Task,
    some: tuple[Example, ...],
    expected: list[bool],
    warned: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(api, "UNANSWERED", 2)
    proxy.rewrite = only("secretword", response)
    llm = model(proxy.url)
    judge = evaluator(llm, task)
    correct = judge.correct(PROMPT, [*some, Example("secretword", 1)])
    assert correct.tolist() == [*expected, False]
    assert judge.unparsed == 1
    assert judge.budget.used == len(some) + 1
    (warning,) = warned
    assert "secretword" not in warning
    assert len(json.loads(judge.cache.to_json())) == len(some), "it may be answered another day"
    if b"usage" in response.content:
        cost = evaluator(model(proxy.url), task)
        cost.correct(PROMPT, some)
        assert cost.usage
        assert judge.usage
        assert judge.usage.completion_tokens >= cost.usage.completion_tokens + 6
        assert judge.usage.requests <= cost.usage.requests + 1, "what was answered, and a probe"


def test_a_text_that_is_never_answered_in_time_is_a_wrong_answer(
    proxy: FaultProxy,
    task: Task,
    some: tuple[Example, ...],
    expected: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(api, "UNANSWERED", 2)

    def late(body: Body) -> None:
        time.sleep(3.0 if "secretword" in faults.question(body) else 0.0)

    llm = model(proxy.url)
    llm.prepare()
    proxy.rewrite, llm._endpoint._timeout = late, 2.0
    correct = evaluator(llm, task).correct(PROMPT, [*some, Example("secretword", 1)])
    assert correct.tolist() == [*expected, False]


def test_a_text_that_fails_slowly_is_a_wrong_answer(
    proxy: FaultProxy, task: Task, some: tuple[Example, ...], expected: list[bool]
) -> None:
    """Patience ends before there were so many attempts that others are asked about."""
    proxy.rewrite = only("secretword", Response(b"{}", 500))
    judge = evaluator(model(proxy.url, patience=0.0), task)
    correct = judge.correct(PROMPT, [*some, Example("secretword", 1)])
    assert correct.tolist() == [*expected, False]
    assert judge.unparsed == 1


@pytest.mark.parametrize(
    ("patience", "unanswered", "failures"), [(0.0, 6, retries.FEWEST_ATTEMPTS), (30.0, 2, 2)]
)
def test_a_server_that_comes_back_is_asked_again(
    patience: float,
    unanswered: int,
    failures: int,
    proxy: FaultProxy,
    task: Task,
    some: tuple[Example, ...],
    expected: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The harmless question may be the first that is answered."""
    monkeypatch.setattr(api, "UNANSWERED", unanswered)
    proxy.faults = [faults.error(502)] * failures
    judge = evaluator(model(proxy.url, concurrency=1, patience=patience), task)
    assert judge.correct(PROMPT, some).tolist() == expected
    assert not judge.unparsed


def test_refused_texts_are_vouched_for_by_other_answers(
    proxy: FaultProxy, task: Task, some: tuple[Example, ...]
) -> None:
    def refuse(body: Body) -> Response | None:
        if "secretword" not in faults.question(body):
            return None
        time.sleep(2.0)  # the others are answered meanwhile
        return Response(b"{}", 400)

    llm = model(proxy.url)
    llm.prepare()
    proxy.rewrite = refuse
    judge = evaluator(llm, task)
    secret = [Example("secretword", 1), Example("secretword!", 1)]
    judge.correct(PROMPT, [*secret, *some])
    assert judge.unparsed == 2
    assert len(proxy.probes) == 1


def test_a_server_without_keys_may_refuse_a_text(proxy: FaultProxy) -> None:
    def refuse(body: Body) -> Response:
        flagged = "secretword" in faults.question(body)
        return Response(b"{}", 403) if flagged else choice(text="good")

    proxy.rewrite = refuse
    llm = model(proxy.url, key="", constrain="none")
    assert llm.answer(["q", "secretword"], ["good", "bad"]) == ["good", ""]
    proxy.rewrite = lambda body: Response(b"{}", 403)
    with pytest.raises(FatalModelError, match="HTTP 403; a key may be needed, and the variable"):
        llm.answer(["q"], ["good", "bad"])


@pytest.mark.parametrize("status", [400, 403])
def test_a_refusal_counts_only_where_others_are_answered(
    status: int, proxy: FaultProxy, task: Task, some: tuple[Example, ...]
) -> None:
    llm = model(proxy.url, concurrency=1, patience=0.0)
    judge = evaluator(llm, task)
    judge.correct(PROMPT, some[:2])
    proxy.rewrite = lambda body: Response(b"{}", 503 if faults.question(body) == PROBE else status)
    with pytest.raises(ModelUnavailableError, match="HTTP 503"):
        judge.correct(PROMPT, some)
    assert judge.budget.used == 2
    assert not judge.unparsed


def test_a_refusal_after_a_failure_does_not_count(
    proxy: FaultProxy, task: Task, some: tuple[Example, ...]
) -> None:
    def later(seconds: float, status: int) -> Fault:
        def fault(handler: faults.Handler, body: Body) -> Response | None:
            time.sleep(seconds)
            return faults.error(status)(handler, body)

        return fault

    proxy.faults = [later(0.5, 401), later(3.0, 400), faults.delay(0.7)]
    judge = evaluator(model(proxy.url, concurrency=3), task)
    with pytest.raises(FatalModelError, match="HTTP 401"):
        judge.correct(PROMPT, some)
    assert judge.budget.used == 1
    assert not judge.unparsed


def test_an_error_of_the_program_keeps_what_is_on_its_way(
    proxy: FaultProxy, task: Task, some: tuple[Example, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = model(proxy.url, concurrency=2)
    llm.prepare()
    real = llm._asker.ask

    async def ask(query: str, *others: Any) -> str:
        if "secretword" in query:
            raise KeyError(query)
        return await real(query, *others)

    monkeypatch.setattr(llm._asker, "ask", ask)
    proxy.afterwards = faults.delay(0.5)
    judge = evaluator(llm, task)
    with pytest.raises(ModelError, match="KeyError") as caught:
        judge.correct(PROMPT, [some[0], Example("secretword", 1)])
    assert "secretword" not in str(caught.value)
    assert judge.budget.used == 1


@pytest.mark.parametrize("status", [400, 403])
def test_what_is_refused_to_all_is_no_wrong_answer(
    status: int,
    proxy: FaultProxy,
    task: Task,
    some: tuple[Example, ...],
    warned: list[str],
) -> None:
    """Some providers say so of an account that is used up, or of a key."""
    said = f"Your credit balance is too low for {ENDPOINT_KEY}"
    llm = model(proxy.url, concurrency=1)
    judge = evaluator(llm, task)
    judge.correct(PROMPT, some[:2])
    content = json.dumps({"error": {"message": said}}).encode()
    proxy.rewrite = lambda body: Response(content, status)
    with pytest.raises(FatalModelError, match=f"HTTP {status}") as caught:
        judge.correct(PROMPT, some)
    assert "credit" not in str(caught.value)
    assert warned == [f"{proxy.url} says: Your credit balance is too low for ***"]
    assert judge.budget.used == 2
    assert not judge.unparsed


def test_a_budget_that_is_used_up_may_be_told_by_its_type(proxy: FaultProxy) -> None:
    error = {"message": "Budget has been exceeded!", "type": "budget_exceeded", "code": "400"}
    proxy.rewrite = lambda body: Response(json.dumps({"error": error}).encode(), 400)
    with pytest.raises(FatalModelError, match=r"HTTP 400: the account is used"):
        model(proxy.url).prepare()

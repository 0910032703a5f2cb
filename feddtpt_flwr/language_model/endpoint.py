"""One request to an OpenAI-compatible endpoint, and what its failure means."""

import asyncio
import json
import re
import ssl
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

from feddtpt_flwr import __version__
from feddtpt_flwr.language_model.answers import without_thinking
from feddtpt_flwr.language_model.base import FatalModelError
from feddtpt_flwr.language_model.limits import retry_after
from feddtpt_flwr.language_model.usage import Usage
from feddtpt_flwr.loopback import DIRECT, is_loopback

if TYPE_CHECKING:
    import httpx

_BUSY = {429, 498}
_TRY_AGAIN = {408, 409, 424, 425}
_WHY_FATAL = {401: "the key is refused", 404: "no such model or path"}
_NO_KEY = (
    "the variable that api-key-env (for a prompt generator generator-key-env) names is not set"
)
_USED_UP = {"insufficient_quota", "budget_exceeded"}
_BROKEN_OFF = {"content_filter", "abort", "cancelled", "insufficient_system_resource"}
"""Why an answer ends that is none; what stands for a proper end differs too much to be listed."""

_CODE = re.compile(r"[A-Za-z][\w.-]{0,63}")
_NOTHING = Usage()


@dataclass(frozen=True)
class Reply:
    """What the endpoint answers.

    Attributes
    ----------
    text : str
        The answer, without what a model thinks before it; "" where it declines.
    usage : Usage
        What it cost.
    cut_off : bool
        Whether the limit of tokens ended it.
    """

    text: str
    usage: Usage
    cut_off: bool


class RequestError(RuntimeError):
    """A request failed.

    Parameters
    ----------
    message : str
        What happened, without what the server says: it may quote the question.
    usage : Usage, optional
        What it cost all the same.
    said : str
        What the server says to a question that is none of anybody's text: for this node's own log,
        as it may be about the account.

    Attributes
    ----------
    sent_at : float
        When it was sent, by `time.monotonic`; 0 if whoever sent it does not tell.
    """

    sent_at = 0.0

    def __init__(self, message: str, *, usage: Usage = _NOTHING, said: str = "") -> None:
        super().__init__(message)
        self.usage = usage
        self.said = said


class TransientError(RequestError):
    """A request failed in a way that may pass.

    Parameters
    ----------
    message, usage, said
        As `RequestError`.
    retry_after : float
        Seconds that the server asks to wait, 0 for none said.
    """

    def __init__(
        self, message: str, retry_after: float = 0.0, *, usage: Usage = _NOTHING, said: str = ""
    ) -> None:
        super().__init__(message, usage=usage, said=said)
        self.retry_after = retry_after


class BusyError(TransientError):
    """The server works, and asks to be left alone for a while."""


class NoAnswerError(TransientError):
    """The server was reached and gave no answer, perhaps to this one question."""


class LateError(NoAnswerError):
    """It gave none in time."""


class RefusedError(RequestError):
    """The endpoint refuses this one question, or says so."""


class Endpoint:
    """Sends single requests as OpenAI's API takes them.

    Redirects are not followed: they would carry questions to an address that nobody has set.
    Proxies and certificates come from the environment, as httpx reads it (``HTTPS_PROXY``,
    ``SSL_CERT_FILE``).

    Parameters
    ----------
    url : str
        Base URL of the API.
    model : str
        The model's name there.
    key : str
        The key; empty sends none.
    timeout : float
        Seconds for a whole request.

    Raises
    ------
    FatalModelError
        If the environment's proxies or certificates cannot be used.
    """

    def __init__(self, url: str, model: str, *, key: str, timeout: float) -> None:
        import httpx

        self.url = url
        self._model = model
        self._key = key
        self._timeout = timeout
        headers = {
            "User-Agent": f"feddtpt-flwr/{__version__}",
            "Content-Type": "application/json",
        }
        if key:
            headers["Authorization"] = f"Bearer {key}"
        in_the_clear = not url.lower().startswith("https:")
        try:
            self._client = httpx.AsyncClient(
                headers=headers,
                # A proxy would read every question to a server on this machine.
                mounts=DIRECT,
                trust_env=not (in_the_clear and is_loopback(url)),
                timeout=timeout,
                # Reading the certificates takes long; in the clear there is nothing to verify.
                verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if in_the_clear else True,
                # How many there are at a time is the caller's to say.
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            )
        except (ValueError, ImportError, OSError, httpx.InvalidURL) as error:
            # What is said of a URL repeats a part of it, and a proxy's may hold a password.
            of_url = isinstance(error, (ValueError, httpx.InvalidURL))
            raise FatalModelError(
                f"{url}: the environment's proxies or certificates (HTTP_PROXY, HTTPS_PROXY, "
                f"ALL_PROXY, NO_PROXY, SSL_CERT_FILE, SSL_CERT_DIR) cannot be used: "
                f"{'a URL is not valid' if of_url else error}"
            ) from None

    async def chat(
        self, query: str, system_message: str, fields: dict[str, Any], *, tell: bool = False
    ) -> Reply:
        """Send ``query`` as the user's message.

        Parameters
        ----------
        query : str
            The question.
        system_message : str
            The message before it; empty for none.
        fields : dict[str, Any]
            Further fields of the request.
        tell : bool
            Whether a failure holds what the server says: it may quote the question.

        Raises
        ------
        TransientError, RefusedError, FatalModelError
            If there is no answer.
        """
        messages = [{"role": "system", "content": system_message}] if system_message else []
        messages.append({"role": "user", "content": query})
        return await self._send("/chat/completions", {**fields, "messages": messages}, tell)

    async def complete(self, query: str, fields: dict[str, Any], *, tell: bool = False) -> Reply:
        """Let the model continue ``query``; otherwise as `chat`."""
        return await self._send("/completions", {**fields, "prompt": query}, tell)

    async def _send(self, path: str, fields: dict[str, Any], tell: bool) -> Reply:
        import httpx

        # httpx would write UTF-8, in which half of a character, as files may hold, is an error.
        content = json.dumps({**fields, "model": self._model})
        try:
            # The client's own limit is one for each piece that arrives, not for the whole.
            async with asyncio.timeout(self._timeout):
                response = await self._client.post(self.url.rstrip("/") + path, content=content)
        except (TimeoutError, httpx.TimeoutException):
            raise LateError(f"{self.url}: no answer in timeout = {self._timeout:g} s") from None
        except httpx.InvalidURL as error:
            raise FatalModelError(f"{self.url}: no valid URL ({error})") from None
        except httpx.RequestError as error:
            raise self._disconnected(error, tell) from None
        try:
            # Whatever it is declared as: some servers say text/plain.
            body = response.json()
        except (ValueError, RecursionError):
            if not response.is_success:
                self._explain(response, response.status_code, None, tell)
            raise NoAnswerError(f"{self.url}: the response is no valid JSON") from None
        if not response.is_success:
            self._explain(response, response.status_code, body, tell)
        return self._read(response, body, tell)

    def _disconnected(self, error: "httpx.RequestError", tell: bool) -> TransientError:
        import httpx

        # What the system says is told; what came in place of HTTP may quote the question.
        system = isinstance(error, httpx.NetworkError)
        words = self._without_key(str(error).rstrip("."))
        reason = words if system and words else type(error).__name__
        reached = not isinstance(error, (httpx.ConnectError, httpx.ProxyError))
        return (NoAnswerError if reached else TransientError)(
            f"{self.url}: no connection ({reason})", said=words if tell and not system else ""
        )

    def _read(self, response: "httpx.Response", body: object, tell: bool) -> Reply:
        """Take the answer from a response, believing nothing about it."""
        body = body if isinstance(body, dict) else {}
        choices = body.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        choice = choice if isinstance(choice, dict) else {}
        usage = _usage(body.get("usage"))
        unanswered = replace(usage, requests=0, uncounted=0)
        for part in (body, choice):
            # So gateways pass on that the server behind them failed.
            if part.get("error") or part.get("finish_reason") == "error":
                self._explain(response, _status(part), part, tell, unanswered)
        if not choice.keys() & {"message", "text"}:
            raise NoAnswerError(f"{self.url}: the response holds no answer", usage=unanswered)
        if (end := _word(choice, "finish_reason")) in _BROKEN_OFF:
            raise NoAnswerError(f"{self.url}: the answer is broken off ({end})", usage=unanswered)
        message = choice.get("message")
        content = message.get("content") if isinstance(message, dict) else choice.get("text")
        return Reply(without_thinking(_text(content)), usage, end == "length")

    def _explain(
        self,
        response: "httpx.Response",
        status: int,
        body: object,
        tell: bool,
        usage: Usage = _NOTHING,
    ) -> NoReturn:
        """Raise what an HTTP status, or the error in a body that stands for one, means."""
        code, kind, detail = _error(body, response.text)
        said = self._without_key(" ".join(detail.split())) if tell else ""
        message = f"{self.url}: HTTP {status}{f' ({code})' if code else ''}"
        if status == 402 or _USED_UP & {code, kind}:
            raise FatalModelError(f"{message}: the account is used up", said)
        seconds = retry_after(response.headers)
        if status in _BUSY or (status == 503 and seconds):
            raise BusyError(message, seconds, usage=usage, said=said)
        if status in _TRY_AGAIN or status >= 500:
            raise NoAnswerError(message, seconds, usage=usage, said=said)
        if status == 401 and not self._key:
            needed = f"a key is needed, and {_NO_KEY}"
            raise FatalModelError(f"{message}: model {self._model!r}: {needed}", said)
        if status >= 400 and status not in _WHY_FATAL:
            # To a harmless question, 403 is about who asks.
            who = "the key may not be allowed to use this model"
            who = who if self._key else f"a key may be needed, and {_NO_KEY}"
            why = f"; {who}" if tell and status == 403 else ""
            raise RefusedError(message + why, usage=usage, said=said)
        if response.is_redirect:
            raise FatalModelError(f"{message}: it sends to another address; set endpoint to that")
        reason = _WHY_FATAL.get(status, "not understood")
        raise FatalModelError(f"{message}: model {self._model!r}: {reason}", said)

    def _without_key(self, text: str) -> str:
        return (text.replace(self._key, "***") if self._key else text)[:300]


def _text(content: object) -> str:
    """Return the text of a message's content; "" where a model declines or is cut off."""
    if isinstance(content, list):  # of parts, as some servers answer
        parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
        return "".join(text for part in parts if isinstance(text := part.get("text"), str))
    return content if isinstance(content, str) else ""


def _status(part: dict[str, Any]) -> int:
    """Return the HTTP status that an error in a body says it would have; else that of a gateway."""
    error = part.get("error")
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 502


def _error(body: object, text: str) -> tuple[str, str, str]:
    """Return code, type and message of an error, in OpenAI's form, a similar one or none."""
    if body is None:
        return "", "", text
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return "", "", str(error)
    message = error.get("message")
    return _word(error, "code"), _word(error, "type"), message if isinstance(message, str) else text


def _word(error: dict[str, Any], name: str) -> str:
    """Return a field that is a word: numbers repeat the status, a text might quote the question."""
    value = error.get(name)
    return value if isinstance(value, str) and _CODE.fullmatch(value) else ""


def _usage(counts: object) -> Usage:
    """Return what one answer cost."""
    prompt = _count(counts, "prompt_tokens", "input_tokens")
    completion = _count(counts, "completion_tokens", "output_tokens")
    # Some providers count in the total alone what a model thought before it answered.
    completion = max(completion, _count(counts, "total_tokens") - prompt)
    return Usage(1, 0, prompt, completion, int(not prompt + completion))


def _count(counts: object, *names: str) -> int:
    """Return the first of these that is a number; some servers write floats, or text."""
    for name in names:
        value: Any = counts.get(name) if isinstance(counts, dict) else None
        with suppress(TypeError, ValueError, OverflowError):
            if (number := float(value)) >= 0 and number.is_integer():
                return int(number)
    return 0

"""One request to an OpenAI-compatible endpoint, and what its failure means."""

import asyncio
import json
import re
import ssl
from typing import TYPE_CHECKING, Any, NoReturn

from feddtpt_flwr import __version__
from feddtpt_flwr.language_model.base import FatalModelError
from feddtpt_flwr.language_model.limits import retry_after
from feddtpt_flwr.language_model.usage import Usage
from feddtpt_flwr.loopback import DIRECT

if TYPE_CHECKING:
    import httpx

_TRY_AGAIN = {408, 409, 425, 429}
_REFUSED = {400, 413, 422}
_WHY_FATAL = {401: "the key is refused", 403: "the key is refused", 404: "no such model or path"}
_CODE = re.compile(r"[A-Za-z][\w.-]{0,63}")


class TransientError(RuntimeError):
    """A request failed in a way that may pass.

    Parameters
    ----------
    message : str
        What happened.
    retry_after : float
        Seconds that the server asks to wait, 0 for none said.
    """

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RefusedError(RuntimeError):
    """The endpoint refuses this one question.

    Parameters
    ----------
    message : str
        What happened, without what the server says: it may quote the question.
    detail : str
        What the server says.
    """

    def __init__(self, message: str, detail: str) -> None:
        super().__init__(message)
        self.detail = detail


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
        self._client = httpx.AsyncClient(
            headers=headers,
            # A proxy would read every question to a server on this machine.
            mounts=DIRECT,
            timeout=timeout,
            # Reading the certificates takes long; in the clear there is nothing to verify.
            verify=url.lower().startswith("https:") or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            # How many there are at a time is the caller's to say.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )

    async def chat(
        self, query: str, system_message: str, fields: dict[str, Any]
    ) -> tuple[str, Usage]:
        """Send ``query`` as the user's message; return the answer and what it cost.

        Raises
        ------
        TransientError, RefusedError, FatalModelError
            If there is no answer.
        """
        messages = [{"role": "system", "content": system_message}] if system_message else []
        messages.append({"role": "user", "content": query})
        return await self._send("/chat/completions", {"messages": messages, **fields})

    async def complete(self, query: str, fields: dict[str, Any]) -> tuple[str, Usage]:
        """Let the model continue ``query``; otherwise as `chat`."""
        return await self._send("/completions", {"prompt": query, **fields})

    async def _send(self, path: str, fields: dict[str, Any]) -> tuple[str, Usage]:
        import httpx

        # httpx would write UTF-8, in which half of a character, as files may hold, is an error.
        body = json.dumps({"model": self._model, **fields})
        try:
            # The client's own limit is one for each piece that arrives, not for the whole.
            async with asyncio.timeout(self._timeout):
                response = await self._client.post(self.url.rstrip("/") + path, content=body)
        except (TimeoutError, httpx.TimeoutException):
            raise TransientError(
                f"{self.url}: no answer in timeout = {self._timeout:g} s"
            ) from None
        except httpx.InvalidURL as error:
            raise FatalModelError(f"{self.url}: no valid URL ({error})") from None
        except httpx.RequestError as error:
            reason = self._without_key(str(error).rstrip(".") or type(error).__name__)
            raise TransientError(f"{self.url}: no connection ({reason})") from None
        try:
            # Whatever it is declared as: some servers say text/plain.
            body = response.json()
        except ValueError:
            if not response.is_success:
                self._explain(response, response.status_code, None)
            raise TransientError(f"{self.url}: the response is no valid JSON") from None
        if not response.is_success:
            self._explain(response, response.status_code, body)
        return self._read(response, body)

    def _read(self, response: "httpx.Response", body: object) -> tuple[str, Usage]:
        """Take text and usage from a response, believing nothing about it."""
        body = body if isinstance(body, dict) else {}
        choices = body.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        choice = choice if isinstance(choice, dict) else {}
        for part in (body, choice):
            # So gateways pass on that the server behind them failed.
            if part.get("error") or part.get("finish_reason") == "error":
                self._explain(response, _status(part), part)
        if not choice.keys() & {"message", "text"}:
            raise TransientError(f"{self.url}: the response holds no answer")
        message = choice.get("message")
        content = message.get("content") if isinstance(message, dict) else choice.get("text")
        counts = body.get("usage")
        usage = Usage(1, 0, _count(counts, "prompt_tokens"), _count(counts, "completion_tokens"))
        return _text(content), usage

    def _explain(self, response: "httpx.Response", status: int, body: object) -> NoReturn:
        """Raise what an HTTP status, or the error in a body that stands for one, means."""
        code, detail = _error(body, response.text)
        said = f" ({code})" if code else ""
        message = f"{self.url}: HTTP {status}{said}"
        if code == "insufficient_quota" or status == 402:
            raise FatalModelError(f"{message}: the account is used up")
        if status in _TRY_AGAIN or status >= 500:
            raise TransientError(message, retry_after(response.headers))
        if status in _REFUSED:
            raise RefusedError(message, self._without_key(detail))
        if response.is_redirect:
            raise FatalModelError(f"{message}: it sends to another address; set endpoint to that")
        reason = _WHY_FATAL.get(status, "not understood")
        if status in (401, 403) and not self._key:
            reason = (
                "a key is needed, and the variable that api-key-env (for a prompt generator "
                "generator-key-env) names is not set"
            )
        raise FatalModelError(f"{message}: model {self._model!r}: {reason}")

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


def _error(body: object, text: str) -> tuple[str, str]:
    """Return the code and the message of an error, in OpenAI's form, a similar one or none."""
    if body is None:
        return "", text
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return "", str(error)
    code, message = error.get("code"), error.get("message")
    # Only what is a word: numbers repeat the status, and a text might quote the question.
    known = code if isinstance(code, str) and _CODE.fullmatch(code) else ""
    return known, message if isinstance(message, str) else text


def _count(counts: object, name: str) -> int:
    value = counts.get(name) if isinstance(counts, dict) else None
    return value if isinstance(value, int) and value >= 0 else 0

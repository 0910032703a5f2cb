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
        if not response.is_success:
            self._explain(response)
        try:
            # Whatever it is declared as: some servers say text/plain.
            return self._read(response.json())
        except ValueError:
            raise TransientError(f"{self.url}: the response is no valid JSON") from None

    def _read(self, response: object) -> tuple[str, Usage]:
        """Take text and usage from a response, believing nothing about it."""
        try:
            choice = response["choices"][0]  # type: ignore[index]
            text = choice["message"]["content"] if "message" in choice else choice["text"]
        except (KeyError, IndexError, TypeError):
            raise TransientError(f"{self.url}: the response holds no answer") from None
        counts = response.get("usage")  # type: ignore[attr-defined]
        usage = Usage(1, 0, _count(counts, "prompt_tokens"), _count(counts, "completion_tokens"))
        # A model that declines to answer sends a refusal instead of a content.
        return text if isinstance(text, str) else "", usage

    def _explain(self, response: "httpx.Response") -> NoReturn:
        """Raise what an HTTP status means."""
        status = response.status_code
        code, detail = _error(response)
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


def _error(response: "httpx.Response") -> tuple[str, str]:
    """Return the code and the message of an error, in OpenAI's form, a similar one or none."""
    try:
        body = response.json()
    except ValueError:
        return "", response.text
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return "", str(error)
    code, message = error.get("code"), error.get("message")
    # Only what is a word: numbers repeat the status, and a text might quote the question.
    known = code if isinstance(code, str) and _CODE.fullmatch(code) else ""
    return known, message if isinstance(message, str) else response.text


def _count(counts: object, name: str) -> int:
    value = counts.get(name) if isinstance(counts, dict) else None
    return value if isinstance(value, int) and value >= 0 else 0

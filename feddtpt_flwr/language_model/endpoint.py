"""One request to an OpenAI-compatible endpoint, and what its failure means."""

import asyncio
import json
from typing import TYPE_CHECKING, Any, NoReturn

from feddtpt_flwr.language_model.base import FatalModelError
from feddtpt_flwr.language_model.limits import retry_after
from feddtpt_flwr.language_model.usage import Usage

if TYPE_CHECKING:
    import openai

NO_KEY = "none"
"""The client insists on a key, and servers that need none ignore it."""

_TRY_AGAIN = {408, 409, 425, 429}
_REFUSED = {400, 413, 422}
_WHY_FATAL = {401: "the key is refused", 403: "the key is refused", 404: "no such model or path"}


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
    """Sends single requests with the official client.

    Parameters
    ----------
    url : str
        Base URL of the API.
    model : str
        The model's name there.
    key : str
        The key; may be empty.
    timeout : float
        Seconds for a whole request.
    """

    def __init__(self, url: str, model: str, *, key: str, timeout: float) -> None:
        from openai import AsyncOpenAI

        self.url = url
        self._model = model
        self._key = key
        self._timeout = timeout
        # It would neither repeat an answer that is cut off nor count repetitions as requests.
        self._client = AsyncOpenAI(
            base_url=url, api_key=key or NO_KEY, max_retries=0, timeout=timeout
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
        import openai

        body = {"model": self._model, **fields}
        try:
            # The client's own limit is one for each piece that arrives, not for the whole.
            async with asyncio.timeout(self._timeout):
                # Untyped: typed objects are made without looking at what the server sent.
                response = await self._client.post(path, cast_to=object, body=body)
            if isinstance(response, str):  # for what is not declared as JSON
                response = json.loads(response)
        except (TimeoutError, openai.APITimeoutError):
            raise TransientError(
                f"{self.url}: no answer in timeout = {self._timeout:g} s"
            ) from None
        except openai.APIStatusError as error:
            self._explain(error)
        except openai.APIConnectionError as error:
            reason = str(error.__cause__ or error).rstrip(".")
            raise TransientError(f"{self.url}: no connection ({reason})") from None
        except ValueError:
            raise TransientError(f"{self.url}: the response is no valid JSON") from None
        return self._read(response)

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

    def _explain(self, error: "openai.APIStatusError") -> NoReturn:
        """Raise what an HTTP status means."""
        status, code = error.status_code, error.code
        said = f" ({code})" if code and code != str(status) else ""
        message = f"{self.url}: HTTP {status}{said}"
        if code == "insufficient_quota" or status == 402:
            raise FatalModelError(f"{message}: the account is used up") from None
        if status in _TRY_AGAIN or status >= 500:
            raise TransientError(message, retry_after(error.response.headers)) from None
        if status in _REFUSED:
            raise RefusedError(message, self._without_key(error.message)) from None
        reason = _WHY_FATAL.get(status, "not understood")
        if status in (401, 403) and not self._key:
            reason = "a key is needed, and the variable that api-key-env names is not set"
        raise FatalModelError(f"{message}: model {self._model!r}: {reason}") from None

    def _without_key(self, text: str) -> str:
        return (text.replace(self._key, "***") if self._key else text)[:300]


def _count(counts: object, name: str) -> int:
    value = counts.get(name) if isinstance(counts, dict) else None
    return value if isinstance(value, int) and value >= 0 else 0

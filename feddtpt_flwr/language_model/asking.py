"""Single questions to an endpoint: each at its turn, and what it used counted."""

import time
from asyncio import Event
from collections.abc import Mapping, Sequence
from dataclasses import replace
from logging import WARNING, getLogger
from typing import Any

from feddtpt_flwr.language_model.base import FREE_TOKENS
from feddtpt_flwr.language_model.constraints import PROBE
from feddtpt_flwr.language_model.dialect import Dialect
from feddtpt_flwr.language_model.endpoint import (
    Endpoint,
    NoAnswerError,
    RefusedError,
    Reply,
    RequestError,
    TransientError,
)
from feddtpt_flwr.language_model.limits import Pacer
from feddtpt_flwr.language_model.retries import nap
from feddtpt_flwr.language_model.usage import Usage

_log = getLogger("flwr")


class Asker:
    """Sends questions as fast as it may.

    Parameters
    ----------
    endpoint : Endpoint
        Where they go.
    pacer : Pacer
        How fast.
    chat : bool
        Whether to use chat completions; plain completions otherwise.
    system_message : str
        With ``chat``, the message before the query; empty for none.
    sampling : Mapping[str, Any]
        Fields of the sampling that are sent if the endpoint takes them.
    extra_body : Mapping[str, Any]
        Further fields of every request.
    max_answer_tokens : int
        Longest answer, in tokens; free text may always have `FREE_TOKENS`.
    patience : float
        Seconds; nobody waits for a server that asks to wait longer.

    Attributes
    ----------
    usage : Usage
        What was used so far.
    answered_at : float
        When the last answer came, by `time.monotonic`.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        pacer: Pacer,
        *,
        chat: bool,
        system_message: str,
        sampling: Mapping[str, Any],
        extra_body: Mapping[str, Any],
        max_answer_tokens: int,
        patience: float,
    ) -> None:
        self._endpoint = endpoint
        self._pacer = pacer
        self._chat = chat
        self._system_message = system_message
        self._sampling = sampling
        self._extra_body = extra_body
        self._max_answer_tokens = max_answer_tokens
        self._patience = patience
        self._told = False
        self.usage = Usage()
        self.answered_at = 0.0

    def count_retry(self) -> None:
        """Count a question that is going to be sent again."""
        self.usage += Usage(retries=1)

    async def ask(self, query: str, choices: Sequence[str], dialect: Dialect, failed: Event) -> str:
        """Send one request when its turn has come; return its text.

        Parameters
        ----------
        query : str
            The question.
        choices : Sequence[str]
            Answer words; empty for free text.
        dialect : Dialect
            How the endpoint wants to be spoken to.
        failed : asyncio.Event
            Set when another question has failed for good: then nothing is sent.

        Raises
        ------
        TransientError, RefusedError, FatalModelError
            If there is no answer.
        """
        limit = self._max_answer_tokens if choices else max(self._max_answer_tokens, FREE_TOKENS)
        fields = dialect.fields(self._sampling, limit, choices, chat=self._chat)
        expected = len(query) // 4 + fields[dialect.limit_field]
        await self._turn(expected, failed)
        if failed.is_set():  # perhaps while this one waited
            raise TransientError("not sent, as another question failed")
        sent_at = time.monotonic()
        try:
            reply = await self._send(query, choices, {**self._extra_body, **fields}, dialect)
        except RequestError as error:
            error.sent_at = sent_at
            self.usage += error.usage
            if isinstance(error, RefusedError):
                self._pacer.correct(-expected)
            elif isinstance(error, TransientError) and error.retry_after <= self._patience:
                self._pacer.pause(error.retry_after)  # longer than that nobody waits for it
            raise
        self.answered_at = time.monotonic()
        usage = reply.usage
        self.usage += usage
        self._pacer.correct(usage.prompt_tokens + usage.completion_tokens - expected)
        if reply.cut_off and not reply.text.strip() and query != PROBE and not self._told:
            self._told = True
            _log.log(
                WARNING,
                "max-answer-tokens = %d: %s had nothing said when an answer was cut off there; "
                "models that think before they answer need several hundred",
                self._max_answer_tokens,
                self._endpoint.url,
            )
        return reply.text

    async def _turn(self, tokens: int, failed: Event) -> None:
        while (seconds := self._pacer.reserve(tokens)) > 0:
            pause = self._pacer.paused_until
            await nap(seconds, failed)
            if failed.is_set() or self._pacer.paused_until <= max(pause, time.monotonic()):
                return  # else the server has asked meanwhile to be left alone

    async def _send(
        self, query: str, choices: Sequence[str], fields: dict[str, Any], dialect: Dialect
    ) -> Reply:
        tell = query == PROBE
        if self._chat:
            reply = await self._endpoint.chat(query, self._system_message, fields, tell=tell)
        else:
            # The answer stands on the line that the query began.
            stop = {"stop": "\n"} if choices else {}
            reply = await self._endpoint.complete(query, {**fields, **stop}, tell=tell)
        # A model that continues a text as it likes may end the line at once. Whether the endpoint
        # knows the constraint is what the probe is to tell.
        free = not self._chat and (tell or not choices or dialect.constraint == "none")
        if not (reply.text.strip() or reply.cut_off or free):
            usage = replace(reply.usage, requests=0, uncounted=0)
            raise NoAnswerError(f"{self._endpoint.url}: the answer is empty", usage=usage)
        return reply

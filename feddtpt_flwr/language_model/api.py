"""A model behind an OpenAI-compatible HTTP endpoint as the black box.

Requests run concurrently in an event loop of their own thread, because only there can one that
trickles on for ever be given up after a set time. Here is decided what to ask and when to stop; how
one request is sent, and what its failure means, is in `endpoint`.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from logging import WARNING, getLogger
from typing import Any

from feddtpt_flwr.language_model.answers import unwrap_json
from feddtpt_flwr.language_model.base import FREE_TOKENS, FatalModelError, ModelError
from feddtpt_flwr.language_model.constraints import (
    JSON_TOKENS,
    PREFERENCE,
    PROBE,
    PROBE_CHOICES,
    Constrain,
    Constraint,
    constraint_fields,
)
from feddtpt_flwr.language_model.endpoint import Endpoint, RefusedError, TransientError
from feddtpt_flwr.language_model.limits import Pacer
from feddtpt_flwr.language_model.retries import nap, persistently
from feddtpt_flwr.language_model.usage import Usage

_log = getLogger("flwr")


@dataclass(frozen=True)
class _Dialect:
    """How the endpoint wants to be spoken to: its constraint, its name for the answer's limit."""

    constraint: Constraint
    limit_field: str


class ApiLanguageModel:
    """Answer with a model behind an OpenAI-compatible endpoint.

    Parameters
    ----------
    endpoint : str
        Base URL, such as ``"http://127.0.0.1:8080/v1"``.
    model : str
        The model's name there.
    key : str
        The key; empty for a server that needs none. It is sent to the endpoint and shown nowhere.
    chat : bool
        Whether to use chat completions; plain completions otherwise.
    system_message : str
        With ``chat``, the message before the query; empty for none.
    temperature : float
        Sampling temperature, at least 0.
    seed : int
        Seed of the sampling, for servers that know one.
    max_answer_tokens : int
        Longest answer, in tokens, at least 1; free text may always have `FREE_TOKENS`.
    constrain : {"auto", "json-schema", "grammar", "choice", "none"}
        How the server is to confine answers to the choices; ``"auto"`` finds out what it can.
    concurrency : int
        Most requests at a time, at least 1.
    requests_per_minute, tokens_per_minute : int
        Most per minute; 0 for no limit.
    timeout : float
        Seconds after which a request is given up and repeated, however slowly it still trickles.
    patience : float
        Seconds for which a server that fails is asked again, and at least four times.
    """

    def __init__(
        self,
        endpoint: str,
        model: str,
        *,
        key: str = "",
        chat: bool = False,
        system_message: str = "",
        temperature: float = 0.0,
        seed: int = 0,
        max_answer_tokens: int = 16,
        constrain: Constrain = "auto",
        concurrency: int = 8,
        requests_per_minute: int = 0,
        tokens_per_minute: int = 0,
        timeout: float = 60.0,
        patience: float = 120.0,
    ) -> None:
        self._endpoint = Endpoint(endpoint, model, key=key, timeout=timeout)
        self._chat = chat
        self._system_message = system_message
        self._fields: dict[str, Any] = {"temperature": temperature}
        if temperature:  # otherwise it decides nothing, and some servers refuse it
            self._fields["seed"] = seed
        self._max_answer_tokens = max_answer_tokens
        self._constrain = constrain
        self._concurrency = concurrency
        self._pacer = Pacer(requests_per_minute, tokens_per_minute)
        self._patience = patience
        self._dialect: _Dialect | None = None
        self._usage = Usage()
        self._warned = False
        system = f", system message {system_message!r}" if system_message else ""
        self._name = (
            f"{model} at {endpoint} ({'chat' if chat else 'plain'}, temperature {temperature:g}, "
            f"seed {seed}, up to {max_answer_tokens} tokens, constrain {constrain}{system})"
        )

    @property
    def name(self) -> str:
        """The endpoint, the model, and all settings that change answers."""
        return self._name

    @property
    def usage(self) -> Usage:
        """What was used since the model was made."""
        return self._usage

    def prepare(self, patience: float = 5.0) -> str:
        """Ask a question of one line, if none was asked yet, to learn what the endpoint can do.

        Parameters
        ----------
        patience : float
            Seconds for which a server that fails is asked again.

        Returns
        -------
        str
            How answers are constrained.

        Raises
        ------
        FatalModelError
            If the key is refused, the model unknown, or the constraint asked for not kept.
        ModelUnavailableError
            If the server does not answer.
        """
        return self._known_dialect(patience).constraint

    def answer(self, queries: Sequence[str], choices: Sequence[str]) -> list[str]:
        """Answer every query (see `LanguageModel.answer`); ``""`` to what the endpoint refuses."""
        answers = dict(self.iter_answers(queries, choices))
        return [answers[index] or "" for index in range(len(queries))]

    def iter_answers(
        self, queries: Sequence[str], choices: Sequence[str]
    ) -> Iterator[tuple[int, str | None]]:
        """Yield answers as they arrive (see `IncrementalLanguageModel.iter_answers`).

        After a failure nothing new is asked; requests on their way still bring their answers.
        """
        if not queries:
            return
        dialect = self._known_dialect(self._patience)
        results: queue.SimpleQueue[tuple[int, str | None] | None] = queue.SimpleQueue()
        work = asyncio.run_coroutine_threadsafe(
            self._ask_all(queries, choices, dialect, results.put), _loop()
        )
        work.add_done_callback(lambda _: results.put(None))
        try:
            while (result := results.get()) is not None:
                yield result
            work.result()
        finally:
            work.cancel()

    async def _ask_all(
        self,
        queries: Sequence[str],
        choices: Sequence[str],
        dialect: _Dialect,
        put: Callable[[tuple[int, str | None]], None],
    ) -> None:
        places = asyncio.Semaphore(self._concurrency)
        failed = asyncio.Event()
        first: list[ModelError] = []

        async def one(index: int) -> None:
            async with places:
                if failed.is_set():
                    return
                try:
                    put((index, await self._answer(queries[index], choices, dialect, failed)))
                except ModelError as error:
                    first.append(error)
                    failed.set()

        async with asyncio.TaskGroup() as tasks:
            for index in range(len(queries)):
                tasks.create_task(one(index))
        if first:
            raise first[0]

    async def _answer(
        self, query: str, choices: Sequence[str], dialect: _Dialect, failed: asyncio.Event
    ) -> str | None:
        try:
            return await self._persist(query, choices, dialect, self._patience, failed)
        except RefusedError as error:
            if not self._warned:
                self._warned = True
                _log.log(WARNING, "%s; the answer counts as wrong", error)
            return None

    async def _persist(
        self,
        query: str,
        choices: Sequence[str],
        dialect: _Dialect,
        patience: float,
        failed: asyncio.Event,
    ) -> str:
        return await persistently(
            lambda: self._ask(query, choices, dialect, failed),
            patience=patience,
            failed=failed,
            on_retry=self._count_retry,
        )

    def _count_retry(self) -> None:
        self._usage += Usage(retries=1)

    async def _ask(
        self, query: str, choices: Sequence[str], dialect: _Dialect, failed: asyncio.Event
    ) -> str:
        """Send one request when its turn has come; return its text."""
        limit = self._max_answer_tokens if choices else max(self._max_answer_tokens, FREE_TOKENS)
        if choices and dialect.constraint == "json-schema":
            limit += JSON_TOKENS
        fields = self._fields | {dialect.limit_field: limit}
        fields |= constraint_fields(dialect.constraint, choices, chat=self._chat)
        expected = len(query) // 4 + limit
        if (seconds := self._pacer.reserve(expected)) > 0:
            await nap(seconds, failed)
        if failed.is_set():  # perhaps while this one waited
            raise TransientError("not sent, as another question failed")
        try:
            if self._chat:
                text, usage = await self._endpoint.chat(query, self._system_message, fields)
            else:
                # The answer stands on the line that the query began.
                stop = {"stop": "\n"} if choices else {}
                text, usage = await self._endpoint.complete(query, fields | stop)
        except TransientError as error:
            if error.retry_after <= self._patience:  # else nobody waits for it
                self._pacer.pause(error.retry_after)
            raise
        self._usage += usage
        self._pacer.correct(usage.prompt_tokens + usage.completion_tokens - expected)
        return text

    def _known_dialect(self, patience: float) -> _Dialect:
        if self._dialect is None:
            work = asyncio.run_coroutine_threadsafe(self._detect(patience), _loop())
            self._dialect = work.result()
        return self._dialect

    async def _detect(self, patience: float) -> _Dialect:
        """Find a constraint that the endpoint keeps to.

        Servers ignore fields they do not know, so only an answer tells.
        """
        kinds = PREFERENCE if self._constrain == "auto" else (self._constrain,)
        refused: RefusedError | None = None
        for kind in kinds:
            for field in ("max_tokens", "max_completion_tokens"):
                dialect = _Dialect(kind, field)
                try:
                    text = await self._persist(
                        PROBE, PROBE_CHOICES, dialect, patience, asyncio.Event()
                    )
                except RefusedError as error:
                    refused = error
                    # Some models want the newer name, some servers know the older one only.
                    if "max_completion_tokens" in error.detail:
                        continue
                    break
                if kind == "none" and self._chat and not text.strip():
                    raise FatalModelError(
                        f"max-answer-tokens = {self._max_answer_tokens}: {self._endpoint.url} "
                        "answers nothing in so many; models that think before they answer need "
                        "several hundred"
                    )
                if kind == "none" or unwrap_json(text).strip() in PROBE_CHOICES:
                    return dialect
                break
        if refused:
            raise FatalModelError(f"{refused}: {refused.detail}")
        raise FatalModelError(
            f"constrain = {self._constrain!r}: {self._endpoint.url} does not keep to it; "
            f"allowed are 'auto' and 'none', and of {', '.join(map(repr, PREFERENCE[:-1]))} "
            "what the server supports"
        )


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """Return the event loop in which this process talks to endpoints."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="endpoint", daemon=True).start()
    return loop

"""A model behind an OpenAI-compatible HTTP endpoint as the black box.

Requests run concurrently in an event loop of their own thread, because only there can one that
trickles on for ever be given up after a set time. Here is decided what to ask and when to stop;
when one request is sent is in `asking`, how, and what its failure means, in `endpoint`, what an
endpoint understands in `dialect`.
"""

import asyncio
import json
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import cache
from logging import WARNING, getLogger
from typing import Any, TypeVar

from feddtpt_flwr.language_model.asking import Asker
from feddtpt_flwr.language_model.base import FatalModelError, ModelError, UnansweredError
from feddtpt_flwr.language_model.constraints import PROBE, PROBE_CHOICES, Constrain
from feddtpt_flwr.language_model.dialect import Dialect, find_dialect
from feddtpt_flwr.language_model.endpoint import (
    Endpoint,
    LateError,
    NoAnswerError,
    RefusedError,
    TransientError,
)
from feddtpt_flwr.language_model.limits import Pacer
from feddtpt_flwr.language_model.retries import persistently
from feddtpt_flwr.language_model.usage import Usage

UNANSWERED = 6
"""So often one question may find no answer before it is seen whether others do. The random waits
between (`retries`) are expected to add up to 15 seconds."""

_log = getLogger("flwr")
_T = TypeVar("_T")


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
    extra_body : Mapping[str, Any], optional
        Further fields of every request, such as ``{"reasoning_effort": "low"}``.
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
        extra_body: Mapping[str, Any] | None = None,
        concurrency: int = 8,
        requests_per_minute: int = 0,
        tokens_per_minute: int = 0,
        timeout: float = 60.0,
        patience: float = 120.0,
    ) -> None:
        self._endpoint = Endpoint(endpoint, model, key=key, timeout=timeout)
        self._chat = chat
        self._sampling: dict[str, Any] = {"temperature": temperature}
        if temperature:  # otherwise it decides nothing, and some servers refuse it
            self._sampling["seed"] = seed
        extra_body = dict(extra_body or {})
        self._max_answer_tokens = max_answer_tokens
        self._constrain = constrain
        self._concurrency = concurrency
        self._patience = patience
        self._asker = Asker(
            self._endpoint,
            Pacer(requests_per_minute, tokens_per_minute),
            chat=chat,
            system_message=system_message,
            sampling=self._sampling,
            extra_body=extra_body,
            max_answer_tokens=max_answer_tokens,
            patience=patience,
        )
        self._dialect: Dialect | None = None
        self._told = False
        self._probing = asyncio.Lock()
        self._probed_at = 0.0
        self._probe_failed: RefusedError | TransientError | None = None
        further = f", system message {system_message!r}" if system_message else ""
        if extra_body:
            further += f", {json.dumps(extra_body, sort_keys=True)}"
        self._name = (
            f"{model} at {endpoint.rstrip('/')} ({'chat' if chat else 'plain'}, "
            f"temperature {temperature:g}, seed {seed}, up to {max_answer_tokens} tokens, "
            f"constrain {constrain}{further})"
        )

    @property
    def name(self) -> str:
        """The endpoint, the model, and all settings that change answers.

        A constraint that was taken because a better one failed is named, too: the answers are not
        to be taken for others.
        """
        found = self._dialect
        return f"{self._name}, {found.constraint}" if found and found.doubtful else self._name

    @property
    def usage(self) -> Usage:
        """What was used since the model was made."""
        return self._asker.usage

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
            self._result(work)
        finally:
            work.cancel()

    async def _ask_all(
        self,
        queries: Sequence[str],
        choices: Sequence[str],
        dialect: Dialect,
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
                except Exception as error:  # the others still bring their answers
                    first.append(ModelError(f"{self._endpoint.url}: {type(error).__name__}"))
                    failed.set()

        async with asyncio.TaskGroup() as tasks:
            for index in range(len(queries)):
                tasks.create_task(one(index))
        if first:
            raise first[0]

    async def _answer(
        self, query: str, choices: Sequence[str], dialect: Dialect, failed: asyncio.Event
    ) -> str | None:
        """Return the answer to a question, None if the endpoint has none to this one alone.

        What it means for all of them, as that the account is empty, some providers say as if it
        were about the question. So a harmless one is asked as well.
        """
        unanswered, others_answered = 0, False

        async def ask() -> str:
            nonlocal unanswered, others_answered
            try:
                return await self._asker.ask(query, choices, dialect, failed)
            except RefusedError as error:
                failure = await self._probe(dialect, failed, error.sent_at)
                if isinstance(failure, RefusedError):
                    raise FatalModelError(str(failure), failure.said) from None
                if failure or failed.is_set():
                    raise failure or TransientError(str(error)) from None
                raise
            except NoAnswerError as error:
                unanswered += 1
                if others_answered and not failed.is_set():
                    raise RefusedError(f"{error}, after {unanswered} attempts") from None
                if unanswered >= UNANSWERED:
                    others_answered = not await self._probe(dialect, failed, error.sent_at)
                raise

        try:
            try:
                return await self._persist(ask, self._patience, failed)
            except UnansweredError:
                if failed.is_set() or await self._probe(dialect, failed, time.monotonic()):
                    raise
                others_answered = True
                return await self._persist(ask, 0.0, failed)
        except RefusedError as error:
            if not self._told:
                self._told = True
                _log.log(WARNING, "%s; the answer counts as wrong", error)
            return None

    async def _probe(
        self, dialect: Dialect, failed: asyncio.Event, since: float
    ) -> RefusedError | TransientError | None:
        """Return why the endpoint does not even answer a harmless question; None if it does.

        If it has answered any other since the given time, it is not asked.
        """
        async with self._probing:
            if self._asker.answered_at > since:
                return None
            if self._probed_at > since:
                return self._probe_failed
            began = time.monotonic()
            try:
                await self._asker.ask(PROBE, PROBE_CHOICES, dialect, failed)
            except (RefusedError, TransientError) as error:
                self._probed_at, self._probe_failed = began, error
                return error
            return None

    async def _persist(
        self, ask: Callable[[], Awaitable[str]], patience: float, failed: asyncio.Event
    ) -> str:
        return await persistently(
            ask,
            patience=patience,
            busy_patience=self._patience,
            failed=failed,
            on_retry=self._asker.count_retry,
        )

    def _known_dialect(self, patience: float) -> Dialect:
        if self._dialect is None:
            work = asyncio.run_coroutine_threadsafe(self._detect(patience), _loop())
            self._dialect = self._result(work)
        return self._dialect

    def _result(self, work: "Future[_T]") -> _T:
        try:
            return work.result()
        except ModelError as error:
            if error.said:
                _log.log(WARNING, "%s says: %s", self._endpoint.url, error.said)
            raise

    async def _detect(self, patience: float) -> Dialect:
        never = asyncio.Event()
        until = time.monotonic() + patience

        async def ask_once(dialect: Dialect) -> str:
            try:
                return await self._asker.ask(PROBE, PROBE_CHOICES, dialect, never)
            except LateError as error:  # who hangs does so whatever is asked
                raise TransientError(str(error)) from None

        async def ask(dialect: Dialect) -> str:
            left = max(0.0, until - time.monotonic())
            return await self._persist(lambda: ask_once(dialect), left, never)

        return await find_dialect(
            ask,
            ask_once,
            self._constrain,
            self._sampling,
            url=self._endpoint.url,
            chat=self._chat,
            max_answer_tokens=self._max_answer_tokens,
        )


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """Return the event loop in which this process talks to endpoints."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="endpoint", daemon=True).start()
    return loop

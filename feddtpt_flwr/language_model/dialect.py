"""How an endpoint wants to be spoken to, and how one finds out."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from logging import INFO, WARNING, getLogger
from typing import Any

from feddtpt_flwr.language_model.answers import unwrap_json
from feddtpt_flwr.language_model.base import FatalModelError, UnansweredError
from feddtpt_flwr.language_model.constraints import (
    JSON_TOKENS,
    PREFERENCE,
    PROBE_CHOICES,
    Constrain,
    Constraint,
    constraint_fields,
)
from feddtpt_flwr.language_model.endpoint import RefusedError, TransientError

_SAMPLING = ("temperature", "seed")
_log = getLogger("flwr")


@dataclass(frozen=True)
class Dialect:
    """How the endpoint wants to be spoken to.

    Attributes
    ----------
    constraint : {"json-schema", "grammar", "choice", "none"}
        How it confines answers.
    limit_field : str
        Its name for the limit of an answer.
    left_out : frozenset[str]
        Fields of the sampling that it refuses.
    doubtful : bool
        Whether it failed at a constraint that would have been better, perhaps at a bad moment.
    """

    constraint: Constraint
    limit_field: str = "max_tokens"
    left_out: frozenset[str] = frozenset()
    doubtful: bool = False

    def fields(
        self, sampling: Mapping[str, Any], limit: int, choices: Sequence[str], *, chat: bool
    ) -> dict[str, Any]:
        """Return the fields of a request for an answer of at most ``limit`` tokens."""
        if choices and self.constraint == "json-schema":
            limit += JSON_TOKENS
        kept = {name: value for name, value in sampling.items() if name not in self.left_out}
        return {
            **kept,
            self.limit_field: limit,
            **constraint_fields(self.constraint, choices, chat=chat),
        }

    def adapted(self, said: str, sent: Mapping[str, Any]) -> "Dialect | None":
        """Return what to try after a refusal that says this; None if it names no field."""
        # Some models want the newer name, some servers know the older one only.
        if self.limit_field == "max_tokens" and "max_completion_tokens" in said:
            return replace(self, limit_field="max_completion_tokens")
        for name in _SAMPLING:
            # Reasoning models take no temperature, and some providers no seed.
            if name in sent and name not in self.left_out and name in said:
                return replace(self, left_out=self.left_out | {name})
        return None


async def find_dialect(
    ask: Callable[[Dialect], Awaitable[str]],
    ask_once: Callable[[Dialect], Awaitable[str]],
    constrain: Constrain,
    sampling: Mapping[str, Any],
    *,
    url: str,
    chat: bool,
    max_answer_tokens: int,
) -> Dialect:
    """Find a constraint that the endpoint keeps to, and the fields that it takes.

    Servers ignore fields they do not know, so only an answer tells.

    Parameters
    ----------
    ask : Callable[[Dialect], Awaitable[str]]
        Asks `PROBE` with `PROBE_CHOICES`, as often as it takes; returns the answer.
    ask_once : Callable[[Dialect], Awaitable[str]]
        Sends it a single time.
    constrain : {"auto", "json-schema", "grammar", "choice", "none"}
        The constraint, if it is given.
    sampling : Mapping[str, Any]
        Fields of the sampling that are sent if the endpoint takes them.
    url : str
        The endpoint, for messages.
    chat : bool
        Whether questions are chat completions.
    max_answer_tokens : int
        Longest answer, for messages.

    Raises
    ------
    FatalModelError
        If the endpoint keeps to none, or refuses every way to ask.
    ModelUnavailableError
        If it does not answer.
    """
    kinds = PREFERENCE if constrain == "auto" else (constrain,)
    trouble: RefusedError | UnansweredError | None = None
    failed: list[Constraint] = []
    dialect = Dialect(kinds[0])
    for kind in kinds:
        dialect = replace(dialect, constraint=kind)
        while True:
            try:
                text = await ask(dialect)
            except RefusedError as error:
                if other := dialect.adapted(error.said, sampling):
                    dialect = other
                    continue
                trouble = error
                break
            except UnansweredError as error:  # some servers fail at what they do not know
                trouble = error
                failed.append(kind)
                break
            if kind == "none" and chat and not text.strip():
                raise FatalModelError(
                    f"max-answer-tokens = {max_answer_tokens}: {url} answers nothing in so many; "
                    "models that think before they answer need several hundred"
                )
            if kind == "none" or _kept(text):
                dialect = await _better(dialect, failed, ask_once)
                _tell(dialect, url, constrain)
                return dialect
            break
    if isinstance(trouble, UnansweredError):
        raise trouble
    if trouble:
        raise FatalModelError(str(trouble), trouble.said)
    raise FatalModelError(
        f"constrain = {constrain!r}: {url} does not keep to it; "
        f"allowed are 'auto' and 'none', and of {', '.join(map(repr, PREFERENCE[:-1]))} "
        "what the server supports"
    )


def _kept(text: str) -> bool:
    return unwrap_json(text).strip() in PROBE_CHOICES


async def _better(
    found: Dialect, failed: Sequence[Constraint], ask_once: Callable[[Dialect], Awaitable[str]]
) -> Dialect:
    """Return what was found with the first constraint that had failed and works now, if any."""
    doubtful = False
    for kind in failed:
        dialect = replace(found, constraint=kind, doubtful=doubtful)
        try:
            if _kept(await ask_once(dialect)):
                return dialect
        except RefusedError:
            continue
        except TransientError:
            doubtful = True
    return replace(found, doubtful=doubtful)


def _tell(dialect: Dialect, url: str, constrain: Constrain) -> None:
    if constrain == "auto":
        why = "; it failed at what would be better" if dialect.doubtful else ""
        level = WARNING if why else INFO
        _log.log(level, "%s: constrain = 'auto' has found %r%s", url, dialect.constraint, why)
    if "temperature" in dialect.left_out:
        _log.log(
            WARNING,
            "%s takes no temperature for this model: the same question may be answered differently "
            "another time",
            url,
        )

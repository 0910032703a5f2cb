"""Searches of a client that were killed, as its file of entries tells of them.

An entry is a line of `feddtpt_flwr.client_state`: the message that it belongs to, and a start, a
trial, answers, what was used, or the end.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from typing import Any

from feddtpt_flwr.feedback import Trial, trial_from_dict
from strategies.candidates import Tokens

Step = tuple[int, int]
"""A message's place in a run: its round, and 0 for the search or 1 for the scoring."""


@dataclass(frozen=True)
class Attempt:
    """A search that did not come to a reply, as far as it came.

    Attributes
    ----------
    start : Tokens
        The prompt that it began from.
    trials : tuple[Trial, ...]
        The changes that it tried, in order.
    """

    start: Tokens
    trials: tuple[Trial, ...] = ()

    @property
    def accepted(self) -> tuple[Trial, ...]:
        """The changes that it went on from."""
        return tuple(trial for trial in self.trials if trial.accepted)

    @property
    def tokens(self) -> Tokens:
        """Its best prompt."""
        return reduce(lambda tokens, trial: trial.apply(tokens), self.accepted, self.start)


def step_of(entry: Mapping[str, Any]) -> Step:
    """Return the place of the message that an entry belongs to."""
    server_round, phase = entry["step"]
    return int(server_round), int(phase)


_ASIDE = {"start": "began", "trial": "tried"}
"""What an attempt's entries are called once another attempt at the same message has begun."""


def put_aside(entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield an entry of another attempt as it is kept; nothing if it is not."""
    if "used" in entry:
        # Its queries will be counted again.
        yield {**entry, "used": {**entry["used"], "queries": 0}}
    elif "end" not in entry:
        yield {_ASIDE.get(key, key): value for key, value in entry.items()}


def attempts_in(entries: Iterable[Mapping[str, Any]]) -> list[Attempt]:
    """Return the searches that began in one step's entries, in order."""
    attempts: list[Attempt] = []
    for entry in entries:
        if start := entry.get("start", entry.get("began")):
            attempts.append(Attempt(tuple(start)))
        elif attempts and (made := entry.get("trial", entry.get("tried"))):
            last = attempts[-1]
            attempts[-1] = replace(last, trials=(*last.trials, trial_from_dict(made)))
    return attempts


def most_accurate(attempts: Iterable[Attempt]) -> Attempt | None:
    """Return the attempt whose prompt was the most accurate, if any had found one."""
    found = [attempt for attempt in attempts if attempt.accepted]
    return max(found, key=lambda attempt: attempt.accepted[-1].accuracy, default=None)


def last_interrupted(past: Sequence[Mapping[str, Any]]) -> Attempt | None:
    """Return the last search that began and what it had found, if that did not end."""
    last = max((step_of(e) for e in past if "start" in e or "began" in e), default=None)
    entries = [entry for entry in past if step_of(entry) == last]
    # A message may end before its search begins; then an earlier attempt's stands.
    ended = all(any(key in entry for entry in entries) for key in ("start", "end"))
    return None if ended else most_accurate(attempts_in(entries))


def trials_in(past: Sequence[Mapping[str, Any]]) -> Iterator[Trial]:
    """Yield what was tried, step by step; what several attempts have tried counts once."""
    for at in sorted({step_of(entry) for entry in past}):
        entries = [entry for entry in past if step_of(entry) == at]
        made = [trial_from_dict(entry["trial"]) for entry in entries if "trial" in entry]
        earlier = attempts_in(e for e in entries if "began" in e or "tried" in e)
        tried = reduce(or_, (Counter(attempt.trials) for attempt in earlier), Counter[Trial]())
        yield from made
        yield from (tried - Counter(made)).elements()

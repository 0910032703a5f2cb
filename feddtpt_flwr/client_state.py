"""What a client remembers from message to message.

In a deployment every message starts a new process. Flower hands its client state on from one to the
next, but keeps it in the SuperNode's memory, only takes it from a process that ends well, and gives
none to another run that goes on with this one. So there is a file as well: every answer and every
trial is appended to it at once. A message that comes again, after its process or the whole run was
killed, finds what was replied to it. If it never came to a reply, it finds everything as it was
when it first came, and what had been answered until then in an archive: it takes the same course,
and asks nothing twice. What the killed search had found and tried is put aside, for limits of
tokens, money or time may not let it come that far again.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from logging import WARNING
from pathlib import Path
from typing import Any, Literal

from flwr.common import ConfigRecord, RecordDict, Scalar, log

from feddtpt_flwr.amounts import Amounts
from feddtpt_flwr.attempts import (
    Step,
    attempts_in,
    last_interrupted,
    most_accurate,
    put_aside,
    step_of,
    trials_in,
)
from feddtpt_flwr.evaluation import CAPACITY, AnswerCache
from feddtpt_flwr.feedback import Feedback
from feddtpt_flwr.private_files import flush, open_private
from strategies.candidates import Tokens

STATE_KEY = "feddtpt"
STATE_VERSION = 2

RUN_KEY = "run"
"""Key of a message's configuration for the name by which a run and its continuations are known."""

VERSION_KEY = "app-version"
"""Key of a message's configuration for the version of the app on the server."""

KEPT_DAYS = 30
"""Files that no message has touched for so long are removed."""

Phase = Literal["search", "score"]


def step(server_round: int, phase: Phase) -> Step:
    """Return the place of a message in its run."""
    return server_round, ("search", "score").index(phase)


@dataclass(frozen=True)
class Kept:
    """What was replied to a message.

    Attributes
    ----------
    to : tuple[Tokens, ...]
        The prompts that had come with it.
    tokens : Tokens
        The prompt that went back; empty after scoring.
    num_examples : int
        The number of examples.
    metrics : Mapping[str, Scalar]
        All else.
    """

    to: tuple[Tokens, ...]
    tokens: Tokens
    num_examples: int
    metrics: Mapping[str, Scalar]

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> "Kept":
        """Read what `asdict` and JSON made of one."""
        to = tuple(tuple(prompt) for prompt in entry["to"])
        return cls(to, tuple(entry["tokens"]), int(entry["num_examples"]), dict(entry["metrics"]))


def state_file(folder: Path, run: str, client: str, privacy: str = "none") -> Path:
    """Return the file of one client in one run.

    The names come from elsewhere; a hash of them leads to no other folder. What was tried under one
    ``privacy`` steers no search under another, whatever name the server gives its run.
    """
    name = f"{run}\0{client}\0{privacy}"
    digest = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
    return folder / "clients" / f"{digest}.jsonl"


class ClientState:
    """A client's trials and answers, as they were before one message of a run.

    It is an archive (`evaluation.AnswerArchive`) of what an earlier attempt at the same message, or
    a later one, had been answered.

    Parameters
    ----------
    flower : RecordDict
        Flower's client state.
    file : Path, optional
        See `state_file`; without one, Flower's state is all there is.
    now : Step
        The message's place in the run.
    sent : tuple[Tokens, ...]
        The prompts that came with it.

    Attributes
    ----------
    reply : Kept, optional
        What was replied when the same message with the same prompts came before.
    feedback : Feedback
        The trials so far; new ones are written down.
    interrupted : Attempt, optional
        The last search before, if that never came to its end and had found a better prompt.
    found : Attempt, optional
        The other attempt at this message that had found the best prompt, if one had.
    to_find : int
        Answers that another attempt at this message had got from the same beginning: this one will
        find them again.
    used_in_run, used_in_step : Amounts
        What the client has used in the run, and for this message. Tokens and money of other
        attempts count, as they are gone; queries do not, as they are asked again and found. Time
        counts for the run; for the message it begins anew, as whoever waits for its reply does.
    """

    def __init__(
        self,
        flower: RecordDict,
        file: Path | None,
        now: Step,
        sent: tuple[Tokens, ...] = (),
    ) -> None:
        self._flower = flower
        self._file = file
        self._now = now
        there, intact = self._read()
        self.reply = _reply(there, now, sent)

        def stands(entry: Mapping[str, Any]) -> bool:
            # A message that was replied to does not begin anew.
            return step_of(entry) < now or (self.reply is not None and step_of(entry) == now)

        past = [entry for entry in there if stands(entry)]
        # Flower's state has more than the file where the disk is another one than before, or was
        # full before the end.
        flowers = self._read_flowers()
        if flowers and (not past or step_of(flowers[-1]) >= _first_not_ended(past)):
            past = flowers
        other = [aside for entry in there if not stands(entry) for aside in put_aside(entry)]
        kept = there if self.reply else past + other
        if not intact or there != kept:
            self._write(kept)
        self._archive = _answers(other)
        self._known = _answers(past)
        self.feedback = Feedback.of(
            trials_in(past), lambda trial: self._append(trial=asdict(trial))
        )
        self.interrupted = last_interrupted(past)
        here = [entry for entry in other if step_of(entry) == now]
        self.found = most_accurate(attempts_in(here))
        starts = {*sent[:1], *({self.interrupted.tokens} if self.interrupted else ())}
        same = any(attempt.start in starts for attempt in attempts_in(here))
        self.to_find = len(_answers(here)) if same else 0
        self.used_in_run = _used([*past, *other])
        self.used_in_step = replace(_used(here), seconds=0.0)
        self._used_now = Amounts()
        self._most = CAPACITY

    def cache(self, *archives: Any, room: int = 0) -> AnswerCache:
        """Return the answers that are known, with this state and ``archives`` behind them.

        None is forgotten before there are `CAPACITY` and ``room`` new ones.
        """
        self._most = CAPACITY + room
        capacity = len(self._known) + self._most
        return AnswerCache(capacity, (self, *archives), known=self._known)

    def get(self, digest: str) -> str | None:
        """Return the answer that another attempt has got to the question with this hash."""
        return self._archive.get(digest)

    def put(self, answers: Mapping[str, str]) -> None:
        """Write down new answers by the hashes of their questions."""
        new = {digest: text for digest, text in answers.items() if digest not in self._archive}
        if new:
            self._archive |= new
            self._append(answers=new)

    def begin(self, tokens: Tokens) -> None:
        """Write down that a search begins from a prompt."""
        self._append(start=list(tokens))

    def use(self, amounts: Amounts) -> None:
        """Write down that something was used."""
        self._used_now += amounts
        self._append(used=asdict(amounts))

    def end(self, cache: AnswerCache, reply: Kept | None = None) -> None:
        """Write down that the message is done, and hand the state to Flower.

        Parameters
        ----------
        cache : AnswerCache
            What `cache` returned, with the new answers.
        reply : Kept, optional
            What is replied; none if the message is to be worked at again should it come again.
        """
        self._append(end=True, **({"reply": asdict(reply)} if reply else {}))
        self._flower[STATE_KEY] = ConfigRecord(
            {
                "version": STATE_VERSION,
                "step": list(self._now),
                "feedback": self.feedback.to_json(),
                "answers": cache.to_json(self._most),
                "used": json.dumps(asdict(self.used_in_run + self._used_now)),
            }
        )

    def _read_flowers(self) -> list[dict[str, Any]]:
        """Return Flower's client state as entries of a file."""
        record: Any = self._flower.config_records.get(STATE_KEY)
        if record is None:
            return []
        if record.get("version") != STATE_VERSION:
            _warn_of_version("Flower's client state", record.get("version"))
            return []
        at = {"step": list(record["step"])}
        trials = json.loads(record["feedback"])
        answers = {**at, "answers": json.loads(record["answers"])}
        used = {**at, "used": json.loads(str(record.get("used", "{}")))}
        return [*({**at, "trial": trial} for trial in trials), answers, used, {**at, "end": True}]

    def _read(self) -> tuple[list[dict[str, Any]], bool]:
        """Return the file's entries, and whether it can be appended to as it is."""
        if self._file is None:
            return [], True
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            remove_old(self._file.parent)
            text = self._file.read_text(encoding="utf-8") if self._file.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            self._give_up(error)
            return [], True
        lines = text.splitlines()
        try:
            version = json.loads(lines[0])["version"] if lines else STATE_VERSION
        except (ValueError, TypeError, KeyError):
            version = None
        if version != STATE_VERSION:
            _warn_of_version(str(self._file), version)
            return [], False
        # A process that was killed may leave half a line behind.
        return list(_entries(lines[1:])), text.endswith("\n")

    def _write(self, entries: Iterable[Mapping[str, Any]]) -> None:
        if self._file is None:
            return
        lines = [json.dumps(entry) for entry in ({"version": STATE_VERSION}, *entries)]
        temporary = self._file.with_suffix(f".{os.getpid()}.tmp")
        try:
            with open_private(temporary, "w") as file:
                file.write("\n".join([*lines, ""]))
                flush(file)
            temporary.replace(self._file)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            self._give_up(error)

    def _append(self, **entry: Any) -> None:
        if self._file is None:
            return
        line = json.dumps({"step": list(self._now), **entry})
        try:
            with open_private(self._file, "a") as file:
                file.write(line + "\n")
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Go on without the file: it only matters if something else fails as well."""
        log(WARNING, "%s: the client's state is not kept on disk: %s", self._file, error)
        self._file = None


def _entries(lines: Iterable[str]) -> Iterable[dict[str, Any]]:
    for line in lines:
        try:
            entry = json.loads(line)
            step_of(entry)
        except (ValueError, TypeError, KeyError):
            return  # what follows half a line cannot be trusted
        yield entry


def _first_not_ended(past: Sequence[Mapping[str, Any]]) -> Step:
    """Return the step of the last entries, or the one after it if they tell of its end."""
    last = max(map(step_of, past))
    ended = any("end" in entry for entry in past if step_of(entry) == last)
    return (last[0], last[1] + 1) if ended else last


def _answers(entries: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    return {key: value for entry in entries for key, value in entry.get("answers", {}).items()}


def _used(entries: Iterable[Mapping[str, Any]]) -> Amounts:
    return sum((Amounts(**entry["used"]) for entry in entries if "used" in entry), Amounts())


def _reply(there: Iterable[Mapping[str, Any]], now: Step, sent: tuple[Tokens, ...]) -> Kept | None:
    """Return what was replied to this message with these prompts; None if nothing was."""
    kept = [Kept.of(e["reply"]) for e in there if step_of(e) == now and "reply" in e]
    return next((reply for reply in reversed(kept) if reply.to == sent), None)


def _warn_of_version(what: str, version: Any) -> None:
    log(
        WARNING,
        "%s is of version %r, this app reads %d: the client begins with an empty memory",
        what,
        version,
        STATE_VERSION,
    )


def remove_old(folder: Path) -> None:
    """Remove the files of clients that have sent nothing for `KEPT_DAYS`."""
    for file in folder.iterdir():
        with suppress(FileNotFoundError):  # another process was faster
            if time.time() - file.stat().st_mtime > KEPT_DAYS * 86400:
                file.unlink()

"""What of its epsilon a node has spent: asking twice does not buy a second answer.

Noise protects one answer. A server that asks the same question again and again, or in more rounds
than the run has, would average it away; so would one run after the other about the same examples.
"""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import fsum
from pathlib import Path
from typing import Annotated, Literal

from filelock import FileLock
from flwr.common import ConfigRecord, RecordDict
from pydantic import Field, TypeAdapter, ValidationError

from feddtpt_flwr.private_files import flush, flush_folder, open_private

LEDGER_KEY = "privacy-ledger"

Phase = Literal["search", "score"]

SPENT = "the round's epsilon is spent"
LIMIT_REACHED = "this node's epsilon-limit is reached"

_ROUNDING = 1e-9  # of the limit: tenths do not add up exactly


class LedgerError(Exception):
    """A ledger cannot be read or written: then nothing may be answered."""


@dataclass(frozen=True)
class LedgerFile:
    """Where a node keeps its ledger, and what it lets its examples tell.

    Attributes
    ----------
    path : Path
        The file; it is made with the first answer, in a folder that exists.
    limit : float
        Most epsilon of all runs together; 0 for no limit.
    run : str
        Flower's number of the run.
    """

    path: Path
    limit: float = 0.0
    run: str = ""


class Ledger(ABC):
    """The phases of rounds in which a client has answered.

    Parameters
    ----------
    num_rounds : int
        Rounds of the run.
    """

    def __init__(self, num_rounds: int) -> None:
        self._num_rounds = num_rounds

    def refusal(self, phase: Phase, server_round: int) -> str:
        """Return why no answer may be given in this phase of this round; empty if one may.

        Raises
        ------
        LedgerError
            If that cannot be known.
        """
        return "" if 1 <= server_round <= self._num_rounds else SPENT

    @abstractmethod
    def book(self, phase: Phase, server_round: int) -> str:
        """Note that an answer is given, or return why none may be.

        Raises
        ------
        LedgerError
            If it cannot be noted.
        """


class StateLedger(Ledger):
    """A ledger in Flower's client state, which lasts as long as the run and the SuperNode.

    Parameters
    ----------
    state : RecordDict
        Flower's client state.
    num_rounds : int
        Rounds of the run.
    """

    def __init__(self, state: RecordDict, num_rounds: int) -> None:
        super().__init__(num_rounds)
        self._state = state

    def refusal(self, phase: Phase, server_round: int) -> str:
        """Return why no answer may be given (see `Ledger.refusal`)."""
        spent = server_round in self._answered(phase)
        return SPENT if spent else super().refusal(phase, server_round)

    def book(self, phase: Phase, server_round: int) -> str:
        """Note that an answer is given, or return why none may be."""
        if reason := self.refusal(phase, server_round):
            return reason
        answered = {name: self._answered(name) for name in ("search", "score")}
        answered[phase] = [*answered[phase], server_round]
        self._state[LEDGER_KEY] = ConfigRecord({**answered})
        return ""

    def _answered(self, phase: str) -> list[int]:
        record = self._state.config_records.get(LEDGER_KEY)
        rounds = record[phase] if record is not None else []
        return [int(number) for number in rounds] if isinstance(rounds, list) else []


@dataclass(frozen=True)
class Booking:
    """A line of a ledger on disk.

    Attributes
    ----------
    time : str
        When, by the node's clock.
    run : str
        Flower's number of the run.
    round : int
    phase : {"search", "score"}
    epsilon : float
        What the answer costs, at least 0.
    """

    time: str
    run: str
    round: int
    phase: Phase
    epsilon: Annotated[float, Field(ge=0, allow_inf_nan=False)]


_BOOKING = TypeAdapter(Booking)


class FileLedger(Ledger):
    """A ledger on a node's disk: it outlasts SuperNode and run, and several may share it.

    Parameters
    ----------
    file : LedgerFile
        Where it is, and what it allows.
    epsilons : Mapping[Phase, float]
        What an answer of each phase costs in this run.
    num_rounds : int
        Rounds of the run.
    """

    def __init__(self, file: LedgerFile, epsilons: Mapping[Phase, float], num_rounds: int) -> None:
        super().__init__(num_rounds)
        self._file = file
        self._epsilons = epsilons

    def bookings(self) -> list[Booking]:
        """Return all that was booked, of every run.

        Raises
        ------
        LedgerError
            If the file cannot be read, or holds something else.
        """
        path = self._file.path
        try:
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        except (OSError, UnicodeDecodeError) as error:
            raise LedgerError(f"epsilon-ledger {path} cannot be read: {error}") from None
        found = []
        for number, line in enumerate(lines, 1):
            try:
                found.append(_BOOKING.validate_json(line, strict=True))
            except ValidationError:
                raise LedgerError(
                    f"epsilon-ledger {path}, line {number} is no booking: {line[:80]!r}; a last "
                    "line that a full disk has cut off, before anything was asked, may be removed"
                ) from None
        return found

    def spent(self) -> float:
        """Return the epsilon of all bookings together (see `bookings`)."""
        return fsum(booking.epsilon for booking in self.bookings())

    def refusal(self, phase: Phase, server_round: int) -> str:
        """Return why no answer may be given (see `Ledger.refusal`)."""
        self.check()  # or what is asked until it is booked is paid for nothing
        with self._alone():
            return self._reason(phase, server_round)

    def book(self, phase: Phase, server_round: int) -> str:
        """Note that an answer is given, or return why none may be; it is on disk then."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        booking = Booking(now, self._file.run, server_round, phase, self._epsilons[phase])
        path = self._file.path
        with self._alone():
            if reason := self._reason(phase, server_round):
                return reason
            # An editor may have left the last line without its end.
            new = not path.exists()
            ended = new or path.read_bytes()[-1:] in (b"", b"\n")
            with open_private(path, "a") as file:
                file.write(("" if ended else "\n") + json.dumps(asdict(booking)) + "\n")
                flush(file)
            if new:
                flush_folder(path.parent)
        return ""

    def check(self) -> None:
        """Check that the file can be read, and written by this user; nothing is made.

        Raises
        ------
        LedgerError
            If not.
        """
        path = self._file.path
        self.bookings()
        if not path.parent.is_dir():
            raise LedgerError(_not_written(path, "its folder does not exist"))
        needed = (p if p.exists() else path.parent for p in (path, Path(f"{path}.lock")))
        if not all(os.access(p, os.W_OK) for p in needed):
            raise LedgerError(_not_written(path, "this user may not"))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep others from the file."""
        try:
            with FileLock(f"{self._file.path}.lock"):
                yield
        except (OSError, NotImplementedError) as error:  # the latter of a disk without locks
            raise LedgerError(_not_written(self._file.path, str(error))) from None

    def _reason(self, phase: Phase, server_round: int) -> str:
        bookings = self.bookings()
        for booking in bookings:
            if (booking.run, booking.phase, booking.round) == (
                self._file.run,
                phase,
                server_round,
            ):
                return SPENT
        total = fsum([*(booking.epsilon for booking in bookings), self._epsilons[phase]])
        if self._file.limit and total > self._file.limit * (1 + _ROUNDING):
            return LIMIT_REACHED
        return super().refusal(phase, server_round)


def _not_written(path: Path, error: str) -> str:
    return (
        f"epsilon-ledger {path} cannot be written ({error}), and no answer is "
        "given that is not booked; name another file with the node config's epsilon-ledger"
    )

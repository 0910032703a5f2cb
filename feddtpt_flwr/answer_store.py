"""Answers kept on disk, so that no process of this machine pays for one twice.

An SQLite file with hashes of questions and the answers, nothing else: no question can be read
from it, and reading it runs no code.
"""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from logging import WARNING, getLogger
from pathlib import Path

from feddtpt_flwr.private_files import open_private

_BUSY_SECONDS = 30.0
_SECONDS_WITHOUT = 60.0
_ANSWERS_PER_CHECK = 256
_EVICTED_SHARE = 8  # an eighth at a time
_log = getLogger("flwr")


class AnswerStore:
    """Answers by the hash of their question, in a file that processes share.

    Several processes may write at the same time. If the file cannot be used (no space, no right
    to write, no database) one warning says so, and nothing is kept until it can, which is tried
    once a minute.

    Parameters
    ----------
    file : Path
        The file; made with its folder if there is none.
    max_bytes : int
        Size of the file at which the oldest answers are forgotten, unless somebody has given it a
        larger one: they have paid for these.
    clock : Callable[[], float]
        Seconds, never going back.
    """

    def __init__(
        self, file: Path, max_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._file = file
        self._max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._unchecked = _ANSWERS_PER_CHECK
        self._database: sqlite3.Connection | None = None
        self._open_at = clock()
        self._warned = False
        self._full = False
        with self._usable():
            self._opened()

    def get(self, digest: str) -> str | None:
        """Return the answer to the question with this hash, or None."""
        with self._usable():
            if database := self._opened():
                select = "SELECT answer FROM answers WHERE question = ?"
                row = database.execute(select, (bytes.fromhex(digest),)).fetchone()
                return str(row[0]) if row else None
        return None

    def put(self, answers: Mapping[str, str]) -> None:
        """Keep answers by the hashes of their questions; what is there already stays."""
        with self._usable():
            if database := self._opened():
                rows = [(bytes.fromhex(digest), answer) for digest, answer in answers.items()]
                insert = "INSERT OR IGNORE INTO answers (question, answer) VALUES (?, ?)"
                database.executemany(insert, rows)
                self._unchecked += len(rows)
                if self._unchecked > _ANSWERS_PER_CHECK:
                    self._forget_oldest(database)
                    self._unchecked = 0

    def __len__(self) -> int:
        """Return the number of answers kept."""
        with self._usable():
            if database := self._opened():
                row = database.execute("SELECT count(*) FROM answers").fetchone()
                return int(row[0])
        return 0

    def _opened(self) -> sqlite3.Connection | None:
        """Return the file's database, None for a while after it has failed."""
        if not self._database and self._clock() >= self._open_at:
            self._database = _open(self._file, self._max_bytes)
        return self._database

    def _forget_oldest(self, database: sqlite3.Connection) -> None:
        (max_bytes,) = database.execute("SELECT max(bytes) FROM limits").fetchone()
        (page_size,) = database.execute("PRAGMA page_size").fetchone()
        while True:
            (pages,) = database.execute("PRAGMA page_count").fetchone()
            if pages * page_size <= max_bytes:
                return
            (count,) = database.execute("SELECT count(*) FROM answers").fetchone()
            if not count:
                return
            if not self._full:
                self._full = True
                size = f"{max_bytes / 2**20:g} MiB"
                _log.log(
                    WARNING,
                    "%s: its %s are full, the oldest answers are forgotten",
                    self._file,
                    size,
                )
            database.execute(
                "DELETE FROM answers WHERE id IN (SELECT id FROM answers ORDER BY id LIMIT ?)",
                (count // _EVICTED_SHARE + 1,),
            )

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """Go on without the file if it fails: it saves money, but is not needed."""
        with self._lock:
            try:
                yield
            except (sqlite3.Error, OSError) as error:
                self._database = None
                self._open_at = self._clock() + _SECONDS_WITHOUT
                if not self._warned:
                    self._warned = True
                    _log.log(WARNING, "%s: no answers are kept on disk: %s", self._file, error)


def _open(file: Path, max_bytes: int) -> sqlite3.Connection:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # By a hash anyone can tell whether a text that they guess was asked about. What SQLite puts
    # beside the file has the same mode.
    open_private(file, "a").close()
    database = sqlite3.connect(
        file, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    # Nothing that a file from elsewhere may define is to be run: no views, no triggers.
    database.execute("PRAGMA trusted_schema = OFF")
    database.execute("PRAGMA auto_vacuum = FULL")
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = NORMAL")
    database.execute(
        "CREATE TABLE IF NOT EXISTS answers "
        "(id INTEGER PRIMARY KEY, question BLOB UNIQUE NOT NULL, answer TEXT NOT NULL)"
    )
    database.execute("CREATE TABLE IF NOT EXISTS limits (bytes INTEGER NOT NULL)")
    database.execute(
        "INSERT INTO limits SELECT ?1 WHERE NOT EXISTS (SELECT 1 FROM limits WHERE bytes >= ?1)",
        (max_bytes,),
    )
    return database

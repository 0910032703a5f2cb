import hashlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from feddtpt_flwr.answer_store import AnswerStore
from feddtpt_flwr.evaluation import AnswerCache

MIB = 2**20


def digest(number: int) -> str:
    return hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "new" / "answers.sqlite"


def test_what_is_put_in_is_there_for_others(file: Path) -> None:
    one, other = AnswerStore(file, MIB), AnswerStore(file, MIB)
    one.put({digest(1): "positive", digest(2): ""})
    assert other.get(digest(1)) == "positive"
    assert other.get(digest(2)) == ""
    assert other.get(digest(3)) is None
    assert len(other) == 2
    assert AnswerStore(file, MIB).get(digest(1)) == "positive"


def test_the_first_answer_stays(file: Path) -> None:
    store = AnswerStore(file, MIB)
    store.put({digest(1): "positive"})
    store.put({digest(1): "negative"})
    assert store.get(digest(1)) == "positive"


WRITER = """
import sys
from pathlib import Path
from feddtpt_flwr.answer_store import AnswerStore

store, first = AnswerStore(Path(sys.argv[1]), 2**20), int(sys.argv[2])
for number in range(first, first + 300):
    store.put({f"{number:032x}": f"answer {number}"})
"""


def test_processes_write_at_the_same_time(file: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(file), str(first)])
        for first in (0, 150, 1000)
    ]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    store = AnswerStore(file, MIB)
    assert len(store) == 750
    assert store.get(f"{1299:032x}") == "answer 1299"


def test_the_oldest_are_forgotten_and_the_file_stays_small(file: Path) -> None:
    store = AnswerStore(file, MIB)
    for first in range(0, 60_000, 200):
        store.put({digest(n): "x" * 20 for n in range(first, first + 200)})
    total = sum(path.stat().st_size for path in file.parent.iterdir())
    assert file.stat().st_size <= 1.2 * MIB
    assert total <= 6.5 * MIB, "with the log of newest writes, which SQLite folds in at 4 MiB"
    assert store.get(digest(59_999))
    assert store.get(digest(0)) is None
    assert len(store) > 1000


def test_a_smaller_limit_forgets_nothing(file: Path) -> None:
    large = AnswerStore(file, 50 * MIB)
    for first in range(0, 40_000, 1000):
        large.put({digest(n): "x" for n in range(first, first + 1000)})
    AnswerStore(file, MIB).put({digest(-1): "y"})
    assert AnswerStore(file, MIB).get(digest(-1)) == "y"
    assert len(large) == 40_001


def test_what_is_forgotten_is_told_once(file: Path, warned: list[str]) -> None:
    store = AnswerStore(file, MIB)
    for first in range(0, 60_000, 1000):
        store.put({digest(n): "x" for n in range(first, first + 1000)})
    (warning,) = warned
    assert "its 1 MiB are full, the oldest answers are forgotten" in warning


def test_a_file_that_failed_is_opened_again(file: Path, warned: list[str]) -> None:
    now = 0.0
    file.mkdir(parents=True)
    store = AnswerStore(file, MIB, clock=lambda: now)
    store.put({digest(1): "positive"})
    file.rmdir()
    assert store.get(digest(1)) is None
    now = 60.0
    store.put({digest(1): "positive"})
    assert store.get(digest(1)) == "positive"
    assert len(warned) == 1


@pytest.mark.parametrize("what", ["no database", "no folder", "another table", "is a folder"])
def test_a_file_that_cannot_be_used_gives_one_warning(
    what: str, file: Path, warned: list[str]
) -> None:
    file.parent.mkdir()
    if what == "no database":
        file.write_bytes(b"no database at all, " * 100)
    elif what == "no folder":
        (file.parent / "x").write_text("a file")
        file = file.parent / "x" / "answers.sqlite"
    elif what == "another table":
        sqlite3.connect(file).execute("CREATE TABLE answers (something)").connection.commit()
    else:
        file.mkdir()
    store = AnswerStore(file, MIB)
    cache = AnswerCache(archives=[store])
    for number in range(3):
        cache.update([(f"question {number}", "positive")])
        assert cache.get(f"question {number}") == "positive"
        assert store.get(digest(number)) is None
    (warning,) = warned
    assert str(file) in warning
    assert "no answers are kept on disk" in warning


def test_a_full_disk_gives_one_warning(file: Path, warned: list[str]) -> None:
    store = AnswerStore(file, 100 * MIB)
    store.put({digest(1): "positive"})
    assert store._database
    # SQLite's own way to be full, as no test can fill a disk.
    store._database.execute("PRAGMA max_page_count = 8")
    cache = AnswerCache(archives=[store])
    for number in range(2000):
        cache.update([(str(number), "negative")])
    assert cache.get("1999") == "negative"
    (warning,) = warned
    assert "full" in warning


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write(file: Path) -> None:
    file.parent.mkdir(mode=0o500)
    store = AnswerStore(file, MIB)
    store.put({digest(1): "positive"})
    assert store.get(digest(1)) is None


def test_no_question_is_in_the_file(file: Path) -> None:
    cache = AnswerCache(archives=[AnswerStore(file, MIB)])
    cache.update([("model\0A secret sentence about Alice", "positive")])
    content = b"".join(path.read_bytes() for path in file.parent.iterdir())
    assert b"positive" in content
    assert b"secret" not in content
    assert b"Alice" not in content
    # A new cache, as of another process, finds it by the question.
    other = AnswerCache(archives=[AnswerStore(file, MIB)])
    assert other.archived("model\0A secret sentence about Alice") == "positive"
    assert other.to_json() == "{}"

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.common import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from feddtpt_flwr.privacy.ledger import (
    LIMIT_REACHED,
    SPENT,
    FileLedger,
    Ledger,
    LedgerError,
    LedgerFile,
    Phase,
    StateLedger,
)

EPSILONS: dict[Phase, float] = {"search": 0.1, "score": 0.2}


@pytest.fixture
def file(tmp_path: Path) -> LedgerFile:
    return LedgerFile(tmp_path / "own.csv.epsilon.jsonl", run="1")


@pytest.fixture(params=["in the state", "on disk"])
def again(request: pytest.FixtureRequest, file: LedgerFile) -> Callable[[], Ledger]:
    """Return what makes the same ledger anew."""
    state = RecordDict()

    def make() -> Ledger:
        if request.param == "on disk":
            return FileLedger(file, EPSILONS, num_rounds=2)
        # As it travels between processes in a deployment.
        moved = recorddict_from_proto(recorddict_to_proto(state))
        for key, record in moved.items():
            state[key] = record
        return StateLedger(state, num_rounds=2)

    return make


def test_a_phase_of_a_round_is_answered_once(again: Callable[[], Ledger]) -> None:
    assert again().book("search", 1) == ""
    assert again().refusal("search", 1) == SPENT
    assert again().book("search", 1) == SPENT
    assert again().refusal("search", 2) == ""
    assert again().book("score", 1) == ""
    for no_round in (0, 3):
        assert again().refusal("score", no_round) == SPENT


def test_runs_share_what_a_node_lets_them_have(file: LedgerFile) -> None:
    limited = replace(file, limit=0.6)
    for run in ("1", "2"):
        ledger = FileLedger(replace(limited, run=run), EPSILONS, num_rounds=9)
        assert ledger.book("search", 1) == ""
        assert ledger.book("score", 1) == "", "0.1 + 0.2 + 0.1 + 0.2 is no more than 0.6"
    assert ledger.spent() == pytest.approx(0.6)
    assert ledger.book("search", 2) == LIMIT_REACHED
    assert FileLedger(replace(limited, limit=0), EPSILONS, num_rounds=9).book("search", 2) == ""


def test_of_many_at_once_one_may_answer(file: LedgerFile) -> None:
    with ThreadPoolExecutor(8) as pool:
        ledgers = [FileLedger(file, EPSILONS, num_rounds=1) for _ in range(8)]
        reasons = list(pool.map(lambda ledger: ledger.book("search", 1), ledgers))
    assert sorted(reasons) == sorted(["", *[SPENT] * 7])
    assert len(ledgers[0].bookings()) == 1


def test_only_the_owner_may_read_it(file: LedgerFile) -> None:
    FileLedger(file, EPSILONS, num_rounds=1).book("search", 1)
    assert file.path.stat().st_mode & 0o077 == 0
    [line] = file.path.read_text(encoding="utf-8").splitlines()
    assert json.loads(line).keys() == {"time", "run", "round", "phase", "epsilon"}


NEGATIVE = '{"time": "now", "run": "1", "round": 1, "phase": "score", "epsilon": -1}'


@pytest.mark.parametrize("line", ['{"time": "2026-', '{"run": "1"}', NEGATIVE, "[]", ""])
def test_a_line_that_is_no_booking_is_named(line: str, file: LedgerFile) -> None:
    ledger = FileLedger(file, EPSILONS, num_rounds=1)
    ledger.book("search", 1)
    with file.path.open("a", encoding="utf-8") as opened:
        opened.write(line + "\n")
    for look in (ledger.check, lambda: ledger.book("score", 1)):
        with pytest.raises(LedgerError, match=r"epsilon.jsonl, line 2 is no booking"):
            look()


def test_a_line_that_an_editor_left_open_is_ended(file: LedgerFile) -> None:
    ledger = FileLedger(file, EPSILONS, num_rounds=1)
    ledger.book("search", 1)
    file.path.write_text(file.path.read_text(encoding="utf-8").rstrip("\n"), encoding="utf-8")
    assert ledger.book("score", 1) == ""
    assert [booking.phase for booking in ledger.bookings()] == ["search", "score"]


def test_to_look_at_a_ledger_makes_none(file: LedgerFile) -> None:
    FileLedger(file, EPSILONS, num_rounds=1).check()
    assert not list(file.path.parent.iterdir())


def test_a_file_that_cannot_be_written_is_found_early(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ledger = FileLedger(LedgerFile(tmp_path / "file" / "ledger.jsonl"), EPSILONS, num_rounds=1)
    for look in (ledger.check, lambda: ledger.book("search", 1)):
        with pytest.raises(LedgerError, match=r"ledger.jsonl cannot be written .*epsilon-ledger"):
            look()
    gone = FileLedger(LedgerFile(tmp_path / "gone" / "ledger.jsonl"), EPSILONS, num_rounds=1)
    with pytest.raises(LedgerError, match="its folder does not exist"):
        gone.refusal("search", 1)
    with pytest.raises(LedgerError, match="cannot be read"):
        FileLedger(LedgerFile(tmp_path), EPSILONS, num_rounds=1).refusal("search", 1)

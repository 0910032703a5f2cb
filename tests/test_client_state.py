import json
import os
import time
from pathlib import Path

import pytest
from flwr.common import ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from feddtpt_flwr.amounts import Amounts
from feddtpt_flwr.client_state import (
    KEPT_DAYS,
    STATE_KEY,
    STATE_VERSION,
    ClientState,
    Kept,
    state_file,
    step,
)
from feddtpt_flwr.evaluation import CAPACITY, AnswerCache
from feddtpt_flwr.feedback import Trial

SEARCH_1, SCORE_1 = step(1, "search"), step(1, "score")
SEARCH_2 = step(2, "search")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return state_file(tmp_path, "run", "north")


def trial(position: int = 0, *, accepted: bool = False) -> Trial:
    return Trial(
        position=position,
        before=(1,),
        after=(7, 8),
        operator="replace",
        gain=0.5,
        num_examples=4,
        accuracy=0.75,
        accepted=accepted,
    )


def answer(state: ClientState, *questions: str) -> AnswerCache:
    """Answer questions as an evaluator does."""
    cache = state.cache()
    cache.update((question, "yes") for question in questions)
    return cache


def search(file: Path | None, flower: RecordDict | None = None) -> RecordDict:
    """A first message, from its beginning to its end."""
    flower = RecordDict() if flower is None else flower
    state = ClientState(flower, file, SEARCH_1)
    state.begin((1, 2))
    cache = answer(state, "a", "b")
    state.feedback.record(trial(accepted=True))
    state.end(cache)
    return recorddict_from_proto(recorddict_to_proto(flower))


@pytest.mark.parametrize("source", ["file", "flower", "both"])
def test_the_next_message_knows_what_was_tried_and_answered(source: str, file: Path) -> None:
    flower = search(None if source == "flower" else file)
    later = ClientState(RecordDict() if source == "file" else flower, file, SCORE_1)
    assert later.feedback.trials == (trial(accepted=True),)
    assert later.cache().get("a") == "yes"
    assert later.cache().archived("a") is None
    assert later.interrupted is None
    # However it came to know, it is now in the file.
    assert ClientState(RecordDict(), file, SEARCH_2).feedback.trials == later.feedback.trials


def test_a_message_that_comes_again_begins_where_it_first_began(file: Path) -> None:
    search(file)
    killed = ClientState(RecordDict(), file, SEARCH_2)
    killed.begin((1, 2))
    answer(killed, "c")
    killed.feedback.record(trial(1))

    again = ClientState(RecordDict(), file, SEARCH_2)
    assert again.feedback.trials == (trial(accepted=True),)
    assert (again.cache().get("c"), again.cache().archived("c")) == (None, "yes")
    again.feedback.record(trial(1))
    last = ClientState(RecordDict(), file, step(3, "search"))
    assert last.feedback.trials == (trial(accepted=True), trial(1))
    assert last.cache().get("c") == "yes"


def test_a_message_that_was_replied_to_has_its_reply(file: Path) -> None:
    sent = ((1, 2),)
    first = ClientState(RecordDict(), file, SEARCH_1, sent)
    assert first.reply is None
    first.begin((1, 2))
    cache = answer(first, "a")
    first.use(Amounts(queries=1, tokens=9))
    first.feedback.record(trial(accepted=True))
    reply = Kept(sent, (7, 8, 2), 4, {"gain": 0.1, "client": "north"})
    first.end(cache, reply)

    again = ClientState(RecordDict(), file, SEARCH_1, sent)
    assert again.reply == reply
    assert ClientState(RecordDict(), file, SCORE_1, sent).reply is None
    after = ClientState(RecordDict(), file, SEARCH_2)
    assert after.feedback.trials == (trial(accepted=True),), "what was tried counts once"
    assert after.used_in_run == Amounts(queries=1, tokens=9)
    other = ClientState(RecordDict(), file, SEARCH_1, ((3, 4),))
    assert other.reply is None, "another prompt is another question"
    assert other.feedback.trials == ()
    assert other.cache().archived("a") == "yes"


def test_a_run_that_goes_on_from_an_earlier_round(file: Path) -> None:
    search(file)
    state = ClientState(RecordDict(), file, SEARCH_2)
    state.end(answer(state, "c"))
    again = ClientState(RecordDict(), file, SEARCH_1)
    assert again.feedback.trials == ()
    assert [again.cache().get(q) for q in "abc"] == [None] * 3
    assert [again.cache().archived(q) for q in "abc"] == ["yes"] * 3


def test_a_search_that_was_killed_leaves_its_best_prompt(file: Path) -> None:
    killed = ClientState(RecordDict(), file, SEARCH_1)
    killed.begin((1, 2, 3))
    killed.feedback.record(trial(0, accepted=True))
    killed.feedback.record(trial(1, accepted=False))
    scored = ClientState(RecordDict(), file, SCORE_1)
    assert scored.interrupted is not None
    assert scored.interrupted.tokens == (7, 8, 2, 3)
    assert scored.interrupted.accepted == (trial(0, accepted=True),)
    scored.end(scored.cache())
    assert ClientState(RecordDict(), file, SEARCH_2).interrupted == scored.interrupted
    failed = ClientState(RecordDict(), file, SEARCH_2)
    failed.end(failed.cache())  # nothing could be measured, so no search began
    assert ClientState(RecordDict(), file, step(3, "search")).interrupted == scored.interrupted
    again = ClientState(RecordDict(), file, SEARCH_1)
    assert again.interrupted is None, "it searches again"
    assert again.found == scored.interrupted


def test_what_a_killed_attempt_had_found_outlasts_others_that_are_killed(file: Path) -> None:
    sent = ((1, 2, 3),)
    first = ClientState(RecordDict(), file, SEARCH_1, sent)
    assert (first.found, first.to_find) == (None, 0)
    first.begin((1, 2, 3))
    answer(first, "a", "b")
    first.feedback.record(trial(0, accepted=True))
    first.feedback.record(trial(1))
    for _ in range(3):  # these come less far
        killed = ClientState(RecordDict(), file, SEARCH_1, sent)
        assert killed.found is not None
        assert (killed.found.tokens, killed.to_find) == ((7, 8, 2, 3), 2)
        assert killed.feedback.trials == ()
        killed.begin((1, 2, 3))
        killed.feedback.record(trial(1))
    other = ClientState(RecordDict(), file, SEARCH_1, ((4, 5),))
    assert other.to_find == 0, "from another prompt it takes another course"

    given_up = ClientState(RecordDict(), file, SEARCH_2, sent)
    assert given_up.interrupted is not None
    assert given_up.interrupted.tokens == (7, 8, 2, 3)
    tried = given_up.feedback.trials
    assert sorted(t.position for t in tried) == [0, 1], "what several have tried counts once"


def test_what_a_killed_attempt_had_tried_counts_after_the_reply(file: Path) -> None:
    sent = ((1, 2, 3),)
    killed = ClientState(RecordDict(), file, SEARCH_1, sent)
    killed.begin((1, 2, 3))
    for position in (0, 1, 1):
        killed.feedback.record(trial(position))
    again = ClientState(RecordDict(), file, SEARCH_1, sent)
    again.begin((1, 2, 3))
    for position in (1, 2):
        again.feedback.record(trial(position))
    again.end(again.cache(), Kept(sent, (1, 2, 3), 4, {}))
    later = ClientState(RecordDict(), file, SEARCH_2)
    assert [t.position for t in later.feedback.trials] == [1, 2, 0, 1]
    assert later.interrupted is None


@pytest.mark.parametrize("source", ["file", "flower"])
def test_an_answer_that_every_round_uses_is_never_forgotten(source: str, file: Path) -> None:
    """The global prompt's, in a run whose rounds ask more than a cache keeps by itself."""
    flower, disk = RecordDict(), file if source == "file" else None
    for server_round in range(1, 4):
        state = ClientState(RecordDict() if disk else flower, disk, step(server_round, "search"))
        if not disk:
            flower = state._flower
        cache = state.cache(room=CAPACITY)
        for number in range(4):
            if server_round == 1:
                cache.update([(f"global {number}", "yes")])
            assert cache.get(f"global {number}") == "yes"
        cache.update((f"{server_round} {number}", "no") for number in range(CAPACITY))
        state.end(cache)
        assert len(json.loads(str(state._flower.config_records[STATE_KEY]["answers"]))) <= 8192


def test_half_a_file_is_read_as_far_as_it_goes(file: Path) -> None:
    """Whatever moment a process is killed at."""
    search(file)
    content = file.read_bytes()
    for length in range(len(content)):
        file.write_bytes(content[:length])
        state = ClientState(RecordDict(), file, SEARCH_2)
        known = [state.cache().get(question) for question in "ab"]
        assert set(known) <= {"yes", None}
        assert state.feedback.trials in ((), (trial(accepted=True),))
        state.end(answer(state, "c"))
        assert ClientState(RecordDict(), file, step(3, "search")).cache().get("c") == "yes"


def test_a_file_of_another_version_is_dropped_with_one_warning(
    file: Path, warned: list[str]
) -> None:
    search(file)
    file.write_text(file.read_text().replace(f'"version": {STATE_VERSION}', '"version": 99'))
    state = ClientState(RecordDict(), file, SEARCH_2)
    assert state.feedback.trials == ()
    (warning,) = warned
    assert "99" in warning
    assert f"this app reads {STATE_VERSION}" in warning
    ClientState(RecordDict(), file, SEARCH_2)
    assert len(warned) == 1


def test_flowers_state_of_another_version_is_dropped_with_one_warning(warned: list[str]) -> None:
    flower = RecordDict({STATE_KEY: ConfigRecord({"version": 1, "feedback": "?", "answers": "?"})})
    state = ClientState(flower, None, SEARCH_2)
    assert state.feedback.trials == ()
    (warning,) = warned
    assert "Flower's client state is of version 1" in warning


def test_a_full_disk_gives_one_warning_and_nothing_stops(file: Path, warned: list[str]) -> None:
    flower = RecordDict()
    state = ClientState(flower, file, SEARCH_1)
    file.unlink()
    file.symlink_to("/dev/full")
    for number in range(3):
        state.feedback.record(trial(number))
    state.end(answer(state, "a"))
    file.unlink()
    (warning,) = warned
    assert "not kept on disk" in warning
    assert "No space left" in warning
    assert len(ClientState(flower, None, SEARCH_2).feedback.trials) == 3


def test_after_a_full_disk_what_flower_keeps_counts(file: Path, warned: list[str]) -> None:
    flower = RecordDict()
    state = ClientState(flower, file, SEARCH_1)
    state.use(Amounts(tokens=50))
    state.feedback.record(trial(0))
    half = file.read_text()
    file.unlink()
    file.symlink_to("/dev/full")
    state.use(Amounts(tokens=1000))
    state.feedback.record(trial(1))
    state.end(answer(state, "a"))
    file.unlink()
    file.write_text(half)
    later = ClientState(flower, file, SEARCH_2)
    assert len(warned) == 1
    assert later.used_in_run.tokens == 1050
    assert len(later.feedback.trials) == 2
    assert later.interrupted is None
    assert later.cache().get("a") == "yes"


def test_a_folder_that_cannot_be_made_gives_one_warning(tmp_path: Path, warned: list[str]) -> None:
    (tmp_path / "clients").write_text("a file")
    search(state_file(tmp_path, "run", "north"))
    assert len(warned) == 1


def test_names_from_elsewhere_lead_to_no_other_folder(tmp_path: Path) -> None:
    names = ["../../etc/passwd", "/etc/passwd", "", "a\0b", "x" * 5000]
    files = {state_file(tmp_path, run, client) for run in names for client in names}
    assert state_file(tmp_path, names[0], names[1], "synthetic") not in files
    assert len(files) == len(names) ** 2
    assert {file.parent for file in files} == {tmp_path / "clients"}


def test_files_of_old_runs_are_removed(file: Path, tmp_path: Path) -> None:
    search(file)
    long_ago = time.time() - (KEPT_DAYS + 1) * 86400
    os.utime(file, (long_ago, long_ago))
    ClientState(RecordDict(), state_file(tmp_path, "another run", "north"), SEARCH_1)
    assert not file.exists()


def test_no_question_is_in_the_file(file: Path) -> None:
    state = ClientState(RecordDict(), file, SEARCH_1)
    state.end(answer(state, "A secret sentence about Alice"))
    text = file.read_text()
    assert "yes" in text
    assert "Alice" not in text
    for line in text.splitlines():
        json.loads(line)


def test_what_was_used_outlasts_processes_and_other_attempts(file: Path) -> None:
    first = ClientState(RecordDict(), file, SEARCH_1)
    first.use(Amounts(queries=5, tokens=50, cost=0.5, seconds=2, asked=5))
    first.use(Amounts(queries=-1, tokens=-10))
    first.end(first.cache())
    killed = ClientState(RecordDict(), file, SEARCH_2)
    assert killed.used_in_run == Amounts(4, 40, 0.5, 2, 5)
    assert killed.used_in_step == Amounts()
    killed.use(Amounts(queries=3, tokens=30, cost=0.25, seconds=1, asked=3))

    for _ in range(2):  # reading does not change it
        again = ClientState(RecordDict(), file, SEARCH_2)
        assert again.used_in_run == Amounts(4, 70, 0.75, 3, 8)
        assert again.used_in_step == Amounts(0, 30, 0.25, 0, 3), "whoever waits begins anew"
    again.use(Amounts(queries=3, seconds=1))
    flower = RecordDict()
    again = ClientState(flower, file, SEARCH_2)
    again.use(Amounts(queries=3, tokens=1, seconds=1))
    again.end(again.cache())
    later = ClientState(RecordDict(), file, step(2, "score"))
    assert later.used_in_run == Amounts(7, 71, 0.75, 5, 8)
    # On another disk, Flower's state knows the same.
    assert ClientState(flower, None, step(2, "score")).used_in_run == later.used_in_run

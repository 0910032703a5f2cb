import os
import time
from dataclasses import replace
from pathlib import Path

from click.testing import Result
from flwr.common import RecordDict
from typer.testing import CliRunner

from feddtpt_flwr import cli
from feddtpt_flwr.client_state import KEPT_DAYS, ClientState, state_file, step
from feddtpt_flwr.privacy.own_prompts import OwnPrompt, keep, kept, search_name

OWN = OwnPrompt("reviews-seed0-1", "north", 1, "Did the critic like it?", 0.75)


def search(folder: Path, own: OwnPrompt) -> None:
    """What a private search leaves on disk, without anything that was asked."""
    file = state_file(folder, own.run, search_name(own.client), "synthetic")
    state = ClientState(RecordDict(), file, step(own.round, "search"))
    state.begin((1, 2))
    state.end(state.cache())
    keep(folder, own)


def command(folder: Path) -> Result:
    return CliRunner().invoke(cli.app, ["own-prompt"], env={"FEDDTPT_CACHE": str(folder)})


def test_the_last_prompt_of_every_node_is_printed(tmp_path: Path) -> None:
    south = replace(OWN, client="south", accuracy=None)
    later = replace(OWN, round=2, prompt="Was it é good\nfilm?", accuracy=0.8)
    for own in (OWN, south, later):
        search(tmp_path, own)
    assert sorted(kept(tmp_path), key=lambda own: own.client) == [later, south]
    result = command(tmp_path)
    assert result.exit_code == 0
    assert (
        "run reviews-seed0-1, node north, round 2, accuracy on its validation examples 0.800:\n"
        "Was it é good\nfilm?\n"
    ) in result.output
    assert "node south, round 1, accuracy on its validation examples not known:" in result.output


def test_what_a_round_found_outlives_the_next_message(tmp_path: Path) -> None:
    search(tmp_path, OWN)
    file = state_file(tmp_path, OWN.run, search_name(OWN.client), "synthetic")
    ClientState(RecordDict(), file, step(2, "search")).begin((1, 2))
    assert kept(tmp_path) == [OWN]


def test_half_a_line_is_passed_over(tmp_path: Path) -> None:
    search(tmp_path, OWN)
    (file,) = (tmp_path / "clients").iterdir()
    with file.open("a") as opened:
        opened.write('{"step": [2, 0], "own-prompt": {"ru')
    assert kept(tmp_path) == [OWN]


def test_where_no_state_is_kept_no_prompt_is(tmp_path: Path) -> None:
    keep(tmp_path, OWN)
    assert kept(tmp_path) == []
    result = command(tmp_path)
    assert result.exit_code == 1
    assert f"no own prompt in {tmp_path}" in result.output
    assert "Traceback" not in result.output


def test_a_full_disk_gives_one_warning(tmp_path: Path, warned: list[str]) -> None:
    file = state_file(tmp_path, OWN.run, search_name(OWN.client), "synthetic")
    file.parent.mkdir()
    file.symlink_to("/dev/full")
    keep(tmp_path, OWN)
    (warning,) = warned
    assert "own prompt is not kept on disk" in warning
    assert OWN.prompt not in warning


def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "clients" / "a.jsonl").mkdir(parents=True)
    result = command(tmp_path)
    assert result.exit_code == 1
    assert "the nodes' state cannot be read" in result.output


def test_what_is_older_than_it_may_be_is_gone(tmp_path: Path) -> None:
    search(tmp_path, OWN)
    (file,) = (tmp_path / "clients").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600, "it tells something of the node's texts"
    long_ago = time.time() - (KEPT_DAYS + 1) * 86400
    os.utime(file, (long_ago, long_ago))
    assert kept(tmp_path) == []
    assert not file.exists()

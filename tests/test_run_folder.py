import json
import os
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args

from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.run_folder import CurvePoint, RunFolder
from feddtpt_flwr.statistics import Proportion


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "deep" / "runs", "reviews-seed0")


def test_every_run_has_a_folder_of_its_own(tmp_path: Path) -> None:
    paths = {RunFolder(tmp_path, "same").path for _ in range(5)}
    assert len(paths) == 5
    assert all(path.parent == tmp_path.resolve() and path.is_dir() for path in paths)
    assert all(path.name.startswith("same-") for path in paths)


@pytest.mark.parametrize(("umask", "rights"), [(0o022, 0o755), (0o077, 0o700)])
def test_who_may_read_a_run_folder_is_the_umasks_to_say(
    umask: int, rights: int, tmp_path: Path
) -> None:
    before = os.umask(umask)
    try:
        path = RunFolder(tmp_path, "mine").path
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == rights


def test_flower_reads_the_configuration(folder: RunFolder) -> None:
    config = RunConfig.from_run_config(
        {"k-shot": 3, "seed-prompt": 'Say "good" or\nbad\\.', "chat": True, "dirichlet-alpha": 2}
    )
    folder.write_config(config.to_run_config())
    overrides = parse_config_args([str(folder.path / "config.toml")])
    assert overrides == config.to_run_config()
    assert RunConfig.from_run_config(overrides) == config


def test_history_is_one_document_a_line(folder: RunFolder) -> None:
    folder.append("start", prompt="a\nb", accuracy=0.5)
    folder.append("round", round=1)
    text = (folder.path / "history.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["event"] for line in lines] == ["start", "round"]
    assert lines[0]["prompt"] == "a\nb"
    assert lines[1]["round"] == 1
    assert lines[0]["time"] <= lines[1]["time"]


def test_rounds_that_a_checkpoint_does_not_know_are_counted(folder: RunFolder) -> None:
    assert folder.settled_after(0) == 0
    for event in ("start", "round", "search", "round"):
        folder.append(event)
    assert [folder.settled_after(lines) for lines in range(5)] == [2, 2, 1, 1, 0]


def test_what_a_full_disk_has_cut_off_spoils_no_other_line(folder: RunFolder) -> None:
    folder.append("start")
    with (folder.path / "history.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"event": "sea')
    folder.append("round", round=1)
    assert folder.num_events == 3
    assert folder.settled_after(1) == 1
    assert folder.forget_after(1) == 2
    assert folder.num_events == 1


def test_the_prompt_is_replaced_as_a_whole(folder: RunFolder) -> None:
    folder.write_prompt({"prompt": "long " * 50})
    folder.write_prompt({"prompt": "naïve"})
    assert json.loads((folder.path / "prompt.json").read_text(encoding="utf-8")) == {
        "prompt": "naïve"
    }
    with pytest.raises(TypeError):
        folder.write_prompt({"prompt": object()})
    assert [path.name for path in folder.path.iterdir()] == ["prompt.json"]


def test_a_folder_is_replaced_as_a_whole(
    folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path) -> None:
        (path / "half").write_text("")
        raise OSError("no space left")

    folder.write_folder("adapter", lambda path: (path / "a").write_text("1"))
    folder.write_folder("adapter", lambda path: (path / "b").write_text("2"))
    folder.write_folder("adapter", full)
    assert [path.name for path in (folder.path / "adapter").iterdir()] == ["b"]
    assert "the run goes on: no space left" in caplog.text
    folder.write_folder("adapter", lambda path: (path / "c").write_text("3"))
    assert [path.name for path in (folder.path / "adapter").iterdir()] == ["c"]
    (folder.path / "adapter").rename(folder.path / ".adapter.old")  # as if killed in between
    folder.write_folder("adapter", full)
    assert [path.name for path in (folder.path / "adapter").iterdir()] == ["c"]
    folder.write_folder("adapter", lambda path: (path / "d").write_text("4"))
    assert [path.name for path in folder.path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("length", [1, 3])
def test_a_plot_is_drawn(length: int, folder: RunFolder) -> None:
    folder.plot([CurvePoint(100 * i, Proportion(5 + i, 10)) for i in range(length)])
    content = (folder.path / "accuracy.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 5000

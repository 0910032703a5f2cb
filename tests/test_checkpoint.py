import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from feddtpt_flwr.checkpoint import (
    FREE_SETTINGS,
    Checkpoint,
    examples_fingerprint,
    fingerprint,
)
from feddtpt_flwr.config import ConfigError, RunConfig
from feddtpt_flwr.data import Example, Task, get_task
from feddtpt_flwr.run_folder import RunFolder

HELD_OUT = (Example("good", 1), Example("bad", 0))


def config(**changes: Any) -> RunConfig:
    settings = {"num-server-rounds": 3, "resume": "runs/x"} | changes
    return RunConfig.from_run_config(settings)


@pytest.fixture(scope="module")
def task() -> Task:
    return get_task("rotten_tomatoes")


@pytest.fixture
def checkpoint(task: Task) -> Checkpoint:
    return Checkpoint(
        settings=config().to_run_config(),
        task=fingerprint(task),
        held_out=examples_fingerprint(HELD_OUT),
        strategy={"round": 2},
        recorder={"queries": 7},
        history_lines=4,
    )


def test_a_checkpoint_is_read_as_it_was_written(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "run")
    folder.write_checkpoint(checkpoint.to_json())
    assert Checkpoint.read(folder.path) == checkpoint
    assert checkpoint.rounds == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "there is no"),
        ("{", "no checkpoint that this app can read"),
        ("[]", "no checkpoint"),
        ('{"version": 99}', "version 99, not 1"),
        ('{"version": 1, "strange": 0}', "no checkpoint"),
    ],
)
def test_what_is_no_checkpoint(content: str | None, reason: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "checkpoint.json").write_text(content)
    with pytest.raises(ConfigError, match=reason) as caught:
        Checkpoint.read(tmp_path)
    assert str(caught.value).startswith(f"resume = {str(tmp_path)!r}")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"seed": 1}, "seed = 1: the run to resume has 0"),
        ({"task": "imdb"}, "task = 'imdb': the run to resume has 'rotten_tomatoes'"),
        ({"language-model": "other"}, "language-model = 'other': the run to resume has 'embedded'"),
        ({"masked-lm": "other"}, "masked-lm = 'other': the run to resume has 'embedded'"),
        ({"k-shot": 5}, "k-shot = 5: the run to resume has 16"),
        ({"num-server-rounds": 1}, "num-server-rounds = 1: the run to resume has completed 2"),
    ],
)
def test_settings_that_contradict_are_named(
    change: dict[str, Any], line: str, checkpoint: Checkpoint, task: Task
) -> None:
    with pytest.raises(ConfigError) as caught:
        checkpoint.check(config(**change), task, HELD_OUT, 4)
    assert line in str(caught.value)
    assert "num-server-rounds" in str(caught.value)


def test_settings_that_decide_nothing_may_change(checkpoint: Checkpoint, task: Task) -> None:
    changes = {"num-server-rounds": 9, "timeout": 5.0, "round-timeout": 60.0, "concurrency": 1}
    assert changes.keys() <= FREE_SETTINGS
    checkpoint.check(config(**changes), task, HELD_OUT, 4)
    assert {name.replace("-", "_") for name in FREE_SETTINGS} <= RunConfig.model_fields.keys()


def test_a_task_or_a_file_that_has_changed(checkpoint: Checkpoint, task: Task) -> None:
    with pytest.raises(ConfigError, match="task = 'rotten_tomatoes': it is not as it was"):
        checkpoint.check(config(), replace(task, seed_prompt="Another?"), HELD_OUT, 4)
    with pytest.raises(ConfigError, match="the held-out examples are not those"):
        checkpoint.check(config(), task, HELD_OUT[:1], 4)


def test_another_version_of_the_app_is_warned_of(
    checkpoint: Checkpoint, task: Task, warned: list[str]
) -> None:
    replace(checkpoint, app_version="0.0.1").check(config(), task, HELD_OUT, 4)
    (warning,) = warned
    assert "0.0.1" in warning


@pytest.mark.parametrize(
    ("clients", "before", "now", "warns"),
    [
        ("simulated", 4, 2, True),
        ("simulated", 4, 4, False),
        ("simulated", 0, 4, False),  # written before the number was
        ("own-data", 4, 3, False),
    ],
)
def test_another_number_of_simulated_clients_is_warned_of(
    clients: str,
    before: int,
    now: int,
    warns: bool,
    checkpoint: Checkpoint,
    task: Task,
    warned: list[str],
) -> None:
    settings = config(clients=clients)
    saved = replace(checkpoint, settings=settings.to_run_config(), num_clients=before)
    saved.check(settings, task, HELD_OUT, now)
    assert [f"had {before} clients and goes on with {now}" in line for line in warned] == (
        [True] if warns else []
    )


def test_two_runs_never_write_into_one_folder(tmp_path: Path) -> None:
    first = RunFolder(tmp_path, "run")
    first.claim()
    with pytest.raises(ConfigError, match="still at work"):
        RunFolder.existing(first.path).claim()


def test_the_history_is_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "run")
    for number in range(4):
        folder.append("round", round=number)
    assert folder.num_events == 4
    assert folder.forget_after(3) == 1
    lines = (folder.path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [0, 1, 2]


def test_a_full_disk_gives_one_warning_and_the_run_goes_on(
    tmp_path: Path, warned: list[str]
) -> None:
    folder = RunFolder(tmp_path, "run")
    links = [
        folder.path / name for name in ("history.jsonl", ".prompt.json.tmp", ".checkpoint.json.tmp")
    ]
    for link in links:
        link.symlink_to("/dev/full")
    folder.append("start")
    folder.write_prompt({"prompt": "x"})
    folder.write_checkpoint("{}")
    for link in links:
        link.unlink()  # whoever reads what is left of a test would read for ever
    (warning,) = warned
    assert "No space left" in warning
    assert "the run goes on" in warning


def test_the_epsilon_of_a_private_run_stays(checkpoint: Checkpoint, task: Task) -> None:
    saved = replace(checkpoint, settings=config(privacy="exponential").to_run_config())
    with pytest.raises(ConfigError, match=r"epsilon = 9.0: the run to resume has 1.0"):
        saved.check(config(privacy="exponential", epsilon=9.0), task, HELD_OUT, 4)


def test_a_setting_that_came_later_is_no_difference(checkpoint: Checkpoint, task: Task) -> None:
    older = {key: value for key, value in checkpoint.settings.items() if key != "choose-for"}
    replace(checkpoint, settings=older).check(config(), task, HELD_OUT, 4)

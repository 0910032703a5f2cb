import re
import shutil
from pathlib import Path
from typing import NoReturn

import pytest
from click.testing import Result
from typer.testing import CliRunner

from feddtpt_flwr import cli
from feddtpt_flwr.private_flower import FlowerError, PrivateFlower

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> NoReturn:
        raise AssertionError("Flower was started")

    monkeypatch.setattr(cli, "private_flower", fail)


@pytest.fixture
def app_folder(tmp_path: Path) -> Path:
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    return tmp_path


def simulate(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, ["simulate", *map(str, arguments)], env={"COLUMNS": "300"})


def said(result: Result) -> str:
    """What was printed, without the frame and the line breaks that typer puts into it."""
    return re.sub(r"[\s│╭╮╰╯─]+", " ", result.output)


def expect_refusal(result: Result, *words: str) -> None:
    assert result.exit_code == 2, (result.output, result.exception)
    for word in words:
        assert word in said(result)


def test_without_a_mistake_flower_is_started(app_folder: Path) -> None:
    result = simulate(app_folder, "-c", "seed=1 k-shot=8", "-c", 'partition="dirichlet"')
    assert isinstance(result.exception, AssertionError)
    assert str(result.exception) == "Flower was started"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("k-shot=0", ["k-shot = 0", "greater than or equal to 1"]),
        ("kshot=4", ["unknown key 'kshot'", "queries-per-round"]),
        ('partition="uneven"', ["partition = 'uneven'", "'iid' or 'dirichlet'"]),
        ('guard="yes"', ["guard = 'yes'", "boolean"]),
        ("k-shot=0 seed=-1", ["k-shot = 0", "seed = -1"]),
        ('data-source="files"', ["train-file", "needs a file"]),
        ("queries-per-round=15", ["queries-per-round = 15", "16 or more are needed"]),
        ("queries-per-run=415", ["queries-per-run = 415", "416 or more are needed"]),
        ('task="tweets"', ["unknown task 'tweets'", "tweet_sentiment"]),
    ],
)
def test_a_bad_setting_is_refused(app_folder: Path, override: str, words: list[str]) -> None:
    expect_refusal(simulate(app_folder, "-c", override), *words)


@pytest.mark.parametrize(
    "override",
    ["k-shot", "k-shot=", "=3", "k-shot=4 nonsense", "k-shot = 4", "task=imdb", "seed=1 a.toml"],
)
def test_an_override_that_is_no_setting_is_refused(app_folder: Path, override: str) -> None:
    result = simulate(app_folder, "-c", override)
    expect_refusal(result)


def test_an_app_of_somebody_elses_may_have_settings_of_its_own(app_folder: Path) -> None:
    project = app_folder / "pyproject.toml"
    text = project.read_text(encoding="utf-8")
    config = "[tool.flwr.app.config]"
    assert config in text
    project.write_text(text.replace(config, f"{config}\ntheirs = 1"), encoding="utf-8")
    expect_refusal(simulate(app_folder), "unknown key 'theirs'")
    other = text.replace(config, f"{config}\ntheirs = 1").replace(
        "feddtpt_flwr.server_app:app", "my_app.server_app:app"
    )
    assert "my_app" in other
    project.write_text(other, encoding="utf-8")
    assert str(simulate(app_folder).exception) == "Flower was started"
    expect_refusal(simulate(app_folder, "-c", "k-shot=0"), "k-shot = 0")


def test_settings_can_come_from_a_file(app_folder: Path) -> None:
    file = app_folder / "more.toml"
    file.write_text("k-shot = 0\n", encoding="utf-8")
    expect_refusal(simulate(app_folder, "-c", file), "k-shot = 0")


def test_a_missing_file_of_settings_is_named(app_folder: Path) -> None:
    missing = app_folder / "none.toml"
    expect_refusal(simulate(app_folder, "-c", missing), "none.toml")


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    expect_refusal(simulate(tmp_path / "nowhere"), "nowhere/pyproject.toml", "does not exist")


@pytest.mark.parametrize(
    "text",
    [
        "",
        '[project]\nname = "other"\n',
        '[tool.flwr.app]\npublisher = "me"\n',
        "this is no TOML",
    ],
)
def test_a_folder_without_an_app(tmp_path: Path, text: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text, encoding="utf-8")
    expect_refusal(simulate(tmp_path), "pyproject.toml")


@pytest.mark.parametrize("option", ["--num-clients", "--cpus-per-client"])
def test_numbers_are_at_least_one(app_folder: Path, option: str) -> None:
    expect_refusal(simulate(app_folder, option, "0"), option)


def test_gpus_that_the_machine_lacks_are_refused(
    app_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything starts."""
    monkeypatch.setattr(cli, "_has_gpu", lambda: False)
    expect_refusal(simulate(app_folder, "--gpus-per-client", "0.5"), "--gpus-per-client")
    expect_refusal(simulate(app_folder, "--gpus-per-client", "-1"), "--gpus-per-client")


def test_a_share_of_a_gpu_reaches_flower(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(self: PrivateFlower, arguments: list[str]) -> dict[str, str]:
        asked.extend(arguments)
        return {"run-id": "77"}

    monkeypatch.setattr(PrivateFlower, "_json", answer)
    PrivateFlower({}).start_run(Path(), [], num_clients=3, cpus_per_client=2, gpus_per_client=0.25)
    federation = asked[asked.index("--federation-config") + 1]
    assert "client-resources-num-gpus=0.25" in federation.split()


def test_help_names_the_command() -> None:
    result = CliRunner().invoke(cli.app, ["--help"])
    assert result.exit_code == 0
    assert "simulate" in result.output


@pytest.mark.parametrize(("status", "exit_code"), [("finished:completed", 0), ("failed", 1)])
def test_the_exit_status_is_the_runs(
    app_folder: Path, status: str, exit_code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a double in place of Flower: what it was told, and what becomes of its answer."""
    told: dict[str, object] = {}

    class Flower:
        def __enter__(self) -> "Flower":
            return self

        def __exit__(self, *_: object) -> None:
            told["closed"] = True

        def start_run(self, app: Path, overrides: list[str], **options: int) -> str:
            packed = (app / "pyproject.toml").read_bytes()
            told.update(packed=packed, overrides=overrides, **options)
            return "77"

        def stream(self, run_id: str) -> str:
            told["streamed"] = run_id
            return status

        def status(self, run_id: str) -> str:
            return status

    monkeypatch.setattr(cli, "private_flower", Flower)
    result = simulate(app_folder, "-c", "seed=1", "--num-clients", "3", "--cpus-per-client", "2")
    assert result.exit_code == exit_code
    assert ("the run ended as failed" in result.output) == bool(exit_code)
    assert told == {
        "packed": (app_folder / "pyproject.toml").read_bytes(),
        "overrides": ["seed=1"],
        "num_clients": 3,
        "cpus_per_client": 2,
        "gpus_per_client": 0.0,
        "streamed": "77",
        "closed": True,
    }


def test_flowers_refusal_is_passed_on(app_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> NoReturn:
        raise FlowerError("no SuperLink today")

    monkeypatch.setattr(cli, "private_flower", refuse)
    result = simulate(app_folder)
    assert result.exit_code == 1
    assert "no SuperLink today" in result.output


def test_a_simulation_that_would_wait_for_ever_is_refused(app_folder: Path) -> None:
    few = simulate(app_folder, "--num-clients", "1")
    expect_refusal(few, "--num-clients 1: min-available-clients = 2 needs as many or more")
    result = simulate(app_folder, "--num-clients", "1", "-c", "min-available-clients=1")
    assert str(result.exception) == "Flower was started"

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


FILES = "-c", "task='task.toml' data-source='files' train-file='public.jsonl' test-size=0 k-shot=2"


@pytest.fixture
def own_task(app_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An app with code, a task and data of its own, and a folder beside it to be in."""
    (app_folder / "feddtpt_flwr").mkdir()
    (app_folder / "feddtpt_flwr" / "__init__.py").touch()
    (app_folder / "task.toml").write_text(
        'name = "mine"\ntemplate = "{prompt} {sentence}"\nlabel_column = "label"\n'
        'labels = [0, 1]\nanswers = ["no", "yes"]\nseed_prompt = "Say."\n',
        encoding="utf-8",
    )
    lines = [f'{{"sentence": "text {i}", "label": {i % 2}}}' for i in range(80)]
    (app_folder / "public.jsonl").write_text("\n".join(lines), encoding="utf-8")
    elsewhere = app_folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return app_folder


def test_task_and_data_of_ones_own_are_looked_at_where_the_run_finds_them(own_task: Path) -> None:
    assert str(simulate(own_task, *FILES).exception) == "Flower was started"
    shutil.move(own_task / "public.jsonl", own_task / "elsewhere")
    assert str(simulate(own_task, *FILES).exception) == "Flower was started"
    shutil.move(own_task / "elsewhere" / "public.jsonl", own_task / "public.csv")
    csv = ("-c", "train-file='public.csv'")  # is not packed
    expect_refusal(simulate(own_task, *FILES, *csv), "elsewhere/public.csv", "no such file")


def test_an_app_without_the_package_has_its_files_beside_the_installed_one(own_task: Path) -> None:
    shutil.rmtree(own_task / "feddtpt_flwr")
    expect_refusal(simulate(own_task, *FILES), "cannot read task file", "elsewhere/task.toml")


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("task.toml", "answers", "words", ["/task.toml", "unknown key 'words'"]),
        ("task.toml", "sentence", "text", ["/public.jsonl", "column 'text' is missing"]),
        ("task.toml", "[0, 1]", "[0, 2]", ["/public.jsonl", "does not declare"]),
        ("public.jsonl", '"label": 1', '"label": 0', ["class 'yes': 24 training examples"]),
    ],
)
def test_mistakes_in_task_and_data_are_told_before_flower_starts(
    own_task: Path, file: str, old: str, new: str, words: list[str]
) -> None:
    text = (own_task / file).read_text(encoding="utf-8")
    (own_task / file).write_text(text.replace(old, new), encoding="utf-8")
    expect_refusal(simulate(own_task, *FILES), *words)


def test_data_of_ones_own_is_looked_at_for_a_built_in_task(own_task: Path) -> None:
    built_in = ("-c", "task='sst2'")
    assert str(simulate(own_task, *FILES, *built_in).exception) == "Flower was started"
    expect_refusal(simulate(own_task, *FILES, *built_in, "--num-clients", "9"), "for 9 clients")


def test_too_few_queries_for_a_task_of_ones_own(own_task: Path) -> None:
    few = simulate(own_task, *FILES, "-c", "queries-per-round=15")
    expect_refusal(few, "queries-per-round = 15", "16 or more are needed")

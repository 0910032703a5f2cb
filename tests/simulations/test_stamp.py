import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from simulations import stamp
from simulations.seeds import RESULTS

REPOSITORY = Path(__file__).parents[2]
STAMPED = [
    path
    for path in sorted(RESULTS.glob("*.json"))
    if "machine" in json.loads(path.read_text(encoding="utf-8"))
]


def test_a_stamp_says_with_which_versions() -> None:
    made = stamp.stamp()
    assert made["versions"]["flwr"] == version("flwr")
    assert made["versions"].keys() == {"feddtpt-flwr", "flwr", "torch", "transformers"}
    assert json.loads(json.dumps(made)) == made
    assert f", transformers {version('transformers')}" in stamp.as_text(made)


def test_a_stamp_says_of_which_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> str:
        who = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
        done = subprocess.run(
            ["git", *who, *words], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def commit() -> str | None:
        stamp.commit.cache_clear()
        return stamp.stamp().get("commit")

    monkeypatch.setattr(stamp, "ROOT", tmp_path)
    try:
        assert commit() is None, "no checkout"
        git("init")
        (tmp_path / "code.py").write_text("1\n", encoding="utf-8")
        git("add", "code.py")
        git("commit", "-m", "code")
        git("tag", "a-name")
        assert commit() == git("rev-parse", "--short", "HEAD")
        (tmp_path / "code.py").write_text("2\n", encoding="utf-8")
        found = str(commit())
        assert found == git("rev-parse", "--short", "HEAD") + "-dirty"
        assert stamp.as_text(stamp.stamp()).endswith(f", commit {found}")
    finally:
        stamp.commit.cache_clear()


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamp, "PACKAGES", ("flwr", "no-package-of-this-name"))
    assert stamp.stamp()["versions"] == {"flwr": version("flwr")}


def test_a_stamp_imports_none_of_them() -> None:
    program = (
        "import sys; from simulations.stamp import stamp; stamp(); "
        "print({'flwr', 'torch', 'transformers'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("file", STAMPED, ids=lambda path: path.stem)
def test_kept_results_without_versions_have_a_stamp(file: Path) -> None:
    result = json.loads(file.read_text(encoding="utf-8"))
    assert stamp.as_text(result).startswith(f"{result['date']}, {result['machine']}")
    result.pop("versions", None)
    result.pop("commit", None)
    assert stamp.as_text(result) == f"{result['date']}, {result['machine']}"

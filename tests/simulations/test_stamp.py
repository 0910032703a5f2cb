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
    assert stamp.as_text(made).endswith(f", transformers {version('transformers')}")


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
    assert stamp.as_text(result) == f"{result['date']}, {result['machine']}"

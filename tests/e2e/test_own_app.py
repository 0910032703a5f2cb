"""The app of docs/strategy.md, as it stands there, in real simulations with both interfaces."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.copies import ONE_PROCESS, REPOSITORY

COMPONENTS = {
    "message": ("my_app.server_app:app", "my_app.client_app:app"),
    "own": ("my_app.server_app:app", "my_app.own_client_app:app"),
    "legacy": ("my_app.legacy_server_app:app", "my_app.legacy_client_app:app"),
}
QUERIES = 16
SMALL = f"""
k-shot = 2
public-per-class = 1
test-size = 4
queries-per-round = {QUERIES}
max-prompt-tokens = 8
"""

pytestmark = pytest.mark.slow


def blocks(language: str) -> dict[str, str]:
    """The document's blocks that begin with a file's name, by that name."""
    text = (REPOSITORY / "docs/strategy.md").read_text(encoding="utf-8")
    found = re.findall(rf"```{language}\n# ([\w/]+\.\w+)\n(.*?)```", text, re.DOTALL)
    return dict(found)


@pytest.fixture(params=COMPONENTS)
def output(request: pytest.FixtureRequest, tmp_path: Path, embedded_assets: None) -> str:
    (tmp_path / "my_app").mkdir()
    for name, code in blocks("python").items():
        (tmp_path / name).write_text(code.replace("/data", str(tmp_path)), encoding="utf-8")
    for node, words in enumerate((("warm", "dull"), ("funny", "sad"))):
        rows = [
            f"a {word} film no {i},{label}" for i in range(4) for label, word in enumerate(words)
        ]
        file = tmp_path / f"reviews-{node}.csv"
        file.write_text("\n".join(["text,label", *rows, ""]), encoding="utf-8")
    (tmp_path / "my_app" / "__init__.py").touch()
    (tmp_path / "LICENSE").write_text("None.\n", encoding="utf-8")
    project = blocks("toml")["pyproject.toml"]
    for theirs, ours in zip(COMPONENTS["message"], COMPONENTS[request.param], strict=True):
        assert theirs in project
        project = project.replace(theirs, ours)
    (tmp_path / "pyproject.toml").write_text(project + SMALL, encoding="utf-8")
    command = [str(Path(sys.executable).parent / "feddtpt-flwr"), "simulate", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [*command, "--num-clients", "2", *ONE_PROCESS],
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return str(request.param) + done.stdout + done.stderr


def test_the_documents_app_learns_a_prompt(output: str) -> None:
    assert re.search(r"learned: \w+", output), output
    name = "node-[0-9]+" if output.startswith("own") else "0"
    assert re.search(rf"round 1, client {name}: \d+ of {QUERIES} queries", output)
    assert re.search(r"round 1: the .* is the global prompt", output)
    assert "rejected" not in output
    assert "the prompt stays" not in output
    if not output.startswith("legacy"):
        assert "FedDTPT settings" in output
        assert re.search(r"held out: \{0: [01]\.\d+, 1: [01]\.\d+\}", output), output
    if output.startswith("message"):
        assert re.search(r"Outgoing message size: \d+ bytes", output)
        assert "2 results and 0 failures" in output

"""What a deployment depends on fails: a node's model, a node's version of the app, disks."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from feddtpt_flwr import __version__
from simulations.local_deployment import Deployment, deployment, wait_until
from tests.e2e.conftest import deployment_keys, history, rounds_done
from tests.fill_mask_server import FillMaskService
from tests.language_model import fault_proxy as faults

OLD = "0.0.9"

IMPROVABLE = {"seed-prompt": "Negative review.", "queries-per-round": 120}
"""To this prompt every review is negative: of the two that a node has, one is to win, and a search
of so many queries wins it. Where no search finds anything, nothing is compared."""

pytestmark = pytest.mark.slow


def changed(app: Path, target: Path, file: str, before: str, after: str) -> Path:
    """Copy the app with one change of its code."""
    shutil.copytree(app, target)
    path = target / "feddtpt_flwr" / file
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1
    path.write_text(text.replace(before, after), encoding="utf-8")
    return target


@pytest.fixture(scope="module")
def running(
    app: Path,
    files: dict[str, dict[str, Any]],
    fill_mask_service: FillMaskService,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Deployment]:
    # The app is also installed on all machines, for a run whose bundle does not bring it.
    variables = {**deployment_keys(fill_mask_service), "PYTHONPATH": str(app)}
    with deployment(tmp_path_factory.mktemp("deployment"), variables) as running:
        running.start_node("north", **files["north"])
        yield running


def test_a_nodes_endpoint_goes_down_and_comes_back(
    running: Deployment,
    app: Path,
    settings: dict[str, Any],
    files: dict[str, dict[str, Any]],
    endpoint: str,
    tmp_path: Path,
) -> None:
    """It goes down in the middle of a search; nobody listens until the round is over."""
    patience = "patience: float = {},\n    ) -> None:"
    # Two minutes otherwise.
    impatient = changed(
        app,
        tmp_path / "app",
        "language_model/api.py",
        patience.format("120.0"),
        patience.format("4.0"),
    )
    runs = Path(settings["run-folder"])
    with ExitStack() as up:
        proxy = up.enter_context(faults.fault_proxy(endpoint))
        proxy.faults, proxy.afterwards = [None] * 5, faults.drop
        running.start_node("south", **files["south"], endpoint=proxy.url)
        run = running.run(impatient, settings | IMPROVABLE)
        wait_until(lambda: len(proxy.asked) > 5, "south's search", 300)
    wait_until(lambda: rounds_done(runs) == 1, "round 1", 300)
    port = int(proxy.url.removesuffix("/v1").rpartition(":")[2])
    with faults.fault_proxy(endpoint, port=port) as again:
        status = running.wait(run)
    running.end("south")
    assert status == "finished:completed", running.logs(run)
    (folder,) = runs.iterdir()
    told = {
        (line["event"], line["round"], line["client"]): line
        for line in history(folder)
        if line["event"] in ("search", "race")
    }
    failed = {key for key, line in told.items() if "failure" in line}
    assert failed == {("search", 1, "south"), ("race", 1, "south")}
    assert all(told[key]["failure"].startswith("endpoint: no connection") for key in failed)
    assert told["search", 1, "south"]["queries"] == proxy.answered.total() == 5
    assert told["race", 1, "north"]["num-scored"] > 0, "the round goes on"
    assert told["search", 2, "south"]["queries"] > 0
    compared = told.get(("race", 2, "south"))  # where something better still was found
    assert compared is None or compared["num-scored"] > 0
    assert not proxy.answered.keys() & again.answered.keys(), "no answer is paid for twice"


def test_a_node_with_an_older_version_is_told_so_and_asks_nothing(
    running: Deployment,
    app: Path,
    settings: dict[str, Any],
    files: dict[str, dict[str, Any]],
    endpoint: str,
    tmp_path: Path,
) -> None:
    """An app of somebody's own names this one's parts; every node has them installed itself."""
    own = tmp_path / "own"
    own.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(app / name, own / name)
    (own / "test.jsonl").write_bytes((app / "test.jsonl").read_bytes())
    old = changed(
        app, tmp_path / "old", "__init__.py", f'__version__ = "{__version__}"',
        f'__version__ = "{OLD}"',
    )  # fmt: skip
    with faults.fault_proxy(endpoint) as proxy:
        running.start_node("old", "env", f"PYTHONPATH={old}", **files["south"], endpoint=proxy.url)
        changes = {"num-server-rounds": 1, "min-available-clients": 2}
        run = running.run(own, settings | IMPROVABLE | changes)
        status = running.wait(run)
    assert status == "finished:completed", running.logs(run)
    (folder,) = Path(settings["run-folder"]).iterdir()
    reason = f"this node runs feddtpt-flwr {OLD}, the server {__version__}; both need the same"
    told = [line for line in history(folder) if line.get("client") == "old"]
    assert {line["event"] for line in told} == {"search", "race"}
    assert all(reason in line["failure"] and line["queries"] == 0 for line in told)
    assert f"client old: {reason}" in running.log_file("old").read_text(encoding="utf-8")
    assert not proxy.asked
    assert not proxy.probes
    searched = [line for line in history(folder) if line["event"] == "search"]
    assert {line["client"] for line in searched if "failure" not in line} == {"north"}


def small_disk(folder: Path) -> list[str]:
    """A command before another one, which then has a disk of 256 KiB of its own at a folder."""
    script = 'mkdir -p "$0" && mount -t tmpfs -o size=256k disk "$0" && exec "$@"'
    return ["unshare", "--map-root-user", "--mount", "sh", "-c", script, str(folder)]


def fill(disk: Path) -> None:
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))


def test_full_disks(
    app: Path,
    settings: dict[str, Any],
    files: dict[str, dict[str, Any]],
    fill_mask_service: FillMaskService,
    tmp_path: Path,
) -> None:
    """A node's cache is full in round 1, the server's run folder in round 2."""
    try:
        subprocess.run([*small_disk(tmp_path / "disk"), "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk can be mounted here: {error}")
    runs = Path(settings["run-folder"])
    keys = deployment_keys(fill_mask_service)
    with deployment(tmp_path / "deployment", keys, *small_disk(runs)) as running:
        cache = running.folder("south") / "cache"
        running.start_node("north", **files["north"])
        running.start_node("south", *small_disk(cache), **files["south"])
        wait_until(lambda: running.seen_by("south", cache).is_mount(), "south's disk")
        souths, servers = running.seen_by("south", cache), running.seen_by("superlink", runs)
        fill(souths)
        run = running.run(app, settings | IMPROVABLE)
        wait_until(lambda: rounds_done(servers) == 1, "round 1", 300)
        fill(servers)
        assert not any(file.stat().st_size for file in souths.rglob("*.jsonl"))
        (souths / "filler").unlink()
        status = running.wait(run)
        log = running.run_log(run)
        assert status == "finished:completed", running.logs(run)
        assert log.count("not everything can be written; the run goes on") == 1
        assert "No space left on device" in log
        assert "learned prompt" in log
        (folder,) = (path for path in servers.iterdir() if path.is_dir())
        searches = [line for line in complete(folder) if line["event"] == "search"]
        assert {(line["client"], "failure" in line) for line in searches} == {
            ("north", False),
            ("south", False),
        }
        assert rounds_done(servers) == 1, "the checkpoint before is whole"
        warnings = running.log_file("south").read_text(encoding="utf-8")
        # One for each of the round's two messages, which are processes of their own.
        assert warnings.count("the client's state is not kept on disk") == 2
        assert warnings.count("no answers are kept on disk") == 2
        (state,) = (souths / "clients").glob("*.jsonl")
        assert '"end": true' in state.read_text(encoding="utf-8"), "there is space again"


def complete(folder: Path) -> list[dict[str, Any]]:
    """The lines of a history whose last one may be cut off."""
    lines = []
    for line in (folder / "history.jsonl").read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):
            lines.append(json.loads(line))
    return lines

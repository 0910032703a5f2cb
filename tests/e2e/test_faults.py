"""What a deployment goes through in a week: its processes are killed, stopped and restarted."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from feddtpt_flwr.data import Example
from simulations.local_deployment import Deployment, deployment, wait_until
from tests.conftest import ENDPOINT_KEY
from tests.fill_mask_server import FillMaskService
from tests.language_model import fault_proxy as faults
from tests.language_model.fault_proxy import Body, FaultProxy, Response

REPOSITORY = Path(__file__).parents[2]
ROUND_TIMEOUT = 20.0
QUERIES = 12

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def proxy(endpoint: str) -> Iterator[FaultProxy]:
    with faults.fault_proxy(endpoint) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def app(short_reviews: tuple[Example, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The app with its held-out examples beside it, as Flower packs them."""
    folder = tmp_path_factory.mktemp("app")
    for name in ("feddtpt_flwr", "strategies"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder / name)
    write(folder / "test.jsonl", short_reviews[:20])
    write(folder / "public.jsonl", short_reviews[60:80])
    return folder


def write(file: Path, examples: tuple[Example, ...]) -> None:
    texts = (e.input.removeprefix("\n\nReview: ").removesuffix("\nSentiment:") for e in examples)
    rows = [
        json.dumps({"text": text, "label": e.label})
        for text, e in zip(texts, examples, strict=True)
    ]
    file.write_text("\n".join(rows), encoding="utf-8")


@pytest.fixture(scope="module")
def files(
    short_reviews: tuple[Example, ...], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """The node configs of two organisations with reviews of their own."""
    folder = tmp_path_factory.mktemp("organisations")
    configs = {}
    for index, name in enumerate(("north", "south")):
        file = folder / f"{name}.jsonl"
        write(file, short_reviews[20 + 20 * index : 40 + 20 * index])
        configs[name] = {"data-path": str(file)}
    return configs


@pytest.fixture(scope="module")
def running(
    files: dict[str, dict[str, Any]],
    fill_mask_service: FillMaskService,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Deployment]:
    keys = {
        "FAULTS_LLM_KEY": ENDPOINT_KEY,
        "FAULTS_WRONG_KEY": "wrong-key",
        "FAULTS_FILL_KEY": fill_mask_service.key,
    }
    with deployment(tmp_path_factory.mktemp("deployment"), keys) as running:
        for name, config in files.items():
            running.start_node(name, **config)
        yield running


@pytest.fixture
def settings(
    proxy: FaultProxy, fill_mask_service: FillMaskService, tiny_bert: Path, tmp_path: Path
) -> dict[str, Any]:
    return {
        "endpoint": proxy.url,
        "language-model": "smollm2",
        "api-key-env": "FAULTS_LLM_KEY",
        "masked-lm": str(tiny_bert),
        "masked-lm-endpoint": fill_mask_service.url,
        "masked-lm-key-env": "FAULTS_FILL_KEY",
        "max-fluency-loss": 50.0,
        "clients": "own-data",
        "data-source": "files",
        "train-file": "public.jsonl",
        "test-file": "test.jsonl",
        "test-size": 4,
        "public-per-class": 0,
        "k-shot": 1,
        "queries-per-round": QUERIES,
        "race-candidates": 1,
        "num-server-rounds": 2,
        "seed-prompt": "Movie review.",
        "run-folder": str(tmp_path / "runs"),
    }


def history(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "history.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def final_state(folder: Path) -> dict[str, Any]:
    """What must not depend on what went wrong: all but times, costs and messages that were lost."""
    prompt = json.loads((folder / "prompt.json").read_text(encoding="utf-8"))
    kept = (
        "event", "round", "client", "accuracy", "gain", "queries", "trials", "accepted", "chosen",
        "prompt", "candidates", "correct-0", "correct-1", "num-scored",
    )  # fmt: skip
    events = [
        {key: line[key] for key in kept if key in line}
        for line in history(folder)
        if line["event"] != "resume"
    ]
    # Clients answer in any order.
    events.sort(key=lambda e: (e.get("round", 0), e["event"], e.get("client", "")))
    return {**prompt, "events": events}


def rounds_done(runs: Path) -> int:
    for file in runs.glob("*/checkpoint.json"):
        return int(json.loads(file.read_text(encoding="utf-8"))["strategy"]["round"])
    return 0


def held(handler: faults.Handler, body: Body) -> Response | None:
    while handler.proxy.afterwards is held:
        time.sleep(0.1)
    return None  # whoever asked is gone


def test_a_run_that_was_killed_goes_on_to_the_same_end(
    running: Deployment,
    app: Path,
    settings: dict[str, Any],
    files: dict[str, dict[str, Any]],
    proxy: FaultProxy,
) -> None:
    """SuperLink, ServerApp and one SuperNode are killed in the middle of round 2's searches."""
    runs = Path(settings["run-folder"])
    killed = running.run(app, settings)
    wait_until(lambda: rounds_done(runs) == 1 or running.ended(killed), "round 1")
    assert rounds_done(runs) == 1, running.run_log(killed)
    answered = proxy.answered.total() + 5
    proxy.faults, proxy.afterwards = [None] * 5, held
    wait_until(lambda: proxy.answered.total() == answered, "five answers of round 2")
    time.sleep(2)  # for the last one to arrive and be kept
    running.kill("superlink")
    running.kill("south")
    proxy.afterwards = None

    running.start_superlink()
    running.start_node("south", **files["south"])
    (folder,) = runs.iterdir()
    assert rounds_done(runs) == 1
    resumed = running.run(app, folder / "resume.toml")
    status = running.wait(resumed)
    assert status == "finished:completed", running.run_log(resumed)
    assert rounds_done(runs) == 2
    assert proxy.answered.total() > answered
    assert max(proxy.answered.values()) == 1, "nothing is paid for twice"

    again = {**settings, "run-folder": str(runs.parent / "undisturbed")}
    undisturbed = running.run(app, again)
    assert running.wait(undisturbed) == "finished:completed", running.run_log(undisturbed)
    (other,) = Path(again["run-folder"]).iterdir()
    assert final_state(folder) == final_state(other)
    assert [line["event"] for line in history(folder)].count("resume") == 1
    assert max(proxy.answered.values()) == 1, "an undisturbed run asks the same"


def test_a_round_goes_on_without_nodes_that_cannot_take_part(
    running: Deployment,
    app: Path,
    settings: dict[str, Any],
    files: dict[str, dict[str, Any]],
    tiny_bert: Path,
    tmp_path: Path,
) -> None:
    """One falls silent, one's endpoint refuses it, one has another vocabulary."""
    other = tmp_path / "tokenizer.json"
    tokenizer = json.loads((tiny_bert / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["another"] = vocabulary.pop(max(vocabulary, key=vocabulary.__getitem__))
    other.write_text(json.dumps(tokenizer), encoding="utf-8")
    running.start_node("east", **files["north"], **{"api-key-env": "FAULTS_WRONG_KEY"})
    running.start_node("west", **files["south"], **{"masked-lm": str(other)})
    running.stop("south")
    changes = {"num-server-rounds": 1, "min-available-clients": 4, "round-timeout": ROUND_TIMEOUT}
    run = running.run(app, {**settings, **changes})
    status = running.wait(run)
    log = running.run_log(run)
    assert status == "finished:completed", log
    (folder,) = Path(settings["run-folder"]).iterdir()
    searches = {line["client"]: line for line in history(folder) if line["event"] == "search"}
    assert searches.keys() == {"north", "east", "west"}
    assert "failure" not in searches["north"]
    assert "HTTP 401" in searches["east"]["failure"]
    assert "all nodes need the same masked-lm" in searches["west"]["failure"]
    assert searches["west"]["queries"] == searches["east"]["queries"] == 0
    (settled,) = [line for line in history(folder) if line["event"] == "round"]
    assert settled["failures"] >= 3
    assert "may have expired due to its TTL" in log
    assert "wrong-key" not in log
    assert json.loads((folder / "prompt.json").read_text(encoding="utf-8"))["rounds"] == 1

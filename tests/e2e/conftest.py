"""Small deployments that something happens to: their app, data, models and settings."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from feddtpt_flwr.data import Example
from tests.conftest import ENDPOINT_KEY
from tests.e2e.copies import copy_app
from tests.fill_mask_server import FillMaskService
from tests.language_model import fault_proxy as faults
from tests.language_model.fault_proxy import FaultProxy

QUERIES = 12


def deployment_keys(fill_mask_service: FillMaskService) -> dict[str, str]:
    """The environment variables with keys that `settings` names."""
    return {
        "FAULTS_LLM_KEY": ENDPOINT_KEY,
        "FAULTS_WRONG_KEY": "wrong-key",
        "FAULTS_FILL_KEY": fill_mask_service.key,
    }


@pytest.fixture(scope="module")
def proxy(endpoint: str) -> Iterator[FaultProxy]:
    with faults.fault_proxy(endpoint) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def app(short_reviews: tuple[Example, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The app with its held-out examples beside it, as Flower packs them."""
    folder = copy_app(tmp_path_factory.mktemp("app"))
    write(folder / "test.jsonl", short_reviews[:20])
    write(folder / "public.jsonl", short_reviews[60:80])
    return folder


def write(file: Path, examples: tuple[Example, ...]) -> None:
    texts = (e.input.removeprefix("Review: ").strip() for e in examples)
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
        "reword": False,  # which asks the proposer for many more words
        "num-server-rounds": 2,
        "seed-prompt": "Movie review.",
        "run-folder": str(tmp_path / "runs"),
    }


def history(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "history.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def rounds_done(runs: Path) -> int:
    for file in runs.glob("*/checkpoint.json"):
        return int(json.loads(file.read_text(encoding="utf-8"))["strategy"]["round"])
    return 0

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from feddtpt_flwr import trackers
from feddtpt_flwr.config import ConfigError, RunConfig
from feddtpt_flwr.run_folder import RunFolder

EVENTS: list[tuple[str, dict[str, Any]]] = [
    ("start", {"prompt": "Movie review.", "accuracy": 0.5}),
    ("search", {"round": 1, "client": "ward: 3", "queries": 30, "accuracy": 0.75, "accepted": []}),
    (
        "round",
        {
            "round": 1,
            "chosen": "aggregate",
            "prompt": "Is it good?",
            "candidates": [
                {"origin": "incumbent", "prompt": "Movie review.", "correct": 3, "total": 8},
                {"origin": "merge of 2", "prompt": "?", "correct": None, "total": None},
            ],
            "failures": 0,
            "bytes": 1234,
            "queries": 30,
            "accuracy": None,
            "seconds": 1.5,
        },
    ),
]
TRACKED = {
    ("round/accuracy", 0): 0.5,
    ("search/ward_ 3/queries", 1): 30,
    ("search/ward_ 3/accuracy", 1): 0.75,
    ("round/failures", 1): 0,
    ("round/bytes", 1): 1234,
    ("round/queries", 1): 30,
    ("round/seconds", 1): 1.5,
    ("candidates/incumbent", 1): 0.375,
}


@pytest.fixture(autouse=True)
def no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


def follow(tmp_path: Path, names: str) -> RunFolder:
    """A run's whole history."""
    config = RunConfig.from_run_config({"trackers": names, "seed": 5})
    trackers.require(names)
    folder = RunFolder(tmp_path / "runs", "reviews-seed5")
    folder.follow(trackers.open_all(config, folder.path))
    for event, values in EVENTS:
        folder.append(event, **values)
    folder.close()
    return folder


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = follow(tmp_path, "tensorboard")
    read = EventAccumulator(str(folder.path / "tensorboard"))
    read.Reload()
    tags = read.Tags()["scalars"]
    scalars = {(tag, e.step): e.value for tag in tags for e in read.Scalars(tag)}
    assert scalars == TRACKED
    texts = read.Tensors("prompt/text_summary")
    assert [text.tensor_proto.string_val for text in texts] == [
        [b"Movie review."],
        [b"Is it good?"],
    ]


def test_mlflow_reads_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "prompts")
    folder = follow(tmp_path, "mlflow")
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("prompts")
    assert experiment
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == (folder.path.name, "FINISHED")
    assert run.data.params["seed"] == "5"
    assert run.data.params["k-shot"] == "16"
    assert run.data.tags["prompt"] == "Is it good?"
    keys = run.data.metrics
    points = [m for key in keys for m in client.get_metric_history(run.info.run_id, key)]
    assert {(m.key, m.step): m.value for m in points} == TRACKED


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_what_is_missing_is_named_with_its_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    with pytest.raises(
        ConfigError, match=rf"{name} is not .* pip install 'feddtpt-flwr\[{name}\]'"
    ):
        trackers.require(name)
    assert importlib.util.find_spec("flwr")
    trackers.require("")


def test_a_tracker_that_cannot_be_reached_tells_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret-7@127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match="'mlflow': mlflow cannot be used") as caught:
        trackers.open_all(RunConfig.from_run_config({"trackers": "mlflow"}), tmp_path)
    assert "secret-7" not in str(caught.value)
    assert caught.value.__suppress_context__


class Broken:
    """A tracker that fails at its first event."""

    def __init__(self) -> None:
        self.calls = 0

    def write(self, event: Any) -> None:
        self.calls += 1
        raise OSError("http://me:secret-7@127.0.0.1 is gone")

    def close(self) -> None:
        raise AssertionError("it had failed before")


def test_a_tracker_that_fails_costs_a_warning_and_not_the_run(
    tmp_path: Path, warned: list[str]
) -> None:
    broken = Broken()
    folder = RunFolder(tmp_path, "run")
    folder.follow([trackers._Steady("mlflow", broken)])
    for event, values in EVENTS:
        folder.append(event, **values)
    folder.close()
    assert broken.calls == 1
    assert warned == ["mlflow fails and gets no more of this run: OSError"]
    assert len((folder.path / "history.jsonl").read_text(encoding="utf-8").splitlines()) == 3

"""What nodes report, in the server's history."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from feddtpt_flwr.fedpit.config import FedPITConfig
from feddtpt_flwr.fedpit.instructions import Instruction
from feddtpt_flwr.fedpit.recorder import Recorder, _average
from feddtpt_flwr.run_folder import RunFolder
from strategies.adapters import to_record
from strategies.fedpit import PhaseReport
from strategies.wire import LONGEST_NAME


def test_shares_are_averaged_by_examples_and_impossible_ones_left_out() -> None:
    values: list[dict[str, Any]] = [
        {"num-examples": 1, "m": 0.0},
        {"num-examples": 3, "m": 1.0},
        {"num-examples": 9, "m": 7.0},
        {"num-examples": 9},
    ]
    assert _average(values, "m") == pytest.approx(0.75)


class FourWords:
    """A double of a model that answers and reads four words."""

    def load(self, _: Any) -> None:
        pass

    def save(self, folder: Path) -> None:
        (folder / "weights").touch()

    def answer(self, instructions: list[str]) -> list[str]:
        return ["one two three four"] * len(instructions)

    def shorten(self, row: Instruction) -> Instruction:
        return replace(row, response=" ".join(row.response.split()[:4]))


def test_held_out_responses_are_as_long_as_an_answer_may_be(tmp_path: Path) -> None:
    test = (Instruction("Count.", "one two three four five six seven eight"),)
    config, folder = FedPITConfig.from_run_config({}), RunFolder(tmp_path, "run")
    recorder = Recorder(config, cast(Any, FourWords()), test, folder)
    adapter = to_record({"a": np.zeros(1, np.float32)}, "float32")
    assert recorder.evaluate(0, adapter)["rouge-l"] == 1


def test_the_adapter_is_written_when_there_is_one(tmp_path: Path) -> None:
    config, folder = FedPITConfig.from_run_config({}), RunFolder(tmp_path, "run")
    test = (Instruction("Count.", "one"),)
    recorder = Recorder(config, cast(Any, FourWords()), test, folder)
    start = to_record({"a": np.zeros(1, np.float32)}, "float32")
    recorder.evaluate(0, start)
    recorder.evaluate(1, start)
    assert not (folder.path / "adapter").exists()
    recorder.keep(2, start)
    assert (folder.path / "adapter" / "weights").exists()


def test_a_first_round_in_which_nobody_trains_ends_the_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "run")
    recorder = Recorder(FedPITConfig.from_run_config({}), cast(Any, None), (), folder)
    for report, words in (
        (PhaseReport(1, "train", (), ("a number",), 1, 0, ("a file",)), "a file"),
        (PhaseReport(1, "train", (), ("a number",), 0, 0), "a number"),
        (PhaseReport(1, "train", (), (), 2, 0), "no node answered"),
    ):
        with pytest.raises(RuntimeError, match=f"no node could train in the first round: {words}"):
            recorder.phase(report)
    recorder.phase(PhaseReport(2, "train", (), (), 2, 0))


def test_a_nodes_metrics_take_no_fields_of_the_history(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "run")
    recorder = Recorder(FedPITConfig.from_run_config({}), cast(Any, None), (), folder)
    names = {"num-examples": 4, "round": 9, "event": 1, "self": 2, "time": 3, "loss": 0.5}
    content = RecordDict({"metrics": MetricRecord({**names})})
    named = content.copy()
    named["about"] = ConfigRecord({"client": "a\n" * 5000})
    recorder.phase(PhaseReport(1, "train", ((7, content), (8, named)), (), 0, 10))
    line, other = map(json.loads, (folder.path / "history.jsonl").read_text("utf-8").splitlines())
    assert (line["event"], line["round"], line["client"]) == ("train", 1, "node-7")
    assert line["loss"] == 0.5
    assert line["time"] != 3
    assert len(other["client"]) <= LONGEST_NAME


def test_impossible_numbers_of_synthetic_examples_are_left_out(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "run")
    config = FedPITConfig.from_run_config({"num-selected": 4})
    recorder = Recorder(config, cast(Any, FourWords()), (Instruction("Count.", "one"),), folder)
    for number, selected in enumerate((4, 5, -1, 1.5, 1e300)):
        told = MetricRecord({"num-examples": 4, "selected": selected, "synthetic-rouge-l": 0.5})
        told["synthetic-longest-copy"] = selected
        content = RecordDict({"metrics": told})
        recorder.phase(PhaseReport(1, "train", ((number, content),), (), 0, 10))
    recorder.evaluate(1, to_record({"a": np.zeros(1, np.float32)}, "float32"))
    result = json.loads((folder.path / "result.json").read_text(encoding="utf-8"))
    assert result["selected"] == [4]
    assert result["synthetic-longest-copy"] == 5

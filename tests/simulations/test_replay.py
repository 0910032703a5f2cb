"""Rules judged on recorded answers: a real model, few examples."""

import numpy as np
import pytest

from feddtpt_flwr.config import RunConfig
from simulations import bench_races, replay
from simulations.replay import InRandomOrder, Plan, Recording
from strategies.edits import Edit

RECORDING = Recording(
    (1, 2), (), (Edit(0, 1, (3,)), Edit(1, 2, ()), Edit(0, 0, (4,))), np.zeros((4, 2), dtype=bool)
)


def test_every_prompt_has_its_row() -> None:
    assert RECORDING.rows == {(1, 2): 0, (3, 2): 1, (1,): 2, (4, 1, 2): 3}


def test_recorded_changes_are_proposed_once_and_of_their_prompt_only() -> None:
    rng = np.random.default_rng(0)
    proposer = InRandomOrder(RECORDING, rng)
    assert proposer.propose((9, 9), None, rng, 4) == []  # type: ignore[arg-type]
    first, rest = (proposer.propose((1, 2), None, rng, 2) for _ in range(2))  # type: ignore[arg-type]
    assert sorted([*first, *rest], key=str) == sorted(RECORDING.edits, key=str)
    assert proposer.propose((1, 2), None, rng, 2) == []  # type: ignore[arg-type]


def test_what_was_chosen_by_some_examples_is_judged_by_others(embedded_assets: None) -> None:
    recorded = replay.Replay(20, RunConfig.from_run_config({}))
    assert len(recorded.first) == len(recorded.second) == 20
    assert not {e.input for e in recorded.first} & {e.input for e in recorded.second}


@pytest.mark.slow
def test_rules_and_their_tables(embedded_assets: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, number in {"PUBLIC": 2, "TRAIN": 4, "VALIDATION": 2}.items():
        monkeypatch.setattr(replay, name, number)
    monkeypatch.setattr(bench_races, "SEARCHES", {"as it is": {}, "races of 1": {"width": 1}})
    monkeypatch.setattr(bench_races, "PLANS", (Plan(30, 6, 20), Plan(30, 3, 20)))
    result = bench_races.run(num_examples=20, num_changes=8, draws=10)
    assert len(result["prompts"]) == 3
    for prompt in result["prompts"]:
        for found in prompt["searches"].values():
            assert 0 <= found["worse"] <= 1
            assert 0 <= found["changed"] <= 1
            assert found["queries"] >= 6
        costs = [found["queries"] for found in prompt["comparisons"].values()]
        assert costs == sorted(costs), "more examples cost more"
    table = bench_races.markdown(result)
    assert "| races of 1 |" in table
    assert "| 256 |" in table
    assert "| 30, 3, 20 |" in table

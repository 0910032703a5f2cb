from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from simulations import fedpit
from simulations.fedpit import BETAS, METHODS, Outcome

OUTCOME = Outcome(
    rouge_l=(0.05, 0.4),
    accuracy=(0.3, 0.6),
    memorisation=(0.04, 0.2),
    synthetic_rouge_l=0.3,
    selected=(12, 0, 3),
    bytes_per_round=100,
)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Which runs were started; they answer at once, with figures that are made up."""
    runs: list[tuple[str, int]] = []

    class Federation:
        def __init__(self, settings: dict[str, Any]) -> None:
            self.seed = settings["seed"]

    def run_once(federation: Federation, settings: dict[str, Any]) -> Outcome:
        seed = federation.seed
        runs.append((str(settings), seed))
        if len(runs) == 4:
            raise RuntimeError("the machine stops here")
        return replace(OUTCOME, memorisation=(0.04, 0.2 + 0.1 * seed))

    monkeypatch.setattr(fedpit, "Federation", Federation)
    monkeypatch.setattr(fedpit, "run_once", run_once)
    return runs


def test_a_stopped_suite_goes_on_where_it_was(
    started: list[tuple[str, int]], tmp_path: Path
) -> None:
    methods = ["beta-0.0", "beta-1.0"]
    with pytest.raises(RuntimeError):
        fedpit.run(methods, [0, 1], tmp_path)
    assert "| FedPIT, beta 0.0 | 2 |" in (tmp_path / "fedpit.md").read_text(encoding="utf-8")
    table = fedpit.run(methods, [0, 1], tmp_path)
    assert "| 5.0; none 2 of 6 times | 100 |" in table
    assert len(started) == 5, "three runs, one that failed, and this one again"
    assert "| FedIT (beta 1.0) | 2 | 0.400 | 0.600 | 0.250 [" in table
    assert (tmp_path / "fedpit.png").read_bytes()[:4] == b"\x89PNG"
    assert fedpit.run(methods, [0, 1], tmp_path) == table
    assert len(started) == 5


def test_runs_of_other_settings_are_not_mixed_in(
    started: list[tuple[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fedpit.run(["beta-0.5"], [0], tmp_path)
    monkeypatch.setattr(fedpit, "SETTINGS", {"num-server-rounds": 9})
    with pytest.raises(ValueError, match="holds runs of other settings"):
        fedpit.run(["beta-0.5"], [0], tmp_path)


def test_the_settings_are_allowed() -> None:
    from feddtpt_flwr.fedpit.config import FedPITConfig

    for method in METHODS.values():
        FedPITConfig.from_run_config({**fedpit.SETTINGS, **method.settings})
    assert {f"beta-{beta}" for beta in BETAS} <= METHODS.keys()

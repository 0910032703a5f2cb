import json
from pathlib import Path

import pytest

from simulations import federation, scaling
from simulations.seeds import SeedResult


def test_the_exponent_is_that_of_a_power_law() -> None:
    clients = [10, 100, 1000]
    power, factor = scaling.exponent(clients, [0.5 * number**1.5 for number in clients])
    assert power == pytest.approx(1.5)
    assert factor == pytest.approx(0.5)


@pytest.mark.slow
def test_a_table_of_growing_numbers_of_clients(tmp_path: Path) -> None:
    report = scaling.run([5, 50], tmp_path)
    assert json.loads((tmp_path / "aggregation.json").read_text(encoding="utf-8")) == report
    assert [run["clients"] for run in report["runs"]] == [5, 50]
    for run in report["runs"]:
        assert run["prompt_tokens"] >= 10
        assert run["quadratic_agrees"]
        assert run["peak_mib"] >= run["uploads_mib"] > 0
    table = (tmp_path / "aggregation.md").read_text(encoding="utf-8")
    assert f"to the power of {report['exponent']:.2f}" in table


def result(seed: int, accuracy: float) -> SeedResult:
    return SeedResult(seed, 0.5, accuracy, 400, 4000, [100], 1.0, "Good or bad?")


def test_a_federation_is_compared_seed_by_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With made-up runs: what is known is not run again, what is paired is of one seed."""
    asked = []

    def run_once(seed: int, overrides: list[str], num_clients: int) -> SeedResult:
        asked.append((seed, num_clients))
        return result(seed, 0.7 + 0.1 * seed - (0.05 if num_clients == 1 else 0))

    monkeypatch.setattr(federation, "run_once", run_once)
    federation.run([0], 1, tmp_path)
    table = federation.run([0, 1], 2, tmp_path)
    assert len(asked) == 2 * len(federation.METHODS)
    assert asked.count((0, 1)) == asked.count((1, 1)) == 2
    (lone,) = (line for line in table.splitlines() if line.startswith("| 1 client with its own"))
    assert "| 0.700 |" in lone
    assert "| +0.050 |" in lone
    assert (tmp_path / "federation.md").read_text(encoding="utf-8") == table

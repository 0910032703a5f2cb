"""Learned prompts on other models: here the embedded one in another numeric type."""

from pathlib import Path

from simulations.grid import read_grid
from simulations.outcome import Results
from simulations.transfer import known_transfer, transfer
from tests.simulations.written_runs import SUITE, write_run, write_suite

MODELS = """
[models.precise]
test-size = 16
dtype = "float32"

[models.coarse]
test-size = 16
dtype = "bfloat16"
"""


def test_prompts_are_asked_about_on_the_chosen_runs_models(tmp_path: Path) -> None:
    suite, results = write_suite(tmp_path, SUITE + MODELS), Results(tmp_path / "runs")
    for job in suite.jobs(["one", "full"]):
        write_run(results, job, [0.5, 0.6])
    lines: list[str] = []
    found = transfer(suite, results, suite.jobs(["one"], seeds=1), lines.append)
    assert {place: list(seeds) for place, seeds in found.items()} == {
        (learned, asked, "one"): [0]
        for learned in ("precise", "coarse")
        for asked in ("precise", "coarse")
    }
    assert len(lines) == 2, "the run's own model was asked when it ran"
    assert (
        known_transfer(read_grid(suite, results), results)["precise", "coarse", "one"]
        == (found["precise", "coarse", "one"])
    )
    transfer(suite, results, suite.jobs(["one"], seeds=1), lines.append)
    assert len(lines) == 2, "nothing is asked again"

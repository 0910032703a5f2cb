import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from simulations import bench_ceiling
from simulations.__main__ import app

RESULTS = Path(bench_ceiling.__file__).parent / "results"


def climb(**options: int | str) -> Any:
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return CliRunner().invoke(app, ["bench", "ceiling", "--json", "-", *words])


def test_a_climb_counts_its_queries_and_never_falls(embedded_assets: None) -> None:
    options = {"examples": 10, "held-out": 6, "changes": 12, "rounds": 2}
    shown = climb(**options)
    assert shown.exit_code == 0, shown.output
    result = json.loads(shown.stdout)
    asked = [step["asked"] for step in result["steps"]]
    assert asked[0] == 10, "the seed prompt on all examples"
    assert all(20 <= after - before <= 2 * 12 * 10 for before, after in pairwise(asked))
    deciding = [step["deciding"] for step in result["steps"]]
    assert deciding == sorted(deciding)
    assert len(result["last_beam"]) == bench_ceiling.BEAM
    assert f"| {asked[-1]:,} | {deciding[-1]:.3f} |" in bench_ceiling.markdown(result)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"task": "sst3"}, "unknown task 'sst3'"), ({"examples": 100_000}, "3419 are available")],
)
def test_what_is_not_there_is_said_in_one_line(
    options: dict[str, int | str], said: str, embedded_assets: None
) -> None:
    refused = climb(**options)
    assert refused.exit_code == 2
    assert said in " ".join(refused.output.replace("│", " ").split())


def test_the_kept_table_is_that_of_its_figures() -> None:
    figures = json.loads((RESULTS / "ceiling.json").read_text(encoding="utf-8"))
    kept = (RESULTS / "ceiling.md").read_text(encoding="utf-8")
    assert kept == bench_ceiling.markdown(figures)

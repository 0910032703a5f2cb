import json
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from simulations import bench_tally
from simulations.__main__ import app
from simulations.bench_tally import PROMPTS, WAYS, Lies, draw, lie


@pytest.mark.parametrize("uneven", [False, True])
def test_clients_count_what_the_prompts_accuracy_says(uneven: bool) -> None:
    counts, accuracy = draw(4000, 20, uneven=uneven, rng=np.random.default_rng(0))
    assert counts.shape == (4000, PROMPTS)
    np.testing.assert_allclose(counts.mean(0) / 20, accuracy, atol=0.02)
    spread = counts.std(0).max() / 20
    assert (spread > 0.2) == uneven, "what serves one label fails the clients of the other"


@pytest.mark.parametrize(
    ("lies", "expected"),
    [("none", [3, 4, 5, 6, 7]), ("together", [0, 16, 0, 0, 0])],
)
def test_liars_say_the_opposite(lies: Lies, expected: list[int]) -> None:
    counts = np.tile([3, 4, 5, 6, 7], (3, 1))
    accuracy = np.array([0.5, 0.4, 0.6, 0.7, 0.8])
    told = lie(counts, accuracy, 16, 2, lies, np.random.default_rng(0))
    assert told[:2].tolist() == [expected] * 2
    assert told[2].tolist() == [3, 4, 5, 6, 7]


def test_every_way_chooses_the_best_where_all_agree() -> None:
    counts = np.tile([3, 4, 12, 6, 7], (10, 1))
    assert {name: way(counts, 16) for name, way in WAYS.items()} == dict.fromkeys(WAYS, 2)


def test_lies_told_together_cost_little_as_it_is() -> None:
    """The claim of `strategies.candidates.damping`, with few draws."""
    found = {
        (loss["clients"], loss["examples"], loss["labels"], loss["lies"]): loss
        for loss in bench_tally.run(draws=200)["losses"]
    }
    together = found[10, 16, "even", "together"]
    assert together["sum"][0] < -0.1 < -0.02 < together["as it is"][0]
    honest = found[10, 16, "even", "none"]
    assert honest["as it is"][0] == pytest.approx(honest["sum"][0], abs=0.005)


def test_the_command_writes_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def run(**options: Any) -> dict[str, Any]:
        asked.append(options)
        return {"losses": []}

    monkeypatch.setattr(bench_tally, "run", run)
    shown = CliRunner().invoke(app, ["bench", "tally", "--json", "-"])
    assert json.loads(shown.stdout) == {"losses": []}
    assert asked == [{}]

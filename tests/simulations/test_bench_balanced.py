"""Kept runs' prompts, asked about once more: on tweets, whose labels are uneven."""

import json
from pathlib import Path

import pytest

from feddtpt_flwr.data import DataError
from simulations.bench_balanced import SEED_PROMPT, markdown, run
from simulations.seeds import RESULTS

SUITE = "search-federation"
METHODS = ("wider", "wider-evolution")


def test_labels_count_alike_beside_the_runs_accuracies(tmp_path: Path) -> None:
    report = json.loads((RESULTS / f"{SUITE}.json").read_text(encoding="utf-8"))
    few = [
        record
        for record in report["runs"]
        if (record["tasks"], record["seed"]) == ("tweet_sentiment", 0)
        and record["methods"] in METHODS
    ]
    (tmp_path / f"{SUITE}.json").write_text(json.dumps({**report, "runs": few}), encoding="utf-8")
    result = run(SUITE, tmp_path)
    plain, balanced = (result[kind]["tweet_sentiment"] for kind in ("plain", "balanced"))
    for record in few:
        assert plain[record["methods"]][0] == pytest.approx(record["accuracy"], abs=1e-4)
    # The seed prompt answers "positive" to nearly all, which a sixth of them are.
    assert plain[SEED_PROMPT][0] < 0.2
    assert balanced[SEED_PROMPT][0] == pytest.approx(1 / 3, abs=0.03)
    assert 0.4 < result["commonest"]["tweet_sentiment"] < 0.5
    assert "search-federation" in markdown(result)


def test_a_suite_without_kept_runs_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run of suite 'search-federation' is kept"):
        run(SUITE, tmp_path)

import json
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from simulations import bench_choices
from simulations.__main__ import app
from simulations.bench_choices import (
    Lineage,
    edited,
    judged,
    noise_kept,
    orders,
    singles,
    summary,
    ties,
)
from strategies.edits import Edit

# Three clients of a prompt of four tokens; the last two wrote a token of their own.
PROMPTS = [
    Lineage((1, 2, 3, 4), (0, 1, 2, 3)),
    Lineage((1, 9, 3, 4), (0, -1, 2, 3)),
    Lineage((1, 2, 3, 8), (0, 1, 2, -1)),
]


class Proposer:
    """A double of the search's proposer that makes the given changes, one after the other."""

    def __init__(self, *edits: Edit) -> None:
        self.edits = list(edits)

    def propose(self, *_: Any) -> list[Edit]:
        return [self.edits.pop(0)]


def embed(prompts: Sequence[Lineage], noise: float = 0.05) -> list[NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    return [
        np.eye(12)[list(p.tokens)] + noise * rng.standard_normal((len(p.tokens), 12))
        for p in prompts
    ]


def test_it_is_known_where_every_token_of_an_edited_prompt_comes_from() -> None:
    changes = Proposer(Edit(1, 3, (7,)), Edit(0, 0, (8, 9)))
    rng = np.random.default_rng(0)
    assert edited((1, 2, 3, 4), changes, rng) == Lineage((8, 9, 1, 7, 4), (-1, -1, 0, -1, 3))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [([0, -1, 1, -1], [0, 2, 1, 3]), ([-1, -1], [0, 1]), ([2, 0], [2, 0]), ([], [])],
)
def test_what_belongs_to_nothing_is_alone(labels: list[int], expected: list[int]) -> None:
    assert singles(np.array(labels, dtype=np.int64)).tolist() == expected


def test_where_groups_are_far_apart_the_elbow_finds_them_all() -> None:
    found = judged(PROMPTS, embed(PROMPTS))
    assert found["split"] == found["best radius"] == {"rand": 1.0, "largest": 0.25}
    assert all(figures["rand"] <= 1 for figures in found.values())


def test_noise_that_is_kept_is_what_clients_wrote_themselves() -> None:
    assert noise_kept(PROMPTS, embed(PROMPTS), "drop") == {
        "tokens": 4.0,
        "seed_share": 1.0,
        "new": 0.0,
    }
    assert noise_kept(PROMPTS, embed(PROMPTS), "keep") == {
        "tokens": 6.0,
        "seed_share": 1.0,
        "new": 2.0,
    }


def test_how_a_prompt_reads_by_the_order_of_its_tokens() -> None:
    """3 stands before 4 in the prompt that has both, but later in the others than 4."""
    prompts = [
        Lineage((1, 3, 4, 8, 8, 8, 8, 8, 8, 8), (0, 1, 2, *[-1] * 7)),
        Lineage((7, 7, 7, 3), (-1, -1, -1, 1)),
        Lineage((1, 6, 5, 2, 4, 6, 2, 6, 2, 1), (0, *[-1] * 3, 2, *[-1] * 5)),
    ]

    def likes(token: int) -> Callable[[Sequence[tuple[int, ...]]], NDArray[np.float64]]:
        return lambda asked: np.array([float(tokens.count(token)) for tokens in asked])

    found = orders(prompts, embed(prompts, 0.0), likes(99))
    assert all(figures["exchanged"] == figures["nats"] == 0 for figures in found.values())
    assert found["mean place"]["misplaced"] > found["as it is"]["misplaced"] == 0
    assert found["every repetition"]["tokens"] >= found["as it is"]["tokens"]


def test_weights_that_different_tokens_share_are_ties() -> None:
    assert ties(PROMPTS, embed(PROMPTS)) == 0
    alike = [Lineage((1, 2), (0, 1)), Lineage((1, 3), (0, 1))]
    same = [np.eye(4)[[0, 1]]] * 2  # 2 and 3 have the same meaning
    assert ties(alike, same) == 0.5


def test_seed_tokens_that_change_places_are_counted() -> None:
    count = bench_choices._misplaced
    assert count(np.array([0, -1, 1, 2])) == 0
    assert count(np.array([1, -1, 0, 2])) == pytest.approx(1 / 3)
    assert count(np.array([0, 0, -1])) == 0, "no pair to be in order"


def test_figures_are_means_and_the_worst_case() -> None:
    figures = [{"a": {"rand": 1.0, "largest": 0.1}}, {"a": {"rand": 0.5, "largest": 0.9}}]
    assert summary(figures) == {"a": {"rand": 0.75, "largest": 0.5, "largest_worst": 0.9}}


@pytest.mark.parametrize(
    ("knee", "curve", "radius"),
    [(3, [0.1] * 4 + [1.0] * 3, 0.1), (None, [0.1, 0.2, 0.4], 0.4), (0, [0.5, 0.5, 0.5], 0.5)],
)
def test_kneed_reads_the_radius_at_its_knee(
    knee: int | None, curve: list[float], radius: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = SimpleNamespace(KneeLocator=lambda *_, **__: SimpleNamespace(knee=knee))
    monkeypatch.setitem(sys.modules, "kneed", library)
    assert bench_choices._ways()["kneed"](np.array(curve)) == radius


@pytest.mark.parametrize(
    ("curve", "radius"),
    [
        ([0.7] * 5, 0.7),  # flat
        ([0.1] * 6 + [1.0] * 3, 1.0),  # a step, which it misses
        ([0.5] * 9 + [2.0], 0.5),  # one far point
        ([x**3 for x in range(11)], 216),  # convex: there it is `chord`
        ([x**0.5 for x in range(11)], 10**0.5),  # concave: no knee
        ([1, 2, 3, 4, 5], 5),  # straight: none
    ],
)
def test_what_the_library_itself_finds(curve: list[float], radius: float) -> None:
    assert bench_choices._ways()["kneed"](np.array(curve, dtype=float)) == pytest.approx(radius)


def test_more_support_leaves_fewer_clusters_of_what_few_clients_share() -> None:
    few, many = (bench_choices.clusters_found(support, 100, 0) for support in (0.0, 0.05))
    assert many == 20 < few


def test_without_kneed_the_others_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kneed", None)  # so that its import fails
    assert judged(PROMPTS, embed(PROMPTS)).keys() == {
        "split",
        "lines",
        "chord",
        "gap",
        "best radius",
    }


def test_the_command_writes_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence[int]] = []

    def run(*, seeds: Sequence[int]) -> dict[str, Any]:
        asked.append(seeds)
        return {"federations": 10}

    monkeypatch.setattr(bench_choices, "run", run)
    shown = CliRunner().invoke(app, ["bench", "choices", "--seed", "3", "--json", "-"])
    assert json.loads(shown.stdout) == {"federations": 10}
    CliRunner().invoke(app, ["bench", "choices"])
    assert [list(seeds) for seeds in asked] == [[3], [0, 1, 2, 3, 4]]


@pytest.mark.slow
def test_a_federation_with_the_real_models(embedded_assets: None) -> None:
    result = bench_choices.run(["rotten_tomatoes"], [4], [0])
    assert result["federations"] == 1
    assert result["elbows"]["split"]["rand"] <= result["elbows"]["best radius"]["rand"] <= 1
    assert result["orders"]["mean place"]["nats"] > 0
    assert result["noise"]["drop"]["tokens"] <= result["noise"]["keep"]["tokens"]

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from strategies import representatives
from strategies.selection import MOST_OPTIONS, Noise, cut, in_order, limit_repetitions, most_fluent
from strategies.uploads import Uploads, collect

LABELS = np.array([0, 0, 1, -1, 1, -1])
WEIGHTS = np.array([0.1, 0.4, 0.2, 0.9, 0.2, 0.05])


@pytest.mark.parametrize(("noise", "expected"), [("drop", [1, 2]), ("keep", [3, 1, 2, 5])])
def test_heaviest_of_each_cluster(noise: Noise, expected: list[int]) -> None:
    assert representatives(LABELS, WEIGHTS, noise=noise).tolist() == expected


@pytest.mark.parametrize(
    ("ties", "expected"),
    [
        ([], 0),
        ([[2, 1, 1]], 1),
        ([[2, 1, 1], [0.0, 0.5, 0.25]], 2),
    ],
)
def test_ties(ties: list[list[float]], expected: int) -> None:
    keys = [np.array(key) for key in ties]
    assert representatives(np.zeros(3, dtype=int), np.ones(3), keys).tolist() == [expected]


def test_only_noise_leaves_nothing() -> None:
    assert len(representatives(np.array([-1, -1]), np.ones(2))) == 0


def test_unknown_noise() -> None:
    with pytest.raises(ValueError, match="drop, keep"):
        representatives(LABELS, WEIGHTS, noise="some")  # type: ignore[arg-type]


def uploads(*prompts: list[int], client_weights: Sequence[float] | None = None) -> Uploads:
    eye = np.eye(40)
    arrays = [np.array(p) for p in prompts]
    return collect(arrays, [eye[p] for p in prompts], client_weights=client_weights)


def rows_of(sent: Uploads, tokens: list[int]) -> NDArray[np.int64]:
    """Rows of the tokens, each the first not yet used."""
    free = sent.tokens.tolist()
    rows = []
    for token in tokens:
        rows.append(free.index(token))
        free[rows[-1]] = -1
    return np.array(rows)


def test_uploads_are_laid_out_in_canonical_order() -> None:
    sent = uploads([7, 8, 7, 7], [1, 2])
    assert sent.arrival.tolist() == [1, 0]
    assert sent.tokens.tolist() == [1, 2, 7, 8, 7, 7]
    assert sent.relative_positions.tolist() == [0, 0.5, 0, 0.25, 0.5, 0.75]
    assert sent.occurrences.tolist() == [0, 0, 0, 0, 1, 2]
    assert sent.repetitions == {1: 1, 2: 1, 7: 3, 8: 1}
    assert sent.mean_length == 3


def test_repetitions_need_a_prompt_that_repeats_as_often() -> None:
    sent = uploads([3, 4, 3], [3, 4], [4, 5])
    rows = rows_of(sent, [4, 3, 4, 3, 3, 5, 4])
    assert sent.tokens[limit_repetitions(sent, rows)].tolist() == [4, 3, 3, 5]


def test_order_is_by_relative_position() -> None:
    sent = uploads([1, 2, 3, 4], [5, 6])
    rows = rows_of(sent, [6, 4, 5, 2, 3])
    noise = np.full(len(sent.tokens), -1)
    ordered = sent.tokens[in_order(sent, rows, noise)].tolist()
    assert ordered[0] == 5
    assert ordered[1] == 2
    assert set(ordered[2:4]) == {6, 3}  # both at one half
    assert ordered[4] == 4


def test_equal_positions_go_by_weight_then_token() -> None:
    shared = uploads([1, 9], [2, 9], [3, 1])
    rows = rows_of(shared, [3, 2, 1])
    noise = np.full(len(shared.tokens), -1)
    assert shared.tokens[in_order(shared, rows, noise)].tolist() == [1, 2, 3]


def test_a_representative_stands_where_its_cluster_did() -> None:
    sent = uploads([1, 3, 4], [6, 7, 8, 9, 2], [2, 5, 5, 5])  # 2 at 0.8 and at 0: 0.4
    rows = rows_of(sent, [1, 2, 3, 4])
    labels = np.where(sent.tokens == 2, 0, -1)
    assert sent.tokens[in_order(sent, rows, labels)].tolist() == [1, 3, 2, 4]


@pytest.mark.parametrize("copies", [1, 2])
def test_neighbours_stand_as_most_prompts_have_them(copies: int) -> None:
    """By mean position 8 (0.05) would come before 7 (0.1): one short prompt has words before 7."""
    alike = [[7, 8, *[i] * 18] for i in range(20, 20 + copies)]
    other = [[9, 7, 9, 9, 9]]
    sent = uploads(*alike, *other)
    rows = rows_of(sent, [7, 8])
    labels = np.select([sent.tokens == 7, sent.tokens == 8], [0, 1], -1)
    assert sent.tokens[in_order(sent, rows, labels)].tolist() == [7, 8]


def test_where_prompts_disagree_the_mean_position_stands() -> None:
    sent = uploads([7, 8, 1, 1], [8, 1, 1, 7])
    rows = rows_of(sent, [7, 8])
    labels = np.select([sent.tokens == 7, sent.tokens == 8], [0, 1], -1)
    assert sent.tokens[in_order(sent, rows, labels)].tolist() == [8, 7]


@pytest.mark.parametrize(
    ("prompts", "ignored"),
    [
        ([[7, 8, 1, 1]], [[8, 7, 1, 1], [8, 7, 1, 2]]),
        ([[7, 1, 1, 1], [1, 8, 1, 1]], [[1, 1, 1, 7], [2, 1, 1, 7]]),
    ],
    ids=["votes", "places"],
)
def test_a_client_of_no_weight_has_no_say_in_the_order(
    prompts: list[list[int]], ignored: list[list[int]]
) -> None:
    for weight, expected in ((1, [8, 7]), (0, [7, 8])):
        weights = [1.0] * len(prompts) + [float(weight)] * len(ignored)
        sent = uploads(*prompts, *ignored, client_weights=weights)
        rows = rows_of(sent, [7, 8])
        labels = np.select([sent.tokens == 7, sent.tokens == 8], [0, 1], -1)
        assert sent.tokens[in_order(sent, rows, labels)].tolist() == expected


def test_what_only_clients_of_no_weight_have_still_stands_somewhere() -> None:
    sent = uploads([7, 1], [1, 8], client_weights=[1, 0])
    rows = rows_of(sent, [7, 8])
    labels = np.select([sent.tokens == 7, sent.tokens == 8], [0, 1], -1)
    assert sent.tokens[in_order(sent, rows, labels)].tolist() == [7, 8]


def test_an_order_that_no_prompt_has_is_some_order() -> None:
    """Of three prompts most have 1 before 2, 2 before 3 and 3 before 1."""
    sent = uploads([1, 2, 3], [2, 3, 1], [3, 1, 2])
    rows = rows_of(sent, [1, 2, 3])
    assert sorted(sent.tokens[in_order(sent, rows, sent.tokens)].tolist()) == [1, 2, 3]


def a_choice(*similarities: float) -> tuple[Uploads, NDArray[np.int64], NDArray[np.int64]]:
    """Three prompts whose second tokens, 5, 6 and 7, are one cluster; and the rows 1 5 3."""
    sent = uploads([1, 5, 3], [1, 6, 3], [1, 7, 3])
    labels = np.select([sent.tokens == 1, sent.tokens == 3], [0, 1], 2)
    similarity = sent.similarity.copy()
    similarity[labels == 2] = similarities
    return replace(sent, similarity=similarity), rows_of(sent, [1, 5, 3]), labels


@pytest.mark.parametrize(
    ("similarities", "likes", "expected"),
    [
        ((1.0, 0.95, 0.95), 6, [1, 6, 3]),
        ((1.0, 0.95, 0.95), 7, [1, 7, 3]),
        ((1.0, 0.95, 0.95), 5, [1, 5, 3]),
        ((1.0, 0.95, 0.95), 99, [1, 5, 3]),
        ((1.0, 0.85, 0.95), 6, [1, 5, 3]),
        ((1.0, 1.5, 0.95), 6, [1, 6, 3]),
        ((-1.0, -1.05, -1.2), 6, [1, 6, 3]),
        ((-1.0, -1.05, -1.2), 7, [1, 5, 3]),
    ],
)
def test_of_tokens_about_as_similar_the_one_that_reads_best_is_taken(
    similarities: tuple[float, ...], likes: int, expected: list[int]
) -> None:
    sent, rows, labels = a_choice(*similarities)
    asked: list[tuple[int, ...]] = []

    def fluency(prompts: Sequence[tuple[int, ...]]) -> list[float]:
        asked.extend(prompts)
        return [float(likes in prompt) for prompt in prompts]

    assert sent.tokens[most_fluent(sent, rows, labels, fluency)].tolist() == expected
    assert {prompt[::2] for prompt in asked} <= {(1, 3)}, "where there is no choice none is tried"


def test_a_prompt_that_cannot_be_judged_does_not_read_best() -> None:
    sent, rows, labels = a_choice(1.0, 1.0, 1.0)
    chosen = most_fluent(sent, rows, labels, lambda p: [0.0, *[float("nan")] * (len(p) - 1)])
    assert chosen.tolist() == rows.tolist()


def test_every_prompt_must_be_judged() -> None:
    sent, rows, labels = a_choice(1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="a number for each of 3 prompts, got shape \\(1,\\)"):
        most_fluent(sent, rows, labels, lambda _: [0.0])


def test_each_place_is_judged_with_what_was_exchanged_before_it() -> None:
    """6 reads well after 1, and then 8 after 6; 8 after 5 does not."""
    sent = uploads([1, 5, 7], [1, 6, 8])
    labels = np.tile([0, 1, 2], 2)
    sent = replace(sent, similarity=np.ones(6))
    good = {(1, 6), (6, 8)}

    def fluency(prompts: Sequence[tuple[int, ...]]) -> list[float]:
        return [float(sum(pair in good for pair in pairwise(p))) for p in prompts]

    rows = sent.prompt(0)
    assert sent.tokens[rows].tolist() == [1, 5, 7]
    assert sent.tokens[most_fluent(sent, rows, labels, fluency)].tolist() == [1, 6, 8]


def test_of_very_many_tokens_only_the_most_similar_are_tried() -> None:
    sent = uploads(*[[1, token, 3] for token in range(4, 34)])
    labels = np.tile([0, 2, 1], 30)
    similarity = np.ones(90)
    similarity[1::3] = np.linspace(1.0, 0.95, 30)
    sent = replace(sent, similarity=similarity)
    asked: list[tuple[int, ...]] = []
    most_fluent(sent, sent.prompt(0), labels, lambda p: asked.extend(p) or [0.0] * len(p))  # type: ignore[func-returns-value]
    assert asked == [(1, token, 3) for token in range(4, 4 + MOST_OPTIONS)]


def test_what_reads_best_is_not_repeated_more_often_than_anybody_did() -> None:
    sent = uploads([6, 5, 3], [1, 6, 3])
    rows = sent.prompt(int(np.flatnonzero(sent.tokens == 5)[0] // 3))
    labels = np.select([sent.tokens == 3, sent.positions == 1], [0, 1], 2)
    similar = replace(sent, similarity=np.ones(len(sent.tokens)))
    chosen = most_fluent(similar, rows, labels, lambda p: [float(t.count(6)) for t in p])
    assert similar.tokens[chosen].tolist() == [6, 5, 3]


def test_cut_keeps_the_heaviest_in_order() -> None:
    sent = uploads([1, 2, 3], [3, 4, 1])
    first = sent.prompt(0)
    assert sent.tokens[cut(sent, first, 2)].tolist() == [1, 3]
    assert sent.tokens[cut(sent, first, 1)].tolist() == [1]
    assert cut(sent, first, None).tolist() == first.tolist()

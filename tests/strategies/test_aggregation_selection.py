from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from strategies import representatives
from strategies.selection import Noise, cut, in_order, limit_repetitions, most_fluent
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


def test_a_client_of_no_weight_has_no_say_in_the_order() -> None:
    prompts = ([7, 8, 1, 1], [8, 7, 1, 1], [8, 7, 1, 2])
    for weights, expected in (((1, 1, 1), [8, 7]), ((1, 0, 0), [7, 8])):
        sent = uploads(*prompts, client_weights=weights)
        rows = rows_of(sent, [7, 8])
        labels = np.select([sent.tokens == 7, sent.tokens == 8], [0, 1], -1)
        assert sent.tokens[in_order(sent, rows, labels)].tolist() == expected


def test_an_order_that_no_prompt_has_is_some_order() -> None:
    """Of three prompts most have 1 before 2, 2 before 3 and 3 before 1."""
    sent = uploads([1, 2, 3], [2, 3, 1], [3, 1, 2])
    rows = rows_of(sent, [1, 2, 3])
    assert sorted(sent.tokens[in_order(sent, rows, sent.tokens)].tolist()) == [1, 2, 3]


def test_of_equal_weights_the_token_that_reads_best_is_taken() -> None:
    sent = uploads([1, 5, 3], [1, 6, 3], [1, 5, 3])
    rows = rows_of(sent, [1, 5, 3])
    labels = np.select([sent.tokens == 1, sent.tokens == 3], [0, 1], 2)
    asked: list[tuple[int, ...]] = []

    def prefers(better: int) -> list[int]:
        def fluency(prompts: Sequence[tuple[int, ...]]) -> list[float]:
            asked.extend(prompts)
            return [float(better in prompt) for prompt in prompts]

        return [int(t) for t in sent.tokens[most_fluent(sent, rows, labels, fluency)]]

    similarity = sent.similarity.copy()
    similarity[labels == 2] = [1.0, 1.0, 0.99]
    sent = replace(sent, similarity=similarity)
    assert prefers(6) == [1, 6, 3]
    assert set(asked) == {(1, 5, 3), (1, 6, 3)}, "where there is no choice nothing is asked"
    assert prefers(5) == [1, 5, 3]
    assert prefers(99) == [1, 5, 3], "what reads no better changes nothing"
    similarity[labels == 2] = [1.0, 1.0, 0.5]
    assert prefers(6) == [1, 5, 3], "less weight"


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

import numpy as np
import pytest
from numpy.typing import NDArray

from strategies import representatives
from strategies.selection import Noise, cut, in_order, limit_repetitions
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


def uploads(*prompts: list[int]) -> Uploads:
    eye = np.eye(10)
    return collect([np.array(p) for p in prompts], [eye[p] for p in prompts])


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
    sent = uploads([1, 2, 3, 4], [6, 7, 8, 9, 2])  # 2 at 0.25 and at 0.8
    rows = rows_of(sent, [2, 3, 4])
    labels = np.where(sent.tokens == 2, 0, -1)
    assert sent.tokens[in_order(sent, rows, labels)].tolist() == [3, 2, 4]


def test_cut_keeps_the_heaviest_in_order() -> None:
    sent = uploads([1, 2, 3], [3, 4, 1])
    first = sent.prompt(0)
    assert sent.tokens[cut(sent, first, 2)].tolist() == [1, 3]
    assert sent.tokens[cut(sent, first, 1)].tolist() == [1]
    assert cut(sent, first, None).tolist() == first.tolist()

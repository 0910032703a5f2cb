import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import ELBOWS, elbow, neighbour_distances
from strategies.elbow import ElbowMethod

STEP = [0.1] * 6 + [1.0] * 3
TWO_SLOPES = [0.0, 0.1, 0.2, 0.3, 0.4, 1.4, 2.3, 3.2]
CONVEX = [float(x) ** 3 for x in range(11)]
CONCAVE = [float(np.sqrt(x)) for x in range(11)]
OUTLIER = [0.5] * 9 + [2.0]


@pytest.mark.parametrize(
    ("method", "curve", "expected"),
    [
        ("split", STEP, 0.1),
        ("lines", STEP, 0.1),
        ("chord", STEP, 0.1),
        ("gap", STEP, 0.1),
        ("split", OUTLIER, 0.5),
        ("lines", OUTLIER, 0.5),
        ("chord", OUTLIER, 0.5),
        ("gap", OUTLIER, 0.5),
        ("split", TWO_SLOPES, 1.4),
        ("lines", TWO_SLOPES, 0.4),
        ("chord", TWO_SLOPES, 0.4),
        ("gap", TWO_SLOPES, 0.4),
        ("split", CONVEX, 343),
        ("lines", CONVEX, 216),
        ("chord", CONVEX, 216),
        ("gap", CONVEX, 729),
        ("split", CONCAVE, np.sqrt(3)),
        ("lines", CONCAVE, 1),
        ("chord", CONCAVE, 0),
        ("gap", CONCAVE, 0),
        ("split", [1, 2, 3, 4], 2),
        ("lines", [1, 5, 6], 1),
        ("lines", [1, 2, 3, 4, 5], 2),
        ("chord", [1, 2, 3, 4, 5], 1),
        ("gap", [0.1, 0.2, 0.3, 0.4], 0.1),
        ("split", [1.0, 1.05, 1.1, 1.15, 1.2], 1.2),
        ("split", [1.0, 1.05, 1.1, 1.15, 1.2, 3.0], 1.2),
    ],
)
def test_elbow_table(method: ElbowMethod, curve: list[float], expected: float) -> None:
    assert elbow(np.array(curve), method) == pytest.approx(expected)


@pytest.mark.parametrize("method", ELBOWS)
@pytest.mark.parametrize("curve", [[0.0], [0.7], [0.7] * 5, [0.0] * 5])
def test_flat_curves_and_single_points(method: ElbowMethod, curve: list[float]) -> None:
    assert elbow(np.array(curve), method) == curve[0]


@pytest.mark.parametrize("method", ELBOWS)
@given(curve=st.lists(st.floats(0, 2), min_size=1, max_size=30))
def test_elbow_lies_on_the_curve(method: ElbowMethod, curve: list[float]) -> None:
    assert elbow(np.sort(curve), method) in curve


@given(st.lists(st.floats(0, 2), min_size=2, max_size=20).filter(lambda c: min(c) < max(c)))
def test_split_has_the_least_squared_error(curve: list[float]) -> None:
    values = np.sort(curve)

    def error(left: int) -> float:
        parts = (values[:left], values[left:])
        return sum(float(((part - part.mean()) ** 2).sum()) for part in parts)

    left = int(np.searchsorted(values, elbow(values), side="right"))
    if left == len(values):  # one level
        best = min(range(1, left), key=error)
        assert values[best:].mean() < 1.25 * values[:best].mean() + 1e-9
        return
    # Equal values may be cut apart, so compare with every cut between different ones.
    cuts = [i for i in range(1, len(values)) if values[i - 1] < values[i]]
    assert error(left) <= min(error(i) for i in cuts) + 1e-9


def test_lines_have_the_least_squared_error() -> None:
    values = np.sort(np.random.default_rng(3).random(25) ** 2)
    x = np.arange(25)

    def error(left: int) -> float:
        total = 0.0
        for part in (slice(0, left), slice(left, 25)):
            fit = np.polyfit(x[part], values[part], 1)
            total += float(((np.polyval(fit, x[part]) - values[part]) ** 2).sum())
        return total

    expected = min(range(2, 24), key=error)
    assert elbow(values, "lines") == pytest.approx(values[expected - 1])


@pytest.mark.parametrize(
    ("curve", "method", "message"),
    [
        ([], "split", "at least one"),
        ([2, 1], "split", "ascending"),
        ([1], "knee", "split, lines"),
        ([0, np.nan, 1], "split", "finite"),
        ([0, 1, np.nan], "split", "finite"),
        ([0, 1, np.inf], "gap", "finite"),
        ([-1, 0, 1], "chord", "nonnegative"),
    ],
)
def test_elbow_rejects(curve: list[float], method: ElbowMethod, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        elbow(np.array(curve), method)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(1, 4))
def test_neighbour_distances_equal_the_full_matrix(seed: int, n: int, k: int) -> None:
    points = np.random.default_rng(seed).integers(0, 3, (n, 3)).astype(float)
    expected = []
    for i in range(n):
        others = sorted(float(np.linalg.norm(points[i] - points[j])) for j in range(n) if j != i)
        expected.append(others[min(k, n - 1) - 1])
    np.testing.assert_allclose(neighbour_distances(points, k), sorted(expected), atol=1e-7)


def test_a_sample_measures_against_all_points() -> None:
    points = np.repeat(np.arange(50.0), 2)[:, None]
    assert neighbour_distances(points, 1, max_queries=10).tolist() == [0] * 10


def test_a_lone_point_has_no_neighbour() -> None:
    assert len(neighbour_distances(np.ones((1, 3)), 2)) == 0


def test_neighbour_number_must_be_positive() -> None:
    with pytest.raises(ValueError, match="k must be"):
        neighbour_distances(np.ones((3, 2)), 0)

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.cluster import DBSCAN

from strategies import blocked_dbscan as blocked
from strategies import cluster_tokens, min_samples_for
from strategies.clustering import distinct_rows

Floats = NDArray[np.float64]


def clumps(seed: int, n: int, d: int = 24, noise: float = 0.2) -> Floats:
    """Unit vectors: tight groups of uneven size, wide ones, and loners."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((12, d)) / np.sqrt(d)
    which = np.minimum(rng.geometric(0.25, n) - 1, 14)
    points = rng.standard_normal((n, d)) / np.sqrt(d)
    placed = which < 12
    points[placed] = centres[which[placed]] + noise * (1 + which[placed, None] / 8) * points[placed]
    return np.asarray(points / np.linalg.norm(points, axis=1, keepdims=True))


def sklearn_labels(points: Floats, eps: float, min_samples: int) -> list[int]:
    fitted = DBSCAN(eps=eps, min_samples=min_samples, algorithm="brute").fit(points)
    return [int(label) for label in fitted.labels_]


@pytest.mark.parametrize("min_samples", [1, 2, 5, 20])
@pytest.mark.parametrize("eps", [0.15, 0.3, 0.5, 1.2])
def test_blocked_labels_are_those_of_scikit_learn(eps: float, min_samples: int) -> None:
    points = clumps(7, 1500).astype(np.float32).astype(np.float64)
    labels = blocked.blocked_dbscan(points, np.ones(1500, dtype=np.int64), eps, min_samples)
    assert labels.tolist() == sklearn_labels(points, eps, min_samples)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 60), st.floats(0.05, 1.5), st.integers(1, 6))
def test_blocked_labels_with_tiny_tiles(seed: int, n: int, eps: float, min_samples: int) -> None:
    points = clumps(seed, n, d=4).astype(np.float32).astype(np.float64)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("SAMPLE", 16), ("MAX_CELLS", 4), ("ROWS", 2), ("COLUMNS", 8)):
            patch.setattr(blocked, name, value)
        labels = blocked.blocked_dbscan(points, np.ones(n, dtype=np.int64), eps, min_samples)
    assert labels.tolist() == sklearn_labels(points, eps, min_samples)


def test_many_distinct_points_take_the_blocked_way(monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.repeat(clumps(1, 300), 2, axis=0).astype(np.float32)
    few = cluster_tokens(points, 0.4, 3)
    monkeypatch.setattr("strategies.clustering.SMALL", 10)
    assert cluster_tokens(points, 0.4, 3).tolist() == few.tolist()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 4))
def test_duplicates_count_as_points(seed: int, n: int, min_samples: int) -> None:
    points = np.random.default_rng(seed).integers(0, 3, (n, 2)).astype(float)
    labels = cluster_tokens(points, 1.0, min_samples)
    assert labels.tolist() == sklearn_labels(points, 1.0, min_samples)


def test_eps_zero_clusters_equal_points_only() -> None:
    points = np.array([[0.0, 1], [1, 0], [0, 1], [0.9, 0.1]])
    assert cluster_tokens(points, 0.0, 2).tolist() == [0, -1, 0, -1]


def test_a_border_point_joins_the_first_cluster() -> None:
    points = np.array([[0.0], [0.5], [1.0], [2.0], [3.0], [3.5], [4.0]])
    assert cluster_tokens(points, 1.0, 5).tolist() == [-1] * 7
    assert cluster_tokens(points, 1.0, 4).tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_no_points() -> None:
    assert len(cluster_tokens(np.empty((0, 3)), 0.1)) == 0


@pytest.mark.parametrize(("eps", "min_samples"), [(-0.1, 2), (np.nan, 2), (0.5, 0)])
def test_bad_parameters(eps: float, min_samples: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        cluster_tokens(np.ones((2, 2)), eps, min_samples)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("small", [4000, 10], ids=["scikit-learn", "blocked"])
def test_points_must_be_finite(value: float, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strategies.clustering.SMALL", small)
    points = clumps(1, 50)
    points[7, 3] = value
    with pytest.raises(ValueError, match="points must be finite"):
        cluster_tokens(points, 0.4)


@given(st.integers(0, 10_000), st.integers(1, 50), st.integers(1, 5))
def test_distinct_rows_restore_the_points(seed: int, n: int, d: int) -> None:
    points = np.random.default_rng(seed).integers(0, 2, (n, d)).astype(float)
    first, inverse = distinct_rows(points)
    assert (points[first][inverse] == points).all()
    assert (np.diff(first) > 0).all()
    if d <= 3:
        assert len(first) == len(np.unique(points, axis=0))


@pytest.mark.parametrize(
    ("clients", "expected"),
    [(1, 2), (4, 2), (10, 2), (40, 2), (41, 3), (100, 5), (1000, 50), (10_000, 500)],
)
def test_min_samples_grows_with_the_clients(clients: int, expected: int) -> None:
    assert min_samples_for(clients) == expected

"""Exact DBSCAN for hundreds of thousands of points in hundreds of dimensions.

scikit-learn's DBSCAN first lists every neighbour of every point. Ten thousand clients who share a
prompt put ten thousand tokens into one neighbourhood, and those lists grow with the square of that.
Trees do not help in 384 dimensions. Here distances are computed tile by tile and forgotten, and
three exact arguments leave most tiles out:

1. Points lie in *cells*, balls around the densest places. By the triangle inequality a point
   farther than the cell's radius plus ``eps`` from its centre has no neighbour in it.
2. A point that has ``min_samples`` neighbours is a core point; nobody counts the others.
3. Two core points of one component need no distance: they are connected already.

How much is left out depends on the data. As ``eps`` nears the distance between unrelated points,
the first argument excludes less, and scattered points cost time quadratic in their number.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Float32s = NDArray[np.float32]
Ints = NDArray[np.int64]

SAMPLE, MAX_CELLS, ROWS, COLUMNS = 2048, 256, 256, 4096
ROUNDING = 4e-6  # of a squared float32 distance between vectors of about unit length


@dataclass(frozen=True)
class Cells:
    """Points grouped by place.

    Attributes
    ----------
    members
        Indices of the points of each cell, ascending; the last cell holds all other points.
    reach
        Shape ``(n, cells)``: False where the point surely has no neighbour in the cell.
    """

    members: tuple[Ints, ...]
    reach: Bools


@dataclass(frozen=True)
class Near:
    """Answers which points lie within ``eps`` of which."""

    points: Float32s
    half_norms: Float32s
    eps: float

    def __call__(self, rows: Ints, columns: Ints) -> Bools:
        """Whether each row point is near each column point, shape ``(rows, columns)``."""
        row_norms, column_norms = self.half_norms[rows], self.half_norms[columns]
        closeness = self.points[rows] @ self.points[columns].T  # becomes minus d**2 / 2
        closeness -= row_norms[:, None]
        closeness -= column_norms
        limit = -(self.eps**2) / 2
        margin = ROUNDING * float(row_norms.max() + column_norms.max())
        near = closeness >= limit - margin
        # Rounding decides only on the border, so only the border is computed again, exactly.
        row, column = _where(near & (closeness < limit + margin))
        for part in np.array_split(np.arange(len(row)), 1 + len(row) // COLUMNS):
            left = self.points[rows[row[part]]].astype(np.float64)
            difference = left - self.points[columns[column[part]]]
            exact = np.einsum("ij,ij->i", difference, difference) <= self.eps**2
            near[row[part], column[part]] = exact
        return near


def _where(mask: Bools) -> tuple[Ints, Ints]:
    """Row and column of every True; on sparse masks far faster than two-dimensional nonzero."""
    row, column = np.divmod(np.flatnonzero(mask), mask.shape[1])
    return row, column


def _centres(points: Float32s, eps: float) -> Float32s:
    """Means of the densest balls of a sample, found greedily, shape ``(cells, d)``."""
    drawn = np.random.default_rng(0).permutation(len(points))[:SAMPLE]
    sample = points[np.sort(drawn)]
    norms = np.einsum("ij,ij->i", sample, sample)
    near = norms[:, None] + norms - 2 * sample @ sample.T <= (1.5 * eps) ** 2
    crowd = near.sum(axis=1)
    centres: list[Float32s] = []
    while len(centres) < MAX_CELLS and crowd.max() >= 4:
        ball = near[crowd.argmax()].copy()
        centres.append(sample[ball].mean(axis=0))
        crowd -= near[:, ball].sum(axis=1)
        near[:, ball] = False
    return np.array(centres, dtype=np.float32).reshape(len(centres), points.shape[1])


def _cells(points: Float32s, norms: Float32s, eps: float) -> Cells:
    """Assign each point to the nearest centre, or to the last cell if all are far."""
    centres = _centres(points, eps)
    if not len(centres):
        everything = np.arange(len(points))
        return Cells((everything,), np.ones((len(points), 1), dtype=bool))
    centre_norms = np.einsum("ij,ij->i", centres, centres)

    def to_centres(start: int) -> Float32s:
        block = slice(start, start + COLUMNS)
        squared = norms[block, None] + centre_norms - 2 * points[block] @ centres.T
        return np.asarray(np.sqrt(np.maximum(squared, 0)), dtype=np.float32)

    starts = range(0, len(points), COLUMNS)
    home = np.full(len(points), len(centres))
    radius = np.zeros(len(centres))
    for start in starts:
        distance = to_centres(start)
        nearest = distance.argmin(axis=1)
        inside = np.flatnonzero(distance[np.arange(len(distance)), nearest] <= 1.5 * eps)
        home[start + inside] = nearest[inside]
        np.maximum.at(radius, nearest[inside], distance[inside, nearest[inside]])
    reach = np.ones((len(points), len(centres) + 1), dtype=bool)
    slack = 1e-3 * (1 + np.sqrt(norms.max()))  # far above the rounding of these distances
    for start in starts:
        reach[start : start + COLUMNS, :-1] = to_centres(start) <= radius + eps + slack
    return Cells(tuple(np.flatnonzero(home == c) for c in range(len(centres) + 1)), reach)


def _blocks(indices: Ints, size: int) -> Iterator[Ints]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def _core_points(near: Near, cells: Cells, counts: Ints, min_samples: int) -> tuple[Bools, Ints]:
    """Find the core points, and all (other point, near point) pairs, shape ``(pairs, 2)``."""
    core = counts >= min_samples
    weights = np.minimum(counts, min_samples).astype(np.float32)  # small, so sums are exact
    pairs: list[Ints] = [np.empty((0, 2), dtype=np.int64)]
    for home, members in enumerate(cells.members):
        order = [home, *(c for c in range(len(cells.members)) if c != home)]
        for rows in _blocks(members[~core[members]], ROWS * 4):
            found = np.zeros(len(rows), dtype=np.int64)
            for cell in order:
                candidates = cells.members[cell]
                # A point of this cell is a neighbour only if it can reach back.
                candidates = candidates[cells.reach[candidates, home]]
                for columns in _blocks(candidates, COLUMNS // 4):
                    open_ = np.flatnonzero((found < min_samples) & cells.reach[rows, cell])
                    if not len(open_):
                        break
                    hits = near(rows[open_], columns)
                    found[open_] += (hits.astype(np.float32) @ weights[columns]).astype(np.int64)
                    left = found[open_] < min_samples
                    row, column = _where(hits[left])
                    pairs.append(np.column_stack([rows[open_[left]][row], columns[column]]))
            core[rows[found >= min_samples]] = True
    near_pairs = np.concatenate(pairs)
    return core, near_pairs[~core[near_pairs[:, 0]]]


def _merge(root: Ints, left: Ints, right: Ints) -> None:
    """Join the components of the paired points in place; a root is its component's least index."""
    while True:
        a, b = root[left], root[right]
        apart = a != b
        if not apart.any():
            return
        a, b, left, right = a[apart], b[apart], left[apart], right[apart]
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(root, parent := root[root]):
            root[:] = parent


def _join(near: Near, root: Ints, rows: Ints, columns: Ints) -> None:
    """Join all near pairs, leaving out those within the rows' most common component."""
    values, sizes = np.unique(root[rows], return_counts=True)
    common = values[sizes.argmax()]
    # One gap in a mixed block is not worth a second, smaller product.
    inside = (root[rows] == common) & (2 * sizes.max() >= len(rows))
    for some, others in (
        (rows[inside], columns[root[columns] != common]),
        (rows[~inside], columns),
    ):
        if len(some) and len(others):
            row, column = _where(near(some, others))
            _merge(root, some[row], others[column])


def _components(near: Near, cells: Cells, core: Bools) -> Ints:
    """Connect near core points: the least index in each point's component, shape ``(n,)``."""
    root = np.arange(len(core))
    members = [m[core[m]] for m in cells.members]
    for home, own in enumerate(members):
        for start in range(0, len(own), ROWS):
            rows = own[start : start + ROWS]
            for cell in range(home, len(members)):
                reaching = rows[cells.reach[rows, cell]]
                candidates = own[start:] if cell == home else members[cell]
                candidates = candidates[cells.reach[candidates, home]]
                for columns in _blocks(candidates, COLUMNS):
                    if len(reaching):
                        _join(near, root, reaching, columns)
    return root


def blocked_dbscan(
    points: NDArray[np.floating[Any]], counts: Ints, eps: float, min_samples: int
) -> Ints:
    """DBSCAN with scikit-learn's labels and memory linear in the number of points.

    Parameters
    ----------
    points
        Shape ``(n, d)``; computed with in float32, as embedding models give them.
    counts
        Shape ``(n,)``: how many equal points each row stands for, at least 1.
    eps
        Radius, above 0; Euclidean.
    min_samples
        Points within ``eps``, itself included, that make a core point; at least 1.

    Returns
    -------
    NDArray[np.int64]
        Shape ``(n,)``: clusters 0, 1, ... in the order of their first core point, -1 for noise.
        A point that is not core joins the first cluster that has a core point within ``eps``.
    """
    points32 = np.ascontiguousarray(points, dtype=np.float32)
    norms = np.einsum("ij,ij->i", points32, points32)
    near = Near(points32, norms / 2, eps)
    cells = _cells(points32, norms, eps)
    if min_samples <= 2:
        # Whoever has one neighbour is a core point: those are the components of two and more.
        root = _components(near, cells, np.ones(len(points32), dtype=bool))
        core = np.bincount(root, weights=counts)[root] >= min_samples
        pairs = np.empty((0, 2), dtype=np.int64)
    else:
        core, pairs = _core_points(near, cells, counts, min_samples)
        root = _components(near, cells, core)
    labels = np.full(len(points32), -1, dtype=np.int64)
    labels[core] = np.unique(root[core], return_inverse=True)[1]
    border = pairs[core[pairs[:, 1]]]
    first = np.full(len(points32), len(points32))
    np.minimum.at(first, border[:, 0], labels[border[:, 1]])
    reached = ~core & (first < len(points32))
    labels[reached] = first[reached]
    return labels

"""A suite's results, by cell: all that its tables and figures are made of."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from simulations.intervals import Mean, mean_share
from simulations.obstacles import obstacle
from simulations.outcome import Failure, Outcome, Results
from simulations.suite import AXES, Suite

Labels = tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """All seeds of one combination of groups.

    Attributes
    ----------
    labels : Labels
        One label for each of `AXES`.
    outcomes : Mapping[int, Outcome]
        Completed runs by seed.
    wanted : int
        Seeds that it is to have.
    missing : str
        Why there are none, or fewer than wanted: every reason once; empty if there are all.
    """

    labels: Labels
    outcomes: Mapping[int, Outcome]
    wanted: int
    missing: str

    def label(self, axis: str) -> str:
        """Return what the cell is on ``axis``."""
        return self.labels[AXES.index(axis)]

    @property
    def accuracy(self) -> Mean | None:
        """Held-out accuracy of the learned prompts; None without a run."""
        return self._mean([o.accuracy for o in self.outcomes.values()])

    @property
    def seed_accuracy(self) -> Mean | None:
        """Held-out accuracy of the seed prompt on the same examples; None without a run."""
        return self._mean([o.seed_accuracy for o in self.outcomes.values()])

    def accuracies(self) -> dict[int, float]:
        """Return the learned prompts' held-out accuracy by seed."""
        return {seed: outcome.accuracy for seed, outcome in self.outcomes.items()}

    def seed_accuracies(self) -> dict[int, float]:
        """Return the seed prompt's held-out accuracy by seed."""
        return {seed: outcome.seed_accuracy for seed, outcome in self.outcomes.items()}

    def curve(self) -> list[tuple[float, Mean]]:
        """Return mean queries and held-out accuracy after each round that every run measured."""
        curves = [{p.round: p for p in outcome.curve} for outcome in self.outcomes.values()]
        if not curves:
            return []
        points = []
        for number in sorted(set.intersection(*map(set, curves))):
            of_seeds = [curve[number] for curve in curves]
            queries = float(np.mean([point.queries for point in of_seeds]))
            points.append((queries, mean_share(np.array([point.accuracy for point in of_seeds]))))
        return points

    def ends(self) -> list[tuple[float, Mean]]:
        """Return mean queries and held-out accuracy before the first round and after the last.

        What the runs know at their end: a round may have no accuracy, these always have one.
        """
        if self.seed_accuracy is None or self.accuracy is None:
            return []
        queries = float(np.mean([outcome.queries for outcome in self.outcomes.values()]))
        return [(0.0, self.seed_accuracy), (queries, self.accuracy)]

    @staticmethod
    def _mean(values: Sequence[float]) -> Mean | None:
        return mean_share(np.array(values)) if values else None


@dataclass(frozen=True)
class Grid:
    """A suite and all of its cells."""

    suite: Suite
    cells: Mapping[Labels, Cell]

    def labels(self, axis: str) -> list[str]:
        """Return the labels of an axis; one empty label if the suite does not have it."""
        return list(self.suite.axis(axis)) or [""]

    def cell(self, **labels: str) -> Cell:
        """Return the cell of one label for each axis; an axis of one label may be left out."""
        return self.cells[tuple(labels.get(axis, self.labels(axis)[0]) for axis in AXES)]

    @property
    def compare(self) -> str:
        """The method that the others are compared with."""
        return self.suite.compare or self.labels("methods")[0]

    @property
    def num_runs(self) -> int:
        """Completed runs."""
        return sum(len(cell.outcomes) for cell in self.cells.values())

    @property
    def num_wanted(self) -> int:
        """Runs of the whole suite."""
        return sum(cell.wanted for cell in self.cells.values())


def read_grid(suite: Suite, results: Results) -> Grid:
    """Read all results of a suite that there are."""
    outcomes: dict[Labels, dict[int, Outcome]] = {}
    reasons: dict[Labels, list[str]] = {}
    wanted: Counter[Labels] = Counter()
    for labels in product(*(list(suite.axis(axis)) or [""] for axis in AXES)):
        outcomes[labels], reasons[labels] = {}, []
    for job in suite.jobs():
        wanted[job.labels] += 1
        found = results.read(job)
        if isinstance(found, Outcome):
            outcomes[job.labels][job.seed] = found
        elif isinstance(found, Failure):
            reasons[job.labels].append(f"failed: {found.reason}")
        else:
            reasons[job.labels].append(obstacle(job) or "not run yet")
    return Grid(
        suite,
        {
            labels: Cell(labels, found, wanted[labels], _each_once(reasons[labels]))
            for labels, found in outcomes.items()
        },
    )


def _each_once(reasons: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(reasons))

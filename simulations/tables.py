"""A suite's tables, as rows of text that Markdown and HTML both show."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from simulations.grid import Cell, Grid
from simulations.intervals import Mean, mean_share, paired
from simulations.outcome import Outcome

_INTERVAL = "with its 95 % interval by Student's t (of one seed, or of equal values, there is none)"
_FEWER = "in round brackets the number of seeds where it is less than the suite's"
_DIFFERENCES = f"Mean difference in accuracy over the seeds that both have, {_INTERVAL}; {_FEWER}."


@dataclass(frozen=True)
class Table:
    """A table with a heading and notes below.

    Attributes
    ----------
    title : str
        Heading.
    header : list[str]
        Names of the columns.
    rows : list[list[str]]
        Texts, as many in each row as the header has.
    notes : list[str]
        Sentences below it.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """Return the table in Markdown."""
        lines = [f"## {self.title}", "", _line(self.header), _line(["---"] * len(self.header))]
        lines += [_line(row) for row in self.rows]
        return "\n".join([*lines, "", *(f"{note}\n" for note in self.notes)])


class _Notes:
    """Numbers the reasons why cells are empty."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, reason: str) -> str:
        return f"[{self._numbers.setdefault(reason, len(self._numbers) + 1)}]"

    def lines(self) -> list[str]:
        return [f"[{number}] {reason}." for reason, number in self._numbers.items()]


def all_tables(grid: Grid) -> list[Table]:
    """Return every table that the suite's axes allow."""
    tables = list(accuracy_tables(grid))
    return [*tables, *paired_tables(grid), *partition_tables(grid), cost_table(grid)]


def accuracy_tables(grid: Grid) -> Iterator[Table]:
    """Yield a table of held-out accuracy, methods by tasks, for each model and partition."""
    tasks = grid.labels("tasks")
    for model, partition in _slices(grid):
        notes = _Notes()
        rows = []
        for name, method in _seed_prompts(grid):
            cells = [_seed_cell(grid, model, partition, task, method) for task in tasks]
            row = [_accuracy(grid, cell.seed_accuracy, cell, notes) for cell in cells]
            means = [_task_mean(grid, [cell.seed_accuracies() for cell in cells])] * (
                len(tasks) > 1
            )
            rows.append([name, *row, *means])
        for name, method, budget in variants(grid):
            cells = [
                grid.cell(
                    models=model, partitions=partition, tasks=t, methods=method, budgets=budget
                )
                for t in tasks
            ]
            rows.append([name, *(_accuracy(grid, cell.accuracy, cell, notes) for cell in cells)])
            if len(tasks) > 1:
                rows[-1].append(_task_mean(grid, [cell.accuracies() for cell in cells]))
        header = ["method", *(task or "accuracy" for task in tasks)]
        yield Table(
            _title("Held-out accuracy", grid, model, partition),
            header + ["mean"] * (len(tasks) > 1),
            rows,
            [
                f"Mean over seeds {_INTERVAL}, on {_held_out(grid)} examples that neither search "
                f"nor comparison of candidates has seen; {_FEWER}, in square ones why, unless the "
                "suite wants no more.",
                *notes.lines(),
            ],
        )


def paired_tables(grid: Grid) -> Iterator[Table]:
    """Yield a table of differences to the method of comparison, within seeds.

    The seed prompt is there as well: the manual prompt is what learning has to beat.
    """
    tasks = grid.labels("tasks")
    for model, partition in _slices(grid):
        rows = []
        for (seed_prompt, method), budget in product(_seed_prompts(grid), grid.labels("budgets")):
            place = {"models": model, "partitions": partition, "budgets": budget}
            cells = [grid.cell(**place, tasks=task, methods=method) for task in tasks]
            theirs = [cell.seed_accuracies() for cell in cells]
            row = _task_differences(grid, theirs, place)
            rows.append([_with_budget(grid, seed_prompt, budget), *row])
        for name, method, budget in variants(grid):
            if method == grid.compare:
                continue
            place = {"models": model, "partitions": partition, "budgets": budget}
            cells = [grid.cell(**place, tasks=task, methods=method) for task in tasks]
            theirs = [cell.accuracies() for cell in cells]
            rows.append([name, *_task_differences(grid, theirs, place)])
        ours_name = grid.suite.what("methods", grid.compare) or "FedDTPT"
        yield Table(
            _title(f"Minus “{ours_name}”", grid, model, partition),
            ["method", *(task or "difference" for task in tasks)] + ["mean"] * (len(tasks) > 1),
            rows,
            [_DIFFERENCES],
        )


def partition_tables(grid: Grid) -> Iterator[Table]:
    """Yield a table of every method's differences to the first partition, within seeds."""
    first, *others = grid.labels("partitions")
    tasks = grid.labels("tasks")
    for model, partition in product(grid.labels("models"), others):
        rows = []
        for name, method, budget in variants(grid):
            row = [name]
            for task in tasks:
                place = {"models": model, "tasks": task, "methods": method, "budgets": budget}
                theirs = grid.cell(**place, partitions=partition).accuracies()
                ours = grid.cell(**place, partitions=first).accuracies()
                row.append(_difference(grid, theirs, ours))
            rows.append(row)
        what = [grid.suite.what("partitions", label) for label in (partition, first)]
        yield Table(
            _title(f"“{what[0]}” minus “{what[1]}”", grid, model, ""),
            ["method", *(task or "difference" for task in tasks)],
            rows,
            [_DIFFERENCES],
        )


def _difference(grid: Grid, theirs: Mapping[int, float], ours: Mapping[int, float]) -> str:
    return _of_seeds(paired(theirs, ours), "+.3f", len(grid.suite.seeds))


def cost_table(grid: Grid) -> Table:
    """Return what every variant asked, exchanged and tuned, on average over its runs."""
    rows = []
    several = len(_slices(grid)) > 1
    for model, partition in _slices(grid):
        for name, method, budget in variants(grid):
            place = {"models": model, "partitions": partition, "methods": method, "budgets": budget}
            cells = [grid.cell(**place, tasks=task) for task in grid.labels("tasks")]
            runs = [outcome for cell in cells for outcome in cell.outcomes.values()]
            where = f"{' / '.join(p for p in (model, partition) if p)}: " if several else ""
            rows.append([where + name, *(_costs(runs) if runs else ["-"] * 6)])
    return Table(
        "Cost",
        [
            "method",
            "numbers tuned",
            "bytes per round",
            "bytes in all",
            "queries of the clients",
            "seconds",
            "peak MiB",
        ],
        rows,
        [
            "Means over the completed runs. Bytes are the content of all messages of all clients, "
            "both ways; of a soft prompt, those of the arrays alone. What is tuned are the learned "
            "prompt's token ids; of a soft prompt, its numbers. "
            "Seconds say little where runs were at work side by side, in one process or on "
            "different machines. "
            "Peak MiB is the most memory that all processes of a run took together at one of many "
            "looks, on average over the runs in which it was measured; it is not in a process that "
            "several runs have in common. A page that processes share is divided among them, also "
            "among those of other runs."
        ],
    )


def transfer_table(grid: Grid, accuracies: dict[tuple[str, str, str], dict[int, float]]) -> Table:
    """Return how prompts learned on one model do on the others.

    Parameters
    ----------
    accuracies : dict
        Held-out accuracy by seed, for (model learned on, model asked, task).
    """
    models, tasks = grid.labels("models"), grid.labels("tasks")
    rows = []
    for task in tasks:
        row = [", ".join(filter(None, ["the seed prompt", task]))]
        for target in models:
            cell = grid.cell(models=target, tasks=task, methods=grid.compare)
            row.append(_of_seeds(cell.seed_accuracy, ".3f", len(grid.suite.seeds)))
        rows.append(row)
    for source, task in product(models, tasks):
        row = [", ".join(filter(None, [grid.suite.what("models", source), task]))]
        for target in models:
            values = [*accuracies.get((source, target, task), {}).values()]
            found = mean_share(np.array(values)) if values else None
            row.append(_of_seeds(found, ".3f", len(grid.suite.seeds)))
        rows.append(row)
    header = [grid.suite.what("models", model) for model in models]
    return Table(
        "Transfer: the prompt as it is, on another model",
        ["learned on", *header],
        rows,
        [
            f"Accuracy of “{grid.suite.what('methods', grid.compare)}” on the same held-out "
            f"examples, mean over seeds {_INTERVAL}; {_FEWER}; - where no run is behind it."
        ],
    )


def _costs(runs: Sequence[Outcome]) -> list[str]:
    peaks = [run.peak_mib for run in runs if run.peak_mib is not None]
    return [
        f"{np.mean([run.num_parameters for run in runs]):,.1f}",
        f"{np.mean([size for run in runs for size in run.num_bytes]):,.0f}",
        f"{np.mean([sum(run.num_bytes) for run in runs]):,.0f}",
        f"{np.mean([run.queries for run in runs]):,.0f}",
        f"{np.mean([run.seconds for run in runs]):,.0f}",
        f"{np.mean(peaks):,.0f}" if peaks else "-",
    ]


def _slices(grid: Grid) -> list[tuple[str, str]]:
    return list(product(grid.labels("models"), grid.labels("partitions")))


def variants(grid: Grid) -> list[tuple[str, str, str]]:
    """Return name, method and budget of every row."""
    rows = []
    for method, budget in product(grid.labels("methods"), grid.labels("budgets")):
        name = grid.suite.what("methods", method) or "FedDTPT"
        rows.append((_with_budget(grid, name, budget), method, budget))
    return rows


def _with_budget(grid: Grid, name: str, budget: str) -> str:
    several = len(grid.labels("budgets")) > 1
    return f"{name}, {grid.suite.what('budgets', budget)}" if several else name


def _seed_prompts(grid: Grid) -> list[tuple[str, str]]:
    """Return a name and a method for each of the seed prompts that runs begin with."""
    methods = grid.suite.methods
    prompts = {str(settings.get("seed-prompt", "")) for settings in methods.values()}
    if len(prompts) < 2:
        return [("seed prompt", grid.compare)]
    return [(f"seed prompt of “{grid.suite.what('methods', m)}”", m) for m in methods]


def _seed_cell(grid: Grid, model: str, partition: str, task: str, method: str) -> Cell:
    """Return the cell that tells most of the accuracy of a method's seed prompt."""
    cells = [
        grid.cell(models=model, partitions=partition, tasks=task, methods=method, budgets=budget)
        for budget in grid.labels("budgets")
    ]
    return max(cells, key=lambda cell: len(cell.outcomes))


def _title(what: str, grid: Grid, model: str, partition: str) -> str:
    parts = [
        grid.suite.what(axis, label)
        for axis, label in (("models", model), ("partitions", partition))
        if label
    ]
    return ", ".join([what, *parts])


def _held_out(grid: Grid) -> str:
    numbers = {o.held_out for cell in grid.cells.values() for o in cell.outcomes.values()}
    return " to ".join(f"{n:,}" for n in sorted({min(numbers), max(numbers)})) if numbers else "no"


def _accuracy(grid: Grid, value: Mean | None, cell: Cell, notes: _Notes) -> str:
    if value is None:
        return notes.mark(cell.missing)
    shown = _of_seeds(value, ".3f", len(grid.suite.seeds))
    return f"{shown} {notes.mark(cell.missing)}" if cell.missing else shown


def _over_tasks(of_tasks: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Return the mean over the tasks of each seed that all of them have."""
    seeds = set.intersection(*(set(of_task) for of_task in of_tasks))
    return {seed: float(np.mean([of_task[seed] for of_task in of_tasks])) for seed in sorted(seeds)}


def _task_mean(grid: Grid, of_tasks: Sequence[Mapping[int, float]]) -> str:
    """Return the mean over tasks and seeds, and its interval over the seeds."""
    values = np.array(list(_over_tasks(of_tasks).values()))
    return _of_seeds(mean_share(values) if len(values) else None, ".3f", len(grid.suite.seeds))


def _task_differences(
    grid: Grid, theirs: Sequence[Mapping[int, float]], place: Mapping[str, str]
) -> list[str]:
    """Return the differences to the method of comparison on each task, and of the tasks' means."""
    tasks = grid.labels("tasks")
    ours = [grid.cell(**place, tasks=task, methods=grid.compare).accuracies() for task in tasks]
    cells = [_difference(grid, *pair) for pair in zip(theirs, ours, strict=True)]
    if len(tasks) > 1:
        cells.append(_difference(grid, _over_tasks(theirs), _over_tasks(ours)))
    return cells


def _of_seeds(value: Mean | None, form: str, wanted: int) -> str:
    """Return a mean with its interval, and of how many seeds it is where that is fewer."""
    if value is None:
        return "-"
    text = format(value.value, form)
    if value.low != value.high:
        text += f" [{format(value.low, form)}, {format(value.high, form)}]"
    return text if value.number == wanted else f"{text} ({value.number})"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"

"""A suite's figures: accuracy against queries, and the tokens that the server's step sees."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from simulations.clusters import TokenMap
from simulations.grid import Grid
from simulations.intervals import Mean, bootstrap_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[float, Mean]

_COLOURS = [f"C{number}" for number in range(10) if number != 7]
"""Of clusters; C7 is the grey of tokens in none. Where a colour comes again, the place tells."""

LINES = (("-", "o"), ("--", "s"), (":", "^"))
"""Dashes and marks of the first ten curves, which have a colour each, of the next, and so on."""

HALF_A_LINE = 60
"""Letters of a method's name below a figure that leave room for another beside it."""

HEAVIEST = 5
"""Tokens whose weights a map tells."""


@dataclass(frozen=True)
class Drawing:
    """A figure and what to call it: ``name`` in files, ``title`` and ``caption`` to read."""

    name: str
    title: str
    caption: str
    figure: "Figure"


def curves(grid: Grid) -> Iterator[Drawing]:
    """Draw held-out accuracy against queries, one figure for each model, partition and task.

    With several budgets a method's points are its results with each; otherwise, those of each
    round.
    """
    from matplotlib.figure import Figure

    for model, partition, task in product(*map(grid.labels, ("models", "partitions", "tasks"))):
        lines = [
            (grid.suite.what("methods", method) or "FedDTPT", points)
            for method in grid.labels("methods")
            if (points := _points(grid, model, partition, task, method))
        ]
        if not lines:
            continue
        columns = 2 if max(len(name) for name, _ in lines) <= HALF_A_LINE else 1
        figure = Figure(figsize=(8.5, 4.2 + 0.24 * len(lines) / columns), layout="constrained")
        axes = figure.subplots()
        for index, (name, points) in enumerate(lines):
            _curve(axes, points, name, index)
        axes.set_xlabel("LLM queries of all clients")
        axes.set_ylabel("held-out accuracy")
        axes.grid(alpha=0.3)
        # Below the axes: many methods would be covered by their names.
        figure.legend(fontsize=8, loc="outside lower center", frameon=False, ncols=columns)
        labels = [label for label in (model, partition, task) if label]
        yield Drawing(
            "-".join(["accuracy", *labels]),
            ", ".join(["Accuracy against queries", *labels]),
            "Mean over seeds; bands are 95 % intervals by Student's t at each point.",
            figure,
        )


def _points(grid: Grid, model: str, partition: str, task: str, method: str) -> list[Point]:
    place = {"models": model, "partitions": partition, "tasks": task, "methods": method}
    cells = [grid.cell(**place, budgets=budget) for budget in grid.labels("budgets")]
    if len(cells) == 1:
        return cells[0].curve()
    start = max(cells, key=lambda cell: len(cell.outcomes)).ends()[:1]
    ends = [cell.ends()[-1] for cell in cells if cell.outcomes]
    return sorted([*start, *ends], key=lambda point: point[0])


def _curve(axes: "Axes", points: list[Point], label: str, index: int) -> None:
    (line, mark), colour = LINES[index // 10 % len(LINES)], f"C{index % 10}"
    queries = [queries for queries, _ in points]
    means = [mean for _, mean in points]
    axes.plot(queries, [m.value for m in means], line, marker=mark, ms=4, label=label, color=colour)
    axes.fill_between(
        queries, [m.low for m in means], [m.high for m in means], alpha=0.1, color=colour, lw=0
    )


def seeds_and_means(rows: Mapping[str, Sequence[float]], start: float) -> "Figure":
    """Draw a line for each row: a dot for every seed, the mean and its bootstrap interval.

    The interval is that of the tables of `simulations.kept_runs`, which it stands beside.

    Parameters
    ----------
    rows : Mapping[str, Sequence[float]]
        Name to held-out accuracies by seed, at least one, in [0, 1]; the first is at the top.
    start : float
        The seed prompt's accuracy, drawn as a line across.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 1.1 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(start, color="grey", linestyle=":", label="seed prompt")
    for place, values in enumerate(rows.values()):
        found = bootstrap_mean(np.array(values))
        axes.plot(values, [place] * len(values), "o", color="C0", alpha=0.35, markersize=5)
        axes.plot([found.low, found.high], [place, place], color="C0", linewidth=2)
        axes.plot(found.value, place, "D", color="C0", markersize=6)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.margins(y=0.2)
    axes.invert_yaxis()
    axes.set_xlabel("held-out accuracy: every seed, the mean and its 95 % bootstrap interval")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8, loc="lower left", frameon=False)
    return figure


def token_map(name: str, title: str, tokens: TokenMap) -> Drawing:
    """Draw the uploaded tokens in two dimensions: clusters by colour, attention by size.

    The area grows with the weight's logarithm: among many clients all but one of a prompt's tokens
    have a weight of about zero.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    axes.margins(0.12)  # room for the texts
    noise = tokens.labels < 0
    x, y = tokens.points.T
    above = tokens.log_weights - tokens.log_weights.min()
    sizes = 20 + 180 * above / (above.max() or 1)
    label = "noise" if tokens.clustered else "tokens"
    axes.scatter(x[noise], y[noise], s=sizes[noise], c="0.75", marker="x", lw=1, label=label)
    axes.scatter(
        x[~noise],
        y[~noise],
        s=sizes[~noise],
        c=[_COLOURS[label % len(_COLOURS)] for label in tokens.labels[~noise]],
        alpha=0.7,
        lw=0,
    )
    seen: set[tuple[str, int]] = set()
    for text, point, cluster, kept in zip(
        tokens.texts, tokens.points, tokens.labels, tokens.kept, strict=True
    ):
        # Copies of a token lie on top of each other: one caption for all, bold if it was chosen.
        if kept or (text, int(cluster)) not in seen:
            seen.add((text, int(cluster)))
            axes.annotate(
                text.strip().replace("$", r"\$"),
                (float(point[0]), float(point[1])),
                textcoords="offset points",
                xytext=(4, 3),
                fontsize=9 if kept else 7,
                fontweight="bold" if kept else "normal",
                color="black" if kept else "0.45",
            )
    axes.set_xlabel(f"first principal component ({tokens.explained[0]:.0%} of the variance)")
    axes.set_ylabel(f"second ({tokens.explained[1]:.0%})")
    if noise.any():
        axes.legend(fontsize=8)
    return Drawing(
        name,
        title,
        f"The {len(tokens.texts)} tokens of the last prompts that {tokens.num_prompts} clients "
        "uploaded, as the server embeds them. A colour is a cluster, an area the logarithm of the "
        "attention weight, bold are the tokens of the prompt that the server's step makes of them. "
        f"Heaviest, as times the mean of their prompt: {_heaviest(tokens)}.",
        figure,
    )


def _heaviest(tokens: TokenMap) -> str:
    weights: dict[str, float] = {}
    for text, weight in zip(tokens.texts, np.exp(tokens.log_weights).tolist(), strict=True):
        weights[text.strip()] = max(weight, weights.get(text.strip(), 0.0))
    ranked = sorted(weights.items(), key=lambda item: -item[1])[:HEAVIEST]
    return ", ".join(f"“{text}” {weight:.2g}" for text, weight in ranked)

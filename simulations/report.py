"""A suite's report: Markdown with figures, and one HTML page that holds everything."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from feddtpt_flwr.assets import AssetError
from feddtpt_flwr.config import ConfigError
from feddtpt_flwr.data import DataError
from feddtpt_flwr.language_model.base import ModelError
from simulations import clusters, figures
from simulations.figures import Drawing
from simulations.grid import Grid, read_grid
from simulations.outcome import Outcome, Results, write_atomically
from simulations.perplexity import perplexity_table
from simulations.prompts import Piece, highlight
from simulations.records import SETTINGS, Record, as_record, place_of, read_records
from simulations.stamp import as_text
from simulations.suite import Suite
from simulations.tables import Table, all_tables, transfer_table
from simulations.transfer import known_transfer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKS = re.compile(r"([\\`*_\[\]{}#~$])")
"""What Markdown would not show as it is."""

MOST_MAPS = 8
"""Token maps in a report."""


class ReportError(ValueError):
    """A report would take away what an earlier one has; the message names the file."""


@dataclass(frozen=True)
class PromptPair:
    """A run's prompt before and after; accuracies in [0, 1]."""

    run: str
    before: list[Piece]
    after: list[Piece]
    accuracy_before: float
    accuracy_after: float


Run = Record
"""A run's place in the suite, what it gave, and its run folder below the suite's results."""


@dataclass(frozen=True)
class Content:
    """All that a report shows; ``made`` is when, where and with what its runs were made."""

    suite: Suite
    made: str
    num_runs: int
    num_wanted: int
    tables: list[Table]
    drawings: list[Drawing]
    maps: list[Drawing]
    prompts: list[PromptPair]
    runs: list[Run]


def write_report(suite: Suite, results: Results, folder: Path, *, force: bool = False) -> Path:
    """Write ``report.md``, ``report.html`` and every figure as PNG and SVG to ``folder``.

    Beside the folder, under its name, is a JSON file with all runs.

    Parameters
    ----------
    suite : Suite
        The runs.
    results : Results
        Where they are kept.
    folder : Path
        For the report.
    force : bool
        Whether a report of other runs is overwritten.

    Returns
    -------
    Path
        The HTML page.

    Raises
    ------
    ReportError
        If there is a report of runs that this one would not have; nothing was written then.
    """
    folder = folder.resolve()
    content = collect(read_grid(suite, results), results)
    folder.mkdir(parents=True, exist_ok=True)
    # Another report may be written at the same time: what it has is not to be lost either.
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        return _write(content, results, folder, force=force)


def _write(content: Content, results: Results, folder: Path, *, force: bool) -> Path:
    runs_file = folder.with_name(f"{folder.name}.json")
    if not force and (lost := _lost(runs_file, content.runs)):
        raise ReportError(
            f"{runs_file} holds {len(lost):,} runs that the new report would not, such as "
            f"{lost[0]!r}: their folders are not in {results.folder} (see --kept), or their "
            "settings are others now; --force overwrites them"
        )
    for drawing in (*content.drawings, *content.maps):
        drawing.figure.savefig(folder / f"{drawing.name}.png", dpi=120)
        write_atomically(folder / f"{drawing.name}.svg", svg(drawing.figure))
    write_atomically(folder / "report.md", markdown(content))
    write_atomically(runs_file, runs_json(content))
    page = folder / "report.html"
    write_atomically(page, html(content))
    return page


def _lost(file: Path, runs: Iterable[Run]) -> list[str]:
    """Return which runs of an earlier report's file are none of ``runs``."""
    if not file.exists():
        return []
    try:
        kept = read_records(file)
    except ValueError as error:
        raise ReportError(f"{error}; --force overwrites it all the same") from None
    # Of some it is not known what their settings were.
    written = {place_of(run): run.get(SETTINGS) for run in runs}
    return [
        place
        for record in kept
        if (place := place_of(record)) not in written
        or record.get(SETTINGS, written[place]) != written[place]
    ]


def collect(grid: Grid, results: Results) -> Content:
    """Make everything that a report shows."""
    tables = all_tables(grid)
    if grid.suite.transfer:
        tables.append(transfer_table(grid, known_transfer(grid, results)))
    if table := perplexity_table(grid):
        tables.append(table)
    runs = [outcome for cell in grid.cells.values() for outcome in cell.outcomes.values()]
    return Content(
        grid.suite,
        when_and_where(outcome.made for outcome in runs),
        grid.num_runs,
        grid.num_wanted,
        tables,
        list(figures.curves(grid)),
        list(_token_maps(grid)),
        list(_prompts(grid)),
        list(_runs(grid, results.shared)),
    )


def when_and_where(stamps: Iterable[Mapping[str, Any]]) -> str:
    """Return from when to when runs were made on each machine and with each set of versions.

    Parameters
    ----------
    stamps : Iterable[Mapping[str, Any]]
        Of each run, as `simulations.stamp.stamp` gives it.
    """
    dates: dict[tuple[str, tuple[tuple[str, str], ...]], list[str]] = {}
    commits: dict[tuple[str, tuple[tuple[str, str], ...]], list[str]] = {}
    for made in stamps:
        place = made["machine"], tuple(made["versions"].items())
        dates.setdefault(place, []).append(made["date"])
        commits.setdefault(place, []).append(made.get("commit", ""))
    texts = [
        as_text(
            {
                "date": " to ".join(sorted({min(of_place), max(of_place)})),
                "machine": machine,
                "versions": dict(versions),
                "commit": _commits(commits[machine, versions]),
            }
        )
        for (machine, versions), of_place in dates.items()
    ]
    return "; ".join(sorted(texts)) or "none made yet"


def _commits(of_runs: Sequence[str]) -> str:
    """Return the commits of some runs, and of how many of them it is not known."""
    known = ", ".join(sorted(set(filter(None, of_runs))))
    unknown = of_runs.count("")
    return f"{known} (of {unknown} runs not known)" if known and unknown else known


def markdown(content: Content) -> str:
    """Return the report in Markdown."""
    suite = content.suite
    lines = [
        f"# {suite.title}",
        "",
        suite.question,
        "",
        f"{content.num_runs:,} of {content.num_wanted:,} runs; {content.made}; "
        f"`python -m simulations run {suite.name}`. Every run, with the name of its folder: "
        f"[{suite.name}.json](../{suite.name}.json).",
        "",
    ]
    lines += [table.markdown() for table in content.tables]
    for drawing in (*content.drawings, *content.maps):
        lines += [f"## {drawing.title}", "", f"![{drawing.title}]({drawing.name}.png)", ""]
        lines += [drawing.caption, ""]
    if content.prompts:
        rows = [
            [
                pair.run,
                _marked(pair.before),
                _marked(pair.after),
                f"{pair.accuracy_before:.3f}",
                f"{pair.accuracy_after:.3f}",
            ]
            for pair in content.prompts
        ]
        lines.append(
            Table(
                "Prompts", ["run", "before", "after", "accuracy before", "after"], rows
            ).markdown()
        )
    return "\n".join(lines)


def runs_json(content: Content) -> str:
    """Return every completed run, for other tables than the report's, and to add runs to."""
    head = {"suite": content.suite.name, "made": content.made, "wanted": content.num_wanted}
    return json.dumps({**head, "runs": content.runs}, indent=1) + "\n"


def html(content: Content) -> str:
    """Return the report as one page that needs nothing else."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,  # prompts and errors are text, whatever they look like
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = svg
    return environment.get_template("report.html").render(content=content)


def svg(figure: "Figure") -> str:
    """Return a figure as SVG without a preamble, the same for the same figure."""
    from matplotlib import rc_context

    text = StringIO()
    with rc_context(
        {"svg.hashsalt": "feddtpt", "svg.fonttype": "none", "font.family": "sans-serif"}
    ):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return re.sub(r"^.*?(?=<svg)", "", text.getvalue(), count=1, flags=re.DOTALL)


def _token_maps(grid: Grid) -> Iterator[Drawing]:
    """Draw the last uploads of the compared method, for each model and task.

    Those of its first seed whose run folder is here.
    """
    made = 0
    axes = ("models", "partitions", "tasks", "budgets")
    for model, partition, task, budget in product(*map(grid.labels, axes)):
        place = {"models": model, "partitions": partition, "tasks": task, "budgets": budget}
        outcomes = grid.cell(**place, methods=grid.compare).outcomes
        here = [seed for seed, outcome in outcomes.items() if outcome.is_here]
        if not here or made == MOST_MAPS:
            continue
        seed = min(here)
        try:
            tokens = clusters.token_map(outcomes[seed])
        except (ConfigError, DataError, AssetError, ModelError):
            continue  # its models are on another machine
        if tokens is not None:
            made += 1
            labels = [label for label in place.values() if label]
            name = "-".join(["tokens", *labels, f"seed{seed}"])
            title = ", ".join(["What the server's step sees", *labels, f"seed {seed}"])
            yield figures.token_map(name, title, tokens)


def _prompts(grid: Grid) -> Iterator[PromptPair]:
    for cell in grid.cells.values():
        for seed, outcome in sorted(cell.outcomes.items()):
            yield _pair(" / ".join([*filter(None, cell.labels), f"seed {seed}"]), outcome)


def _runs(grid: Grid, folder: Path) -> Iterator[Run]:
    jobs = {(job.labels, job.seed): job for job in grid.suite.jobs()}
    for cell in grid.cells.values():
        for seed, outcome in sorted(cell.outcomes.items()):
            yield as_record(outcome, jobs[cell.labels, seed], folder)


def _pair(run: str, outcome: Outcome) -> PromptPair:
    before, after = highlight(outcome.seed_prompt, outcome.prompt)
    return PromptPair(run, before, after, outcome.seed_accuracy, outcome.accuracy)


def _marked(pieces: list[Piece]) -> str:
    """Return a prompt in Markdown, with what has changed in bold; marks in it are but text."""
    return "".join(
        f"{p.space}<b>{_plain(p.words)}</b>" if p.changed else _plain(p.text) for p in pieces
    )


def _plain(text: str) -> str:
    return _MARKS.sub(r"\\\1", escape(text, quote=False))

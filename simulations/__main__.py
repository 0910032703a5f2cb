"""``python -m simulations``: suites of runs, their reports, and benchmarks."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from feddtpt_flwr.assets import AssetError
from feddtpt_flwr.data import DataError
from feddtpt_flwr.language_model import ModelError
from simulations import (
    deployment,
    federation,
    fedpit,
    privacy,
    runner,
    seeds,
    server_steps,
)
from simulations.bench_cli import bench
from simulations.outcome import Results
from simulations.records import Kept
from simulations.report import ReportError, write_report
from simulations.runner import plan
from simulations.suite import Suite, SuiteError, load_suite, most_queries
from simulations.transfer import transfer

RUNS = seeds.RUNS / "suites"

KEPT_HELP = "Count the runs of the reports in simulations/results as completed."
SEED_HELP = "A seed; may be given several times. Default: 0 to 4."

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # they may hold what must not be printed
    help="Suites of runs, their reports, and benchmarks.",
)
app.add_typer(bench, name="bench")


@app.command("run")
def run_suite(
    name: Annotated[str, typer.Argument(metavar="SUITE", help="A suite's name or .toml file.")],
    jobs: Annotated[int, typer.Option(min=1, help="Runs at the same time.")] = 1,
    only: Annotated[
        list[str] | None, typer.Option(help="A label; of one axis, runs have one of those given.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="The first so many of the suite's seeds.")
    ] = None,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Do without SuperLink and Ray.")
    ] = False,
    folder: Annotated[Path, typer.Option(help="Where run folders go.")] = RUNS,
    kept: Annotated[bool, typer.Option("--kept", help=KEPT_HELP)] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run.")] = False,
) -> None:
    """Run what a suite lacks; interrupted, the next call goes on."""
    suite = _suite(name)
    results = _results(suite, folder, kept)
    console = Console(stderr=True)
    try:
        if dry_run:
            left = plan(suite.jobs(only or (), seeds=seeds), results)
            queries = sum(most_queries(job) for job in left.to_run)
            console.print(
                f"{len(left.done)} runs completed, {len(left.to_run)} to run with at most "
                f"{queries:,} queries of clients, {len(left.impossible)} cannot be run here"
            )
            for why, number in sorted(Counter(left.impossible.values()).items()):
                console.print(f"- {number}: {why}", markup=False, highlight=False)
            return
        left = runner.run_suite(
            suite,
            results,
            only=only or (),
            seeds=seeds,
            jobs=jobs,
            in_process=in_process,
            console=console,
        )
        if suite.transfer:
            chosen = suite.jobs(only or (), seeds=seeds)
            transfer(suite, results, chosen, lambda line: console.print(line, markup=False))
    except (AssetError, ModelError) as error:
        console.print(f"{error}; what was asked is kept, the same command goes on", markup=False)
        raise typer.Exit(1) from None
    except (SuiteError, DataError) as error:
        raise typer.BadParameter(str(error)) from None
    except KeyboardInterrupt:
        console.print("interrupted; what has completed is kept, the same command goes on")
        raise typer.Exit(130) from None
    if left.to_run:
        console.print(
            f"{len(left.to_run)} runs are not complete; the same command tries them again"
        )
        raise typer.Exit(1)


@app.command("report")
def report_suite(
    name: Annotated[str, typer.Argument(metavar="SUITE", help="A suite's name or .toml file.")],
    folder: Annotated[Path, typer.Option(help="Where run folders are.")] = RUNS,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the report; by default among the results.")
    ] = None,
    kept: Annotated[bool, typer.Option("--kept", help=KEPT_HELP)] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite a report of other runs, too.")
    ] = False,
) -> None:
    """Write a suite's tables and figures in Markdown, and one HTML page."""
    suite = _suite(name)
    output = output or seeds.RESULTS / suite.name
    try:
        page = write_report(suite, _results(suite, folder, kept), output, force=force)
    except ReportError as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from None
    typer.echo(page)


def _results(suite: Suite, folder: Path, kept: bool) -> Results:
    if not kept:
        return Results(folder / suite.name, shared=folder)
    if suite.transfer:
        raise typer.BadParameter(
            f"suite {suite.name}: its report does not hold what other models answered",
            param_hint="--kept",
        )
    try:
        records = Kept(seeds.RESULTS, suite.name)
        unlike = records.unlike(suite)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--kept") from None
    if unlike:
        typer.echo(
            f"{len(unlike):,} runs of {seeds.RESULTS / suite.name}.json do not count, such as "
            f"{unlike[0]!r}: they are on files, or have other settings than now",
            err=True,
        )
    return Results(folder / suite.name, shared=folder, kept=records)


def _suite(name: str) -> Suite:
    try:
        return load_suite(name)
    except SuiteError as error:
        raise typer.BadParameter(str(error)) from None


@app.command("deployment")
def run_deployment(
    rounds: Annotated[int, typer.Option(min=5, help="Rounds; a fault in each of the first 5.")] = 5,
    k_shot: Annotated[int, typer.Option(min=1, help="Examples per class and node.")] = 4,
    queries: Annotated[int, typer.Option(min=1, help="Queries of a node's search.")] = 60,
    test_size: Annotated[int, typer.Option(min=1, help="Held-out examples.")] = 100,
    folder: Annotated[Path, typer.Option(help="Where the table goes.")] = seeds.RESULTS,
) -> None:
    """Kill and restart a deployment's processes; compare what it learns with an undisturbed run."""
    settings = {
        "num-server-rounds": rounds,
        "k-shot": k_shot,
        "queries-per-round": queries,
        "test-size": test_size,
        "public-per-class": 0,
        "race-candidates": 2,
    }
    typer.echo(deployment.run(settings, folder))


@app.command("privacy")
def run_privacy(
    seed: Annotated[list[int] | None, typer.Option(help=SEED_HELP)] = None,
    folder: Annotated[Path, typer.Option(help="Where the table goes.")] = seeds.RESULTS,
) -> None:
    """Measure what uploads give away of private texts, with and without each defence."""
    typer.echo(privacy.run(seed or list(range(5)), folder))


@app.command("federation")
def run_federation(
    variant: Annotated[
        list[str] | None, typer.Option(help=f"One of: {'; '.join(federation.VARIANTS)}.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help=SEED_HELP)] = None,
    folder: Annotated[Path, typer.Option(help="Where the table goes.")] = seeds.RESULTS,
) -> None:
    """Compare a federation with its members, rivals and bad clients; missing runs only."""
    variants = _known(variant, federation.VARIANTS)
    typer.echo(federation.run(seed or list(range(5)), folder, variants))


@app.command("steps")
def run_steps(
    variant: Annotated[
        list[str] | None, typer.Option(help=f"One of: {'; '.join(server_steps.VARIANTS)}.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help=SEED_HELP)] = None,
    folder: Annotated[Path, typer.Option(help="Where the table goes.")] = seeds.RESULTS,
) -> None:
    """Compare what ways of the server's step make of the same uploads; missing ones only."""
    variants = _known(variant, server_steps.VARIANTS)
    typer.echo(server_steps.run(seed or list(range(5)), folder, variants))


def _known(variant: list[str] | None, variants: Mapping[str, Any]) -> list[str]:
    if unknown := set(variant or ()) - variants.keys():
        known = "; ".join(variants)
        raise typer.BadParameter(f"{min(unknown)!r} is none of: {known}", param_hint="--variant")
    return variant or list(variants)


@app.command("seeds")
def run_seeds(
    name: Annotated[str, typer.Argument(help="Name of the results' files.")] = "demo",
    seed: Annotated[
        list[int] | None, typer.Option(help="A seed; may be given several times. Default: 0 to 2.")
    ] = None,
    run_config: Annotated[
        list[str] | None, typer.Option("--run-config", "-c", help="Settings for every run.")
    ] = None,
    num_clients: Annotated[int, typer.Option(min=1, help="Simulated clients.")] = 4,
    folder: Annotated[Path, typer.Option(help="Where the table goes.")] = seeds.RESULTS,
) -> None:
    """Run the app once for each seed and write a table of what was learned."""
    seeds.run(name, seed or [0, 1, 2], run_config or [], num_clients, folder)


@app.command("fedpit")
def run_fedpit(
    method: Annotated[
        list[str] | None, typer.Option(help=f"One of: {', '.join(fedpit.METHODS)}.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help=SEED_HELP)] = None,
    folder: Annotated[Path, typer.Option(help="Where the table goes.")] = seeds.RESULTS,
) -> None:
    """Compare what FedPIT's beta costs in utility and saves in leakage; missing runs only."""
    unknown = set(method or ()) - fedpit.METHODS.keys()
    if unknown:
        raise typer.BadParameter(
            f"no method {sorted(unknown)[0]!r}; there are: {', '.join(fedpit.METHODS)}"
        )
    chosen = method or [name for name in fedpit.METHODS if name.startswith("beta")]
    typer.echo(fedpit.run(chosen, seed or list(range(5)), folder))


if __name__ == "__main__":
    app()

"""``python -m simulations``: suites of runs, their reports, and benchmarks."""

import json
import sys
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from feddtpt_flwr.assets import AssetError
from feddtpt_flwr.data import DataError
from feddtpt_flwr.language_model import ModelError
from simulations import (
    bench_aggregation,
    bench_choices,
    bench_endpoint,
    bench_evaluation,
    bench_labels,
    bench_message,
    bench_overhead,
    bench_profile,
    bench_races,
    bench_startup,
    bench_tally,
    deployment,
    federation,
    fedpit,
    privacy,
    runner,
    scaling,
    seeds,
    server_steps,
)
from simulations.outcome import Results
from simulations.report import ReportError, write_report
from simulations.runner import plan
from simulations.suite import Suite, SuiteError, load_suite, most_queries
from simulations.transfer import transfer

RUNS = seeds.RUNS / "suites"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # they may hold what must not be printed
    help=__doc__,
)
bench = typer.Typer(no_args_is_help=True, help="Time and memory of one part.")
app.add_typer(bench, name="bench")


class Device(StrEnum):
    """What computes."""

    CPU = "cpu"
    CUDA = "cuda"


ComputingDevice = Annotated[Device, typer.Option(help="What computes.")]
JsonFile = Annotated[
    typer.FileTextWrite, typer.Option("--json", help="File for the figures; - prints them.")
]


def _write(file: typer.FileTextWrite, result: Mapping[str, Any], table: str) -> None:
    """Write the figures, and show their table; keep it beside a file."""
    file.write(json.dumps(result, indent=2) + "\n")
    if (path := Path(file.name)).suffix == ".json":
        path.with_suffix(".md").write_text(table, encoding="utf-8")
    typer.echo(table, err=True)


@bench.command("aggregation")
def aggregation(
    clients: Annotated[int, typer.Option(min=1, help="Clients that upload a prompt.")] = 1000,
    file: JsonFile = sys.stdout,  # type: ignore[assignment]
) -> None:
    """Time the server's step on synthetic uploads, and the quadratic way as far as it goes."""
    file.write(json.dumps(bench_aggregation.run(clients), indent=2) + "\n")


@bench.command("evaluation")
def evaluation(
    queries: Annotated[
        int, typer.Option(min=16, max=bench_evaluation.MOST_QUERIES, help="Queries in each turn.")
    ] = 128,
    repeats: Annotated[
        int, typer.Option(min=1, max=bench_evaluation.MOST_REPEATS, help="Turns.")
    ] = bench_evaluation.MOST_REPEATS,
    device: ComputingDevice = Device.CPU,
    file: JsonFile = sys.stdout,  # type: ignore[assignment]
) -> None:
    """Time the embedded black box against the usual ways, with the same prompts and texts."""
    result = bench_evaluation.run(queries, repeats, device.value)
    _write(file, result, bench_evaluation.markdown(result))


@bench.command("labels")
def labels(
    sentences: Annotated[int, typer.Option(min=1, help="Held-out sentences.")] = 500,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts.")] = 20,
    device: ComputingDevice = Device.CPU,
    file: JsonFile = sys.stdout,  # type: ignore[assignment]
) -> None:
    """Compare the engine's answers with those of plain forward passes."""
    file.write(json.dumps(bench_labels.run(sentences, prompts, device.value), indent=2) + "\n")


@bench.command("startup")
def startup(
    repeats: Annotated[int, typer.Option(min=1, help="Starts of each kind.")] = 5,
    file: JsonFile = sys.stdout,  # type: ignore[assignment]
) -> None:
    """Time a process up to the embedded black box's first answer, and weigh two at a time."""
    file.write(json.dumps(bench_startup.run(repeats), indent=2) + "\n")


@bench.command("overhead")
def overhead(
    clients: Annotated[int, typer.Option(min=1, help="Simulated clients.")] = 4,
    file: JsonFile = sys.stdout,  # type: ignore[assignment]
) -> None:
    """Compare a run's processor time with that of one which asks the models next to nothing."""
    result = bench_overhead.run(clients, {})
    _write(file, result, bench_overhead.markdown(result))


@bench.command("profile")
def profile(
    clients: Annotated[int, typer.Option(min=2, help="Simulated clients.")] = 4,
    file: JsonFile = sys.stdout,  # type: ignore[assignment]
) -> None:
    """Time what a round spends on answers, on proposals and on all else."""
    result = bench_profile.run(clients, {})
    _write(file, result, bench_profile.markdown(result))


@bench.command("scaling")
def run_scaling(
    clients: Annotated[
        list[int] | None, typer.Option(min=1, help="A number of clients; give two or more.")
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where the table goes.")] = seeds.RESULTS,
) -> None:
    """Time the server's step for growing numbers of clients, and fit how the time grows."""
    scaling.run(clients or scaling.CLIENTS, folder)


@bench.command("choices")
def run_choices(
    seed: Annotated[list[int] | None, typer.Option(help="A seed; give two or more.")] = None,
    file: JsonFile = sys.stdout,  # type: ignore[assignment]
) -> None:
    """Compare what the server's step may do where the paper is silent, with known groups."""
    result = bench_choices.run(seeds=seed or bench_choices.SEEDS)
    file.write(json.dumps(result, indent=2) + "\n")


@bench.command("tally")
def run_tally(file: JsonFile = sys.stdout) -> None:  # type: ignore[assignment]
    """Compare ways to put clients' counts together where some of them lie."""
    file.write(json.dumps(bench_tally.run(), indent=2) + "\n")


@bench.command("endpoint")
def endpoint(
    sentences: Annotated[int, typer.Option(min=1, help="Questions of each measurement.")] = 48,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the server.")] = 1,
    file: JsonFile = sys.stdout,  # type: ignore[assignment]
) -> None:
    """Time our client against a bare loop of single requests, on llama.cpp's server."""
    file.write(json.dumps(bench_endpoint.run(sentences, threads), indent=2) + "\n")


@bench.command("message")
def message(
    repeats: Annotated[int, typer.Option(min=1, help="Messages of each kind.")] = 5,
    file: JsonFile = sys.stdout,  # type: ignore[assignment]
) -> None:
    """Time a train message to a thin node against one to an empty ClientApp."""
    result = bench_message.run(repeats)
    _write(file, result, bench_message.markdown(result))


@bench.command("races")
def races(
    examples: Annotated[int, typer.Option(min=134, help="Held-out examples.")] = 160,
    changes: Annotated[int, typer.Option(min=8, help="Changes of each prompt.")] = 60,
    draws: Annotated[int, typer.Option(min=10, help="Clients drawn from the answers.")] = 1000,
    file: JsonFile = sys.stdout,  # type: ignore[assignment]
) -> None:
    """Judge the search's and the comparison's rules on answers that were given once."""
    result = bench_races.run(examples, changes, draws)
    _write(file, result, bench_races.markdown(result))


@app.command("run")
def run_suite(
    name: Annotated[str, typer.Argument(metavar="SUITE", help="A suite's name or .toml file.")],
    jobs: Annotated[int, typer.Option(min=1, help="Runs at the same time.")] = 1,
    only: Annotated[
        list[str] | None, typer.Option(help="A label that runs must have; give one or more.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="The first so many of the suite's seeds.")
    ] = None,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Do without SuperLink and Ray.")
    ] = False,
    folder: Annotated[Path, typer.Option(help="Where run folders go.")] = RUNS,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run.")] = False,
) -> None:
    """Run what a suite lacks; interrupted, the next call goes on."""
    suite = _suite(name)
    results = _results(suite, folder)
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
            transfer(suite, results, lambda line: console.print(line, markup=False))
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
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite a report of more runs, too.")
    ] = False,
) -> None:
    """Write a suite's tables and figures in Markdown, and one HTML page."""
    suite = _suite(name)
    output = output or seeds.RESULTS / suite.name
    try:
        page = write_report(suite, _results(suite, folder), output, force=force)
    except ReportError as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from None
    typer.echo(page)


def _results(suite: Suite, folder: Path) -> Results:
    return Results(folder / suite.name, shared=folder)


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
    seed: Annotated[list[int] | None, typer.Option(help="A seed; give two or more.")] = None,
    folder: Annotated[Path, typer.Option(help="Where the table goes.")] = seeds.RESULTS,
) -> None:
    """Measure what uploads give away of private texts, with and without each defence."""
    typer.echo(privacy.run(seed or list(range(5)), folder))


@app.command("federation")
def run_federation(
    variant: Annotated[
        list[str] | None, typer.Option(help=f"One of: {'; '.join(federation.VARIANTS)}.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="A seed; give two or more.")] = None,
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
    seed: Annotated[list[int] | None, typer.Option(help="A seed; give two or more.")] = None,
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
    seed: Annotated[list[int] | None, typer.Option(help="A seed; give one or more.")] = None,
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
    seed: Annotated[list[int] | None, typer.Option(help="A seed; give two or more.")] = None,
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

"""``python -m simulations``: repeated runs and benchmarks."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from simulations import (
    bench_aggregation,
    bench_endpoint,
    bench_evaluation,
    bench_labels,
    federation,
    privacy,
    scaling,
    seeds,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # they may hold what must not be printed
    help=__doc__,
)
bench = typer.Typer(no_args_is_help=True, help="Time and memory of one part.")
app.add_typer(bench, name="bench")


@bench.command("aggregation")
def aggregation(
    clients: Annotated[int, typer.Option(min=1, help="Clients that upload a prompt.")] = 1000,
    file: Annotated[
        typer.FileTextWrite, typer.Option("--json", help="File for the figures; - prints them.")
    ] = sys.stdout,  # type: ignore[assignment]
) -> None:
    """Time the server's step on synthetic uploads, and the quadratic way as far as it goes."""
    file.write(json.dumps(bench_aggregation.run(clients), indent=2) + "\n")


@bench.command("evaluation")
def evaluation(
    queries: Annotated[int, typer.Option(min=16, help="Queries in each turn.")] = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Turns.")] = 5,
    file: Annotated[
        typer.FileTextWrite, typer.Option("--json", help="File for the figures; - prints them.")
    ] = sys.stdout,  # type: ignore[assignment]
) -> None:
    """Time the embedded black box against the usual ways, with the same queries."""
    result = bench_evaluation.run(queries, repeats)
    file.write(json.dumps(result, indent=2) + "\n")
    table = bench_evaluation.markdown(result)
    if (path := Path(file.name)).suffix == ".json":
        path.with_suffix(".md").write_text(table, encoding="utf-8")
    typer.echo(table, err=True)


@bench.command("labels")
def labels(
    sentences: Annotated[int, typer.Option(min=1, help="Held-out sentences.")] = 500,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts.")] = 20,
    file: Annotated[
        typer.FileTextWrite, typer.Option("--json", help="File for the figures; - prints them.")
    ] = sys.stdout,  # type: ignore[assignment]
) -> None:
    """Compare the engine's answers with those of plain forward passes."""
    file.write(json.dumps(bench_labels.run(sentences, prompts), indent=2) + "\n")


@bench.command("scaling")
def run_scaling(
    clients: Annotated[
        list[int] | None, typer.Option(min=1, help="A number of clients; give two or more.")
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where the table goes.")] = seeds.RESULTS,
) -> None:
    """Time the server's step for growing numbers of clients, and fit how the time grows."""
    scaling.run(clients or scaling.CLIENTS, folder)


@bench.command("endpoint")
def endpoint(
    sentences: Annotated[int, typer.Option(min=1, help="Questions of each measurement.")] = 48,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the server.")] = 1,
    file: Annotated[
        typer.FileTextWrite, typer.Option("--json", help="File for the figures; - prints them.")
    ] = sys.stdout,  # type: ignore[assignment]
) -> None:
    """Time our client against a bare loop of single requests, on llama.cpp's server."""
    file.write(json.dumps(bench_endpoint.run(sentences, threads), indent=2) + "\n")


@app.command("federation")
def run_federation(
    seed: Annotated[list[int] | None, typer.Option(help="A seed; give two or more.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at the same time.")] = 1,
    folder: Annotated[Path, typer.Option(help="Where the table goes.")] = seeds.RESULTS,
) -> None:
    """Compare a federation with its members, the paper's step and all data in one place."""
    typer.echo(federation.run(seed or list(range(5)), jobs, folder))


@app.command("privacy")
def run_privacy(
    seed: Annotated[list[int] | None, typer.Option(help="A seed; give two or more.")] = None,
    folder: Annotated[Path, typer.Option(help="Where the table goes.")] = seeds.RESULTS,
) -> None:
    """Measure what uploads give away of private texts, with and without each defence."""
    typer.echo(privacy.run(seed or list(range(5)), folder))


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


if __name__ == "__main__":
    app()

"""``python -m simulations bench``: what one part costs, in time and memory."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from feddtpt_flwr.data import DataError
from feddtpt_flwr.language_model.weights import DeviceError
from simulations import (
    bench_aggregation,
    bench_balanced,
    bench_ceiling,
    bench_choices,
    bench_endpoint,
    bench_evaluation,
    bench_feedback,
    bench_known,
    bench_labels,
    bench_message,
    bench_overhead,
    bench_profile,
    bench_races,
    bench_startup,
    bench_tally,
    scaling,
    seeds,
)

bench = typer.Typer(no_args_is_help=True, help="Time and memory of one part.")


class Device(StrEnum):
    """What computes."""

    CPU = "cpu"
    CUDA = "cuda"


ComputingDevice = Annotated[Device, typer.Option(help="What computes.")]


def _writable(file: typer.FileTextWrite) -> typer.FileTextWrite:
    """Refuse a file that cannot be written, before anything is computed for it."""
    path = Path(file.name)
    if file.name not in ("-", "<stdout>"):
        there = path if path.exists() else path.parent
        if not os.access(there, os.W_OK) or path.is_dir():
            raise typer.BadParameter(f"{path} cannot be written")
    return file


JsonFile = Annotated[
    typer.FileTextWrite,
    typer.Option(
        "--json",
        help="File for the figures; - prints them.",
        show_default="-",
        callback=_writable,
    ),
]


@contextmanager
def _refusing() -> Iterator[None]:
    """Say of a device or data that is not there, in one line, that it is not."""
    try:
        yield
    except DataError as error:
        raise typer.BadParameter(str(error)) from None
    except DeviceError as error:
        raise typer.BadParameter(str(error), param_hint="--device") from None


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


@bench.command("ceiling")
def ceiling(
    task: Annotated[str, typer.Option(help="An embedded task.")] = "rotten_tomatoes",
    examples: Annotated[int, typer.Option(min=10, help="Labelled examples that decide.")] = 500,
    held_out: Annotated[int, typer.Option(min=1, help="Examples that only tell.")] = 1000,
    changes: Annotated[
        int, typer.Option(min=bench_ceiling.BEAM, help="Changes of prompts in each round.")
    ] = 300,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds.")] = 3,
    device: ComputingDevice = Device.CPU,
    file: JsonFile = sys.stdout,  # type: ignore[assignment]
) -> None:
    """Climb with hundreds of thousands of queries: what prompts of this kind can reach."""
    with _refusing():
        result = bench_ceiling.run(task, examples, held_out, changes, rounds, device.value)
    _write(file, result, bench_ceiling.markdown(result))


@bench.command("known")
def known(
    task: Annotated[str, typer.Option(help="An embedded task.")] = "rotten_tomatoes",
    first: Annotated[int, typer.Option(min=2, help="Examples for all prompts.")] = 300,
    others: Annotated[int, typer.Option(min=1, help="Examples for the best.")] = 1500,
    finalists: Annotated[int, typer.Option(min=1, help="How many are the best.")] = 30,
    folder: Annotated[Path, typer.Option(help="Where the suites' results are.")] = seeds.RESULTS,
    device: ComputingDevice = Device.CPU,
    file: JsonFile = sys.stdout,  # type: ignore[assignment]
) -> None:
    """Ask about many examples with all prompts that kept runs have learned."""
    try:
        with _refusing():
            result = bench_known.run(task, first, others, finalists, folder, device.value)
    except ValueError as error:  # of the reports' files
        raise typer.BadParameter(str(error), param_hint="--folder") from None
    _write(file, result, bench_known.markdown(result))


@bench.command("balanced")
def balanced(
    suite: Annotated[str, typer.Option(help="A suite with kept runs.")] = "search-federation",
    folder: Annotated[Path, typer.Option(help="Where the suites' results are.")] = seeds.RESULTS,
    file: JsonFile = sys.stdout,  # type: ignore[assignment]
) -> None:
    """Ask once more with the prompts of a suite's kept runs, and count all labels alike."""
    try:
        with _refusing():
            result = bench_balanced.run(suite, folder)
    except ValueError as error:  # of the reports' files
        raise typer.BadParameter(str(error), param_hint="--folder") from None
    _write(file, result, bench_balanced.markdown(result))


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
    with _refusing():
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
    with _refusing():
        result = bench_labels.run(sentences, prompts, device.value)
    file.write(json.dumps(result, indent=2) + "\n")


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
    seed: Annotated[
        list[int] | None, typer.Option(help="A seed; may be given several times.")
    ] = None,
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


@bench.command("feedback")
def feedback(
    examples: Annotated[int, typer.Option(min=134, help="Held-out examples.")] = 160,
    changes: Annotated[int, typer.Option(min=8, help="Changes of each prompt.")] = 160,
    draws: Annotated[int, typer.Option(min=10, help="Clients drawn from the answers.")] = 300,
    file: JsonFile = sys.stdout,  # type: ignore[assignment]
) -> None:
    """Search among prompts asked about once, with and without being told which to try."""
    result = bench_feedback.run(examples, changes, draws)
    _write(file, result, bench_feedback.markdown(result))

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from feddtpt_flwr import models
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import get_task
from feddtpt_flwr.experiment import readability
from simulations import (
    bench_aggregation,
    bench_evaluation,
    bench_labels,
    bench_overhead,
    bench_startup,
    scaling,
    seeds,
)
from simulations.__main__ import app
from simulations.app_run import why_it_failed
from simulations.processes import MARK
from simulations.stamp import stamp

RESULTS = Path(bench_evaluation.__file__).parent / "results"
EVALUATION: dict[str, Any] = json.loads((RESULTS / "evaluation.json").read_text(encoding="utf-8"))

MADE_UP: dict[str, Any] = {
    "tokens": 20,
    "dim": 384,
    "peak_mib": 1,
    "uploads_mib": 1,
    "prompt_tokens": 20,
    "quadratic_seconds": None,
}


def test_the_exponent_is_that_of_a_power_law() -> None:
    clients = [10, 100, 1000]
    power, factor = scaling.exponent(clients, [0.5 * number**1.5 for number in clients])
    assert power == pytest.approx(1.5)
    assert factor == pytest.approx(0.5)


def test_the_servers_step_is_timed_on_the_command_line() -> None:
    shown = CliRunner().invoke(app, ["bench", "aggregation", "--clients", "3", "--json", "-"])
    assert shown.exit_code == 0, shown.output
    report = json.loads(shown.stdout)
    assert report["clients"] == 3
    assert report["tokens"] == 20
    assert 0 <= report["propose_seconds"] <= report["seconds"] < 60
    assert report["peak_mib"] > 0
    assert 2 <= report["candidates"] <= 1 + bench_aggregation.CANDIDATES


def test_the_fit_of_many_clients_is_shown_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Constant costs flatten the fit where there are few."""

    def quadratic(clients: int) -> dict[str, Any]:
        return {**MADE_UP, "clients": clients, "seconds": 1 + 1e-6 * clients**2}

    monkeypatch.setattr(bench_aggregation, "run", quadratic)
    report = scaling.run([10, 100, 10_000, 100_000], tmp_path)
    assert report["exponent"] < 1.5
    assert report["exponent_many"] == pytest.approx(2, abs=0.01)
    assert "from 1,000 clients on to that of 2.00" in (tmp_path / "aggregation.md").read_text()


@pytest.mark.slow
def test_a_table_of_growing_numbers_of_clients(tmp_path: Path) -> None:
    report = scaling.run([5, 50], tmp_path)
    assert json.loads((tmp_path / "aggregation.json").read_text(encoding="utf-8")) == report
    assert [run["clients"] for run in report["runs"]] == [5, 50]
    for run in report["runs"]:
        assert run["prompt_tokens"] >= 10
        assert run["quadratic_agrees"]
        assert run["peak_mib"] >= run["uploads_mib"] > 0
    table = (tmp_path / "aggregation.md").read_text(encoding="utf-8")
    assert f"to the power of {report['exponent']:.2f}" in table
    assert report["exponent_many"] is None, "two of a thousand clients or more are needed"


@pytest.mark.parametrize(
    ("option", "most"),
    [("--repeats", bench_evaluation.MOST_REPEATS), ("--queries", bench_evaluation.MOST_QUERIES)],
)
def test_evaluation_has_no_more_turns_than_prompts_nor_more_queries_than_texts(
    option: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_evaluation, "run", lambda *_: EVALUATION)
    command = ["bench", "evaluation", "--json", "-", option]
    assert CliRunner().invoke(app, [*command, str(most)]).exit_code == 0
    refused = CliRunner().invoke(app, [*command, str(most + 1)])
    assert refused.exit_code == 2
    assert f"<={most}" in refused.output


@pytest.mark.parametrize(
    ("bench", "module"), [("evaluation", bench_evaluation), ("labels", bench_labels)]
)
def test_a_device_is_given_as_a_word(
    bench: str, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is told of it knows no class of the command line's."""
    given: list[object] = []

    def run(*words: object) -> dict[str, Any]:
        given.extend(words)
        return EVALUATION

    monkeypatch.setattr(module, "run", run)
    result = CliRunner().invoke(app, ["bench", bench, "--json", "-", "--device", "cuda"])
    assert result.exit_code == 0, result.output
    assert type(given[-1]) is str
    assert given[-1] == "cuda"


def test_figures_that_could_not_be_written_are_not_computed(tmp_path: Path) -> None:
    for file in (tmp_path / "missing" / "figures.json", tmp_path):
        result = CliRunner().invoke(app, ["bench", "profile", "--json", str(file)])
        assert result.exit_code == 2
        assert "cannot be written" in " ".join(result.output.replace("│", " ").split())


def test_an_error_that_typer_frames_is_told() -> None:
    framed = "started\n╭─ Error ─────╮\n│ k-shot = 0  │\n╰─────────────╯\n"
    assert why_it_failed(framed) == "k-shot = 0"


def test_seeds_without_any_gain_have_no_interval() -> None:
    same = [seeds.SeedResult(seed, 0.5, 0.5, 10, 20, [1], 1.0, "Good?") for seed in (0, 1)]
    table = seeds._table(
        "same", {**stamp(), "settings": {"num-clients": 2, "run-config": []}}, same
    )
    assert "Mean gain +0.000, worst +0.000." in table


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("bench", ["ceiling", "evaluation", "labels"])
def test_a_device_that_is_not_there_is_refused_at_once(bench: str) -> None:
    result = CliRunner().invoke(app, ["bench", bench, "--json", "-", "--device", "cuda"])
    assert result.exit_code == 2
    assert "--device" in result.output
    assert "'cuda' is not available" in result.output


def test_no_turn_of_evaluation_asks_what_was_asked_before(embedded_assets: None) -> None:
    turns = range(-1, bench_evaluation.MOST_REPEATS)
    number = bench_evaluation.MOST_QUERIES
    known = [query for turn in turns for query in bench_evaluation._queries(number, turn)]
    assert len(set(known)) == len(known)
    texts: list[str] = []
    for turn in turns[2:]:
        queries = bench_evaluation._queries(number, turn, first=number * turn)
        assert len(queries) == number
        texts += [query.replace(bench_evaluation.PROMPTS[turn], "") for query in queries]
    assert len(set(texts)) > 0.99 * len(texts), "a review or two are there twice"


def test_on_a_gpu_nothing_is_said_of_llama_cpp() -> None:
    result = json.loads((RESULTS / "evaluation-gpu.json").read_text(encoding="utf-8"))
    table = bench_evaluation.markdown(result)
    assert table == (RESULTS / "evaluation-gpu.md").read_text(encoding="utf-8")
    assert "llama" not in table


def test_evaluation_says_which_aims_are_missed() -> None:
    reached = {"vs_pipeline": 5, "vs_padded_same_dtype": 1.9, "vs_llama_cpp": 3, "of_peak": 0.7}
    assert bench_evaluation.verdict(reached) == "all reached"
    assert bench_evaluation.verdict({**reached, "vs_llama_cpp": 1.64}) == (
        "missed, 1.64 instead of 2.5 times llama.cpp's server"
    )
    table = bench_evaluation.markdown(EVALUATION)
    for name, ratios in EVALUATION["ratios"].items():
        said = bench_evaluation.verdict(ratios)
        assert f"- {bench_evaluation.CONTENDERS[name]}: {said}." in table


@pytest.mark.parametrize(
    ("name", "markdown"),
    [("evaluation", bench_evaluation.markdown), ("overhead", bench_overhead.markdown)],
)
def test_kept_tables_are_those_of_their_figures(
    name: str, markdown: Callable[[dict[str, Any]], str]
) -> None:
    figures = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    assert (RESULTS / f"{name}.md").read_text(encoding="utf-8") == markdown(figures)


@pytest.mark.parametrize(
    ("empty", "said"),
    [
        (39.0, "The rest is 14.2% of the full"),
        (39.0, "not reached"),
        (20.0, "10%, which is reached"),
    ],
)
def test_overhead_says_whether_its_aim_is_reached(
    empty: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(clients: int, settings: dict[str, Any]) -> dict[str, Any]:
        spent = empty if settings == bench_overhead.NOTHING else 261.1
        return {"seconds": 1.0, "processor_seconds": spent, "by_role": {"the command": spent}}

    monkeypatch.setattr(bench_overhead, "_measure", measure)
    monkeypatch.setattr(bench_overhead, "processor_seconds_of_passes", lambda *_: 2.0)
    assert said in bench_overhead.markdown(bench_overhead.run(4, {}))


@pytest.mark.slow
def test_answers_are_compared_under_prompts_that_a_search_would_try(embedded_assets: None) -> None:
    task = get_task("rotten_tomatoes")
    prompts = bench_labels.some_prompts(task, 5)
    assert prompts[0] == task.seed_prompt
    assert len(set(prompts)) == 5
    config = RunConfig.from_run_config({"dtype": "float32"})
    encode = models.masked_lm(config, task).vocabulary.encode
    assert all(readability(config, task).each([encode(prompt) for prompt in prompts]))


@pytest.mark.slow
def test_a_start_is_timed_and_weighed(embedded_assets: None) -> None:
    seconds = bench_startup._seconds(bench_startup.OURS)
    assert 0.1 < seconds < 60
    assert 100 < bench_startup._memory(1) < 4000


def test_a_start_that_fails_says_so() -> None:
    with pytest.raises(RuntimeError, match="has failed"):
        bench_startup._seconds("raise SystemExit(1)\n")


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ("ray::ClientAppActor.run", "clients (Ray workers)"),
        ("/venv/ray/core/src/ray/raylet/raylet --session", "Ray itself"),
        ("python /venv/bin/flower-superlink --insecure", "SuperLink and its plugins"),
        ("python /venv/bin/flwr-simulation --token", "server and simulation engine"),
        ("python -m feddtpt_flwr.cli simulate .", "the command"),
    ],
)
def test_roles_of_processes(command: str, role: str) -> None:
    assert bench_overhead.role(command) == role


def test_processes_of_a_run_are_told_by_their_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARK, "this one")
    program = "for _ in range(10**6): pass\nprint(flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        found = bench_overhead._processes("this one")
        process.communicate(b"\n")
    assert found.keys() == {process.pid}
    command, seconds = found[process.pid]
    assert program.splitlines()[0] in command
    assert seconds > 0
    assert bench_overhead._processes("this") == {}, "a part of a mark is another"

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from simulations import bench_known
from simulations.__main__ import app
from simulations.seeds import RESULTS

GOOD, BAD = "Is this film review positive or negative?", "Answer with negative."


def kept(folder: Path) -> Path:
    tasks = {GOOD: "rotten_tomatoes", BAD: "rotten_tomatoes", "Which topic?": "bbc_news"}
    runs = [
        {"tasks": task, "methods": "full", "seed": seed, "prompt": prompt}
        for seed, (prompt, task) in enumerate(tasks.items())
    ]
    (folder / "search.json").write_text(
        json.dumps({"suite": "search", "runs": runs}), encoding="utf-8"
    )
    (folder / "profile.json").write_text('{"clients": 4}', encoding="utf-8")
    return folder


def test_the_best_of_all_learned_prompts_goes_on_to_other_examples(
    tmp_path: Path, embedded_assets: None
) -> None:
    options = {"first": 8, "others": 6, "finalists": 1, "folder": kept(tmp_path)}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    shown = CliRunner().invoke(app, ["bench", "known", "--json", "-", *words])
    assert shown.exit_code == 0, shown.output
    result = json.loads(shown.stdout)
    assert (result["prompts"], result["first"], result["others"]) == (2, 8, 6)
    [best] = result["best"]
    assert best["prompt"] in (GOOD, BAD)
    assert best["run"].startswith("search: rotten_tomatoes / full / seed ")
    assert best["first"] * 8 == pytest.approx(round(best["first"] * 8), abs=0.01)
    assert f"| {best['prompt']} |" in bench_known.markdown(result)


def test_vectors_are_no_prompts() -> None:
    runs = bench_known.learned_prompts(RESULTS, "rotten_tomatoes").values()
    assert not [run for run in runs if "fedprompt" in run or "fedb" in run]
    assert {run.split(":")[0] for run in runs} >= {"search", "search-long"}


def test_the_kept_table_is_that_of_its_figures() -> None:
    figures = json.loads((RESULTS / "known.json").read_text(encoding="utf-8"))
    kept = (RESULTS / "known.md").read_text(encoding="utf-8")
    assert kept == bench_known.markdown(figures)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no suite's report there holds a prompt learned on rotten_tomatoes"),
        ('{"suite": "search"}', "search.json is not a suite's file of runs"),
    ],
)
def test_a_folder_without_learned_prompts_is_named(
    content: str | None, said: str, tmp_path: Path
) -> None:
    if content:
        (tmp_path / "search.json").write_text(content, encoding="utf-8")
    refused = CliRunner().invoke(app, ["bench", "known", "--folder", str(tmp_path)])
    assert refused.exit_code == 2
    shown = refused.output.replace("│", "")  # a long path is broken anywhere
    assert "".join(said.split()) in "".join(shown.split())

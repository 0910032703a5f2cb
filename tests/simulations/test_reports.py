"""What tables, figures and pages say about runs with known figures."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from typer.testing import CliRunner

from feddtpt_flwr.vocabulary import Vocabulary
from simulations import clusters
from simulations.__main__ import app
from simulations.clusters import TokenMap, token_map
from simulations.figures import curves
from simulations.figures import token_map as map_of_tokens
from simulations.grid import read_grid
from simulations.intervals import Mean, bootstrap_mean, by_t, mean, paired
from simulations.outcome import Failure, Outcome, Results
from simulations.perplexity import before_and_after, perplexity_table
from simulations.prompts import highlight
from simulations.records import Kept
from simulations.report import ReportError, when_and_where, write_report
from simulations.seeds import RESULTS
from simulations.suite import SUITES, Suite, load_suite
from simulations.tables import (
    accuracy_tables,
    cost_table,
    paired_tables,
    partition_tables,
    transfer_table,
)
from strategies import aggregate
from strategies.aggregation import Aggregate
from tests.simulations.written_runs import MADE, SUITE, write_run, write_suite

GLUE = ("cola", "wnli", "rte", "qnli")

FULL = {0: 0.70, 1: 0.80, 2: 0.75}


@pytest.fixture
def written(tmp_path: Path) -> tuple[Suite, Results]:
    """Task one has all runs of "full" and two of three of "blind"; task two has none."""
    suite, results = write_suite(tmp_path), Results(tmp_path / "runs")
    for job in suite.jobs(["one", "full"]):
        write_run(results, job, [0.5, 0.6, FULL[job.seed]])
    for job in suite.jobs(["one", "blind"])[:2]:
        write_run(results, job, [0.5, 0.55, FULL[job.seed] - 0.05], prompt="Is it <i>good</i>?")
    return suite, results


def test_an_interval_is_around_the_mean_and_narrows() -> None:
    rng = np.random.default_rng(0)
    few, many = mean(rng.normal(0.7, 0.1, 5)), mean(rng.normal(0.7, 0.1, 500))
    assert few.low < few.value < few.high
    assert many.high - many.low < few.high - few.low
    assert (few.number, many.number) == (5, 500)


@pytest.mark.parametrize("values", [[0.7], [0.7, 0.7, 0.7]])
def test_one_seed_or_equal_ones_have_no_interval(values: list[float]) -> None:
    for result in (mean(np.array(values)), bootstrap_mean(np.array(values))):
        assert result.low == result.high == result.value == pytest.approx(0.7)


def test_the_interval_by_t_is_that_of_the_tables() -> None:
    """Mean 3, standard error sqrt(0.5), and the quantile of four degrees of freedom, 2.776."""
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    ends = by_t(values)
    assert ends == pytest.approx((3 - 2.776 * 0.5**0.5, 3 + 2.776 * 0.5**0.5), abs=1e-3)
    assert ends is not None
    assert mean(values) == Mean(3.0, *ends, 5), "that of the suites' means, too"
    narrow = bootstrap_mean(values)
    assert ends[0] < narrow.low < narrow.value < narrow.high < ends[1]
    assert by_t(np.array([1.0])) is by_t(np.array([0.5, 0.5])) is None


def test_pairs_are_of_one_seed() -> None:
    difference = paired({0: 0.5, 1: 0.9, 3: 0.1}, {1: 0.8, 0: 0.4, 2: 1.0})
    assert difference is not None
    assert difference.value == pytest.approx(0.1)
    assert difference.number == 2
    assert paired({0: 0.5}, {1: 0.5}) is None


def test_every_cell_has_runs_behind_it_or_says_why_not(written: tuple[Suite, Results]) -> None:
    (table,) = accuracy_tables(read_grid(*written))
    assert table.header == ["method", "one", "two", "mean"]
    assert [row[0] for row in table.rows] == [
        "seed prompt",
        "the full method",
        "without feedback <b>",
    ]
    seed, full, blind = table.rows
    assert seed[1:] == ["0.500", "[1]", "-"]
    assert full[1] == "0.750 [0.626, 0.874]", "by t, 2 degrees of freedom"
    assert full[2:] == ["[1]", "-"]
    assert blind[1] == "0.700 [0.065, 1.000] (2) [1]", "two of three seeds, and why"
    assert "on 200 examples" in table.notes[0]
    assert "Student's t" in table.notes[0]
    assert table.notes[1:] == ["[1] not run yet."]


def test_every_reason_is_told_why_a_cell_has_fewer_seeds(tmp_path: Path) -> None:
    suite, results = write_suite(tmp_path), Results(tmp_path / "runs")
    first, second, _ = suite.jobs(["one", "full"])
    write_run(results, first, [0.5, 0.6])
    results.write_failure(second, Failure("no more memory"))
    (table,) = accuracy_tables(read_grid(suite, results))
    assert table.rows[1][1] == "0.600 (1) [1]"
    assert table.notes[1] == "[1] failed: no more memory; not run yet."


def test_methods_are_compared_within_seeds(written: tuple[Suite, Results]) -> None:
    (table,) = paired_tables(read_grid(*written))
    assert table.rows == [
        ["seed prompt", "-0.250 [-0.374, -0.126]", "-", "-"],
        ["without feedback <b>", "-0.050 (2)", "-", "-"],
    ]
    assert table.header == ["method", "one", "two", "mean"]
    assert table.title == "Minus “the full method”"
    assert "Student's t" in table.notes[0]
    assert "in round brackets the number of seeds" in table.notes[0]


def test_means_over_tasks_are_of_the_seeds_that_all_tasks_have(tmp_path: Path) -> None:
    suite, results = write_suite(tmp_path), Results(tmp_path / "runs")
    accuracies = {"one": [0.6, 0.7, 0.9], "two": [0.8, 0.7]}
    for task, values in accuracies.items():
        for job, value in zip(suite.jobs([task, "full"]), values, strict=False):
            write_run(results, job, [0.5, value])
    grid = read_grid(suite, results)
    (table,) = accuracy_tables(grid)
    assert table.rows[1][-1] == "0.700 (2)", "both seeds have 0.7, and the third one task only"
    (table,) = paired_tables(grid)
    assert table.rows[0][-1] == "-0.200 (2)"


def test_costs_are_means_over_runs(written: tuple[Suite, Results]) -> None:
    rows = cost_table(read_grid(*written)).rows
    assert rows[0] == ["the full method", "5.0", "1,500", "3,000", "200", "12", "-"]


def test_peak_memory_is_the_mean_of_the_runs_in_which_it_was_measured(tmp_path: Path) -> None:
    suite, results = write_suite(tmp_path), Results(tmp_path / "runs")
    peaks = {0: 1000, 1: None, 2: 2001}
    for job in suite.jobs(["one", "full"]):
        write_run(results, job, [0.5, 0.6], peak_mib=peaks[job.seed])
    full, blind = cost_table(read_grid(suite, results)).rows
    assert full[-1] == "1,500"
    assert blind[1:] == ["-"] * 6, "no run"


def test_different_seed_prompts_each_have_a_row(tmp_path: Path) -> None:
    text = SUITE.replace("feedback = false", 'seed-prompt = "Good?"')
    suite, results = write_suite(tmp_path, text), Results(tmp_path / "runs")
    for job in suite.jobs(["one"]):
        start = 0.4 if job.label("methods") == "blind" else 0.5
        write_run(results, job, [start, 0.6])
    (table,) = accuracy_tables(read_grid(suite, results))
    assert [row[:2] for row in table.rows[:2]] == [
        ["seed prompt of “the full method”", "0.500"],
        ["seed prompt of “without feedback <b>”", "0.400"],
    ]


def test_curves_go_through_the_means(written: tuple[Suite, Results]) -> None:
    (drawing,) = curves(read_grid(*written))
    full, blind = drawing.figure.axes[0].get_lines()
    assert full.get_xydata() == pytest.approx(np.array([[0, 0.5], [100, 0.6], [200, 0.75]]))
    assert blind.get_xydata() == pytest.approx(np.array([[0, 0.5], [100, 0.55], [200, 0.7]]))


def test_with_budgets_a_curve_goes_from_budget_to_budget(tmp_path: Path) -> None:
    text = SUITE + "[budgets.small]\n[budgets.large]\nqueries-per-round = 900\n"
    suite, results = write_suite(tmp_path, text), Results(tmp_path / "runs")
    for job in suite.jobs(["one", "full", "small"]):
        write_run(results, job, [0.5, 0.6])
    for job in suite.jobs(["one", "full", "large"]):
        write_run(results, job, [0.5, 0.7, 0.8])
    (drawing,) = curves(read_grid(suite, results))
    (line,) = drawing.figure.axes[0].get_lines()
    assert line.get_xydata() == pytest.approx(np.array([[0, 0.5], [100, 0.6], [200, 0.8]]))


def test_more_curves_than_colours_are_told_apart(tmp_path: Path) -> None:
    methods = "".join(f"[methods.m{number}]\nk-shot = {number}\n" for number in range(4, 16))
    suite = write_suite(tmp_path, SUITE + methods)
    results = Results(tmp_path / "runs")
    for job in suite.jobs(["one"]):
        if job.seed == 0:
            write_run(results, job, [0.5, 0.6])
    (drawing,) = curves(read_grid(suite, results))
    looks = {
        (line.get_color(), line.get_linestyle()) for line in drawing.figure.axes[0].get_lines()
    }
    assert len(looks) == 14


def test_a_curve_goes_through_rounds_not_through_places_in_a_list(tmp_path: Path) -> None:
    suite, results = write_suite(tmp_path), Results(tmp_path / "runs")
    ways: list[list[float | None]] = [[0.5, 0.6, 0.8], [0.5, None, 0.7], [0.5, 0.6, 0.6]]
    for job in suite.jobs(["one", "full"]):
        write_run(results, job, ways[job.seed])
    (drawing,) = curves(read_grid(suite, results))
    (line,) = drawing.figure.axes[0].get_lines()
    assert line.get_xydata() == pytest.approx(np.array([[0, 0.5], [200, 0.7]]))
    assert "Student's t" in drawing.caption


def test_a_budget_ends_with_what_the_run_knew_at_its_end(tmp_path: Path) -> None:
    text = SUITE + "[budgets.small]\n[budgets.large]\nqueries-per-round = 900\n"
    suite, results = write_suite(tmp_path, text), Results(tmp_path / "runs")
    for job in suite.jobs(["one", "full", "small"]):
        write_run(results, job, [0.5, 0.6])
    for job in suite.jobs(["one", "full", "large"]):
        write_run(results, job, [0.5, 0.7, None], end=0.8)
    (drawing,) = curves(read_grid(suite, results))
    (line,) = drawing.figure.axes[0].get_lines()
    assert line.get_xydata() == pytest.approx(np.array([[0, 0.5], [100, 0.6], [200, 0.8]]))


def test_transfer_is_a_matrix(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, SUITE + "[models.a]\n[models.b]\nchat = true\n")
    grid = read_grid(suite, Results(tmp_path / "runs"))
    known = {("a", "a", "one"): {0: 0.8}, ("a", "b", "one"): {0: 0.7, 1: 0.7}}
    table = transfer_table(grid, known)
    assert table.header == ["learned on", "a", "b"]
    assert table.rows[0] == ["the seed prompt, one", "-", "-"]
    assert table.rows[2] == ["a, one", "0.800 (1)", "0.700 (2)"]
    assert table.rows[5] == ["b, two", "-", "-"]


def test_partitions_are_compared_within_seeds(tmp_path: Path) -> None:
    text = SUITE + "[partitions.iid]\n[partitions.dirichlet]\npartition = 'dirichlet'\n"
    suite, results = write_suite(tmp_path, text), Results(tmp_path / "runs")
    for job in suite.jobs(["one", "full"]):
        lost = 0.1 * job.seed if job.label("partitions") == "dirichlet" else 0.0
        write_run(results, job, [0.5, 0.8 - lost])
    (table,) = partition_tables(read_grid(suite, results))
    assert table.title == "“dirichlet” minus “iid”"
    assert table.rows == [
        ["the full method", "-0.100 [-0.348, +0.148]", "-"],
        ["without feedback <b>", "-", "-"],
    ]


def test_a_prompts_marks_are_but_text_in_markdown(tmp_path: Path) -> None:
    suite, results = write_suite(tmp_path), Results(tmp_path / "runs")
    (job, *_) = suite.jobs(["one", "full"])
    write_run(results, job, [0.5, 0.6], prompt="Is it *good* or <i>not?")
    page = write_report(suite, results, tmp_path / "report")
    text = (page.parent / "report.md").read_text(encoding="utf-8")
    assert r"<b>Is it \*</b>good<b>\* or &lt;i&gt;not</b>?" in text


def test_changed_words_are_marked() -> None:
    before, after = highlight("Classify the sentiment, please.", "Classify this sentiment.")
    assert "".join(piece.text for piece in before) == "Classify the sentiment, please."
    assert "".join(piece.text for piece in after) == "Classify this sentiment."
    assert [piece.words for piece in before if piece.changed] == ["the", ", please"]
    assert [(piece.space, piece.words) for piece in after if piece.changed] == [(" ", "this")]


class Reading(HTMLParser):
    """Collects marked words, and everything that would be loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.marked: list[str] = []
        self.loads: list[str] = []
        self._tag = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        self.loads += [
            str(v) for k, v in attrs if k == "src" or (k == "href" and v and v[0] != "#")
        ]
        if tag in ("script", "link", "img"):
            self.loads.append(tag)

    def handle_data(self, data: str) -> None:
        if self._tag in ("ins", "del"):
            self.marked.append(data)
        self._tag = ""


def test_the_page_needs_nothing_else_and_takes_no_text_for_markup(
    written: tuple[Suite, Results], tmp_path: Path
) -> None:
    page = write_report(*written, tmp_path / "report")
    text = page.read_text(encoding="utf-8")
    reading = Reading()
    reading.feed(text)
    assert reading.loads == []
    assert "url(http" not in text
    assert {"Was", "Is"} <= set(reading.marked)
    assert "<i>good" not in text
    assert "feedback <b>" not in text
    assert "&lt;i&gt;" in text
    assert "5 of 12 runs" in text
    assert text.count("<svg") == 1


def test_the_markdown_shows_figures_that_are_there(
    written: tuple[Suite, Results], tmp_path: Path
) -> None:
    folder = write_report(*written, tmp_path / "report").parent
    text = (folder / "report.md").read_text(encoding="utf-8")
    images = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert images == ["accuracy-one.png"]
    assert (folder / images[0]).read_bytes()[:4] == b"\x89PNG"
    assert (folder / "accuracy-one.svg").read_text(encoding="utf-8").startswith("<svg")
    assert (
        "| one / full / seed 0 | <b>Was</b> this film good? | <b>Is</b> this film good? |" in text
    )
    runs = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["runs"]
    assert [run["accuracy"] for run in runs if run["methods"] == "full"] == [*FULL.values()]
    assert runs[0]["curve"] == [
        {"round": 0, "queries": 0, "accuracy": 0.5},
        {"round": 1, "queries": 100, "accuracy": 0.6},
        {"round": 2, "queries": 200, "accuracy": FULL[0]},
    ]
    assert runs[-1] | {"tasks": "one", "methods": "blind", "seed": 1} == runs[-1]
    for run in runs:
        place = f"{run['tasks']}/{run['methods']}/seed{run['seed']}"
        assert run["run-folder"] == f"{place}/try-1/run", "a row leads to its run"
        assert (written[1].folder / run["run-folder"] / "prompt.json").is_file()
    again = write_report(*written, tmp_path / "again")
    assert again.read_bytes() == (folder / "report.html").read_bytes(), "the same every time"


def test_a_report_says_when_and_where_its_runs_were_made(tmp_path: Path) -> None:
    suite, results = write_suite(tmp_path), Results(tmp_path / "runs")
    elsewhere = {**MADE, "machine": "8 cores, made up"}
    made = [
        {**MADE, "date": "2026-11-24", "commit": "1a"},
        {**MADE, "commit": "2b"},
        {**elsewhere, "date": "2026-11-22"},
    ]
    for job in suite.jobs(["one", "full"]):
        write_run(results, job, [0.5, 0.6], made=made[job.seed])
    page = write_report(suite, results, tmp_path / "report")
    when = (
        "2026-11-20 to 2026-11-24, 2 cores, made up, flwr 1.41.0, commit 1a, 2b; "
        "2026-11-22, 8 cores, made up, flwr 1.41.0"
    )
    assert f"3 of 12 runs; {when}; `" in (page.parent / "report.md").read_text(encoding="utf-8")
    assert when in page.read_text(encoding="utf-8")
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert content["made"] == when
    assert [run["made"] for run in content["runs"]] == made


def test_a_report_says_of_how_many_runs_no_commit_is_known() -> None:
    made = [{**MADE, "commit": "1a"}, {**MADE, "commit": ""}, dict(MADE)]
    assert when_and_where(made).endswith("commit 1a (of 2 runs not known)")


def test_a_report_of_fewer_runs_overwrites_none_of_more(
    written: tuple[Suite, Results], tmp_path: Path
) -> None:
    command = ["report", str(tmp_path / "written.toml"), "--output", str(tmp_path / "report")]
    page = write_report(*written, tmp_path / "report")
    before = page.read_bytes()
    command += ["--folder", str(tmp_path / "clone")]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 1
    assert (
        f"{tmp_path / 'report.json'} holds 5 runs that the new report would not" in refused.stderr
    )
    assert page.read_bytes() == before
    assert CliRunner().invoke(app, [*command, "--force"]).exit_code == 0
    assert "0 of 12 runs; none made yet; " in page.read_text(encoding="utf-8").replace("\n", " ")


def test_a_suite_goes_on_from_its_report_alone(
    written: tuple[Suite, Results], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, results = written
    write_report(suite, results, tmp_path / "written")
    report = (tmp_path / "written" / "report.md").read_bytes()
    clone = tmp_path / "clone"
    kept = Results(clone / suite.name, shared=clone, kept=Kept(tmp_path))
    before, after = read_grid(suite, results), read_grid(suite, kept)
    assert after.num_runs == before.num_runs == 5
    for labels, cell in before.cells.items():
        for seed, outcome in cell.outcomes.items():
            found = after.cells[labels].outcomes[seed]
            assert replace(found, folder=outcome.folder) == outcome
            assert not found.is_here

    # A run of another suite counts if all is the same, and a new one beside those kept.
    other = write_suite(tmp_path, SUITE.replace("feedback = false", "reword = false"), "other")
    assert read_grid(other, kept).num_runs == 3
    write_run(kept, suite.jobs(["one", "blind"])[2], [0.5, 0.55, 0.7])
    assert read_grid(suite, kept).num_runs == 6

    monkeypatch.setattr("simulations.seeds.RESULTS", tmp_path)
    file, where = str(tmp_path / "written.toml"), ["--folder", str(tmp_path / "nothing"), "--kept"]
    dry = CliRunner().invoke(app, ["run", file, *where, "--dry-run"])
    assert "5 runs completed, 7 to run" in dry.stderr
    assert CliRunner().invoke(app, ["report", file, *where]).exit_code == 0
    assert (tmp_path / "written" / "report.md").read_bytes() == report


def test_kept_runs_of_other_settings_are_told_and_not_lost(
    written: tuple[Suite, Results], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(*written, tmp_path / "written")
    before = (tmp_path / "written.json").read_bytes()
    write_suite(tmp_path, SUITE.replace("feedback = false", "reword = false"))
    monkeypatch.setattr("simulations.seeds.RESULTS", tmp_path)
    command = [str(tmp_path / "written.toml"), "--folder", str(tmp_path / "nothing"), "--kept"]
    for of in (["run", *command, "--dry-run"], ["report", *command]):
        done = CliRunner().invoke(app, of)
        assert (
            f"2 runs of {tmp_path / 'written.json'} do not count, such as 'one / blind / seed 0'"
        ) in done.stderr.replace("\n", " ")
    assert done.exit_code == 1
    assert "holds 2 runs that the new report would not, such as 'one / blind / seed 0'" in (
        done.stderr
    )
    assert (tmp_path / "written.json").read_bytes() == before


def test_a_report_of_other_settings_is_not_overwritten_without_a_word(
    written: tuple[Suite, Results], tmp_path: Path
) -> None:
    suite, results = written
    write_report(suite, results, tmp_path / "written")
    before = (tmp_path / "written.json").read_bytes()
    changed = write_suite(tmp_path, SUITE + "[settings]\nk-shot = 3\n")
    results = Results(tmp_path / "others")
    for job in changed.jobs():
        write_run(results, job, [0.5, 0.6])
    with pytest.raises(ReportError, match="holds 5 runs that the new report would not"):
        write_report(changed, results, tmp_path / "written")
    assert (tmp_path / "written.json").read_bytes() == before
    write_report(changed, results, tmp_path / "written", force=True)


def test_a_suites_own_report_counts_before_those_of_others(
    written: tuple[Suite, Results], tmp_path: Path
) -> None:
    suite, results = written
    write_report(suite, results, tmp_path / "written")
    file = tmp_path / "written.json"
    other = re.sub(r'"accuracy": [0-9.]+', '"accuracy": 0.1', file.read_text(encoding="utf-8"))
    (tmp_path / "zebra.json").write_text(other, encoding="utf-8")
    (tmp_path / ".#written.json").symlink_to("nowhere")  # as an editor leaves
    for own, expected in (("written", True), ("zebra", False)):
        kept = Results(tmp_path / "none", kept=Kept(tmp_path, own))
        found = [
            outcome.accuracy
            for cell in read_grid(suite, kept).cells.values()
            for outcome in cell.outcomes.values()
        ]
        assert (min(found) > 0.1) is expected


def test_of_runs_on_files_none_is_kept(tmp_path: Path) -> None:
    files = 'data-source = "files"\ntrain-file = "own.csv"\ntest-file = "own-test.csv"\n[tasks.two]'
    suite = write_suite(tmp_path, SUITE.replace("[tasks.two]", files))
    results = Results(tmp_path / "runs")
    for job in suite.jobs(["full"]):
        write_run(results, job, [0.5, 0.6])
    write_report(suite, results, tmp_path / "written")
    runs = json.loads((tmp_path / "written.json").read_text(encoding="utf-8"))["runs"]
    assert [run["tasks"] for run in runs if "settings-sha256" in run] == ["two"] * 3
    kept = Kept(tmp_path)
    assert read_grid(suite, Results(tmp_path / "none", kept=kept)).num_runs == 3
    assert kept.unlike(suite) == [f"one / full / seed {seed}" for seed in range(3)]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: "{" + text, "is not a suite's file of runs"),
        (lambda text: text.replace('"seed": 0', '"seeds": 0'), "is not a suite's file of runs"),
        (lambda text: text.replace('"queries"', '"asked"', 1), "'queries'"),
    ],
)
def test_a_damaged_report_is_named(
    written: tuple[Suite, Results], tmp_path: Path, change: Callable[[str], str], told: str
) -> None:
    write_report(*written, tmp_path / "written")
    file = tmp_path / "written.json"
    file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ValueError, match=f"{re.escape(str(file))}.*{told}"):
        Kept(tmp_path)


def test_every_kept_run_is_one_of_its_suite() -> None:
    """Or a changed setting has made it useless to whoever adds a row."""
    kept = Kept(RESULTS)
    for file in SUITES.glob("*.toml"):
        unlike = kept.unlike(load_suite(file.stem))
        if file.stem == "table1-embedded":
            assert len(unlike) == 36
            assert all(set(GLUE) & set(place.split(" / ")) for place in unlike)
        elif file.stem != "table2-embedded":  # which other models are asked about
            assert unlike == []


def test_a_file_that_is_none_of_runs_is_not_overwritten(
    written: tuple[Suite, Results], tmp_path: Path
) -> None:
    (tmp_path / "report.json").write_text("<<<<<<< HEAD", encoding="utf-8")
    with pytest.raises(ReportError, match=r"report\.json is not a suite's file of runs; --force"):
        write_report(*written, tmp_path / "report")


def test_areas_tell_tokens_apart_whose_weights_no_float_holds() -> None:
    tokens = TokenMap(
        texts=[" a", " b", " c"],
        points=np.eye(3)[:, :2],
        log_weights=np.array([-2000.0, -1000.0, 0.0]),
        labels=np.array([0, 0, 1]),
        kept=np.array([False, False, True]),
        explained=(0.6, 0.4),
        num_prompts=300,
        clustered=True,
    )
    axes = map_of_tokens("tokens", "Tokens", tokens).figure.axes[0]
    clusters = axes.collections[-1]
    assert isinstance(clusters, PathCollection)
    assert clusters.get_sizes() == pytest.approx(np.array([20.0, 110.0, 200.0]))


def test_of_one_client_there_is_no_map(tmp_path: Path) -> None:
    suite, results = write_suite(tmp_path), Results(tmp_path / "runs")
    outcome = write_run(results, suite.jobs()[0], [0.5, 0.6], uploads=[[1, 2, 3, 4]])
    assert token_map(outcome) is None


@pytest.mark.slow
@pytest.mark.parametrize("guard", [True, False])
def test_the_map_is_of_the_step_that_the_app_takes(
    embedded_assets: None,
    vocabulary: Vocabulary,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    guard: bool,
) -> None:
    """With the guard, the step minds how the prompt reads."""
    minds = []

    def watched(*args: Any, **settings: Any) -> Aggregate:
        minds.append(settings["fluency_fn"] is not None)
        return aggregate(*args, **settings)

    monkeypatch.setattr(clusters, "aggregate", watched)
    text = SUITE + f"[settings]\nguard = {str(guard).lower()}\n"
    suite, results = write_suite(tmp_path, text), Results(tmp_path / "runs")
    uploads = [vocabulary.encode(text) for text in ("Is this film good?", "Is the movie good?")]
    outcome = write_run(results, suite.jobs(["one", "full"])[0], [0.5, 0.6], uploads=uploads)
    assert token_map(outcome) is not None
    assert minds == [guard]


@pytest.mark.slow
def test_the_map_shows_what_the_strategy_sees(
    embedded_assets: None, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    suite, results = write_suite(tmp_path), Results(tmp_path / "runs")
    texts = ["Is this film good?", "Is this film bad?", "Is the movie good?"]
    job = suite.jobs(["one", "full"])[0]
    outcome = write_run(
        results, job, [0.5, 0.6], uploads=[vocabulary.encode(text) for text in texts]
    )
    tokens = token_map(outcome)
    assert tokens is not None
    assert "".join(tokens.texts).split() == " ".join(texts).split()
    assert tokens.num_prompts == 3
    assert tokens.points.shape == (len(tokens.texts), 2)
    assert 0 < tokens.explained[1] <= tokens.explained[0] < 1
    assert tokens.kept.any()
    places = [i for i, text in enumerate(tokens.texts) if text == " good"]
    apart = np.linalg.norm(tokens.points[places[0]] - tokens.points[places[1]])
    others = [i for i, text in enumerate(tokens.texts) if text in (" Is", " film")]
    assert all(apart < np.linalg.norm(tokens.points[places[0]] - tokens.points[o]) for o in others)
    assert np.exp(tokens.log_weights).sum() == pytest.approx(
        sum(len(vocabulary.encode(text)) for text in texts)
    ), "each prompt's weights are on average one"


@pytest.mark.slow
def test_what_reads_like_language_has_a_low_perplexity(
    embedded_assets: None, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    suite, results = write_suite(tmp_path), Results(tmp_path / "runs")
    salad = "film good Is? this"
    for method, text in (("full", "Was this film good?"), ("blind", salad)):
        job = suite.jobs(["one", method])[0]
        write_run(results, job, [0.5, 0.6], prompt=text, tokens=vocabulary.encode(text))
    table = perplexity_table(read_grid(suite, results))
    assert table is not None
    (_, seed, learned), (_, same, mixed) = table.rows
    assert table.rows[0][0] == "the full method"
    assert table.rows[1][0] == "without feedback <b>"
    outcome = results.read(suite.jobs(["one", "full"])[0])
    assert isinstance(outcome, Outcome)
    before, after = before_and_after(outcome)
    assert seed == same == f"{before:,.0f}"
    assert before > 1
    assert float(mixed.replace(",", "")) > 3 * float(learned.replace(",", ""))
    assert learned == f"{after:,.0f}"

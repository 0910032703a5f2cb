import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import httpx
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError

from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import Example, Task, get_source, get_task
from feddtpt_flwr.data.embedded import EMBEDDED
from feddtpt_flwr.data.sampling import draw, to_examples
from simulations import obstacles
from simulations.grey_box import FedBBT, FedBPT
from simulations.grid import read_grid
from simulations.obstacles import obstacle
from simulations.outcome import CurvePoint, Failure, Results, write_atomically
from simulations.suite import AXES, SUITES, SuiteError, load_suite, most_queries
from tests.simulations.written_runs import MADE, SUITE, write_run, write_suite

NAMES = sorted(path.stem for path in SUITES.glob("*.toml"))


@pytest.fixture(scope="module")
def embedded_examples(embedded_assets: None) -> Callable[[Task], list[tuple[Example, ...]]]:
    """Return a task's embedded training and test examples, read once."""

    @cache
    def read(task: Task) -> list[tuple[Example, ...]]:
        tables = get_source(task.name, "embedded").load(task)
        return [to_examples(task, tables.train), to_examples(task, tables.test)]

    return read


@pytest.mark.parametrize("name", NAMES)
def test_every_suite_is_valid_and_its_runs_differ(name: str) -> None:
    suite = load_suite(name)
    jobs = suite.jobs(environment={"FEDDTPT_GLUE": "/data/glue"})
    assert len({job.key for job in jobs}) == len(jobs)
    assert len({(job.settings, job.num_clients, job.baseline, job.seed) for job in jobs}) == len(
        jobs
    )
    assert not any(job.unset or "$" in str(job.settings) for job in jobs)
    assert all(job.config.min_available_clients == job.num_clients for job in jobs)
    assert all(job.config.seed == job.seed for job in jobs)
    if name.endswith("-embedded"):
        assert {job.config.language_model for job in jobs} == {"embedded"}


@pytest.mark.parametrize("name", NAMES)
def test_every_run_of_a_suite_finds_enough_examples(
    name: str, embedded_examples: Callable[[Task], list[tuple[Example, ...]]]
) -> None:
    settings = ("k_shot", "public_per_class", "test_size", "partition", "dirichlet_alpha", "seed")
    draws = {
        (job.config.task, job.num_clients, *(getattr(job.config, key) for key in settings))
        for job in load_suite(name).jobs(environment={"FEDDTPT_GLUE": "/data/glue"})
        # Other data than the embedded need not be here.
        if job.config.data_source == "default" and job.config.task in EMBEDDED
    }
    for task_name, num_clients, *values in draws:
        task = get_task(task_name)
        data = draw(
            *embedded_examples(task),
            num_labels=task.num_labels,
            num_clients=num_clients,
            **dict(zip(settings, values, strict=True)),
        )
        assert len(data.clients) == num_clients


@pytest.mark.parametrize("name", NAMES)
def test_the_rows_of_a_suite_may_ask_equally_often(name: str) -> None:
    """Of each model, task, partition and budget; but not rows that ask what more or fewer bring."""
    others = {("search-long", "longer"), ("search-long", "early")}
    totals: dict[tuple[object, ...], set[int]] = {}
    for job in load_suite(name).jobs(environment={"FEDDTPT_GLUE": "/data/glue"}):
        if (name, job.label("methods")) in others:
            continue
        place = [job.label(axis) for axis in AXES if axis != "methods"]
        totals.setdefault(tuple(place), set()).add(most_queries(job))
    for rows, queries in totals.items():
        assert max(queries) <= 1.03 * min(queries), rows


def test_soft_prompts_have_as_many_generations_as_their_suite_says() -> None:
    num_examples = {
        2 * (job.config.k_shot + job.config.public_per_class)
        for name in ("table3-embedded", "table3-long")
        for job in load_suite(name).jobs()
    }
    assert num_examples == {12}
    assert FedBBT.generations(98, 12) == (4, 2)
    assert FedBPT.generations(98, 12) == (5, 1)
    assert FedBBT.generations(548, 12) == (20, 2)
    assert FedBPT.generations(548, 12) == (5, 8)


def test_a_base_gives_what_a_suite_does_not_say_itself() -> None:
    paper, ours = load_suite("table5"), load_suite("table5-embedded")
    budget = {"queries-per-round"}
    for label, method in paper.methods.items():
        assert method.items() - ours.methods[label].items() <= {(b, method.get(b)) for b in budget}
    assert paper.methods.keys() == ours.methods.keys()
    assert paper.tasks.keys() != ours.tasks.keys()
    assert ours.title != paper.title


def test_later_axes_win_and_seeds_come_one_after_the_other(tmp_path: Path) -> None:
    text = SUITE + "k-shot = 3\n[settings]\nk-shot = 5\nnum-server-rounds = 2\n"
    suite = write_suite(tmp_path, text)
    jobs = suite.jobs()
    assert [job.seed for job in jobs] == [0] * 4 + [1] * 4 + [2] * 4
    by_method = {job.label("methods"): job.config for job in jobs}
    assert by_method["full"].k_shot == 5
    assert by_method["blind"].k_shot == 3
    assert not by_method["blind"].feedback
    assert {job.config.num_server_rounds for job in jobs} == {2}
    assert {job.key for job in suite.jobs(["two", "full"])} == {
        f"two/full/seed{seed}" for seed in (0, 1, 2)
    }
    assert {job.seed for job in suite.jobs(seeds=2)} == {0, 1}
    assert {job.seed for job in suite.jobs(["two"], seeds=9)} == {0, 1, 2}
    both = suite.jobs(["one", "two", "full"])
    assert {job.key for job in both} == {
        job.key for task in ("one", "two") for job in suite.jobs([task, "full"])
    }
    with pytest.raises(SuiteError, match="no group is called 'three'; there are: blind, full"):
        suite.jobs(["three"])


def test_a_group_may_have_fewer_seeds(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, SUITE.replace("feedback = false", "num-seeds = 2"))
    assert [job.seed for job in suite.jobs(["blind"])] == [0, 0, 1, 1]
    grid = read_grid(suite, Results(tmp_path))
    assert grid.num_wanted == len(suite.jobs()) == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seeds = [0, 1, 2]", "seeds = []"), "seeds = "),
        (("seeds = [0, 1, 2]", "seeds = [1, 1]"), r"seeds = \[1, 1\]: different whole numbers"),
        (("seeds = [0, 1, 2]", ""), "seeds is missing"),
        (("seeds = [0, 1, 2]", "seeds = [0]\nsead = 1"), "unknown key 'sead'; keys: base, title"),
        (('compare = "full"', 'compare = "half"'), "compare = 'half': one of methods is needed"),
        (('compare = "full"', "transfer = true"), "transfer = true: two or more models"),
        (("feedback = false", "feedback = 1"), r"one/blind/seed0: feedback = 1: "),
        (("feedback = false", "feedbock = false"), "unknown key 'feedbock'"),
        (("feedback = false", "feedback = [1]"), r"methods.blind.feedback = \[1\]: "),
        (
            ("feedback = false", "num-clients = 0"),
            "methods.blind.num-clients = 0: a whole",
        ),
        (
            ("feedback = false", "num-seeds = 'two'"),
            "methods.blind.num-seeds = 'two': a whole",
        ),
        (("feedback = false", "baseline = 'bbt'"), "baseline = 'bbt': allowed are fedprompt, "),
        (("feedback = false", "seed = 4"), "one/blind/seed0: seed: the suite's to set"),
        (('"tweet_sentiment"', '"tweets"'), "two/full/seed0: unknown task 'tweets'; tasks: "),
        (
            ("feedback = false", "queries-per-round = 15"),
            "one/blind/seed0: queries-per-round = 15: 16 or more are needed for a search on 8 exa",
        ),
        (
            ("feedback = false", "queries-per-run = 50"),
            "one/blind/seed0: queries-per-run = 50: [0-9]* or more are needed for a search on 48",
        ),
        (
            ("feedback = false", "baseline = 'fedbpt'\nqueries-per-round = 239"),
            "one/blind/seed0: queries-per-round = 239: 240 or more are needed for fedbpt on 48 ex",
        ),
        (
            ("feedback = false", "min-available-clients = 11"),
            "one/blind/seed0: min-available-clients = 11: at most num-clients, 10, will be there",
        ),
        (("[tasks.one]", '[tasks."a b"]'), "tasks.a b: a label has letters"),
        (("[tasks.one]", "[tasks.one"), "written.toml: "),
        (("[tasks.one]", "[tasks]\none = 3\n[tasks.three]"), "tasks.one = 3: "),
    ],
)
def test_a_mistake_is_told_before_any_run(
    change: tuple[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SuiteError, match=message) as error:
        write_suite(tmp_path, SUITE.replace(*change))
    assert "written.toml" in str(error.value)


def test_a_suite_that_there_is_not() -> None:
    with pytest.raises(SuiteError, match=r"no suite is called 'tabel1'; there are: .*table1"):
        load_suite("tabel1")
    with pytest.raises(SuiteError, match=r"nowhere\.toml: there is no such file"):
        load_suite("nowhere.toml")


def test_queries_are_bounded_by_what_clients_may_ask(tmp_path: Path) -> None:
    settings = (
        "[settings]\nnum-server-rounds = 2\nk-shot = 4\npublic-per-class = 4\n"
        "queries-per-round = 50\n"
    )
    job = write_suite(tmp_path, SUITE + settings).jobs(["one", "full"])[0]
    # Ten clients search; all count 5 prompts on 4 + 4 examples of each of 2 classes.
    assert most_queries(job) == 2 * 10 * (50 + 5 * 16)
    for wanted, share in ((0, 16), (30, 3)):
        of_all = f"{settings}race-examples = {wanted}\n"
        job = write_suite(tmp_path, SUITE + of_all).jobs(["one", "full"])[0]
        assert most_queries(job) == 2 * 10 * (50 + 5 * share)


def test_the_readme_says_how_many_queries_each_suite_asks() -> None:
    text = (SUITES.parent / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(.+)` \| .* \| ([\d,.]+)( M)? \|$", text, re.MULTILINE)
    told = {}
    for names, number, millions in rows:
        # With two suites, the second is the embedded one, which the column is about.
        name = names.split("`, `")[-1]
        told[name] = float(number.replace(",", "")) * (1e6 if millions else 1)
    assert told.keys() == {name for name in NAMES if f"{name}-embedded" not in NAMES}
    for name, number in told.items():
        jobs = load_suite(name).jobs(environment={"FEDDTPT_GLUE": "/data/glue"})
        assert sum(map(most_queries, jobs)) == pytest.approx(number, rel=0.03), name


def test_results_are_of_exactly_these_settings(tmp_path: Path) -> None:
    results = Results(tmp_path / "runs")
    job, other = write_suite(tmp_path).jobs(["one"])[:2]
    assert results.read(job) is None
    outcome = write_run(results, job, [0.5, 0.6, 0.75])
    assert results.read(job) == outcome
    assert results.read(other) is None
    assert outcome.curve == (
        CurvePoint(0, 0, 0.5),
        CurvePoint(1, 100, 0.6),
        CurvePoint(2, 200, 0.75),
    )
    assert outcome.made == MADE
    assert outcome.num_bytes == (1000, 2000)
    (changed, *_) = write_suite(tmp_path, SUITE + "[settings]\nk-shot = 3\n").jobs(["one"])
    assert changed.key == job.key
    assert results.read(changed) is None
    # A run of other settings in the same folder fails: what has completed there stays.
    results.write_failure(changed, Failure("no more memory"))
    assert results.read(changed) == Failure("no more memory")
    assert results.read(job) == outcome


def test_many_may_write_one_file_at_a_time(tmp_path: Path) -> None:
    file = tmp_path / "report.md"
    texts = [str(number) * 10_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(partial(write_atomically, file), 20 * texts))
    assert file.read_text(encoding="utf-8") in texts
    assert list(tmp_path.iterdir()) == [file]


def test_a_run_whose_folder_is_gone_hides_none_of_the_same(tmp_path: Path) -> None:
    suites = tmp_path / "runs"
    job, *_ = write_suite(tmp_path).jobs(["one", "full"])
    outcome = write_run(Results(suites / "first", shared=suites), job, [0.5, 0.6])
    gone = write_run(Results(suites / "second", shared=suites), job, [0.5, 0.7])
    shutil.rmtree(gone.folder)
    assert Results(suites / "third", shared=suites).read(job) == outcome


def test_a_run_of_one_suite_is_one_of_all_that_want_the_same(tmp_path: Path) -> None:
    suites = tmp_path / "runs"
    first = Results(suites / "first", shared=suites)
    job, another = write_suite(tmp_path).jobs(["one", "full"])[:2]
    outcome = write_run(first, job, [0.5, 0.6])
    renamed = SUITE.replace("[tasks.one]", "[tasks.same]")
    assert renamed != SUITE
    (same, *_) = write_suite(tmp_path, renamed).jobs(["same", "full"])
    assert same.key != job.key
    second = Results(suites / "second", shared=suites)
    assert second.read(same) == outcome
    second.write_failure(same, Failure("no more memory"))
    assert second.read(same) == outcome
    assert second.read(another) is None
    (other, *_) = write_suite(tmp_path, renamed + "[settings]\nk-shot = 3\n").jobs(["same", "full"])
    assert Results(suites / "third", shared=suites).read(other) is None
    (suites / "second" / "half").mkdir(parents=True)
    (suites / "second" / "half" / "result.json").write_text("{", encoding="utf-8")
    assert Results(suites / "third", shared=suites).read(same) == outcome


def test_results_of_other_defaults_of_the_app_are_of_another_run(tmp_path: Path) -> None:
    results = Results(tmp_path / "runs")
    job = write_suite(tmp_path).jobs(["one", "full"])[0]
    write_run(results, job, [0.5, 0.6])
    file = results.job_folder(job) / "result.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    settings = content["job"]["settings"]
    assert settings == job.config.to_run_config()
    assert "race-examples" not in dict(job.settings), "the suite leaves it to the app"
    settings["race-examples"] += 1
    file.write_text(json.dumps(content), encoding="utf-8")
    assert results.read(job) is None


def test_results_that_hold_no_complete_settings_are_of_another_run(tmp_path: Path) -> None:
    results = Results(tmp_path / "runs")
    job = write_suite(tmp_path).jobs()[0]
    write_run(results, job, [0.5, 0.6])
    file = results.job_folder(job) / "result.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    own = {"settings": dict(job.settings), "num-clients": job.num_clients, "seed": job.seed}
    file.write_text(json.dumps({**content, "job": own}), encoding="utf-8")
    assert results.read(job) is None


def test_a_result_from_before_memory_was_measured_is_one(tmp_path: Path) -> None:
    results = Results(tmp_path / "runs")
    job = write_suite(tmp_path).jobs()[0]
    outcome = write_run(results, job, [0.5, 0.6], peak_mib=700)
    assert results.read(job) == outcome
    assert outcome.peak_mib == 700
    file = results.job_folder(job) / "result.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    assert content.pop("peak_mib") == 700
    file.write_text(json.dumps(content), encoding="utf-8")
    assert results.read(job) == replace(outcome, peak_mib=None)


def test_half_a_result_is_none(tmp_path: Path) -> None:
    results = Results(tmp_path / "runs")
    job = write_suite(tmp_path).jobs()[0]
    folder = write_run(results, job, [0.5, 0.6]).folder
    (folder / "prompt.json").unlink()
    assert results.read(job) is None
    for text in ('{"job"', "null"):
        (results.job_folder(job) / "result.json").write_text(text, encoding="utf-8")
        assert results.read(job) is None


def test_what_cannot_be_run_here_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError

    monkeypatch.setattr(HfApi, "repo_info", unreachable)
    obstacles._hub_obstacle.cache_clear()
    suite = write_suite(
        tmp_path,
        SUITE
        + f"""
[models.embedded]
[models.hub]
language-model = "nobody/nothing-of-this-name"
[models.file]
language-model = "{tmp_path}/none.gguf"
[models.endpoint]
language-model = "any"
endpoint = "http://127.0.0.1:9/v1"
[models.masked-lm]
masked-lm = "nobody/no-masked-lm-either"
""",
    )
    why = {job.label("models"): obstacle(job) for job in suite.jobs(["one"])}
    assert why["embedded"] == ""
    assert why["hub"] == "hub model nobody/nothing-of-this-name not reachable (ConnectionError)"
    assert why["file"].startswith("no file ")
    assert why["endpoint"].startswith("endpoint 127.0.0.1:9 not reachable")
    assert why["masked-lm"].startswith("hub model nobody/no-masked-lm-either")
    obstacles._hub_obstacle.cache_clear()


def test_a_model_that_one_was_not_let_in_to_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With answers of the hub as it would give them: no hub can be reached here."""

    class Information:
        """A double of what the hub tells anyone about a gated repository."""

        gated = "manual"

    def refuse(_: object, name: str, *, repo_type: str) -> None:
        if name == "nobody/gated":
            response = httpx.Response(403, request=httpx.Request("GET", "https://hub.example"))
            raise GatedRepoError(f"not on the list of this {repo_type}", response=response)

    monkeypatch.setattr(HfApi, "repo_info", lambda *_, **__: Information())
    monkeypatch.setattr(HfApi, "auth_check", refuse)
    obstacles._hub_obstacle.cache_clear()
    models = "".join(f'[models.{m}]\nlanguage-model = "nobody/{m}"\n' for m in ("gated", "let-in"))
    jobs = write_suite(tmp_path, SUITE + models).jobs(["one"])
    why = {job.label("models"): obstacle(job) for job in jobs}
    assert why["gated"] == "hub model nobody/gated is gated, and access has not been granted"
    assert why["let-in"] == ""
    obstacles._hub_obstacle.cache_clear()


def test_data_that_are_not_here_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDDTPT_GLUE", raising=False)
    (job, *_) = load_suite("table1-embedded").jobs(["cola"])
    assert obstacle(job) == "FEDDTPT_GLUE not set"
    monkeypatch.setenv("FEDDTPT_GLUE", str(tmp_path))
    (job, *_) = load_suite("table1-embedded").jobs(["cola"])
    assert obstacle(job) == f"no file {tmp_path}/cola/train.tsv"
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / "cola").mkdir(exist_ok=True)
        (tmp_path / "cola" / name).touch()
    assert obstacle(job) == ""
    assert json.loads(json.dumps(job.config.to_run_config()))["train-file"].startswith("/")
    assert isinstance(job.config, RunConfig)

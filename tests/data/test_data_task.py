import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feddtpt_flwr.data import (
    DEFAULT_TASK,
    SOURCES,
    TASKS,
    DataError,
    EmbeddedSource,
    HubSource,
    Task,
    get_source,
    get_task,
)

REVIEWS = Task(
    name="reviews",
    template="{prompt}\n\nTitle: {title}\nReview: {text}\nSentiment:",
    label_column="label",
    labels=(0, 1),
    answers=("negative", "positive"),
    seed_prompt="Judge this review.",
)

TICKETS = """
name = "tickets"
template = "{prompt}\\n\\nTicket: {body}\\nDepartment:"
label_column = "department"
labels = ["billing", "technical"]
answers = ["Billing", "Technical"]
seed_prompt = "Which department?"
"""


def test_query_is_prompt_and_input() -> None:
    row = {"title": " Up ", "text": "A joy.\n", "label": 1}
    query = REVIEWS.compose("Is it good?", REVIEWS.render(row))
    assert query == "Is it good?\n\nTitle: Up\nReview: A joy.\nSentiment:"


@pytest.mark.parametrize(
    ("template", "rendered", "query"),
    [
        ("Task: {prompt}\n{text}{text} {{x}}:", "\naa {x}:", "Task: go\naa {x}:"),
        ("{{x}} {text}{text}\n{prompt}\n{{y}}:", "{x} aa\n", "{x} aa\ngo\n{y}:"),
        ("{text}{prompt}", "a", "ago"),
    ],
)
def test_what_stands_at_the_prompts_far_side_belongs_to_compose(
    template: str, rendered: str, query: str
) -> None:
    task = dataclasses.replace(REVIEWS, template=template)
    assert task.render({"text": "a"}) == rendered
    assert task.compose("go", rendered) == query
    assert task.text_columns == ("text",)


def test_text_columns_stand_in_template_order() -> None:
    assert REVIEWS.text_columns == ("title", "text")
    assert REVIEWS.num_labels == 2


@settings(deadline=None)
@given(prompt=st.text(), text=st.text())
def test_braces_in_prompt_and_text_are_plain_text(prompt: str, text: str) -> None:
    first = dataclasses.replace(REVIEWS, template="{prompt}|{text}")
    assert first.compose(prompt, first.render({"text": text})) == f"{prompt}|{text.strip()}"
    last = dataclasses.replace(REVIEWS, template="{text}|{prompt}")
    assert last.compose(prompt, last.render({"text": text})) == f"{text.strip()}|{prompt}"


@pytest.mark.parametrize(
    ("labels", "value", "index"),
    [((0, 1), 1, 1), ((0, 1), "1", 1), (("0", "1"), 1.0, 1), (("no", "yes"), " yes ", 1)],
)
def test_labels_agree_as_strings(labels: tuple[str | int, ...], value: object, index: int) -> None:
    assert dataclasses.replace(REVIEWS, labels=labels).label_index(value) == index


def test_undeclared_label_is_named() -> None:
    with pytest.raises(DataError, match=r"label '2' is not declared; labels: \['0', '1'\]"):
        REVIEWS.label_index(2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": " "}, "name is ' ': a non-empty string"),
        ({"name": 3}, "name is 3: a non-empty string"),
        ({"seed_prompt": ""}, "seed_prompt is '': a non-empty string"),
        ({"label_column": ""}, "label_column is ''"),
        ({"template": "Review: {text}"}, "{prompt} is needed exactly once"),
        ({"template": "{prompt} {prompt} {text}"}, "is needed exactly once, for the prompt; a"),
        ({"template": "{prompt} only"}, "at least one text column is needed besides {prompt}; a"),
        ({"label_column": "prompt"}, "a column of that name in the data must be renamed"),
        ({"template": "{text} {prompt} {title}"}, "before all text columns or after them"),
        ({"template": "{prompt} {text} {label}"}, "gives the label column {label} away"),
        ({"template": "{prompt} {text:>9}"}, "fields must be plain {column} names"),
        ({"template": "{prompt} {}"}, "fields must be plain {column} names"),
        ({"template": "{prompt} {text!r}"}, "fields must be plain {column} names"),
        ({"template": "{prompt} {text.body}"}, "fields must be plain {column} names"),
        ({"template": "{prompt} {text[0]}"}, "fields must be plain {column} names"),
        ({"template": "{prompt} {text"}, "a literal brace is written twice"),
        ({"labels": [0, 1]}, "labels is [0, 1]: a tuple of strings or integers"),
        ({"labels": (0.5, 1)}, "a tuple of strings or integers"),
        ({"labels": (False, True)}, "a tuple of strings or integers"),
        ({"labels": (0,)}, "two or more values are needed"),
        ({"labels": (1, "1")}, "different as strings"),
        ({"answers": ["a", "b"]}, "answers is ['a', 'b']: a tuple of strings"),
        ({"answers": ("a", 1)}, "a tuple of strings"),
        ({"answers": ("a", "b", "c")}, "one answer for each of the 2 labels"),
        ({"answers": ("a", "")}, "every answer must be non-empty"),
        ({"answers": ("a", " b")}, "without space at its ends"),
        ({"answers": ("Yes", "yes")}, "the answers must differ"),
        ({"answers": ("x\u00b2", "x2")}, "the answers must differ"),
        ({"answers": ("so so", "so  so")}, "the answers must differ"),
        ({"answers": ("sci-fi", "sci\u2011fi")}, "the answers must differ"),
    ],
)
def test_invalid_task_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        dataclasses.replace(REVIEWS, **changes)
    assert message in str(caught.value)


def test_task_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "tickets.toml"
    path.write_text(TICKETS)
    task = get_task(path)
    assert task == Task.from_toml(str(path))
    assert task.labels == ("billing", "technical")
    assert task.compose("Q", task.render({"body": "No light."})) == (
        "Q\n\nTicket: No light.\nDepartment:"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TICKETS + 'colour = "red"', "unknown key 'colour'; allowed keys: name, template"),
        (TICKETS.replace("answers =", "labels2 ="), "unknown key 'labels2'"),
        (TICKETS.replace('seed_prompt = "Which department?"', ""), "key 'seed_prompt' is missing"),
        (TICKETS.replace("Technical", "Billing"), "the answers must differ"),
        ("name = ", "cannot read task file"),
    ],
)
def test_invalid_toml_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "task.toml"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        Task.from_toml(path)


def test_missing_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read task file .*absent\.toml"):
        get_task(tmp_path / "absent.toml")


def test_unknown_task_lists_the_names() -> None:
    with pytest.raises(DataError, match=r"unknown task 'rotten'; tasks: rotten_tomatoes, imdb"):
        get_task("rotten")


@pytest.mark.parametrize("name", TASKS)
def test_registry_is_consistent(name: str) -> None:
    task = get_task(name)
    assert task.name == name
    assert "\n\n{prompt}\n" in task.template
    assert all(" " not in answer for answer in task.answers)
    assert get_source(name) is next(iter(SOURCES[name].values()))


def test_default_task_needs_no_hub() -> None:
    assert isinstance(get_source(DEFAULT_TASK), EmbeddedSource)


def test_glue_is_evaluated_on_validation() -> None:
    glue = [task for task in TASKS if not isinstance(get_source(task), EmbeddedSource)]
    assert sorted(glue) == ["cola", "mrpc", "qnli", "qqp", "rte", "sst2", "wnli"]
    for name in glue:
        source = get_source(name, "hub")
        assert isinstance(source, HubSource)
        assert (source.name, source.config) == ("nyu-mll/glue", name)
        assert source.test_split == "validation"


@pytest.mark.parametrize(
    ("task", "kind", "message"),
    [
        ("tickets", None, "task 'tickets' has no source of its own; tasks that have: rotten"),
        ("rte", "embedded", "task 'rte' has no source of kind 'embedded'; its kinds: hub"),
    ],
)
def test_unknown_source_is_refused(task: str, kind: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        get_source(task, kind)


SYNONYMS = """
name = "tickets"
template = "{prompt} {body}:"
label_column = "department"
labels = ["b", "t"]
answers = ["billing", "technical"]
seed_prompt = "Which department?"
synonyms = [["payment", "invoice"], []]
"""


def test_synonyms_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "task.toml"
    file.write_text(SYNONYMS, encoding="utf-8")
    task = Task.from_toml(file)
    assert task.synonyms == (("payment", "invoice"), ())
    assert hash(task)


@pytest.mark.parametrize(
    ("synonyms", "allowed"),
    [
        ((("payment",),), "as many are needed as answers, 2"),
        (("payment", "help"), "a tuple of strings is needed for each answer"),
        (((1,), ()), "a tuple of strings is needed for each answer"),
        ((("",), ()), "every word must be non-empty"),
        ((("pay",), ("Pay",)), "no word may stand twice"),
        ((("technical",), ()), "no word may stand twice"),
        ((("don't",), ("Don\u2019t",)), "no word may stand twice"),
    ],
)
def test_synonyms_are_checked(synonyms: Any, allowed: str) -> None:
    with pytest.raises(DataError, match="synonyms is") as caught:
        Task("t", "{prompt} {x}", "y", (0, 1), ("billing", "technical"), "p", synonyms)
    assert allowed in str(caught.value)

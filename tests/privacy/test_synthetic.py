from collections.abc import Sequence

import numpy as np
import pytest

from feddtpt_flwr.config import ConfigError, RunConfig
from feddtpt_flwr.data import Example, Task, get_task
from feddtpt_flwr.language_model import ModelUnavailableError
from feddtpt_flwr.language_model.local import LocalLanguageModel
from feddtpt_flwr.privacy.synthetic import (
    Written,
    is_copy,
    read_text,
    write_examples,
    writing_query,
)

RTE = get_task("rte")


def test_the_query_shows_examples_and_ends_where_one_begins(task: Task) -> None:
    shown = Example(task.render({"text": "a dull film"}), 0)
    query = writing_query(task, "Judge it.", 0, [shown])
    assert query == (
        "Different examples for this task: Judge it.\n\n"
        "Sentiment: negative\nReview: a dull film\n\n"
        "Sentiment: negative\nReview:"
    )
    assert writing_query(RTE, "?", 1, []).endswith("Entailment: no\nPremise:")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" a fine little film.", "a fine little film."),
        (" a fine little film.\n\nSentiment: positive\nReview: other", "a fine little film."),
        (" a fine\nlittle film. Sentiment: positive", "a fine little film."),
        (" good.", None),
        ("", None),
        ("\n\nReview: the film is good", None),
    ],
)
def test_the_form_of_a_text(task: Task, text: str, expected: str | None) -> None:
    assert read_text(task, text) == (expected and task.render({"text": expected}))


def test_tasks_of_several_texts() -> None:
    wanted = RTE.render({"sentence1": "it rained all day", "sentence2": "the sun was out"})
    assert read_text(RTE, " it rained all day\nHypothesis: the sun was out\n\nEnt") == wanted
    assert read_text(RTE, " it rained all day") is None


def test_copies_are_told_apart() -> None:
    assert is_copy("a fine little film with heart", ["A fine little film with much heart"])
    assert not is_copy("a fine little film with heart", ["the worst I saw in all those years"])
    assert not is_copy("anything", [])


class Scripted:
    """A double of a black box that writes what it is told to, then fails."""

    name = "scripted"

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)
        self.asked: list[str] = []

    def answer(self, queries: Sequence[str], choices: Sequence[str]) -> list[str]:
        assert not choices
        self.asked += queries
        if len(queries) > len(self.texts):
            raise ModelUnavailableError("no more")
        return [self.texts.pop(0) for _ in queries]


def written(model: Scripted, task: Task, max_queries: int, per_class: int = 1) -> Written:
    public = [
        Example(task.render({"text": text}), label)
        for label, texts in enumerate([["a dull, dull film", "it bored me"], ["I loved it much"]])
        for text in texts
    ]
    rng = np.random.default_rng(0)
    return write_examples(
        model, task, "Judge it.", public, rng, per_class=per_class, max_queries=max_queries
    )


def test_what_is_missing_is_asked_for_once_more(task: Task) -> None:
    model = Scripted(" a dull dull film", " such a fine story", " nobody should see it", " unused")
    result = written(model, task, 10)
    assert [(e.label, e.input) for e in result.examples] == [
        (1, task.render({"text": "such a fine story"})),
        (0, task.render({"text": "nobody should see it"})),
    ]
    assert result.queries == 3
    assert all("negative" in query for query in model.asked[::2])


def test_no_more_is_asked_than_allowed(task: Task) -> None:
    model = Scripted(*["x"] * 10)
    assert written(model, task, 3, per_class=4) == Written((), 3)


def test_a_black_box_that_fails_leaves_what_it_wrote(task: Task) -> None:
    result = written(Scripted(" it was a bad bore", "no"), task, 10)
    assert [e.label for e in result.examples] == [0]
    assert result.queries == 2


@pytest.mark.slow
def test_a_real_model_writes_examples(
    language_model: LocalLanguageModel, task: Task, short_reviews: tuple[Example, ...]
) -> None:
    public = short_reviews[:12]
    result = write_examples(
        language_model,
        task,
        task.seed_prompt,
        public,
        np.random.default_rng(0),
        per_class=1,
        max_queries=4,
    )
    assert len(result.examples) >= 1
    assert result.queries <= 4
    texts = [e.input for e in result.examples]
    assert len(set(texts)) == len(texts)
    assert not set(texts) & {e.input for e in public}
    assert all(text.startswith("Review: ") and text.endswith("\n\n") for text in texts)


def test_demonstrations_are_needed() -> None:
    with pytest.raises(ConfigError, match="privacy = 'synthetic': public-per-class of 1 or more"):
        RunConfig.from_run_config({"privacy": "synthetic", "public-per-class": 0})


def test_the_same_text_twice_is_one_example(task: Task) -> None:
    model = Scripted(*[" such a fine story"] * 4)
    result = written(model, task, 4, per_class=2)
    assert len(result.examples) == 1
    shown = [query for query in model.asked if "Sentiment: positive" in query]
    assert shown
    assert not [query for query in shown if "dull" in query or "bored" in query]

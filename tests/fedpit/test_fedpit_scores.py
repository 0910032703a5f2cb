import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from feddtpt_flwr.fedpit.instructions import Instruction
from feddtpt_flwr.fedpit.lora import AdaptedModel, Continuation
from feddtpt_flwr.fedpit.scores import (
    Mean,
    Utility,
    closest,
    is_close,
    longest_copy,
    rouge_l,
)
from feddtpt_flwr.fedpit.synthesis import instruction_fault, response_fault, synthesise

PRIVATE = (
    Instruction(
        "How did the pills work for this patient of forty years?",
        "The pain in both knees was gone after the second week.",
    ),
    Instruction("Was the experience with the cream good or bad?", "good"),
)


@pytest.mark.parametrize(
    ("answer", "wanted", "score"),
    [
        ("a b c d", "a b c d", 1.0),
        ("A, b; C d.", "a b c d", 1.0),
        ("a c", "a b c d", 2 / 3),  # recall 1/2, precision 1
        ("d c b a", "a b c d", 1 / 4),
        ("", "a b", 0.0),
        ("x", "", 0.0),
        ("Боль прошла, сразу!", "боль прошла сразу", 1.0),
        ("Zażółć gęślą jaźń", "zażółć gęślą", 0.8),
        ("疼痛消失了", "疼痛没有消失", 8 / 11),  # character by character
        ("snake_case", "snake case", 1.0),
        ("cafe\u0301", "café", 1.0),
        ("नकारात्मक", "नकारात्मक अनुभव", 2 / 3),  # its vowel signs are part of the word
    ],
)
def test_rouge_l(answer: str, wanted: str, score: float) -> None:
    assert rouge_l(answer, wanted) == pytest.approx(score)


def test_closest() -> None:
    assert closest("a b", ["c", "a b c", "a"]) == pytest.approx(0.8)
    assert closest("a b", []) == 0


def test_only_texts_that_can_be_close_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []

    def counted(answer: str, wanted: str) -> float:
        compared.append(1)
        return rouge_l(answer, wanted)

    monkeypatch.setattr("feddtpt_flwr.fedpit.scores.rouge_l", counted)
    text = " ".join(f"word{i}" for i in range(13))
    parts = [" ".join(text.split()[:number]) for number in range(1, 14)]
    for part in parts:
        for limit in (0.5, 0.7, 0.8):
            assert is_close(text, [part], limit) == (rouge_l(text, part) > limit)
    assert len(compared) == 21, "of 39"


@pytest.mark.parametrize(
    ("texts", "others", "number"),
    [
        (["x a b c y", "b c d"], ["d a B, c z"], 3),
        (["a b"], ["c", "a b a b"], 2),
        (["疼痛消失了"], ["没有疼痛消失"], 4),
        (["a"], ["b"], 0),
        ([], ["b"], 0),
    ],
)
def test_longest_copy(texts: list[str], others: list[str], number: int) -> None:
    assert longest_copy(texts, others) == number


def test_a_mean_with_its_interval() -> None:
    mean = Mean.of([0.0, 1.0] * 20)
    assert mean.value == 0.5
    assert 0.3 < mean.low < 0.5 < mean.high < 0.7
    assert Mean.of([0.25]) == Mean(0.25, 0.25, 0.25, 1)


def test_the_interval_of_many_values_takes_little_memory() -> None:
    values = [0.0, 1.0] * 10_000
    tracemalloc.start()
    Mean.of(values)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**27, "all resamples at once take 1.5 GiB"


def test_utility_counts_only_classifications_as_right_or_wrong() -> None:
    choices = ("good", "bad")
    rows = [
        Instruction("?", "good", "", choices),
        Instruction("?", "bad", "", choices),
        Instruction("?", "a b c d"),
    ]
    utility = Utility.of(rows, ["Good.", "it is good", "a b c d"])
    assert utility.accuracy is not None
    assert (utility.accuracy.correct, utility.accuracy.total) == (1, 2)
    assert utility.rouge_l.value == pytest.approx((1 + 0 + 1) / 3)
    assert Utility.of(rows[2:], ["x"]).accuracy is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("What?", "short"),
        ("", "short"),
        ("As an AI model I have no instructions", "refusal"),
        ("I'm sorry, but this is not possible", "refusal"),
        ("Sorry, no more instructions of this sort", "refusal"),
        ("How did the pills work for this patient of fifty years?", "private"),
        ("The pain in both knees was gone after the second week.", "private"),
        ("药片对病人的效果怎么样", ""),
        ("Tell me whether the syrup helped her at night.", "repeated"),
        ("Ask which dose the doctor gave to the child.", ""),
    ],
)
def test_faults_of_synthetic_instructions(text: str, fault: str) -> None:
    synthetic = [Instruction("Tell me whether the syrup helped her at night", "yes")]
    assert instruction_fault(text, PRIVATE, synthetic) == fault


@pytest.mark.parametrize(
    ("response", "fault"),
    [
        ("", "short"),
        ("As a patient I cannot say", "refusal"),
        ("I\u2019m sorry, but no", "refusal"),
        ("I can\u2019t help with this.", "refusal"),
        ("I'm unable to say.", "refusal"),
        ("I apologize, but no.", "refusal"),
        ("Unfortunately, I cannot say.", "refusal"),
        ("Unfortunately, it did not work.", ""),
        ("good", ""),
        ("The pain in both knees was gone after the second month.", "private"),
        ("How did the pills work for this patient of forty years?", "private"),
        ("It took a while until she could sleep again.", ""),
    ],
)
def test_faults_of_synthetic_responses(response: str, fault: str) -> None:
    row = Instruction("Ask which dose the doctor gave to the child.", response)
    assert response_fault(row, PRIVATE) == fault


LONG = " ".join(f"word{i}" for i in range(30))


@pytest.mark.parametrize("words", [7, 8])
def test_a_piece_of_a_private_text_is_private(words: int) -> None:
    piece = (
        f"Somebody told me this: {' '.join(LONG.split()[5 : 5 + words])} and more of other sorts."
    )
    fault = "private" if words == 8 else ""
    for private in (Instruction(LONG, "yes"), Instruction("Is it so?", LONG)):
        assert instruction_fault(piece, [private], ()) == fault
        assert response_fault(Instruction("Ask for the dose of it.", piece), [private]) == fault


def test_what_all_are_asked_is_not_private() -> None:
    question = "Say whether the patient who wrote the following was content or not:"
    new = f"{question} it helped her at night and she slept"
    rows = [Instruction(f"{question} {LONG} {i}", "yes") for i in range(4)]
    assert instruction_fault(new, rows[:3], ()) == "private", "it may be one patient's file"
    assert instruction_fault(new, rows, ()) == ""
    assert instruction_fault(new, [replace(rows[0], about=LONG)], ()) == ""
    assert instruction_fault(f"{new} {LONG}", [replace(rows[0], about=LONG)], ()) == "private"


@pytest.mark.parametrize(
    "label", ["ポジティブ", "非常不满意", "เชิงบวก", "check-in/check-out policy"]
)
def test_labels_of_any_script_may_be_the_same(label: str) -> None:
    row = Instruction("Ask which dose the doctor gave to the child.", label)
    assert response_fault(row, [Instruction("Was it good or bad?", label)]) == ""


def test_the_choices_of_a_classification_may_be_sentences() -> None:
    choice = "The patient would take the medicine again at once."
    row = Instruction("Ask which dose the doctor gave to the child.", choice)
    private = Instruction("Would the patient take it again?", choice, "", (choice, "No."))
    assert response_fault(row, [private]) == ""
    assert response_fault(row, [replace(private, choices=())]) == "private"


def test_a_sentence_without_spaces_is_compared() -> None:
    text = "病人在服用药片两周之后膝盖的疼痛消失了"
    row = Instruction("请写出医生给孩子开的剂量是多少", text)
    assert response_fault(row, [Instruction("药效如何", text)]) == "private"


class Parrot:
    """A double of a model that repeats what it is shown of a private response, word for word."""

    def shorten(self, row: Instruction) -> Instruction:
        return replace(row, response=" ".join(row.response.split()[:20]))

    def continue_text(
        self, beginning: str, continuations: Sequence[str], **_: Any
    ) -> list[Continuation]:
        text = "Ask which dose the doctor gave to the child."
        if any("Response" in continuation for continuation in continuations):
            text = beginning.rsplit("Response:\n", 1)[1].strip()
        return [Continuation(text, True)] * len(continuations)


def test_the_beginning_of_a_long_private_text_is_a_copy_of_it() -> None:
    """The rest was cut off before the model saw it."""
    long = Instruction("What did the patient say of it?", " ".join(f"word{i}" for i in range(100)))
    made = synthesise(
        cast(AdaptedModel, Parrot()),
        [long],
        num_candidates=2,
        num_demonstrations=1,
        max_instruction_tokens=16,
        max_response_tokens=20,
        rng=np.random.default_rng(0),
    )
    assert made.candidates == ()
    assert made.dropped["private"] > 0


def test_texts_that_have_not_ended_at_the_limit_are_dropped() -> None:
    class Talking(Parrot):
        def continue_text(self, *args: Any, **_: Any) -> list[Continuation]:
            written = super().continue_text(*args)
            return [row._replace(finished=i > 0) for i, row in enumerate(written)]

    made = synthesise(
        cast(AdaptedModel, Talking()),
        [Instruction("Was it good or bad?", "good")],
        num_candidates=2,
        num_demonstrations=1,
        max_instruction_tokens=16,
        max_response_tokens=20,
        rng=np.random.default_rng(0),
    )
    assert (made.written, len(made.candidates)) == (6, 0)
    # Of each attempt the first instruction, and then the first response: the only one.
    assert made.dropped["unfinished"] == 6


def test_repetitions_within_an_attempt_are_dropped() -> None:
    text = " ".join(f"word{i}" for i in range(100))
    made = synthesise(
        cast(AdaptedModel, Parrot()),
        [Instruction("What did the patient say of it?", text)],
        num_candidates=2,
        num_demonstrations=1,
        max_instruction_tokens=16,
        max_response_tokens=20,
        rng=np.random.default_rng(0),
    )
    assert made.dropped["repeated"] == 3

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from feddtpt_flwr.data import Example, Task
from feddtpt_flwr.language_model import FatalModelError, local
from feddtpt_flwr.language_model.local import LocalLanguageModel
from feddtpt_flwr.language_model.weights import load_causal_lm

PROMPTS = [
    "Classify the sentiment of this movie review as positive or negative.",
    "Did the critic like it? Say negative if not and positive if so!",
]
MARGIN = 1e-3  # logits closer than this are a tie to float32 arithmetic

AMBIGUOUS = ["good", "good movie", "good movie indeed", "bad"]
LONG_WORDS = ["unquestionably terrible", "unquestionably terrific", "forgettable"]


def next_logits(ids: Sequence[int]) -> torch.Tensor:
    """One sequence through the whole model: no cache, no padding, no shared prefix."""
    model, _ = load_causal_lm("embedded", "cpu", "float32")
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([list(ids)]), use_cache=False).logits[0, -1]
    return logits


def reference(query: str, choices: Sequence[str]) -> tuple[str, float]:
    """Greedy decoding restricted to the choices, and the closest decision on the way."""
    _, tokenizer = load_causal_lm("embedded", "cpu", "float32")
    ids: list[int] = tokenizer(query)["input_ids"]
    separator = "" if query[-1].isspace() else " "
    left = {
        choice: [*tokenizer(query + separator + choice)["input_ids"], tokenizer.eos_token_id]
        for choice in choices
    }
    margin = float("inf")
    while len(left) > 1:
        logits = next_logits(ids)
        ranked = sorted(
            {option[len(ids)] for option in left.values()}, key=lambda token: -float(logits[token])
        )
        if len(ranked) > 1:
            margin = min(margin, float(logits[ranked[0]] - logits[ranked[1]]))
        ids = [*ids, ranked[0]]
        left = {choice: o for choice, o in left.items() if o[len(ids) - 1] == ranked[0]}
    return next(iter(left)), margin


def _after_prompt(review: Example) -> str:
    return f"\n\n{review.input.strip()}\nSentiment:"


def ask(
    model: LocalLanguageModel, prompt: str, inputs: Sequence[str], choices: Sequence[str]
) -> list[str]:
    return model.answer([prompt + text for text in inputs], choices)


def expect_reference(
    model: LocalLanguageModel, prompt: str, inputs: Sequence[str], choices: Sequence[str]
) -> list[str]:
    answers = ask(model, prompt, inputs, choices)
    ties = 0
    for text, answer in zip(inputs, answers, strict=True):
        expected, margin = reference(prompt + text, choices)
        ties += margin < MARGIN
        assert answer == expected or margin < MARGIN
    assert ties <= 1
    return answers


@pytest.mark.slow
@pytest.mark.parametrize("prompt", PROMPTS)
def test_answers_are_those_of_a_plain_forward_pass(
    prompt: str, language_model: LocalLanguageModel, task: Task, reviews: tuple[Example, ...]
) -> None:
    inputs = [_after_prompt(review) for review in reviews[:40]]
    answers = expect_reference(language_model, prompt, inputs, task.answers)
    assert set(answers) <= set(task.answers)


def test_a_choice_that_begins_another_can_win(language_model: LocalLanguageModel) -> None:
    """The end of the text is among the options then, and is compared with going on."""
    query = "<|im_start|>user\nSay good.<|im_end|>\n<|im_start|>assistant\nGood"
    choices = ["movie", "movie star", "movies"]
    for text in ("I saw a good", "He became a famous", query):
        expected, _ = reference(text, choices)
        assert ask(language_model, "", [text], choices) == [expected]


@pytest.mark.slow
def test_both_answers_occur(
    language_model: LocalLanguageModel, reviews: tuple[Example, ...]
) -> None:
    """Else the comparison with the reference would say little."""
    inputs = [_after_prompt(review) for review in reviews[:40]]
    prompt = "Is the movie bad or good?"
    answers = expect_reference(language_model, prompt, inputs[:12], ["bad", "good", "fine"])
    assert len(set(answers)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("choices", [AMBIGUOUS, LONG_WORDS, [*LONG_WORDS, *AMBIGUOUS]])
def test_long_choices_are_decoded_greedily(
    choices: list[str], language_model: LocalLanguageModel, short_reviews: tuple[Example, ...]
) -> None:
    inputs = [_after_prompt(review) + " This is a" for review in short_reviews[:6]]
    expect_reference(language_model, "What a critic wrote.", inputs, choices)


@pytest.mark.parametrize(
    ("query", "choices", "expected"),
    [
        ("The capital of France is", ["Paris", "Berlin", "Rome"], "Paris"),
        ("One two three four five. One two three", ["four five", "four six"], "four five"),
        ("The answer is:\n", ["Paris"], "Paris"),
    ],
)
def test_the_obvious_choice_is_found(
    query: str, choices: list[str], expected: str, language_model: LocalLanguageModel
) -> None:
    assert ask(language_model, "", [query], choices) == [expected]
    assert reference(query, choices)[0] == expected


def test_order_and_duplicates_do_not_matter(
    language_model: LocalLanguageModel, task: Task, short_reviews: tuple[Example, ...]
) -> None:
    inputs = [_after_prompt(review) for review in short_reviews[:10]]
    choices = ["bad", "good"]
    alone = {text: ask(language_model, "Is it good?", [text], choices)[0] for text in inputs}
    mixed = [*reversed(inputs), *inputs[3:6], inputs[0], inputs[0]]
    answers = ask(language_model, "Is it good?", mixed, choices)
    assert answers == [alone[text] for text in mixed]


def test_the_order_of_choices_does_not_matter(
    language_model: LocalLanguageModel, short_reviews: tuple[Example, ...]
) -> None:
    inputs = [_after_prompt(review) for review in short_reviews[:6]]
    one = ask(language_model, "Is it good?", inputs, AMBIGUOUS)
    assert ask(language_model, "Is it good?", inputs, AMBIGUOUS[::-1]) == one


def test_chat_wraps_the_query_in_the_template(
    language_model: LocalLanguageModel, short_reviews: tuple[Example, ...]
) -> None:
    chat = LocalLanguageModel("embedded", dtype="float32", chat=True)
    _, tokenizer = load_causal_lm("embedded", "cpu", "float32")
    inputs = [_after_prompt(review) for review in short_reviews[:5]]
    rendered: list[Any] = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "Is it good?" + text}],
            tokenize=False,
            add_generation_prompt=True,
        )
        for text in inputs
    ]
    assert all("<|im_start|>user" in text for text in rendered)
    # A template that is written out by hand and sent as plain text asks the same question.
    expected = ask(language_model, "", rendered, ["Bad", "Good", "The"])
    assert ask(chat, "Is it good?", inputs, ["Bad", "Good", "The"]) == expected
    assert chat.name != language_model.name


def test_free_text_is_greedy_generation(embedded_assets: None) -> None:
    model = LocalLanguageModel("embedded", dtype="float32", max_new_tokens=4)
    _, tokenizer = load_causal_lm("embedded", "cpu", "float32")
    queries = ["The capital of France is", "One, two, three,"]
    expected = []
    for query in queries:
        ids = tokenizer(query)["input_ids"]
        for _ in range(4):
            ids = [*ids, int(next_logits(ids).argmax())]
        expected.append(tokenizer.decode(ids[-4:], skip_special_tokens=True))
    assert model.answer(queries, []) == expected
    assert "Paris" in expected[0]


def test_no_input_gives_no_answer(language_model: LocalLanguageModel) -> None:
    assert ask(language_model, "Is it good?", [], ["bad", "good"]) == []
    assert ask(language_model, "Is it good?", [], []) == []


def test_an_empty_input_asks_the_prompt_alone(language_model: LocalLanguageModel) -> None:
    prompt = "The capital of Italy is"
    assert ask(language_model, prompt, ["", " not"], ["Rome", "Berlin"])[0] == "Rome"


@pytest.mark.parametrize("choices", [["good", "good"], ["good", "bad", "good"]])
def test_choices_that_the_tokenizer_cannot_tell_apart(
    choices: list[str], language_model: LocalLanguageModel
) -> None:
    with pytest.raises(ValueError, match=r"\['good', .*not told apart by the tokenizer"):
        ask(language_model, "Is it good?", ["yes"], choices)


def test_the_name_tells_what_changes_answers(language_model: LocalLanguageModel) -> None:
    assert language_model.name == "embedded (float32, plain)"


def test_a_space_at_the_end_of_a_query_is_not_two(language_model: LocalLanguageModel) -> None:
    """Else "tech support" would be a space, which is there, and what comes after its first word."""
    queries = [
        f"Mail: {text}\nDepartment:" for text in ("My screen is dark", "I was charged twice")
    ]
    choices = ("billing", "tech support")
    assert language_model.answer([f"{query} " for query in queries], choices) == (
        language_model.answer(queries, choices)
    )


def test_line_breaks_at_the_end_of_a_query_are_no_part_of_the_answer(
    language_model: LocalLanguageModel,
) -> None:
    choices = ["positive", "negative"]
    after_one, after_two = (
        language_model._choice_tokens(f"Sentiment:{breaks}", choices) for breaks in ("\n", "\n\n")
    )
    assert after_two == after_one


def test_a_query_that_does_not_fit_has_no_answer(
    language_model: LocalLanguageModel, monkeypatch: pytest.MonkeyPatch, warned: list[str]
) -> None:
    few = replace(language_model._model, context=12)
    monkeypatch.setattr(language_model, "_model", few)
    monkeypatch.setattr(language_model, "_warned", False)
    short, long = "A good film. Sentiment:", "A good film. " * 9 + "Sentiment:"
    choices = ["good", "bad"]
    alone = language_model.answer([short], choices)
    assert language_model.answer([long, short, long], choices) == ["", *alone, ""]
    assert language_model.answer([long], choices) == [""]
    said = r"language-model = 'embedded' reads 12 tokens, and a query with its answer has \d\d"
    (warning,) = warned
    assert re.match(said, warning)
    with pytest.raises(FatalModelError, match=said):
        language_model.answer([long], [])


def test_answers_from_no_numbers_are_none(
    language_model: LocalLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = torch.full_like(language_model._model.output_weight, float("nan"))
    monkeypatch.setattr(
        language_model, "_model", replace(language_model._model, output_weight=nothing)
    )
    with pytest.raises(FatalModelError, match="with dtype = 'float32' it computes what is no"):
        language_model.answer(["A good film. Sentiment:"], ["good", "bad"])


@pytest.mark.parametrize(
    ("template", "rendered"),
    [
        # Like Qwen3's, DeepSeek-R1's and all others.
        (
            "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}",
            "q<think>\n\n</think>\n\n",
        ),
        ("<think>\n", "q<think>\n\n</think>\n\n"),
        ("Answer:", "qAnswer:"),
    ],
)
def test_no_model_is_to_think_before_an_answer(
    template: str, rendered: str, monkeypatch: pytest.MonkeyPatch, embedded_assets: None
) -> None:
    chat = LocalLanguageModel("embedded", chat=True, dtype="float32", device="cpu")
    asked: list[list[str]] = []
    monkeypatch.setattr(
        chat._template_tokenizer, "chat_template", "{{ messages[0].content }}" + template
    )
    choose = chat._choose

    def watched(queries: Sequence[str], choices: Sequence[str]) -> list[str]:
        asked.append(list(queries))
        return choose(queries, choices)

    monkeypatch.setattr(chat, "_choose", watched)
    assert chat.answer(["q"], ["yes", "no"])[0] in ("yes", "no")
    assert asked == [[rendered]]


def test_a_chat_needs_a_template(monkeypatch: pytest.MonkeyPatch, embedded_assets: None) -> None:
    class NoTemplate:
        """A double of a base model's tokenizer."""

        chat_template = None

    monkeypatch.setattr(local, "read_tokenizer", lambda *_: NoTemplate())
    with pytest.raises(ValueError, match="chat = true: the model has no chat template"):
        LocalLanguageModel("embedded", chat=True, dtype="float32", device="cpu")

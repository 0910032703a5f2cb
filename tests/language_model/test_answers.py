import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddtpt_flwr.language_model.answers import parse_answer, unwrap_json, without_thinking

POLARITY = ("negative", "positive")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("positive", "positive"),
        (" Positive.", "positive"),
        ("NEGATIVE\n\nReview: positive", "negative"),
        ('"negative"', "negative"),
        ('"negative"\n\n   ', "negative"),
        ('{"answer": "negative"}', "negative"),
        ('{\n  "answer": "Positive"\n}\n\n', "positive"),
        ('{"answer": "neg', None),
        ('{"answer": 1}', None),
        ("**positive**", "positive"),
        ("_positive_", "positive"),
        ("“Positive”", "positive"),
        ("ｐｏｓｉｔｉｖｅ", "positive"),  # noqa: RUF001  full-width letters
        ("The sentiment is positive, not negative.", "positive"),
        ("positively", None),
        ("nonpositive", None),
        ("non-positive", None),
        ("negati", None),
        ("It is good.", None),
        ("", None),
        ("\n", None),
    ],
)
def test_what_a_text_means(text: str, expected: str | None) -> None:
    assert parse_answer(text, POLARITY) == expected


def test_the_longest_word_wins_where_two_begin() -> None:
    answers = ("likely", "not", "not likely")
    assert parse_answer("Not likely, I think", answers) == "not likely"
    assert parse_answer("not\n  likely", answers) == "not likely"
    assert parse_answer("not so likely", answers) == "not"


def test_answers_that_hold_each_other_are_told_apart() -> None:
    answers = ("unacceptable", "acceptable")
    assert parse_answer("It is unacceptable.", answers) == "unacceptable"
    assert parse_answer("Acceptable, not unacceptable", answers) == "acceptable"


def test_answers_of_marks_and_spaces() -> None:
    assert parse_answer("It is C++, I guess", ("C++", "C", "sci-fi")) == "C++"
    assert parse_answer("Sci-Fi.", ("C++", "C", "sci-fi")) == "sci-fi"
    assert parse_answer("4 stars", ("1 star", "4 stars")) == "4 stars"


@pytest.mark.parametrize("dash", "-\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe63\uff0d")
def test_a_minus_is_a_minus_however_it_is_written(dash: str) -> None:
    assert parse_answer(f"{dash}1", ("1", "-1")) == "-1"
    assert parse_answer("-1", ("1", f"{dash}1")) == f"{dash}1"


@pytest.mark.parametrize("hyphen", "-\u2010\u2011\u2212")
def test_hyphens_are_alike(hyphen: str) -> None:
    assert parse_answer(f"Sci{hyphen}Fi.", ("drama", "sci-fi")) == "sci-fi"
    assert parse_answer(f"non{hyphen}positive", POLARITY) is None
    assert parse_answer(f"{hyphen} positive {hyphen} at last", POLARITY) == "positive"


@pytest.mark.parametrize("dash", "\u2013\u2014")
def test_a_dash_between_words_is_no_hyphen(dash: str) -> None:
    assert parse_answer(f"It is dull{dash}negative{dash}in all", POLARITY) == "negative"


@pytest.mark.parametrize("mark", "'\u2019\u2018\u02bc\u00b4\uff07")
def test_apostrophes_are_alike(mark: str) -> None:
    assert parse_answer(f"I don{mark}t know.", ("yes", "don't know")) == "don't know"
    assert parse_answer(f"{mark}positive{mark}", POLARITY) == "positive"


@pytest.mark.parametrize(
    ("text", "answers", "expected"),
    [
        ("这条评论是正面的。", ("负面", "正面"), "正面"),
        ("该评论的情感是负面", ("负面", "正面"), "负面"),
        ("これは肯定的です", ("否定的", "肯定的"), "肯定的"),
        ("รีวิวนี้เป็นบวก", ("ลบ", "บวก"), "บวก"),
        ("긍정입니다", ("부정", "긍정"), "긍정"),
        ("비긍정", ("부정", "긍정"), None),
        ("это положительный отзыв", ("отрицательный", "положительный"), "положительный"),
        ("неположительный", ("отрицательный", "положительный"), None),
    ],
)
def test_words_in_scripts_without_spaces(
    text: str, answers: tuple[str, ...], expected: str | None
) -> None:
    assert parse_answer(text, answers) == expected


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>\npositive?\n</think>\n\nnegative", "negative"),
        ("positive? no.</think>negative", "negative"),
        ("<thinking>positive</thinking>negative", "negative"),
        ("[THINK]positive[/THINK]negative", "negative"),
        ("<thought>positive</thought>negative", "negative"),
        ("<reasoning>positive</reasoning>\nnegative", "negative"),
        ("<seed:think>positive</seed:think>negative", "negative"),
        ("◁think▷positive◁/think▷negative", "negative"),
        (
            "<|channel|>analysis<|message|>positive?<|end|><|start|>assistant<|channel|>final"
            "<|message|>negative",
            "negative",
        ),
        ("<|channel|>analysis<|message|>positive", ""),
        ("<thought>positive", ""),
        ("◁think▷positive", ""),
        ("<think>positive", ""),
        (" [THINK]positive", ""),
        ("negative <think", "negative <think"),
        ("", ""),
    ],
)
def test_thoughts_are_no_answer(text: str, answer: str) -> None:
    assert without_thinking(text) == answer


def test_synonyms() -> None:
    synonyms = (("bad", "poor"), ("good",))
    assert parse_answer("A good film.", POLARITY, synonyms) == "positive"
    assert parse_answer("Poor!", POLARITY, synonyms) == "negative"
    assert parse_answer("good, though negative at first", POLARITY, synonyms) == "positive"
    assert parse_answer("goods", POLARITY, synonyms) is None


@given(st.text())
def test_any_text_has_a_meaning_or_none(text: str) -> None:
    assert parse_answer(text, POLARITY) in {None, *POLARITY}
    assert isinstance(unwrap_json(text), str)


def test_json_that_is_too_deep_is_text() -> None:
    deep = '{"a":' * 100_000
    assert unwrap_json(deep) == deep


@given(st.sampled_from(POLARITY), st.sampled_from(["{}", " {}\n", "{}.", '"{}"', "It is {}, yes"]))
def test_every_answer_is_found(answer: str, frame: str) -> None:
    assert parse_answer(frame.format(answer.title()), POLARITY) == answer

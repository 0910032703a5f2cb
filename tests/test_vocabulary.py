import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import WordLevel, WordPiece
from tokenizers.pre_tokenizers import ByteLevel, Metaspace

from feddtpt_flwr.vocabulary import Vocabulary, letters

KINDS = ["vocabulary", "wordpiece"]
TEXTS = [
    "Classify the sentiment of this movie review as positive or negative.",
    "Is it good? Say yes, or no: I want to know!",
    "Unbelievably antidisestablishmentarian prose",
    "a",
]


@pytest.fixture(params=KINDS)
def either(request: pytest.FixtureRequest) -> Vocabulary:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Vocabulary)
    return found


def piece(vocabulary: Vocabulary, token: int) -> str:
    return vocabulary.decode([token])


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives(text: str, either: Vocabulary, wordpiece: Vocabulary) -> None:
    tokens = either.encode(text)
    assert all(0 <= token < len(either) for token in tokens)
    if either is wordpiece:  # it knows no capitals, and where spaces stood only by rule
        assert either.decode(tokens).replace(" ", "") == text.lower().replace(" ", "")
    else:
        assert either.decode(tokens) == text
    assert either.encode(either.decode(tokens)) == tokens
    assert either.encode(f"  {text} ") == tokens


@pytest.mark.parametrize("text", ["naïve café", "日本 movie 👍", "two\nlines"])
def test_any_text_survives_in_a_byte_level_vocabulary(text: str, vocabulary: Vocabulary) -> None:
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_nothing_is_added(either: Vocabulary) -> None:
    assert len(either.encode("movie")) == 1
    assert either.encode("") == either.encode(" ")
    assert either.decode(()) == ""


def test_words_can_change_places(vocabulary: Vocabulary) -> None:
    first, second = vocabulary.encode("good"), vocabulary.encode("movie")
    assert vocabulary.encode("good movie") == first + second
    assert vocabulary.encode("movie good") == second + first


@pytest.mark.parametrize("kind", KINDS)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32), length=st.integers(1, 12))
def test_words_partition_the_tokens(
    kind: str, request: pytest.FixtureRequest, seed: int, length: int
) -> None:
    vocabulary: Vocabulary = request.getfixturevalue(kind)
    rng = np.random.default_rng(seed)
    tokens = tuple(int(token) for token in rng.integers(0, len(vocabulary), length))
    words = vocabulary.words(tokens)
    assert [i for start, stop in words for i in range(start, stop)] == list(range(length))
    assert all(start < stop for start, stop in words)
    assert all(vocabulary.starts_word(tokens[start]) for start, _ in words[1:])


def test_words_are_the_words_of_the_text(either: Vocabulary) -> None:
    text = "unbelievably antidisestablishmentarian prose, really"
    tokens = either.encode(text)
    words = [either.decode(tokens[start:stop]) for start, stop in either.words(tokens)]
    assert words == ["unbelievably", "antidisestablishmentarian", "prose", ",", "really"]
    assert len(tokens) > len(words), "the long word must be in pieces for this to say anything"
    assert either.words(()) == []


@pytest.mark.parametrize(
    "text",
    [
        "Είναι αυτή η κριτική θετική ή αρνητική;",
        "Bu film eleştirisi olumlu mu, olumsuz mu?",
        "Bài phê bình phim này là tích cực hay tiêu cực?",
        "Чи є цей відгук про фільм схвальним?",
        "이 영화 평은 긍정적입니까, 부정적입니까?",
        "这条评论是正面的还是负面的？",  # noqa: RUF001
        "รีวิวนี้เป็นบวกหรือลบ",
        "क्या यह समीक्षा सकारात्मक है?",
        "هل هذه المراجعة إيجابية أم سلبية؟",
    ],
)
def test_no_word_begins_within_a_letter(text: str, vocabulary: Vocabulary) -> None:
    tokens = vocabulary.encode(text)
    words = [vocabulary.decode(tokens[start:stop]) for start, stop in vocabulary.words(tokens)]
    assert not [word for word in words if "\ufffd" in word]
    assert "".join(words) == text.replace(" ", "")


def test_bytes_that_sentencepiece_spells_begin_no_word() -> None:
    pieces = {"<unk>": 0, "▁film": 1, "<0xE8>": 2, "<0xBF>": 3, "<b>": 4}
    vocabulary = Vocabulary(Tokenizer(WordLevel(pieces, "<unk>")))
    assert vocabulary.words((1, 2, 3, 1, 4)) == [(0, 3), (3, 4), (4, 5)]


def test_letters_are_told_from_all_else() -> None:
    text = "Schöner Film für Mädchen, 2nd! हिन्दी привет_мир"
    found = ["Schöner", "Film", "für", "Mädchen", "nd", "हिन्दी", "привет", "мир"]
    assert letters(text) == found
    assert letters("17") == letters("") == []


def test_proposable_are_whole_words_and_marks(either: Vocabulary) -> None:
    allowed = np.flatnonzero(either.proposable())
    assert len(allowed) > 5000
    pieces = [piece(either, int(token)) for token in allowed]
    assert all(re.fullmatch(r"[A-Za-z]{2,}|a|I|[,.:?;!]", text) for text in pieces)
    assert all(either.starts_word(int(token)) for token in allowed)
    assert {"movie", "review", "good", "a", ".", ","} <= set(pieces)


def test_proposed_words_stay_whole_in_a_text(either: Vocabulary) -> None:
    """What is put between two words must be read as the same tokens by another reader."""
    rng = np.random.default_rng(0)
    left, right = either.encode("this"), either.encode("review")
    for token in rng.choice(np.flatnonzero(either.proposable()), 300, replace=False):
        tokens = (*left, int(token), *right)
        assert either.encode(either.decode(tokens)) == tokens


def test_a_letter_of_maltas_makes_no_vocabulary_one_of_bytes() -> None:
    pieces = ["[UNK]", "film", "##s", "good", "Ġ"]
    model = WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]")
    vocabulary = Vocabulary(Tokenizer(model))
    assert np.flatnonzero(vocabulary.proposable()).tolist() == [1, 3]
    assert not vocabulary.starts_word(2)


@pytest.mark.parametrize(
    ("pieces", "model", "proposed"),
    [
        # Bytes that are no character by themselves, and a word that would be read as two tokens.
        (["ĠfÃ¼r", "ĠÃ", "Ġfilm", "Ġгут", "Ġa"], "bytes", {"für", "film", "a"}),
        (
            ["▁für", "▁Привет", "▁好", "▁x", "▁हिन्दी", "▁1a"],
            "metaspace",
            {"für", "Привет", "好", "हिन्दी"},
        ),
    ],
)
def test_words_of_other_letters_are_proposed_where_they_are_wanted(
    pieces: list[str], model: str, proposed: set[str]
) -> None:
    tokenizer = Tokenizer(WordLevel({p: i for i, p in enumerate(["[UNK]", *pieces])}, "[UNK]"))
    if model == "bytes":
        tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
        tokenizer.decoder = ByteLevelDecoder()
    else:
        tokenizer.pre_tokenizer = Metaspace(prepend_scheme="never")
        tokenizer.decoder = MetaspaceDecoder(prepend_scheme="never")
    for beyond_ascii in (False, True):
        vocabulary = Vocabulary(tokenizer, beyond_ascii=beyond_ascii)
        found = {vocabulary.decode([int(i)]) for i in np.flatnonzero(vocabulary.proposable())}
        assert found == (proposed if beyond_ascii else {w for w in proposed if w.isascii()})


def test_answer_words_are_excluded_whatever_their_case(either: Vocabulary) -> None:
    before, after = either.proposable(), either.proposable(["POSITIVE", "movie"])
    lost = {piece(either, int(token)).casefold() for token in np.flatnonzero(before & ~after)}
    assert lost == {"positive", "movie"}
    assert not (after & ~before).any()


def test_each_word_of_an_answer_is_excluded(either: Vocabulary) -> None:
    before, after = either.proposable(), either.proposable(["Not good", "action/drama 2", "?"])
    lost = {piece(either, int(token)).casefold() for token in np.flatnonzero(before & ~after)}
    assert lost == {"not", "good", "action", "drama", "?"}


def test_special_tokens_and_fragments_are_not_proposable(
    vocabulary: Vocabulary, wordpiece: Vocabulary
) -> None:
    for either in (vocabulary, wordpiece):
        allowed = either.proposable()
        special = sorted(either._special)
        assert special
        assert not allowed[special].any()
        fragments = [i for i in range(len(either)) if not either.starts_word(i)]
        assert len(fragments) > 1000
        assert not allowed[fragments].any()


def test_fingerprint_tells_vocabularies_apart(
    vocabulary: Vocabulary, wordpiece: Vocabulary
) -> None:
    assert vocabulary.fingerprint != wordpiece.fingerprint
    assert vocabulary.fingerprint == Vocabulary(vocabulary._tokenizer).fingerprint
    assert re.fullmatch("[0-9a-f]{16}", vocabulary.fingerprint)


@pytest.mark.parametrize("text", [*TEXTS, "naïve café", "日本 movie 👍"])
def test_spans_cover_the_text(text: str, vocabulary: Vocabulary) -> None:
    tokens = vocabulary.encode(text)
    whole, spans = vocabulary.spans(tokens)
    assert whole.strip() == text
    assert len(spans) == len(tokens)
    assert [start for start, _ in spans] == [0, *[stop for _, stop in spans[:-1]]]
    assert spans[-1][1] == len(whole)


def test_spans_are_where_the_words_stand(either: Vocabulary) -> None:
    tokens = either.encode("this movie review")
    text, spans = either.spans(tokens)
    assert [text[start:stop].strip() for start, stop in spans] == ["this", "movie", "review"]


def test_spans_of_nothing(vocabulary: Vocabulary) -> None:
    assert vocabulary.spans(()) == ("", [])

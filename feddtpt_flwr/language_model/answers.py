"""From the text that a language model gives to the answer it means."""

import json
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

THOUGHT = "</think>"
"""What ends the thoughts of most reasoning models."""

_MARK = "(think(ing)?|thought|reasoning|seed:think)"
_THINKS = re.compile(rf"\s*(<{_MARK}>|\[THINK\]|◁think▷|<\|channel\|>analysis)")
_THOUGHT = re.compile(rf"</{_MARK}>|\[/THINK\]|◁/think▷|<\|channel\|>final.*?<\|message\|>")

UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
"""Thai, Lao, Burmese, Khmer, kana and Han, which put no spaces between words."""

_HANGUL = "\uac00-\ud7a3"
"""Its words have spaces before them, but particles and endings behind."""

_FOLDED = str.maketrans(
    dict.fromkeys("\u2010\u2011\u2012\u2212", "-")
    | dict.fromkeys("\u00b4\u02bc\u2018\u2019\u201b\u2032", "'")
)
"""Hyphens and the minus sign, and apostrophes, as a keyboard has them."""

_LEADING_DASH = re.compile(r"(?<![^\W_])[\u2013-\u2015]")
"""A dash that is no break between two words."""


def parse_answer(
    text: str, answers: Sequence[str], synonyms: Sequence[Sequence[str]] = ()
) -> str | None:
    """Return the answer word that ``text`` stands for, or None if it stands for none.

    Case, quotes, punctuation, white space and the kind of a dash or apostrophe do not count, nor
    does JSON around the answer. In a sentence, the first whole word that is an answer or a synonym
    decides; of two that begin at the same place, the longer one.

    Parameters
    ----------
    text : str
        What the language model returned.
    answers : Sequence[str]
        The answer word of each label.
    synonyms : Sequence[Sequence[str]]
        Further words for each answer, in the same order; empty for none.
    """
    words = _words(tuple(answers), tuple(tuple(others) for others in synonyms))
    found = _pattern(tuple(words)).search(normal_form(unwrap_json(text)))
    return words[found.group()] if found else None


def unwrap_json(text: str) -> str:
    """Return the string in ``text`` if that is a JSON string, or an object with just one."""
    if not text.lstrip().startswith(('"', "{")):
        return text
    try:
        # What follows the document, such as white space up to the limit of tokens, is no part of it
        value, _ = json.JSONDecoder().raw_decode(text.lstrip())
    except (ValueError, RecursionError):
        return text
    if isinstance(value, dict) and len(value) == 1:
        (value,) = value.values()
    return value if isinstance(value, str) else text


def without_thinking(text: str) -> str:
    """Return what a model says after it has thought aloud; "" while it still thinks.

    Some servers pass on the thoughts of reasoning models with their marks, some the last mark only.
    """
    if ends := list(_THOUGHT.finditer(text)):
        return text[ends[-1].end() :].lstrip()
    return "" if _THINKS.match(text) else text


def thinks(text: str) -> bool:
    """Return whether a text ends where a model is to think aloud."""
    return text.rstrip().endswith("<think>")


def normal_form(text: str) -> str:
    """Return what texts have in common that count as the same word."""
    folded = _LEADING_DASH.sub("-", text).translate(_FOLDED)
    return " ".join(unicodedata.normalize("NFKC", folded).casefold().split())


@lru_cache(maxsize=64)
def _words(answers: tuple[str, ...], synonyms: tuple[tuple[str, ...], ...]) -> dict[str, str]:
    """Return the answer for each word that stands for it."""
    words = {
        normal_form(word): answer
        for answer, others in zip(answers, synonyms, strict=False)
        for word in others
    }
    return words | {normal_form(answer): answer for answer in answers}


@lru_cache(maxsize=64)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    # Alternatives are tried in order, so the longest stands first.
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile("|".join(_whole(word) for word in longest_first))


def _whole(word: str) -> str:
    """Return the pattern of a word that is no part of another, where its script shows that.

    A hyphen makes another word: "non-positive" is not "positive".
    """
    letter = r"[^\W_]"  # the underscore is a mark here, as in Markdown
    before = "" if re.match(f"[{UNSPACED}]", word) else rf"(?<!{letter})(?<!{letter}-)"
    after = "" if re.search(f"[{UNSPACED}{_HANGUL}]$", word) else rf"(?!-?{letter})"
    return before + re.escape(word) + after

"""From the text that a language model gives to the answer it means."""

import json
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache


def parse_answer(
    text: str, answers: Sequence[str], synonyms: Sequence[Sequence[str]] = ()
) -> str | None:
    """Return the answer word that ``text`` stands for, or None if it stands for none.

    Case, quotes, punctuation and white space do not count, nor does JSON around the answer. In a
    sentence, the first whole word that is an answer or a synonym decides; of two that begin at the
    same place, the longer one.

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
    found = _pattern(tuple(words)).search(_normal(unwrap_json(text)))
    return words[found.group()] if found else None


def unwrap_json(text: str) -> str:
    """Return the string in ``text`` if that is a JSON string, or an object with just one."""
    if not text.lstrip().startswith(('"', "{")):
        return text
    try:
        # What follows the document, such as white space up to the limit of tokens, is no part of it
        value, _ = json.JSONDecoder().raw_decode(text.lstrip())
    except ValueError:
        return text
    if isinstance(value, dict) and len(value) == 1:
        (value,) = value.values()
    return value if isinstance(value, str) else text


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@lru_cache(maxsize=64)
def _words(answers: tuple[str, ...], synonyms: tuple[tuple[str, ...], ...]) -> dict[str, str]:
    """Return the answer for each word that stands for it."""
    words = {
        _normal(word): answer
        for answer, others in zip(answers, synonyms, strict=False)
        for word in others
    }
    return words | {_normal(answer): answer for answer in answers}


@lru_cache(maxsize=64)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    # Alternatives are tried in order, so the longest stands first. A hyphen makes another word:
    # "non-positive" is not "positive".
    longest_first = sorted(words, key=len, reverse=True)
    alternatives = "|".join(re.escape(word) for word in longest_first)
    # The underscore is a mark here, as in Markdown.
    letter = r"[^\W_]"
    return re.compile(rf"(?<!{letter})(?<!{letter}-)(?:{alternatives})(?!-?{letter})")

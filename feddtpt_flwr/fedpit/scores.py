"""Measures of answers: Rouge-L, right or wrong, and their intervals."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from scipy import stats

from feddtpt_flwr.fedpit.instructions import Instruction
from feddtpt_flwr.language_model.answers import UNSPACED, parse_answer
from feddtpt_flwr.statistics import Proportion


@dataclass(frozen=True)
class Mean:
    """A mean with its 95 % interval (bootstrap, percentiles).

    Attributes
    ----------
    value, low, high : float
        The mean and the ends of its interval.
    total : int
        How many values.
    """

    value: float
    low: float
    high: float
    total: int

    @classmethod
    def of(cls, values: Sequence[float], seed: int = 0) -> "Mean":
        """Return the mean of one or more values."""
        array = np.asarray(values, dtype=np.float64)
        mean = float(array.mean())
        if np.ptp(array) == 0:
            return cls(mean, mean, mean, len(array))
        rng = np.random.default_rng(seed)
        # All resamples of many values at once would take gigabytes.
        batch = max(1, 10**6 // len(array))
        interval = stats.bootstrap((array,), np.mean, method="percentile", batch=batch, rng=rng)
        low, high = interval.confidence_interval
        return cls(mean, float(low), float(high), len(array))

    def __str__(self) -> str:
        """Return mean and interval."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Utility:
    """How well the held-out instructions are answered.

    Attributes
    ----------
    rouge_l : Mean
        Rouge-L of all answers.
    accuracy : Proportion or None
        Right answers to the instructions that classify; None if there are none.
    """

    rouge_l: Mean
    accuracy: Proportion | None

    @classmethod
    def of(cls, rows: Sequence[Instruction], answers: Sequence[str]) -> "Utility":
        """Compare answers with the responses that are wanted, one for each row."""
        pairs = list(zip(rows, answers, strict=True))
        right = [
            parse_answer(answer, row.choices) == row.response
            for row, answer in pairs
            if row.choices
        ]
        return cls(
            Mean.of([rouge_l(answer, row.response) for row, answer in pairs]),
            Proportion(sum(right), len(right)) if right else None,
        )


_MARKS = "\u0300-\u036f\u0591-\u05c7\u064b-\u0652\u0900-\u0dff"
"""Accents and vowel signs that stand by themselves and are no letters to Python."""

_WORD = re.compile(f"[{UNSPACED}]|(?:[^\\W_{UNSPACED}]|[{_MARKS}])+")


@lru_cache(maxsize=4096)  # a private text is compared with everything that is written
def words(text: str) -> tuple[str, ...]:
    """Return the words of a text in lower case: runs of letters and digits of any script.

    Of scripts without spaces between words every character is one.
    """
    return tuple(_WORD.findall(unicodedata.normalize("NFC", text.lower())))


def rouge_l(answer: str, wanted: str) -> float:
    """Return Rouge-L (F-measure) of two texts, in [0, 1].

    In texts of Latin letters without accents `words` are those of the measure's reference
    implementation, which takes all other letters for spaces.
    """
    return float(_scorer().score(wanted, answer)["rougeL"].fmeasure)


def is_close(text: str, others: Iterable[str], limit: float) -> bool:
    """Return whether Rouge-L of a text with one of the others is above a limit."""
    own = Counter(words(text))

    def may_be(other: str) -> bool:
        # At best all words that both have are in the same order; with room for rounding.
        theirs = Counter(words(other))
        return 2 * (own & theirs).total() > (limit - 1e-9) * (own.total() + theirs.total())

    return any(may_be(other) and rouge_l(text, other) > limit for other in others)


def closest(text: str, others: Sequence[str]) -> float:
    """Return the highest Rouge-L of a text with any of the others; 0 if there are none."""
    return max((rouge_l(text, other) for other in others), default=0.0)


def runs(text: str, length: int) -> set[tuple[str, ...]]:
    """Return all ``length`` words in a row that a text has."""
    found = words(text)
    return {found[i : i + length] for i in range(len(found) - length + 1)}


def longest_copy(texts: Iterable[str], others: Iterable[str]) -> int:
    """Return the most words in a row that one of the texts shares with one of the others."""
    texts, others, length = list(texts), list(others), 0

    def has_more() -> bool:
        there = {run for text in others for run in runs(text, length + 1)}
        return any(not there.isdisjoint(runs(text, length + 1)) for text in texts)

    while has_more():
        length += 1
    return length


class _Words:
    def tokenize(self, text: str) -> tuple[str, ...]:
        return words(text)


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Words())

"""Synthetic instructions, written by the global model after the example of private ones.

FedPIT (arXiv 2403.06131): private examples are shown in context, the model writes further
instructions and then their responses; what is badly formed or too close to a private text is
dropped, and tried again.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from feddtpt_flwr.fedpit.instructions import Instruction
from feddtpt_flwr.fedpit.lora import PROMPT, AdaptedModel
from feddtpt_flwr.fedpit.scores import is_close, runs, words

ATTEMPTS = 3
"""Tries for each synthetic example."""

MAX_ROUGE_L = 0.7
"""What is closer to a private text, or to another synthetic one, is dropped."""

COPIED_WORDS = 8
"""So many words in a row of a private text are a copy, whatever is written around them."""

TEMPERATURE = 0.8
FAULTS = ("unfinished", "short", "refusal", "private", "repeated")
"""Why a synthetic text is dropped: not ended at the limit of tokens, badly formed, a refusal, too
close to a private text, or to another synthetic one."""

_FEWEST_WORDS = 3  # of an instruction
_COMPARED_WORDS = 5  # texts of fewer words are like labels
_REFUSAL = re.compile(
    r"as an? |(i('m| am) )?sorry|i apologi[sz]e|"
    r"(unfortunately,? )?i( can(no|')t|('m| am) (unable|not able)) ",
    re.IGNORECASE,
)

_MORE_INSTRUCTIONS = "Here are instructions of the same sort. No two of them ask the same.\n\n"
_INSTRUCTION = "### Instruction:\n"


@dataclass(frozen=True)
class Synthesis:
    """What a client's model wrote in a round.

    Attributes
    ----------
    candidates : tuple of Instruction
        What is well formed and far enough from private text.
    written : int
        Instructions that were written in all attempts.
    dropped : Mapping[str, int]
        How many of them were dropped for each of `FAULTS`.
    """

    candidates: tuple[Instruction, ...]
    written: int
    dropped: Mapping[str, int]


def synthesise(
    model: AdaptedModel,
    private: Sequence[Instruction],
    *,
    num_candidates: int,
    num_demonstrations: int,
    max_instruction_tokens: int,
    max_response_tokens: int,
    rng: np.random.Generator,
) -> Synthesis:
    """Let the model write up to ``num_candidates`` examples, in at most `ATTEMPTS` attempts.

    Parameters
    ----------
    model : AdaptedModel
        With the global adapter loaded.
    private : Sequence[Instruction]
        The client's own examples, at least one.
    num_candidates : int
        Examples wanted.
    num_demonstrations : int
        Private examples shown; drawn anew in each attempt. All, if there are fewer.
    max_instruction_tokens, max_response_tokens : int
        Longest texts written.
    rng : numpy.random.Generator
        Draws demonstrations and texts.
    """
    # What the model can copy is what it is shown of a private text, not what was cut off.
    near = [model.shorten(row) for row in private]
    kept: list[Instruction] = []
    dropped: Counter[str] = Counter(dict.fromkeys(FAULTS, 0))
    written = 0
    for _ in range(ATTEMPTS):
        if not (missing := num_candidates - len(kept)):
            break
        drawn = rng.permutation(len(private))[:num_demonstrations]
        shown = [near[i] for i in drawn]
        instructions = model.continue_text(
            _MORE_INSTRUCTIONS + "".join(_INSTRUCTION + f"{row.instruction}\n\n" for row in shown),
            [_INSTRUCTION] * missing,
            max_new_tokens=max_instruction_tokens,
            temperature=TEMPERATURE,
            seed=int(rng.integers(2**31)),
        )
        written += len(instructions)
        wanted: list[Instruction] = []
        for text, finished in instructions:
            fault = instruction_fault(text, near, [*kept, *wanted]) if finished else "unfinished"
            if fault:
                dropped[fault] += 1
            else:
                wanted.append(Instruction(text, ""))
        if not wanted:
            continue
        responses = model.continue_text(
            "".join(
                PROMPT.format(instruction=row.instruction) + f"{row.response}\n\n" for row in shown
            ),
            [PROMPT.format(instruction=row.instruction) for row in wanted],
            max_new_tokens=max_response_tokens,
        )
        for row, (response, finished) in zip(wanted, responses, strict=True):
            candidate = Instruction(row.instruction, response)
            fault = response_fault(candidate, near) if finished else "unfinished"
            if fault:
                dropped[fault] += 1
            else:
                kept.append(candidate)
    return Synthesis(tuple(kept), written, dict(dropped))


def instruction_fault(
    text: str, private: Sequence[Instruction], synthetic: Sequence[Instruction]
) -> str:
    """Return why a synthetic instruction cannot be used; empty if it can.

    Parameters
    ----------
    text : str
        What was written.
    private, synthetic : Sequence[Instruction]
        The private examples as the model was shown them, and the synthetic ones so far.
    """
    if len(words(text)) < _FEWEST_WORDS:
        return "short"
    if _is_refusal(text):
        return "refusal"
    instructions = [row.instruction for row in private]
    if is_close(text, instructions, MAX_ROUGE_L) or _is_copied(text, private, _answers(private)):
        return "private"
    if is_close(text, [row.instruction for row in synthetic], MAX_ROUGE_L):
        return "repeated"
    return ""


def response_fault(row: Instruction, private: Sequence[Instruction]) -> str:
    """Return why a synthetic response cannot be used; empty if it can."""
    if not row.response:
        return "short"
    if _is_refusal(row.response):
        return "refusal"
    # A private response below a new instruction would be private text all the same.
    texts = [*(other.instruction for other in private), *_answers(private)]
    if _is_copied(row.response, private, texts):
        return "private"
    if is_close(row.text, [other.text for other in private], MAX_ROUGE_L):
        return "private"
    return ""


def select(
    model: AdaptedModel, candidates: Sequence[Instruction], num_selected: int
) -> tuple[Instruction, ...]:
    """Return the candidates of the lowest instruction-following score (FedPIT's IFS).

    It is the loss of the response after its instruction over that of the response alone: low where
    the response follows from the instruction.

    Parameters
    ----------
    model : AdaptedModel
        With the local adapter loaded.
    candidates : Sequence[Instruction]
        What to select from.
    num_selected : int
        How many at most.
    """
    if not candidates:
        return ()
    alone = model.response_losses(candidates, with_instruction=False)
    scores = model.response_losses(candidates) / np.maximum(alone, np.finfo(np.float64).tiny)
    best = np.argsort(scores, kind="stable")[:num_selected]
    return tuple(candidates[i] for i in best)


def _is_refusal(text: str) -> bool:
    return _REFUSAL.match(text.replace("\u2019", "'")) is not None


def _answers(rows: Sequence[Instruction]) -> list[str]:
    """Return the responses; not to classifications, whose choices synthetic examples share."""
    return [row.response for row in rows if not row.choices]


def _is_copied(text: str, private: Sequence[Instruction], texts: Sequence[str]) -> bool:
    """Return whether a text holds a piece of a private one, or is close to one of ``texts``."""
    if _is_label(text):
        return False
    held = runs(text, COPIED_WORDS)
    return not held.isdisjoint(_private_runs(tuple(private))) or is_close(text, texts, MAX_ROUGE_L)


@lru_cache(maxsize=1)
def _private_runs(private: tuple[Instruction, ...]) -> set[tuple[str, ...]]:
    """Return what no text may hold: `COPIED_WORDS` words in a row of one of the private texts."""
    asked = Counter(
        run for row in private for run in runs(row.about or row.instruction, COPIED_WORDS)
    )
    # What is in most instructions, and not in two or three of one matter, is how they all ask.
    own = {run for run, rows in asked.items() if rows <= max(3, len(private) / 2)}
    return own.union(*(runs(text, COPIED_WORDS) for text in _answers(private)))


def _is_label(text: str) -> bool:
    """Return whether a text is so short that others are the same by chance."""
    # Where words are single characters, many of them are still no sentence.
    return len(text.split()) < _COMPARED_WORDS and len(words(text)) < 3 * _COMPARED_WORDS

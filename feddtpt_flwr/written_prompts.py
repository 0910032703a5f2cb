"""What a language model is asked for better prompts, and what it writes."""

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from feddtpt_flwr.data import Task
from feddtpt_flwr.vocabulary import is_mark

_CODE = "{}[]<>#*_@\\|"  # marks of code and Markdown: what has them is no plain sentence
_BULLET = re.compile(
    r"^(?:[-*•>#\s]|\(?\d{1,2}[.):\]]|(?:instruction|prompt)\s*\d*\s*:)+", re.IGNORECASE
)
_QUOTES = "\"'`*_“”«» "


def writing_request(
    task: Task,
    prompt: str,
    changes: Sequence[str],
    *,
    count: int,
    max_words: int,
    excluded_words: Sequence[str] = (),
    chat: bool = True,
) -> str:
    """Return what a language model is asked for better prompts.

    Parameters
    ----------
    task : Task
        What the prompt is for.
    prompt : str
        The prompt so far.
    changes : Sequence[str]
        Changes that were tried, and what they gained on how many examples.
    count : int
        Prompts wanted.
    max_words : int
        Longest prompt, in words.
    excluded_words : Sequence[str]
        Words that are not to be used.
    chat : bool
        Whether the model answers a message; if not, it continues a list that is begun.
    """
    columns = {column: f"<{column}>" for column in task.text_columns}
    parts = [
        f"A language model has this task ({task.name.replace('_', ' ')}): it reads\n\n"
        f"{task.compose('<instruction>', task.render(columns))}\n\n"
        f"and answers with one of: {', '.join(task.answers)}.",
    ]
    if changes:
        parts.append(
            "Changes of the instruction that were tried, and what they did to the share of right "
            "answers (the fewer examples, the less it says):\n" + "\n".join(changes)
        )
    without = f" without the words {', '.join(excluded_words)}" if excluded_words else ""
    parts.append(f'The instruction is now: "{prompt}"')
    parts.append(
        f"Write {count} different instructions for the same task that may work better, one in a "
        f"line, each of at most {max_words} words{without}."
    )
    return "\n\n".join(parts if chat else [*parts, "Instructions:\n1."])


def read_prompts(text: str) -> list[str]:
    """Return the prompts in what a language model wrote: JSON, or one in each line.

    Numbers, bullets and quotes around them are taken off. Lines that are no prompts, such as those
    that announce some, are left out, and so is what holds other signs than letters, digits and
    the punctuation of sentences.
    """
    lines = _json_texts(text) or [line for line in text.splitlines() if "```" not in line]
    prompts = []
    for line in lines:
        prompt = " ".join(_BULLET.sub("", line.strip()).strip(_QUOTES).split())
        if (
            prompt
            and not prompt.endswith((":", "："))  # noqa: RUF001  the wide one of Chinese
            and any(sign.isalpha() for sign in prompt)
            and all(map(_fits, prompt))
        ):
            prompts.append(prompt)
    return list(dict.fromkeys(prompts))


def _fits(sign: str) -> bool:
    """Return whether a sign may stand in a prompt: letters, digits and sentences' punctuation."""
    plain = sign == " " or is_mark(sign) or unicodedata.category(sign)[0] in "LNP"
    return plain and sign not in _CODE


def _json_texts(text: str) -> list[str]:
    """Return all texts in the first JSON list or object in ``text``; none if there is none."""
    for found in re.finditer(r"[\[{]", text):
        try:
            value, _ = json.JSONDecoder().raw_decode(text[found.start() :])
        except (ValueError, RecursionError):
            continue
        if texts := list(_texts(value)):
            return texts
    return []


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)

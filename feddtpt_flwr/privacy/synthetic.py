"""Examples that the black box writes, on which a prompt can be tuned that others may see.

After the parameter isolation of FedPIT (arXiv 2403.06131): what is shared is tuned on synthetic
data alone, and what is tuned on private data stays. Unlike there, the demonstrations are public
ones: then no private text has any part in the prompt that is uploaded.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np

from feddtpt_flwr.data import Example, Task
from feddtpt_flwr.language_model import IncrementalLanguageModel, LanguageModel, ModelError

DEMONSTRATIONS = 3
"""Public examples of the class that are shown, others each time: greedy models then vary."""

MIN_WORDS = 3
"""Shorter texts are no examples."""

MAX_SIMILARITY = 0.7
"""Texts of which a larger share of the words agrees, in order, are taken for copies."""

_MARK = "\0"


@dataclass(frozen=True)
class Written:
    """What the black box wrote.

    Attributes
    ----------
    examples : tuple[Example, ...]
        Different from each other and from the public set; possibly fewer than wanted, or none.
    queries : int
        Answers that it took, usable or not.
    cut_short : bool
        Whether the black box failed before it had written all.
    """

    examples: tuple[Example, ...]
    queries: int
    cut_short: bool = False


def write_examples(
    model: LanguageModel,
    task: Task,
    description: str,
    public: Sequence[Example],
    rng: np.random.Generator,
    *,
    per_class: int,
    max_queries: int,
) -> Written:
    """Let the black box write labelled examples, in two turns; the second fills gaps of the first.

    If the black box fails, what it wrote until then is returned.

    Parameters
    ----------
    description : str
        What the task is, such as its seed prompt.
    public : Sequence[Example]
        Demonstrations.
    per_class : int
        Examples wanted of each class.
    max_queries : int
        Most answers to be asked for.
    """
    examples: list[Example] = []
    queries = 0
    for _ in range(2):
        counts = [sum(e.label == label for e in examples) for label in range(task.num_labels)]
        missing = [
            label
            for number in range(per_class)
            for label, count in enumerate(counts)
            if number >= count
        ][: max_queries - queries]
        asked = [
            writing_query(task, description, label, _some(public, label, rng)) for label in missing
        ]
        try:
            for index, text in _arriving(model, asked):
                queries += 1
                made = None if text is None else read_text(task, text)
                if made and not is_copy(made, [e.input for e in (*public, *examples)]):
                    examples.append(Example(made, missing[index]))
        except ModelError:
            return Written(tuple(examples), queries, cut_short=True)
    return Written(tuple(examples), queries)


def writing_query(
    task: Task, description: str, label: int, demonstrations: Sequence[Example]
) -> str:
    """Return the query to which a continuation is one more example of class ``label``."""
    first, *_, last = _literals(task)
    head = f"{_question(task) or 'Answer:'} {task.answers[label]}\n"
    shown = [head + example.input.removesuffix(last).strip() for example in demonstrations]
    intro = f"Different examples for this task: {description}"
    return "\n\n".join([intro, *shown, head + first.strip()])


def read_text(task: Task, text: str) -> str | None:
    """Return the input of the example that the black box wrote, or None if it has not its form."""
    first, *inner, last = _literals(task)
    ends = [re.escape(mark) for mark in {_question(task), first.strip()} if mark]
    if not any("\n\n" in literal for literal in inner):
        ends.append(r"\n\s*\n")
    body = re.split("|".join(ends), text.strip(), maxsplit=1)[0] if ends else text
    parts = []
    for literal in inner:
        part, mark, body = body.partition(literal.strip() or "\n")
        if not mark:
            return None
        parts.append(part)
    parts = [" ".join(part.split()) for part in (*parts, body)]
    if any(len(part.split()) < MIN_WORDS for part in parts):
        return None
    return first + "".join(
        part + literal for part, literal in zip(parts, [*inner, last], strict=True)
    )


def is_copy(text: str, others: Iterable[str]) -> bool:
    """Return whether ``text`` has too many words in common with another, in order, as Rouge-L."""
    words = text.casefold().split()
    return any(
        SequenceMatcher(a=words, b=other.casefold().split(), autojunk=False).ratio()
        > MAX_SIMILARITY
        for other in others
    )


def _literals(task: Task) -> list[str]:
    """Return what stands around the texts in an example's input."""
    return task.render(dict.fromkeys(task.text_columns, _MARK)).split(_MARK)


def _question(task: Task) -> str:
    """Return what the answer follows, such as "Sentiment:"; empty if that is a text itself."""
    return task.compose("", _MARK.join(_literals(task))).split(_MARK)[-1].strip()


def _some(public: Sequence[Example], label: int, rng: np.random.Generator) -> list[Example]:
    fitting = [example for example in public if example.label == label]
    return [fitting[i] for i in rng.permutation(len(fitting))[:DEMONSTRATIONS]]


def _arriving(model: LanguageModel, queries: Sequence[str]) -> Iterator[tuple[int, str | None]]:
    if isinstance(model, IncrementalLanguageModel):
        return model.iter_answers(queries, ())
    return enumerate(model.answer(queries, ()))

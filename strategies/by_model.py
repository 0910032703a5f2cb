"""Counts of clients whose black boxes differ.

A prompt that is good on average may be useless to one of the models. What is chosen among the
candidates can be either.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from strategies.candidates import Score, Tokens, damping, tally
from strategies.wire import LONGEST_NAME, MODEL_KEY, short_line

ChooseFor = Literal["mean", "worst"]
"""What the global prompt is chosen for: all answers alike, or the model that it serves worst."""


@dataclass(frozen=True, slots=True)
class Count:
    """What one client counted.

    Attributes
    ----------
    model
        Its black box, as the client calls it; empty if it does not say.
    scores
        Correct answers of every candidate, all over the same examples.
    """

    model: str
    scores: Mapping[Tokens, Score]


def model_name(metrics: Mapping[str, Any]) -> str:
    """Return the black box that a client names, in one short line; empty if it names none."""
    return short_line(metrics.get(MODEL_KEY, ""), LONGEST_NAME)


def by_model(counts: Sequence[Count]) -> dict[str, dict[Tokens, Score]]:
    """Add up the counts of each model's clients (see `candidates.tally`), models in order of name.

    Parameters
    ----------
    counts
        One per client.

    Returns
    -------
    dict
        Each candidate's score over the clients of each model.
    """
    return {model: tally(scores) for model, scores in _grouped(counts).items()}


def compared_by(counts: Sequence[Count], choose_for: ChooseFor) -> dict[Tokens, Score]:
    """Return the scores by which candidates are compared, no client's say being too large.

    Clients whose counts differ unusually much from prompt to prompt have less to say
    (`candidates.damping`) where three or more are added up: of two, nothing tells who lies.

    Parameters
    ----------
    counts
        One per client.
    choose_for
        ``"mean"``: over all clients, each up to the median one's number of examples. ``"worst"``:
        of the model with the lowest accuracy, however few clients have it.

    Returns
    -------
    dict
        One score per candidate; empty without counts.
    """
    if choose_for == "mean":
        return _damped([count.scores for count in counts])
    models = [_damped(scores) for scores in _grouped(counts).values()]
    return {
        tokens: min((scores[tokens] for scores in models), key=lambda score: score.accuracy)
        for tokens in (counts[0].scores if counts else ())
    }


def _grouped(counts: Sequence[Count]) -> dict[str, list[Mapping[Tokens, Score]]]:
    """Return what the clients of each model counted, models in order of name."""
    return {
        model: [count.scores for count in counts if count.model == model]
        for model in sorted({count.model for count in counts})
    }


def _damped(scores: Sequence[Mapping[Tokens, Score]]) -> dict[Tokens, Score]:
    return tally(scores, damping(scores) if len(scores) > 2 else None)

"""What a run shows when it is over, as rows of a table."""

from collections.abc import Mapping, Sequence

from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.held_out import HeldOut
from feddtpt_flwr.language_model.usage import Prices, Usage
from feddtpt_flwr.privacy.exponential import total_epsilon
from strategies.candidates import Tokens
from strategies.wire import (
    COMPLETION_TOKENS_KEY,
    COST_KEY,
    GENERATOR_COMPLETION_TOKENS_KEY,
    GENERATOR_COST_KEY,
    GENERATOR_FALLBACKS_KEY,
    GENERATOR_PROMPT_TOKENS_KEY,
    GENERATOR_REQUESTS_KEY,
    PROMPT_TOKENS_KEY,
    UNPARSED_KEY,
)

UNEVEN = 1.5
"""Where a label has so many times as many held-out examples as another, accuracies are told that
count all labels alike: that is what searches go by."""


def model_rows(by_model: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """Return how the prompt does with each of the nodes' black boxes, if they differ.

    Parameters
    ----------
    by_model : Mapping[str, Mapping[str, float]]
        For each black box the ``correct`` and ``total`` answers.
    """
    lines = [
        f"{model or 'not named'}: {score['correct'] / score['total']:.1%} of {score['total']:,.0f}"
        for model, score in by_model.items()
    ]
    return {"learned prompt on the nodes' examples": "\n".join(lines)} if lines else {}


def label_rows(
    held_out: HeldOut, answers: Sequence[str], seed: Tokens, learned: Tokens
) -> dict[str, str]:
    """Return how the prompts do on each label's held-out examples alike, if some have far fewer.

    Parameters
    ----------
    held_out : HeldOut
        What was asked about the held-out examples.
    answers : Sequence[str]
        The answer word of each label.
    seed, learned : Tokens
        The prompts.
    """
    counts = [held_out.per_label.get(label, 0) for label in range(len(answers))]
    if max(counts) < UNEVEN * min(counts) or not max(counts):
        return {}
    each = ", ".join(f"{count:,} {word!r}" for word, count in zip(answers, counts, strict=True))
    before, after = (held_out.balanced_accuracy(tokens) for tokens in (seed, learned))
    if before is None or after is None:
        return {"held-out examples": each}
    commonest = answers[counts.index(max(counts))]
    return {
        "held-out examples": (
            f"{each}; {commonest!r} to all: {max(counts) / sum(counts):.1%} right"
        ),
        "mean of the labels' accuracies": (
            f"seed prompt    {before:.1%}\nlearned prompt {after:.1%}"
        ),
    }


def endpoint_rows(
    sums: Mapping[str, float], held_out: HeldOut, prices: Prices, failures: int
) -> dict[str, str]:
    """Return what there is to say of models behind endpoints, the server's or nodes'.

    Parameters
    ----------
    sums : Mapping[str, float]
        What the clients have reported, added up, by the names in `strategies.wire`.
    held_out : HeldOut
        What was asked about the held-out examples.
    failures : int
        Searches and scorings that the black box cut short.
    """
    if held_out.usage is None and not (sums[PROMPT_TOKENS_KEY] or sums[COST_KEY] or failures):
        return {}
    usage = held_out.usage or Usage()
    return {
        "answers that fit no label": (
            f"clients {sums[UNPARSED_KEY]:,.0f}, held-out {held_out.unparsed:,}"
        ),
        "tokens read + written": (
            f"clients {sums[PROMPT_TOKENS_KEY]:,.0f} + {sums[COMPLETION_TOKENS_KEY]:,.0f}, "
            f"held-out {usage.prompt_tokens:,} + {usage.completion_tokens:,}"
        ),
        "cost at the configured prices": (
            f"clients {sums[COST_KEY]:,.4f}, held-out {prices.cost(usage):,.4f}"
        ),
        "searches and scorings cut short": str(failures),
    }


def generator_rows(sums: Mapping[str, float]) -> dict[str, str]:
    """Return what the language model that writes prompts was asked, if there is one.

    Parameters
    ----------
    sums : Mapping[str, float]
        What the clients have reported, added up, by the names in `strategies.wire`.
    """
    if GENERATOR_REQUESTS_KEY not in sums:
        return {}
    return {
        "prompt generator": (
            f"{sums[GENERATOR_REQUESTS_KEY]:,.0f} requests, "
            f"{sums[GENERATOR_PROMPT_TOKENS_KEY]:,.0f} + "
            f"{sums[GENERATOR_COMPLETION_TOKENS_KEY]:,.0f} tokens read + written, "
            f"cost {sums[GENERATOR_COST_KEY]:,.4f}\n"
            f"{sums[GENERATOR_FALLBACKS_KEY]:,.0f} times the masked LM proposed in its place"
        )
    }


def limit_rows(config: RunConfig, num_rounds: int, ended_early: bool) -> dict[str, str]:
    """Return after how many rounds a run ended, if it was its clients' limits that ended it."""
    if not ended_early:
        return {}
    return {
        "ended early": (
            f"after {num_rounds} of {config.num_server_rounds} rounds: every client has used up "
            "a limit of its run"
        )
    }


def privacy_rows(config: RunConfig, num_rounds: int, num_redone: int) -> dict[str, str]:
    """Return what was promised for the clients' examples, where something was.

    Parameters
    ----------
    config : RunConfig
        Settings of the run.
    num_rounds : int
        Rounds that the clients may have answered, one that was done again as two.
    num_redone : int
        How many were done again.
    """
    epsilon = total_epsilon(config, num_rounds)
    if epsilon is None:
        return {}
    again = f", {num_redone} of {num_rounds} done again after the run was stopped"
    return {
        "differential privacy": (
            f"epsilon = {epsilon:g} for one private example, delta = 0\n"
            f"{config.epsilon:g} in each round{again if num_redone else ''}"
        )
    }

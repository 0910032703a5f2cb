"""What a client may use for one message, by the settings and by what it has used in the run."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Self

from flwr.common import Scalar

from feddtpt_flwr import models
from feddtpt_flwr.amounts import Amounts
from feddtpt_flwr.budget import ClientBudget, Span
from feddtpt_flwr.client_state import ClientState
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import ClientData, Example, Task
from strategies.wire import RACE_EXAMPLES_KEY, examples_each

QUERIES_PER_EXAMPLE = 4
"""A search has at least so many queries for each example that it judges prompts by: to measure the
prompt that it starts from takes a quarter of them at most, unless they are very few."""

FEWEST_EXAMPLES = 8
"""But it judges by so many examples, if there are as many: a batch of a race."""


@dataclass(frozen=True)
class Sizes:
    """How many examples a client has.

    Attributes
    ----------
    train, validation : int
        Private ones, to search on and to validate with.
    public : int
        Those of the public set.
    """

    train: int
    validation: int
    public: int

    @classmethod
    def of(cls, data: ClientData, public: Sequence[Example]) -> Self:
        """Return what a client has."""
        return cls(len(data.train), len(data.validation), len(public))

    @classmethod
    def wanted(cls, config: RunConfig, task: Task) -> Self:
        """Return what the settings give each simulated client."""
        own = config.k_shot * task.num_labels
        return cls(own, own, config.public_per_class * task.num_labels)


def search_budget(config: RunConfig, state: ClientState, num_scored: int) -> ClientBudget:
    """Return the budget of one search.

    Parameters
    ----------
    config : RunConfig
        Its limits.
    state : ClientState
        What was used before; it is told what is used from now on.
    num_scored : int
        Private examples on which each of the round's prompts is compared afterwards.
    """
    this_round = Amounts(
        queries=inf,  # the budget's own
        tokens=config.tokens_per_round or inf,
        cost=config.cost_per_round or inf,
        seconds=config.seconds_per_round or inf,
    )
    # What a search finds is worth nothing if nobody can compare it.
    run = _run(config, state, reserve=num_compared(config) * num_scored)
    return ClientBudget(
        config.queries_per_round,
        Span("round", this_round, state.used_in_step),
        run,
        tariff=models.tariff(config),
        to_find=state.to_find,
        on_use=state.use,
    )


def scoring_budget(config: RunConfig, state: ClientState, queries: int) -> ClientBudget:
    """Return the budget for comparing prompts in at most so many ``queries``."""
    run = _run(config, state)
    return ClientBudget(queries, run, tariff=models.tariff(config), on_use=state.use)


def batch_size(config: RunConfig, num_examples: int) -> int:
    """Return by how many of a client's ``num_examples`` a round's search judges prompts."""
    affordable = config.queries_per_round // QUERIES_PER_EXAMPLE
    return min(num_examples, max(FEWEST_EXAMPLES, affordable))


def too_few_to_search(config: RunConfig, num_examples: int) -> str:
    """Return why a search cannot try a single change; empty if it can.

    Parameters
    ----------
    config : RunConfig
        Settings of the run.
    num_examples : int
        All that the client has, with the public set.
    """
    size = batch_size(config, num_examples)
    if config.queries_per_round >= 2 * size:
        return ""
    return (
        f"queries-per-round = {config.queries_per_round}: {2 * size} or more are needed for a "
        f"search on {size} examples"
    )


def too_few_queries(config: RunConfig, sizes: Sizes) -> str:
    """Return why ``queries-per-round`` is too few for what a client is to do; empty if it is not.

    Parameters
    ----------
    config : RunConfig
        Settings of the run on this node.
    sizes : Sizes
        The client's examples.
    """
    train, examples = sizes.train, sizes.train + sizes.public
    if config.privacy == "exponential":
        least = train * (4 if sizes.public else 2)
        why = f"for two prompts to choose from with {train} private examples"
    elif config.privacy == "synthetic":
        search = 2 * examples
        # Examples are written in two turns, and with half of what that search may ask at most.
        uploading = search + min(2 * train, search - 1)
        least = 2 * max(uploading, search + sizes.validation)
        why = (
            f"for two searches on {examples} examples, to write {train} of them, and to validate "
            f"on {sizes.validation}"
        )
    else:
        return too_few_to_search(config, examples)
    if config.queries_per_round >= least:
        return ""
    return f"queries-per-round = {config.queries_per_round}: {least} or more are needed {why}"


def too_few_in_run(config: RunConfig, sizes: Sizes, num_clients: int) -> str:
    """Return why ``queries-per-run`` would let a client ask nothing at all; empty if it does not.

    Parameters
    ----------
    config : RunConfig
        Settings of the run.
    sizes : Sizes
        The client's examples.
    num_clients : int
        All clients of the run.
    """
    if not config.queries_per_run:
        return ""
    size = batch_size(config, sizes.train + sizes.public)
    comparing = max(1, int(num_clients * config.fraction_evaluate))
    share = examples_each(config.race_examples, comparing)
    own = most_scored(config, sizes.train + sizes.validation)
    scored = min(own, share) if share else own
    least = 2 * size + num_compared(config) * scored
    if config.queries_per_run >= least:
        return ""
    return (
        f"queries-per-run = {config.queries_per_run}: {least} or more are needed for a search on "
        f"{size} examples and to compare {num_compared(config)} prompts on {scored}"
    )


def num_compared(config: RunConfig) -> int:
    """Return how many prompts a client compares in a round, at most."""
    return config.race_candidates + 1 if config.guard else 0


def too_much_to_compare(config: RunConfig, num_prompts: int, wanted: Scalar | None) -> str:
    """Return why a message asks for more than a round may; empty if it does not.

    Parameters
    ----------
    config : RunConfig
        Settings of the run on this node.
    num_prompts : int
        Prompts that the server sent.
    wanted : Scalar, optional
        On how many examples it wants them compared; None for all.
    """
    most = config.race_candidates + 1
    if num_prompts > most:
        return (
            f"race-candidates = {config.race_candidates}: at most {most} prompts are compared, "
            f"{num_prompts} were sent"
        )
    if wanted is not None and int(wanted) < 1:
        return f"{RACE_EXAMPLES_KEY} = {wanted!r}: at least 1 is needed"
    return ""


def most_scored(config: RunConfig, num_own: int) -> int:
    """Return on how many of its ``num_own`` private examples a client tries a prompt, at most."""
    # Where counts are noised, every client takes all of its examples.
    every = not config.race_examples or config.privacy == "exponential"
    return num_own if every else min(num_own, config.race_examples)


def _run(config: RunConfig, state: ClientState, reserve: int = 0) -> Span:
    limits = Amounts(
        queries=config.queries_per_run or inf,
        tokens=config.tokens_per_run or inf,
        cost=config.cost_per_run or inf,
        seconds=config.seconds_per_run or inf,
    )
    return Span("run", limits, state.used_in_run, reserve)

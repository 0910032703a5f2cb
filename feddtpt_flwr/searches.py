"""Which search and which proposer a setting names.

An own one needs a class with the one method of `Search` or `Proposer`, a line here and its name in
`config`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from feddtpt_flwr.baselines.bdpl import PolicyGradientSearch
from feddtpt_flwr.baselines.evolution import EvolutionSearch
from feddtpt_flwr.baselines.random_words import RandomProposer
from feddtpt_flwr.config import ProposerName, RunConfig, SearchName
from feddtpt_flwr.data import Example, Task
from feddtpt_flwr.evaluation import Evaluator
from feddtpt_flwr.experiment import readability
from feddtpt_flwr.feedback import Feedback, Trial
from feddtpt_flwr.generator import PromptGenerator, Writer
from feddtpt_flwr.masked_lm import MaskedLM
from feddtpt_flwr.privacy.public_tokens import PublicTokensProposer, allowed_tokens
from feddtpt_flwr.proposer import MaskedLMProposer, Proposer
from feddtpt_flwr.search import WIDTH, PromptSearch
from feddtpt_flwr.search_result import SearchResult
from strategies.candidates import Tokens


class Search(Protocol):
    """Finds a better prompt on one client's examples."""

    def run(self, start: Tokens, feedback: Feedback) -> SearchResult:
        """Search from ``start`` until the evaluator's budget is used up."""
        ...


@dataclass(frozen=True)
class SearchParts:
    """What a search may use: the run's settings, and the client's examples and budget.

    Attributes
    ----------
    config : RunConfig
        Settings of the run.
    task : Task
        The task.
    public : tuple[Example, ...]
        The public set.
    masked_lm : MaskedLM
        Turns tokens into text, and tells how well they read.
    evaluator : Evaluator
        The single way to the black box; its budget ends the search.
    examples : Sequence[Example]
        The round's, by which prompts are judged: private and public ones.
    rng : numpy.random.Generator
        Source of all randomness.
    on_accept : Callable[[Trial], None]
        Called after every accepted change, where a search has such.
    pool : Sequence[Example], optional
        All that the client has for searches, with the public set; by default ``examples``.
    writer : Writer, optional
        The language model of ``proposer = "prompt-generator"``.
    width : int
        Changes that are raced at once, where a search has races.
    """

    config: RunConfig
    task: Task
    public: tuple[Example, ...]
    masked_lm: MaskedLM
    evaluator: Evaluator
    examples: Sequence[Example]
    rng: np.random.Generator
    on_accept: Callable[[Trial], None]
    pool: Sequence[Example] | None = None
    writer: Writer | None = None
    width: int = WIDTH

    @property
    def excluded_words(self) -> tuple[str, ...]:
        """Words that no prompt may be given."""
        return self.task.answers if self.config.exclude_answer_words else ()


def build_search(parts: SearchParts) -> Search:
    """Return the search that ``parts.config`` names."""
    return SEARCHES[parts.config.search](parts)


def build_proposer(parts: SearchParts) -> Proposer:
    """Return the proposer that ``parts.config`` names, kept to public tokens if it says so."""
    proposer = PROPOSERS[parts.config.proposer](parts)
    if parts.config.privacy != "public-tokens":
        return proposer
    allowed = allowed_tokens(parts.config, parts.task, parts.public)
    return PublicTokensProposer(proposer, parts.masked_lm, allowed, parts.excluded_words)


def _feddtpt(parts: SearchParts, *, first_batch: int | None = None) -> Search:
    # Next to any word that a language model proposes, a random one reads badly: were its language
    # weighed, hardly any would be accepted.
    fluency = 0.0 if parts.config.proposer == "random" else 1.0
    return PromptSearch(
        parts.evaluator,
        build_proposer(parts),
        parts.masked_lm,
        parts.examples,
        parts.rng,
        max_tokens=parts.config.max_prompt_tokens,
        fluency=fluency,
        width=parts.width,
        first_batch=first_batch,
        admissible=readability(parts.config, parts.task).each,
        on_accept=parts.on_accept,
    )


def _sequential(parts: SearchParts) -> Search:
    return _feddtpt(replace(parts, width=1), first_batch=len(parts.examples))


def _bdpl(parts: SearchParts) -> Search:
    return PolicyGradientSearch(
        parts.evaluator,
        parts.masked_lm.vocabulary,
        parts.examples,
        parts.rng,
        max_tokens=parts.config.max_prompt_tokens,
        excluded_words=parts.excluded_words,
        corpus=parts.pool,
    )


def _evolution(parts: SearchParts) -> Search:
    # It knows no feedback.
    without = parts.config.model_copy(update={"feedback": False})
    return EvolutionSearch(
        parts.evaluator,
        build_proposer(replace(parts, config=without)),
        parts.masked_lm.vocabulary,
        parts.examples,
        parts.rng,
        max_tokens=parts.config.max_prompt_tokens,
        admissible=readability(parts.config, parts.task).each,
    )


def _masked_lm(parts: SearchParts) -> Proposer:
    return MaskedLMProposer(
        parts.masked_lm,
        max_tokens=parts.config.max_prompt_tokens,
        use_feedback=parts.config.feedback,
        reword=parts.config.reword,
    )


def _random(parts: SearchParts) -> Proposer:
    return RandomProposer(parts.masked_lm.vocabulary, excluded_words=parts.excluded_words)


def _prompt_generator(parts: SearchParts) -> Proposer:
    if parts.writer is None:
        raise ValueError(
            "writer = None: proposer = 'prompt-generator' needs a `Writer`; without one, "
            "'masked-lm' and 'random' are allowed"
        )
    return PromptGenerator(
        parts.writer,
        _masked_lm(parts),
        parts.task,
        parts.masked_lm.vocabulary,
        max_tokens=parts.config.max_prompt_tokens,
        excluded_words=parts.excluded_words,
        use_feedback=parts.config.feedback,
        race=parts.width,
    )


SEARCHES: dict[SearchName, Callable[[SearchParts], Search]] = {
    "feddtpt": _feddtpt,
    "sequential": _sequential,
    "bdpl": _bdpl,
    "evolution": _evolution,
}

PROPOSERS: dict[ProposerName, Callable[[SearchParts], Proposer]] = {
    "masked-lm": _masked_lm,
    "random": _random,
    "prompt-generator": _prompt_generator,
}

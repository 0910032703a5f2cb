"""A language model that writes prompts: one more proposer, for those who have a large one.

It is shown the task, the prompt and what changes of it have gained; never the text of an example.
"""

import re
from collections.abc import Iterable, Sequence
from logging import WARNING

import numpy as np
from flwr.common import log

from feddtpt_flwr.amounts import Tariff
from feddtpt_flwr.budget import BudgetExhaustedError, QueryBudget
from feddtpt_flwr.data import Task
from feddtpt_flwr.evaluation import AnswerCache
from feddtpt_flwr.feedback import Feedback, Trial
from feddtpt_flwr.language_model import LanguageModel, ModelError
from feddtpt_flwr.language_model.usage import Metered, Usage
from feddtpt_flwr.proposer import NothingBetterError, Proposer
from feddtpt_flwr.search import WIDTH
from feddtpt_flwr.vocabulary import Vocabulary
from feddtpt_flwr.written_prompts import read_prompts, writing_request
from strategies.candidates import Tokens
from strategies.edits import Edit

SHOWN = 5
"""So many of the changes that gained most are shown, and so many of those that lost most."""

DOUBT = 8
"""So many examples without a gain are added to a change's own before changes are ranked: one answer
won on 8 examples says less than six won on 48."""

RACES_WRITTEN = 2
"""Prompts are written for so many races at once; those of later ones are to know how these went."""


class Writer:
    """The language model that writes: counted apart, within the budget, asked nothing twice.

    Parameters
    ----------
    model : LanguageModel
        Writes free text.
    tariff : Tariff
        What its answers cost.
    budget : QueryBudget
        Its tokens, money and time are charged; its requests are no queries.
    cache : AnswerCache
        Knows what was written before.
    chat : bool
        Whether the model answers messages; otherwise it continues texts.

    Attributes
    ----------
    requests : int
        Answers that the model gave.
    fallbacks : int
        Times that another proposer stood in; `PromptGenerator` counts them.
    """

    def __init__(
        self,
        model: LanguageModel,
        tariff: Tariff,
        budget: QueryBudget,
        cache: AnswerCache,
        *,
        chat: bool,
    ) -> None:
        self.chat = chat
        self._model = model
        self._tariff = tariff
        self._budget = budget
        self._cache = cache
        self._before = _usage(model)
        self._failed = False
        self.requests = 0
        self.fallbacks = 0

    @property
    def usage(self) -> Usage:
        """What the model has used since this was made; nothing if it does not count."""
        return _usage(self._model) - self._before

    def write(self, request: str) -> str:
        """Return the answer; empty if the budget does not cover it or the model fails.

        A model that has failed once is not asked again: a search is not to wait for it.
        """
        question = f"{self._model.name}\0writes\0{request}"
        known = self._cache.get(question)
        if known is None and (known := self._cache.archived(question)) is not None:
            self._cache.update([(question, known)])
        if known is not None:
            return known
        return "" if self._failed else self._ask(question, request)

    def _ask(self, question: str, request: str) -> str:
        try:
            self._budget.admit([request], self._tariff)
        except BudgetExhaustedError:
            return ""
        before = _usage(self._model)
        try:
            (text,) = self._model.answer([request], ())
        except ModelError as error:
            log(WARNING, "the prompt generator does not answer: %s", error)
            self._failed = True
            return ""
        finally:
            counted = isinstance(self._model, Metered)
            self._budget.settle(_usage(self._model) - before if counted else None, self._tariff)
        self.requests += 1
        # Half of a character, as a limit of tokens may leave, can be neither kept nor shown.
        text = text.encode("utf-8", "replace").decode()
        if text:  # what was refused may be written another time
            self._cache.update([(question, text)])
        return text


class PromptGenerator:
    """Proposes what a language model writes, and what another proposer does where that is no use.

    What the other one proposes is enough for one race at most, so that the next step is the
    language model's again.

    Parameters
    ----------
    writer : Writer
        The language model.
    fallback : Proposer
        Proposes for a step for which nothing new was written that the search can use.
    task : Task
        What the prompt is for.
    vocabulary : Vocabulary
        Turns tokens into text and back.
    max_tokens : int
        Longest prompt, in tokens.
    excluded_words : tuple[str, ...]
        Words that no change brings in, whatever their case.
    use_feedback : bool
        Whether the model is shown what was tried.
    race : int
        Changes of one race: so many the other proposes at most, before the model is asked again.
    """

    def __init__(
        self,
        writer: Writer,
        fallback: Proposer,
        task: Task,
        vocabulary: Vocabulary,
        *,
        max_tokens: int,
        excluded_words: tuple[str, ...] = (),
        use_feedback: bool = True,
        race: int = WIDTH,
    ) -> None:
        self._writer = writer
        self._fallback = fallback
        self._task = task
        self._vocabulary = vocabulary
        self._max_tokens = max_tokens
        self._excluded = excluded_words
        self._use_feedback = use_feedback
        self._race = race
        self._proposed: set[Tokens] = set()
        self._supplied: Feedback | None = None  # of the search that may have some left to try

    def propose(
        self, tokens: Tokens, feedback: Feedback, rng: np.random.Generator, count: int
    ) -> list[Edit]:
        """Return at most ``count`` edits of the prompt ``tokens``, enough for `RACES_WRITTEN`.

        Raises
        ------
        NothingBetterError
            If nothing new was written since the last call with the same ``feedback`` brought some.
        """
        changes = self._changes(feedback.trials) if self._use_feedback else []
        count = min(count, RACES_WRITTEN * self._race)
        request = writing_request(
            self._task,
            self._vocabulary.decode(tokens),
            changes,
            count=count,
            max_words=max(1, self._max_tokens * 2 // 3),
            excluded_words=self._excluded,
            chat=self._writer.chat,
        )
        written = self._usable(read_prompts(self._writer.write(request)), tokens)
        new = [prompt for prompt in written if prompt not in self._proposed][:count]
        if new:
            self._proposed |= set(new)
            self._supplied = feedback
            return [spanning_edit(tokens, prompt) for prompt in new]
        if self._supplied is feedback:
            self._supplied = None
            raise NothingBetterError
        self._supplied = feedback
        self._writer.fallbacks += 1
        return self._fallback.propose(tokens, feedback, rng, min(count, self._race))

    def _changes(self, trials: Sequence[Trial]) -> list[str]:
        latest = {self._describe(trial): trial for trial in trials}
        ranked = sorted(latest.items(), key=lambda change: -_cautious_gain(change[1]))
        shown = ranked if len(ranked) <= 2 * SHOWN else ranked[:SHOWN] + ranked[-SHOWN:]
        return [f"{what}: {t.gain:+.0%} of {t.num_examples} examples" for what, t in shown]

    def _describe(self, trial: Trial) -> str:
        before, after = map(self._vocabulary.decode, (trial.before, trial.after))
        match trial.operator:
            case "insert":
                return f'"{after}" put in after "{before}"'
            case "delete":
                return f'"{before}" left out'
        return f'"{after}" instead of "{before}"'

    def _usable(self, prompts: Iterable[str], tokens: Tokens) -> list[Tokens]:
        """Return the prompts that may be tried in place of ``tokens``, as tokens."""
        there = _words(self._vocabulary.decode(tokens))
        excluded = {word for text in self._excluded for word in _words(text)} - there
        usable: dict[Tokens, None] = {}
        for text in prompts:
            if _words(text) and not _words(text) & excluded:
                changed = self._vocabulary.encode(text)
                if changed != tokens and len(changed) <= self._max_tokens:
                    usable[changed] = None
        return list(usable)


def spanning_edit(before: Tokens, after: Tokens) -> Edit:
    """Return the one edit that turns ``before`` into ``after``, as short as it can be."""
    start = 0
    while start < min(len(before), len(after)) and before[start] == after[start]:
        start += 1
    end = 0
    room = min(len(before), len(after)) - start
    while end < room and before[-1 - end] == after[-1 - end]:
        end += 1
    return Edit(start, len(before) - end, after[start : len(after) - end])


def _cautious_gain(trial: Trial) -> float:
    """Return the gain per example, the nearer to zero the fewer examples there are."""
    return trial.gain * trial.num_examples / (trial.num_examples + DOUBT)


def _words(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]+", text.casefold()))


def _usage(model: LanguageModel) -> Usage:
    return model.usage if isinstance(model, Metered) else Usage()

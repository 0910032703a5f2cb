"""The client's search (paper, Algorithm 1): propose, ask, remember, keep what is better."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import comb, inf, log

import numpy as np
from numpy.typing import NDArray

from feddtpt_flwr.data import Example
from feddtpt_flwr.evaluation import BudgetExhaustedError, Evaluator
from feddtpt_flwr.feedback import Feedback, Trial
from feddtpt_flwr.language_model import ModelError
from feddtpt_flwr.masked_lm import MaskedLM
from feddtpt_flwr.proposer import Proposer
from strategies.candidates import Tokens
from strategies.edits import Edit

FIRST_BATCH = 8
MAX_ATTEMPTS = 50
MOST_EVIDENCE = 3.0  # log-odds, as of a change that helps with a probability of 0.95


@dataclass(frozen=True)
class Measured:
    """A prompt and which examples it answers correctly, in the search's order of examples."""

    tokens: Tokens
    correct: NDArray[np.bool_]

    @property
    def accuracy(self) -> float:
        """Share of correct answers, in [0, 1]."""
        return float(self.correct.mean())


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Parameters
    ----------
    tokens : Tokens
        The best prompt; the one it was given if nothing better was found.
    accuracy, start_accuracy : float
        Accuracy of this prompt and of the one it was given, on the same examples, in [0, 1];
        zero if the budget did not even cover the first.
    accepted : tuple[Trial, ...]
        The changes that led there, in order.
    num_trials : int
        Changes that were tried.
    failure : ModelError, optional
        What ended the search before its budget was used up.
    """

    tokens: Tokens
    accuracy: float
    start_accuracy: float
    accepted: tuple[Trial, ...]
    num_trials: int
    failure: ModelError | None = None


class PromptSearch:
    """Token-level search with inference feedback, one client's part of a round.

    Algorithm 1 of the paper, with three additions: a change is judged by the same examples as the
    prompt it changes, it is dropped as soon as it looks useless, and it must convince.

    Parameters
    ----------
    evaluator : Evaluator
        Asks the black box; its budget ends the search.
    proposer : Proposer
        Proposes changes, given the feedback.
    masked_lm : MaskedLM
        Turns tokens into text, and tells how well they read.
    examples : Sequence[Example]
        Private batch and public set together; prefixes should hold the classes in proportion.
    rng : numpy.random.Generator
        Source of all randomness.
    confidence : float
        How likely a change must be to help, in [0.5, 1), before the search goes on from it: see
        `probability_of_gain`.
    fluency : float
        Log-odds that a nat per token of the masked language model's log-likelihood is worth, at
        least 0.
    admissible : Callable[[Tokens], bool], optional
        Prompts for which it is false are not tried.
    on_accept : Callable[[Trial], None], optional
        Called after every accepted change.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        proposer: Proposer,
        masked_lm: MaskedLM,
        examples: Sequence[Example],
        rng: np.random.Generator,
        *,
        confidence: float = 0.7,
        fluency: float = 1.0,
        admissible: Callable[[Tokens], bool] = lambda _: True,
        on_accept: Callable[[Trial], None] | None = None,
    ) -> None:
        self._evaluator = evaluator
        self._proposer = proposer
        self._masked_lm = masked_lm
        self._examples = examples
        self._rng = rng
        self._confidence = confidence
        self._fluency = fluency
        self._admissible = admissible
        self._on_accept = on_accept or (lambda _: None)

    def run(self, start: Tokens, feedback: Feedback) -> SearchResult:
        """Search from ``start`` until the budget is used up; add every trial to ``feedback``.

        The result is never worse than ``start`` on the examples. If the black box fails, the search
        ends with the best prompt so far.

        Raises
        ------
        ModelError
            If the black box fails before ``start`` is measured: then nothing can be said of it.
        """
        accepted: list[Trial] = []
        tried = {start}
        try:
            best = first = self._measure(start)
        except BudgetExhaustedError:
            return SearchResult(start, 0.0, 0.0, (), 0)
        failure = None
        try:
            while edit := self._propose_new(best.tokens, tried, feedback):
                candidate, trial = self._race(best, edit)
                feedback.record(trial)
                if trial.accepted:
                    best = candidate
                    accepted.append(trial)
                    self._on_accept(trial)
        except BudgetExhaustedError:
            pass  # the regular end: the next question would have been one too many
        except ModelError as error:
            failure = error
        return SearchResult(
            best.tokens, best.accuracy, first.accuracy, tuple(accepted), len(tried) - 1, failure
        )

    def _propose_new(self, tokens: Tokens, tried: set[Tokens], feedback: Feedback) -> Edit | None:
        """Return an edit that leads to a new and admissible prompt, or None if none turns up."""
        for _ in range(MAX_ATTEMPTS):
            edit = self._proposer.propose(tokens, feedback, self._rng)
            changed = edit.apply(tokens)
            if changed not in tried and self._admissible(changed):
                tried.add(changed)
                return edit
        return None

    def _race(self, best: Measured, edit: Edit) -> tuple[Measured, Trial]:
        """Compare the changed prompt with the best so far, on growing batches of examples.

        Both are judged by the same examples. A change that more likely hurts than helps is
        dropped at once, and so is one that does nothing: the fate of most. What is left at the
        end must be likely enough to help, the more so the worse it reads.
        """
        changed = edit.apply(best.tokens)
        for size in self._batches():
            correct = self._ask(changed, size)
            before = best.correct[:size]
            won, lost = int((correct & ~before).sum()), int((before & ~correct).sum())
            helps = probability_of_gain(won, lost)
            if helps <= 0.5:
                break
        accepted = size == len(self._examples) and self._convinces(helps, best.tokens, changed)
        trial = Trial.of(edit, best.tokens, gain=won - lost, correct=correct, accepted=accepted)
        return Measured(changed, correct), trial

    def _convinces(self, helps: float, before: Tokens, after: Tokens) -> bool:
        """Weigh the evidence of the answers against what the change does to the prompt's language.

        Both count as log-odds: a change that makes the prompt less likely as language needs more
        evidence, one that makes it read better a little less, but always some. The evidence counts
        up to `MOST_EVIDENCE`: no number of answers buys a prompt that nobody can read.
        """
        if helps <= 0.5:
            return False
        score = self._masked_lm.log_likelihood
        # Per token: the sum would call every shorter prompt the better one.
        reads_better = score(after) / len(after) - score(before) / len(before)
        evidence = min(_log_odds(helps), MOST_EVIDENCE)
        return evidence + self._fluency * reads_better >= _log_odds(self._confidence)

    def _batches(self) -> Iterator[int]:
        """Yield how many examples have been asked after each batch; batches double."""
        size = FIRST_BATCH
        while size < len(self._examples):
            yield size
            size *= 2
        yield len(self._examples)

    def _measure(self, tokens: Tokens) -> Measured:
        return Measured(tokens, self._ask(tokens, len(self._examples)))

    def _ask(self, tokens: Tokens, size: int) -> NDArray[np.bool_]:
        return self._evaluator.correct(
            self._masked_lm.vocabulary.decode(tokens), self._examples[:size]
        )


def probability_of_gain(won: int, lost: int) -> float:
    """Return how likely a change helps, given the answers it won and lost on the same examples.

    Examples that both prompts answer alike tell nothing about the difference. Among the others,
    the chance of a win has a uniform prior, hence the posterior Beta(1 + won, 1 + lost); the
    result is its mass above one half: 0.5 without evidence, 0.75 after one win, 0.94 after three.

    Parameters
    ----------
    won, lost : int
        Answers that turned right and wrong, at least 0.

    Returns
    -------
    float
        A probability in (0, 1).
    """
    # The mass is that of a binomial tail, and exact in whole numbers.
    tosses = 1 + won + lost
    return sum(comb(tosses, heads) for heads in range(1 + won)) / (1 << tosses)


def _log_odds(probability: float) -> float:
    return log(probability / (1 - probability)) if probability < 1 else inf

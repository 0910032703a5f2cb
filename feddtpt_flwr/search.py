"""The client's search (paper, Algorithm 1): propose, ask, remember, keep what is better."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from feddtpt_flwr.budget import BudgetExhaustedError
from feddtpt_flwr.data import Example
from feddtpt_flwr.evaluation import Evaluator, mixed_order
from feddtpt_flwr.evidence import Measured, Runner, log_odds
from feddtpt_flwr.feedback import Feedback, Trial
from feddtpt_flwr.label_weights import accuracy, label_weights
from feddtpt_flwr.language_model import ModelError
from feddtpt_flwr.masked_lm import MaskedLM
from feddtpt_flwr.proposer import NothingBetterError, Proposer
from feddtpt_flwr.readability import per_token
from feddtpt_flwr.search_result import Hunch, SearchResult
from strategies.candidates import Tokens
from strategies.edits import Edit

WIDTH = 4  # changes that are raced at once
FIRST_BATCH = 8  # examples that every change is tried on
MAX_ATTEMPTS = 50  # to find enough new prompts, before the search ends
RACES_AHEAD = 4  # proposals are made for so many races at once: many read too badly to be tried
MOST_EVIDENCE = 3.0  # log-odds, as of a change that helps with a probability of 0.95


class PromptSearch:
    """Token-level search with inference feedback, one client's part of a round.

    Algorithm 1 of the paper, with five additions: several changes race at once, each is judged by
    the same examples as the prompt it changes, it is dropped as soon as it looks useless, it must
    convince, and with uneven labels each of them counts the same (see `label_weights`).

    Parameters
    ----------
    evaluator : Evaluator
        Asks the black box; its budget ends the search.
    proposer : Proposer
        Proposes changes, given the feedback.
    masked_lm : MaskedLM
        Turns tokens into text, and tells how well they read.
    examples : Sequence[Example]
        Private batch and public set together.
    rng : numpy.random.Generator
        Source of all randomness.
    max_tokens : int
        Longest prompt, in tokens.
    confidence : float
        How likely a change must be to help, in [0.5, 1), before the search goes on from it: see
        `evidence.probability_of_gain`. With even labels one answer won and none lost is enough for
        the default, so that changes which do nothing pass now and then. A client's few examples
        cannot tell them from small gains, and a higher level finds less and errs about as often
        (``python -m simulations bench races``); what all clients' examples say decides in the end.
        Answers alone convince up to about 0.95 (`MOST_EVIDENCE`); beyond, a change must also read
        better.
    fluency : float
        Log-odds that a nat per token of the masked language model's log-likelihood is worth, at
        least 0.
    width : int
        Changes that are raced at once, at least 1. More make better use of the machine, fewer of
        the feedback.
    first_batch : int, optional
        Examples after which a race first drops changes, at least 1; batches double from there.
        Defaults to `FIRST_BATCH`; as many as there are examples try every change on all of them.
    admissible : Callable[[Sequence[Tokens]], Sequence[bool]], optional
        Prompts for which it says false are not tried.
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
        max_tokens: int,
        confidence: float = 0.7,
        fluency: float = 1.0,
        width: int = WIDTH,
        first_batch: int | None = None,
        admissible: Callable[[Sequence[Tokens]], Sequence[bool]] = lambda p: [True] * len(p),
        on_accept: Callable[[Trial], None] | None = None,
    ) -> None:
        first = FIRST_BATCH if first_batch is None else first_batch
        require("confidence", confidence, "in [0.5, 1)", allowed=0.5 <= confidence < 1)
        require("fluency", fluency, "at least 0", allowed=fluency >= 0)
        require("width", width, "at least 1", allowed=width >= 1)
        require("first_batch", first, "at least 1", allowed=first >= 1)
        self._evaluator = evaluator
        self._proposer = proposer
        self._masked_lm = masked_lm
        self._examples = examples
        self._weights = label_weights(examples)
        self._rng = rng
        self._max_tokens = max_tokens
        self._confidence = confidence
        self._fluency = fluency
        self._width = width
        self._first_batch = first
        self._admissible = admissible
        self._on_accept = on_accept or (lambda _: None)

    def run(self, start: Tokens, feedback: Feedback) -> SearchResult:
        """Search from ``start`` until the budget is used up; add every trial to ``feedback``.

        With every answer right it ends as well, since no change could show that it helps. The
        result is never worse than ``start`` on the examples. If the black box fails, the search
        ends with the best prompt so far.

        Raises
        ------
        ModelError
            If the black box fails before ``start`` is measured: then nothing can be said of it.
        """
        try:
            best = first = self._measure(start)
        except BudgetExhaustedError:
            return SearchResult(start, 0.0, 0.0, (), 0, measured=False)
        accepted: list[Trial] = []
        num_trials, tried, waiting = 0, {start}, list[Edit]()
        failure: ModelError | None = None
        hunch: Hunch | None = None
        try:
            # With every answer right there is nothing to win: the examples are used up.
            while not best.correct.all() and (
                edits := self._propose(best.tokens, waiting, tried, feedback)
            ):
                edits, waiting = edits[: self._width], edits[self._width :]
                raced, failure = self._race(best, edits)
                tried |= {runner.edit.apply(best.tokens) for runner in raced}
                winner, unjudged = self._winner(raced, best.tokens)
                failure = failure or unjudged
                for runner in raced:
                    trial = runner.trial(best.tokens, accepted=runner is winner)
                    feedback.record(trial)
                    if trial.accepted:
                        accepted.append(trial)
                        self._on_accept(trial)
                num_trials += len(raced)
                hunch = None if accepted else self._likelier(hunch, raced, best.tokens)
                if winner:
                    waiting = _still_fitting(waiting, winner.edit, len(best.tokens))
                    best = Measured(winner.edit.apply(best.tokens), winner.in_order)
                if failure:
                    break
        except ModelError as error:
            failure = error
        before, after = (accuracy(prompt.correct, self._weights) for prompt in (first, best))
        return SearchResult(
            best.tokens, after, before, tuple(accepted), num_trials, failure, hunch=hunch
        )

    def _propose(
        self, tokens: Tokens, waiting: Sequence[Edit], tried: set[Tokens], feedback: Feedback
    ) -> list[Edit]:
        """Return edits that lead to new and admissible prompts, those waiting first.

        Enough for some races, since many proposals together cost less than one by one; those of
        many would be made before the feedback that should steer them. No more than the number of
        queries lets try, or fewer where the proposer has nothing better; none if the budget does
        not let any of them finish or nothing new turns up.
        """
        if not self._can_finish():
            return []
        chosen, first = self._new(waiting, tokens, tried), next(self._batches())
        budget = self._evaluator.budget
        for _ in range(MAX_ATTEMPTS):
            # Proposing takes time as well.
            if len(chosen) >= min(self._width, self._affordable(0, first)):
                break
            # By queries alone: what other limits leave is an estimate, and another one when the
            # course of a killed search is gone through once more.
            most = self._affordable(0, first, budget.limit - budget.used)
            count = min(RACES_AHEAD * self._width, most)
            try:
                proposed = self._proposer.propose(tokens, feedback, self._rng, count)
            except NothingBetterError:
                if chosen:
                    break
                continue
            chosen |= self._new(proposed, tokens, tried | set(chosen))
        return list(chosen.values())

    def _new(self, edits: Sequence[Edit], tokens: Tokens, known: set[Tokens]) -> dict[Tokens, Edit]:
        """Return the edits that lead to admissible prompts that are not known yet, by prompt."""
        new = {
            changed: edit
            for edit in edits
            if (changed := edit.apply(tokens)) not in known
            # An edit that waited may no longer fit the prompt that another one has changed.
            and 1 <= len(changed) <= self._max_tokens
        }
        fits = self._admissible(list(new)) if new else []
        return {prompt: new[prompt] for prompt, ok in zip(new, fits, strict=True) if ok}

    def _race(
        self, best: Measured, edits: Sequence[Edit]
    ) -> tuple[list[Runner], ModelError | None]:
        """Compare changed prompts with the best so far, by successive halving.

        All are judged by the same examples, in growing batches; after each the better half goes
        on. A change that more likely hurts than helps is dropped at once, and so is one that does
        nothing: the fate of most. Every race has an order of examples of its own: where the best
        prompt answers the first ones well by chance, no change would ever get past them.

        If the black box fails, what it had answered before stands, and the failure is returned.
        """
        failure = None
        raced: dict[Edit, Runner] = {}
        running, asked = list(edits), 0
        labels = [example.label for example in self._examples]
        order = mixed_order(list(zip(labels, best.correct.tolist(), strict=True)), self._rng)
        for size in self._batches():
            running = running[: self._affordable(asked, size)]
            if not running:
                break
            try:
                changed = [edit.apply(best.tokens) for edit in running]
                answers = self._ask(changed, order[:size])
            except BudgetExhaustedError:
                break  # answers cost more than those before them
            except ModelError as error:
                failure = error
                break
            for edit, correct in zip(running, answers, strict=True):
                which = order[:size]
                raced[edit] = Runner(
                    edit, which, correct, best.correct[which], self._weights[which]
                )
            ranked = sorted(running, key=lambda e: -raced[e].helps)
            better_half = ranked[: (len(ranked) + 1) // 2]
            running, asked = [edit for edit in better_half if raced[edit].helps > 0.5], size
        return list(raced.values()), failure

    def _can_finish(self) -> bool:
        """Return whether the budget lets one change be tried on all examples."""
        return self._evaluator.budget.left >= len(self._examples)

    def _affordable(self, asked: int, size: int, left: int | None = None) -> int:
        """Return how many prompts can be asked up to ``size`` so that one of them can finish.

        With so many queries ``left``; by default those that the budget leaves.
        """
        left = self._evaluator.budget.left if left is None else left
        spare = left - (len(self._examples) - size)
        return max(0, spare // (size - asked))

    def _winner(
        self, raced: Sequence[Runner], before: Tokens
    ) -> tuple[Runner | None, ModelError | None]:
        """Return the most convincing change, if one is; none and the failure, if none is judged.

        On few examples several often help alike; then the one that reads best.
        """
        try:
            convincing = [runner for runner in raced if self._convinces(runner, before)]
            changed = [runner.edit.apply(before) for runner in convincing]
            fluency = per_token(self._masked_lm, changed) if len(changed) > 1 else [0.0]
        except ModelError as error:  # of a masked language model that is a service
            return None, error
        ranked = zip(convincing, fluency, strict=False)
        best = max(ranked, key=lambda pair: (pair[0].helps, pair[1]), default=(None, 0.0))
        return best[0], None

    def _likelier(
        self, hunch: Hunch | None, raced: Sequence[Runner], before: Tokens
    ) -> Hunch | None:
        """Return the hunch so far, or a change in a race for which more speaks.

        Of many changes that were dropped after a few of many examples, one always looks good.
        """
        for runner in raced:
            tried = 2 * len(runner.correct) >= len(self._examples)
            if not tried or runner.helps <= 0.5 or (odds := self._log_odds(runner, before)) <= 0:
                continue
            if hunch is None or odds > hunch.log_odds:
                gain = runner.net_gain / len(self._examples)
                trial = runner.trial(before, accepted=False)
                hunch = Hunch(runner.edit.apply(before), odds, gain, trial)
        return hunch

    def _convinces(self, runner: Runner, before: Tokens) -> bool:
        """Return whether enough speaks for a change, all examples asked."""
        if runner.helps <= 0.5 or len(runner.correct) < len(self._examples):
            return False
        return self._log_odds(runner, before) >= log_odds(self._confidence)

    def _log_odds(self, runner: Runner, before: Tokens) -> float:
        """Weigh the evidence of the answers and what the change does to the prompt's language.

        Both count as log-odds: a change that makes the prompt less likely as language needs more
        evidence, one that makes it read better a little less, but always some. The evidence counts
        up to `MOST_EVIDENCE`: no number of answers buys a prompt that nobody can read.
        """
        old, new = per_token(self._masked_lm, [before, runner.edit.apply(before)])
        return float(min(log_odds(runner.helps), MOST_EVIDENCE) + self._fluency * (new - old))

    def _batches(self) -> Iterator[int]:
        """Yield how many examples have been asked after each batch; batches double."""
        size = self._first_batch
        while size < len(self._examples):
            yield size
            size *= 2
        yield len(self._examples)

    def _measure(self, tokens: Tokens) -> Measured:
        return Measured(tokens, self._ask([tokens], range(len(self._examples)))[0])

    def _ask(self, prompts: Sequence[Tokens], which: Iterable[int]) -> NDArray[np.bool_]:
        texts = [self._masked_lm.vocabulary.decode(tokens) for tokens in prompts]
        return self._evaluator.correct_all(texts, [self._examples[i] for i in which])


def _still_fitting(waiting: Sequence[Edit], winner: Edit, length: int) -> list[Edit]:
    """Return the waiting edits of a prompt of ``length`` tokens as edits of the changed one.

    One that puts the whole in other words has no place for a change, nor a change one for it.
    """

    def whole(edit: Edit) -> bool:
        return edit.stop - edit.start == length

    if whole(winner):
        return []
    return [edit for o in waiting if not whole(o) and (edit := o.after(winner))]


def require(name: str, value: float, what: str, *, allowed: bool) -> None:
    """Raise a `ValueError` that says what a parameter must be, unless its value is allowed."""
    if not allowed:
        raise ValueError(f"{name} must be {what}, got {value}")

"""What a client may use for its prompts: queries, tokens, money and time, in a round and a run.

What an answer costs is known when it is there, so no question is sent before the most that it may
cost is booked (`Tariff`); the rest is given back afterwards. Near a limit fewer questions are
therefore sent at a time, in the end one. No limit of queries, tokens or money is passed, however
many requests are on their way; one of time by what was under way when it came.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf

from feddtpt_flwr.amounts import KINDS, Amounts, Tariff
from feddtpt_flwr.language_model.usage import Usage

MARGIN = 1.25
"""So much more than on average the next questions are expected to cost: prompts may grow."""

FIRST_WAVE = 8
"""Questions that are sent while nobody knows how long an answer takes, where time is limited."""


class BudgetExhaustedError(RuntimeError):
    """The next answers would cost more than is left."""


@dataclass
class QueryBudget:
    """A number of LLM queries that is never exceeded.

    Parameters
    ----------
    limit : int
        Most queries, at least 0.
    used : int
        Queries asked so far.
    """

    limit: int
    used: int = 0

    @property
    def left(self) -> int:
        """Queries that may still be asked."""
        return self.limit - self.used

    def spend(self, queries: int) -> None:
        """Book ``queries``, or raise `BudgetExhaustedError` and book nothing."""
        if self.used + queries > self.limit:
            raise BudgetExhaustedError(f"{queries} queries wanted, {self.limit - self.used} left")
        self.used += queries

    def refund(self, queries: int) -> None:
        """Take back ``queries`` that were booked and not answered."""
        self.used -= queries

    def admit(self, questions: Sequence[str], tariff: Tariff | None = None) -> int:
        """Return how many of the first ``questions`` may be sent now, at least 1; book them.

        The queries themselves have been booked before; this is for what else an answer may cost.

        Parameters
        ----------
        tariff : Tariff, optional
            Of another model than the black box.

        Raises
        ------
        BudgetExhaustedError
            If not even the first may be sent.
        """
        return len(questions)

    def settle(self, used: Usage | None, tariff: Tariff | None = None) -> None:
        """Put what was used in the place of what was booked last; None if nobody counts it."""


@dataclass(frozen=True)
class Span:
    """The limits of a round or of a run, and what was used of them before.

    Parameters
    ----------
    name : str
        ``"round"`` or ``"run"``.
    limits : Amounts
        Most that may be used; infinity is no limit.
    before : Amounts
        Used already.
    reserve : int
        Questions that are to remain: planning stops before them.
    """

    name: str
    limits: Amounts
    before: Amounts = Amounts()  # noqa: RUF009 (it is frozen)
    reserve: int = 0

    @property
    def queries(self) -> float:
        """Queries that were left when the message began."""
        return self.limits.queries - self.before.queries

    def questions(
        self, spent: Amounts, each: Amounts, most: Amounts, free: float
    ) -> Iterator[tuple[float, str]]:
        """Yield how many questions each limit leaves, and the limit's name.

        Parameters
        ----------
        spent : Amounts
            Used since.
        each, most : Amounts
            What a question is expected to use, and what is booked for one.
        free : float
            Questions that will cost neither tokens nor money.
        """
        left = self.limits - self.before - spent
        for kind in KINDS:
            mean = getattr(each, kind)
            # The last one has to fit with all that is booked for it.
            over = max(0.0, getattr(most, kind) - mean)
            number = _times(getattr(left, kind) - over, mean) - self.reserve
            yield number + (free if kind in ("tokens", "cost") else 0), f"{kind}-per-{self.name}"


class ClientBudget(QueryBudget):
    """A number of queries, and limits of tokens, money and time in a round and in the run.

    Parameters
    ----------
    limit : int
        Most queries of this message.
    spans : Span
        Further limits.
    tariff : Tariff
        What answers cost.
    to_find : int
        Answers that another attempt has paid for and an archive has. Until the first question that
        must be asked they are free, so that the same course is planned once more.
    on_use : Callable[[Amounts], None]
        Told of every use: of what is booked before questions are sent, and of what is given back
        or added when they were answered.
    clock : Callable[[], float]
        Seconds, never going back.
    """

    def __init__(
        self,
        limit: int,
        *spans: Span,
        tariff: Tariff | None = None,
        to_find: int = 0,
        on_use: Callable[[Amounts], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(max(0, int(min([limit, *(span.queries for span in spans)]))))
        self._most_wanted = limit
        self._spans = spans
        self._tariff = tariff or Tariff()
        self._to_find = to_find
        self._on_use = on_use
        self._clock = clock
        self._began = clock()
        self._spent = Amounts()
        self._told = Amounts()
        self._booked = Amounts()
        self._begun: list[Tariff] = []
        self._most = Amounts()
        self._sent, self._sent_at = 0, 0.0
        self._waited = 0.0
        self._full = ""

    @property
    def spent(self) -> Amounts:
        """What was used so far, what is booked included."""
        seconds = self._clock() - self._began
        return replace(self._spent, queries=self.used, seconds=seconds)

    @property
    def left(self) -> int:
        """Questions that may still be asked if they cost about what others have on average."""
        return max(0, int(self._tightest()[0]))

    @property
    def tightest(self) -> str:
        """The setting that leaves the fewest questions; empty for the number of queries."""
        return self._tightest()[1]

    def _tightest(self) -> tuple[float, str]:
        if self._full:
            return 0.0, self._full
        spent = self.spent
        before = max((s.before for s in self._spans), key=lambda b: b.asked, default=Amounts())
        each = _per_question(before + spent)
        # Planned as when they were paid for: with the same margin.
        free = max(0, self._to_find - self.used) / MARGIN
        left = [
            pair for span in self._spans for pair in span.questions(spent, each, self._most, free)
        ]
        return min([*left, (float(super().left), "")], key=lambda pair: pair[0])

    def spend(self, queries: int) -> None:
        """Book ``queries``, or raise `BudgetExhaustedError` and book nothing."""
        try:
            super().spend(queries)
        except BudgetExhaustedError as error:
            span = next((s.name for s in self._spans if s.queries < self._most_wanted), "round")
            raise BudgetExhaustedError(f"queries-per-{span}: {error}") from None

    def admit(self, questions: Sequence[str], tariff: Tariff | None = None) -> int:
        """Return how many of the first ``questions`` may be sent now, at least 1; book them.

        Parameters
        ----------
        tariff : Tariff, optional
            Of another model than the black box.

        Raises
        ------
        BudgetExhaustedError
            If not even the first may be sent; if it is one to the black box, nothing is left.
        """
        self._to_find = 0  # what is asked now the other attempt had not come to
        number, limit = self._fitting(questions, tariff or self._tariff)
        if not number:
            if tariff is None:
                self._full = limit
            raise BudgetExhaustedError(f"{limit} does not cover another question")
        return number

    def settle(self, used: Usage | None, tariff: Tariff | None = None) -> None:
        """Put what was used in the place of what was booked last; None if nobody counts it.

        For each answer of which an endpoint reports no tokens, what was booked stands.
        """
        booked, self._booked = self._booked, Amounts()
        if used is not None:
            share = min(1.0, used.uncounted / max(1, self._sent))
            self._spent += _settled((tariff or self._tariff).of(used), booked, share) - booked
        if tariff is None:
            self._spent += Amounts(asked=self._sent if used is None else used.requests)
            self._waited += self._clock() - self._sent_at

    def refund(self, queries: int) -> None:
        """Take back ``queries`` that were booked and not answered."""
        super().refund(queries)
        self.tell()

    def tell(self) -> None:
        """Tell of what was used since this was last told."""
        spent = self.spent
        self._on_use(spent - self._told)
        self._told = spent

    def _fitting(self, questions: Sequence[str], tariff: Tariff) -> tuple[int, str]:
        """Book as many of the first questions as fit; return their number and what stopped it."""
        spent, number, limit = self.spent, 0, ""
        # Two models may cost the same, and each has its own first question.
        begun = any(tariff is other for other in self._begun)
        booked = Amounts() if begun else tariff.beginning
        for question in questions[: self._in_time(spent)]:
            more = booked + tariff.most(question)
            if limit := self._passed(spent + more):
                break
            booked, number = more, number + 1
        if number:
            if not begun:
                self._begun.append(tariff)
            if tariff is self._tariff:
                self._most = tariff.most(max(questions[:number], key=len))
            self._booked = booked
            self._spent += booked
            self._sent, self._sent_at = number, self._clock()
            self.tell()
        return number, limit

    def _passed(self, spent: Amounts) -> str:
        """Return the name of a limit that ``spent`` passes; empty if it passes none."""
        for span in self._spans:
            left = span.limits - span.before - spent
            for kind in KINDS:
                # Time goes on by itself: when none is left, it has been passed.
                if getattr(left, kind) < 0 or (kind == "seconds" and left.seconds == 0):
                    return f"{kind}-per-{span.name}"
        return ""

    def _in_time(self, spent: Amounts) -> int | None:
        """Return how many questions can be answered in time, as far as can be told."""
        seconds = min(((s.limits - s.before - spent).seconds for s in self._spans), default=inf)
        if seconds == inf:
            return None
        if not self._spent.asked:
            return FIRST_WAVE
        return max(1, int(min(_times(seconds, self._waited / self._spent.asked), self.limit)))


def _settled(used: Amounts, booked: Amounts, uncounted: float) -> Amounts:
    """Return what was used and a share of what was booked; no more than that if it covers both."""

    def both(counted: float, most: float) -> float:
        return max(counted, min(most, counted + uncounted * most))

    return Amounts(tokens=both(used.tokens, booked.tokens), cost=both(used.cost, booked.cost))


def _per_question(spent: Amounts) -> Amounts:
    """Return what a question is expected to use: what others have, and `MARGIN`."""
    asked = max(spent.asked, 1) / MARGIN
    # An attempt that was killed has used time, but its queries are counted when they come again.
    answered = max(spent.queries, spent.asked, 1) / MARGIN
    return Amounts(1, spent.tokens / asked, spent.cost / asked, spent.seconds / answered, 1)


def _times(left: float, each: float) -> float:
    """Return how often ``each`` is in what is left."""
    if left <= 0:
        return 0.0
    return left / each if each else inf

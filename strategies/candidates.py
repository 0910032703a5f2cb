"""Candidates for the next global prompt, and the choice among them.

Clients that edit the same prompt edit it at different places, so what they agree on is the prompt
they were sent: any consensus of the uploads loses the edits. The candidates therefore also hold the
edits that several clients share, merged edits and the best uploads, and the clients decide by
counting correct answers on everybody's private examples: what one client found has seen none of
the others'.

Which uploads are the best is the clients' own word. A lie about it wins nothing, since the counts
decide, but it takes a place among the few candidates. So one place is kept for the best upload that
is left when as many of the best by their own word are passed over as there may be liars.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import chain, islice
from typing import TypeVar

from strategies.edits import merges

Tokens = tuple[int, ...]

LIARS = Fraction(3, 10)
"""Share of the clients that may claim more than all others without keeping those out."""

USUAL = Fraction(3, 2)
"""How much larger than the median client's the spread of a client's counts may be."""

STEPS = 1024
"""In how many steps less of what a client says counts."""

_Number = TypeVar("_Number", int, float, Fraction)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A prompt that may become the global one.

    Attributes
    ----------
    tokens
        Its token ids.
    origin
        Where it came from: ``"incumbent"``, ``"aggregate"``, ``"shared edits"``, ``"merge of N"``
        or ``"client NAME"``.
    """

    tokens: Tokens
    origin: str


@dataclass(frozen=True, slots=True)
class LocalPrompt:
    """What one client made of the prompt that it was sent.

    Attributes
    ----------
    client
        The client's name.
    tokens
        Its local prompt.
    gain
        Accuracy of the local prompt minus that of the prompt sent, on the client's own examples
        or, where the client did not try it on all of them, as far as it knows; in [-1, 1].
    weight
        How much its tokens count in the aggregation, at least 0.
    accuracy
        Accuracy of the local prompt on the same examples, in [0, 1]; ``None`` if it does not say.
    """

    client: str
    tokens: Tokens
    gain: float
    weight: float = 1.0
    accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """Correct answers of one candidate over all clients.

    Attributes
    ----------
    correct, total
        Counts, ``0 <= correct <= total``; ``correct`` is no whole number where `tally` scaled a
        client's counts down.
    """

    correct: float = 0
    total: int = 0

    @property
    def accuracy(self) -> float:
        """Share of correct answers; 0 where nothing was asked."""
        return self.correct / self.total if self.total else 0.0


def propose_candidates(
    incumbent: Tokens,
    local_prompts: Sequence[LocalPrompt],
    aggregated: Tokens | None,
    shared: Tokens | None = None,
    *,
    limit: int,
    max_tokens: int,
    admissible: Callable[[Tokens], bool] = lambda _: True,
) -> tuple[Candidate, ...]:
    """Return the prompts worth comparing, the incumbent first.

    The paper's aggregate, the edits that several clients share and those of the best two, three, …
    merged, and the best local prompts take turns until the limit is reached. The second local
    prompt is not the second best but the best beyond the first three tenths (`LIARS`) of the
    clients, rounded down; up to six clients they are the same. If the clients that lie are no more
    than that and claim more than all honest ones, it is an honest prompt, whatever they claim, and
    the best where they are as many; with a limit of 4 or more it is always compared, unless it is
    the incumbent. A liar that claims less than some honest client may hit this place, but does not
    know what is claimed. Nothing that is claimed tells three liars from the three best of ten, so
    honest clients, too, have their second best compared as part of a merge only where the limit is
    low, and not at all where there are shared edits to compare instead.

    Parameters
    ----------
    incumbent
        The prompt that was sent.
    local_prompts
        What the clients uploaded.
    aggregated
        The paper's aggregation of them, or ``None`` to leave it out.
    shared
        The incumbent with the edits that several clients made (`strategies.shared_edits`), or
        ``None``.
    limit
        Most candidates besides the incumbent, at least 1.
    max_tokens
        Longest prompt allowed.
    admissible
        Prompts for which it is false are left out; the incumbent is not asked about.
    """
    best_first = sorted(local_prompts, key=lambda p: (-p.gain, p.tokens))
    chosen = {incumbent: Candidate(incumbent, "incumbent")}

    @cache  # judging may be slow, and clients that found the same are many
    def allowed(tokens: Tokens) -> bool:
        return 1 <= len(tokens) <= max_tokens and admissible(tokens)

    def new(tokens: Tokens) -> bool:
        return tokens not in chosen and allowed(tokens)

    for candidate in _in_turns(incumbent, best_first, aggregated, shared, new):
        if new(candidate.tokens):
            chosen[candidate.tokens] = candidate
        # Of many clients' prompts and merges a handful is compared; the others are not even made.
        if len(chosen) > limit:
            break
    return tuple(chosen.values())


def _in_turns(
    incumbent: Tokens,
    best_first: Sequence[LocalPrompt],
    aggregated: Tokens | None,
    shared: Tokens | None,
    new: Callable[[Tokens], bool],
) -> Iterator[Candidate]:
    """Yield everything that might be compared, each when it is asked for."""
    ordered = _second_beyond_the_liars(best_first, new)
    uploads = (Candidate(p.tokens, f"client {p.client}") for p in ordered)
    merged: Iterator[Candidate] = (
        Candidate(tokens, f"merge of {number}")
        for number, tokens in enumerate(merges(incumbent, (p.tokens for p in best_first)), start=1)
        if number > 1  # of one prompt, it is that prompt
    )
    yield from islice(uploads, 1)
    if shared is not None and new(shared):
        merged = chain([Candidate(shared, "shared edits")], merged)
    yield from islice(merged, 1)
    if aggregated is not None:
        yield Candidate(aggregated, "aggregate")
    yield from _alternate(uploads, merged)


def _second_beyond_the_liars(
    best_first: Sequence[LocalPrompt], new: Callable[[Tokens], bool]
) -> Iterator[LocalPrompt]:
    """Yield all, best first, but second the best beyond those that may be lies, if any is new."""
    yield from best_first[:1]
    liars = int(LIARS * len(best_first))
    second = next((p for p in best_first[liars:] if new(p.tokens)), None) if liars else None
    if second:
        yield second
    yield from (p for p in best_first[1:] if p is not second)


def _alternate(*sources: Iterator[Candidate]) -> Iterator[Candidate]:
    """Yield one of each source in turn, as long as any has one left."""
    waiting = deque(sources)
    while waiting:
        source = waiting.popleft()
        for candidate in source:
            yield candidate
            waiting.append(source)
            break


def low_median(values: Sequence[_Number]) -> _Number:
    """Return the middle value, or the lower of the two: with half of them honest, never a lie.

    At most half of the values made larger than all honest ones leave it at an honest value.
    """
    return sorted(values)[(len(values) - 1) // 2]


def damping(counts: Sequence[Mapping[Tokens, Score]]) -> list[Fraction]:
    """Return how much of what each client says of one prompt against another counts.

    A client whose counts differ more from prompt to prompt than is usual either knows better or
    lies; as nobody can tell, it has less to say. Its spread is the variance of its accuracies over
    the prompts. Up to half as much again as the median client's (`USUAL`), or as chance alone makes
    of independent answers, all counts. Beyond, the factor is that limit divided by the spread, as
    inverse variances weigh measurements that are less and less certain. So lies do the less the
    larger they are.

    Measured on made-up clients and prompts, of no language model, 10 clients with 16 examples, by
    how much worse than the best prompt the chosen one is (``python -m simulations bench tally``;
    standard errors of 0.002 at most): with 3 that say the opposite together
    0.007 instead of 0.176, with 3 that count at random 0.008 instead of 0.029, and without any
    0.006 either way. Where labels are very uneven (Dirichlet 0.1), so that prompts serve some
    clients and fail others, honest clients pay for it with 0.026 instead of 0.020, and lies told
    together still cost 0.096 instead of 0.165. A trimmed mean is worse in every case.

    Parameters
    ----------
    counts
        One mapping per client, each with a count for every candidate over the same examples.

    Returns
    -------
    list of Fraction
        One factor per client, in [0, 1].
    """
    spreads = [_spread(count) for count in counts]
    usual = USUAL * low_median(spreads) if spreads else Fraction(0)
    factors = []
    for count, spread in zip(counts, spreads, strict=True):
        limit = max(usual, Fraction(1, 4 * next(iter(count.values())).total))
        # In steps, so that sums over many clients stay short fractions.
        kept = Fraction(round(STEPS * limit / spread), STEPS) if spread > limit else Fraction(1)
        factors.append(kept)
    return factors


def _spread(count: Mapping[Tokens, Score]) -> Fraction:
    """Return the variance of one client's accuracies over the prompts."""
    accuracies = [Fraction(score.correct) / score.total for score in count.values()]
    mean = sum(accuracies, Fraction(0)) / len(accuracies)
    return sum(((a - mean) ** 2 for a in accuracies), Fraction(0)) / len(accuracies)


def tally(
    counts: Sequence[Mapping[Tokens, Score]], factors: Sequence[Fraction] | None = None
) -> dict[Tokens, Score]:
    """Add up the clients' counts, none counting for more than the median client.

    How many examples a client has is its own word. Were it believed, one client that claims a
    million examples would decide alone. Counting every client alike would give four examples the
    say of four hundred. So a client counts by its examples up to the median of all clients' numbers
    (the lower one of two), and its counts are scaled down if it claims more. As long as half of
    the clients are honest, that limit is at most the largest honest number, whatever the others
    claim. Where all clients have equally many examples, as few-shot clients do, nothing is scaled.

    How much what a client says of one prompt may differ from what it says of others is another
    limit: see `damping`.

    Parameters
    ----------
    counts
        One mapping per client, each with a count for every candidate over the same examples.
    factors
        What of each client's differences between prompts counts, in [0, 1]; by default all. The
        rest is as if it had answered alike with every prompt.

    Returns
    -------
    dict
        Each candidate's score over all clients; the same for every order of clients.
    """
    if not counts:
        return {}
    totals = [next(iter(count.values())).total for count in counts]
    factors = factors or [Fraction(1)] * len(counts)
    means = [
        sum((Fraction(score.correct) for score in count.values()), Fraction(0)) / len(count)
        for count in counts
    ]
    limit = low_median(totals)
    shares = [min(Fraction(1), Fraction(limit, total)) for total in totals]
    scores: dict[Tokens, Score] = {}
    for tokens in counts[0]:
        # Exact, so that no rounding breaks or makes a tie.
        right = sum(
            (
                (mean + factor * (Fraction(count[tokens].correct) - mean)) * share
                for count, mean, factor, share in zip(counts, means, factors, shares, strict=True)
            ),
            Fraction(0),
        )
        correct = int(right) if right.denominator == 1 else float(right)
        scores[tokens] = Score(correct, sum(min(total, limit) for total in totals))
    return scores


def choose(
    candidates: Sequence[Candidate],
    scores: Mapping[Tokens, Score],
    ties: Mapping[Tokens, Score] | None = None,
) -> tuple[Candidate, Score]:
    """Return the candidate with the most correct answers.

    A tie goes to the candidate of more correct answers in ``ties``, and then to the earlier one.

    This is the maximum of the paper's objective (equation 2), clients weighing as in `tally`, over
    the prompts that are at hand.

    With the incumbent first, nothing replaces it that is not better.
    """

    def rank(candidate: Candidate) -> tuple[float, ...]:
        return tuple(
            counted.get(candidate.tokens, Score()).accuracy for counted in (scores, ties or {})
        )

    best = max(candidates, key=rank)
    return best, scores.get(best.tokens, Score())

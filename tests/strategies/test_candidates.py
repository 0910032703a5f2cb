from collections.abc import Sequence
from fractions import Fraction
from itertools import zip_longest
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from strategies import edits
from strategies.candidates import (
    Candidate,
    LocalPrompt,
    Score,
    Tokens,
    choose,
    damping,
    low_median,
    propose_candidates,
    tally,
)
from strategies.edits import Edit, edits_between, merge

INCUMBENT = (1, 2, 3, 4, 5)
A, B, C = (9, 2, 3, 4, 5), (1, 2, 8, 4, 5), (1, 2, 3, 4, 7)

prompts = st.lists(st.integers(0, 9), min_size=1, max_size=7).map(tuple)


def uploads(*gains: tuple[Tokens, float]) -> list[LocalPrompt]:
    return [LocalPrompt(str(i), tokens, gain) for i, (tokens, gain) in enumerate(gains)]


def origins(candidates: tuple[Candidate, ...]) -> dict[str, Tokens]:
    return {candidate.origin: candidate.tokens for candidate in candidates}


def test_who_is_compared() -> None:
    found = propose_candidates(
        INCUMBENT,
        uploads((A, 0.1), (B, 0.3), (C, 0.2)),
        (6, 6),
        limit=10,
        max_tokens=9,
    )
    assert found[0] == Candidate(INCUMBENT, "incumbent")
    assert origins(found) == {
        "incumbent": INCUMBENT,
        "client 1": B,
        "merge of 2": (1, 2, 8, 4, 7),
        "aggregate": (6, 6),
        "client 2": C,
        "merge of 3": (9, 2, 8, 4, 7),
        "client 0": A,
    }


def test_the_best_come_first() -> None:
    some = uploads((A, 0.1), (B, 0.3), (C, 0.2))
    by_limit = [
        set(origins(propose_candidates(INCUMBENT, some, (6, 6), limit=limit, max_tokens=9)))
        for limit in (1, 2, 3)
    ]
    assert by_limit[0] == {"incumbent", "client 1"}
    assert by_limit[1] == by_limit[0] | {"merge of 2"}
    assert by_limit[2] == by_limit[1] | {"aggregate"}


def test_what_several_clients_share_comes_before_merges() -> None:
    some = uploads((A, 0.1), (B, 0.3), (C, 0.2))
    shared = (1, 2, 3)
    found = propose_candidates(INCUMBENT, some, (6, 6), shared, limit=4, max_tokens=9)
    assert [c.origin for c in found] == [
        "incumbent",
        "client 1",
        "shared edits",
        "aggregate",
        "client 2",
    ]
    assert origins(found)["shared edits"] == shared
    every = propose_candidates(INCUMBENT, some, (6, 6), shared, limit=9, max_tokens=9)
    assert {"merge of 2", "merge of 3"} <= set(origins(every))


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("shared", [None, INCUMBENT, B, (6,) * 10, ()])
def test_nothing_new_is_shared(shared: Tokens | None, limit: int) -> None:
    """None at all, what was sent, the best upload, a prompt that is too long, an empty one."""
    some = uploads((A, 0.1), (B, 0.3), (C, 0.2))
    without = propose_candidates(INCUMBENT, some, (6, 6), limit=limit, max_tokens=9)
    found = propose_candidates(INCUMBENT, some, (6, 6), shared, limit=limit, max_tokens=9)
    assert found == without


def test_without_aggregate() -> None:
    found = propose_candidates(INCUMBENT, uploads((A, 0.1)), None, limit=4, max_tokens=9)
    assert origins(found) == {"incumbent": INCUMBENT, "client 0": A}


def test_unchanged_prompts_leave_only_the_incumbent() -> None:
    same = uploads((INCUMBENT, 0.0), (INCUMBENT, 0.0))
    found = propose_candidates(INCUMBENT, same, INCUMBENT, limit=4, max_tokens=9)
    assert found == (Candidate(INCUMBENT, "incumbent"),)


def test_a_merge_that_deletes_all_is_left_out() -> None:
    found = propose_candidates(
        (1, 2), uploads(((1,), 0.2), ((2,), 0.1)), None, limit=9, max_tokens=9
    )
    assert () not in [candidate.tokens for candidate in found]
    assert {candidate.tokens for candidate in found} == {(1, 2), (1,), (2,)}


@given(
    incumbent=prompts,
    local=st.lists(st.tuples(prompts, st.floats(-1, 1)), max_size=6),
    aggregated=st.none() | prompts,
    limit=st.integers(1, 6),
    max_tokens=st.integers(1, 9),
)
def test_candidates_are_distinct_few_and_short(
    incumbent: Tokens,
    local: list[tuple[Tokens, float]],
    aggregated: Tokens | None,
    limit: int,
    max_tokens: int,
) -> None:
    found = propose_candidates(
        incumbent, uploads(*local), aggregated, limit=limit, max_tokens=max_tokens
    )
    tokens = [candidate.tokens for candidate in found]
    assert tokens[0] == incumbent
    assert len(set(tokens)) == len(tokens) <= limit + 1
    assert all(1 <= len(prompt) <= max_tokens for prompt in tokens[1:])


def all_at_once(
    incumbent: Tokens,
    local_prompts: list[LocalPrompt],
    aggregated: Tokens | None,
    limit: int,
    max_tokens: int,
) -> tuple[Candidate, ...]:
    """The same, of six clients at most, by making every merge anew and keeping few."""
    best_first = sorted(local_prompts, key=lambda p: (-p.gain, p.tokens))
    merged = [
        Candidate(merge(incumbent, [p.tokens for p in best_first[:number]]), f"merge of {number}")
        for number in range(2, len(best_first) + 1)
    ]
    own = [Candidate(p.tokens, f"client {p.client}") for p in best_first]
    pure = [Candidate(aggregated, "aggregate")] if aggregated is not None else []
    distinct = {incumbent: Candidate(incumbent, "incumbent")}

    def take(candidates: list[Candidate]) -> None:
        for candidate in candidates:
            if 1 <= len(candidate.tokens) <= max_tokens and len(distinct) <= limit:
                distinct.setdefault(candidate.tokens, candidate)

    take([*own[:1], *merged[:1], *pure])
    rest = own[1:]
    if len(own) > 3:  # with three clients or less there is no liar to guard against
        new = [c for c in rest if 1 <= len(c.tokens) <= max_tokens and c.tokens not in distinct]
        rest = [*new[:1], *[c for c in rest if c not in new[:1]]]
    take([c for pair in zip_longest(rest, merged[1:]) for c in pair if c])
    return tuple(distinct.values())


@given(
    incumbent=prompts,
    local=st.lists(st.tuples(prompts, st.sampled_from([0.0, 0.1, 0.5])), max_size=6),
    aggregated=st.none() | prompts,
    limit=st.integers(1, 9),
    max_tokens=st.integers(1, 9),
)
def test_one_after_the_other_they_are_those_made_at_once(
    incumbent: Tokens,
    local: list[tuple[Tokens, float]],
    aggregated: Tokens | None,
    limit: int,
    max_tokens: int,
) -> None:
    some = uploads(*local)
    found = propose_candidates(incumbent, some, aggregated, limit=limit, max_tokens=max_tokens)
    assert found == all_at_once(incumbent, some, aggregated, limit, max_tokens)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[int]]:
    """Every prompt whose edits are looked for, in order."""
    prompts: list[Sequence[int]] = []

    def watched(before: Sequence[int], after: Sequence[int]) -> tuple[Edit, ...]:
        prompts.append(after)
        return edits_between(before, after)

    monkeypatch.setattr(edits, "edits_between", watched)
    return prompts


@pytest.mark.parametrize(("limit", "merged"), [(1, 0), (2, 2), (4, 2), (5, 3), (7, 4)])
def test_no_more_is_merged_than_is_compared(
    limit: int, merged: int, compared: list[Sequence[int]]
) -> None:
    """Every client edits a place of its own: all their prompts and all merges differ."""
    base = tuple(range(40))
    many = uploads(*[((*base[:place], -1, *base[place + 1 :]), place / 100) for place in range(40)])
    found = propose_candidates(base, many, (6, 6), limit=limit, max_tokens=40)
    assert len(found) == limit + 1
    assert len(compared) == merged


def test_no_prompt_is_compared_with_the_incumbent_twice(compared: list[Sequence[int]]) -> None:
    """All edit one place, so that every merge is the best prompt and the limit is not reached."""
    many = uploads(*[((place, 2, 3, 4, 5), place / 1000) for place in range(10, 200)])
    found = propose_candidates(
        INCUMBENT, many, None, limit=4, max_tokens=9, admissible=lambda tokens: tokens[0] < 12
    )
    assert len(found) == 3
    assert len(compared) == len(many)


def test_the_second_upload_is_the_best_beyond_three_tenths_of_the_clients() -> None:
    many = uploads(*[((10 + place, 2, 3, 4, 5), place / 100) for place in range(10)])
    found = propose_candidates(INCUMBENT, many, (6, 6), limit=9, max_tokens=9)
    # All edit the same place, so that every merge is the best prompt.
    assert [candidate.origin for candidate in found] == [
        "incumbent",
        "client 9",
        "aggregate",
        "client 6",
        *[f"client {number}" for number in (8, 7, 5, 4, 3, 2)],
    ]


@pytest.mark.parametrize("clients", range(2, 7))
def test_few_clients_are_compared_best_first(clients: int) -> None:
    some = uploads(*[((10 + place, 2, 3, 4, 5), place / 100) for place in range(clients)])
    found = propose_candidates(INCUMBENT, some, None, limit=9, max_tokens=9)
    assert [c.tokens[0] for c in found[1:]] == [10 + place for place in reversed(range(clients))]


@st.composite
def with_liars(draw: st.DrawFn) -> tuple[list[LocalPrompt], list[LocalPrompt]]:
    """Honest clients, best first, and up to three in ten that all claim more than these."""
    number = draw(st.integers(4, 25))
    liars = draw(st.integers(1, 3 * number // 10))
    claims = st.floats(-1, 1, allow_subnormal=False)
    gains = sorted(draw(st.lists(claims, min_size=number, max_size=number)), reverse=True)
    assume(gains[liars - 1] > gains[liars])
    tokens = st.lists(prompts, min_size=number, max_size=number, unique=True)
    all_uploads = uploads(*zip(draw(tokens), gains, strict=True))
    return all_uploads[liars:], all_uploads[:liars]


@settings(deadline=None)
@given(
    clients=with_liars(),
    incumbent=prompts,
    aggregated=st.none() | prompts,
    limit=st.integers(4, 6),
    order=st.randoms(),
)
def test_liars_that_outbid_all_others_do_not_keep_them_out(
    clients: tuple[list[LocalPrompt], list[LocalPrompt]],
    incumbent: Tokens,
    aggregated: Tokens | None,
    limit: int,
    order: Any,
) -> None:
    honest, liars = clients
    everybody = [*honest, *liars]
    found = propose_candidates(incumbent, everybody, aggregated, limit=limit, max_tokens=9)
    compared = {candidate.tokens for candidate in found}
    assert compared & {upload.tokens for upload in honest}
    if len(liars) == 3 * len(everybody) // 10:
        best = max(upload.gain for upload in honest)
        assert compared & {upload.tokens for upload in honest if upload.gain == best}
    order.shuffle(everybody)
    assert found == propose_candidates(incumbent, everybody, aggregated, limit=limit, max_tokens=9)


@given(clients=with_liars(), kept_out=st.integers(1, 7))
def test_what_is_not_admissible_leaves_its_place_to_the_next_honest_client(
    clients: tuple[list[LocalPrompt], list[LocalPrompt]], kept_out: int
) -> None:
    honest, liars = clients
    out = {upload.tokens for upload in honest[: min(kept_out, len(honest) - 1)]}
    found = propose_candidates(
        (), [*honest, *liars], None, limit=4, max_tokens=9, admissible=lambda t: t not in out
    )
    assert {c.tokens for c in found} & {upload.tokens for upload in honest}


def test_the_best_three_of_ten_that_claim_all_are_not_alone() -> None:
    """As `simulations.bad_clients` do it: random tokens and a gain of 1."""
    liars = [((7, 7, 7, place), 1.0) for place in range(3)]
    honest = [((*INCUMBENT[:4], 10 + place), place / 20) for place in range(7)]
    found = propose_candidates(INCUMBENT, uploads(*liars, *honest), (6, 6), limit=4, max_tokens=9)
    assert (*INCUMBENT[:4], 16) in {candidate.tokens for candidate in found}


@given(order=st.permutations(uploads((A, 0.1), (B, 0.3), (C, 0.2))), limit=st.integers(1, 6))
def test_the_order_of_arrival_does_not_matter(order: list[LocalPrompt], limit: int) -> None:
    some = uploads((A, 0.1), (B, 0.3), (C, 0.2))
    one, other = (
        propose_candidates(INCUMBENT, local, (6, 6), limit=limit, max_tokens=9)
        for local in (some, order)
    )
    assert one == other


@pytest.mark.parametrize(
    ("counts", "best"),
    [
        ({A: 5, B: 5, C: 5}, A),
        ({A: 5, B: 6, C: 6}, B),
        ({A: 5, B: 4, C: 6}, C),
        ({A: 0, B: 0, C: 0}, A),
        ({B: 1}, B),
        ({}, A),
    ],
)
def test_the_first_with_the_most_answers_is_chosen(counts: dict[Tokens, int], best: Tokens) -> None:
    candidates = [Candidate(tokens, "?") for tokens in (A, B, C)]
    scores = {tokens: Score(count, 10) for tokens, count in counts.items()}
    chosen, score = choose(candidates, scores)
    assert chosen.tokens == best
    assert score == scores.get(best, Score())


def test_score() -> None:
    assert Score(3, 4).accuracy == 0.75
    assert Score().accuracy == 0.0


def test_what_is_not_admissible_is_no_candidate_but_the_incumbent_stays() -> None:
    uploads = [LocalPrompt("0", (9, 2, 3), 0.2), LocalPrompt("1", (1, 2, 8), 0.1)]
    candidates = propose_candidates(
        (1, 2, 3), uploads, None, limit=5, max_tokens=5, admissible=lambda tokens: 8 not in tokens
    )
    assert [c.tokens for c in candidates] == [(1, 2, 3), (9, 2, 3)]
    alone = propose_candidates(
        (1, 2, 3), uploads, None, limit=5, max_tokens=5, admissible=lambda _: False
    )
    assert [c.origin for c in alone] == ["incumbent"]


def votes(*counts: tuple[int, int, int]) -> list[dict[Tokens, Score]]:
    """One client's right answers with A and with B, and its number of examples, each."""
    return [{A: Score(a, total), B: Score(b, total)} for a, b, total in counts]


@pytest.mark.parametrize(
    ("values", "middle"), [([3], 3), ([1, 9], 1), ([5, 1, 9], 5), ([9, 1, 5, 4], 4)]
)
def test_low_median(values: list[float], middle: float) -> None:
    assert low_median(values) == middle


def test_equal_numbers_of_examples_are_just_added() -> None:
    scores = tally(votes((3, 5, 8), (4, 1, 8), (0, 8, 8)))
    assert scores == {A: Score(7, 24), B: Score(14, 24)}
    assert all(type(score.correct) is int for score in scores.values())


def test_who_claims_more_than_the_median_is_scaled_down() -> None:
    scores = tally(votes((1, 3, 4), (6, 2, 8), (40, 60, 80)))
    assert scores == {A: Score(1 + 6 + 4, 4 + 8 + 8), B: Score(3 + 2 + 6, 20)}
    thirds = tally(votes((1, 0, 2), (1, 1, 3)))
    assert thirds[A].correct == pytest.approx(1 + 2 / 3)


def test_nobody_counted() -> None:
    assert tally([]) == {}


def counted(total: int, *rows: tuple[int, ...]) -> list[dict[Tokens, Score]]:
    return [{(i,): Score(n, total) for i, n in enumerate(row)} for row in rows]


def test_what_a_client_says_counts_less_the_more_its_counts_differ() -> None:
    usual = (8, 6, 10, 8), (9, 7, 11, 9), (8, 6, 10, 8)  # variances of 2 answers
    liar = (0, 16, 0, 16)  # and of 64
    # By chance alone 16 answers have one of 4, more than half as much again as the median's.
    assert damping(counted(16, *usual, liar)) == [1, 1, 1, Fraction(1, 16)]
    lively = (8, 2, 14, 8), (8, 2, 14, 8), (14, 8, 2, 8)  # 18, and half as much again is 27
    assert damping(counted(16, *lively, liar))[3] == Fraction(round(1024 * 27 / 64), 1024)
    assert damping(counted(16, *lively, (8, 3, 15, 8))) == [1] * 4
    assert damping(counted(16, (5,), (9,))) == [1, 1], "one prompt is no comparison"
    assert damping([]) == []


def test_the_rest_is_as_if_a_client_had_answered_alike_with_every_prompt() -> None:
    counts = counted(16, (4, 8, 12), (16, 0, 8))
    half = tally(counts, [Fraction(1), Fraction(1, 2)])
    assert half == {(0,): Score(16, 32), (1,): Score(12, 32), (2,): Score(20, 32)}
    assert tally(counts, [Fraction(1), Fraction(0)])[0,] == Score(12, 32)
    assert tally(counts, [Fraction(1)] * 2) == tally(counts)


@given(
    rows=st.lists(st.tuples(*[st.integers(0, 40)] * 3), min_size=3, max_size=9),
    lie=st.tuples(*[st.integers(0, 40)] * 3),
)
def test_no_lie_moves_a_comparison_further_than_the_usual_counts(
    rows: list[tuple[int, ...]], lie: tuple[int, ...]
) -> None:
    counts = counted(40, *rows, lie)
    factors = damping(counts)
    assert all(0 <= factor <= 1 for factor in factors)
    spreads = sorted(float(np.var(row)) / 1600 for row in [*rows, lie])
    most = max(1.5 * spreads[(len(spreads) - 1) // 2], 1 / 160)
    moved = [float(factors[-1]) * (n - np.mean(lie)) / 40 for n in lie]
    assert np.mean(np.square(moved)) <= most * 1.01 + 1e-9
    order = damping(counts[::-1])
    assert order == factors[::-1], "the order of clients does not matter"


def test_a_tie_falls_to_what_ties_say_and_then_to_the_earlier() -> None:
    candidates = [Candidate(tokens, "?") for tokens in (A, B, C)]
    tied: dict[Tokens, Score] = {tokens: Score(5, 10) for tokens in (A, B, C)}
    assert choose(candidates, tied)[0].tokens == A
    assert choose(candidates, tied, {A: Score(5, 10), B: Score(6, 10)})[0].tokens == B
    assert choose(candidates, tied, tied)[0].tokens == A
    better = {**tied, C: Score(6, 10)}
    assert choose(candidates, better, {A: Score(9, 10)})[0].tokens == C


numbers = st.integers(1, 50).flatmap(
    lambda total: st.tuples(st.integers(0, total), st.integers(0, total), st.just(total))
)
honest_votes = st.lists(numbers, min_size=1, max_size=7)


@given(counts=honest_votes, order=st.randoms())
def test_the_order_of_votes_does_not_matter(counts: list[tuple[int, int, int]], order: Any) -> None:
    shuffled = counts.copy()
    order.shuffle(shuffled)
    assert tally(votes(*shuffled)) == tally(votes(*counts))


@given(counts=honest_votes)
def test_no_client_counts_for_more_than_the_median_one(counts: list[tuple[int, int, int]]) -> None:
    """Without a client, the totals fall by at most the limit."""
    limit = low_median([total for _, _, total in counts])
    scores = tally(votes(*counts))
    assert scores[A].total == sum(min(total, limit) for _, _, total in counts)
    for score in scores.values():
        assert 0 <= score.correct <= score.total


@given(honest=honest_votes, lies=st.integers(1, 10**18), data=st.data())
def test_a_lie_about_the_number_weighs_no_more_than_the_largest_honest_client(
    honest: list[tuple[int, int, int]], lies: int, data: st.DataObject
) -> None:
    liars = data.draw(st.integers(0, len(honest)))
    claimed = 50 + lies
    scores = tally(votes(*honest, *[(claimed, 0, claimed)] * liars))
    largest = max(total for _, _, total in honest)
    assert scores[A].total <= (len(honest) + liars) * largest


def test_equal_shares_are_a_tie_whatever_the_rounding() -> None:
    """0.1 + 0.2 is not 0.3 to a computer, but 1/10 + 2/10 is 3/10."""
    scores = tally(votes((1, 3, 10), (2, 0, 10), (0, 0, 1), (0, 0, 1), (0, 0, 1)))
    assert scores[A] == scores[B]
    candidates = [Candidate(A, "incumbent"), Candidate(B, "?")]
    assert choose(candidates, scores)[0].tokens == A

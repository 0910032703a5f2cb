import io
from collections.abc import Sequence
from random import Random
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from strategies.aggregation import Method
from strategies.rounds import RoundResult, Rounds
from strategies.selection import Noise
from strategies.settings import RoundSettings
from strategies.wire import (
    ACCURACY_KEY,
    CLIENT_KEY,
    FAILURE_KEY,
    GAIN_KEY,
    SCORED_KEY,
    USED_UP_KEY,
    VOCABULARY_KEY,
    ClientWeights,
    Reply,
    correct_key,
)

SEED = (1, 2, 3)


def embed(prompts: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float64]]:
    return [np.eye(10)[prompt] for prompt in prompts]


def packed(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


anything = (
    st.none()
    | st.integers(-3, 12)
    | st.floats()
    | st.text(max_size=3)
    | st.lists(st.integers(0, 3), max_size=2)
)
prompts = st.lists(st.integers(0, 9), min_size=1, max_size=6).map(np.array)
arrays = (
    prompts
    | st.lists(st.integers(-5, 15), max_size=9).map(np.array)
    | st.lists(st.floats(), max_size=3).map(np.array)
)
uploads = st.builds(
    Reply,
    sender=st.sampled_from("abc"),
    tensors=st.lists(arrays.map(packed) | st.binary(max_size=20), min_size=1, max_size=2).map(tuple)
    | prompts.map(lambda prompt: (packed(prompt),)),
    metrics=st.dictionaries(
        st.sampled_from([GAIN_KEY, VOCABULARY_KEY, CLIENT_KEY, "accuracy"]), anything, max_size=3
    ),
    num_examples=anything,
)
counts = st.builds(
    Reply,
    sender=st.sampled_from("abc"),
    tensors=st.just(()),
    metrics=st.dictionaries(
        st.sampled_from([SCORED_KEY, *map(correct_key, range(5))]), anything, min_size=3
    )
    | st.fixed_dictionaries(
        {SCORED_KEY: st.integers(8, 12), **{correct_key(i): st.integers(0, 8) for i in range(5)}}
    ),
)


@settings(max_examples=200, deadline=None)
@given(
    method=st.sampled_from(get_args(Method)),
    client_weights=st.sampled_from(get_args(ClientWeights)),
    guard=st.booleans(),
    lists=st.lists(
        st.tuples(st.lists(uploads, max_size=5), st.lists(counts, max_size=4)), max_size=3
    ),
)
def test_whatever_clients_send_the_prompt_is_made_of_what_was_sent(
    method: Method,
    client_weights: ClientWeights,
    guard: bool,
    lists: list[tuple[list[Reply], list[Reply]]],
) -> None:
    results: list[RoundResult] = []
    rounds = Rounds(
        RoundSettings(
            embed, 10, max_tokens=6, aggregation=method, client_weights=client_weights, guard=guard
        ),
        SEED,
        central=lambda *_: None,
        on_round=results.append,
    )
    sent = set(SEED)
    for number, (local, scored) in enumerate(lists, start=1):
        rounds.begin_round(number)
        valid, _ = rounds.read_uploads(number, local, lost=1)
        for index in valid:
            sent |= set(np.load(io.BytesIO(local[index].tensors[0])).tolist())
        candidates = rounds.propose()
        good, _ = rounds.read_scores(scored, lost=0)
        rounds.decide()
        assert len(results) == rounds.round == number
        assert results[-1].failures >= 1 + len(local) - len(valid)
        if len(candidates) > 1:
            assert results[-1].failures == 1 + len(local) - len(valid) + len(scored) - len(good)
        assert rounds.prompt in candidates
        assert 1 <= len(rounds.prompt) <= 6
        assert set(rounds.prompt) <= sent


whole_uploads = st.builds(
    Reply,
    sender=st.sampled_from("abc"),
    tensors=prompts.map(lambda prompt: (packed(prompt),)),
    metrics=st.fixed_dictionaries(
        {GAIN_KEY: st.floats(-1, 1), ACCURACY_KEY: st.floats(0, 1), CLIENT_KEY: st.text("xy")}
    ),
    num_examples=st.integers(1, 99),
)
whole_counts = st.builds(
    Reply,
    sender=st.sampled_from("abc"),
    tensors=st.just(()),
    metrics=st.fixed_dictionaries(
        {SCORED_KEY: st.integers(8, 12), **{correct_key(i): st.integers(0, 8) for i in range(5)}}
    ),
)


@settings(max_examples=150, deadline=None)
@given(
    method=st.sampled_from(get_args(Method)),
    client_weights=st.sampled_from(get_args(ClientWeights)),
    noise=st.sampled_from(get_args(Noise)),
    fluent=st.booleans(),
    guard=st.booleans(),
    local=st.lists(whole_uploads, min_size=1, max_size=5),
    scored=st.lists(whole_counts, max_size=4),
    random=st.randoms(use_true_random=False),
)
def test_the_order_of_arrival_decides_nothing(
    method: Method,
    client_weights: ClientWeights,
    noise: Noise,
    fluent: bool,
    guard: bool,
    local: list[Reply],
    scored: list[Reply],
    random: Random,
) -> None:
    """One client is there twice."""

    def one_round(uploads: list[Reply], counts: list[Reply]) -> RoundResult:
        results: list[RoundResult] = []
        fixed = RoundSettings(
            embed,
            10,
            aggregation=method,
            client_weights=client_weights,
            noise=noise,
            guard=guard,
            fluency_fn=(lambda asked: [-float(sum(p)) for p in asked]) if fluent else None,
        )
        rounds = Rounds(fixed, SEED, central=lambda *_: None, on_round=results.append)
        rounds.begin_round(1)
        rounds.read_uploads(1, uploads, 0)
        rounds.propose()
        rounds.read_scores(counts, 0)
        rounds.decide()
        return results[-1]

    local = [*local, local[0]]
    first = one_round(local, scored)
    random.shuffle(local)
    random.shuffle(scored)
    again = one_round(local, scored)
    assert again.chosen.tokens == first.chosen.tokens
    assert [c.tokens for c in again.candidates] == [c.tokens for c in first.candidates]
    assert again.num_bytes == first.num_bytes


def test_an_unchanged_state_gives_the_same_round() -> None:
    """The same replies in another order, and twice: nothing is left over from before."""
    local = [
        Reply(str(i), (packed(np.array(p)),), {GAIN_KEY: 0.1 * i})
        for i, p in enumerate([[1, 2, 4], [5, 2, 3], [1, 2, 3, 6]])
    ]

    def one_round(replies: Sequence[Reply]) -> RoundResult:
        results: list[RoundResult] = []
        rounds = Rounds(
            RoundSettings(embed, 10), SEED, central=lambda *_: None, on_round=results.append
        )
        rounds.begin_round(1)
        rounds.read_uploads(1, replies, 0)
        for _ in range(2):
            found = rounds.propose()
        numbers = {correct_key(i): i for i in range(len(found))} | {SCORED_KEY: 9}
        rounds.read_scores([Reply("0", (), numbers)] * 3, 0)
        rounds.decide()
        return results[-1]

    assert one_round(local) == one_round(local[::-1]) == one_round(local)


@pytest.mark.parametrize(
    ("reports", "best"),
    [
        ([{ACCURACY_KEY: 0.5, GAIN_KEY: 0.4}, {ACCURACY_KEY: 0.9, GAIN_KEY: 0.1}], 1),
        ([{ACCURACY_KEY: 0.0, GAIN_KEY: -1.0}, {GAIN_KEY: 1.0}], 0),
        ([{ACCURACY_KEY: 0.1, GAIN_KEY: 0.0}, {ACCURACY_KEY: 90.0, GAIN_KEY: 0.5}], 0),
        ([{GAIN_KEY: 0.1}, {GAIN_KEY: 0.3}, {}], 1),
    ],
)
def test_the_best_prompt_is_that_of_the_highest_reported_accuracy(
    reports: list[dict[str, Any]], best: int
) -> None:
    """A client that reports none comes last, whatever it gained."""
    rounds = Rounds(
        RoundSettings(embed, 10, aggregation="best", guard=False), SEED, central=lambda *_: None
    )
    rounds.begin_round(1)
    # In canonical order the first is the one that is not to be chosen.
    places = [(7 if k == best else 4 + k % 2) for k in range(len(reports))]
    local = [
        Reply(str(k), (packed(np.array([1, 2, place])),), report)
        for k, (place, report) in enumerate(zip(places, reports, strict=True))
    ]
    rounds.read_uploads(1, local, lost=0)
    assert rounds.propose() == ((1, 2, 7),)


def test_prompts_that_were_changed_on_the_way_are_refused() -> None:
    rounds = Rounds(RoundSettings(embed, 10), SEED, central=lambda *_: None)
    rounds.expect([np.array(SEED)])
    for changed in ([np.array([1, 2, 4])], [], [np.array(SEED)] * 2, [np.array([1.0, 2.0, 3.5])]):
        with pytest.raises(ValueError, match="differential privacy"):
            rounds.expect(changed)


def test_a_client_that_failed_tells_what_happened(caplog: pytest.LogCaptureFixture) -> None:
    results: list[RoundResult] = []
    rounds = Rounds(
        RoundSettings(embed, 10), SEED, central=lambda *_: None, on_round=results.append
    )
    rounds.begin_round(1)
    found = (packed(np.array([1, 2, 4])),)
    reason = {FAILURE_KEY: "the model\ndid not answer"}
    replies = [Reply("a", (), reason), Reply("b", found, reason), Reply("c", (b"?",), reason)]
    assert rounds.read_uploads(1, replies, lost=0) == ([1], [0]), "b found something before"
    assert "round 1: the search of client a ended early: the model did not answer" in caplog.text
    assert (1, 2, 4) in rounds.propose()
    assert rounds.read_scores([Reply("a", (), reason)], lost=0) == ([], [0])
    assert "round 1: no counts of client a: the model did not answer" in caplog.text
    assert rounds.decide() is None
    assert results[0].failures == 3
    assert rounds.prompt == SEED


def two_synonyms(prompts: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float64]]:
    """Embed 8 and 9 close together, and every token a little differently in every prompt."""
    rows, rng = np.eye(10), np.random.default_rng(0)
    rows[9] = rows[8]
    return [rows[prompt] + 0.02 * rng.standard_normal((len(prompt), 10)) for prompt in prompts]


@pytest.mark.parametrize(("embed_fn", "shared"), [(two_synonyms, True), (embed, False)])
def test_clients_that_write_synonyms_share_an_edit(embed_fn: Any, shared: bool) -> None:
    rounds = Rounds(
        RoundSettings(embed_fn=embed_fn, vocabulary_size=10, race_candidates=9),
        (1, 2, 3, 4),
        central=lambda *_: None,
    )
    rounds.begin_round(1)
    sent = [(1, 8, 3, 4), (1, 9, 3, 5), (1, 2, 3, 6), (1, 2, 3, 7)]
    replies = [
        Reply(str(k), (packed(np.array(tokens)),), {GAIN_KEY: 0.1 * k, CLIENT_KEY: str(k)}, 4)
        for k, tokens in enumerate(sent)
    ]
    assert rounds.read_uploads(1, replies, 0) == ([0, 1, 2, 3], [])
    rounds.propose()
    found = {c.origin: c.tokens for c in rounds.candidates}
    assert ("shared edits" in found) == shared
    if shared:
        assert found["shared edits"] in {(1, 8, 3, 4), (1, 9, 3, 4)}


@pytest.mark.parametrize(("num_clients", "shared"), [(40, True), (80, False)])
def test_among_many_clients_more_must_share_an_edit(num_clients: int, shared: bool) -> None:
    rounds = Rounds(
        RoundSettings(embed_fn=embed, vocabulary_size=10), (1, 2, 3, 4), central=lambda *_: None
    )
    rounds.begin_round(1)
    sent = [(1, 8, 3, 4)] * 2 + [(1, 2, 3, 4)] * (num_clients - 2)
    sent[0] = (1, 8, 3, 5)
    sent[1] = (1, 8, 3, 6)
    replies = [
        Reply(str(k), (packed(np.array(tokens)),), {GAIN_KEY: 0.0, CLIENT_KEY: str(k)}, 4)
        for k, tokens in enumerate(sent)
    ]
    rounds.read_uploads(1, replies, 0)
    rounds.propose()
    assert ((1, 8, 3, 4) in {c.tokens for c in rounds.candidates}) == shared


def test_who_has_used_up_its_limits_is_no_failure() -> None:
    settings = RoundSettings(embed, 10, accept_failures=False)
    rounds = Rounds(settings, SEED, central=lambda *_: None)
    rounds.begin_round(1)
    good = [
        Reply(client, (packed(np.array(tokens)),), {})
        for client, tokens in (("a", [1, 2, 4]), ("b", [1, 5, 3]))
    ]
    used_up = Reply("c", (packed(np.array(SEED)),), {USED_UP_KEY: "cost-per-run"})
    rounds.read_uploads(1, [*good, used_up], 0)
    assert len(rounds.propose()) > 1

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import aggregate
from strategies.candidates import LocalPrompt, Tokens
from strategies.edits import Edit, apply_edits
from strategies.shared_edits import shared_edits

BASE = (1, 2, 3, 4, 5)


def uploads(*prompts: tuple[Tokens, float]) -> list[LocalPrompt]:
    return [LocalPrompt(str(k), tokens, gain) for k, (tokens, gain) in enumerate(prompts)]


def test_what_one_client_made_is_not_shared() -> None:
    assert shared_edits(BASE, uploads(((9, 2, 3, 4, 5), 0.5), ((1, 2, 8, 4, 5), 0.5))) == ()
    assert shared_edits(BASE, []) == ()


def test_what_two_made_is_shared_whatever_else_they_did() -> None:
    sent = uploads(((1, 2, 3, 7), 0.1), ((6, 2, 3, 7), 0.2), ((1, 8, 3, 4, 5), 0.9))
    assert shared_edits(BASE, sent) == (Edit(3, 5, (7,)),)
    assert apply_edits(BASE, shared_edits(BASE, sent)) == (1, 2, 3, 7)


def test_deletions_and_insertions_are_shared_too() -> None:
    sent = uploads(((1, 2, 3, 6, 4), 0.1), ((1, 2, 3, 6, 4), 0.2))
    assert set(shared_edits(BASE, sent)) == {Edit(3, 3, (6,)), Edit(4, 5, ())}


def test_of_conflicting_edits_those_stand_that_gained_more_together() -> None:
    by_two, by_three = (1, 2, 8, 4, 5), (1, 2, 9, 4, 5)
    few = [(by_two, 0.2), (by_two, 0.2)]
    assert shared_edits(BASE, uploads(*few, *[(by_three, 0.1)] * 3)) == (Edit(2, 3, (8,)),)
    assert shared_edits(BASE, uploads(*few, *[(by_three, 0.2)] * 3)) == (Edit(2, 3, (9,)),)


def test_edits_of_one_place_are_alike_by_the_clusters_of_their_tokens() -> None:
    """One writes 8, one 9, one 7; clusters say that 8 and 9 mean the same."""
    sent = uploads(*[((1, 2, token, 4, 5), 0.1) for token in (9, 8, 7)])
    labels = [np.array([0, 1, cluster, 3, 4]) for cluster in (2, 2, 5)]
    assert shared_edits(BASE, sent) == ()
    assert shared_edits(BASE, sent, labels) == (Edit(2, 3, (8,)),), "the first in order"
    weights = [np.array([0.0, 0.0, w, 0.0, 0.0]) for w in (-700.0, -800.0, 0.0)]
    assert shared_edits(BASE, sent, labels, weights) == (Edit(2, 3, (9,)),), "the heaviest"


def test_the_weights_of_rare_tokens_among_many_clients_still_tell_them_apart() -> None:
    """Two of two hundred clients write synonyms: their weights are too small for a float."""
    prompts = [BASE] * 198 + [(1, 2, 8, 4, 5), (1, 2, 9, 4, 5)]
    rows = np.eye(10) + 0.5
    rows[8], rows[9] = np.eye(10)[[8, 9]]
    rows[9] += 0.1  # more like the others' tokens than 8 is
    found = aggregate([np.array(p) for p in prompts], [rows[list(p)] for p in prompts])
    assert found.weights[198][2] * 5 < 1e-9
    assert found.weights[199][2] * 5 < 1e-9
    labels = [np.array([0, 1, 2, 3, 4])] * 198 + [np.array([0, 1, 5, 3, 4])] * 2
    sent = uploads(*[(prompt, 0.1) for prompt in prompts])
    assert shared_edits(BASE, sent, labels, found.log_weights) == (Edit(2, 3, (9,)),)


def test_what_lost_by_all_who_made_it_together_is_left_out() -> None:
    by_two = [((1, 2, 8, 4, 5), gain) for gain in (0.1, -0.2)]
    assert shared_edits(BASE, uploads(*by_two)) == ()
    assert shared_edits(BASE, uploads(*by_two, ((1, 2, 8, 4, 5), 0.1))) == (Edit(2, 3, (8,)),)


@pytest.mark.parametrize("gains", [(0.1, 0.2, 0.3), (0.3, 0.2, 0.1), (0.2, 0.3, 0.1)])
def test_equal_gains_are_equal_however_they_are_added_up(gains: tuple[float, ...]) -> None:
    eight = [((1, 2, 8, 4, 5), gain) for gain in (0.3, 0.1, 0.2)]
    nine = [((1, 2, 9, 4, 5), gain) for gain in gains]
    assert shared_edits(BASE, uploads(*nine, *eight)) == (Edit(2, 3, (8,)),), "the smaller token"


def test_noise_is_like_itself_only() -> None:
    noise = np.array([0, 1, -1, 3, 4])
    sent = uploads(((1, 2, 8, 4, 5), 0.1), ((1, 2, 9, 4, 5), 0.1))
    assert shared_edits(BASE, sent, [noise, noise]) == ()
    same = uploads(((1, 2, 8, 4, 5), 0.1), ((1, 2, 8, 4, 5), 0.1))
    assert shared_edits(BASE, same, [noise, noise]) == (Edit(2, 3, (8,)),)


def test_clusters_are_looked_up_where_the_tokens_stand_after_earlier_edits() -> None:
    """The first edit made the prompts longer and shorter, so that the second stands elsewhere."""
    sent = uploads(((1, 6, 7, 2, 3, 4, 8), 0.1), ((2, 3, 4, 9), 0.1))
    labels = [np.array([0, 10, 11, 1, 2, 3, 4]), np.array([1, 2, 3, 4])]
    assert shared_edits(BASE, sent, labels) == (Edit(4, 5, (8,)),)


@pytest.mark.parametrize(("number", "shared"), [(2, False), (3, True)])
def test_how_many_must_agree(number: int, shared: bool) -> None:
    sent = uploads(*[((1, 2, 8, 4, 5), 0.1)] * number)
    assert bool(shared_edits(BASE, sent, min_clients=3)) == shared


@given(
    prompts=st.lists(
        st.lists(st.integers(1, 9), min_size=1, max_size=7).map(tuple), min_size=1, max_size=6
    ),
    gains=st.lists(st.floats(-1, 1), min_size=6, max_size=6),
    order=st.randoms(use_true_random=False),
)
def test_the_order_of_clients_changes_nothing_and_no_edits_conflict(
    prompts: list[Tokens], gains: list[float], order: Random
) -> None:
    sent = uploads(*zip(prompts, gains, strict=False))
    found = shared_edits(BASE, sent)
    order.shuffle(sent)
    assert shared_edits(BASE, sent) == found
    for number, edit in enumerate(found):
        assert not any(edit.conflicts(other) for other in found[:number])
        made = sum(
            1 for upload in sent if set(edit.tokens) <= set(upload.tokens) and upload.tokens != BASE
        )
        assert made > 1

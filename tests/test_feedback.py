import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddtpt_flwr.feedback import Feedback, Trial, site_tokens
from strategies.edits import Edit

TOKENS = (10, 11, 12, 13)

ids = st.lists(st.integers(0, 50_000), max_size=4).map(tuple)
unit = st.floats(-1, 1)
trials = st.builds(
    Trial,
    position=st.integers(0, 30),
    before=ids,
    after=ids,
    operator=st.sampled_from(["replace", "insert", "delete"]),
    gain=unit,
    num_examples=st.integers(1, 500),
    accuracy=st.floats(0, 1),
    accepted=st.booleans(),
)


def remember(*of: Trial) -> Feedback:
    feedback = Feedback()
    for trial in of:
        feedback.record(trial)
    return feedback


def trial(edit: Edit, gain: int, tokens: tuple[int, ...] = TOKENS) -> Trial:
    return Trial.of(edit, tokens, gain=gain, correct=np.array([True, False]), accepted=gain > 0)


@given(st.lists(trials, max_size=8))
def test_feedback_survives_json(recorded: list[Trial]) -> None:
    feedback = remember(*recorded)
    copy = Feedback.from_json(feedback.to_json())
    assert copy.trials == feedback.trials == tuple(recorded)
    assert copy.site_counts() == feedback.site_counts()
    for ours, theirs in zip(feedback.token_gains(), copy.token_gains(), strict=True):
        assert ours.tolist() == theirs.tolist()


def test_feedback_read_again_goes_on() -> None:
    copy = Feedback.from_json(remember(trial(Edit(1, 2, (5,)), 1)).to_json())
    copy.record(trial(Edit(1, 2, (6,)), -1))
    assert copy.site_counts() == {("replace", (11,)): (1, 1)}


@pytest.mark.parametrize(
    ("edit", "before"),
    [
        (Edit(1, 2, (5,)), (11,)),
        (Edit(1, 3, (5,)), (11, 12)),
        (Edit(0, 2, ()), (10, 11)),
        (Edit(0, 0, (5,)), ()),
        (Edit(2, 2, (5,)), (11,)),
        (Edit(4, 4, (5,)), (13,)),
    ],
)
def test_a_site_is_what_stands_there(edit: Edit, before: tuple[int, ...]) -> None:
    assert site_tokens(edit, TOKENS) == before
    recorded = trial(edit, 1)
    assert recorded.before == before
    assert (recorded.position, recorded.after) == (edit.start, edit.tokens)
    assert recorded.operator == edit.operator


def test_a_trial_counts_per_example() -> None:
    correct = np.array([True, True, True, False])
    recorded = Trial.of(Edit(1, 2, (5,)), TOKENS, gain=-2, correct=correct, accepted=False)
    assert recorded.gain == -0.5
    assert recorded.accuracy == 0.75
    assert recorded.num_examples == 4
    assert not recorded.accepted


def test_counts_are_kept_by_operator_and_tokens() -> None:
    feedback = remember(
        trial(Edit(1, 2, (5,)), 1),
        trial(Edit(0, 1, (6,)), 1, tokens=(11, 9)),  # the same token at another place
        trial(Edit(1, 2, (7,)), 0),  # no gain is no success
        trial(Edit(1, 2, ()), -1),
        trial(Edit(2, 2, (5,)), 1),
    )
    assert feedback.site_counts() == {
        ("replace", (11,)): (2, 1),
        ("delete", (11,)): (0, 1),
        ("insert", (11,)): (1, 0),
    }


def test_gains_name_every_token_that_was_put_in() -> None:
    feedback = remember(
        trial(Edit(1, 2, (5, 6)), 1), trial(Edit(1, 2, ()), 2), trial(Edit(0, 0, (5,)), -1)
    )
    tokens, gains = feedback.token_gains()
    assert tokens.tolist() == [5, 6, 5]
    assert gains.tolist() == [0.5, 0.5, -0.5]


def test_nothing_is_known_at_first() -> None:
    tokens, gains = Feedback().token_gains()
    assert tokens.shape == gains.shape == (0,)
    assert Feedback().site_counts() == {}
    assert Feedback.from_json(Feedback().to_json()).trials == ()

import pytest

from feddtpt_flwr.evidence import probability_of_gain
from feddtpt_flwr.masked_lm.causal import CausalInfiller
from feddtpt_flwr.readability import Readability

SEED = "Classify the sentiment of this movie review as positive or negative."


@pytest.mark.parametrize(
    ("text", "readable"),
    [
        (SEED, True),
        ("Is this movie review positive or negative?", True),
        ("Read the review and say if the writer enjoyed the movie.", True),
        ("to sentiment, the used review as proof of her.", False),
        ("ify sentiment movie this of review as or negative.", False),
        ("List, type method implementation, type of this movie review as positive or", False),
    ],
)
def test_language_is_told_from_word_salad(
    infiller: CausalInfiller, text: str, readable: bool
) -> None:
    encode = infiller.vocabulary.encode
    assert Readability(infiller, encode(SEED), 2.0)(encode(text)) is readable


def test_without_any_loss_allowed_only_better_language_and_the_seed_prompt_pass(
    infiller: CausalInfiller,
) -> None:
    encode = infiller.vocabulary.encode
    strict = Readability(infiller, encode(SEED), 0.0)
    assert strict(encode(SEED))
    assert not strict(encode("Decide whether the critic liked the film."))


@pytest.mark.parametrize(
    ("won", "lost", "probability"), [(0, 0, 0.5), (1, 0, 0.75), (0, 1, 0.25), (3, 0, 0.9375)]
)
def test_probability_of_gain(won: int, lost: int, probability: float) -> None:
    assert probability_of_gain(won, lost) == pytest.approx(probability)

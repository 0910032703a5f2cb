from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from feddtpt_flwr.feedback import Feedback, Trial, change
from feddtpt_flwr.masked_lm import Fillings, Gap
from feddtpt_flwr.masked_lm.causal import CausalInfiller
from feddtpt_flwr.proposer import (
    IN_OTHER_WORDS,
    MAX_PHRASE,
    NO_REPEAT,
    SHORTEST_REWORDING,
    MaskedLMProposer,
)
from feddtpt_flwr.vocabulary import Vocabulary
from strategies.edits import Edit

PROMPT = "Classify the sentiment of this movie review"
WORDS = ("great", "story", "film", "actor", "table", "judge", "bread", "opinion")


class UniformMaskedLM:
    """A double of a masked language model: eight words, all equally likely, in every gap.

    What a proposer does with feedback then shows by itself.
    """

    token_embeddings: NDArray[np.float32] | None = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.words = tuple(vocabulary.encode(word)[0] for word in WORDS)

    def fill(self, gaps: Sequence[Gap]) -> list[Fillings]:
        size = len(self.words)
        return [Fillings(np.array(self.words), np.full(size, -np.log(size))) for _ in gaps]

    def log_likelihood(self, prompts: Sequence[tuple[int, ...]]) -> NDArray[np.float64]:
        return np.array([-np.log(len(self.words)) * len(tokens) for tokens in prompts])


@pytest.fixture(scope="module")
def uniform(vocabulary: Vocabulary) -> UniformMaskedLM:
    return UniformMaskedLM(vocabulary)


@pytest.fixture
def tokens(vocabulary: Vocabulary) -> tuple[int, ...]:
    return vocabulary.encode(PROMPT)


def tried(edit: Edit, tokens: tuple[int, ...], gain: float) -> Trial:
    correct = np.ones(20, dtype=bool)
    return Trial.of(edit, tokens, gain=round(gain * 20), correct=correct, accepted=gain > 0)


def proposals(
    proposer: MaskedLMProposer, tokens: tuple[int, ...], feedback: Feedback, number: int = 300
) -> list[Edit]:
    return proposer.propose(tokens, feedback, np.random.default_rng(7), number)


def share(edits: list[Edit], holds: Callable[[Edit], bool]) -> float:
    return sum(map(holds, edits)) / len(edits)


def check(edit: Edit, tokens: tuple[int, ...], vocabulary: Vocabulary, max_tokens: int) -> None:
    assert 0 <= edit.start <= edit.stop <= len(tokens)
    changed = edit.apply(tokens)
    # The same may come out when the whole is put in other words; a search has tried it already.
    assert changed != tokens or change(edit, tokens) == "rewrite"
    assert 1 <= len(changed) <= max_tokens
    starts = {start for start, _ in vocabulary.words(tokens)} | {len(tokens)}
    assert {edit.start, edit.stop} <= starts, "no word is cut in two"


@pytest.mark.parametrize("use_feedback", [True, False])
@pytest.mark.parametrize("text", ["good", "Classify this", PROMPT, "unbelievably good, really."])
@pytest.mark.parametrize("room", [0, 1, 5])
def test_edits_are_valid(
    use_feedback: bool, text: str, room: int, uniform: UniformMaskedLM, vocabulary: Vocabulary
) -> None:
    tokens = vocabulary.encode(text)
    limit = max(2, len(tokens) + room)
    proposer = MaskedLMProposer(uniform, max_tokens=limit, use_feedback=use_feedback)
    feedback = Feedback()
    for edit in proposals(proposer, tokens, feedback, 80):
        check(edit, tokens, vocabulary, limit)
        assert set(edit.tokens) <= set(uniform.words)
        feedback.record(tried(edit, tokens, 0.1 if edit.start % 2 else -0.1))


def test_a_long_walk_stays_valid(uniform: UniformMaskedLM, vocabulary: Vocabulary) -> None:
    proposer, limit = MaskedLMProposer(uniform, max_tokens=9), 9
    tokens, feedback, rng = vocabulary.encode(PROMPT), Feedback(), np.random.default_rng(0)
    lengths = set()
    for _ in range(300):
        [edit] = proposer.propose(tokens, feedback, rng, 1)
        check(edit, tokens, vocabulary, limit)
        feedback.record(tried(edit, tokens, float(rng.choice([-0.1, 0.0, 0.1]))))
        tokens = edit.apply(tokens)
        lengths.add(len(tokens))
    assert {1, 2, 3, 9} & lengths
    assert max(lengths) <= limit


@pytest.mark.parametrize("use_feedback", [True, False])
def test_every_operator_and_place_has_its_turn(
    use_feedback: bool, uniform: UniformMaskedLM, tokens: tuple[int, ...]
) -> None:
    proposer = MaskedLMProposer(uniform, max_tokens=24, use_feedback=use_feedback)
    edits = proposals(proposer, tokens, Feedback())
    assert set(Counter(edit.operator for edit in edits)) == {"replace", "insert", "delete"}
    starts = {start for start, _ in uniform.vocabulary.words(tokens)}
    assert {edit.start for edit in edits} == starts | {len(tokens)}


def test_the_same_seed_gives_the_same_proposals(
    uniform: UniformMaskedLM, tokens: tuple[int, ...]
) -> None:
    one, other = (
        proposals(MaskedLMProposer(uniform, max_tokens=24), tokens, Feedback(), 30) for _ in "ab"
    )
    assert one == other
    assert len(set(one)) > 10


@pytest.fixture
def place_that_won(tokens: tuple[int, ...], uniform: UniformMaskedLM) -> Feedback:
    """Replacing the fifth token always helped, everything else never did."""
    feedback = Feedback()
    for word in uniform.words:
        for place in range(len(tokens)):
            edit = Edit(place, place + 1, (word,))
            feedback.record(tried(edit, tokens, 0.2 if place == 4 else -0.2))
    return feedback


@pytest.fixture
def word_that_won(tokens: tuple[int, ...], uniform: UniformMaskedLM) -> Feedback:
    """The first word always helped, wherever it was put; the others never did."""
    feedback = Feedback()
    for word in uniform.words:
        for place in range(len(tokens)):
            gain = 0.2 if word == uniform.words[0] else -0.2
            feedback.record(tried(Edit(place, place + 1, (word,)), tokens, gain))
    return feedback


def test_a_place_that_won_is_proposed_more_often(
    uniform: UniformMaskedLM, tokens: tuple[int, ...], place_that_won: Feedback
) -> None:
    proposer = MaskedLMProposer(uniform, max_tokens=24)

    def there(edit: Edit) -> bool:
        return (edit.start, edit.stop, edit.operator) == (4, 5, "replace")

    before = share(proposals(proposer, tokens, Feedback()), there)
    after = share(proposals(proposer, tokens, place_that_won), there)
    assert after > 2 * before + 0.05


def test_rewording_is_given_up_where_it_never_helps(
    uniform: UniformMaskedLM, tokens: tuple[int, ...]
) -> None:
    proposer = MaskedLMProposer(uniform, max_tokens=24)

    def rewords(edit: Edit) -> bool:
        return change(edit, tokens) == "rewrite"

    before = proposals(proposer, tokens, Feedback())
    rewrites = [edit for edit in before if rewords(edit)]
    lengths = {len(edit.tokens) for edit in rewrites}
    assert lengths == set(range(SHORTEST_REWORDING, max(len(tokens), MAX_PHRASE) + 1))
    never = Feedback.of(tried(edit, tokens, -0.2) for edit in rewrites)
    # Also where another prompt stands by now.
    other = tokens[2:]
    after = proposals(proposer, other, never)
    assert share(after, lambda edit: change(edit, other) == "rewrite") < 0.05


def test_experience_moves_with_the_tokens(
    uniform: UniformMaskedLM, tokens: tuple[int, ...], place_that_won: Feedback
) -> None:
    """Positions shift when a prompt changes; what was learnt is about what stood there."""
    proposer = MaskedLMProposer(uniform, max_tokens=24)
    moved = (tokens[5], tokens[4], tokens[6])

    def there(edit: Edit) -> bool:
        return (edit.start, edit.stop, edit.operator) == (1, 2, "replace")

    before = share(proposals(proposer, moved, Feedback()), there)
    after = share(proposals(proposer, moved, place_that_won), there)
    assert after > 1.3 * before


def test_a_word_that_won_is_proposed_more_often(
    uniform: UniformMaskedLM, tokens: tuple[int, ...], word_that_won: Feedback
) -> None:
    proposer = MaskedLMProposer(uniform, max_tokens=24)
    winner = uniform.words[0]

    def rate(feedback: Feedback) -> float:
        words = [token for edit in proposals(proposer, tokens, feedback) for token in edit.tokens]
        return words.count(winner) / len(words)

    rate_before, rate_after = rate(Feedback()), rate(word_that_won)
    assert 0.05 < rate_before < 0.3
    assert rate_after > 1.7 * rate_before


def test_without_feedback_nothing_is_learnt(
    uniform: UniformMaskedLM,
    tokens: tuple[int, ...],
    place_that_won: Feedback,
    word_that_won: Feedback,
) -> None:
    proposer = MaskedLMProposer(uniform, max_tokens=24, use_feedback=False)
    fresh = proposals(proposer, tokens, Feedback())
    assert proposals(proposer, tokens, place_that_won) == fresh
    assert proposals(proposer, tokens, word_that_won) == fresh


def test_a_word_of_similar_meaning_profits(
    infiller: CausalInfiller, vocabulary: Vocabulary
) -> None:
    """With the real model's embeddings: what "movie" won, "film" is given credit for."""
    (movie,), (film,), (bread,) = (vocabulary.encode(w) for w in ("movie", "film", "bread"))

    class TwoWords(UniformMaskedLM):
        """A double of a masked language model that knows two words, with real embeddings."""

        token_embeddings = infiller.token_embeddings

        def fill(self, gaps: Sequence[Gap]) -> list[Fillings]:
            return [Fillings(np.array([film, bread]), np.log([0.5, 0.5])) for _ in gaps]

    tokens = vocabulary.encode("Judge this text")
    feedback = Feedback()
    for _ in range(10):
        feedback.record(tried(Edit(2, 3, (movie,)), tokens, 0.3))
    proposer = MaskedLMProposer(TwoWords(vocabulary), max_tokens=24)
    counts = Counter(
        edit.tokens[0] for edit in proposals(proposer, tokens, feedback) if edit.tokens
    )
    assert counts[film] > 1.2 * counts[bread]


def test_the_real_infiller_gives_valid_edits(
    infiller: CausalInfiller, vocabulary: Vocabulary
) -> None:
    tokens = vocabulary.encode("Judge this review.")
    proposer = MaskedLMProposer(infiller, max_tokens=6)
    for edit in proposals(proposer, tokens, Feedback(), 12):
        check(edit, tokens, vocabulary, 6)
        text = vocabulary.decode(edit.tokens).casefold()
        assert "positive" not in text
        assert "negative" not in text


class SentenceMaskedLM(UniformMaskedLM):
    """A double of a masked language model: a full stop is as likely as any of eight words.

    It remembers the gaps that it was asked to fill.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__(vocabulary)
        self.stop = vocabulary.encode("a.")[-1]
        self.words = (*self.words, self.stop)
        self.gaps: list[Gap] = []

    def fill(self, gaps: Sequence[Gap]) -> list[Fillings]:
        self.gaps += gaps
        return super().fill(gaps)


def test_a_rewording_is_read_after_the_prompt_and_ends_with_its_sentence(
    vocabulary: Vocabulary, tokens: tuple[int, ...]
) -> None:
    model = SentenceMaskedLM(vocabulary)
    edits = proposals(MaskedLMProposer(model, max_tokens=24), tokens, Feedback())
    rewordings = [edit for edit in edits if change(edit, tokens) == "rewrite"]
    for edit in rewordings:
        assert model.stop not in edit.tokens[:-1]
    assert any(edit.tokens[-1] == model.stop for edit in rewordings)
    begun = vocabulary.encode('"') + tokens + vocabulary.encode(f"a{IN_OTHER_WORDS}")[1:]
    firsts = [gap for gap in model.gaps if gap[0] == begun]
    assert len(firsts) >= len(rewordings), "from the first word on"
    assert all(right in {(), vocabulary.encode('a"')[1:]} for _, right in firsts)
    assert all(len(edit.tokens) >= SHORTEST_REWORDING for edit in rewordings)


def test_a_rewording_may_keep_words(uniform: UniformMaskedLM) -> None:
    tokens = uniform.words[:7]
    edits = proposals(MaskedLMProposer(uniform, max_tokens=24), tokens, Feedback())
    firsts = [edit.tokens[0] for edit in edits if change(edit, tokens) == "rewrite"]
    assert set(firsts) & set(tokens)


@pytest.mark.parametrize("use_feedback", [True, False])
def test_half_of_the_first_proposals_are_rewordings(
    use_feedback: bool, uniform: UniformMaskedLM, tokens: tuple[int, ...]
) -> None:
    proposer = MaskedLMProposer(uniform, max_tokens=24, use_feedback=use_feedback)
    edits = proposals(proposer, tokens, Feedback())
    assert 0.4 < share(edits, lambda edit: change(edit, tokens) == "rewrite") < 0.65


def test_without_rewording_only_parts_change(
    vocabulary: Vocabulary, tokens: tuple[int, ...]
) -> None:
    model = SentenceMaskedLM(vocabulary)
    proposals(MaskedLMProposer(model, max_tokens=24, reword=False), tokens, Feedback())
    assert not any("Paraphrase" in vocabulary.decode(left) for left, _ in model.gaps)


class Skewed(UniformMaskedLM):
    """A double that likes its first word best, and keeps the gaps that it was shown."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__(vocabulary)
        self.gaps: list[Gap] = []

    def fill(self, gaps: Sequence[Gap]) -> list[Fillings]:
        self.gaps += gaps
        others = len(self.words) - 1
        chances = np.array([0.6, *[0.4 / others] * others])
        return [Fillings(np.array(self.words), np.log(chances)) for _ in gaps]


def test_a_low_temperature_keeps_to_the_likeliest_word(vocabulary: Vocabulary) -> None:
    model, tokens = Skewed(vocabulary), vocabulary.encode(PROMPT)

    def rate(temperature: float) -> float:
        proposer = MaskedLMProposer(model, max_tokens=24, temperature=temperature, reword=False)
        edits = [edit for edit in proposals(proposer, tokens, Feedback()) if edit.tokens]
        return share(edits, lambda edit: edit.tokens[0] == model.words[0])

    assert rate(0.3) > 0.85 > rate(1.0) > 0.45 > rate(3.0)


def test_what_follows_is_shown_for_the_last_word_only(vocabulary: Vocabulary) -> None:
    model, tokens = Skewed(vocabulary), vocabulary.encode(PROMPT)
    proposer = MaskedLMProposer(model, max_tokens=24, reword=False)
    edits = proposals(proposer, tokens, Feedback(), 100)
    longer = sum(len(edit.tokens) > 1 for edit in edits)
    assert longer
    hidden = [left for left, right in model.gaps if not right and len(left) < len(tokens)]
    assert len(hidden) >= longer


def test_no_word_comes_near_itself(vocabulary: Vocabulary) -> None:
    model = UniformMaskedLM(vocabulary)
    tokens = tuple(model.words[:2])
    proposer = MaskedLMProposer(model, max_tokens=4, reword=False)
    for edit in proposals(proposer, tokens, Feedback(), 200):
        left, right = tokens[: edit.start], tokens[edit.stop :]
        assert not set(edit.tokens) & {*left[-NO_REPEAT:], *right[:NO_REPEAT]}

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from feddtpt_flwr.data import Example, Task
from feddtpt_flwr.feedback import Feedback
from feddtpt_flwr.masked_lm.causal import CausalInfiller
from feddtpt_flwr.privacy.public_tokens import (
    NUM_COMMON,
    PublicTokensProposer,
    passes,
    public_texts,
    public_tokens,
)
from feddtpt_flwr.vocabulary import Vocabulary
from strategies.edits import Edit

SEED = "Judge the mood."


def only(vocabulary: Vocabulary, word: str) -> int:
    (token,) = vocabulary.encode(word)
    return token


def rare_words(vocabulary: Vocabulary) -> list[int]:
    proposable = np.flatnonzero(vocabulary.proposable())
    return [int(t) for t in proposable[-200:] if vocabulary.decode([int(t)]).isalpha()]


class Fixed:
    """A double of a proposer: it proposes what it is given."""

    def __init__(self, *edits: Edit) -> None:
        self.edits = list(edits)

    def propose(self, *_: Any) -> list[Edit]:
        return self.edits


def test_common_words_and_punctuation_are_public(vocabulary: Vocabulary) -> None:
    public = public_tokens(vocabulary, [])
    for word in ("the", "movie", "review", "question"):
        assert public[only(vocabulary, word)]
    for mark in (".", "?", ","):
        assert public[vocabulary.token_id(mark)]
    assert not public[rare_words(vocabulary)].any()
    assert 5_000 < public.sum() < NUM_COMMON


def test_wordpiece_vocabularies_too(wordpiece: Vocabulary) -> None:
    public = public_tokens(wordpiece, [])
    assert public[only(wordpiece, "movie")]
    assert public[wordpiece.token_id("?")]
    assert not public[wordpiece.token_id("[MASK]")]
    assert 5_000 < public.sum() < NUM_COMMON


def test_what_all_parties_know_is_public(vocabulary: Vocabulary, task: Task) -> None:
    rare = rare_words(vocabulary)
    example = Example(task.render({"text": vocabulary.decode(rare[:1])}), 0)
    public = public_tokens(vocabulary, public_texts(task, SEED, [example]))
    assert public[list(vocabulary.encode(SEED))].all()
    assert public[[only(vocabulary, answer) for answer in task.answers]].all()
    assert public[rare[0]]
    assert not public[rare[1]]


def test_other_tokens_are_replaced_by_public_ones_of_like_meaning(
    infiller: CausalInfiller, vocabulary: Vocabulary, task: Task
) -> None:
    public = public_tokens(vocabulary, public_texts(task, SEED, []))
    film = only(vocabulary, "film")
    narrow = public & (np.arange(len(public)) != film)
    edits = [Edit(0, 1, (only(vocabulary, "the"), film)), Edit(1, 2, ())]
    proposer = PublicTokensProposer(Fixed(*edits), infiller, narrow, task.answers)
    replaced, deletion = proposer.propose((1, 2), Feedback(), np.random.default_rng(0), 2)
    assert deletion == edits[1]
    assert replaced.tokens[0] == edits[0].tokens[0]
    assert vocabulary.decode(replaced.tokens[1:]).casefold() in {"films", "movie", "movies"}

    rare = rare_words(vocabulary)[:50]
    proposer = PublicTokensProposer(Fixed(Edit(0, 1, tuple(rare))), infiller, public, task.answers)
    (edit,) = proposer.propose((1,), Feedback(), np.random.default_rng(0), 1)
    assert public[list(edit.tokens)].all()
    assert not {vocabulary.decode([t]).casefold() for t in edit.tokens} & set(task.answers)


def test_without_embeddings_such_a_change_is_not_proposed(vocabulary: Vocabulary) -> None:
    public = public_tokens(vocabulary, [])
    the, rare = only(vocabulary, "the"), rare_words(vocabulary)[0]
    blind: Any = SimpleNamespace(vocabulary=vocabulary, token_embeddings=None)
    proposer = PublicTokensProposer(Fixed(Edit(0, 1, (the,)), Edit(0, 1, (rare,))), blind, public)
    edits = proposer.propose((1,), Feedback(), np.random.default_rng(0), 2)
    assert [edit.tokens for edit in edits] == [(the,)]


@pytest.mark.parametrize(
    ("tokens", "received", "expected"),
    [((0, 1), (), True), ((0, 2), (), False), ((0, 2), (2,), True), ((3,), (2,), False)],
)
def test_the_gate(tokens: tuple[int, ...], received: tuple[int, ...], expected: bool) -> None:
    assert passes(tokens, received, np.array([True, True, False, False])) == expected


def test_no_answer_word_takes_a_tokens_place(vocabulary: Vocabulary, task: Task) -> None:
    answer, other, the = (only(vocabulary, word) for word in (task.answers[0], "film", "the"))
    public = np.zeros(len(vocabulary), dtype=bool)
    public[[answer, the]] = True
    embeddings = np.zeros((len(vocabulary), 2), dtype=np.float32)
    embeddings[[answer, other]] = [1, 0]
    embeddings[the] = [0, 1]
    masked_lm: Any = SimpleNamespace(vocabulary=vocabulary, token_embeddings=embeddings)
    proposer = PublicTokensProposer(Fixed(Edit(0, 1, (other,))), masked_lm, public, task.answers)
    (edit,) = proposer.propose((1,), Feedback(), np.random.default_rng(0), 1)
    assert edit.tokens == (the,), "though the answer word is nearer"

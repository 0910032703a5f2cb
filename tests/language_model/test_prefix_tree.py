import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from feddtpt_flwr.language_model import tree_attention
from feddtpt_flwr.language_model.prefix_tree import PrefixTree, batches, common_length
from feddtpt_flwr.language_model.tree_attention import Stretch, StretchBatch

Sequences = list[tuple[int, ...]]

rows = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple), min_size=1, max_size=8
)


def beginnings_of(sequences: Sequences) -> Sequences:
    return sorted({row[:length] for row in sequences for length in range(1, len(row) + 1)})


@st.composite
def cached_rows(draw: st.DrawFn) -> tuple[Sequences, list[list[int]]]:
    """Sequences, and slots of their beginnings, but not of whole sequences."""
    sequences: Sequences = draw(rows)
    slots: dict[tuple[int, ...], int] = {}
    for beginning in beginnings_of(sequences):
        reached = len(beginning) == 1 or beginning[:-1] in slots
        if reached and beginning not in sequences and draw(st.booleans()):
            slots[beginning] = 100 + len(slots)
    cached = [
        [slots[row[:n]] for n in range(1, len(row) + 1) if row[:n] in slots] for row in sequences
    ]
    return sequences, cached


@given(rows)
def test_a_tree_holds_every_sequence(sequences: Sequences) -> None:
    tree = PrefixTree.of(sequences)
    for sequence, path in zip(sequences, tree.paths, strict=True):
        assert tuple(tree.tokens[node] for node in path) == sequence
        assert [tree.positions[node] for node in path] == list(range(len(sequence)))


@given(rows)
def test_a_tree_holds_each_beginning_once(sequences: Sequences) -> None:
    tree = PrefixTree.of(sequences)
    assert len(tree.tokens) == len(tree.positions) == len(beginnings_of(sequences))


@given(cached_rows())
def test_what_is_cached_is_not_computed(given_rows: tuple[Sequences, list[list[int]]]) -> None:
    sequences, cached = given_rows
    tree = PrefixTree.of(sequences, cached)
    used = {slot for slots in cached for slot in slots}
    assert sorted(tree.slots) == sorted(used)
    assert len(tree.tokens) == len(beginnings_of(sequences)) - len(used)
    for sequence, slots, path in zip(sequences, cached, tree.paths, strict=True):
        assert [tree.slots[node] for node in path[: len(slots)]] == slots
        own = [node - len(tree.slots) for node in path[len(slots) :]]
        assert tuple(tree.tokens[node] for node in own) == sequence[len(slots) :]
        assert [tree.positions[node] for node in own] == list(range(len(slots), len(sequence)))
    ranges = [token for added in tree.added for token in range(added.start, added.stop)]
    assert ranges == list(range(len(tree.tokens)))
    for before, after in zip(tree.added, tree.added[1:], strict=False):
        assert before.path[: after.shared] == after.path[: after.shared]


@pytest.mark.parametrize("gathering", [0, 16, 10**6], ids=["apart", "as measured", "together"])
@pytest.mark.parametrize("calling", [0, 5, 2048])
@given(given_rows=cached_rows())
def test_every_token_attends_to_its_path(
    gathering: int, calling: int, given_rows: tuple[Sequences, list[list[int]]]
) -> None:
    tree = PrefixTree.of(*given_rows)
    expected = {
        node - len(tree.slots): path[: index + 1]
        for path in tree.paths
        for index, node in enumerate(path)
        if node >= len(tree.slots)
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree_attention, "GATHERING", gathering)
        patch.setattr(tree_attention, "CALLING", {"cpu": calling})
        found, order = StretchBatch.all_of(Stretch.all_of(tree), torch.float32, torch.device("cpu"))
    attended = []
    for batch in found:
        keys = batch.keys.view(len(batch.mask), -1)
        queries = batch.queries.view(len(batch.mask), -1)
        for index, row in np.ndindex(*queries.shape):
            seen = keys[index][batch.mask[index, 0, row] == 0].tolist()
            attended.append((int(queries[index, row]), sorted(seen)))
    for token, place in enumerate(order.tolist()):
        assert attended[place] == (token, sorted(expected[token]))


@given(cached_rows(), st.integers(1, 12))
def test_batches_hold_every_sequence_once(
    given_rows: tuple[Sequences, list[list[int]]], max_tokens: int
) -> None:
    sequences, cached = given_rows
    found = list(batches(sequences, max_tokens, [len(slots) for slots in cached]))
    assert sorted(row for batch in found for row in batch) == list(range(len(sequences)))
    for batch in found:
        tree = PrefixTree.of([sequences[row] for row in batch], [cached[row] for row in batch])
        assert len(batch) == 1 or len(tree.tokens) <= max_tokens


def test_cached_tokens_make_room_in_a_batch() -> None:
    sequences = [(row, *range(31)) for row in range(8)]
    assert [len(batch) for batch in batches(sequences, 64)] == [2, 2, 2, 2]
    assert [len(batch) for batch in batches(sequences, 64, [24] * 8)] == [5, 3]


@pytest.mark.parametrize(
    ("first", "second", "length"),
    [((), (), 0), ((1, 2), (1, 2), 2), ((1, 2), (1, 3, 2), 1), ((1,), (2,), 0), ((1,), (1, 5), 1)],
)
def test_common_length(first: tuple[int, ...], second: tuple[int, ...], length: int) -> None:
    assert common_length(first, second) == length


def test_sequences_that_begin_alike_are_looked_at_together() -> None:
    tree = PrefixTree.of([(*range(50), end) for end in range(100, 108)])
    (stretch,) = Stretch.all_of(tree)
    assert stretch.keys == 50 + 8

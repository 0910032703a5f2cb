import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddtpt_flwr.language_model.prefix_tree import PrefixTree, common_length

Sequences = list[tuple[int, ...]]

rows = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple), min_size=1, max_size=8
)


@given(rows)
def test_a_tree_holds_every_sequence(sequences: Sequences) -> None:
    tree = PrefixTree.of(sequences)
    for sequence, path in zip(sequences, tree.paths, strict=True):
        assert tuple(tree.tokens[node] for node in path) == sequence
        assert [tree.positions[node] for node in path] == list(range(len(sequence)))


@given(rows)
def test_a_tree_holds_each_beginning_once(sequences: Sequences) -> None:
    tree = PrefixTree.of(sequences)
    beginnings = {row[:length] for row in sequences for length in range(1, len(row) + 1)}
    assert len(tree.tokens) == len(tree.positions) == len(beginnings)
    assert [node for start, stop, _ in tree.added for node in range(start, stop)] == list(
        range(len(tree.tokens))
    )


@pytest.mark.parametrize(
    ("first", "second", "length"),
    [((), (), 0), ((1, 2), (1, 2), 2), ((1, 2), (1, 3, 2), 1), ((1,), (2,), 0), ((1,), (1, 5), 1)],
)
def test_common_length(first: tuple[int, ...], second: tuple[int, ...], length: int) -> None:
    assert common_length(first, second) == length

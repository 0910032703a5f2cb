import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.edits import Edit, apply_edits, edits_between, merge, merges

BASE = (1, 2, 3, 4, 5)

prompts = st.lists(st.integers(0, 5), max_size=9).map(tuple)


@pytest.mark.parametrize(
    ("edit", "operator", "after"),
    [
        (Edit(1, 2, (9,)), "replace", (1, 9, 3, 4, 5)),
        (Edit(1, 3, (9, 8, 7)), "replace", (1, 9, 8, 7, 4, 5)),
        (Edit(0, 0, (9,)), "insert", (9, 1, 2, 3, 4, 5)),
        (Edit(5, 5, (9, 9)), "insert", (1, 2, 3, 4, 5, 9, 9)),
        (Edit(0, 2, ()), "delete", (3, 4, 5)),
        (Edit(0, 5, ()), "delete", ()),
    ],
)
def test_an_edit(edit: Edit, operator: str, after: tuple[int, ...]) -> None:
    assert edit.operator == operator
    assert edit.apply(BASE) == after


@pytest.mark.parametrize(
    ("one", "other", "conflict"),
    [
        (Edit(1, 2, (9,)), Edit(1, 2, (8,)), True),
        (Edit(1, 3, (9,)), Edit(2, 4, ()), True),
        (Edit(1, 3, (9,)), Edit(2, 2, (8,)), True),
        (Edit(2, 2, (9,)), Edit(2, 2, (8,)), True),
        (Edit(2, 2, (9,)), Edit(2, 3, (8,)), True),
        (Edit(1, 2, (9,)), Edit(2, 3, (8,)), False),
        (Edit(1, 2, (9,)), Edit(2, 2, (8,)), False),
        (Edit(0, 0, (9,)), Edit(5, 5, (8,)), False),
    ],
)
def test_conflicts(one: Edit, other: Edit, conflict: bool) -> None:
    assert one.conflicts(other) is conflict
    assert other.conflicts(one) is conflict


@given(before=prompts, after=prompts)
def test_edits_lead_from_one_prompt_to_the_other(
    before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    edits = edits_between(before, after)
    assert apply_edits(before, edits) == after
    assert apply_edits(before, edits[::-1]) == after, "the order they are given in is no matter"
    assert bool(edits) == (before != after)
    assert list(edits) == sorted(edits, key=lambda edit: edit.start)
    for i, edit in enumerate(edits):
        assert not any(edit.conflicts(other) for other in edits[i + 1 :])


@given(base=prompts, prompt=prompts, copies=st.integers(1, 3))
def test_merging_one_prompt_gives_it_back(
    base: tuple[int, ...], prompt: tuple[int, ...], copies: int
) -> None:
    assert merge(base, [prompt] * copies) == prompt
    assert merge(base, [base, prompt]) == prompt
    assert merge(base, [prompt, base]) == prompt


def test_merge_of_nothing_is_the_base() -> None:
    assert merge(BASE, []) == BASE


@given(base=prompts, others=st.lists(prompts, max_size=5))
def test_merges_of_more_and_more_prompts(
    base: tuple[int, ...], others: list[tuple[int, ...]]
) -> None:
    expected = [merge(base, others[:number]) for number in range(1, len(others) + 1)]
    assert list(merges(base, others)) == expected


@pytest.mark.parametrize(
    ("others", "merged"),
    [
        ([(9, 2, 3, 4, 5), (1, 2, 3, 4, 8)], (9, 2, 3, 4, 8)),
        ([(1, 9, 2, 3, 4, 5), (1, 2, 3, 5)], (1, 9, 2, 3, 5)),
        ([(1, 2, 3, 4, 5, 7), (2, 3, 4, 5)], (2, 3, 4, 5, 7)),
        ([(9, 2, 3, 4, 5), (1, 2, 8, 4, 5), (1, 2, 3, 4, 5, 7)], (9, 2, 8, 4, 5, 7)),
    ],
)
def test_edits_at_different_places_all_survive(
    others: list[tuple[int, ...]], merged: tuple[int, ...]
) -> None:
    assert merge(BASE, others) == merged
    assert merge(BASE, others[::-1]) == merged


@pytest.mark.parametrize(
    ("others", "merged"),
    [
        ([(9, 2, 3, 4, 5), (8, 2, 3, 4, 5)], (9, 2, 3, 4, 5)),
        ([(1, 9, 4, 5), (1, 2, 8, 4, 7)], (1, 9, 4, 7)),
        ([(1, 2, 3, 4, 5, 9), (1, 2, 3, 4, 5, 8)], (1, 2, 3, 4, 5, 9)),
        ([(2, 3, 4, 5), (9, 2, 3, 4, 8)], (2, 3, 4, 8)),
    ],
)
def test_the_first_of_two_conflicting_edits_stands(
    others: list[tuple[int, ...]], merged: tuple[int, ...]
) -> None:
    assert merge(BASE, others) == merged


@given(places=st.sets(st.integers(0, 7), min_size=1), data=st.data())
def test_replacements_at_different_places_all_survive(
    places: set[int], data: st.DataObject
) -> None:
    base = tuple(range(8))
    ordered = data.draw(st.permutations(sorted(places)))
    others = [Edit(place, place + 1, (100 + place,)).apply(base) for place in ordered]
    assert merge(base, others) == tuple(100 + i if i in places else i for i in base)


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=8).map(tuple),
    st.tuples(st.integers(0, 8), st.integers(0, 8), st.lists(st.integers(6, 9), max_size=3)),
    st.tuples(st.integers(0, 8), st.integers(0, 8), st.lists(st.integers(6, 9), max_size=3)),
)
def test_an_edit_after_another_changes_what_it_would_have_changed(
    tokens: tuple[int, ...],
    one: tuple[int, int, list[int]],
    two: tuple[int, int, list[int]],
) -> None:
    def edit(start: int, stop: int, new: list[int]) -> Edit:
        start, stop = sorted((min(start, len(tokens)), min(stop, len(tokens))))
        return Edit(start, stop, tuple(new))

    first, second = edit(*one), edit(*two)
    moved = second.after(first)
    if first.conflicts(second):
        assert moved is None
    else:
        assert moved is not None
        assert moved.apply(first.apply(tokens)) == apply_edits(tokens, [first, second])
    left, right = first.around(tokens)
    assert left + right == first.apply(tokens)

from hypothesis import given
from hypothesis import strategies as st

from feddtpt_flwr.memory import Memory


@given(st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=10), st.integers(1, 6))
def test_values_are_right_and_computed_once(calls: list[list[int]], capacity: int) -> None:
    computed: list[int] = []

    def compute(keys: list[int]) -> list[int]:
        computed.extend(keys)
        return [key * key for key in keys]

    memory = Memory(compute, capacity)
    for keys in calls:
        before = len(computed)
        assert memory.get(keys) == [key * key for key in keys]
        new = computed[before:]
        assert len(new) == len(set(new))
    if len({key for keys in calls for key in keys}) <= capacity:
        assert len(computed) == len(set(computed))


def test_what_is_asked_for_again_is_kept() -> None:
    computed: list[int] = []

    def compute(keys: list[int]) -> list[int]:
        computed.extend(keys)
        return keys

    memory = Memory(compute, 2)
    for key in (0, 1, 0, 2, 0, 3, 0):
        memory.get([key])
    assert computed == [0, 1, 2, 3]

from collections.abc import Sequence

import pytest
import torch

from feddtpt_flwr.language_model import prefix_cache
from feddtpt_flwr.language_model.prefix_cache import PrefixCache

Sequences = list[tuple[int, ...]]

BYTES = 2 * 2 * 4  # of a token with keys and values of one float32 in each of two layers
FRAME = (1, 2, 3, 4)


def cache_for(tokens: int) -> PrefixCache:
    """A cache that knows how much a token takes: it has read one."""
    cache = PrefixCache(tokens * BYTES)
    read(cache, [(99,)])
    return cache


def read(
    cache: PrefixCache,
    sequences: Sequences,
    last: Sequence[int] | None = None,
    again: Sequence[int] = (),
) -> int:
    """Go through two layers; a token's key is the sum of its sequence, the value ten times that.

    Returns how many tokens were computed.
    """
    last = last or [1] * len(sequences)
    with (
        torch.inference_mode(),
        cache.tree(sequences, last, torch.float32, torch.device("cpu"), again) as (tree, attention),
    ):
        sums = [0.0] * (len(tree.slots) + len(tree.tokens))
        for sequence, path in zip(sequences, tree.paths, strict=True):
            for index, node in enumerate(path):
                sums[node] = float(sum(sequence[: index + 1]))
        expected = torch.tensor(sums)[:, None, None]
        key = expected[len(tree.slots) :]
        for layer in range(2):
            keys, values = attention.earlier(layer, key + layer, 10 * key + layer)
            assert torch.equal(keys, expected + layer)
            assert torch.equal(values, 10 * expected + layer)
    return len(tree.tokens)


def test_what_comes_a_second_time_is_stored_and_a_third_time_read() -> None:
    cache = cache_for(100)
    computed = [read(cache, [(*FRAME, 10 + call, 20)]) for call in range(4)]
    assert computed == [6, 6, 2, 2]
    assert len(cache._slots) == len(FRAME)


def test_what_is_known_to_come_again_is_stored_at_once() -> None:
    cache = cache_for(100)
    texts = [(text, 1, 2, 3) for text in range(4)]
    computed = [
        read(cache, [(*text, 10 + call, 20) for text in texts], again=[4] * 4) for call in range(3)
    ]
    assert computed == [4 * 6, 4 * 2, 4 * 2]
    assert len(cache._slots) == 4 * 4, "the prompts, each read once after every text, are not"


def test_half_of_the_memory_is_for_what_has_come_again() -> None:
    cache = cache_for(20)
    texts = [(text, 1, 2, 3) for text in range(5)]
    read(cache, [(*text, 10) for text in texts], again=[4] * 5)
    assert len(cache._slots) == 10
    read(cache, [(*text, 11) for text in texts], again=[4] * 5)
    assert len(cache._slots) == 20


def test_a_beginning_that_two_sequences_of_a_call_share_is_stored_at_once() -> None:
    cache = cache_for(100)
    read(cache, [(*FRAME, 10), (*FRAME, 11), (*FRAME, 11)])
    assert len(cache._slots) == len(FRAME)
    assert read(cache, [(*FRAME, 12)]) == 1


def test_the_last_tokens_are_computed() -> None:
    cache = cache_for(100)
    for _ in range(2):
        read(cache, [FRAME])
    assert cache.lengths([FRAME, FRAME, (*FRAME, 5)], [1, 3, 1]) == [3, 1, 4]
    assert [read(cache, [FRAME], [n]) for n in (1, 2, 4)] == [1, 2, 4]
    # What one sequence needs is computed for the other, too.
    assert read(cache, [FRAME, (*FRAME, 5)], [2, 1]) == 3


def test_a_call_that_fails_stores_nothing() -> None:
    cache = cache_for(100)
    read(cache, [FRAME])
    with (
        pytest.raises(ValueError, match="lost"),
        cache.tree([FRAME], [1], torch.float32, torch.device("cpu")),
    ):
        raise ValueError("lost")
    assert not cache._slots
    assert [read(cache, [FRAME]) for _ in range(2)] == [4, 1]


def test_memory_is_bounded_and_beginnings_come_first() -> None:
    cache = cache_for(3)
    assert [read(cache, [FRAME]) for _ in range(3)] == [4, 4, 1]
    assert cache.lengths([(*FRAME, 5)], [1]) == [3]
    stored = [states.nbytes for layer in cache._store._layers.values() for states in layer]
    assert sum(stored) == 3 * BYTES


def test_no_memory_is_no_cache() -> None:
    cache = cache_for(0)
    assert [read(cache, [FRAME]) for _ in range(3)] == [4, 4, 4]


def test_more_than_fits_in_turn_leaves_what_fits() -> None:
    """Where the least recently used were dropped, nothing would ever be found again."""
    cache = cache_for(40)
    texts = [(text, 1, 2, 3, 4) for text in range(20)]  # 100 tokens
    computed = [[read(cache, [(*text, call)]) for text in texts] for call in range(100, 150)]
    assert [sum(row) for row in computed[2:]] == [20 * 6 - 40] * 48


def test_what_is_no_longer_used_makes_room() -> None:
    cache = cache_for(20)
    old = [(text, 1, 2, 3, 4) for text in range(4)]
    new = [(text, 1, 2, 3, 4) for text in range(10, 14)]
    for call in range(3):
        read(cache, [(*text, 100 + call) for text in old])
    assert cache.lengths([(*text, 0) for text in old], [1] * 4) == [5] * 4
    for call in range(30):
        read(cache, [(*text, 100 + call) for text in [*new, old[0]]])
    lengths = cache.lengths([(*text, 0) for text in [*old, *new]], [1] * 8)
    assert lengths == [5, 0, 0, 0, *lengths[4:]]
    assert sum(lengths) == 20


def test_notes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_cache, "MAX_NODES", 50)
    cache = cache_for(40)
    for call in range(100):
        read(cache, [(*FRAME, 100 + call, 1, 2)])
        assert len(cache._children) <= 50 + 7
    assert read(cache, [(*FRAME, 300)]) == 1

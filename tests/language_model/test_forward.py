from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from feddtpt_flwr.language_model.forward import CausalForward, PrefixTree, common_length

Sequences = list[tuple[int, ...]]

SEQUENCES: Sequences = [
    (3, 1, 4, 1, 5, 9, 2, 6),
    (3, 1, 4, 1, 5),
    (3, 1, 4, 7),
    (2, 7, 1, 8, 2, 8),
    (3,),
    (3, 1, 4, 7),
    (3, 1, 4, 1, 5, 9, 2, 7, 7, 7, 7, 7),
]

SIZES = {
    "vocab_size": 16,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}


def tiny(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    models = {
        "grouped queries": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2)),
        "other architecture": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)),
        "sliding window": lambda: MistralForCausalLM(
            MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=4)
        ),
    }
    model: torch.nn.Module = models[name]().eval()
    return model


def alone(model: torch.nn.Module, sequence: Sequence[int]) -> torch.Tensor:
    with torch.inference_mode():
        states: torch.Tensor = model.base_model(  # type: ignore[operator]
            torch.tensor([sequence]), use_cache=False
        ).last_hidden_state[0]
    return states


@pytest.mark.parametrize("name", ["grouped queries", "other architecture", "sliding window"])
@pytest.mark.parametrize("max_tokens", [1, 9, 1000])
def test_states_are_those_of_each_sequence_alone(name: str, max_tokens: int) -> None:
    """Whatever the batches, and for models that cannot be packed too."""
    model = tiny(name)
    expected = [alone(model, sequence) for sequence in SEQUENCES]
    last = [min(3, len(sequence)) for sequence in SEQUENCES]
    forward = CausalForward(model, max_tokens=max_tokens)
    found = forward.states(SEQUENCES, last)
    for states, whole, n in zip(found, expected, last, strict=True):
        torch.testing.assert_close(states, whole[-n:], atol=1e-5, rtol=1e-4)
    ends = torch.stack([whole[-1] for whole in expected])
    torch.testing.assert_close(forward.last_states(SEQUENCES), ends, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "packs"),
    [("grouped queries", True), ("other architecture", True), ("sliding window", False)],
)
def test_what_is_packed(name: str, packs: bool) -> None:
    assert CausalForward(tiny(name))._packs is packs


def test_the_models_own_calls_still_work() -> None:
    model = tiny("grouped queries")
    expected = alone(model, SEQUENCES[0])
    CausalForward(model)
    torch.testing.assert_close(alone(model, SEQUENCES[0]), expected, atol=1e-5, rtol=1e-4)


def test_no_sequences_have_no_states() -> None:
    assert CausalForward(tiny("grouped queries")).states([], []) == []


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

import random
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import pytest
import torch
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from feddtpt_flwr.language_model import forward as forward_module
from feddtpt_flwr.language_model import prefix_cache, tree_attention
from feddtpt_flwr.language_model.forward import CausalForward, TransformersBackbone, without_ending
from feddtpt_flwr.language_model.llama import Llama, is_plain_llama
from feddtpt_flwr.language_model.prefix_cache import PrefixCache

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


def tiny(name: str, **settings: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    models = {
        "grouped queries": lambda: LlamaForCausalLM(
            LlamaConfig(**SIZES, num_key_value_heads=2, **settings)
        ),
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
    forward = CausalForward(TransformersBackbone(model), max_tokens=max_tokens)
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
    assert TransformersBackbone(tiny(name)).packs is packs


def test_attention_is_the_same_as_a_gpu_computes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a head of keys for each of the queries, and masks whose rows are aligned."""
    model = tiny("grouped queries")
    expected = CausalForward(TransformersBackbone(model)).last_states(SEQUENCES)
    monkeypatch.setattr(tree_attention, "SHARES_HEADS", frozenset())
    found = CausalForward(TransformersBackbone(model)).last_states(SEQUENCES)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_the_models_own_calls_still_work() -> None:
    model = tiny("grouped queries")
    expected = alone(model, SEQUENCES[0])
    TransformersBackbone(model)
    torch.testing.assert_close(alone(model, SEQUENCES[0]), expected, atol=1e-5, rtol=1e-4)


def test_no_sequences_have_no_states() -> None:
    assert CausalForward(TransformersBackbone(tiny("grouped queries"))).states([], []) == []


@pytest.mark.parametrize("max_tokens", [1, 9, 1000])
@pytest.mark.parametrize("gathering", [0, 16, 10**6], ids=["apart", "as measured", "together"])
@pytest.mark.parametrize("calling", [0, 2048])
def test_llamas_states_are_those_of_transformers(
    max_tokens: int, gathering: int, calling: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree_attention, "GATHERING", gathering)
    monkeypatch.setattr(tree_attention, "CALLING", {"cpu": calling})
    model = tiny("grouped queries", tie_word_embeddings=True)
    expected = [alone(model, sequence) for sequence in SEQUENCES]
    layers = Llama(model.config.to_dict(), model.state_dict())  # type: ignore[operator, union-attr]
    forward = CausalForward(layers, max_tokens=max_tokens)
    found = forward.states(SEQUENCES, [len(sequence) for sequence in SEQUENCES])
    for states, whole in zip(found, expected, strict=True):
        torch.testing.assert_close(states, whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "grouped queries", "other architecture"])
@pytest.mark.parametrize("tokens", [0, 1, 7, 40, 10**4])
def test_cached_tokens_change_no_states(
    name: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fits, is dropped and comes back; sequences end in, before and after the cached."""
    monkeypatch.setattr(prefix_cache, "PATIENCE", 1)
    monkeypatch.setattr(prefix_cache, "MAX_NODES", 150)
    if name == "llama":
        model = tiny("grouped queries", tie_word_embeddings=True)
        config, weights = model.config.to_dict(), model.state_dict()  # type: ignore[operator, union-attr]
        backbone: Llama | TransformersBackbone = Llama(config, weights)
    else:
        model = tiny(name)
        backbone = TransformersBackbone(model)
    heads = 4 if name == "other architecture" else 2
    bytes_per_token = 3 * 2 * heads * 8 * 4  # layers, keys and values, heads, head size, float32
    backbone._cache = PrefixCache(tokens * bytes_per_token)
    forward = CausalForward(backbone, max_tokens=40)
    draw = random.Random(tokens)
    saved = 0
    for _ in range(25):
        sequences = [
            tuple(draw.choices(range(2), k=draw.randint(1, 5)) + draw.choices(range(16), k=3))[
                : draw.randint(1, 8)
            ]
            for _ in range(draw.randint(1, 12))
        ]
        last = [draw.randint(1, min(3, len(sequence))) for sequence in sequences]
        saved += sum(backbone.cached(sequences, last))
        for sequence, n, states in zip(
            sequences, last, forward.states(sequences, last), strict=True
        ):
            expected = alone(model, sequence)[-n:]
            torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-4)
    assert (saved > 0) == (tokens > 0)


@pytest.mark.parametrize("most", [1, 9, 40])
def test_what_padded_sequences_share_does_not_make_passes_larger(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward_module, "MAX_TOKENS", {"cpu": most})
    model = tiny("sliding window")
    sequences = [(*range(7), token) for token in range(12)]
    expected = torch.stack([alone(model, sequence)[-1] for sequence in sequences])
    layers: Any = model.base_model
    with patch.object(layers, "forward", wraps=layers.forward) as passes:
        found = CausalForward(TransformersBackbone(model)).last_states(sequences)
    sizes = [call.args[0].numel() for call in passes.call_args_list]
    assert max(sizes) <= max(most, 8)
    assert sum(sizes) == 12 * 8
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_padded_models_cache_nothing() -> None:
    forward = CausalForward(TransformersBackbone(tiny("sliding window")))
    for _ in range(3):
        forward.last_states(SEQUENCES)
    assert forward._backbone.cached(SEQUENCES, [1] * len(SEQUENCES)) == [0] * len(SEQUENCES)


@pytest.mark.parametrize(
    ("setting", "plain"),
    [
        ({}, True),
        ({"attention_bias": True}, False),
        ({"mlp_bias": True}, False),
        ({"hidden_act": "gelu"}, False),
        ({"tie_word_embeddings": False}, False),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, False),
    ],
)
def test_only_a_plain_llama_is_computed_without_transformers(
    setting: dict[str, Any], plain: bool
) -> None:
    config = LlamaConfig(**{**SIZES, "tie_word_embeddings": True, **setting})
    assert is_plain_llama(config.to_dict()) is plain


def test_other_models_are_no_llama() -> None:
    assert not is_plain_llama(MistralConfig(**SIZES, tie_word_embeddings=True).to_dict())


@pytest.mark.parametrize(
    ("sequences", "lengths"),
    [
        ([(1, 2, 7, 8, 9), (1, 3, 4, 7, 8, 9), (5, 7, 8, 9)], [2, 3, 1]),  # texts, then a prompt
        ([(7, 8, 9, 1, 2, 6), (7, 8, 9, 3, 6), (7, 8, 9, 3, 4, 6)], []),  # a prompt, then texts
        ([(1, 2, 3, 7, 9), (1, 2, 3, 8, 9), (4, 5, 6, 7, 9), (4, 5, 6, 8, 9)], []),  # two prompts
        ([(1, 2, 3)], []),
        ([], []),
    ],
)
def test_what_comes_again_is_before_a_common_ending(
    sequences: list[tuple[int, ...]], lengths: list[int]
) -> None:
    assert without_ending(sequences) == lengths

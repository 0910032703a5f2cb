"""Whether architectures of transformers compute here what they compute by themselves."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf

from feddtpt_flwr.language_model import causal_lm
from feddtpt_flwr.language_model.causal_lm import CausalLM, from_transformers
from feddtpt_flwr.language_model.forward import TransformersBackbone
from feddtpt_flwr.language_model.weights import read_tokenizer

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def llama(tokenizer: Any, **settings: Any) -> Any:
    return hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=len(tokenizer), **(SIZES | settings)))


def granite(tokenizer: Any) -> Any:
    config = hf.GraniteConfig(vocab_size=len(tokenizer), logits_scaling=8.0, **SIZES)
    return hf.GraniteForCausalLM(config)


def cohere(tokenizer: Any) -> Any:
    config = hf.CohereConfig(vocab_size=len(tokenizer), logit_scale=0.0625, **SIZES)
    return hf.CohereForCausalLM(config)


def gemma2(tokenizer: Any) -> Any:
    """With capped logits, and a window that the sequences below do not fit into."""
    config = hf.Gemma2Config(vocab_size=len(tokenizer), sliding_window=4, **SIZES)
    return hf.Gemma2ForCausalLM(config)


def gemma3(tokenizer: Any) -> Any:
    """It reads pictures as well, so that what says of its windows lies deeper."""
    text = {"vocab_size": len(tokenizer), "sliding_window": 4, **SIZES}
    vision = {name: SIZES[name] for name in list(SIZES)[:4]} | {"image_size": 8, "patch_size": 4}
    config = hf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    return hf.Gemma3ForConditionalGeneration(config)


def diff_llama(tokenizer: Any) -> Any:
    """It attends twice in each layer: nothing of it can be kept."""
    settings = {name: value for name, value in SIZES.items() if name != "head_dim"}
    return hf.DiffLlamaForCausalLM(hf.DiffLlamaConfig(vocab_size=len(tokenizer), **settings))


def nemotron(tokenizer: Any) -> Any:
    """Its layers do not pass on what attention is told."""
    return hf.NemotronForCausalLM(hf.NemotronConfig(vocab_size=len(tokenizer), **SIZES))


@pytest.fixture(scope="module")
def tokenizer(embedded_assets: None) -> Any:
    return read_tokenizer("embedded", "float32")


def ready(make: Callable[[Any], Any], tokenizer: Any) -> tuple[Any, CausalLM]:
    torch.manual_seed(0)
    loaded = make(tokenizer).eval()
    for weight in loaded.parameters():  # what is drawn at first hardly looks at the context
        torch.nn.init.normal_(weight, std=0.2) if weight.dim() > 1 else None
    return loaded, from_transformers(loaded, tokenizer)


@pytest.mark.parametrize(
    ("make", "packs"),
    [
        (llama, True),
        (granite, True),
        (cohere, True),
        (gemma2, False),
        (gemma3, False),
        (diff_llama, False),
        (nemotron, False),
    ],
)
def test_logits_are_the_models_own(make: Callable[[Any], Any], packs: bool, tokenizer: Any) -> None:
    loaded, model = ready(make, tokenizer)
    assert isinstance(model.backbone, TransformersBackbone)
    assert model.backbone.packs is packs
    texts = ["A long film about a ship that sinks", "A long film about a dog", "Nothing"]
    sequences = model.encode(texts)
    for _ in range(3):
        logits = model.logits(model.forward.last_states(sequences))
        for row, ids in zip(logits, sequences, strict=True):
            with torch.inference_mode():
                own = loaded(torch.tensor([ids])).logits[0, -1]
            torch.testing.assert_close(row.log_softmax(0), own.log_softmax(0), atol=1e-3, rtol=0)


def test_a_model_that_does_more_is_refused(tokenizer: Any) -> None:
    """Its output layer has a layer of its own before the matrix."""
    settings = {name: value for name, value in SIZES.items() if name != "head_dim"}
    del settings["num_key_value_heads"]
    ids = dict.fromkeys(("pad", "eos", "bos", "cls", "sep"), 0)
    config = hf.ModernBertDecoderConfig(
        vocab_size=len(tokenizer), **settings, **{f"{name}_token_id": i for name, i in ids.items()}
    )
    with pytest.raises(ValueError, match="ModernBertDecoderForCausalLM computes more than its"):
        ready(lambda _: hf.ModernBertDecoderForCausalLM(config), tokenizer)


def test_numbers_that_are_none_are_found_at_once(tokenizer: Any) -> None:
    loaded = llama(tokenizer).eval()
    torch.nn.init.constant_(loaded.model.layers[0].mlp.up_proj.weight, float("nan"))
    with pytest.raises(ValueError, match=r"torch\.float32 the model computes what is no number"):
        from_transformers(loaded, tokenizer)


def test_no_end_of_text_stands_before_an_answer(tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    ends = read_tokenizer("embedded", "float32")
    [start, end] = ends.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    ends.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>",
        special_tokens=[("<|im_start|>", start), ("<|im_end|>", end)],
    )
    assert ends("film")["input_ids"][-1] == end
    model = from_transformers(llama(tokenizer).eval(), ends)
    [plain] = model.encode(["film"], special=False)
    assert model.encode(["film"]) == [(start, *plain)]


def test_types_with_few_digits_may_be_off_by_more() -> None:
    assert causal_lm._tolerance(torch.zeros(0, dtype=torch.float32)) == 0.05
    assert causal_lm._tolerance(torch.zeros(0, dtype=torch.bfloat16)) == causal_lm.COARSE

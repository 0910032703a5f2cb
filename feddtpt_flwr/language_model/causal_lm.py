"""A causal language model as the black box and the infiller use it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feddtpt_flwr.language_model.forward import (
    Backbone,
    CausalForward,
    TransformersBackbone,
    most_tokens,
)
from feddtpt_flwr.language_model.llama import Llama, is_plain_llama
from feddtpt_flwr.language_model.prefix_tree import TokenIds
from feddtpt_flwr.language_model.products import linear
from feddtpt_flwr.language_model.weights import converted, load_causal_lm

if TYPE_CHECKING:
    import torch

PROBES = ("The film was long, and the end of it", "The film was long, but good")
"""What a model of transformers is tried on: they begin alike."""

TOLERANCE = {"float32": 0.05}
"""Most that a log-probability of a likely token may be off, by numeric type, in nats. Where an
architecture does more than is computed here, it is off by several."""

COARSE = 1.0
"""The same of the types with few digits."""

_NOT_FITTING = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What layers raise that take other arguments, or give other results, than they are taken to."""


@dataclass(frozen=True)
class CausalLM:
    """A model's tokenizer, layers, and the matrices at both ends of them.

    Attributes
    ----------
    tokenizer : tokenizers.Tokenizer or transformers.PreTrainedTokenizerBase
        What turns text into token ids.
    end_token : int, optional
        The token that ends a text.
    backbone : Backbone
        The layers.
    embeddings, output_weight : torch.Tensor
        Both of shape ``(vocabulary, hidden size)``.
    output_bias : torch.Tensor, optional
        Shape ``(vocabulary,)``.
    logit_scale : float
        What the products of states and output weights are multiplied by, above 0.
    logit_cap : float
        Where a hyperbolic tangent caps what comes of that; 0 for nowhere.
    context : int, optional
        Most tokens that the model reads, if it says so.
    """

    tokenizer: Any
    end_token: int | None
    backbone: Backbone
    embeddings: "torch.Tensor"
    output_weight: "torch.Tensor"
    output_bias: "torch.Tensor | None" = None
    logit_scale: float = 1.0
    logit_cap: float = 0.0
    context: int | None = None

    @property
    def forward(self) -> CausalForward:
        """Passes of many sequences through the layers."""
        return CausalForward(self.backbone, max_tokens=most_tokens(self.embeddings.device))

    def encode(self, texts: Sequence[str], *, special: bool = True) -> list[TokenIds]:
        """Return the token ids of each text, behind the special tokens that the model expects.

        Some tokenizers also put one behind a text, which here goes on with an answer.
        """
        before = self._beginning if special else ()
        return [(*before, *ids) for ids in self._encode(texts, special=False)]

    def logits(self, states: "torch.Tensor") -> "torch.Tensor":
        """Return the logits after last-layer states, ``(states, vocabulary)``, in float32."""
        logits = linear(states, self.output_weight, self.output_bias).float() * self.logit_scale
        return (logits / self.logit_cap).tanh() * self.logit_cap if self.logit_cap else logits

    @cached_property
    def _beginning(self) -> TokenIds:
        (bare,), (whole,) = (self._encode(["a"], special=special) for special in (False, True))
        starts = range(len(whole) - len(bare) + 1)
        start = next((i for i in starts if whole[i : i + len(bare)] == bare), 0)
        return whole[:start]

    def _encode(self, texts: Sequence[str], *, special: bool) -> list[TokenIds]:
        from tokenizers import Tokenizer

        if isinstance(self.tokenizer, Tokenizer):
            encoded = self.tokenizer.encode_batch(list(texts), add_special_tokens=special)
            return [tuple(item.ids) for item in encoded]
        rows = self.tokenizer(list(texts), add_special_tokens=special)["input_ids"]
        return [tuple(ids) for ids in rows]


@cache
def causal_lm(model: str, device: str, dtype: str) -> CausalLM:
    """Return a model that is ready to compute, the same for all callers of a process.

    Parameters
    ----------
    model, device, dtype : str
        As of `read_causal_lm`.

    Raises
    ------
    ValueError
        If what is computed here is not what the model computes by itself.
    """
    folder = converted(model, dtype)
    if folder and is_plain_llama(json.loads((folder / "config.json").read_text(encoding="utf-8"))):
        return _from_folder(folder, device)
    return from_transformers(*load_causal_lm(model, device, dtype))


def from_transformers(loaded: Any, tokenizer: Any) -> CausalLM:
    """Return a model of transformers as it is used here, tried on a few words.

    Sequences are packed if that gives the model's own numbers, and padded otherwise.

    Raises
    ------
    ValueError
        If neither does.
    """
    config = loaded.config.get_text_config()
    output_layer = loaded.get_output_embeddings()
    probes = [tuple(ids) for ids in tokenizer(list(PROBES), add_special_tokens=False)["input_ids"]]
    # Before its attention is replaced.
    expected = _own_logits(loaded, probes)
    backbone = TransformersBackbone(loaded)
    model = CausalLM(
        tokenizer,
        tokenizer.eos_token_id,
        backbone,
        loaded.get_input_embeddings().weight,
        output_layer.weight,
        getattr(output_layer, "bias", None),
        logit_scale=_scale(config),
        logit_cap=getattr(config, "final_logit_softcapping", None) or 0.0,
        context=getattr(config, "max_position_embeddings", None),
    )
    off = _off_by(model, probes, expected)
    if off > _tolerance(loaded) and backbone.packs:
        backbone.pad()
        off = _off_by(model, probes, expected)
    if off > _tolerance(loaded):
        raise ValueError(
            f"{type(loaded).__name__} computes more than its layers and an output matrix, which is "
            f"all that is computed here: log-probabilities are off by {off:.1f}"
        )
    return model


def _scale(config: Any) -> float:
    """Return what a configuration says that logits are multiplied by (Cohere's, Granite's)."""
    scale, divisor = (getattr(config, name, None) for name in ("logit_scale", "logits_scaling"))
    by = scale if isinstance(scale, (int, float)) else 1.0
    return float(by / divisor if isinstance(divisor, (int, float)) and divisor else by)


def _tolerance(loaded: Any) -> float:
    return TOLERANCE.get(str(loaded.dtype).removeprefix("torch."), COARSE)


def _own_logits(loaded: Any, sequences: Sequence[TokenIds]) -> "torch.Tensor":
    """Return the logits after each sequence as the model computes them by itself.

    Raises
    ------
    ValueError
        If they are no numbers.
    """
    import torch

    with torch.inference_mode():
        rows = [torch.tensor([ids], device=loaded.device) for ids in sequences]
        logits = torch.stack([loaded(row).logits[0, -1].float() for row in rows])
    if not bool(logits.isfinite().all()):
        raise ValueError(f"in {loaded.dtype} the model computes what is no number; set dtype")
    return logits


def _off_by(model: CausalLM, sequences: Sequence[TokenIds], expected: "torch.Tensor") -> float:
    """Return the largest error of the likely tokens' log-probabilities, in nats.

    Three times the same, so that what was kept the first two times is read in the third.
    """
    import torch

    likely = expected.topk(min(20, expected.shape[1])).indices
    right = expected.log_softmax(1).gather(1, likely)
    worst = 0.0
    for _ in range(3):
        try:
            with torch.inference_mode():
                logits = model.logits(model.forward.last_states(sequences))
        except torch.OutOfMemoryError:
            raise
        except _NOT_FITTING:
            return float("inf")
        off = (logits.log_softmax(1).gather(1, likely) - right).abs().max()
        worst = max(worst, float(off)) if bool(off.isfinite()) else float("inf")
    return worst


def _from_folder(folder: Path, device: str) -> CausalLM:
    """Read a folder that `converted` wrote, without transformers."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    layers = Llama.read(folder, device)
    return CausalLM(
        tokenizer,
        tokenizer.token_to_id(settings["eos_token"]),
        layers,
        layers.embeddings,
        layers.embeddings,
        context=config.get("max_position_embeddings"),
    )

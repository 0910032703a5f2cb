"""Products of states and weights, by the faster of the two libraries that torch has for them."""

import platform
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_CPUINFO = Path("/proc/cpuinfo")


def linear(
    states: "torch.Tensor", weight: "torch.Tensor", bias: "torch.Tensor | None" = None
) -> "torch.Tensor":
    """Return ``states @ weight.T + bias``, as torch's function of this name.

    On a processor torch leaves this to MKL if the numbers are of float32, and MKL takes twice as
    long as oneDNN on AMD's: 200 instead of 480 GFLOP/s for 512 rows and SmolLM2-135M's layers, on
    two Zen 5 cores (torch 2.13, 2026-11-27). The two round in another order.

    Parameters
    ----------
    states : torch.Tensor
        Shape ``(..., d)``.
    weight : torch.Tensor
        Shape ``(e, d)``.
    bias : torch.Tensor, optional
        Shape ``(e,)``.

    Returns
    -------
    torch.Tensor
        Shape ``(..., e)``.
    """
    import torch

    usual = states.device.type != "cpu" or states.dtype != torch.float32
    if usual or not _prefers_onednn():
        return torch.nn.functional.linear(states, weight, bias)
    if not torch.is_grad_enabled():
        return _onednn(states, weight, bias)
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return torch.nn.functional.linear(states, weight, bias)
    product: torch.Tensor = _frozen()(states, weight, bias)
    return product


def use_faster_products(model: "torch.nn.Module") -> None:
    """Let all linear layers of a model compute by `linear`, but those that somebody has changed."""
    import torch

    for module in model.modules():
        if type(module) is torch.nn.Linear and "forward" not in vars(module):
            module.forward = partial(_forward, module)  # type: ignore[method-assign]


def _onednn(
    states: "torch.Tensor", weight: "torch.Tensor", bias: "torch.Tensor | None" = None
) -> "torch.Tensor":
    """Compute by oneDNN, as torch's own compiler does, with weights as they are.

    Processes share the pages of a file that is mapped into memory, and would not share weights that
    were packed for oneDNN.
    """
    import torch

    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
    return product


@cache
def _frozen() -> Any:
    """Return the product by weights that are not trained, for states that have a gradient."""
    import torch

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, states: Any, weight: Any, bias: Any) -> Any:
            ctx.weight = weight
            return _onednn(states, weight, bias)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, gradient: Any) -> Any:
            return _onednn(gradient.contiguous(), ctx.weight.t()), None, None

    return Product.apply


def _forward(layer: Any, input: "torch.Tensor") -> "torch.Tensor":  # noqa: A002 (torch's name)
    return linear(input, layer.weight, layer.bias)


@cache
def _prefers_onednn() -> bool:
    """Return whether the processor is AMD's and this torch has what is needed."""
    import torch

    try:
        told = _CPUINFO.read_text(encoding="utf-8")
    except OSError:  # no Linux
        told = platform.processor()
    onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(
        "AuthenticAMD" in told and onednn and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )

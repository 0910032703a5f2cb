"""Products by either of torch's two libraries."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from feddtpt_flwr.language_model import products
from feddtpt_flwr.language_model.products import linear, use_faster_products

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
    reason="this torch has no oneDNN",
)


@pytest.fixture(params=["AuthenticAMD", "GenuineIntel"])
def processor(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Whose processor it is taken for; both libraries compute on either."""
    file = tmp_path / "cpuinfo"
    file.write_text(f"vendor_id\t: {request.param}\n", encoding="utf-8")
    monkeypatch.setattr(products, "_CPUINFO", file)
    products._prefers_onednn.cache_clear()
    yield request.param
    products._prefers_onednn.cache_clear()


@pytest.mark.parametrize("shape", [(1, 8), (5, 8), (2, 3, 8), (0, 8)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_product_is_the_same(shape: tuple[int, ...], with_bias: bool, processor: str) -> None:
    generator = torch.Generator().manual_seed(0)
    states, weight, bias = (
        torch.randn(size, generator=generator) for size in (shape, (6, 8), (6,))
    )
    expected = torch.nn.functional.linear(states, weight, bias if with_bias else None)
    with torch.inference_mode():
        found = linear(states, weight, bias if with_bias else None)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("frozen", [True, False])
def test_where_gradients_are_wanted_there_are_some(processor: str, frozen: bool) -> None:
    """As where an adapter is trained on a frozen model, or the model itself."""
    plain, ours = torch.nn.Linear(8, 6), torch.nn.Linear(8, 6)
    ours.load_state_dict(plain.state_dict())
    for layer in (plain, ours):
        layer.requires_grad_(not frozen)
    use_faster_products(torch.nn.Sequential(ours))
    gradients = []
    for layer in (plain, ours):
        states = torch.linspace(-1, 1, 24).reshape(3, 8).requires_grad_()
        layer(states).square().sum().backward()
        gradients.append([states.grad, layer.weight.grad, layer.bias.grad])
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, atol=1e-5)
    assert (gradients[1][1] is None) == frozen


def test_a_layer_that_somebody_has_changed_stays_as_it_is() -> None:
    layer = torch.nn.Linear(8, 6)
    layer.forward = lambda states: states  # type: ignore[assignment, method-assign]
    use_faster_products(torch.nn.Sequential(layer))
    states = torch.ones(3, 8)
    assert layer(states) is states


@needs_onednn
def test_only_the_slower_library_is_replaced(
    processor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, ...]] = []

    def watched(states: torch.Tensor, *arguments: object) -> torch.Tensor:
        asked.append(tuple(states.shape))
        return torch.zeros(1)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", watched)
    weight = torch.ones(6, 8)
    with torch.inference_mode():
        linear(torch.ones(3, 8), weight)
        linear(torch.ones(4, 8).bfloat16(), weight.bfloat16())
    linear(torch.ones(5, 8), weight.requires_grad_())
    assert asked == ([(3, 8)] if processor == "AuthenticAMD" else [])


@needs_onednn
def test_another_system_is_asked_for_its_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_CPUINFO", tmp_path / "none")
    for told, preferred in {
        "AMD64 Family 25 Model 97 Stepping 2, AuthenticAMD": True,
        "Intel64 Family 6 Model 158 Stepping 10, GenuineIntel": False,
        "arm": False,
    }.items():
        monkeypatch.setattr("platform.processor", lambda told=told: told)
        products._prefers_onednn.cache_clear()
        assert products._prefers_onednn() is preferred
    products._prefers_onednn.cache_clear()

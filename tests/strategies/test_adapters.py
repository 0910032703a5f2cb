import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.adapters import (
    Adapter,
    from_record,
    mix,
    num_bytes,
    read_upload,
    stack_layers,
    to_record,
    unstack_layers,
)

ADAPTER: Adapter = {
    "a": np.array([[0.1, -2.5], [3e-5, 0.0]], dtype=np.float32),
    "b": np.array([1e-30, 7.25, -1.0], dtype=np.float32),
}


def test_float32_travels_unchanged() -> None:
    received = from_record(to_record(ADAPTER, "float32"), "float32")
    assert received.keys() == ADAPTER.keys()
    for name, array in ADAPTER.items():
        np.testing.assert_array_equal(received[name], array)


@settings(deadline=None)  # the first call imports torch
@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1))
def test_bfloat16_is_the_nearest_as_torch_rounds(numbers: list[float]) -> None:
    torch = pytest.importorskip("torch")
    array = np.array(numbers, dtype=np.float32)
    received = from_record(to_record({"a": array}, "bfloat16"), "bfloat16")["a"]
    rounded = torch.from_numpy(array).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(received, rounded)


def test_bfloat16_takes_half_the_bytes() -> None:
    large = {"a": np.ones((64, 64), dtype=np.float32)}
    half, whole = (num_bytes(to_record(large, dtype)) for dtype in ("bfloat16", "float32"))
    assert whole - half == 64 * 64 * 2


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"a": np.zeros((2, 2), np.uint16)}, "1 arrays are missing and 0 have unknown names"),
        (
            {"a": np.zeros((2, 2), np.uint16), "c": np.zeros(3, np.uint16)},
            "1 arrays are missing and 1 have unknown names",
        ),
        ({"a": np.zeros((2, 3), np.uint16), "b": np.zeros(3, np.uint16)}, r"shape \(2, 3\)"),
        ({"a": np.zeros((2, 2), np.float32), "b": np.zeros(3, np.uint16)}, "type float32"),
        ({"a": np.zeros((2, 2), np.uint16), "b": np.full(3, 0x7FC0, np.uint16)}, "not finite"),
        ({"a": np.zeros((2, 2), np.uint16), "b": np.full(3, 0x7F80, np.uint16)}, "not finite"),
    ],
)
def test_what_does_not_fit_is_refused(record: dict[str, np.ndarray], words: str) -> None:
    arrays = ArrayRecord({name: Array(array) for name, array in record.items()})
    with pytest.raises(ValueError, match=words):
        read_upload(arrays, "bfloat16", ADAPTER)


def test_a_type_that_is_not_what_it_says_is_refused() -> None:
    arrays = to_record(ADAPTER, "bfloat16")
    other = Array(np.zeros(3, dtype=np.float64))
    arrays["b"] = Array("uint16", (3,), other.stype, other.data)
    with pytest.raises(ValueError, match="'b' is of type float64, bfloat16 is needed"):
        from_record(arrays, "bfloat16")


def test_an_array_that_is_not_what_it_says_is_refused() -> None:
    arrays = to_record(ADAPTER, "float32")
    other = Array(np.zeros(5, dtype=np.float32))
    arrays["b"] = Array("float32", (3,), other.stype, other.data)
    with pytest.raises(ValueError, match=r"'b' has shape \(5,\)"):
        read_upload(arrays, "float32", ADAPTER)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_mixing_is_the_weighted_sum(beta: float) -> None:
    other = {name: array + 1 for name, array in ADAPTER.items()}
    mixed = mix(beta, other, ADAPTER)
    for name, array in ADAPTER.items():
        np.testing.assert_allclose(mixed[name], array + np.float32(beta), rtol=1e-6)
        assert mixed[name].dtype == np.float32


def test_with_beta_0_nothing_of_the_local_adapter_is_left() -> None:
    unusable = {name: np.full_like(array, np.nan) for name, array in ADAPTER.items()}
    for name, array in mix(0.0, unusable, ADAPTER).items():
        np.testing.assert_array_equal(array, ADAPTER[name])


def layered(*shapes: tuple[int, ...], first: int = 0) -> Adapter:
    """An array for each layer, full of 100 times the layer's number."""
    return {
        f"model.layers.{i}.q_proj.weight": np.full(shape, 100 * i, dtype=np.float32)
        for i, shape in enumerate(shapes, first)
    }


def test_the_same_weights_of_all_layers_travel_as_one_array() -> None:
    adapter = layered(*[(2, 3)] * 12) | {"head.weight": np.ones(2, dtype=np.float32)}
    stacked = stack_layers(adapter)
    assert {name: array.shape for name, array in stacked.items()} == {
        "model.layers.*.q_proj.weight": (12, 2, 3),
        "head.weight": (2,),
    }
    in_order = stacked["model.layers.*.q_proj.weight"][:, 0, 0]
    np.testing.assert_array_equal(in_order, range(0, 1200, 100))
    received = unstack_layers(from_record(to_record(stacked, "float32"), "float32"))
    assert received.keys() == adapter.keys()
    for name, array in adapter.items():
        np.testing.assert_array_equal(received[name], array)


@pytest.mark.parametrize(
    "adapter",
    [layered((2, 3), (2, 4)), layered((2, 3), (2, 3), first=1), ADAPTER],
    ids=["other shapes", "not every layer", "no layers"],
)
def test_what_layers_do_not_share_stays_as_it_is(adapter: Adapter) -> None:
    assert stack_layers(adapter) == adapter == unstack_layers(adapter)


@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000, 0x7F800001])
def test_what_is_no_number_stays_none_in_bfloat16(bits: int) -> None:
    """The first is what a GPU makes of 0 / 0; rounded like a number it would become 0."""
    array = np.array([bits], np.uint32).view(np.float32)
    with pytest.raises(ValueError, match="not finite"):
        from_record(to_record({"a": array}, "bfloat16"), "bfloat16")

"""Adapter weights as they travel: named arrays in float32, or in bfloat16 at half the size."""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

Adapter = dict[str, NDArray[np.float32]]
"""The weights of all adapters of a model, by their names in it."""

WireDtype = Literal["bfloat16", "float32"]

# NumPy has no bfloat16: its bits, which are the upper half of a float32's, travel as integers.
_NUMPY_DTYPES: dict[WireDtype, np.dtype[Any]] = {
    "bfloat16": np.dtype(np.uint16),
    "float32": np.dtype(np.float32),
}


_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")
_EVERY_LAYER = "*"


def stack_layers(adapter: Adapter) -> Adapter:
    """Return an adapter with one array for the same weights of all layers.

    Flower sends, stores and fetches every array by itself: two adapters of 120 arrays that reach
    a SuperLink together can lock its database for longer than it waits. What averages arrays
    number by number averages these alike.

    Parameters
    ----------
    adapter : Adapter
        PEFT's names, such as ``layers.0.q_proj.lora_A.weight``.

    Returns
    -------
    Adapter
        ``layers.*.q_proj.lora_A.weight``, of shape (layers, ...); as they are those that not all
        layers from 0 on have, or not in one shape.
    """
    groups: defaultdict[str, dict[int, str]] = defaultdict(dict)
    for name in adapter:
        if layer := _LAYER.search(name):
            alike = name[: layer.start()] + _EVERY_LAYER + name[layer.end() :]
            groups[alike][int(layer[0])] = name
    stacked = dict(adapter)
    for alike, names in groups.items():
        shapes = {adapter[name].shape for name in names.values()}
        if names.keys() == set(range(len(names))) and len(shapes) == 1:
            stacked[alike] = np.stack([stacked.pop(names[i]) for i in range(len(names))])
    return stacked


def unstack_layers(adapter: Adapter) -> Adapter:
    """Return the adapter that `stack_layers` was given."""
    unstacked: Adapter = {}
    for name, array in adapter.items():
        if _EVERY_LAYER in name:
            layers = enumerate(array)
            unstacked |= {name.replace(_EVERY_LAYER, str(i), 1): layer for i, layer in layers}
        else:
            unstacked[name] = array
    return unstacked


def to_record(adapter: Mapping[str, NDArray[np.float32]], dtype: WireDtype) -> ArrayRecord:
    """Return an adapter as Flower's record, its numbers rounded to ``dtype`` (to nearest even)."""
    return ArrayRecord({name: Array(_encode(array, dtype)) for name, array in adapter.items()})


def from_record(record: ArrayRecord, dtype: WireDtype) -> Adapter:
    """Return the adapter in a record that `to_record` made.

    Raises
    ------
    ValueError
        If an array is of another type, or holds numbers that are not finite.
    """
    adapter = {}
    for name, array in record.items():
        # Of what it holds: what an array says of itself need not be true.
        values = array.numpy()
        if values.dtype != _NUMPY_DTYPES[dtype]:
            raise ValueError(f"{name!r} is of type {values.dtype}, {dtype} is needed")
        adapter[name] = _decode(values, dtype)
        if not np.isfinite(adapter[name]).all():
            raise ValueError(f"{name!r} holds numbers that are not finite")
    return adapter


def read_upload(
    record: ArrayRecord, dtype: WireDtype, like: Mapping[str, NDArray[np.float32]]
) -> Adapter:
    """Return the adapter in a record that somebody else made, after checking it.

    Parameters
    ----------
    record : ArrayRecord
        What was sent.
    dtype : {"bfloat16", "float32"}
        As `to_record` was to write it.
    like : Mapping[str, NDArray[np.float32]]
        An adapter with the names and shapes that are needed.

    Raises
    ------
    ValueError
        If names, shapes or types differ, or a number is not finite.
    """
    if record.keys() != like.keys():
        missing, strange = len(like.keys() - record.keys()), len(record.keys() - like.keys())
        raise ValueError(f"{missing} arrays are missing and {strange} have unknown names")
    for name, array in record.items():
        if tuple(array.shape) != like[name].shape:
            raise ValueError(f"{name!r} has shape {tuple(array.shape)}, not {like[name].shape}")
    adapter = from_record(record, dtype)
    # What an array says of itself need not be what it holds.
    for name, values in adapter.items():
        if values.shape != like[name].shape:
            raise ValueError(f"{name!r} has shape {values.shape}, not {like[name].shape}")
    return adapter


def mix(beta: float, local: Adapter, synthetic: Adapter) -> Adapter:
    """Return ``beta * local + (1 - beta) * synthetic`` (FedPIT's local aggregation sharing).

    Parameters
    ----------
    beta : float
        In [0, 1]: 1 is the local adapter, 0 the synthetic one.
    local, synthetic : Adapter
        Of the same names and shapes.
    """
    share = np.float32(beta)
    # The ends exactly: nothing of the other adapter may be left, not even its rounding.
    if beta in (0, 1):
        return dict(local if beta else synthetic)
    return {name: share * local[name] + (1 - share) * synthetic[name] for name in local}


def num_bytes(record: ArrayRecord) -> int:
    """Return the size of all arrays of a record as they travel, in bytes."""
    return sum(len(array.data) for array in record.values())


def _encode(array: NDArray[np.float32], dtype: WireDtype) -> NDArray[Any]:
    values = np.ascontiguousarray(array, dtype=np.float32)
    if dtype == "float32":
        return values
    bits = values.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    # Rounding carries some that are not numbers over to zero, where nobody would reject them.
    rounded = np.where(np.isnan(values), np.uint32(0x7FC00000), rounded)
    return np.asarray(rounded >> np.uint32(16)).astype(np.uint16)


def _decode(array: NDArray[Any], dtype: WireDtype) -> NDArray[np.float32]:
    if dtype == "float32":
        return array.astype(np.float32)
    return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)

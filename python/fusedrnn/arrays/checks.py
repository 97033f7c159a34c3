"""Checks of arrays: every error names the argument, what was wanted and what came, before memory is touched."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusedrnn._core import sentences
from fusedrnn.arrays.device import Device, owner_of
from fusedrnn.arrays.dtypes import FLOATS, is_float

_COPY = "a contiguous copy"


def require_array(device: Device, value: Any, name: str, dtype: np.dtype[Any], *, of_layer: bool = False) -> Any:
    """Return `value` if it is an array of this dtype on this device, else raise a TypeError.

    `of_layer`: an input of a layer, which could have been made for the array's dtype.
    """
    owner = owner_of(value)
    if owner is None:
        kind = type(value)
        shown = f"{kind.__module__}.{kind.__name__}" if kind.__module__ != "builtins" else kind.__name__
        raise TypeError(f"{name} must be a {device.arrays.kind_name} on {device.name}, not {shown}")
    if owner.index != device.index:
        raise TypeError(f"{name} must be on {device.name}, not on {owner.name}; nothing is copied between devices")
    if value.dtype != dtype:
        remedy = ""
        if of_layer and is_float(dtype) and value.dtype.name in FLOATS:
            remedy = f'; pass {name}.astype({dtype.name!r}), or make the layer with dtype="{value.dtype.name}"'
        raise TypeError(sentences["dtype"].format(name, dtype, value.dtype, remedy))
    return value


def require_float(array: Any, name: str) -> None:
    """Raise a TypeError unless the engine computes in the array's dtype."""
    if array.dtype.name not in FLOATS:
        raise TypeError(sentences["dtype"].format(name, " or ".join(FLOATS), array.dtype, ""))


def require_shape(array: Any, name: str, shape: tuple[int, ...]) -> None:
    """Raise a ValueError unless the array has this shape."""
    if tuple(array.shape) != tuple(shape):
        raise ValueError(sentences["shape"].format(name, tuple(shape), tuple(array.shape)))


def require_contiguous(array: Any, name: str) -> None:
    """Raise a ValueError unless the array is C-contiguous."""
    if not array.flags.c_contiguous:
        raise ValueError(sentences["contiguous"].format(name, _COPY))


def require_unit_stride(array: Any, name: str) -> None:
    """Raise a ValueError unless the last axis' elements are neighbours, and strides and address whole elements."""
    size = array.dtype.itemsize
    if array.size and array.shape[-1] > 1 and array.strides[-1] != size:
        raise ValueError(sentences["unit_stride"].format(name, size, array.strides[-1], _COPY))
    if any(step % size for step, extent in zip(array.strides, array.shape, strict=True) if extent > 1):
        raise ValueError(sentences["whole_strides"].format(name, _COPY))


def require_writable(array: Any, name: str) -> None:
    """Raise a ValueError where an array cannot be written, or two of its elements share memory."""
    if not getattr(array.flags, "writeable", True):
        raise ValueError(sentences["writable"].format(name))
    extent = array.dtype.itemsize
    for distance, size in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if array.size and distance < extent:
            raise ValueError(sentences["overlapping"].format(name))
        extent += distance * (size - 1)


def bounds(address: int, array: Any) -> tuple[int, int]:
    """First byte of an array's memory and the one past its last, for the address of its first element."""
    if array.size == 0:
        return 0, 0
    if array.flags.c_contiguous:
        return address, address + int(array.nbytes)
    reach = [(n - 1) * s for n, s in zip(array.shape, array.strides, strict=True)]
    low, high = sum(r for r in reach if r < 0), sum(r for r in reach if r > 0)
    return address + low, address + high + int(array.dtype.itemsize)


def require_disjoint(device: Device, array: Any, name: str, other: Any, other_name: str) -> None:
    """Raise a ValueError where the spans of two arrays' memory overlap."""
    (a, a_end), (b, b_end) = (bounds(device.address(each), each) for each in (array, other))
    if a < b_end and b < a_end:
        raise ValueError(sentences["shared"].format(name, other_name))


def integers(device: Device, value: Any, name: str, shape: tuple[int, ...]) -> Any:
    """A device array of integers as int64, itself where it is that already."""
    if value.dtype.kind not in "iu":
        raise TypeError(f"{name} must be an array of integers, not of {value.dtype}")
    require_array(device, value, name, value.dtype)
    require_shape(value, name, shape)
    if value.dtype == np.int64 and value.flags.c_contiguous:
        return value
    if device.capturing():
        raise ValueError(f"{name} must be a contiguous array of int64 while a graph is captured, not of {value.dtype}")
    with device.on():
        return value.astype(np.int64)

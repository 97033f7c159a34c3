"""Calls of operations on a device: checks of their arrays, their workspace."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from fusedrnn.arrays.checks import require_array, require_contiguous, require_float, require_shape
from fusedrnn.arrays.device import Device, owner_of
from fusedrnn.arrays.dtypes import accumulator


class Space(Protocol):
    """A device's memory and module; `Device`, or of torch's tensors."""

    native: Any
    index: int

    def stream(self) -> int:
        """The current stream."""

    def empty(self, shape: Any, dtype: Any) -> Any:
        """A new contiguous array."""

    def address(self, array: Any) -> int:
        """Where its first element lies; 0 for None and for an array without elements."""


def run(space: Space, call: Any, way: str) -> None:
    """Run a call, 'forward' or 'backward', with a workspace of its own."""
    workspace = space.empty((call.bytes(),), "uint8")
    getattr(call, way)(space.index, space.stream(), space.address(workspace))


def require_no_graph(device: Device, name: str, function: str) -> None:
    """Refuse a call that allocates while a graph is captured."""
    if device.capturing():
        raise ValueError(f"{name} must not be used while a graph is captured: {function} allocates its memory itself")


def require_planes(array: Any, name: str, height: str, width: str) -> None:
    """Check an array (B, C, ., .) of a device, which has at least one element along its last axes."""
    require_float(array, name)
    if array.ndim != 4 or 0 in array.shape[2:]:
        wanted = f"(B, C, {height}, {width}) with the last two at least 1"
        raise ValueError(f"{name} must have shape {wanted}, not {tuple(array.shape)}")
    require_contiguous(array, name)


def require_same(device: Device, array: Any, name: str, shape: tuple[Any, ...], dtype: Any) -> None:
    """Check a contiguous array of this shape and dtype."""
    require_array(device, array, name, dtype)
    require_shape(array, name, shape)
    require_contiguous(array, name)


def wide_or_same(array: Any, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that an array must have which may be float32 where others, of `dtype`, have 16 bits."""
    sums = accumulator(dtype)
    return sums if owner_of(array) is not None and array.dtype == sums else dtype

"""Arrays of the host: NumPy's, and what can be read as one of them."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np

from fusedrnn.gradients import Array


def require_unmasked(array: Any, name: str) -> None:
    """Refuse a masked array, whose mask would be ignored, by a TypeError that names it."""
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} must be an array without a mask, not {type(array).__name__}")


def as_array(value: Any, name: str) -> Array:
    """`value` as an array, without a conversion: NumPy's own, or through ``__dlpack__`` or ``__array__``."""
    if isinstance(value, np.ndarray):
        require_unmasked(value, name)
        return value
    if not (hasattr(value, "__dlpack__") or hasattr(value, "__array__")):
        raise TypeError(f"{name} must be an array, or have __dlpack__ or __array__; it is {type(value).__name__}")
    try:
        # DLPack's bfloat16 is not NumPy's; an __array__ may give that of ml_dtypes.
        narrow = str(getattr(value, "dtype", None)) == "bfloat16" and hasattr(value, "__array__")
        return np.from_dlpack(value) if hasattr(value, "__dlpack__") and not narrow else np.asarray(value)
    except Exception as error:
        raise ValueError(f"{name} cannot be read as an array; detach it and move it to the CPU: {error}") from error


class Host:
    """The host's memory, where a copy to the host is the array itself."""

    name = "cpu"

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """A new array that begins at a cache line, so that no load of a vector from it crosses into the next line."""
        dtype = np.dtype(dtype)
        size, line = math.prod(shape) * dtype.itemsize, 64
        memory = np.empty(size + line, np.uint8)
        first = -memory.ctypes.data % line
        array: Array = memory[first : first + size].view(dtype).reshape(shape)
        return array

    def from_host(self, array: Array) -> Array:
        """The array itself."""
        return array

    def to_host(self, array: Any) -> Array:
        """The array itself."""
        host: Array = array
        return host

    def read(self, value: Any, name: str) -> Array:
        """A caller's value as a host array; TypeError or ValueError names it."""
        return as_array(value, name)

    def assign(self, array: Any, values: Any) -> None:
        """Write values into an array."""
        array[...] = values

    def on(self) -> contextlib.AbstractContextManager[Any]:
        """Nothing has to be made current."""
        return contextlib.nullcontext()

    def capturing(self) -> bool:
        """No graph is captured here."""
        return False


HOST = Host()

"""CUDA devices: the one module that knows CuPy, and what must be installed for it.

Everything else of the CUDA engine takes its arrays from here, so that tests can replace CuPy by NumPy and a build of
the engine for the host.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from typing import Any, Protocol

import numpy as np

from fusedrnn.arrays.host import as_array
from fusedrnn.native import INSTALL, Unavailable, load_native, open_blas


class Arrays(Protocol):
    """An array library and the compiled engine for its memory."""

    kind: type
    """Class of its arrays."""
    kind_name: str
    native: Any
    """The compiled module."""

    def count(self) -> int:
        """Devices there are."""

    def describe(self, index: int) -> str:
        """A device in words."""

    def current(self) -> int:
        """The current device."""

    def index_of(self, array: Any) -> int:
        """The device an array lies on."""

    def address(self, array: Any) -> int:
        """Where its first element lies."""

    def on(self, index: int) -> contextlib.AbstractContextManager[Any]:
        """Make a device the current one."""

    def stream(self) -> int:
        """The current device's current stream."""

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """A new C-contiguous array on the current device."""

    def from_host(self, array: np.ndarray[Any, Any]) -> Any:
        """A copy on the current device."""

    def to_host(self, array: Any) -> np.ndarray[Any, Any]:
        """A copy on the host; waits for the device."""

    def assign(self, array: Any, values: np.ndarray[Any, Any]) -> None:
        """Write host values into a contiguous array."""

    def from_dlpack(self, value: Any) -> Any:
        """An array over another library's memory."""


class Cupy:
    """CuPy and the module `_cuda`."""

    kind_name = "cupy.ndarray"

    def __init__(self, cupy: Any, native: Any) -> None:
        self._cupy = cupy
        self.kind = cupy.ndarray
        self.native = native

    def count(self) -> int:
        return int(self._cupy.cuda.runtime.getDeviceCount())

    def describe(self, index: int) -> str:
        properties = self._cupy.cuda.runtime.getDeviceProperties(index)
        name = properties["name"].decode()
        return f"{name}, sm_{properties['major']}{properties['minor']}, CuPy {self._cupy.__version__}"

    def current(self) -> int:
        return int(self._cupy.cuda.runtime.getDevice())

    def index_of(self, array: Any) -> int:
        return int(array.device.id)

    def address(self, array: Any) -> int:
        return int(array.data.ptr)

    def on(self, index: int) -> contextlib.AbstractContextManager[Any]:
        device: contextlib.AbstractContextManager[Any] = self._cupy.cuda.Device(index)
        return device

    def stream(self) -> int:
        return int(self._cupy.cuda.get_current_stream().ptr)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return self._cupy.empty(shape, dtype)

    def from_host(self, array: np.ndarray[Any, Any]) -> Any:
        return self._cupy.asarray(array)

    def to_host(self, array: Any) -> np.ndarray[Any, Any]:
        host: np.ndarray[Any, Any] = self._cupy.asnumpy(array)
        return host

    def assign(self, array: Any, values: np.ndarray[Any, Any]) -> None:
        array.set(np.ascontiguousarray(values, array.dtype))

    def from_dlpack(self, value: Any) -> Any:
        return self._cupy.from_dlpack(value)


_arrays: Arrays | None = None


def arrays() -> Arrays:
    """CuPy and the engine, or `Unavailable` with the first thing that is missing."""
    global _arrays
    if _arrays is None:
        _arrays = _load()
    return _arrays


def _load() -> Cupy:
    native = load_native()
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        raise Unavailable(f"CuPy cannot be imported; {INSTALL} brings it ({error})") from error
    if not cupy.cuda.is_available():
        raise Unavailable("CuPy finds no CUDA device: there is no NVIDIA GPU here, or its driver is missing or too old")
    open_blas(native)
    return Cupy(cupy, native)


def describe() -> str:
    """The first CUDA device in words, or ``none:`` and what is missing."""
    try:
        found = arrays()
    except Unavailable as error:
        return f"none: {error}"
    return f"cuda:0 {found.describe(0)}" + (f" and {found.count() - 1} more" if found.count() > 1 else "")


def parse(name: str) -> int | None:
    """Number of the device that 'cuda' or 'cuda:N' names, None for another name; ValueError if there is none such."""
    prefix, colon, number = name.partition(":")
    if prefix != "cuda" or (colon and not (number.isascii() and number.isdigit() and len(number) < 6)):
        return None
    try:
        found = arrays()
    except Unavailable as error:
        raise ValueError(f"device must be 'cpu' here, not {name!r}: {error}") from error
    index = int(number) if colon else found.current()
    if index >= found.count():
        raise ValueError(f"device must be one of cuda:0 to cuda:{found.count() - 1}, not {name!r}")
    return index


def owner_of(value: Any) -> Device | None:
    """The device of a device array; None for anything else."""
    # Where CuPy has not been imported there are no arrays of it.
    if isinstance(value, np.generic) or (type(value) is np.ndarray) or (_arrays is None and "cupy" not in sys.modules):
        return None
    if _arrays is None and type(value).__module__.partition(".")[0] != "cupy":
        return None
    try:
        found = arrays()
    except Unavailable as error:
        raise ValueError(f"arrays on a CUDA device cannot be used here: {error}") from error
    return Device(found, found.index_of(value)) if isinstance(value, found.kind) else None


class Device:
    """One device: allocates, gives addresses and runs calls on its current stream."""

    def __init__(self, found: Arrays, index: int) -> None:
        self.arrays = found
        self.native = found.native
        self.index = index
        self.name = f"cuda:{index}"

    def on(self) -> contextlib.AbstractContextManager[Any]:
        """Make it the current device."""
        return self.arrays.on(self.index)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """A new C-contiguous array; what it holds is undefined."""
        with self.on():
            return self.arrays.empty(tuple(shape), dtype)

    def memory(self, count: int) -> Any:
        """So many bytes."""
        return self.empty((count,), np.uint8)

    def from_host(self, array: np.ndarray[Any, Any]) -> Any:
        """A copy of a host array."""
        with self.on():
            return self.arrays.from_host(array)

    def to_host(self, array: Any) -> np.ndarray[Any, Any]:
        """A copy on the host."""
        with self.on():
            return self.arrays.to_host(array)

    def read(self, value: Any, name: str) -> np.ndarray[Any, Any]:
        """A caller's value, wherever it lies, as a host array; TypeError or ValueError names it."""
        elsewhere = getattr(value, "__dlpack_device__", lambda: (1, 0))()[0] == 2 and owner_of(value) is None
        if elsewhere:
            value = self.arrays.from_dlpack(value)
        owner = owner_of(value)
        return as_array(value, name) if owner is None else owner.to_host(value)

    def assign(self, array: Any, values: np.ndarray[Any, Any]) -> None:
        """Write host values into a contiguous array."""
        with self.on():
            self.arrays.assign(array, values)

    def address(self, array: Any) -> int:
        """Where an array's first element lies; 0 for None and for an array without elements."""
        return 0 if array is None or array.size == 0 else self.arrays.address(array)

    def stream(self) -> int:
        """Its current stream."""
        with self.on():
            return self.arrays.stream()

    def capturing(self) -> bool:
        """Whether a graph is captured from its current stream."""
        return bool(self.native.capturing(self.index, self.stream()))

"""CuPy's own arrays through the device layer where there is no GPU: over host memory, with the host's engine.

CuPy makes arrays, views and dtypes without a device as long as nothing is launched or copied; that is all the Python
layer asks of them. What does need a device (streams, copies) is replaced.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fusedrnn as fr
from fusedrnn.arrays import device as devices

cupy = pytest.importorskip("cupy")
pytest.importorskip("ml_dtypes")


class CupyOnTheHost(devices.Cupy):
    """`Cupy` but for what needs a device."""

    def count(self) -> int:
        return 1

    def current(self) -> int:
        return 0

    def on(self, index: int) -> Any:
        return contextlib.nullcontext()

    def stream(self) -> int:
        return 0

    def from_host(self, array: np.ndarray) -> Any:
        made = self.empty(array.shape, array.dtype)
        self.assign(made, array)
        return made

    def to_host(self, array: Any) -> np.ndarray:
        data = np.frombuffer(ctypes.string_at(self.address(array), array.nbytes), np.uint8)
        return data.view(array.dtype).reshape(array.shape).copy()

    def assign(self, array: Any, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values, array.dtype)
        ctypes.memmove(self.address(array), values.ctypes.data, values.nbytes)


def allocate(size: int) -> Any:
    """Host memory as CuPy's allocators give it."""
    buffer = ctypes.create_string_buffer(size + 256)
    address = -(-ctypes.addressof(buffer) // 256) * 256
    return cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(address, size, buffer, 0), 0)


@pytest.fixture
def arrays(cuda_host_module: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[CupyOnTheHost]:
    found = CupyOnTheHost(cupy, cuda_host_module)
    monkeypatch.setattr(devices, "_arrays", found)
    before = cupy.cuda.get_allocator()
    cupy.cuda.set_allocator(allocate)
    try:
        yield found
    finally:
        cupy.cuda.set_allocator(before)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_calls_take_and_return_cupy_arrays(arrays: CupyOnTheHost, dtype: str, rng: np.random.Generator) -> None:
    layer = fr.LSTM(5, 7, 2, bidirectional=True, dtype=dtype, device="cuda", seed=0)
    assert all(type(array) is cupy.ndarray for array in layer.parameters.values())
    host = rng.standard_normal((4, 3, 5)).astype(layer.dtype)
    x = arrays.from_host(host)
    y, (_, c), tape = layer.forward(x, lengths=[4, 2, 0])
    grads = layer.backward(tape, y)
    assert y.dtype == grads.x.dtype == layer.dtype
    assert c.dtype == (np.float32 if layer.dtype.itemsize == 2 else layer.dtype)
    # A view with other strides reads the same numbers; a buffer is written in place.
    turned = fr.LSTM(5, 7, 2, bidirectional=True, batch_first=True, dtype=dtype, device="cuda", seed=0)
    flipped = arrays.from_host(np.ascontiguousarray(host.swapaxes(0, 1))).swapaxes(0, 1)
    out = cupy.empty((4, 3, 14), layer.dtype)
    assert layer(flipped, lengths=[4, 2, 0], out=out)[0] is out
    np.testing.assert_array_equal(arrays.to_host(out), arrays.to_host(y))
    other = turned(x.swapaxes(0, 1), lengths=[4, 2, 0])[0]
    np.testing.assert_array_equal(arrays.to_host(other).swapaxes(0, 1), arrays.to_host(y))
    norm = fr.clip_grad_norm(grads, 1.0)
    assert norm.shape == () and np.isfinite(arrays.to_host(norm))
    weight = arrays.from_host(rng.standard_normal((9, 14)).astype(layer.dtype))
    targets = arrays.from_host(rng.integers(0, 9, (4, 3)))
    held = fr.readout_buffers(y, weight, None)
    loss, _ = fr.linear_cross_entropy_forward(y, weight, None, targets, out=held)
    assert type(loss) is cupy.ndarray and loss.dtype == c.dtype and np.isfinite(arrays.to_host(loss))


def test_errors_name_cupys_arrays(arrays: CupyOnTheHost) -> None:
    layer = fr.GRU(6, 6, device="cuda")
    x = cupy.empty((4, 3, 6), np.float32)
    for call, error, words in (
        (lambda: layer(np.zeros((4, 3, 6), np.float32)), TypeError, "x must be a cupy.ndarray on cuda:0, not numpy"),
        (lambda: layer(cupy.empty((4, 3, 6), np.float64)), TypeError, "x must be an array of float32, not of float64"),
        (lambda: layer(cupy.empty((4, 3, 12), np.float32)[..., ::2]), ValueError, "x must have elements next to"),
        (lambda: layer(x, out=x), ValueError, "out must not share memory with x"),
        (lambda: fr.GRU(6, 6)(x), TypeError, "x must be a numpy.ndarray"),
    ):
        with pytest.raises(error, match=words):
            call()

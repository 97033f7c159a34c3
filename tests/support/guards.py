"""Poisoned arrays with guard bands round them, and a pool full of nan."""

from __future__ import annotations

from typing import Any

import numpy as np
from bitwise import assert_same
from cases import Inputs
from oracles import as_tuple

GUARD = 5


def poison(shape: Any, dtype: Any) -> np.ndarray:
    """An array of nans with a payload that no computation leaves behind."""
    size = np.dtype(dtype).itemsize
    return np.full(shape, {2: -0x21, 4: -0x2152, 8: -0x215241}[size], f"i{size}").view(dtype)


def guarded(shape: tuple[int, ...], dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """A poisoned view of `shape`, and the buffer around it: guard bands before, after and between its rows."""
    buffer = poison([size + 2 * GUARD for size in shape], dtype)
    return buffer, buffer[tuple(slice(GUARD, -GUARD) for _ in shape)]


def assert_guards_untouched(buffer: np.ndarray, view: np.ndarray) -> None:
    outside = np.ones(buffer.shape, bool)
    outside[tuple(slice(GUARD, -GUARD) for _ in view.shape)] = False
    assert_same(buffer[outside], poison(buffer.shape, buffer.dtype)[outside], "guard band")


def guarded_gradients(layer: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Zero gradients, each inside a poisoned buffer."""
    buffers, gradients = {}, {}
    for name, parameter in layer.parameters.items():
        buffers[name] = poison(parameter.size + 2 * GUARD, parameter.dtype)
        gradients[name] = buffers[name][GUARD:-GUARD].reshape(parameter.shape)
        gradients[name][...] = 0
    return buffers, gradients


def spoil_buffers(layer: Any, inputs: Inputs) -> None:
    """Leave nan in every buffer that the pool will hand out again: workspaces, tapes and results of this shape."""
    nan = np.full_like(inputs.x, np.nan)
    y, state, tape = layer.forward(nan, **inputs.sequence_options())
    grads = layer.backward(tape, np.full_like(inputs.dy, np.nan))
    for array in (y, grads.x, *as_tuple(state), *as_tuple(grads.state), *grads.parameters.values()):
        array[...] = np.nan

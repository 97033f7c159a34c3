"""The softmax of device arrays, by the array library's own functions."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusedrnn.arrays.checks import require_array, require_contiguous, require_float, require_shape
from fusedrnn.arrays.device import Device
from fusedrnn.arrays.dtypes import accumulator


def softmax_forward(device: Device, x: Any) -> Any:
    """Probabilities, rounded once to x's dtype."""
    require_float(x, "x")
    if x.ndim < 1:
        raise ValueError("x must have an axis to sum over, not shape ()")
    require_contiguous(x, "x")
    y = device.empty(x.shape, x.dtype)
    if x.size:
        with device.on(), np.errstate(invalid="ignore", over="ignore"):
            wide = x.astype(accumulator(x.dtype))
            wide -= wide.max(axis=-1, keepdims=True)
            np.exp(wide, out=wide)
            wide /= wide.sum(axis=-1, keepdims=True)
            y[...] = wide
    return y


def softmax_backward(device: Device, y: Any, dy: Any) -> Any:
    """Gradient of what `softmax_forward` was given."""
    require_array(device, dy, "dy", y.dtype)
    require_shape(dy, "dy", y.shape)
    require_contiguous(dy, "dy")
    dx = device.empty(y.shape, y.dtype)
    with device.on():
        probability, wide = y.astype(accumulator(y.dtype)), dy.astype(accumulator(y.dtype))
        wide -= (wide * probability).sum(axis=-1, keepdims=True)
        wide *= probability
        dx[...] = wide
    return dx

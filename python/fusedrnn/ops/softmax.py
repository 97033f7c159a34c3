"""The softmax: ``softmax``, ``softmax_forward`` that also returns a tape, ``softmax_backward``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedrnn import _core
from fusedrnn.arrays.checks import require_array, require_contiguous, require_float, require_shape
from fusedrnn.arrays.device import Device, owner_of
from fusedrnn.arrays.dtypes import accumulator
from fusedrnn.gradients import Array

_forward: Callable[[Array], Array] = _core.operations["softmax"].forward
_backward: Callable[[Array, Array], Array] = _core.operations["softmax"].backward


@dataclass(frozen=True)
class SoftmaxTape:
    """What the backward pass needs: it refers to y, and holds nothing else."""

    y: Array

    @property
    def nbytes(self) -> int:
        """Bytes it holds beyond the array it refers to."""
        return 0


def softmax(x: Array) -> Array:
    """Softmax over the last axis: ``y_i = exp(x_i - max x) / sum_j exp(x_j - max x)``.

    No exponential overflows. An element of -inf gives 0. As in torch, a row with a nan or +inf, or with -inf alone, is
    nan throughout, and a warning is not given; other rows are unaffected. On the CPU a row's result depends on that
    row alone, to the last bit, and a probability below 2^-126 may be 0 in float32 (2^-1022 in float64).

    Parameters
    ----------
    x : ndarray
        (..., C), float32 or float64, C-contiguous. On a CUDA device CuPy's, there also bfloat16 or float16, computed
        in float32 by CuPy's own functions: not to be captured in a graph.

    Returns
    -------
    ndarray
        As x.

    Raises
    ------
    TypeError, ValueError
        Where x is of another kind or dtype, or has no axis; the message names it.
    """
    device = owner_of(x)
    return _forward(x) if device is None else _device_forward(device, x)


def softmax_forward(x: Array) -> tuple[Array, SoftmaxTape]:
    """As `softmax`, and return (y, tape). Do not write y before the backward pass."""
    y = softmax(x)
    return y, SoftmaxTape(y)


def softmax_backward(tape: SoftmaxTape, dy: Array) -> Array:
    """Gradient of `softmax`: ``dx_i = y_i (dy_i - sum_j dy_j y_j)``.

    Parameters
    ----------
    tape : SoftmaxTape
        From `softmax_forward`. It is not written: it may be used again.
    dy : ndarray
        Gradient of y, in its shape and dtype, C-contiguous.

    Returns
    -------
    ndarray
        Gradient of x, in its shape.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind, dtype or shape; the message names it.
    """
    if not isinstance(tape, SoftmaxTape):
        raise TypeError(f"tape must be the one that softmax_forward returned, not {type(tape).__name__}")
    device = owner_of(tape.y)
    return _backward(tape.y, dy) if device is None else _device_backward(device, tape.y, dy)


def _device_forward(device: Device, x: Any) -> Any:
    """Probabilities, by the array library's own functions, rounded once to x's dtype."""
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


def _device_backward(device: Device, y: Any, dy: Any) -> Any:
    """Gradient of what `_device_forward` was given, by the array library's own functions."""
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

"""The linear map and the softmax, in threes: ``f``, ``f_forward`` that also returns a tape, ``f_backward``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fusedrnn import _core
from fusedrnn.arrays.device import owner_of
from fusedrnn.engines.cuda import linear as device_linear
from fusedrnn.engines.cuda import softmax as device_softmax
from fusedrnn.gradients import Array

_linear, _softmax = _core.operations["linear"], _core.operations["softmax"]
_linear_forward: Callable[[Array, Array, Array | None], Array] = _linear.forward
_linear_backward: Callable[[Array, Array, Array | None, Array], tuple[Array, Array, Array | None]] = _linear.backward
_softmax_forward: Callable[[Array], Array] = _softmax.forward
_softmax_backward: Callable[[Array, Array], Array] = _softmax.backward


@dataclass(frozen=True)
class LinearTape:
    """What the backward pass needs: it refers to x, weight and bias, and holds nothing else."""

    x: Array
    weight: Array
    bias: Array | None

    @property
    def nbytes(self) -> int:
        """Bytes it holds beyond the arrays it refers to."""
        return 0


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Linear map of the last axis: ``y = x W^T + b``.

    On the CPU the products are the engine's: y and dx are bitwise the same for any number of threads and whatever rows
    stand beside a row, the other gradients for any number of threads.

    Parameters
    ----------
    x : ndarray
        (..., I), float32 or float64, C-contiguous. On a CUDA device all arrays are CuPy's, there also bfloat16 or
        float16.
    weight : ndarray
        (O, I), of x's dtype, C-contiguous.
    bias : ndarray, optional
        (O,).

    Returns
    -------
    ndarray
        (..., O), of x's dtype.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind, dtype or shape; the message names it.
    """
    device = owner_of(x)
    return _linear_forward(x, weight, bias) if device is None else device_linear.linear_forward(device, x, weight, bias)


def linear_forward(x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, LinearTape]:
    """As `linear`, and return (y, tape). Do not write x or weight before the backward pass."""
    return linear(x, weight, bias), LinearTape(x, weight, bias)


def linear_backward(tape: LinearTape, dy: Array) -> tuple[Array, Array, Array | None]:
    """Gradients of `linear`.

    Parameters
    ----------
    tape : LinearTape
        From `linear_forward`. It is not written: it may be used again.
    dy : ndarray
        Gradient of y, in its shape and dtype, C-contiguous.

    Returns
    -------
    dx, dweight, dbias : ndarray
        In the shapes of x, weight and bias; dbias is None where there was none.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind, dtype or shape; the message names it.
    """
    if not isinstance(tape, LinearTape):
        raise TypeError(f"tape must be the one that linear_forward returned, not {type(tape).__name__}")
    device = owner_of(tape.x)
    if device is None:
        return _linear_backward(tape.x, tape.weight, tape.bias, dy)
    return device_linear.linear_backward(device, tape.x, tape.weight, tape.bias, dy)


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
    return _softmax_forward(x) if device is None else device_softmax.softmax_forward(device, x)


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
    return _softmax_backward(tape.y, dy) if device is None else device_softmax.softmax_backward(device, tape.y, dy)

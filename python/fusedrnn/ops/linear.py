"""The linear map: ``linear``, ``linear_forward`` that also returns a tape, ``linear_backward``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fusedrnn import _core
from fusedrnn.arrays.checks import require_array, require_contiguous, require_float, require_shape
from fusedrnn.arrays.device import Device, owner_of
from fusedrnn.gradients import Array

_compiled = _core.operations["linear"]
_forward: Callable[[Array, Array, Array | None], Array] = _compiled.forward
_backward: Callable[[Array, Array, Array | None, Array], tuple[Array, Array, Array | None]] = _compiled.backward


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
    return _forward(x, weight, bias) if device is None else _device_forward(device, x, weight, bias)


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
        return _backward(tape.x, tape.weight, tape.bias, dy)
    return _device_backward(device, tape.x, tape.weight, tape.bias, dy)


def require_linear(device: Device, x: Any, weight: Any, bias: Any, letters: tuple[str, str]) -> None:
    """Check the arguments of a linear map, whose sizes the documentation calls by these letters: outputs and inputs."""
    outputs, inputs = letters
    require_float(x, "x")
    if x.ndim < 1 or x.shape[-1] < 1:
        raise ValueError(f"x must have shape (..., {inputs}) with {inputs} at least 1, not {tuple(x.shape)}")
    require_contiguous(x, "x")
    require_array(device, weight, "weight", x.dtype)
    if weight.ndim != 2 or weight.shape[1] != x.shape[-1] or weight.shape[0] < 1:
        wanted = f"({outputs}, {x.shape[-1]}) with {outputs} at least 1"
        raise ValueError(f"weight must have shape {wanted}, not {tuple(weight.shape)}")
    require_contiguous(weight, "weight")
    if bias is not None:
        require_array(device, bias, "bias", x.dtype)
        require_shape(bias, "bias", (weight.shape[0],))
        require_contiguous(bias, "bias")


def _call(device: Device, x: Any, weight: Any, bias: Any, **arrays: Any) -> Any:
    return device.native.LinearCall(
        dtype=x.dtype.name,
        rows=math.prod(x.shape[:-1]),
        in_features=x.shape[-1],
        out_features=weight.shape[0],
        x=device.address(x),
        weight=device.address(weight),
        bias=device.address(bias),
        **{name: device.address(array) for name, array in arrays.items()},
    )


def _device_forward(device: Device, x: Any, weight: Any, bias: Any) -> Any:
    """Give y."""
    require_linear(device, x, weight, bias, ("O", "I"))
    y = device.empty((*x.shape[:-1], weight.shape[0]), x.dtype)
    call = _call(device, x, weight, bias, y=y)
    workspace = device.memory(call.bytes())
    call.forward(device.index, device.stream(), device.address(workspace))
    return y


def _device_backward(device: Device, x: Any, weight: Any, bias: Any, dy: Any) -> tuple[Any, Any, Any]:
    """Gradients of x, weight and bias."""
    require_array(device, dy, "dy", x.dtype)
    require_shape(dy, "dy", (*x.shape[:-1], weight.shape[0]))
    require_contiguous(dy, "dy")
    dx, dweight = device.empty(x.shape, x.dtype), device.empty(weight.shape, x.dtype)
    dbias = None if bias is None else device.empty(bias.shape, x.dtype)
    call = _call(device, x, weight, bias, dy=dy, dx=dx, dweight=dweight, dbias=dbias)
    workspace = device.memory(call.bytes())
    call.backward(device.index, device.stream(), device.address(workspace))
    return dx, dweight, dbias

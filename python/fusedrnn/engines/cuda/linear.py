"""The linear map on device arrays."""

from __future__ import annotations

import math
from typing import Any

from fusedrnn.arrays.checks import require_array, require_contiguous, require_float, require_shape
from fusedrnn.arrays.device import Device


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


def linear_forward(device: Device, x: Any, weight: Any, bias: Any) -> Any:
    """Give y."""
    require_linear(device, x, weight, bias, ("O", "I"))
    y = device.empty((*x.shape[:-1], weight.shape[0]), x.dtype)
    call = _call(device, x, weight, bias, y=y)
    workspace = device.memory(call.bytes())
    call.forward(device.index, device.stream(), device.address(workspace))
    return y


def linear_backward(device: Device, x: Any, weight: Any, bias: Any, dy: Any) -> tuple[Any, Any, Any]:
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

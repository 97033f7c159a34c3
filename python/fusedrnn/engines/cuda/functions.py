"""linear_cross_entropy and clip_grad_norm on device arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fusedrnn.arrays.buffers import NormBuffers, ReadoutBuffers
from fusedrnn.arrays.checks import integers, require_array, require_contiguous, require_shape, require_writable
from fusedrnn.arrays.device import Device, owner_of
from fusedrnn.arrays.dtypes import FLOATS, accumulator
from fusedrnn.engines.cuda.linear import require_linear

_REDUCTIONS = {"mean": 0, "sum": 1, "none": 2}


class LinearCrossEntropyTape:
    """What the backward pass needs; it refers to x, weight and bias."""

    def __init__(self, device: Device, call: Any, arrays: tuple[Any, ...], reduction: str, held: Any) -> None:
        self.device = device
        self.call = call
        self.arrays = arrays  # x, weight, bias, targets, normalizers
        self.reduction = reduction
        self.held = held

    @property
    def nbytes(self) -> int:
        """Bytes it holds beyond the arrays it refers to."""
        return int(self.arrays[3].nbytes + self.arrays[4].nbytes)


def _key(x: Any, weight: Any, bias: Any, reduction: str) -> tuple[Any, ...]:
    return tuple(x.shape), weight.shape[0], bias is not None, str(x.dtype), reduction


def _call(
    device: Device, x: Any, weight: Any, bias: Any, targets: Any, ignore: int, reduction: str, loss: Any, norm: Any
) -> Any:
    return device.native.LinearCrossEntropyCall(
        dtype=x.dtype.name,
        tf32=False,
        rows=math.prod(x.shape[:-1]),
        in_features=x.shape[-1],
        out_features=weight.shape[0],
        x=device.address(x),
        weight=device.address(weight),
        bias=device.address(bias),
        targets=device.address(targets),
        ignore_index=ignore,
        reduction=_REDUCTIONS[reduction],
        loss=device.address(loss),
        normalizers=device.address(norm),
    )


def _loss_arrays(device: Device, x: Any, reduction: str) -> tuple[Any, Any]:
    outer, dtype = tuple(x.shape[:-1]), accumulator(x.dtype)
    loss = device.empty(outer if reduction == "none" else (), dtype)
    return loss, device.empty((2 * math.prod(outer) + 1,), dtype)


def readout_buffers(device: Device, x: Any, weight: Any, bias: Any, reduction: str) -> ReadoutBuffers:
    """Memory for `linear_cross_entropy` and its gradients, for ``out=``; what is given serves as its shapes only."""
    require_linear(device, x, weight, bias, ("V", "H"))
    loss, normalizers = _loss_arrays(device, x, reduction)
    dloss = device.empty(x.shape[:-1] if reduction == "none" else (), loss.dtype)
    call = _call(device, x, weight, bias, None, 0, reduction, loss, normalizers)
    backward = call.with_fields(dloss=1)
    dx, dweight = device.empty(x.shape, x.dtype), device.empty(weight.shape, x.dtype)
    dbias = None if bias is None else device.empty(bias.shape, x.dtype)
    forward_memory, backward_memory = device.memory(call.bytes()), device.memory(backward.bytes())
    key = _key(x, weight, bias, reduction)
    return ReadoutBuffers(key, loss, normalizers, dloss, dx, dweight, dbias, forward_memory, backward_memory)


def _require_held(device: Device, held: Any, name: str) -> None:
    if held is None and device.capturing():
        raise ValueError(f"out must be {name} while a graph is captured: its memory must be held by the caller")


def linear_cross_entropy_forward(
    device: Device, x: Any, weight: Any, bias: Any, targets: Any, reduction: str, ignore_index: int, out: Any
) -> tuple[Any, LinearCrossEntropyTape]:
    """Loss and tape. The loss is of x's dtype, or float32 for the 16-bit ones; of no axes unless reduction is none."""
    require_linear(device, x, weight, bias, ("V", "H"))
    if not hasattr(targets, "dtype"):
        raise TypeError(f"targets must be a {device.arrays.kind_name} of integers, not {type(targets).__name__}")
    held = out
    if held is not None and (not isinstance(held, ReadoutBuffers) or held.key != _key(x, weight, bias, reduction)):
        raise ValueError("out must be ReadoutBuffers made for these shapes, dtype and reduction")
    _require_held(device, held, "ReadoutBuffers")
    wide = integers(device, targets, "targets", tuple(x.shape[:-1]))
    if wide is targets and held is None:
        with device.on():
            wide = wide.copy()  # the tape does not depend on the caller's
    loss, normalizers = (held.loss, held.normalizers) if held is not None else _loss_arrays(device, x, reduction)
    call = _call(device, x, weight, bias, wide, ignore_index, reduction, loss, normalizers)
    workspace = held.workspace if held is not None else device.memory(call.bytes())
    call.forward(device.index, device.stream(), device.address(workspace))
    return loss, LinearCrossEntropyTape(device, call, (x, weight, bias, wide, normalizers), reduction, held)


def _loss_gradient(tape: LinearCrossEntropyTape, dloss: Any, outer: tuple[int, ...], dtype: Any) -> tuple[Any, int]:
    """dloss on the device, and its stride over rows."""
    device, each = tape.device, tape.reduction == "none"
    if owner_of(dloss) is not None:
        require_array(device, dloss, "dloss", dtype)
        if each and dloss.ndim > 0:
            require_shape(dloss, "dloss", outer)
            require_contiguous(dloss, "dloss")
            return dloss, 1
        require_shape(dloss, "dloss", ())
        return dloss, 0
    if isinstance(dloss, (bool, np.bool_)) or np.ndim(dloss) != 0:
        wanted = "a number or a device array" + (" of the targets' shape" if each else " without axes")
        raise TypeError(f"dloss must be {wanted}, not {type(dloss).__name__}")
    try:
        number = float(dloss)
    except (TypeError, ValueError):
        raise TypeError(f"dloss must be a number or a device array, not {type(dloss).__name__}") from None
    scale = tape.held.dloss.reshape(-1)[:1] if tape.held is not None else device.empty((1,), dtype)
    with device.on():
        scale.fill(number)
    return scale, 0


def linear_cross_entropy_backward(tape: LinearCrossEntropyTape, dloss: Any) -> tuple[Any, Any, Any]:
    """Gradients of x, weight and bias."""
    device, held = tape.device, tape.held
    x, weight, bias, _, normalizers = tape.arrays
    _require_held(device, held, "ReadoutBuffers, in the forward call of the tape,")
    scale, stride = _loss_gradient(tape, dloss, tuple(x.shape[:-1]), normalizers.dtype)
    if held is not None:
        dx, dweight, dbias = held.dx, held.dweight, held.dbias
    else:
        dx, dweight = device.empty(x.shape, x.dtype), device.empty(weight.shape, x.dtype)
        dbias = None if bias is None else device.empty(bias.shape, x.dtype)
    call = tape.call.with_fields(
        dloss=device.address(scale) or 1,
        dloss_row=stride,
        dx=device.address(dx),
        dweight=device.address(dweight),
        dbias=device.address(dbias),
    )
    workspace = held.backward_workspace if held is not None else device.memory(call.bytes())
    call.backward(device.index, device.stream(), device.address(workspace))
    return dx, dweight, dbias


def norm_buffers(device: Device, count: int) -> NormBuffers:
    """Memory for `clip_grad_norm` over so many arrays, for ``out=``."""
    return NormBuffers(device.empty((), np.float64), device.memory(device.native.clip_bytes(count)))


def clip(device: Device, arrays: list[Any], limit: float, out: Any) -> Any:
    """Scale device arrays in place; the norm, float64 without axes, lies on the device."""
    for array in arrays:
        if array.dtype.name not in FLOATS:
            raise TypeError(f"grads must hold arrays of floating-point numbers, not of {array.dtype}")
        require_array(device, array, "grads", array.dtype)
        require_contiguous(array, "grads")
        require_writable(array, "grads")
    if out is not None and not isinstance(out, NormBuffers):
        raise TypeError(f"out must be NormBuffers or None, not {type(out).__name__}")
    if out is not None and out.workspace.nbytes < device.native.clip_bytes(len(arrays)):
        raise ValueError(f"out must be NormBuffers made for {len(arrays)} arrays or more")
    _require_held(device, out, "NormBuffers")
    held = norm_buffers(device, len(arrays)) if out is None else out
    listed = [(device.address(array), int(array.size), array.dtype.name) for array in arrays]
    workspace = device.address(held.workspace)
    device.native.clip(device.index, device.stream(), listed, limit, device.address(held.norm), workspace)
    return held.norm

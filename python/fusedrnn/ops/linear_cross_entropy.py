"""The softmax cross-entropy of a linear readout: the function, with ``_forward`` also a tape, and ``_backward``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fusedrnn import _core
from fusedrnn.arguments import require_choice, require_integer
from fusedrnn.arrays.buffers import require_held, require_no_buffers
from fusedrnn.arrays.checks import integers
from fusedrnn.arrays.device import Device, owner_of
from fusedrnn.arrays.dtypes import accumulator
from fusedrnn.gradients import Array
from fusedrnn.ops.dloss import device_dloss
from fusedrnn.ops.linear import require_linear

_compiled = _core.operations["linear_cross_entropy"]
_forward: Callable[[Array, Array, Array | None, Array, str, int], tuple[Any, Any]] = _compiled.forward
_backward: Callable[[Any, Any], tuple[Array, Array, Array | None]] = _compiled.backward
_REDUCTIONS = {"mean": 0, "sum": 1, "none": 2}  # a device's numbers


@dataclass
class ReadoutBuffers:
    """Everything that `linear_cross_entropy` and its gradients write; from ``fusedrnn.readout_buffers``."""

    key: tuple[Any, ...]
    loss: Any
    normalizers: Any
    dloss: Any
    dx: Any
    dweight: Any
    dbias: Any
    workspace: Any
    backward_workspace: Any


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


def linear_cross_entropy_forward(
    x: Array,
    weight: Array,
    bias: Array | None,
    targets: Array,
    *,
    reduction: str = "mean",
    ignore_index: int = -100,
    out: ReadoutBuffers | None = None,
) -> tuple[Any, Any]:
    """As `linear_cross_entropy`, and return (loss, tape).

    The tape refers to x, weight and bias: do not write them before the backward pass, which writes into `out` as well.
    """
    require_choice(reduction, "reduction", tuple(_REDUCTIONS))
    ignore_index = require_integer(ignore_index, "ignore_index", least=-(2**63), most=2**63 - 1)
    device = owner_of(x)
    if device is not None:
        return _device_forward(device, x, weight, bias, targets, reduction, ignore_index, out)
    require_no_buffers(out)
    return _forward(x, weight, bias, targets, reduction, ignore_index)


def linear_cross_entropy(
    x: Array,
    weight: Array,
    bias: Array | None,
    targets: Array,
    *,
    reduction: str = "mean",
    ignore_index: int = -100,
    out: ReadoutBuffers | None = None,
) -> Any:
    """Softmax cross-entropy of a linear readout: ``-log softmax(x W^T + b)[target]``.

    The (..., V) logits never exist whole.

    Parameters
    ----------
    x : ndarray
        (..., H), float32, float64 or bfloat16, C-contiguous. Of bfloat16 all is computed in float32.
    weight : ndarray
        (V, H), of x's dtype, C-contiguous.
    bias : ndarray or None
        (V,).
    targets : ndarray of integers
        (...), each in [0, V) or equal to `ignore_index`.
    reduction : {'mean', 'sum', 'none'}
        Mean over the targets that are not ignored (nan where there is none), their sum, or each one's loss.
    ignore_index : int
        Target that has no loss and no gradient.
    out : ReadoutBuffers, optional
        CUDA only: memory to write, from `readout_buffers`; needed while a graph is captured.

    On a CUDA device all arrays are CuPy's, there also float16. The host does not see the targets: one that
    is no class gives a loss and gradients of nan.

    Returns
    -------
    scalar or ndarray
        Of x's dtype, or float32 for the 16-bit ones; for 'none' in the targets' shape, 0 where ignored. On a device
        always an array, without axes for 'mean' and 'sum'.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind, dtype, shape or value; the message names it.
    """
    return linear_cross_entropy_forward(
        x, weight, bias, targets, reduction=reduction, ignore_index=ignore_index, out=out
    )[0]


def readout_buffers(x: Array, weight: Array, bias: Array | None, *, reduction: str = "mean") -> ReadoutBuffers:
    """Make the memory that `linear_cross_entropy_forward` and its backward pass write, for ``out=``.

    Parameters
    ----------
    x, weight, bias, reduction
        As for `linear_cross_entropy`, on a CUDA device; only their shapes and dtypes count.

    Returns
    -------
    ReadoutBuffers

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind, dtype or shape, or on the CPU, where `out` has no use.
    """
    require_choice(reduction, "reduction", tuple(_REDUCTIONS))
    device = owner_of(x)
    if device is None:
        raise TypeError(f"x must be an array on a CUDA device, not {type(x).__name__}")
    return _device_buffers(device, x, weight, bias, reduction)


def linear_cross_entropy_backward(tape: Any, dloss: Any = 1.0) -> tuple[Array, Array, Array | None]:
    """Gradients of `linear_cross_entropy`.

    Parameters
    ----------
    tape : LinearCrossEntropyTape
        From `linear_cross_entropy_forward`. It is not written: it may be used again.
    dloss : float or ndarray
        Gradient of the loss: a number, or for reduction 'none' also an array of the targets' shape; on a device also an
        array without axes. Arrays are of the loss's dtype.

    Returns
    -------
    dx, dweight, dbias : ndarray
        In the shapes of x, weight and bias; dbias is None where there was none.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind, dtype or shape.
    """
    if isinstance(tape, LinearCrossEntropyTape):
        return _device_backward(tape, dloss)
    if not isinstance(tape, _compiled.Tape):
        raise TypeError(f"tape must be the one that linear_cross_entropy_forward returned, not {type(tape).__name__}")
    return _backward(tape, dloss)


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


def _device_buffers(device: Device, x: Any, weight: Any, bias: Any, reduction: str) -> ReadoutBuffers:
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


def _device_forward(
    device: Device, x: Any, weight: Any, bias: Any, targets: Any, reduction: str, ignore_index: int, out: Any
) -> tuple[Any, LinearCrossEntropyTape]:
    """Loss and tape. The loss is of x's dtype, or float32 for the 16-bit ones; of no axes unless reduction is none."""
    require_linear(device, x, weight, bias, ("V", "H"))
    if not hasattr(targets, "dtype"):
        raise TypeError(f"targets must be a {device.arrays.kind_name} of integers, not {type(targets).__name__}")
    held = out
    if held is not None and (not isinstance(held, ReadoutBuffers) or held.key != _key(x, weight, bias, reduction)):
        raise ValueError("out must be ReadoutBuffers made for these shapes, dtype and reduction")
    require_held(device, held, "ReadoutBuffers")
    wide = integers(device, targets, "targets", tuple(x.shape[:-1]))
    if wide is targets and held is None:
        with device.on():
            wide = wide.copy()  # the tape does not depend on the caller's
    loss, normalizers = (held.loss, held.normalizers) if held is not None else _loss_arrays(device, x, reduction)
    call = _call(device, x, weight, bias, wide, ignore_index, reduction, loss, normalizers)
    workspace = held.workspace if held is not None else device.memory(call.bytes())
    call.forward(device.index, device.stream(), device.address(workspace))
    return loss, LinearCrossEntropyTape(device, call, (x, weight, bias, wide, normalizers), reduction, held)


def _device_backward(tape: LinearCrossEntropyTape, dloss: Any) -> tuple[Any, Any, Any]:
    """Gradients of x, weight and bias."""
    device, held = tape.device, tape.held
    x, weight, bias, _, normalizers = tape.arrays
    require_held(device, held, "ReadoutBuffers, in the forward call of the tape,")
    shape = tuple(x.shape[:-1]) if tape.reduction == "none" else None
    one = held.dloss.reshape(-1)[:1] if held is not None else None
    scale, stride = device_dloss(device, dloss, normalizers.dtype, shape, "of the targets' shape", one)
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

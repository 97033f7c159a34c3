"""Functions in threes: ``f``, ``f_forward`` that also returns a tape, ``f_backward``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fusedrnn import _core
from fusedrnn.arguments import require_choice, require_integer
from fusedrnn.arrays.buffers import ReadoutBuffers, require_no_buffers
from fusedrnn.arrays.device import owner_of
from fusedrnn.engines.cuda import functions as device_functions
from fusedrnn.engines.cuda.functions import LinearCrossEntropyTape
from fusedrnn.gradients import Array

_Tape = _core.operations["linear_cross_entropy"].Tape
_forward: Callable[[Array, Array, Array | None, Array, str, int], tuple[Any, Any]]
_forward = _core.operations["linear_cross_entropy"].forward
_backward: Callable[[Any, Any], tuple[Array, Array, Array | None]] = _core.operations["linear_cross_entropy"].backward
_REDUCTIONS = ("mean", "sum", "none")


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
    require_choice(reduction, "reduction", _REDUCTIONS)
    ignore_index = require_integer(ignore_index, "ignore_index", least=-(2**63), most=2**63 - 1)
    device = owner_of(x)
    if device is not None:
        return device_functions.linear_cross_entropy_forward(
            device, x, weight, bias, targets, reduction, ignore_index, out
        )
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
        (..., H), float32 or float64, C-contiguous.
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

    On a CUDA device all arrays are CuPy's, there also bfloat16 or float16. The host does not see the targets: one that
    is no class gives a loss and gradients of nan.

    Returns
    -------
    scalar or ndarray
        Of x's dtype; for 'none' in the targets' shape, 0 where ignored. On a device always an array, without axes for
        'mean' and 'sum', and float32 for the 16-bit dtypes.

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
    require_choice(reduction, "reduction", _REDUCTIONS)
    device = owner_of(x)
    if device is None:
        raise TypeError(f"x must be an array on a CUDA device, not {type(x).__name__}")
    return device_functions.readout_buffers(device, x, weight, bias, reduction)


def linear_cross_entropy_backward(tape: Any, dloss: Any = 1.0) -> tuple[Array, Array, Array | None]:
    """Gradients of `linear_cross_entropy`.

    Parameters
    ----------
    tape : LinearCrossEntropyTape
        From `linear_cross_entropy_forward`. It is not written: it may be used again.
    dloss : float or ndarray
        Gradient of the loss: a number, or for reduction 'none' also an array of the targets' shape; on a device also an
        array without axes, of the loss's dtype.

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
        return device_functions.linear_cross_entropy_backward(tape, dloss)
    if not isinstance(tape, _Tape):
        raise TypeError(f"tape must be the one that linear_cross_entropy_forward returned, not {type(tape).__name__}")
    return _backward(tape, dloss)

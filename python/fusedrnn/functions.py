"""Functions in threes: ``f``, ``f_forward`` that also returns a tape, ``f_backward``."""

from __future__ import annotations

from typing import Any

from fusedrnn import _core
from fusedrnn.arguments import require_choice, require_integer
from fusedrnn.gradients import Array

_REDUCTIONS = ("mean", "sum", "none")


def linear_cross_entropy_forward(
    x: Array,
    weight: Array,
    bias: Array | None,
    targets: Array,
    *,
    reduction: str = "mean",
    ignore_index: int = -100,
) -> tuple[Any, _core.CrossEntropyTape]:
    """As `linear_cross_entropy`, and return (loss, tape).

    The tape refers to x, weight and bias: do not write them before the backward pass.
    """
    require_choice(reduction, "reduction", _REDUCTIONS)
    ignore_index = require_integer(ignore_index, "ignore_index", least=-(2**63), most=2**63 - 1)
    return _core.linear_cross_entropy_forward(x, weight, bias, targets, reduction, ignore_index)


def linear_cross_entropy(
    x: Array,
    weight: Array,
    bias: Array | None,
    targets: Array,
    *,
    reduction: str = "mean",
    ignore_index: int = -100,
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

    Returns
    -------
    scalar or ndarray
        Of x's dtype; for 'none' in the targets' shape, 0 where ignored.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind, dtype, shape or value; the message names it.
    """
    return linear_cross_entropy_forward(x, weight, bias, targets, reduction=reduction, ignore_index=ignore_index)[0]


def linear_cross_entropy_backward(tape: _core.CrossEntropyTape, dloss: Any = 1.0) -> tuple[Array, Array, Array | None]:
    """Gradients of `linear_cross_entropy`.

    Parameters
    ----------
    tape : CrossEntropyTape
        From `linear_cross_entropy_forward`. It is not written: it may be used again.
    dloss : float or ndarray
        Gradient of the loss: a number, or for reduction 'none' also an array of the targets' shape.

    Returns
    -------
    dx, dweight, dbias : ndarray
        In the shapes of x, weight and bias; dbias is None where there was none.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind, dtype or shape.
    """
    if not isinstance(tape, _core.CrossEntropyTape):
        raise TypeError(f"tape must be the one that linear_cross_entropy_forward returned, not {type(tape).__name__}")
    return _core.linear_cross_entropy_backward(tape, dloss)

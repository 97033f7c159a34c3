"""What losses over label sequences share: checks of labels and lengths, and the gradient of each row's loss."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusedrnn.gradients import Array

REDUCTIONS = ("mean", "sum", "none")
LONGEST = 2**62


def integers_of(values: Any, name: str, shape: tuple[int, ...] | None = None) -> Array:
    """A new array of int64, whatever integers are given; TypeError for anything else, ValueError for another shape."""
    if isinstance(values, np.ma.MaskedArray):
        raise TypeError(f"{name} must be an array without a mask, not {type(values).__name__}")
    if isinstance(values, (list, tuple)):
        values = np.array(values)
        values = values if values.size else values.astype(np.int64)
    if not isinstance(values, np.ndarray):
        raise TypeError(f"{name} must be an array of integers, not {type(values).__name__}")
    if values.dtype.kind not in "iu":
        raise TypeError(f"{name} must be an array of integers, not of {values.dtype}")
    if shape is not None and values.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, not {values.shape}")
    if values.dtype.kind == "u" and values.size and int(values.max()) > LONGEST:
        raise ValueError(f"{name} must be integers of 64 bits, not {int(values.max())}")
    return values.astype(np.int64)


def lengths_of(values: Any, name: str, rows: int, most: int) -> Array:
    """Lengths of all rows, each in [0, most]; `most` where none are given."""
    if values is None:
        return np.full(rows, most, np.int64)
    lengths = integers_of(values, name, (rows,))
    if rows and not 0 <= int(lengths.min()) <= int(lengths.max()) <= most:
        wrong = int(lengths.min()) if lengths.min() < 0 else int(lengths.max())
        raise ValueError(f"{name} must lie in [0, {most}], not {wrong}")
    return lengths


def loss_gradients(dloss: Any, reduction: str, rows: int, dtype: Any, divisor: Any) -> Array:
    """Gradient of each row's loss (rows,), from that of the reduced one, which divides it by `divisor`."""
    if reduction == "none" and isinstance(dloss, np.ndarray) and dloss.ndim > 0:
        if dloss.dtype != dtype:
            raise TypeError(f"dloss must be an array of {dtype}, not of {dloss.dtype}")
        if dloss.shape != (rows,):
            raise ValueError(f"dloss must have shape ({rows},), not {dloss.shape}")
        return np.ascontiguousarray(dloss)
    scale = np.full(rows, _number(dloss, reduction))
    return (scale if divisor is None else scale / divisor).astype(dtype)


def _number(value: Any, reduction: str) -> float:
    wanted = "a number or an array (B,)" if reduction == "none" else "a number"
    if isinstance(value, (bool, np.bool_, str, bytes)) or np.ndim(value) != 0:
        raise TypeError(f"dloss must be {wanted}, not {type(value).__name__}")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"dloss must be {wanted}, not {type(value).__name__}") from None
    except OverflowError:
        raise ValueError("dloss must be within the range of a float") from None


def padded_labels(targets: Any, rows: int, longest: int, lengths: Array) -> Array:
    """The targets, (B, U); what lies past a row's length is 0."""
    if rows * longest == 0 and np.size(targets) == 0:
        integers_of(targets, "targets")
        return np.zeros((rows, longest), np.int64)
    labels = integers_of(targets, "targets", (rows, longest))
    return np.where(np.arange(longest) < lengths[:, None], labels, 0)

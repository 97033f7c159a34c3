"""Checks of CTC's arguments that lie on the host, for the CPU and for a device."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusedrnn.gradients import Array
from fusedrnn.ops.labels import LONGEST, integers_of, lengths_of


def require_logits_shape(logits: Any) -> None:
    """Raise a ValueError unless an array is (T, B, C) with a class."""
    if logits.ndim != 3 or logits.shape[2] < 1:
        raise ValueError(f"logits must have shape (T, B, C) with C at least 1, not {tuple(logits.shape)}")


def target_lengths_of(shape: tuple[int, ...], target_lengths: Any, rows: int) -> Array:
    """How many labels each row has, of targets of this shape."""
    if len(shape) == 2 and shape[0] == rows:
        return lengths_of(target_lengths, "target_lengths", rows, shape[1])
    if len(shape) != 1:
        raise ValueError(f"targets must have shape ({rows}, S) or (sum of target_lengths,), not {shape}")
    if target_lengths is None:
        raise ValueError("target_lengths must be given for targets that are concatenated, not None")
    counts = lengths_of(target_lengths, "target_lengths", rows, LONGEST)
    total = sum(map(int, counts))
    if total != shape[0]:
        raise ValueError(f"targets must have shape ({total},), the sum of target_lengths, not {shape}")
    return counts


def targets_of(targets: Any, target_lengths: Any, rows: int) -> tuple[Array, Array]:
    """The targets of all rows one after the other, and how many each row has."""
    given = integers_of(targets, "targets")
    counts = target_lengths_of(given.shape, target_lengths, rows)
    if given.ndim == 2:
        given = given[np.arange(given.shape[1]) < counts[:, None]]
    return given, counts

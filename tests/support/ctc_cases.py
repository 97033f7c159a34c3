"""Batches for the tests of CTC, on the CPU and on a device, and the rounding errors they may have."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

# (T, B, C, S): targets of no, one and many labels; classes and labels that fill no, one and many vectors.
SHAPES = (
    (1, 1, 2, 1),
    (7, 3, 5, 3),
    (9, 5, 17, 0),
    (40, 7, 33, 12),
    (129, 4, 9, 31),
    (70, 2, 129, 33),
)


def batch(shape: tuple[int, int, int, int], dtype: str, rng: np.random.Generator, blank: int = 0) -> dict[str, Any]:
    """Arguments of ragged rows, some of them impossible."""
    steps, rows, classes, longest = shape
    logits = (3 * rng.standard_normal((steps, rows, classes))).astype(dtype)
    labels = rng.integers(0, classes - 1, (rows, longest))
    labels += labels >= blank
    return {
        "logits": logits,
        "targets": labels,
        "input_lengths": rng.integers(0, steps + 1, rows),
        "target_lengths": rng.integers(0, longest + 1, rows),
    }


def bound(arguments: dict[str, Any]) -> float:
    """Rounding errors of as many independent frames, in units of the largest gradient, 1.

    An oracle in logarithms of float64 has errors of its own: three logarithms, which grow with T, are added, and the
    error of a logarithm is the relative one of what it stands for.
    """
    logits = arguments["logits"]
    steps, largest = len(logits), 2 * float(np.abs(logits).max(initial=0))
    ours = 16 * float(np.finfo(logits.dtype).eps) * math.sqrt(steps + 1)
    return ours + 3 * float(np.finfo(np.float64).eps) * steps * (largest + math.log(logits.shape[2]))

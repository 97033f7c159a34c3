"""Batches for a transducer's loss, and how far its numbers may be from the exact ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

# (T, B, U, J, V): no label, one and many; columns and classes that fill no, one and many vectors; lattices longer than
# wide and wider than long, of which one and many diagonals fill a vector.
SHAPES = (
    (1, 1, 0, 1, 1),
    (1, 1, 1, 7, 2),
    (7, 3, 4, 17, 5),
    (17, 2, 7, 33, 129),
    (5, 2, 40, 16, 17),
    (60, 4, 15, 7, 30),
    (33, 2, 16, 129, 7),
    (129, 1, 31, 8, 64),
)


def batch(
    shape: tuple[int, int, int, int, int], dtype: str, rng: np.random.Generator, blank: int = 0, peak: float = 1.0
) -> dict[str, Any]:
    """Arguments of ragged rows; `peak` makes some classes of a cell far more probable than others."""
    steps, rows, longest, columns, classes = shape
    labels = rng.integers(0, max(classes - 1, 1), (rows, longest))
    labels += labels >= blank
    return {
        "encoder": rng.standard_normal((steps, rows, columns)).astype(dtype),
        "predictor": rng.standard_normal((longest + 1, rows, columns)).astype(dtype),
        "weight": (peak / math.sqrt(columns) * rng.standard_normal((classes, columns))).astype(dtype),
        "bias": rng.standard_normal(classes).astype(dtype),
        "targets": labels,
        "input_lengths": rng.integers(0, steps + 1, rows),
        "target_lengths": rng.integers(0, longest + 1, rows),
    }


def bound(arguments: dict[str, Any], expected: Any) -> float:
    """Rounding errors of as many independent terms as a sum has, in units of the largest of what is added up.

    A logarithm's error is the relative one of what it stands for; it comes from a product over J columns. An oracle in
    logarithms of float64 has errors of its own, which grow with the length of a path.
    """
    (steps, rows, columns), (classes, _) = arguments["encoder"].shape, arguments["weight"].shape
    path, largest = steps + len(arguments["predictor"]), float(np.abs(arguments["weight"]).max())
    logits = 1 + largest * math.sqrt(columns)
    ours = 16 * float(np.finfo(arguments["encoder"].dtype).eps) * math.sqrt(rows * path + columns + classes)
    oracle = 4 * float(np.finfo(np.float64).eps) * path * (logits + math.log(classes))
    return (ours + oracle) * logits * (1 + max((float(np.abs(array).max(initial=0)) for array in expected), default=0))

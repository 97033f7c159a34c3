"""The arrays of a case, drawn once and handed to every peer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.cases import GATES, ITEM_BYTES, PEEPHOLES, Case

Array = NDArray[np.floating]
SEED = 20


@dataclass(frozen=True)
class Problem:
    """A case with its data: x (T, B, I), dy (T, B, D*H) and the parameters by the library's names."""

    case: Case
    x: Array
    dy: Array
    parameters: dict[str, Array]


def suffixes(case: Case) -> Iterator[tuple[int, int, str]]:
    """Layer, direction and the name ending of their parameters, in the library's order."""
    for layer in range(case.layers):
        for direction in range(case.directions):
            yield layer, direction, f"_l{layer}" + ("_reverse" if direction else "")


def parameter_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a layer's parameters, torch's where torch has them."""
    rows = GATES[case.cell] * case.hidden
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, _, suffix in suffixes(case):
        width = case.inputs if layer == 0 else case.directions * case.hidden
        shapes["weight_ih" + suffix] = (rows, width)
        shapes["weight_hh" + suffix] = (rows, case.hidden)
        shapes["bias_ih" + suffix] = (rows,)
        shapes["bias_hh" + suffix] = (rows,)
        if case.cell in PEEPHOLES:
            shapes["peephole" + suffix] = (PEEPHOLES[case.cell], case.hidden)
    return shapes


def make_problem(case: Case) -> Problem:
    """Weights from U(-1/sqrt(H), 1/sqrt(H)), torch's default; input and incoming gradient from N(0, 1).

    On a CUDA device those two come from U(-1, 1), as drawing normal numbers would take most of the time of a row. What
    has 16 bits there is drawn in float32. x and dy of ragged rows are zero beyond their ends.
    """
    generator = np.random.default_rng(SEED)
    bound = case.hidden**-0.5
    dtype = "float32" if ITEM_BYTES[case.dtype] == 2 else case.dtype

    def draw(width: int) -> Array:
        shape = (case.steps, case.batch, width)
        if case.device == "cpu":
            return generator.standard_normal(shape).astype(dtype)
        return 2 * generator.random(shape, dtype) - 1

    x, dy = draw(case.inputs), draw(case.directions * case.hidden)
    if case.ragged:
        beyond = np.arange(case.steps)[:, None] >= np.array(case.lengths)
        x[beyond] = dy[beyond] = 0
    return Problem(
        case,
        x,
        dy,
        {name: generator.uniform(-bound, bound, shape).astype(dtype) for name, shape in parameter_shapes(case).items()},
    )

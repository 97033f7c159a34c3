"""Parts of a batch and of its results, and a cell with a layer's parameters."""

from __future__ import annotations

from typing import Any

from cases import LAYERS, Case, Inputs
from oracles import Result

import fusedrnn as fr


def rows(inputs: Inputs, row: int, steps: int) -> Inputs:
    """One row of a batch, as a batch of its own, of its first `steps` steps."""

    def of(state: Any) -> Any:
        return tuple(part[:, row : row + 1] for part in state) if isinstance(state, tuple) else state[:, row : row + 1]

    reset = None if inputs.reset is None else inputs.reset[:steps, row : row + 1]
    x, dy = inputs.x[:steps, row : row + 1], inputs.dy[:steps, row : row + 1]
    return Inputs(x, of(inputs.state), None, reset, dy, of(inputs.dstate))


def row_of(result: Result, row: int, steps: int) -> tuple[Any, ...]:
    """What a result has of one row; weight gradients are sums over rows."""

    def of(state: Any) -> Any:
        return tuple(part[:, row : row + 1] for part in state) if isinstance(state, tuple) else state[:, row : row + 1]

    y, dx = result.y[:steps, row : row + 1], result.dx[:steps, row : row + 1]
    return y, of(result.state), dx, of(result.dstate)


def make_cell(case: Case, layer: Any) -> Any:
    """The cell that computes what a layer of one layer and one direction does."""
    kind, options = LAYERS[case.cell]
    cell = getattr(fr, kind + "Cell")(case.input_size, case.hidden_size, dtype=case.dtype, clip=case.clip, **options)
    cell.load_parameters({name.removesuffix("_l0"): array for name, array in layer.parameters.items()})
    return cell

"""Initial states and lengths that a model holds as constants."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fusedrnn import _core
from fusedrnn.gradients import Array, State
from fusedrnn.onnx.folding import Folder, Unknown
from fusedrnn.onnx.nodes import Layer, input_names, layer_of
from fusedrnn.onnx.scopes import RecurrentNode


class Half(NamedTuple):
    """One half of an initial state that the model computes from its constants, (D, N, H)."""

    array: Array
    #: Every row of a batch begins with it, and N is 1.
    of_any_batch: bool


class Start(NamedTuple):
    """What of a node's initial state and lengths its model holds, and what it makes at run time."""

    halves: dict[str, Half]
    lengths: Array | None
    missing: dict[str, Unknown]


def _parts_of(layer: Layer) -> list[str]:
    """The operator's names of the halves of a layer's state."""
    return [f"initial_{name}" for name in _core.cells[layer.cell_name].states]


def layer_and_start(recurrent: RecurrentNode, folder: Folder) -> tuple[Layer, Start]:
    """The layer of a node, which begins with the initial state that its model holds, and what else that holds."""
    layer = layer_of(recurrent, folder)
    start = _start_of(recurrent, layer, folder)
    layer.initial_state = _default_state(layer, start)
    return layer, start


def _start_of(recurrent: RecurrentNode, layer: Layer, folder: Folder) -> Start:
    """The initial state and the lengths of a node; ValueError or TypeError where a constant one cannot be right."""
    names, halves, missing = input_names(recurrent), {}, {}
    for part in _parts_of(layer):
        if part in names:
            found = _half(recurrent, part, names[part], layer, folder)
            if isinstance(found, Unknown):
                missing[part] = found
            else:
                halves[part] = found
    lengths = None
    if "sequence_lens" in names:
        value = folder.constant(recurrent.scope, names["sequence_lens"])
        if isinstance(value, Unknown):
            missing["sequence_lens"] = value
        elif value.dtype.kind not in "iu":
            raise TypeError(f"sequence_lens of node {recurrent.name!r} must be integers, not of {value.dtype}")
        elif value.ndim != 1:
            raise ValueError(f"sequence_lens of node {recurrent.name!r} must have shape (B,), not {value.shape}")
        else:
            lengths = value
    for formal, unknown in missing.items():
        if unknown.wrong:
            raise ValueError(f"{formal} of node {recurrent.name!r} cannot be had: {unknown.reason}")
    rows = {half.array.shape[1] for half in halves.values() if not half.of_any_batch}
    if len(rows) > 1:
        raise ValueError(
            f"initial_h and initial_c of node {recurrent.name!r} must have as many rows, not {sorted(rows)}"
        )
    return Start(halves, lengths, missing)


def _half(recurrent: RecurrentNode, part: str, name: str, layer: Layer, folder: Folder) -> Half | Unknown:
    batch_axis = 0 if layer.batch_first else 1
    directions = 2 if layer.bidirectional else 1

    def one_row(arrays: list[Array]) -> Array | None:
        """The row that every row of several batches is."""
        if any(array.ndim != 3 or not array.size for array in arrays):
            return None
        row = arrays[0].take([0], batch_axis)
        return row if all(_equals(array, row) for array in arrays) else None

    of_any_batch = isinstance(folder.value(recurrent.scope, name), Unknown)
    value = folder.of_any_size(recurrent.scope, name, one_row)
    if isinstance(value, Unknown):
        return value
    wanted = ("B", directions) if layer.batch_first else (directions, "B")
    if value.ndim != 3 or value.shape[1 - batch_axis] != directions or value.shape[2] != layer.hidden_size:
        raise ValueError(
            f"{part} of node {recurrent.name!r} must have shape ({wanted[0]}, {wanted[1]}, {layer.hidden_size}),"
            f" not {value.shape}"
        )
    if value.dtype != layer.dtype:
        raise TypeError(f"{part} of node {recurrent.name!r} must be of {layer.dtype} as its weights, not {value.dtype}")
    return Half(np.ascontiguousarray(value.swapaxes(0, 1) if layer.batch_first else value), of_any_batch)


def _equals(array: Array, row: Array) -> bool:
    """Whether an array is a row repeated, to the last bit."""
    try:
        repeated = np.broadcast_to(row, array.shape)
    except ValueError:
        return False
    return array.dtype == row.dtype and array.tobytes() == repeated.tobytes()


def _default_state(layer: Layer, start: Start) -> State | None:
    """What calls of the layer begin with: rows for one batch only where they differ; None for zeros."""
    if not any(half.array.any() for half in start.halves.values()):
        return None
    arrays = {part: half.array for part, half in start.halves.items()}
    if all(_equals(array, array[:, :1]) for array in arrays.values()):
        arrays = {part: array[:, :1] for part, array in arrays.items()}
    return _state(layer, arrays, max(array.shape[1] for array in arrays.values()))


def call_arguments_of(recurrent: RecurrentNode, layer: Layer, start: Start, batch: int | None) -> dict[str, Any]:
    """The constants as arguments of a call."""
    arguments: dict[str, Any] = {}
    arrays = {part: half.array for part, half in start.halves.items()}
    rows = {half.array.shape[1] for half in start.halves.values() if not half.of_any_batch} or {batch}
    (count,) = rows if len(rows) == 1 else (None,)
    if batch is not None and all(_equals(array, array[:, :1]) for array in arrays.values()):
        count, arrays = batch, {part: array[:, :1] for part, array in arrays.items()}
    if arrays and count is not None:
        if batch not in (None, count):
            raise ValueError(f"batch must be {count}, as the rows of the state of node {recurrent.name!r}, not {batch}")
        arguments["state"] = _state(layer, arrays, count)
    if start.lengths is not None:
        arguments["lengths"] = start.lengths
    return arguments


def _state(layer: Layer, arrays: dict[str, Array], rows: int) -> State:
    """A state of so many rows; zeros for a half that is not there."""
    directions = 2 if layer.bidirectional else 1
    shape = (directions, rows, layer.hidden_size)
    zeros = np.zeros((1, 1, 1), layer.dtype)
    halves = [np.array(np.broadcast_to(arrays.get(part, zeros), shape), order="C") for part in _parts_of(layer)]
    return halves[0] if len(halves) == 1 else (halves[0], halves[1])

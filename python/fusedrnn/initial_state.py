"""The state with which calls begin that are given none."""

from __future__ import annotations

from typing import Any

from fusedrnn._core import sentences
from fusedrnn.arrays.device import owner_of
from fusedrnn.arrays.dtypes import accumulator, numpy_dtype
from fusedrnn.arrays.host import as_array
from fusedrnn.arrays.memory import Memory, memory_of
from fusedrnn.gradients import Array, State
from fusedrnn.options import Options


def checked(value: Any, options: Options, memory: Memory) -> State:
    """Copies of a state's halves, (L*D, N, H), in the layer's memory; TypeError or ValueError names what is wrong."""
    sizes, dtype = (options.num_layers * options.directions, options.hidden_size), numpy_dtype(options.dtype)
    names = ", ".join(options.states)
    if len(options.states) == 1:
        return _half(value, "initial_state", sizes, dtype, memory)
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"initial_state must be a pair ({names}) of arrays or None, not {type(value).__name__}")
    if len(value) != 2:
        raise ValueError(sentences["state_count"].format("initial_state", names, len(value)))
    h = _half(value[0], "initial_state[0]", sizes, dtype, memory)
    c = _half(value[1], "initial_state[1]", sizes, accumulator(dtype), memory)
    if h.shape != c.shape:
        raise ValueError(f"initial_state must have halves of one shape, not {h.shape} and {c.shape}")
    return h, c


def _half(value: Any, name: str, sizes: tuple[int, int], dtype: Any, memory: Memory) -> Array:
    array = as_array(value, name) if owner_of(value) is None else value
    if array.dtype != dtype:
        raise TypeError(f"{name} must be an array of {dtype}, not of {array.dtype}")
    layers, hidden = sizes
    if array.ndim != 3 or (array.shape[0], array.shape[2]) != (layers, hidden) or array.shape[1] == 0:
        raise ValueError(
            f"{name} must have shape ({layers}, 1, {hidden}) or ({layers}, B, {hidden}), not {array.shape}"
        )
    return _moved(array, dtype, memory_of(value), memory)


def _moved(array: Any, dtype: Any, before: Memory, after: Memory) -> Array:
    """A contiguous copy of another dtype, in another memory."""
    result: Array = after.from_host(before.to_host(array).astype(dtype, order="C"))
    return result


def converted(state: State, dtype: Any, before: Memory, after: Memory) -> State:
    """A copy for a layer of another dtype or device."""
    if not isinstance(state, tuple):
        return _moved(state, dtype, before, after)
    return _moved(state[0], dtype, before, after), _moved(state[1], accumulator(dtype), before, after)


def for_rows(state: State, rows: int | None, memory: Memory) -> State:
    """The state of a call on so many rows; None: of one that is not batched."""
    if isinstance(state, tuple):
        return _rows_of(state[0], rows, memory), _rows_of(state[1], rows, memory)
    return _rows_of(state, rows, memory)


def _rows_of(half: Array, rows: int | None, memory: Memory) -> Array:
    own = half.shape[1]
    if own == rows:
        return half
    if own != 1:
        wanted = "an unbatched x" if rows is None else f"{rows} rows"
        raise ValueError(f"state must be given for {wanted}: the layer's initial_state has {own} rows")
    if rows is None:
        return half[:, 0]
    if memory.capturing():
        raise ValueError("state must be given while a graph is captured: its memory must be held by the caller")
    with memory.on():
        return half.repeat(rows, 1)

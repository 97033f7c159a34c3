"""What the calls of a layer begin with that are given no state."""

from __future__ import annotations

from typing import Any

from fusedrnn.cuda.arrays import accumulator
from fusedrnn.cuda.device import Device, owner_of
from fusedrnn.gradients import Array, State
from fusedrnn.recurrent import as_array


def checked(value: Any, sizes: tuple[int, int], dtype: Any, pair: bool, device: Device | None) -> State:
    """Copies of a state's halves, (L*D, N, H), on the layer's device; TypeError or ValueError names what is wrong."""
    if not pair:
        return _half(value, "initial_state", sizes, dtype, device)
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"initial_state must be a pair (h, c) of arrays or None, not {type(value).__name__}")
    if len(value) != 2:
        raise ValueError(f"initial_state must be a pair (h, c), not of length {len(value)}")
    h = _half(value[0], "initial_state[0]", sizes, dtype, device)
    c = _half(value[1], "initial_state[1]", sizes, _cell_dtype(dtype, device), device)
    if h.shape != c.shape:
        raise ValueError(f"initial_state must have halves of one shape, not {h.shape} and {c.shape}")
    return h, c


def _cell_dtype(dtype: Any, device: Device | None) -> Any:
    return dtype if device is None else accumulator(dtype)


def _half(value: Any, name: str, sizes: tuple[int, int], dtype: Any, device: Device | None) -> Array:
    owner = owner_of(value)
    array = as_array(value, name) if owner is None else value
    if array.dtype != dtype:
        raise TypeError(f"{name} must be an array of {dtype}, not of {array.dtype}")
    layers, hidden = sizes
    if array.ndim != 3 or (array.shape[0], array.shape[2]) != (layers, hidden) or array.shape[1] == 0:
        raise ValueError(
            f"{name} must have shape ({layers}, 1, {hidden}) or ({layers}, B, {hidden}), not {array.shape}"
        )
    return _moved(array, dtype, owner, device)


def _moved(array: Any, dtype: Any, before: Device | None, after: Device | None) -> Array:
    """A contiguous copy of another dtype, on another device; None is the host."""
    host: Array = (array if before is None else before.to_host(array)).astype(dtype, order="C")
    result: Array = host if after is None else after.from_host(host)
    return result


def converted(state: State, dtype: Any, before: Device | None, after: Device | None) -> State:
    """A copy for a layer of another dtype or device."""
    if not isinstance(state, tuple):
        return _moved(state, dtype, before, after)
    return _moved(state[0], dtype, before, after), _moved(state[1], _cell_dtype(dtype, after), before, after)


def for_rows(state: State, rows: int | None, device: Device | None) -> State:
    """The state of a call on so many rows; None: of one that is not batched."""
    if isinstance(state, tuple):
        return _rows_of(state[0], rows, device), _rows_of(state[1], rows, device)
    return _rows_of(state, rows, device)


def _rows_of(half: Array, rows: int | None, device: Device | None) -> Array:
    own = half.shape[1]
    if own == rows:
        return half
    if own != 1:
        wanted = "an unbatched x" if rows is None else f"{rows} rows"
        raise ValueError(f"state must be given for {wanted}: the layer's initial_state has {own} rows")
    if rows is None:
        return half[:, 0]
    if device is None:
        return half.repeat(rows, 1)
    if device.capturing():
        raise ValueError("state must be given while a graph is captured: its memory must be held by the caller")
    with device.on():
        return half.repeat(rows, 1)

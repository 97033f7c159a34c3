"""What a net's calls are given: checked against its sizes, and described for the compiled module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusedrnn._core import sentences
from fusedrnn.arguments import require_integer
from fusedrnn.arrays.checks import (
    integers,
    require_array,
    require_contiguous,
    require_disjoint,
    require_shape,
    require_unit_stride,
    require_writable,
)
from fusedrnn.arrays.device import Device, owner_of
from fusedrnn.arrays.dtypes import accumulator, numpy_dtype
from fusedrnn.engines.cpu import compiled
from fusedrnn.engines.cuda.layout import Layout
from fusedrnn.options import Options


class Arguments:
    """The sizes of a net, and every check that needs them."""

    def __init__(self, options: Options, device: Device) -> None:
        self.device = device
        self.dtype = numpy_dtype(options.dtype)
        self.states = {
            name: accumulator(self.dtype) if number else self.dtype for number, name in enumerate(options.states)
        }
        """The dtype of each of the cell's states."""
        self.shapes = compiled(options, "float32").parameter_shapes
        self.all_directions = options.num_layers * options.directions
        self.inputs, self.hidden = options.input_size, options.hidden_size
        self.width = options.directions * options.hidden_size
        self.batch_first, self.single_step = options.batch_first, options.single_step

    # ---- parameters ----

    def parameters(self, mapping: Mapping[str, Any], name: str) -> list[Any]:
        """The arrays of a mapping that has the parameters' names, in order."""
        arrays = []
        for key, shape in self.shapes:
            shown = f"{name}[{key!r}]"
            if key not in mapping:
                raise ValueError(sentences["missing"].format(shown))
            array = require_array(self.device, mapping[key], shown, self.dtype)
            require_shape(array, shown, shape)
            require_contiguous(array, shown)
            arrays.append(array)
        for key in mapping:
            if not isinstance(key, str):
                raise TypeError(sentences["keys"].format(name, type(key).__name__))
            if all(key != known for known, _ in self.shapes):
                raise ValueError(sentences["unknown"].format(name, ascii(key)))
        return arrays

    def new_parameters(self) -> dict[str, Any]:
        """Arrays for the gradients of all parameters."""
        return {name: self.device.empty(shape, self.dtype) for name, shape in self.shapes}

    def addresses(self, arrays: Sequence[Any]) -> list[int]:
        """Where the arrays of all parameters are, in order."""
        return [self.device.address(array) for array in arrays]

    # ---- the sequence ----

    def layout(self, x: Any) -> Layout:
        """How a call lies, from x."""
        axes = 1 if self.single_step else 2
        shape = tuple(x.shape)
        if len(shape) not in (axes, axes + 1) or shape[-1] != self.inputs:
            last = self.inputs
            batched = f"(B, {last})" if self.single_step else f"({'B, T' if self.batch_first else 'T, B'}, {last})"
            single = f"({last},)" if self.single_step else f"(T, {last})"
            raise ValueError(sentences["shape"].format("x", f"{batched} or {single}", shape))
        layout = Layout(self.batch_first, self.single_step, len(shape) == axes + 1, 1, 1)
        if layout.time_axis >= 0:
            layout = layout._replace(steps=int(shape[layout.time_axis]))
        return layout._replace(rows=int(shape[layout.row_axis])) if layout.batched else layout

    def layout_of(self, steps: int, batch: int | None) -> Layout:
        """How a call of so many steps and rows lies."""
        return Layout(self.batch_first, self.single_step, batch is not None, steps, 1 if batch is None else batch)

    def new_input(self, layout: Layout) -> Any:
        """An array like x."""
        return self.device.empty((*layout.outer(), self.inputs), self.dtype)

    def output_shape(self, layout: Layout) -> tuple[int, ...]:
        """Shape of y."""
        return (*layout.outer(), self.width)

    def output(self, out: Any, layout: Layout, disjoint: Sequence[tuple[str, Any]] = ()) -> Any:
        """An array for y: a new one, or `out`, which shares no memory with the others."""
        if out is None:
            return self.device.empty(self.output_shape(layout), self.dtype)
        require_array(self.device, out, "out", self.dtype)
        require_shape(out, "out", self.output_shape(layout))
        require_unit_stride(out, "out")
        require_writable(out, "out")
        for name, array in disjoint:
            if array is not None:
                require_disjoint(self.device, out, "out", array, name)
        return out

    # ---- the state ----

    def state(self, state: Any, name: str, layout: Layout, *, gradient: bool) -> list[Any]:
        """The array of each of a state's parts; all None for zeros, and some may be in a gradient."""
        if state is None:
            return [None] * len(self.states)
        parts, shown = [state], [name]
        if len(self.states) > 1:
            names = ", ".join(self.states)
            if not isinstance(state, (tuple, list)):
                raise TypeError(sentences["states"].format(name, names, type(state).__name__))
            if len(state) != len(self.states):
                raise ValueError(sentences["state_count"].format(name, names, len(state)))
            parts, shown = list(state), [f"{name}[{number}]" for number in range(len(state))]
        for part, label, dtype in zip(parts, shown, self.states.values(), strict=True):
            if part is None and gradient:
                continue
            require_array(self.device, part, label, dtype, of_layer=True)
            require_shape(part, label, layout.state(self.all_directions, self.hidden))
            require_unit_stride(part, label)
        return parts

    def new_state(self, layout: Layout) -> Any:
        """Arrays for a state: h, or one for each of several states."""
        shape = layout.state(self.all_directions, self.hidden)
        parts = tuple(self.device.empty(shape, dtype) for dtype in self.states.values())
        return parts if len(parts) > 1 else parts[0]

    def parts(self, state: Any) -> tuple[Any, ...]:
        """The array of each of a state's parts."""
        return state if isinstance(state, tuple) else (state,)

    # ---- which rows run when ----

    def lengths(self, value: Any, layout: Layout, name: str = "lengths") -> Any:
        """Lengths on the device. Those on the host are checked; the device's are not read, and clamped there."""
        if value is None:
            return None
        if not layout.batched:
            raise ValueError(sentences["unbatched_lengths"])
        if owner_of(value) is not None:
            return integers(self.device, value, name, (layout.rows,))
        if self.device.capturing():
            raise ValueError(
                f"{name} must be a device array while a graph is captured: the host's cannot be copied then"
            )
        if not isinstance(value, (np.ndarray, list, tuple)):
            raise TypeError(sentences["lengths"].format(name, type(value).__name__))
        if isinstance(value, np.ndarray) and value.dtype.kind not in "iu":
            raise TypeError(sentences["lengths"].format(name, f"of {value.dtype}"))
        if np.shape(value) != (layout.rows,):
            raise ValueError(sentences["shape"].format(name, (layout.rows,), np.shape(value)))
        host = [require_integer(item, name, least=0, most=layout.steps) for item in value]
        return self.device.from_host(np.array(host, np.int64))

    def flags(self, value: Any, name: str, layout: Layout) -> Any:
        """A bool for every step of every row: reset or mask."""
        if value is None:
            return None
        require_array(self.device, value, name, np.dtype(bool))
        require_shape(value, name, layout.outer())
        return value

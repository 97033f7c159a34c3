"""A layer or cell on a device: array -> check -> allocate -> call. No arithmetic on data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fusedrnn import _core
from fusedrnn.arguments import require_integer
from fusedrnn.cuda.arrays import (
    ABSENT,
    View,
    accumulator,
    integers,
    numpy_dtype,
    require_array,
    require_contiguous,
    require_disjoint,
    require_shape,
    require_unit_stride,
    require_writable,
    stride_of,
)
from fusedrnn.cuda.buffers import Buffers
from fusedrnn.cuda.device import Device, owner_of
from fusedrnn.gradients import Gradients

# Steps from which on engine="auto" runs a call by block programs: they begin by arranging weights for all blocks, which
# takes as long as two or three steps of the other engine.
_AUTO_LEAST_STEPS = 4
# Whether a block program runs all steps in one kernel, where the device can hold all of its blocks at once.
_LOOP_INSIDE = True
_PRESENT: View = (1, 0, 0)  # of an array whose memory only has to be counted


def runs_blocks(net: Any, choice: str, steps: int, rows: int, *, training: bool) -> bool:
    """Whether a compiled net runs such calls by block programs; ValueError where they cannot and must."""
    if choice == "persistent":
        reason = net.persistent_refusal(rows, training, False)
        if reason is not None:
            raise ValueError(f"engine must be 'auto' or 'stepwise' here, not 'persistent': {reason}")
        return True
    # A kernel for each step has been slower than the other engine's two for large batches.
    return choice == "auto" and steps >= _AUTO_LEAST_STEPS and net.persistent_refusal(rows, training, True) is None


class Layout(NamedTuple):
    """One call's extents. Unbatched arrays have no batch axis; a single step has no time axis."""

    batch_first: bool
    single_step: bool
    batched: bool
    steps: int
    rows: int

    @property
    def time_axis(self) -> int:
        """Axis of time, or -1."""
        return -1 if self.single_step else int(self.batched and self.batch_first)

    @property
    def row_axis(self) -> int:
        """Axis of the batch, or -1."""
        return -1 if not self.batched else 0 if self.single_step or self.batch_first else 1

    def outer(self) -> tuple[int, ...]:
        """Axes before the last one."""
        if self.single_step:
            return (self.rows,) if self.batched else ()
        if not self.batched:
            return (self.steps,)
        return (self.rows, self.steps) if self.batch_first else (self.steps, self.rows)

    def state(self, layers: int, hidden: int) -> tuple[int, ...]:
        """Shape of a state array."""
        return (*(() if self.single_step else (layers,)), *((self.rows,) if self.batched else ()), hidden)

    def sequence(self, device: Device, array: Any) -> View:
        """A sequence array as the compiled module takes it."""
        if array is None:
            return ABSENT
        return device.address(array), stride_of(array, self.time_axis), stride_of(array, self.row_axis)

    def states(self, device: Device, array: Any) -> View:
        """A state array as the compiled module takes it."""
        if array is None:
            return ABSENT
        row_axis = -1 if not self.batched else 0 if self.single_step else 1
        return device.address(array), 0 if self.single_step else stride_of(array, 0), stride_of(array, row_axis)


class Tape:
    """What backpropagation needs of one forward call on a device; it refers to x, y and the parameters."""

    def __init__(
        self, owner: Net, layout: Layout, call: Any, kept: Any, arrays: list[Any], out: Buffers | None
    ) -> None:
        self._owner = owner
        self._layout = layout
        self._call = call
        self._kept = kept
        self._arrays = arrays
        self._out = out

    @property
    def nbytes(self) -> int:
        """Bytes it holds beyond the arrays it refers to."""
        return int(self._kept.nbytes)


class Net:
    """What `fusedrnn._core.Recurrent` is for the CPU."""

    def __init__(self, settings: Mapping[str, Any], device: Device, precision: str, engine: str) -> None:
        self.device = device
        self.dtype = numpy_dtype(settings["dtype"])
        self.cell_dtype = accumulator(self.dtype)
        self._shapes = _core.Recurrent(**{**settings, "dtype": "float32"}).parameter_shapes
        self._directions = 2 if settings["bidirectional"] else 1
        self._layers = int(settings["num_layers"])
        self._input, self._hidden = int(settings["input_size"]), int(settings["hidden_size"])
        self._batch_first, self._single_step = bool(settings["batch_first"]), bool(settings["single_step"])
        self._two_states = len(_core.cells[settings["cell"]].states) == 2
        self._training_dropout = settings["dropout"] > 0 and self._layers > 1
        self._net = device.native.Net(
            cell=settings["cell"],
            input_size=self._input,
            hidden_size=self._hidden,
            layers=self._layers,
            directions=self._directions,
            bias=settings["bias"],
            reverse=settings["reverse"],
            clip=settings["clip"],
            dropout=settings["dropout"],
            seed=settings["seed"],
            dtype=settings["dtype"],
            tf32=precision == "tf32",
            loop_inside=_LOOP_INSIDE,
            device=device.index,
        )
        self._choice = engine
        self._persistent(0, 1, training=True)
        self._calls = device.from_host(np.zeros(1, np.uint64))

    @property
    def parameter_shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names and shapes, in order."""
        return self._shapes

    @property
    def calls(self) -> int:
        """Training calls so far, dropout's counter. It lies in device memory: reading it waits for the device."""
        return int(self.device.to_host(self._calls)[0])

    @calls.setter
    def calls(self, count: int) -> None:
        self.device.assign(self._calls, np.array([count], np.uint64))

    def check_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Raise an error unless these are writable parameters of this object."""
        for array, (name, _) in zip(self._arrays_of(parameters, "parameters"), self._shapes, strict=True):
            require_writable(array, f"parameters[{name!r}]")

    def _arrays_of(self, mapping: Mapping[str, Any], name: str) -> list[Any]:
        arrays = []
        for key, shape in self._shapes:
            shown = f"{name}[{key!r}]"
            if key not in mapping:
                raise ValueError(f"{shown} is missing")
            array = require_array(self.device, mapping[key], shown, self.dtype)
            require_shape(array, shown, shape)
            require_contiguous(array, shown)
            arrays.append(array)
        for key in mapping:
            if not isinstance(key, str):
                raise TypeError(f"{name} must have strings as keys, not {type(key).__name__}")
            if all(key != known for known, _ in self._shapes):
                raise ValueError(f"{name}[{key!a}] is not a parameter of this object")
        return arrays

    def _addresses(self, arrays: Sequence[Any]) -> list[int]:
        return [self.device.address(array) for array in arrays]

    def _persistent(self, steps: int, rows: int, *, training: bool) -> bool:
        """Whether calls of so many rows run by block programs; ValueError where they are asked for and cannot."""
        return runs_blocks(self._net, self._choice, steps, rows, training=training)

    # ---- arguments ----

    def _layout(self, x: Any) -> Layout:
        axes = 1 if self._single_step else 2
        shape = tuple(x.shape)
        if len(shape) not in (axes, axes + 1) or shape[-1] != self._input:
            last = self._input
            batched = f"(B, {last})" if self._single_step else f"({'B, T' if self._batch_first else 'T, B'}, {last})"
            single = f"({last},)" if self._single_step else f"(T, {last})"
            raise ValueError(f"x must have shape {batched} or {single}, not {shape}")
        layout = Layout(self._batch_first, self._single_step, len(shape) == axes + 1, 1, 1)
        if layout.time_axis >= 0:
            layout = layout._replace(steps=int(shape[layout.time_axis]))
        return layout._replace(rows=int(shape[layout.row_axis])) if layout.batched else layout

    def _state_arrays(self, state: Any, name: str, layout: Layout, *, gradient: bool) -> tuple[Any, Any]:
        if state is None:
            return None, None
        halves = (state, None)
        shown = [name, ""]
        if self._two_states:
            if not isinstance(state, (tuple, list)):
                raise TypeError(f"{name} must be a pair (h, c) of arrays, not {type(state).__name__}")
            if len(state) != 2:
                raise ValueError(f"{name} must be a pair (h, c), not of length {len(state)}")
            halves = (state[0], state[1])
            shown = [f"{name}[0]", f"{name}[1]"]
        checked = []
        for half, label, dtype in zip(halves, shown, (self.dtype, self.cell_dtype), strict=True):
            if half is not None or not (gradient or label == ""):
                half = require_array(self.device, half, label, dtype, of_layer=True)
                require_shape(half, label, layout.state(self._layers * self._directions, self._hidden))
                require_unit_stride(half, label)
            checked.append(half)
        return checked[0], checked[1]

    def _new_state(self, layout: Layout) -> tuple[Any, Any]:
        shape = layout.state(self._layers * self._directions, self._hidden)
        h = self.device.empty(shape, self.dtype)
        return h, self.device.empty(shape, self.cell_dtype) if self._two_states else None

    def _state_result(self, h: Any, c: Any) -> Any:
        return (h, c) if self._two_states else h

    def _lengths(self, value: Any, layout: Layout) -> Any:
        """Lengths on the device. Those on the host are checked; the device's are not read, and clamped there."""
        if value is None:
            return None
        if not layout.batched:
            raise ValueError("lengths must be None for an unbatched x")
        if owner_of(value) is not None:
            return integers(self.device, value, "lengths", (layout.rows,))
        if self.device.capturing():
            raise ValueError(
                "lengths must be a device array while a graph is captured: the host's cannot be copied then"
            )
        if not isinstance(value, (np.ndarray, list, tuple)):
            raise TypeError(f"lengths must be an array of integers, not {type(value).__name__}")
        if isinstance(value, np.ndarray) and value.dtype.kind not in "iu":
            raise TypeError(f"lengths must be an array of integers, not of {value.dtype}")
        if np.shape(value) != (layout.rows,):
            raise ValueError(f"lengths must have shape ({layout.rows},), not {np.shape(value)}")
        host = [require_integer(item, "lengths", least=0, most=layout.steps) for item in value]
        return self.device.from_host(np.array(host, np.int64))

    def _flags(self, value: Any, name: str, layout: Layout) -> Any:
        """A bool for every step of every row: reset or mask."""
        if value is None:
            return None
        require_array(self.device, value, name, np.dtype(bool))
        require_shape(value, name, layout.outer())
        return value

    def _output(self, out: Any, layout: Layout, disjoint: Sequence[tuple[str, Any]]) -> Any:
        shape = (*layout.outer(), self._directions * self._hidden)
        if out is None:
            return self.device.empty(shape, self.dtype)
        require_array(self.device, out, "out", self.dtype)
        require_shape(out, "out", shape)
        require_unit_stride(out, "out")
        require_writable(out, "out")
        for name, array in disjoint:
            if array is not None:
                require_disjoint(self.device, out, "out", array, name)
        return out

    def _require_held(self, out: Any, what: str = "out") -> None:
        if not isinstance(out, Buffers) and self.device.capturing():
            raise ValueError(
                f"{what} must be the Buffers that layer.buffers(...) made before while a graph is captured, "
                f"not {type(out).__name__}: memory that a graph uses must be held by the caller"
            )

    def buffers(self, steps: int, batch: int | None, recompute: int, *, training: bool, mask: bool = False) -> Buffers:
        """Memory for calls of one shape, whichever of state, lengths and reset they have; of mask where said so."""
        layout = Layout(self._batch_first, self._single_step, batch is not None, steps, 1 if batch is None else batch)
        call = self._sized(layout, recompute, training=training, mask=mask)
        inference = self._sized(layout, 0, training=False, mask=mask)
        forward_bytes = max(self._net.forward_bytes(c) for c in (call, inference))
        gradients = None
        if training:
            parameters = {name: self.device.empty(shape, self.dtype) for name, shape in self._shapes}
            dx = self.device.empty((*layout.outer(), self._input), self.dtype)
            gradients = Gradients(dx, self._state_result(*self._new_state(layout)), parameters)
        return Buffers(
            self.device.empty((*layout.outer(), self._directions * self._hidden), self.dtype),
            self._state_result(*self._new_state(layout)),
            gradients,
            layout,
            self,
            recompute,
            mask,
            self.device.memory(self._net.kept_bytes(call) if training else 0),
            self.device.memory(forward_bytes),
            self.device.memory(self._net.backward_bytes(call) if training else 0),
        )

    def _sized(self, layout: Layout, recompute: int, *, training: bool, mask: bool) -> Any:
        """A call with every optional argument, but for `mask`, to ask for the memory it needs and no more."""
        return self.device.native.ForwardCall(
            steps=layout.steps,
            rows=layout.rows,
            training=training,
            persistent=self._persistent(layout.steps, layout.rows, training=training),
            recompute=recompute,
            weights=[],
            x=_PRESENT,
            y=_PRESENT,
            h0=_PRESENT,
            c0=_PRESENT,
            hn=_PRESENT,
            cn=_PRESENT,
            lengths=1,
            reset=_PRESENT,
            mask=_PRESENT if mask else ABSENT,
            calls=1,
        )

    def _require_fitting(self, out: Buffers, layout: Layout, recompute: int, *, training: bool, mask: bool) -> None:
        if out.owner is not self or out.layout != layout or (training and out.recompute != recompute):
            raise ValueError(
                f"out must be Buffers that this object made for the shape {layout.outer()} and recompute={recompute}"
            )
        if training and out.gradients is None:
            raise ValueError("out must be Buffers made with training=True")
        if mask and not out.mask:
            raise ValueError("out must be Buffers made with mask=True for a call with a mask")

    # ---- calls ----

    def infer(
        self, parameters: Any, x: Any, state: Any, lengths: Any, reset: Any, mask: Any, out: Any
    ) -> tuple[Any, Any]:
        """As `_core.Recurrent.infer`."""
        y, final, _ = self._run(parameters, x, state, lengths, reset, mask, out, training=False, recompute=0)
        return y, final

    def forward(
        self, parameters: Any, x: Any, state: Any, lengths: Any, reset: Any, mask: Any, recompute: int, out: Any
    ) -> tuple[Any, Any, Tape]:
        """As `_core.Recurrent.forward`."""
        y, final, tape = self._run(parameters, x, state, lengths, reset, mask, out, training=True, recompute=recompute)
        assert tape is not None
        return y, final, tape

    def _run(
        self,
        parameters: Any,
        x: Any,
        state: Any,
        lengths: Any,
        reset: Any,
        mask: Any,
        out: Any,
        *,
        training: bool,
        recompute: int,
    ) -> tuple[Any, Any, Tape | None]:
        device = self.device
        weights = self._arrays_of(parameters, "parameters")
        require_array(device, x, "x", self.dtype, of_layer=True)
        layout = self._layout(x)
        require_unit_stride(x, "x")
        h0, c0 = self._state_arrays(state, "state", layout, gradient=False)
        held = out if isinstance(out, Buffers) else None
        self._require_held(out)
        if held is not None:
            self._require_fitting(held, layout, recompute, training=training, mask=mask is not None)
        lengths = self._lengths(lengths, layout)
        reset, mask = self._flags(reset, "reset", layout), self._flags(mask, "mask", layout)
        persistent = self._persistent(layout.steps, layout.rows, training=training)
        if held is not None:
            hn, cn = held.state if self._two_states else (held.state, None)
        else:
            hn, cn = self._new_state(layout)
        inputs = [("x", x), ("state", h0), ("state", c0)]
        inputs += [(f"parameters[{name!r}]", array) for array, (name, _) in zip(weights, self._shapes, strict=True)]
        y = hn if self._single_step else self._output(held.y if held is not None else out, layout, inputs)
        call = device.native.ForwardCall(
            steps=layout.steps,
            rows=layout.rows,
            training=training,
            persistent=persistent,
            recompute=recompute,
            weights=self._addresses(weights),
            x=layout.sequence(device, x),
            y=ABSENT if self._single_step else layout.sequence(device, y),
            h0=layout.states(device, h0),
            c0=layout.states(device, c0),
            hn=layout.states(device, hn),
            cn=layout.states(device, cn),
            lengths=device.address(lengths),
            reset=layout.sequence(device, reset),
            mask=layout.sequence(device, mask),
            calls=device.address(self._calls),
        )
        if held is not None:
            kept, workspace = held.kept, held.workspace
        else:
            kept = device.memory(self._net.kept_bytes(call) if training else 0)
            workspace = device.memory(self._net.forward_bytes(call))
        self._net.forward(device.index, device.stream(), call, device.address(kept), device.address(workspace))
        tape = Tape(self, layout, call, kept, [x, y, *weights], held) if training else None
        return y, held.state if held is not None else self._state_result(hn, cn), tape

    def backward(self, tape: Tape, dy: Any, dstate: Any, gradients: Any) -> tuple[Any, Any, dict[str, Any]]:
        """As `_core.Recurrent.backward`."""
        if tape._owner is not self:
            raise ValueError("tape must come from this object's own forward")
        device, layout, held = self.device, tape._layout, tape._out
        if held is None:
            self._require_held(None, "out, in the forward call of the tape,")
        if dy is not None:
            require_array(device, dy, "dy", self.dtype, of_layer=True)
            require_shape(dy, "dy", (*layout.outer(), self._directions * self._hidden))
            require_unit_stride(dy, "dy")
        dhn, dcn = self._state_arrays(dstate, "dstate", layout, gradient=True)
        target, arrays = self._gradient_arrays(gradients, tape, [("dy", dy), ("dstate", dhn), ("dstate", dcn)])
        if held is not None:
            assert held.gradients is not None
            dx, initial = held.gradients.x, held.gradients.state
        else:
            dx = device.empty((*layout.outer(), self._input), self.dtype)
            initial = self._state_result(*self._new_state(layout))
        dh0, dc0 = initial if self._two_states else (initial, None)
        workspace = held.backward_workspace if held is not None else device.memory(self._net.backward_bytes(tape._call))
        self._net.backward(
            device.index,
            device.stream(),
            tape._call,
            dy=layout.sequence(device, dy),
            dx=layout.sequence(device, dx),
            dhn=layout.states(device, dhn),
            dcn=layout.states(device, dcn),
            dh0=layout.states(device, dh0),
            dc0=layout.states(device, dc0),
            gradients=self._addresses(arrays),
            accumulate=gradients is not None,
            workspace=device.address(workspace),
        )
        return dx, initial, target

    def _gradient_arrays(
        self, given: Any, tape: Tape, others: Sequence[tuple[str, Any]]
    ) -> tuple[dict[str, Any], list[Any]]:
        if given is None:
            if tape._out is not None and tape._out.gradients is not None:
                target = tape._out.gradients.parameters
            else:
                target = {name: self.device.empty(shape, self.dtype) for name, shape in self._shapes}
            return target, [target[name] for name, _ in self._shapes]
        if not isinstance(given, dict):
            raise TypeError(f"grads.parameters must be a dict, not {type(given).__name__}")
        arrays = self._arrays_of(given, "grads.parameters")
        for number, (array, (key, _)) in enumerate(zip(arrays, self._shapes, strict=True)):
            name = f"grads.parameters[{key!r}]"
            require_writable(array, name)
            for kept in tape._arrays:
                require_disjoint(self.device, array, name, kept, "what the tape refers to")
            for other_name, other in others:
                if other is not None:
                    require_disjoint(self.device, array, name, other, other_name)
            for other, (other_key, _) in zip(arrays[:number], self._shapes, strict=False):
                require_disjoint(self.device, array, name, other, f"grads.parameters[{other_key!r}]")
        return given, arrays

    def freeze(self, parameters: Any) -> dict[str, Any]:
        """A copy of the weights, in place of the parameters of later calls."""
        weights = self._arrays_of(parameters, "parameters")
        with self.device.on():
            return {name: array.copy() for array, (name, _) in zip(weights, self._shapes, strict=True)}

    def unfreeze(self, frozen: dict[str, Any]) -> dict[str, Any]:
        """Parameters that freeze to the same."""
        return frozen

    def stream(self, parameters: Any, batch: int, state: Any) -> Stepper:
        """A stepper, with a copy of the weights, and of the state with which it begins; None: zeros."""
        return Stepper(self, self.freeze(parameters), batch, state)


class Stepper:
    """Runs a layer on a device one step at a time and keeps the state; made by ``layer.stream``."""

    def __init__(self, net: Net, parameters: dict[str, Any], batch: int, state: Any) -> None:
        self._net = net
        self._parameters = parameters
        self._batch = batch
        self._buffers = net.buffers(1, batch, 0, training=False)
        halves = net._state_arrays(state, "state", self._buffers.layout, gradient=False)
        with net.device.on():
            self._first = [0 if half is None else half.copy() for half in halves]
        self.reset()

    def _parts(self) -> tuple[Any, ...]:
        state = self._buffers.state
        return state if isinstance(state, tuple) else (state,)

    @property
    def state(self) -> Any:
        """The state, (L, B, H) or a pair of such: a copy. Setting it copies."""
        with self._net.device.on():
            parts = tuple(part.copy() for part in self._parts())
        return parts if len(parts) == 2 else parts[0]

    @state.setter
    def state(self, value: Any) -> None:
        halves = self._net._state_arrays(value, "state", self._buffers.layout, gradient=False)
        if value is None:
            raise TypeError("state must be an array or a pair of arrays, not None")
        with self._net.device.on():
            for part, half in zip(self._parts(), halves, strict=False):
                part[...] = half

    def reset(self, rows: Any = None) -> None:
        """Set the state of all rows to what it was at first, or of some: a host mask (B,) or integers."""
        if rows is None:
            chosen: list[int] = list(range(self._batch))
        else:
            host = np.asarray(rows)
            if host.dtype == bool:
                if host.shape != (self._batch,):
                    raise ValueError(f"rows must have shape ({self._batch},), not {host.shape}")
                host = np.flatnonzero(host)
            listed = host.reshape(-1).tolist() if host.size else []
            chosen = [require_integer(row, "rows", least=0, most=self._batch - 1) for row in listed]
        with self._net.device.on():
            for part, first in zip(self._parts(), self._first, strict=False):
                if rows is None:
                    part[...] = first
                else:
                    for row in chosen:
                        part[:, row] = first if isinstance(first, int) else first[:, row]

    def step(self, x_t: Any, out: Any = None) -> Any:
        """One step: (B, I) -> h of the last layer, (B, H). With `out` nothing is allocated; a graph may capture it."""
        net, device, held = self._net, self._net.device, self._buffers
        require_array(device, x_t, "x_t", net.dtype, of_layer=True)
        single = self._batch == 1 and x_t.ndim == 1
        require_shape(x_t, "x_t", (net._input,) if single else (self._batch, net._input))
        require_unit_stride(x_t, "x_t")
        shape = (net._hidden,) if single else (self._batch, net._hidden)
        if out is None:
            if device.capturing():
                raise ValueError("out must be given while a graph is captured: its memory must be held by the caller")
            out = device.empty(shape, net.dtype)
        else:
            require_array(device, out, "out", net.dtype)
            require_shape(out, "out", shape)
            require_unit_stride(out, "out")
            require_writable(out, "out")
            require_disjoint(device, out, "out", x_t, "x_t")
        row_axis = -1 if single else 0
        h, c = held.state if net._two_states else (held.state, None)
        # The state is read before it is written, element by element.
        call = device.native.ForwardCall(
            steps=1,
            rows=self._batch,
            training=False,
            persistent=net._persistent(1, self._batch, training=False),
            recompute=0,
            weights=net._addresses([self._parameters[name] for name, _ in net._shapes]),
            x=(device.address(x_t), 0, stride_of(x_t, row_axis)),
            y=(device.address(out), 0, stride_of(out, row_axis)),
            h0=held.layout.states(device, h),
            c0=held.layout.states(device, c),
            hn=held.layout.states(device, h),
            cn=held.layout.states(device, c),
            lengths=0,
            reset=ABSENT,
            mask=ABSENT,
            calls=0,
        )
        net._net.forward(device.index, device.stream(), call, 0, device.address(held.workspace))
        return out

"""A layer or cell on a device: array -> check -> allocate -> call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusedrnn._core import sentences
from fusedrnn.arguments import require_flag, require_integer
from fusedrnn.arrays.buffers import Buffers
from fusedrnn.arrays.checks import (
    require_array,
    require_disjoint,
    require_shape,
    require_unit_stride,
    require_writable,
)
from fusedrnn.arrays.device import Device
from fusedrnn.engines.cuda import blocks
from fusedrnn.engines.cuda.arguments import Arguments
from fusedrnn.engines.cuda.layout import ABSENT, PRESENT, Layout
from fusedrnn.engines.cuda.stepper import Stepper
from fusedrnn.engines.cuda.tape import FrozenParameters, Tape
from fusedrnn.gradients import Gradients
from fusedrnn.options import Options


def _require_floats(int8: bool) -> None:
    if int8:
        raise ValueError("weights must be None on a CUDA device; 'int8' is the CPU's alone")


class Net:
    """An `Engine` on a CUDA device."""

    tape_type = Tape

    def __init__(self, options: Options, device: Device) -> None:
        self.memory = device
        self._arguments = Arguments(options, device)
        self._choice = options.engine
        self._net = device.native.Net(
            cell=options.cell,
            input_size=options.input_size,
            hidden_size=options.hidden_size,
            layers=options.num_layers,
            directions=options.directions,
            bias=options.bias,
            reverse=options.reverse,
            clip=options.clip,
            dropout=options.dropout,
            seed=options.seed,
            dtype=options.dtype,
            tf32=options.precision == "tf32",
            loop_inside=blocks.LOOP_INSIDE,
            device=device.index,
        )
        self._persistent(0, 1, training=True)
        self._calls = device.from_host(np.zeros(1, np.uint64))

    @property
    def parameter_shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names and shapes, in order."""
        return self._arguments.shapes

    @property
    def calls(self) -> int:
        """Training calls so far, dropout's counter. It lies in device memory: reading it waits for the device."""
        return int(self.memory.to_host(self._calls)[0])

    @calls.setter
    def calls(self, count: int) -> None:
        self.memory.assign(self._calls, np.array([count], np.uint64))

    def check_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Raise an error unless these are writable parameters of this object."""
        arrays = self._arguments.parameters(parameters, "parameters")
        for array, (name, _) in zip(arrays, self._arguments.shapes, strict=True):
            require_writable(array, f"parameters[{name!r}]")

    def _persistent(self, steps: int, rows: int, *, training: bool) -> bool:
        """Whether calls of so many rows run by block programs; ValueError where the caller asked for that in vain."""
        return blocks.runs_blocks(self._net, self._choice, steps, rows, training=training)

    # ---- memory that the caller holds ----

    def buffers(self, steps: Any, batch: Any, recompute: Any, training: Any, mask: Any) -> Buffers:
        """Memory for calls of one shape, with or without state, lengths and reset; with a mask if `mask`."""
        steps = require_integer(steps, "steps", least=0)
        batch = None if batch is None else require_integer(batch, "batch", least=0)
        window = 0 if recompute is None else require_integer(recompute, "recompute", least=1)
        training, mask = require_flag(training, "training"), require_flag(mask, "mask")
        return self._buffers(self._arguments.layout_of(steps, batch), window, training=training, mask=mask)

    def _buffers(self, layout: Layout, recompute: int, *, training: bool, mask: bool) -> Buffers:
        arguments, device = self._arguments, self.memory
        call = self._sized(layout, recompute, training=training, mask=mask)
        inference = self._sized(layout, 0, training=False, mask=mask)
        forward_bytes = max(self._net.forward_bytes(c) for c in (call, inference))
        gradients = None
        if training:
            parameters = arguments.new_parameters()
            gradients = Gradients(arguments.new_input(layout), arguments.new_state(layout), parameters)
        return Buffers(
            y=arguments.output(None, layout),
            state=arguments.new_state(layout),
            gradients=gradients,
            layout=layout,
            owner=self,
            recompute=recompute,
            mask=mask,
            kept=device.memory(self._net.kept_bytes(call) if training else 0),
            workspace=device.memory(forward_bytes),
            backward_workspace=device.memory(self._net.backward_bytes(call) if training else 0),
        )

    def _sized(self, layout: Layout, recompute: int, *, training: bool, mask: bool) -> Any:
        """A call with every optional argument, but for `mask`, to ask for the memory it needs and no more."""
        return self.memory.native.ForwardCall(
            steps=layout.steps,
            rows=layout.rows,
            training=training,
            persistent=self._persistent(layout.steps, layout.rows, training=training),
            recompute=recompute,
            weights=[],
            x=PRESENT,
            y=PRESENT,
            initial=[PRESENT] * len(self._arguments.states),
            final=[PRESENT] * len(self._arguments.states),
            lengths=1,
            reset=PRESENT,
            mask=PRESENT if mask else ABSENT,
            calls=1,
        )

    def _require_held(self, out: Any, what: str = "out") -> None:
        if not isinstance(out, Buffers) and self.memory.capturing():
            raise ValueError(
                f"{what} must be the Buffers that layer.buffers(...) made before while a graph is captured, "
                f"not {type(out).__name__}: memory that a graph uses must be held by the caller"
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
        """y and the final state."""
        y, final, _ = self._run(parameters, x, state, lengths, reset, mask, out, training=False, recompute=0)
        return y, final

    def forward(
        self, parameters: Any, x: Any, state: Any, lengths: Any, reset: Any, mask: Any, recompute: int, out: Any
    ) -> tuple[Any, Any, Tape]:
        """y, the final state and a tape."""
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
        arguments, device = self._arguments, self.memory
        weights = arguments.parameters(parameters, "parameters")
        require_array(device, x, "x", arguments.dtype, of_layer=True)
        layout = arguments.layout(x)
        require_unit_stride(x, "x")
        initial = arguments.state(state, "state", layout, gradient=False)
        held = out if isinstance(out, Buffers) else None
        self._require_held(out)
        if held is not None:
            self._require_fitting(held, layout, recompute, training=training, mask=mask is not None)
        lengths = arguments.lengths(lengths, layout)
        reset, mask = arguments.flags(reset, "reset", layout), arguments.flags(mask, "mask", layout)
        persistent = self._persistent(layout.steps, layout.rows, training=training)
        final = arguments.new_state(layout) if held is None else held.state
        parts = arguments.parts(final)
        inputs = [("x", x), *(("state", part) for part in initial)]
        inputs += [(f"parameters[{name!r}]", array) for array, (name, _) in zip(weights, arguments.shapes, strict=True)]
        y = parts[0] if layout.single_step else arguments.output(out if held is None else held.y, layout, inputs)
        call = device.native.ForwardCall(
            steps=layout.steps,
            rows=layout.rows,
            training=training,
            persistent=persistent,
            recompute=recompute,
            weights=arguments.addresses(weights),
            x=layout.sequence(device, x),
            y=ABSENT if layout.single_step else layout.sequence(device, y),
            initial=layout.states(device, initial),
            final=layout.states(device, parts),
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
        return y, final, Tape(self, layout, call, kept, [x, y, *weights], held) if training else None

    def backward(
        self, tape: Tape, dy: Any, dstate: Any, gradients: Any, norms: bool
    ) -> tuple[Any, Any, dict[str, Any], tuple[Any, ...] | None]:
        """Gradients of x, the initial state and the parameters; last, with `norms`, those of each state's gradients."""
        if tape.owner is not self:
            raise ValueError(sentences["foreign_tape"])
        arguments, device, layout, held = self._arguments, self.memory, tape.layout, tape.out
        if held is None:
            self._require_held(None, "out, in the forward call of the tape,")
        if norms and device.capturing():
            raise ValueError("norms must be False while a graph is captured: nobody holds memory for them")
        if dy is not None:
            require_array(device, dy, "dy", arguments.dtype, of_layer=True)
            require_shape(dy, "dy", arguments.output_shape(layout))
            require_unit_stride(dy, "dy")
        dfinal = arguments.state(dstate, "dstate", layout, gradient=True)
        others = [("dy", dy), *(("dstate", part) for part in dfinal)]
        target, arrays = self._gradient_arrays(gradients, tape, others)
        if held is not None:
            assert held.gradients is not None
            dx, initial = held.gradients.x, held.gradients.state
        else:
            dx, initial = arguments.new_input(layout), arguments.new_state(layout)
        if held is not None and not norms:
            workspace = held.backward_workspace
        else:
            workspace = device.memory(self._net.backward_bytes(tape.call, norms))
        shape = layout.norms_shape(arguments.all_directions)
        measured = tuple(device.empty(shape, arguments.dtype) for _ in arguments.states) if norms else ()
        self._net.backward(
            device.index,
            device.stream(),
            tape.call,
            dy=layout.sequence(device, dy),
            dx=layout.sequence(device, dx),
            dfinal=layout.states(device, dfinal),
            dinitial=layout.states(device, arguments.parts(initial)),
            gradients=arguments.addresses(arrays),
            accumulate=gradients is not None,
            norms=[layout.norms(device, array) for array in measured],
            workspace=device.address(workspace),
        )
        return dx, initial, target, measured if norms else None

    def _gradient_arrays(
        self, given: Any, tape: Tape, others: Sequence[tuple[str, Any]]
    ) -> tuple[dict[str, Any], list[Any]]:
        """What the parameters' gradients are written into: by name, and in order."""
        arguments, held = self._arguments, tape.out
        if given is None:
            target = arguments.new_parameters() if held is None or held.gradients is None else held.gradients.parameters
            return target, [target[name] for name, _ in arguments.shapes]
        if not isinstance(given, dict):
            raise TypeError(sentences["gradients"].format(type(given).__name__))
        arrays = arguments.parameters(given, "grads.parameters")
        for number, (array, (key, _)) in enumerate(zip(arrays, arguments.shapes, strict=True)):
            name = f"grads.parameters[{key!r}]"
            require_writable(array, name)
            for kept in tape.arrays:
                require_disjoint(self.memory, array, name, kept, "what the tape refers to")
            for other_name, other in others:
                if other is not None:
                    require_disjoint(self.memory, array, name, other, other_name)
            for other, (other_key, _) in zip(arrays[:number], arguments.shapes, strict=False):
                require_disjoint(self.memory, array, name, other, f"grads.parameters[{other_key!r}]")
        return given, arrays

    # ---- parameters as they are now ----

    def freeze(self, parameters: Any, int8: bool = False) -> FrozenParameters:
        """A copy of the parameters, which later calls take in their place."""
        _require_floats(int8)
        weights = self._arguments.parameters(parameters, "parameters")
        with self.memory.on():
            names = (name for name, _ in self._arguments.shapes)
            return FrozenParameters(zip(names, (array.copy() for array in weights), strict=True))

    def unfreeze(self, packed: FrozenParameters) -> dict[str, Any]:
        """Parameters that freeze to the same."""
        return dict(packed)

    def stream(self, parameters: Any, batch: int, state: Any, int8: bool = False) -> Stepper:
        """A stepper, with a copy of the weights, and of the state with which it begins; None: zeros."""
        frozen = self.freeze(parameters, int8)
        buffers = self._buffers(self._arguments.layout_of(1, batch), 0, training=False, mask=False)
        persistent = self._persistent(1, batch, training=False)
        return Stepper(self._arguments, self._net, frozen, buffers, state, persistent)

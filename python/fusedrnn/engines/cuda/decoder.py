"""A decoder on a device: array -> check -> call."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fusedrnn._core import sentences
from fusedrnn.arrays.checks import (
    require_array,
    require_disjoint,
    require_shape,
    require_unit_stride,
    require_writable,
)
from fusedrnn.arrays.device import Device
from fusedrnn.arrays.dtypes import numpy_dtype
from fusedrnn.engines.cuda.arguments import Arguments
from fusedrnn.engines.cuda.decoder_calls import DecoderCall, DecoderCalls
from fusedrnn.engines.cuda.layout import Layout, View, stride_of
from fusedrnn.options import Options


class DeviceSpace:
    """`decoder_calls.Space` of CuPy's arrays."""

    def __init__(self, device: Device) -> None:
        self.device, self.native, self.index = device, device.native, device.index

    def stream(self) -> int:
        return self.device.stream()

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return self.device.empty(shape, numpy_dtype(dtype))

    def address(self, array: Any) -> int:
        return self.device.address(array)

    def view(self, array: Any, time: int, row: int) -> View:
        return self.device.address(array), stride_of(array, time), stride_of(array, row)


class DecoderDeviceTape:
    """What backpropagation needs of one forward call; it refers to x, memory, y, context and the parameters."""

    def __init__(self, owner: object, made: DecoderCall) -> None:
        self.owner, self.made = owner, made

    @property
    def attention(self) -> Any:
        """(T, B, S): the distribution at every step."""
        return self.made.attention

    @property
    def locations(self) -> Any:
        """(T, B): of hard attention the location that was drawn, -1 where there is none."""
        return self.made.locations

    @property
    def log_prob(self) -> Any:
        """(T, B): the logarithm of its probability."""
        return self.made.log_prob

    @property
    def entropy(self) -> Any:
        """(T, B): of the distribution."""
        return self.made.entropy

    @property
    def nbytes(self) -> int:
        """Bytes it holds beyond the arrays it refers to."""
        return self.made.nbytes


class DecoderArguments(Arguments):
    """The sizes of a decoder, and every check that needs them."""

    def __init__(self, options: Options, device: Device, sizes: tuple[int, int], shapes: Any) -> None:
        super().__init__(options, device)
        self.features, self.size = sizes
        self.shapes = shapes
        self.time, self.row = (1, 0) if options.batch_first else (0, 1)

    def sequence(self, array: Any, name: str, wanted: tuple[str, str], rows: int | None, width: int) -> Any:
        """Check an array (T, B, width), or (S, B, width); `wanted` are its outer axes as the documentation has them."""
        require_array(self.device, array, name, self.dtype, of_layer=True)
        shape = tuple(array.shape)
        if len(shape) != 3 or shape[2] != width or (rows is not None and shape[self.row] != rows):
            outer = [wanted[0], wanted[1] if rows is None else str(rows)]
            listed = ", ".join([*(outer[::-1] if self.batch_first else outer), str(width)])
            raise ValueError(sentences["shape"].format(name, f"({listed})", shape))
        require_unit_stride(array, name)
        return array

    def gradient(self, array: Any, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        """Check a gradient, which may be None."""
        if array is None:
            return None
        require_array(self.device, array, name, dtype, of_layer=True)
        require_shape(array, name, shape)
        if len(shape) == 3:
            require_unit_stride(array, name)
        return array

    def counts(self, values: Any, name: str, rows: int, most: int) -> Any:
        """Lengths on the device in memory of their own, or None."""
        found = self.lengths(values, Layout(self.batch_first, False, True, most, rows), name)
        if found is values and found is not None:
            with self.device.on():
                found = found.copy()
        return found


class DecoderEngine:
    """A decoder on a CUDA device, as `AttentionDecoder` asks for one."""

    tape_type = DecoderDeviceTape

    def __init__(self, options: Options, device: Device, sizes: tuple[int, int], hard: bool, shapes: Any) -> None:
        self.memory = device
        self.calls = 0
        self._arguments = DecoderArguments(options, device, sizes, shapes)
        self._calls = DecoderCalls(device.native, device.index, options, sizes, hard)
        self._space = DeviceSpace(device)

    @property
    def parameter_shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names and shapes, in order."""
        return self._arguments.shapes

    def check_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Raise an error unless these are writable parameters of this object."""
        arrays = self._arguments.parameters(parameters, "parameters")
        for array, (name, _) in zip(arrays, self._arguments.shapes, strict=True):
            require_writable(array, f"parameters[{name!r}]")

    def _require_no_graph(self, name: str) -> None:
        if self.memory.capturing():
            raise ValueError(
                f"{name} must not be used while a graph is captured: a decoder allocates its memory itself"
            )

    def run(
        self,
        parameters: Any,
        x: Any,
        memory: Any,
        memory_lengths: Any,
        state: Any,
        lengths: Any,
        training: bool,
        draws: bool,
    ) -> tuple[Any, ...]:
        """y, context and the final state, in training with a tape."""
        arguments = self._arguments
        self._require_no_graph("x")
        weights = arguments.parameters(parameters, "parameters")
        arguments.sequence(x, "x", ("T", "B"), None, arguments.inputs)
        steps, rows = (int(x.shape[axis]) for axis in (arguments.time, arguments.row))
        arguments.sequence(memory, "memory", ("S", "B"), rows, arguments.features)
        layout = Layout(arguments.batch_first, False, True, steps, rows)
        initial = arguments.state(state, "state", layout, gradient=False)
        memory_counts = arguments.counts(memory_lengths, "memory_lengths", rows, int(memory.shape[arguments.time]))
        counts = arguments.counts(lengths, "lengths", rows, steps)
        number = self.calls
        self.calls += training or draws
        hard_draw = number if draws and self._calls.hard else None
        made = self._calls.forward(
            self._space, weights, x, memory, memory_counts, initial, counts, training=training, draw=hard_draw
        )
        final = tuple(made.final) if len(made.final) > 1 else made.final[0]
        return (made.y, made.context, final, *((DecoderDeviceTape(self, made),) if training else ()))

    def backward(
        self, tape: DecoderDeviceTape, dy: Any, dcontext: Any, dstate: Any, dlog_prob: Any, dentropy: Any, into: Any
    ) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Gradients of x, memory, the initial state and the parameters."""
        if tape.owner is not self:
            raise ValueError(sentences["foreign_tape"])
        self._require_no_graph("tape")
        arguments, made = self._arguments, tape.made
        steps, rows, _ = made.shape
        outer, sums = self._calls.outer(steps, rows), numpy_dtype(self._calls.sums)
        arguments.gradient(dy, "dy", (*outer, arguments.hidden), arguments.dtype)
        arguments.gradient(dcontext, "dcontext", (*outer, arguments.features), arguments.dtype)
        for array, name in ((dlog_prob, "dlog_prob"), (dentropy, "dentropy")):
            if array is not None and not self._calls.hard:
                raise ValueError(f"{name} must be None for soft attention")
            arguments.gradient(array, name, outer, sums)
        layout = Layout(arguments.batch_first, False, True, steps, rows)
        dfinal = arguments.state(dstate, "dstate", layout, gradient=True)
        given = [("dy", dy), ("dcontext", dcontext), ("dlog_prob", dlog_prob), ("dentropy", dentropy)]
        arrays = self._into(into, made, [*given, *(("dstate", part) for part in dfinal)])
        dx, dmemory, initial, found = self._calls.backward(
            self._space, made, dy, dcontext, dfinal, dlog_prob, dentropy, arrays
        )
        gradients = dict(zip((name for name, _ in arguments.shapes), found, strict=True)) if into is None else into
        return dx, dmemory, tuple(initial) if len(initial) > 1 else initial[0], gradients

    def _into(self, given: Any, made: DecoderCall, others: Sequence[tuple[str, Any]]) -> list[Any] | None:
        """The arrays that gradients of the parameters are added to, or None."""
        if given is None:
            return None
        if not isinstance(given, dict):
            raise TypeError(sentences["gradients"].format(type(given).__name__))
        arguments = self._arguments
        arrays = arguments.parameters(given, "grads.parameters")
        for number, (array, (key, _)) in enumerate(zip(arrays, arguments.shapes, strict=True)):
            name = f"grads.parameters[{key!r}]"
            require_writable(array, name)
            taken = [("what the tape refers to", kept) for kept in made.arrays]
            taken += [(other_name, other) for other_name, other in others if other is not None]
            pairs = zip(arguments.shapes, arrays[:number], strict=False)
            taken += [(f"grads.parameters[{other_key!r}]", other) for (other_key, _), other in pairs]
            for other_name, other in taken:
                require_disjoint(self.memory, array, name, other, other_name)
        return arrays

    def stream(self, parameters: Any, memory: Any, memory_lengths: Any) -> DecoderStream:
        """A stepper with copies of the weights and of the memory."""
        self._require_no_graph("memory")
        arguments = self._arguments
        weights = arguments.parameters(parameters, "parameters")
        arguments.sequence(memory, "memory", ("S", "B"), None, arguments.features)
        rows, locations = (int(memory.shape[axis]) for axis in (arguments.row, arguments.time))
        counts = arguments.counts(memory_lengths, "memory_lengths", rows, locations)
        with self.memory.on():
            weights = [array.copy() for array in weights]
        projected = self._calls.project(self._space, weights, memory, counts)
        return DecoderStream(arguments, self._calls, self._space, weights, projected, counts)


class DecoderStream:
    """Runs a decoder on a device one step at a time and keeps its state."""

    def __init__(
        self,
        arguments: DecoderArguments,
        calls: DecoderCalls,
        space: DeviceSpace,
        weights: list[Any],
        projected: tuple[Any, Any],
        memory_lengths: Any,
    ) -> None:
        self._arguments, self._calls, self._space, self._weights = arguments, calls, space, weights
        self._projected, self._memory_lengths = projected, memory_lengths
        rows, locations = (int(n) for n in projected[0].shape[:2])
        device = arguments.device
        self._lock = threading.Lock()
        self._memory_rows = np.arange(rows)
        self._indices = device.from_host(self._memory_rows)
        self._attention = device.from_host(np.zeros((rows, locations), calls.sums))
        shape = (1, rows, arguments.hidden)
        self._state = [device.empty(shape, dtype) for dtype in arguments.states.values()]
        with device.on():
            for part in self._state:
                part[...] = 0

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One call at a time: calls of the compiled module let other threads run."""
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("the stepper is at work in another thread")
        try:
            yield
        finally:
            self._lock.release()

    def step(self, x_t: Any) -> tuple[Any, Any]:
        """(N, I) -> h and context."""
        with self._alone():
            return self._step(x_t)

    def _step(self, x_t: Any) -> tuple[Any, Any]:
        arguments = self._arguments
        require_array(arguments.device, x_t, "x_t", arguments.dtype, of_layer=True)
        require_shape(x_t, "x_t", (len(self._memory_rows), arguments.inputs))
        require_unit_stride(x_t, "x_t")
        if arguments.device.capturing():
            raise ValueError("x_t must not be used while a graph is captured: a decoder allocates its memory itself")
        h, context, self._attention = self._calls.step(
            self._space, self._weights, x_t, self._state, self._projected, self._memory_lengths, self._indices
        )
        return h, context

    @property
    def attention(self) -> Any:
        """(N, S): a copy."""
        with self._arguments.device.on():
            return self._attention.copy()

    @property
    def state(self) -> Any:
        """h, or (h, c): a copy."""
        with self._alone(), self._arguments.device.on():
            parts = tuple(part.copy() for part in self._state)
        return parts if len(parts) > 1 else parts[0]

    @state.setter
    def state(self, value: Any) -> None:
        arguments = self._arguments
        layout = Layout(False, False, True, 1, len(self._memory_rows))
        given = arguments.state(value, "state", layout, gradient=False)
        if value is None:
            raise TypeError("state must be an array or a pair of arrays, not None")
        with self._alone(), arguments.device.on():
            for part, new in zip(self._state, given, strict=True):
                part[...] = new

    def select(self, rows: list[int]) -> None:
        """Go on with these rows."""
        with self._alone():
            self._select(rows)

    def _select(self, rows: list[int]) -> None:
        count = len(self._memory_rows)
        for row in rows:
            if not 0 <= row < count:
                raise ValueError(f"rows must lie in [0, {count}), not {row}")
        device = self._arguments.device
        index = np.array(rows, np.int64)
        self._memory_rows = self._memory_rows[index]
        self._indices = device.from_host(self._memory_rows)
        taken = device.from_host(index)
        with device.on():
            self._state = [part[:, taken] for part in self._state]
            self._attention = self._attention[taken]

"""The calls of a decoder on a device, on arrays that have been checked, be they CuPy's or torch's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fusedrnn.engines.cuda.layout import ABSENT, View
from fusedrnn.options import Options

ATTENTION = ("weight_query", "weight_memory", "bias", "weight_score")
"""What the compiled call names attention's parameters, the last four of a decoder's."""


class Space(Protocol):
    """Where a call's arrays lie."""

    native: Any
    """The compiled module."""
    index: int
    """Number of the device."""

    def stream(self) -> int:
        """The device's current stream."""

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """A new C-contiguous array; the dtype by its name."""

    def address(self, array: Any) -> int:
        """Where an array's first element lies; 0 for None."""

    def view(self, array: Any, time: int, row: int) -> View:
        """Address and strides of two axes, in elements; 0 for an axis of one element or none."""


@dataclass(frozen=True, slots=True, eq=False)
class DecoderCall:
    """What a forward call made; in training with what its backward pass needs."""

    shape: tuple[int, int, int]
    """T, B, S."""
    net: Any
    attention_call: Any
    y: Any
    context: Any
    final: list[Any]
    attention: Any
    locations: Any
    log_prob: Any
    entropy: Any
    held: tuple[Any, ...]
    """What the tape holds beside these."""
    arrays: tuple[Any, ...]
    """What it refers to: x, memory, y, context and the parameters."""

    @property
    def nbytes(self) -> int:
        """Bytes it holds beyond the arrays it refers to."""
        own = (*self.held, self.attention, self.locations, self.log_prob, self.entropy)
        return sum(int(array.nbytes) for array in own if array is not None)


class DecoderCalls:
    """A decoder of certain options, without its parameters."""

    def __init__(self, native: Any, index: int, options: Options, sizes: tuple[int, int], hard: bool) -> None:
        self.options, self.hard = options, hard
        self.features, self.size = sizes
        self.sums = "float64" if options.dtype == "float64" else "float32"
        self.states = [self.sums if number else options.dtype for number in range(len(options.states))]
        self.time, self.row = (1, 0) if options.batch_first else (0, 1)
        self._net = native.Net(
            cell=options.cell,
            input_size=options.input_size + self.features,
            hidden_size=options.hidden_size,
            layers=1,
            directions=1,
            bias=options.bias,
            reverse=False,
            clip=options.clip,
            dropout=0.0,
            seed=0,
            dtype=options.dtype,
            tf32=False,
            loop_inside=False,
            device=index,
        )

    def outer(self, outer: int, rows: int) -> tuple[int, int]:
        """The first axes of an array of so many steps or locations."""
        return (rows, outer) if self.options.batch_first else (outer, rows)

    def _sequence(self, space: Space, array: Any) -> View:
        return ABSENT if array is None else space.view(array, self.time, self.row)

    def _states(self, space: Space, arrays: Sequence[Any]) -> list[View]:
        return [ABSENT if array is None else space.view(array, 0, 1) for array in arrays]

    def _net_call(self, space: Space, steps: int, rows: int, weights: Sequence[Any], **given: Any) -> Any:
        addresses = [space.address(array) for array in weights[: -len(ATTENTION)]]
        fixed = {"steps": steps, "rows": rows, "persistent": False, "recompute": 0, "reset": ABSENT, "calls": 0}
        return space.native.ForwardCall(**fixed, weights=addresses, **given)

    def _attention_call(self, space: Space, shape: tuple[int, int, int], weights: Sequence[Any], **given: Any) -> Any:
        steps, rows, locations = shape
        parameters = zip(ATTENTION, map(space.address, weights[-len(ATTENTION) :]), strict=True)
        return space.native.AdditiveAttentionCall(
            dtype=self.options.dtype,
            steps=steps,
            rows=rows,
            locations=locations,
            query_size=self.options.hidden_size,
            features=self.features,
            size=self.size,
            **dict(parameters),
            **given,
        )

    def forward(
        self,
        space: Space,
        weights: Sequence[Any],
        x: Any,
        memory: Any,
        memory_lengths: Any,
        initial: Sequence[Any],
        lengths: Any,
        *,
        training: bool,
        draw: int | None,
    ) -> DecoderCall:
        """Run a sequence; with hard attention `draw` is the number of the call whose locations are drawn.

        Without one they are the most probable ones. Lengths are int64 on the device, or None.
        """
        steps, rows, locations = int(x.shape[self.time]), int(x.shape[self.row]), int(memory.shape[self.time])
        outer, dtype = self.outer(steps, rows), self.options.dtype
        y, context = (space.empty((*outer, n), dtype) for n in (self.options.hidden_size, self.features))
        final = [space.empty((1, rows, self.options.hidden_size), kind) for kind in self.states]
        keys = attention = where = log_prob = entropy = None
        if training:
            keys = space.empty((rows, locations, self.size), self.sums)
            attention = space.empty((*outer, locations), self.sums)
        if training and self.hard:
            where = space.empty(outer, "int64")
            log_prob, entropy = space.empty(outer, self.sums), space.empty(outer, self.sums)
        net = self._net_call(
            space,
            steps,
            rows,
            weights,
            training=training,
            x=self._sequence(space, x),
            y=self._sequence(space, y),
            initial=self._states(space, initial),
            final=self._states(space, final),
            lengths=space.address(lengths),
        )
        call = self._attention_call(
            space,
            (steps, rows, locations),
            weights,
            memory=self._sequence(space, memory),
            memory_lengths=space.address(memory_lengths),
            memory_rows=rows,
            keys=space.address(keys),
            attention=self._sequence(space, attention),
            context=self._sequence(space, context),
            kind=0 if not self.hard else 2 if draw is None else 1,
            seed=self.options.seed,
            number=draw or 0,
            location=self._sequence(space, where),
            log_prob=self._sequence(space, log_prob),
            entropy=self._sequence(space, entropy),
        )
        kept = space.empty((self._net.kept_bytes(net),), "uint8") if training else None
        workspace = space.empty((self._net.decoder_bytes(net, call, False),), "uint8")
        self._net.decoder_forward(space.index, space.stream(), net, call, space.address(kept), space.address(workspace))
        held = (kept, keys, memory_lengths)
        arrays = (x, memory, y, context, *weights)
        results = (y, context, final, attention, where, log_prob, entropy)
        return DecoderCall((steps, rows, locations), net, call, *results, held, arrays)

    def backward(
        self,
        space: Space,
        made: DecoderCall,
        dy: Any,
        dcontext: Any,
        dfinal: Sequence[Any],
        dlog_prob: Any,
        dentropy: Any,
        into: Sequence[Any] | None,
    ) -> tuple[Any, Any, list[Any], list[Any]]:
        """Gradients of x, memory, the initial state and the parameters, the last added to `into` if given."""
        x, memory, _, _, *weights = made.arrays
        rows, dtype = made.shape[1], self.options.dtype
        dx, dmemory = (space.empty(tuple(array.shape), dtype) for array in (x, memory))
        initial = [space.empty((1, rows, self.options.hidden_size), kind) for kind in self.states]
        arrays = [space.empty(tuple(w.shape), dtype) for w in weights] if into is None else list(into)
        addresses = [space.address(array) for array in arrays]
        names = ("dweight_query", "dweight_memory", "dbias", "dweight_score")
        call = made.attention_call.with_fields(
            ready=True,
            dcontext=self._sequence(space, dcontext),
            dlog_prob=self._sequence(space, dlog_prob),
            dentropy=self._sequence(space, dentropy),
            dmemory=self._sequence(space, dmemory),
            accumulate=into is not None,
            **dict(zip(names, addresses[-len(names) :], strict=True)),
        )
        workspace = space.empty((self._net.decoder_bytes(made.net, call, True),), "uint8")
        self._net.decoder_backward(
            space.index,
            space.stream(),
            made.net,
            call,
            dy=self._sequence(space, dy),
            dx=self._sequence(space, dx),
            dfinal=self._states(space, dfinal),
            dinitial=self._states(space, initial),
            gradients=addresses[: -len(names)],
            accumulate=into is not None,
            workspace=space.address(workspace),
        )
        return dx, dmemory, initial, arrays

    def project(self, space: Space, weights: Sequence[Any], memory: Any, memory_lengths: Any) -> tuple[Any, Any]:
        """A memory's values and keys, for steps: (B, S, M) and (B, S, A)."""
        rows, locations = int(memory.shape[self.row]), int(memory.shape[self.time])
        values = space.empty((rows, locations, self.features), self.options.dtype)
        keys = space.empty((rows, locations, self.size), self.sums)
        call = self._attention_call(
            space,
            (0, rows, locations),
            weights,
            memory=self._sequence(space, memory),
            memory_lengths=space.address(memory_lengths),
            memory_rows=rows,
            values=space.address(values),
            keys=space.address(keys),
        )
        workspace = space.empty((call.bytes(),), "uint8")
        call.forward(space.index, space.stream(), space.address(workspace))
        return values, keys

    def step(
        self,
        space: Space,
        weights: Sequence[Any],
        x: Any,
        state: Sequence[Any],
        projected: tuple[Any, Any],
        memory_lengths: Any,
        memory_rows: Any,
    ) -> tuple[Any, Any, Any]:
        """h, context and attention of one step of x (N, I); the state is written."""
        rows, locations = int(x.shape[0]), int(projected[0].shape[1])
        h, context = (space.empty((rows, n), self.options.dtype) for n in (self.options.hidden_size, self.features))
        attention = space.empty((rows, locations), self.sums)

        def by_row(array: Any) -> View:
            address, _, row = space.view(array, 1, 0)
            return address, 0, row

        views = self._states(space, state)  # which are read before they are written, element by element
        net = self._net_call(
            space,
            1,
            rows,
            weights,
            training=False,
            x=by_row(x),
            y=by_row(h),
            initial=views,
            final=views,
            lengths=0,
        )
        call = self._attention_call(
            space,
            (1, rows, locations),
            weights,
            memory_lengths=space.address(memory_lengths),
            memory_rows=int(projected[0].shape[0]),
            memory_row=space.address(memory_rows),
            values=space.address(projected[0]),
            keys=space.address(projected[1]),
            ready=True,
            attention=by_row(attention),
            context=by_row(context),
            kind=2 if self.hard else 0,
        )
        workspace = space.empty((self._net.decoder_bytes(net, call, False),), "uint8")
        self._net.decoder_forward(space.index, space.stream(), net, call, 0, space.address(workspace))
        return h, context, attention

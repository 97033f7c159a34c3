"""One step at a time on a device."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusedrnn._core import sentences
from fusedrnn.arguments import require_integer
from fusedrnn.arrays.buffers import Buffers
from fusedrnn.arrays.checks import (
    require_array,
    require_disjoint,
    require_shape,
    require_unit_stride,
    require_writable,
)
from fusedrnn.engines.cuda.arguments import Arguments
from fusedrnn.engines.cuda.layout import ABSENT, stride_of


class Stepper:
    """Runs a layer on a device one step at a time and keeps the state; made by ``layer.stream``.

    Its state lies in `buffers`, which calls of one step write; `persistent` steps run by block programs.
    """

    def __init__(
        self, arguments: Arguments, net: Any, parameters: dict[str, Any], buffers: Buffers, state: Any, persistent: bool
    ) -> None:
        self._arguments = arguments
        self._net = net
        self._parameters = parameters
        self._buffers = buffers
        self._persistent = persistent
        self._batch = int(buffers.layout.rows)
        parts = arguments.state(state, "state", buffers.layout, gradient=False)
        with arguments.device.on():
            self._first = [0 if part is None else part.copy() for part in parts]
        self.reset()

    def _parts(self) -> tuple[Any, ...]:
        return self._arguments.parts(self._buffers.state)

    @property
    def state(self) -> Any:
        """The state, (L, B, H) or a pair of such: a copy. Setting it copies."""
        with self._arguments.device.on():
            parts = tuple(part.copy() for part in self._parts())
        return parts if len(parts) > 1 else parts[0]

    @state.setter
    def state(self, value: Any) -> None:
        given = self._arguments.state(value, "state", self._buffers.layout, gradient=False)
        if value is None:
            raise TypeError("state must be an array or a pair of arrays, not None")
        with self._arguments.device.on():
            for part, new in zip(self._parts(), given, strict=True):
                part[...] = new

    def reset(self, rows: Any = None) -> None:
        """Set the state of all rows to what it was at first, or of some: a host mask (B,) or integers."""
        if rows is None:
            chosen: list[int] = list(range(self._batch))
        else:
            host = np.asarray(rows)
            if host.dtype == bool:
                if host.shape != (self._batch,):
                    raise ValueError(sentences["shape"].format("rows", (self._batch,), host.shape))
                host = np.flatnonzero(host)
            listed = host.reshape(-1).tolist() if host.size else []
            chosen = [require_integer(row, "rows", least=0, most=self._batch - 1) for row in listed]
        with self._arguments.device.on():
            for part, first in zip(self._parts(), self._first, strict=True):
                if rows is None:
                    part[...] = first
                else:
                    for row in chosen:
                        part[:, row] = first if isinstance(first, int) else first[:, row]

    def step(self, x_t: Any, out: Any = None) -> Any:
        """One step: (B, I) -> h of the last layer, (B, H). With `out` nothing is allocated; a graph may capture it."""
        arguments, device, held = self._arguments, self._arguments.device, self._buffers
        require_array(device, x_t, "x_t", arguments.dtype, of_layer=True)
        single = self._batch == 1 and x_t.ndim == 1
        require_shape(x_t, "x_t", (arguments.inputs,) if single else (self._batch, arguments.inputs))
        require_unit_stride(x_t, "x_t")
        shape = (arguments.hidden,) if single else (self._batch, arguments.hidden)
        if out is None:
            if device.capturing():
                raise ValueError("out must be given while a graph is captured: its memory must be held by the caller")
            out = device.empty(shape, arguments.dtype)
        else:
            require_array(device, out, "out", arguments.dtype)
            require_shape(out, "out", shape)
            require_unit_stride(out, "out")
            require_writable(out, "out")
            require_disjoint(device, out, "out", x_t, "x_t")
        row_axis = -1 if single else 0
        state = held.layout.states(device, self._parts())
        # The state is read before it is written, element by element.
        call = device.native.ForwardCall(
            steps=1,
            rows=self._batch,
            training=False,
            persistent=self._persistent,
            recompute=0,
            weights=arguments.addresses([self._parameters[name] for name, _ in arguments.shapes]),
            x=(device.address(x_t), 0, stride_of(x_t, row_axis)),
            y=(device.address(out), 0, stride_of(out, row_axis)),
            initial=state,
            final=state,
            lengths=0,
            reset=ABSENT,
            mask=ABSENT,
            calls=0,
        )
        self._net.forward(device.index, device.stream(), call, 0, device.address(held.workspace))
        return out

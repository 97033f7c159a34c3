"""A decoder's calls on CUDA tensors, without CuPy."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fusedrnn._core import sentences
from fusedrnn.engines.cuda.decoder_calls import DecoderCall, DecoderCalls
from fusedrnn.engines.cuda.layout import View
from fusedrnn.ops.labels import lengths_of
from fusedrnn.options import Options
from fusedrnn.torch import device
from fusedrnn.torch.options import near
from fusedrnn.torch.tensors import address, contiguous, unit_stride


class TensorSpace:
    """`engines.cuda.decoder_calls.Space` of tensors on the device of one of them."""

    def __init__(self, like: Tensor) -> None:
        self.like, self.native, self.index = like, device.kind.native, device.kind.index(like)

    def stream(self) -> int:
        return device.kind.stream(self.index)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        if dtype == "uint8":
            return device.kind.memory(self.like, shape[0])
        return self.like.new_empty(shape, dtype=getattr(torch, dtype))

    def address(self, array: Any) -> int:
        return address(array)

    def view(self, array: Any, time: int, row: int) -> View:
        steps, rows = (array.stride(axis) if array.shape[axis] > 1 else 0 for axis in (time, row))
        return address(array), steps, rows


@functools.lru_cache(maxsize=64)
def _calls(native: Any, index: int, options: Options, sizes: tuple[int, int], hard: bool) -> DecoderCalls:
    return DecoderCalls(native, index, options, sizes, hard)


def _counts(lengths: Any, name: str, rows: int, most: int, x: Tensor) -> Tensor | None:
    """Lengths as int64 in memory of their own on x's device, where those that lie there are not looked at."""
    if lengths is None:
        return None
    if isinstance(lengths, Tensor) and device.kind.holds(lengths):
        if lengths.dtype.is_floating_point or lengths.dtype.is_complex or lengths.dtype == torch.bool:
            raise TypeError(f"{name} must be integers, not {lengths.dtype}")
        if tuple(lengths.shape) != (rows,):
            raise ValueError(sentences["shape"].format(name, (rows,), tuple(lengths.shape)))
        return lengths.to(x.device, torch.int64, copy=True).contiguous()
    host = lengths.numpy() if isinstance(lengths, Tensor) else lengths
    return near(torch.from_numpy(lengths_of(host, name, rows, most)), x, name)


@dataclass(frozen=True)
class DeviceCall:
    """One call, but for its tensors; as `attention._Call`, of the CPU."""

    options: Options
    sizes: tuple[int, int]
    hard: bool
    memory_lengths: Any
    lengths: Any
    states: int
    """Tensors of an initial state: none, or all of the cell's."""
    draw: int | None
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    """Of the parameters."""

    def _bound(self, x: Tensor) -> DecoderCalls:
        index = device.kind.index(x)
        options = replace(self.options, dtype=device.DTYPES[x.dtype], device=f"cuda:{index}")
        return _calls(device.kind.native, index, options, self.sizes, self.hard)

    def _check(self, calls: DecoderCalls, tensors: Sequence[Tensor]) -> None:
        x, memory, *rest = tensors
        batch_first = self.options.batch_first
        for tensor, name, letter, width in (
            (x, "x", "T", self.options.input_size),
            (memory, "memory", "S", self.sizes[0]),
        ):
            rows: Any = "B" if tensor is x else int(x.shape[calls.row])
            if tensor.dim() != 3 or tensor.shape[2] != width or (rows != "B" and tensor.shape[calls.row] != rows):
                outer = f"{rows}, {letter}" if batch_first else f"{letter}, {rows}"
                raise ValueError(sentences["shape"].format(name, f"({outer}, {width})", tuple(tensor.shape)))
        state = (1, int(x.shape[calls.row]), self.options.hidden_size)
        wanted = [("state", state)] * self.states + list(self.shapes)
        for tensor, (name, shape) in zip(rest, wanted, strict=True):
            if tuple(tensor.shape) != shape:
                raise ValueError(sentences["shape"].format(name, shape, tuple(tensor.shape)))

    def run(self, tensors: Sequence[Tensor], training: bool) -> tuple[list[Tensor], Any]:
        """y, context and the final states, and in training the tape."""
        calls = self._bound(tensors[0])
        self._check(calls, tensors)
        x, memory, *rest = (tensor.detach() for tensor in tensors)
        rows = int(x.shape[calls.row])
        counts = [
            _counts(self.memory_lengths, "memory_lengths", rows, int(memory.shape[calls.time]), x),
            _counts(self.lengths, "lengths", rows, int(x.shape[calls.time]), x),
        ]
        kinds = [getattr(torch, name) for name in calls.states]
        given = [unit_stride(s).to(kind) for s, kind in zip(rest[: self.states], kinds, strict=False)]
        initial: Sequence[Tensor | None] = given or [None] * len(kinds)
        weights = [contiguous(w) for w in rest[self.states :]]
        made = calls.forward(
            TensorSpace(x),
            weights,
            unit_stride(x),
            unit_stride(memory),
            counts[0],
            initial,
            counts[1],
            training=training,
            draw=self.draw,
        )
        # What is returned gets autograd's graph, which holds the tape, which so must hold other tensors.
        outputs = [made.y.detach(), made.context.detach(), *(s.detach().to(x.dtype) for s in made.final)]
        return outputs, made if training else None

    def told(self, tape: DecoderCall) -> tuple[list[Tensor], list[Tensor]]:
        """Copies of what a tape tells: what has gradients, and attention and locations."""
        drawn = [] if tape.locations is None else [tape.log_prob, tape.entropy]
        rest = [tensor for tensor in (tape.attention, tape.locations) if tensor is not None]
        return [tensor.clone() for tensor in drawn], [tensor.clone() for tensor in rest]

    def differentiate(self, tape: DecoderCall, given: Sequence[Tensor | None]) -> list[Tensor]:
        """Gradients of the tensors of `run`, from those of its outputs and of what `told` gives first."""
        x = tape.arrays[0]
        calls = self._bound(x)
        states = len(calls.states)
        plain = [None if g is None else unit_stride(g.detach()) for g in given]
        final = [
            None if g is None else g.to(getattr(torch, name))
            for g, name in zip(plain[2 : 2 + states], calls.states, strict=True)
        ]
        drawn = plain[2 + states :] or [None, None]
        dx, dmemory, initial, parameters = calls.backward(
            TensorSpace(x), tape, plain[0], plain[1], final, drawn[0], drawn[1], None
        )
        return [dx, dmemory, *(s.to(x.dtype) for s in initial[: self.states]), *parameters]

"""The compiled engine on torch tensors: one autograd node for all the layers of a call.

Everything here works on tensors that `calls.py` has checked: strided, on the CPU, of one dtype, of the right shapes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusedrnn import _core
from fusedrnn.torch.rerun import rerun

BIASES = 2
ADDRESSES = 5  # of a direction: weight_ih, weight_hh, bias_ih, bias_hh, peephole


@functools.lru_cache(maxsize=1024)
def engine_of(
    cell: str, input_size: int, hidden_size: int, layers: int, bidirectional: bool, dtype: torch.dtype
) -> _core.RawRecurrent:
    """The compiled object of a configuration; it holds sizes only."""
    width = "float32" if dtype == torch.float32 else "float64"
    return _core.RawRecurrent(cell, input_size, hidden_size, layers, bidirectional, width)


@dataclass
class Call:
    """What a call runs, beside its tensors.

    `form` says how x lies: "time" (T, B, I), "batch" (B, T, I), "packed" (N, I) or "step" (B, I). `bias` and
    `peephole` say which parameters each direction has. `batch_sizes` belongs to "packed"; `lengths` (B,) of int64 and
    `reset` of bool and x's leading shape, are contiguous or None.
    """

    cell: str
    input_size: int
    hidden_size: int
    layers: int
    bidirectional: bool
    bias: bool
    peephole: bool
    form: str
    steps: int
    rows: int
    batch_sizes: Tensor | None = None
    lengths: Tensor | None = None
    reset: Tensor | None = None
    lists: _core.RowLists | None = None

    @property
    def directions(self) -> int:
        """1 or 2."""
        return 2 if self.bidirectional else 1

    @property
    def two_states(self) -> bool:
        """Whether the state is (h, c)."""
        return self.cell.startswith("lstm")

    def engine(self, dtype: torch.dtype) -> _core.RawRecurrent:
        """The compiled object."""
        return engine_of(self.cell, self.input_size, self.hidden_size, self.layers, self.bidirectional, dtype)

    def make_lists(self) -> None:
        """Say which rows run when, unless that is all of them always. ValueError where the counts make no sense."""
        if self.form == "packed":
            assert self.batch_sizes is not None
            rows = sum_of(self.batch_sizes)
            self.lists = _core.RowLists.packed(self.steps, self.batch_sizes.data_ptr(), rows)
        elif self.lengths is not None or self.reset is not None:
            reset, strides = 0, (0, 0)
            if self.reset is not None:
                reset, strides = self.reset.data_ptr(), self.strides(self.reset)
            lengths = 0 if self.lengths is None else self.lengths.data_ptr()
            self.lists = _core.RowLists.padded(self.steps, self.rows, lengths, reset, *strides)

    def strides(self, tensor: Tensor) -> tuple[int, int]:
        """Strides of time and row in a sequence of this form."""
        strides = tensor.stride()
        if self.form == "time":
            return strides[0], strides[1]
        return (strides[1] if self.form == "batch" else 0), strides[0]

    def sequence(self, tensor: Tensor | None) -> tuple[int, int, int]:
        """The address of a sequence and its strides, as the engine takes them."""
        return (0, 0, 0) if tensor is None else (tensor.data_ptr(), *self.strides(tensor))

    def addresses(self, tensors: Sequence[Tensor | None]) -> list[int]:
        """Those of the parameters, or their gradients, in the engine's order; 0 for what there is not."""
        found = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        if self.bias and self.peephole:
            return found
        each = 2 + BIASES * self.bias + self.peephole
        addresses: list[int] = []
        for first in range(0, len(found), each):
            part = found[first : first + each]
            if not self.bias:
                part[2:2] = (0, 0)
            addresses += part if self.peephole else [*part, 0]
        return addresses


def sum_of(counts: Tensor) -> int:
    """The sum of a tensor of integers."""
    return int(counts.sum())


def address(tensor: Tensor | None) -> int:
    """Where a tensor's elements are; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def unit_stride(tensor: Tensor) -> Tensor:
    """The tensor with neighbours in its last axis next to each other in memory; copied only where they are not."""
    if tensor.stride(-1) == 1 and not tensor.is_neg():
        return tensor
    return tensor.resolve_neg().contiguous()


def contiguous(tensor: Tensor) -> Tensor:
    """The tensor, copied only where its elements lie otherwise."""
    return tensor if tensor.is_contiguous() and not tensor.is_neg() else tensor.resolve_neg().contiguous()


def forward(
    call: Call, x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: Sequence[Tensor], training: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Run a call; gives y, the final h and c, and in training the tape. A single step has no y but its h."""
    engine = call.engine(x.dtype)
    state = (call.layers * call.directions, call.rows, call.hidden_size)
    if call.form == "step":
        state = state[1:]
    hn = x.new_empty(state)
    cn = x.new_empty(state) if call.two_states else None
    y = hn if call.form == "step" else x.new_empty((*x.shape[:-1], call.directions * call.hidden_size))
    tape = x.new_empty(engine.tape_row * (x.numel() // call.input_size)) if training else None
    engine.forward(
        torch.get_num_threads(),
        call.steps,
        call.rows,
        call.lists,
        call.sequence(x),
        call.sequence(y),
        (address(h0), address(c0)),
        (hn.data_ptr(), address(cn)),
        call.addresses(weights),
        address(tape),
    )
    return y, hn, cn, tape


def backward(
    call: Call,
    x: Tensor,
    y: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    tape: Tensor,
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of x, h0, c0 and the weights from those of y, hn and cn, None where not `wanted`."""
    dy = None if gradients[0] is None else unit_stride(gradients[0])
    dhn, dcn = (None if d is None else contiguous(d) for d in gradients[1:])
    shape = (call.layers * call.directions, call.rows, call.hidden_size)
    if call.form == "step":
        shape = shape[1:]
    dx = x.new_empty(x.shape) if wanted[0] else None
    dh0 = x.new_empty(shape)
    dc0 = x.new_empty(shape) if call.two_states else None
    dweights = [w.new_zeros(w.shape) if want else None for w, want in zip(weights, wanted[3:], strict=True)]
    call.engine(x.dtype).backward(
        torch.get_num_threads(),
        call.steps,
        call.rows,
        call.lists,
        call.sequence(x),
        call.sequence(y),
        (address(h0), address(c0)),
        call.addresses(weights),
        tape.data_ptr(),
        call.sequence(dy),
        (address(dhn), address(dcn)),
        call.sequence(dx),
        (dh0.data_ptr(), address(dc0)),
        call.addresses(dweights),
    )
    return (dx, dh0 if wanted[1] else None, dc0 if wanted[2] else None, *dweights)


class Layers(torch.autograd.Function):
    """`forward` and `backward` as a node of the graph; a second derivative reruns the call through torch's own."""

    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor, h0: Tensor | None, c0: Tensor | None, *weights: Tensor) -> Any:  # type: ignore[override]
        y, hn, cn, tape = forward(call, x, h0, c0, weights, training=True)
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, h0, c0, tape, *weights)
        # Hooks may hand back other tensors than were saved, which the engine would read by these sizes.
        ctx.hooked = torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
        # y is not saved as the others are: what torch's own layers return may be written in place before the backward
        # pass. Where its version tells that it was, its values are made again, to the same bits.
        ctx.y, ctx.version = y.detach(), y._version
        if call.form == "step":
            return hn if cn is None else (hn, cn)
        return (y, hn) if cn is None else (y, hn, cn)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        call = ctx.call
        x, h0, c0, tape, *weights = ctx.saved_tensors
        if call.form == "step":
            gradients = (None, *gradients)
        dy, dhn, dcn = gradients if call.two_states else (*gradients, None)
        wanted = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():
            return None, *rerun(call, (x, h0, c0, *weights), (dy, dhn, dcn), wanted)
        if ctx.hooked:
            x, h0, c0, tape, weights = check_saved(call, x, h0, c0, tape, weights)
        y = ctx.y
        if y._version != ctx.version:
            y = forward(call, x, h0, c0, weights, training=False)[0]
        return None, *backward(call, x, y, h0, c0, weights, tape, (dy, dhn, dcn), wanted)


def check_saved(
    call: Call, x: Tensor, h0: Tensor | None, c0: Tensor | None, tape: Tensor, weights: list[Tensor]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, list[Tensor]]:
    """What a saved-tensor hook gave back, laid out as the engine reads it; a RuntimeError where it does not fit."""
    packed = call.lists is not None and call.form == "packed"
    rows = sum_of(call.batch_sizes) if packed and call.batch_sizes is not None else call.steps * call.rows
    state = call.layers * call.directions * call.rows * call.hidden_size
    sizes = [rows * call.input_size, state, state, call.engine(x.dtype).tape_row * rows]
    found = (x, h0, c0, tape)
    fits = all(t is None or t.numel() == size for t, size in zip(found, sizes, strict=True))
    alike = all(t is None or (t.dtype == x.dtype and t.is_cpu) for t in (*found, *weights))
    if not (fits and alike and shapes_fit(call, weights)):
        raise RuntimeError("a saved-tensor hook gave back a tensor of another shape, dtype or device than was saved")
    h0, c0 = (None if s is None else contiguous(s) for s in (h0, c0))
    return contiguous(x), h0, c0, contiguous(tape), [contiguous(w) for w in weights]


def shapes_fit(call: Call, weights: Sequence[Tensor]) -> bool:
    """Whether the parameters have the shapes that the call's sizes ask for."""
    shapes = shapes_of(
        call.cell, call.input_size, call.hidden_size, call.layers, call.directions, call.bias, call.peephole
    )
    return len(weights) == len(shapes) and all(w.shape == s for w, s in zip(weights, shapes, strict=True))


@functools.lru_cache(maxsize=1024)
def shapes_of(
    cell: str, input_size: int, hidden_size: int, layers: int, directions: int, bias: bool, peephole: bool
) -> tuple[tuple[int, ...], ...]:
    """Shapes of the parameters of all directions of all layers, in torch's order."""
    shapes = _core.Recurrent(
        cell=cell,
        input_size=input_size,
        hidden_size=hidden_size,
        num_layers=layers,
        bias=bias,
        bidirectional=directions == 2,
        dropout=0.0,
        seed=0,
        dtype="float32",
        batch_first=False,
        single_step=False,
    ).parameter_shapes
    return tuple(shape for _, shape in shapes)

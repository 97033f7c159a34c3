"""The compiled engine on torch tensors: one autograd node for all the layers of a call.

Everything here works on tensors that `calls.py` has checked: strided, on the CPU, of one dtype, of the right shapes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusedrnn import _core
from fusedrnn.torch.rerun import rerun

NO_SEQUENCE = (0, 0, 0)


class Config:
    """The sizes of a module's layers, what follows from them, and the compiled objects for them."""

    def __init__(
        self, cell: str, input_size: int, hidden_size: int, layers: int, bidirectional: bool, bias: bool
    ) -> None:
        self.cell = cell
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.layers = layers
        self.bidirectional = bidirectional
        self.bias = bias
        self.directions = 2 if bidirectional else 1
        self.width = self.directions * hidden_size
        self.two_states = cell.startswith("lstm")

    @functools.cached_property
    def engines(self) -> dict[torch.dtype, _core.RawRecurrent]:
        """The compiled object for each dtype."""
        sizes = (self.cell, self.input_size, self.hidden_size, self.layers, self.bidirectional, self.bias)
        names = {torch.float32: "float32", torch.float64: "float64"}
        return {dtype: _core.RawRecurrent(*sizes, name) for dtype, name in names.items()}

    @functools.cached_property
    def tape_row(self) -> int:
        """Elements of the tape for each row of a sequence."""
        return self.engines[torch.float32].tape_row

    @functools.cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the parameters of all directions of all layers, in torch's order."""
        return [tuple(shape) for shape in self.engines[torch.float32].parameter_shapes]

    def at_layer(self, layer: int) -> Config:
        """The configuration of one layer alone."""
        inputs = self.input_size if layer == 0 else self.width
        return config_of(self.cell, inputs, self.hidden_size, 1, self.bidirectional, self.bias)

    def shapes_fit(self, weights: Sequence[Tensor]) -> bool:
        """Whether the parameters have the shapes that the sizes ask for."""
        return [w.shape for w in weights] == self.shapes


_cached_config = functools.lru_cache(maxsize=1024)(Config)


def config_of(cell: str, input_size: int, hidden_size: int, layers: int, bidirectional: bool, bias: bool) -> Config:
    """A configuration, made once; a compiler, which cannot look into the cache, makes its own."""
    make = Config if torch.compiler.is_compiling() else _cached_config
    return make(cell, input_size, hidden_size, layers, bidirectional, bias)


@dataclass(slots=True)
class Call:
    """What a call runs, beside its tensors.

    `form` says how x lies: "time" (T, B, I), "batch" (B, T, I), "packed" (N, I) or "step" (B, I). `batch_sizes` belongs
    to "packed"; `lengths`, (B,) of int64, and `reset`, bool and of x's leading shape, are None where no row ends early
    and no link is cut.
    """

    config: Config
    form: str
    steps: int
    rows: int
    batch_sizes: Tensor | None = None
    lengths: Tensor | None = None
    reset: Tensor | None = None
    lists: _core.RowLists | None = None

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of h and of c."""
        if self.form == "step":
            return self.rows, self.config.hidden_size
        return self.config.layers * self.config.directions, self.rows, self.config.hidden_size

    def make_lists(self) -> None:
        """Say which rows run when, unless that is all of them always. ValueError where the counts make no sense."""
        if self.batch_sizes is not None:
            self.lists = _core.RowLists.packed(self.steps, self.batch_sizes.data_ptr(), sum_of(self.batch_sizes))
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
    config, shape = call.config, call.state_shape
    hn = x.new_empty(shape)
    cn = x.new_empty(shape) if config.two_states else None
    y = hn if call.form == "step" else x.new_empty((*x.shape[:-1], config.width))
    tape = x.new_empty(config.tape_row * (x.numel() // config.input_size)) if training else None
    config.engines[x.dtype].forward(
        torch.get_num_threads(),
        call.steps,
        call.rows,
        call.lists,
        x.data_ptr(),
        *call.strides(x),
        y.data_ptr(),
        *call.strides(y),
        address(h0),
        address(c0),
        hn.data_ptr(),
        address(cn),
        [w.data_ptr() for w in weights],
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
    dx = None if not wanted[0] else torch.empty_like(x) if x.is_contiguous() else x.new_empty(x.shape)
    dh0 = x.new_empty(call.state_shape) if wanted[1] else None
    dc0 = x.new_empty(call.state_shape) if wanted[2] else None
    dweights = [torch.empty_like(w) if want else None for w, want in zip(weights, wanted[3:], strict=True)]
    call.config.engines[x.dtype].backward(
        torch.get_num_threads(),
        call.steps,
        call.rows,
        call.lists,
        x.data_ptr(),
        *call.strides(x),
        y.data_ptr(),
        *call.strides(y),
        address(h0),
        address(c0),
        [w.data_ptr() for w in weights],
        tape.data_ptr(),
        *(NO_SEQUENCE if dy is None else (dy.data_ptr(), *call.strides(dy))),
        address(dhn),
        address(dcn),
        *(NO_SEQUENCE if dx is None else (dx.data_ptr(), *call.strides(dx))),
        address(dh0),
        address(dc0),
        [address(d) for d in dweights],
    )
    return dx, dh0, dc0, *dweights


class Layers(torch.autograd.Function):
    """`forward` and `backward` as a node of the graph; a second derivative reruns the call through torch's own."""

    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor, h0: Tensor | None, c0: Tensor | None, *weights: Tensor) -> Any:
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
        dy, dhn, dcn = gradients if call.config.two_states else (*gradients, None)
        wanted = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():
            return None, *rerun(call, (x, h0, c0, *weights), (dy, dhn, dcn), wanted)
        if ctx.hooked:
            x, h0, c0, tape, weights = check_saved(call, x, h0, c0, tape, weights)
        y = ctx.y
        if y._version != ctx.version:
            y = forward(call, x, h0, c0, weights, training=False)[0]
        return None, *backward(call, x, y, h0, c0, weights, tape, (dy, dhn, dcn), wanted)


# torch.autograd.Function.apply less what it does for torch.func, which is not active where this is called.
apply_layers = super(torch.autograd.Function, Layers).apply


def check_saved(
    call: Call, x: Tensor, h0: Tensor | None, c0: Tensor | None, tape: Tensor, weights: list[Tensor]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, list[Tensor]]:
    """What a saved-tensor hook gave back, laid out as the engine reads it; a RuntimeError where it does not fit."""
    rows = call.steps * call.rows if call.batch_sizes is None else sum_of(call.batch_sizes)
    state = math.prod(call.state_shape)
    sizes = [rows * call.config.input_size, state, state, call.config.tape_row * rows]
    found = (x, h0, c0, tape)
    fits = all(t is None or t.numel() == size for t, size in zip(found, sizes, strict=True))
    alike = all(t is None or (t.dtype == x.dtype and t.is_cpu) for t in (*found, *weights))
    if not (fits and alike and call.config.shapes_fit(weights)):
        raise RuntimeError("a saved-tensor hook gave back a tensor of another shape, dtype or device than was saved")
    h0, c0 = (None if s is None else contiguous(s) for s in (h0, c0))
    return contiguous(x), h0, c0, contiguous(tape), [contiguous(w) for w in weights]

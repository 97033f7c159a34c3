"""The compiled engine on torch tensors: one autograd node for all the layers of a call.

Everything here works on tensors that `calls.py` has checked: strided, on one device, of one dtype, of the right shapes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch

from fusedrnn import _core
from fusedrnn.torch import device
from fusedrnn.torch.rerun import rerun
from fusedrnn.torch.tensors import address, contiguous, unit_stride

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
    and no link is cut. `on_device`: the CUDA engine runs it.
    """

    config: Config
    form: str
    steps: int
    rows: int
    batch_sizes: Tensor | None = None
    lengths: Tensor | None = None
    reset: Tensor | None = None
    lists: _core.RowLists | None = None
    on_device: bool = False

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of h and of c."""
        if self.form == "step":
            return self.rows, self.config.hidden_size
        return self.config.layers * self.config.directions, self.rows, self.config.hidden_size

    def make_lists(self, x: Tensor) -> None:
        """Say which rows of x run when, unless that is all of them always. ValueError where the counts do not fit."""
        if self.batch_sizes is not None:
            self.lists = _core.RowLists.packed(self.steps, address(self.batch_sizes), x.shape[0])
        elif self.on_device:
            self.lists = None  # the device looks at lengths and resets itself
        elif self.lengths is not None or self.reset is not None:
            reset, strides = 0, (0, 0)
            if self.reset is not None:
                reset, strides = address(self.reset), self.strides(self.reset)
            self.lists = _core.RowLists.padded(self.steps, self.rows, address(self.lengths), reset, *strides)

    def tape_form(self, x: Tensor) -> tuple[Any, torch.dtype]:
        """Size and dtype of the tape for inputs like x."""
        if self.on_device:
            return device.tape_bytes(self, x), torch.uint8
        return self.config.tape_row * (x.shape[0] if self.form == "packed" else self.steps * self.rows), x.dtype

    def strides(self, tensor: Tensor) -> tuple[int, int]:
        """Strides of time and row in a sequence of this form."""
        strides = tensor.stride()
        if self.form == "time":
            return strides[0], strides[1]
        return (strides[1] if self.form == "batch" else 0), strides[0]


def forward(
    call: Call, x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: Sequence[Tensor], training: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Run a call; gives y, the final h and c, and in training the tape. A single step has no y but its h."""
    if call.on_device:
        return device.forward(call, x, h0, c0, weights, training)
    config, shape = call.config, call.state_shape
    hn = x.new_empty(shape)
    cn = x.new_empty(shape) if config.two_states else None
    y = hn if call.form == "step" else x.new_empty((*x.shape[:-1], config.width))
    tape = x.new_empty(call.tape_form(x)[0]) if training else None
    config.engines[x.dtype].forward(
        torch.get_num_threads(),
        call.steps,
        call.rows,
        call.lists,
        address(x),
        *call.strides(x),
        address(y),
        *call.strides(y),
        address(h0),
        address(c0),
        address(hn),
        address(cn),
        [address(w) for w in weights],
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
    if call.on_device:
        return device.backward(call, x, y, h0, c0, weights, tape, gradients, wanted)
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
        address(x),
        *call.strides(x),
        address(y),
        *call.strides(y),
        address(h0),
        address(c0),
        [address(w) for w in weights],
        address(tape),
        *(NO_SEQUENCE if dy is None else (address(dy), *call.strides(dy))),
        address(dhn),
        address(dcn),
        *(NO_SEQUENCE if dx is None else (address(dx), *call.strides(dx))),
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
        if torch.is_grad_enabled() or any(map(is_batched, gradients)):
            return None, *rerun(call, (x, h0, c0, *weights), (dy, dhn, dcn), wanted)
        y = ctx.y
        x, h0, c0, tape, weights = check_saved(call, x, y, h0, c0, tape, weights)
        if y._version != ctx.version:
            # On a device only a call of the same kind cuts time into the same chunks, and so has the same bits.
            y, _, _, made = forward(call, x, h0, c0, weights, training=call.on_device)
            tape = tape if made is None else made
        return None, *backward(call, x, y, h0, c0, weights, tape, (dy, dhn, dcn), wanted)


def is_batched(gradient: Tensor | None) -> bool:
    """Whether vmap runs the backward pass on a batch of gradients, as for `is_grads_batched=True`."""
    if gradient is None:
        return False
    return _functorch.is_legacy_batchedtensor(gradient) or _functorch.is_batchedtensor(gradient)


# torch.autograd.Function.apply less what it does for torch.func, which is not active where this is called.
apply_layers = super(torch.autograd.Function, Layers).apply


def check_saved(
    call: Call, x: Tensor, y: Tensor, h0: Tensor | None, c0: Tensor | None, tape: Tensor, weights: list[Tensor]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, list[Tensor]]:
    """What was saved, laid out as the engine reads it; a RuntimeError where it is not of its shape and dtype any more.

    A saved-tensor hook may give back anything, and an assignment to ``.data``, as ``module.half()`` makes it, changes a
    tensor without a trace in its version.
    """
    config, dtype = call.config, y.dtype
    tape_size, tape_dtype = call.tape_form(y)
    states = [s for s in (h0, c0) if s is not None]
    shapes = [(*y.shape[:-1], config.input_size), *config.shapes, *[call.state_shape] * len(states)]
    forms = [(tape_dtype, (tape_size,)), *((dtype, shape) for shape in shapes)]
    for t, (dtype, shape) in zip((tape, x, *weights, *states), forms, strict=True):
        if t.shape == shape and t.dtype is dtype and t.device == y.device and t.layout is torch.strided:
            continue
        raise RuntimeError(
            "fusedrnn.torch: an input or a parameter has got another shape, dtype or device between the forward and "
            "the backward pass, by .data, .half() or the like, or a saved-tensor hook gave back another tensor"
        )
    h0, c0 = (None if s is None else contiguous(s) for s in (h0, c0))
    return unit_stride(x), h0, c0, contiguous(tape), [contiguous(w) for w in weights]

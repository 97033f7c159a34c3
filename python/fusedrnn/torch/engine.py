"""The compiled engine on torch tensors: one autograd node for all the layers of a call.

Tensors of the CPU the compiled part reads itself, and checks: their class, dtype, device, shapes, strides, and that
all of their memory is there. That costs it a fraction of a microsecond a tensor, where Python takes several.
Those of a device are checked in Python, and run by `device.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad

from fusedrnn import _core
from fusedrnn.torch import device
from fusedrnn.torch.frozen import packed_of
from fusedrnn.torch.rerun import rerun
from fusedrnn.torch.tensors import address, check_memory, contiguous, unit_stride

# None before torch 2.10: the attributes are then read one by one, which takes a few microseconds more.
_EXCHANGE = getattr(Tensor, "__dlpack_c_exchange_api__", None)
TENSORS = _core.Tensors(torch, _EXCHANGE)

# Plain values, which a compiler that traces this module looks up like any others.
TWO_STATES = {name: len(cell.states) == 2 for name, cell in _core.cells.items()}

Bound = _core.RawCall | device.BoundCall
"""A call on tensors that an engine can read, to be run at once."""


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
        self.bias = bool(bias)  # which torch does not look at
        self.directions = 2 if bidirectional else 1
        self.width = self.directions * hidden_size
        self.two_states = TWO_STATES[cell]

    @functools.cached_property
    def engines(self) -> dict[torch.dtype, _core.RawRecurrent]:
        """The compiled object for each dtype."""
        sizes = (self.cell, self.input_size, self.hidden_size, self.layers, self.bidirectional, self.bias)
        names = {torch.float32: "float32", torch.float64: "float64"}
        return {dtype: _core.RawRecurrent(*sizes, name, TENSORS) for dtype, name in names.items()}

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
    to "packed"; `lengths`, (B,) of int64, and `reset` and `mask`, bool and of x's leading shape, are None where no row
    ends early, no link is cut and no step skipped. `on_device`: the CUDA engine runs it. `names` are those of the
    parameters, for errors. `bound` is the call on its tensors as the engine has read them, from there until it runs.
    `keeper` is the module whose packed parameters the call may use and keep.
    """

    config: Config
    form: str
    steps: int
    rows: int
    batch_sizes: Tensor | None = None
    lengths: Tensor | None = None
    reset: Tensor | None = None
    mask: Tensor | None = None
    lists: _core.RowLists | None = None
    on_device: bool = False
    names: Sequence[str] = ()
    bound: Bound | None = None
    keeper: Any = None

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of h and of c."""
        if self.form == "step":
            return self.rows, self.config.hidden_size
        return self.config.layers * self.config.directions, self.rows, self.config.hidden_size

    def make_lists(self, x: Tensor) -> None:
        """Say which rows of x run when, unless that is all of them always. ValueError where the counts do not fit."""
        if self.batch_sizes is not None:
            check_memory([("batch_sizes", self.batch_sizes)])
            self.lists = _core.RowLists.packed(self.steps, address(self.batch_sizes), x.shape[0])
        elif any(t is not None for t in (self.lengths, self.reset, self.mask)):
            check_memory([("lengths", self.lengths), ("reset", self.reset), ("mask", self.mask)])
            if self.on_device:  # which looks at them itself
                return
            reset, mask = (
                (0, 0, 0) if flags is None else (address(flags), *self.strides(flags))
                for flags in (self.reset, self.mask)
            )
            self.lists = _core.RowLists.padded(self.steps, self.rows, address(self.lengths), reset, mask)

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

    def bind(self, x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: Sequence[Tensor]) -> _core.RawCall | None:
        """The call on tensors as they lie; None where the CPU's engine cannot read one of them."""
        if self.on_device:
            return None
        engine = self.config.engines.get(x.dtype)
        if engine is None:
            return None
        return engine.bind(self.form, self.steps, self.rows, self.lists, x, h0, c0, weights)

    def bind_copies(self, x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: Sequence[Tensor]) -> Bound:
        """The call on copies of those that the engine cannot read as they lie; all are of the right kind and shape."""
        names = [*self.names, *(f"parameter {i}" for i in range(len(self.names), len(weights)))]
        check_memory(zip(("the input", "h_0", "c_0", *names), (x, h0, c0, *weights), strict=True))
        h0, c0 = (None if s is None else contiguous(s) for s in (h0, c0))
        x, weights = unit_stride(x), [contiguous(w) for w in weights]
        bound = device.BoundCall(self, x, h0, c0, weights) if self.on_device else self.bind(x, h0, c0, weights)
        if bound is None:
            raise RuntimeError("fusedrnn.torch: the engine cannot read the tensors of a call")
        return bound

    def run(self, training: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """y, the final h and c, and in training the tape. A single step has no y but its h."""
        return self.take_bound().forward(torch.get_num_threads(), training)

    def infer(self, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """As `run`, not in training, from the packed parameters that a module keeps if it does."""
        bound = self.take_bound()
        if self.keeper is None or not isinstance(bound, _core.RawCall):
            return bound.forward(torch.get_num_threads(), False)
        return bound.forward(torch.get_num_threads(), False, packed_of(self.keeper, bound, weights))

    def take_bound(self) -> Bound:
        """`bound`, which is gone afterwards: it keeps the tensors alive, and does not see what happens to them."""
        bound, self.bound = self.bound, None
        assert bound is not None
        return bound

    def keep_own_counts(self) -> None:
        """Copy what a second derivative would read again, as the caller may write to it meanwhile."""
        self.batch_sizes, self.lengths, self.reset, self.mask = (
            None if t is None else t.clone() for t in (self.batch_sizes, self.lengths, self.reset, self.mask)
        )


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Those of y, hn and cn."""


class Layers(torch.autograd.Function):
    """`forward` and `backward` as a node of the graph; a second derivative reruns the call through torch's own."""

    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor, h0: Tensor | None, c0: Tensor | None, *weights: Tensor) -> Any:
        y, hn, cn, tape = call.run(training=True)
        if call.lists is not None or call.on_device:
            call.keep_own_counts()
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, h0, c0, tape, *weights)
        # y is not saved as the others are: what torch's own layers return may be written in place before the backward
        # pass. Where its version tells that it was, its values are made again, to the same bits.
        ctx.kept = call, y.detach(), y._version
        if call.form == "step":
            return hn if cn is None else (hn, cn)
        return (y, hn) if cn is None else (y, hn, cn)

    @staticmethod
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        call, y, version = ctx.kept
        x, h0, c0, tape, *weights = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:]
        if forward_ad._current_level >= 0:
            raise NotImplementedError("fusedrnn.torch: the gradients of a layer have no forward-mode derivative")
        is_step = call.form == "step"
        dy, dhn, dcn = (*[None] * is_step, *gradients, None)[:3]
        again, overwritten = torch.is_grad_enabled(), y._version != version
        # Nearly always everything is still as it was, and the gradients lie as the engine reads them.
        bound = None if again or overwritten else call.bind(x, h0, c0, weights)
        read = None if is_step else y  # the tape has all of a single step
        found = bound and bound.backward(torch.get_num_threads(), read, tape, dy, dhn, dcn, wanted)
        if found:
            return None, *found
        inputs = (x, h0, c0, *weights)
        if again or any(map(is_batched, gradients)):
            return None, *rerun(call, inputs, (dy, dhn, dcn), wanted)
        return None, *backward_of_copies(call, inputs, y, overwritten, tape, (dy, dhn, dcn), wanted)


def is_batched(gradient: Tensor | None) -> bool:
    """Whether vmap runs the backward pass on a batch of gradients, as for `is_grads_batched=True`."""
    if gradient is None:
        return False
    return _functorch.is_legacy_batchedtensor(gradient) or _functorch.is_batchedtensor(gradient)


# torch.autograd.Function.apply less what it does for torch.func, which is not active where this is called.
apply_layers = super(torch.autograd.Function, Layers).apply


def backward_of_copies(
    call: Call,
    inputs: tuple[Any, ...],
    y: Tensor,
    overwritten: bool,
    tape: Tensor,
    gradients: Gradients,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """A backward pass with copies of what the engine does not read as it lies; errors for the rest."""
    x, h0, c0, *weights = inputs
    check_saved(call, x, y, h0, c0, tape, weights)
    bound = call.bind_copies(x, h0, c0, weights)
    if overwritten:
        # On a device only a call of the same kind cuts time into the same chunks, and so has the same bits.
        y, _, _, made = bound.forward(torch.get_num_threads(), call.on_device)
        tape = tape if made is None else made
    return differentiate(bound, y, tape, gradients, wanted)


def differentiate(
    bound: Bound, y: Tensor | None, tape: Tensor, gradients: Gradients, wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """A call's gradients, from copies of what of its outputs the engine does not read as it lies."""
    names = ("output", "tape", "gradient", "gradient", "gradient")
    check_memory((f"a layer's {name}", t) for name, t in zip(names, (y, tape, *gradients), strict=True))
    y, dy = (None if t is None else unit_stride(t) for t in (y, gradients[0]))
    dhn, dcn = (None if d is None else contiguous(d) for d in gradients[1:])
    # A saved-tensor hook may have brought the tape back to memory that is aligned less than the engine's vectors.
    tape = contiguous(tape) if tape.data_ptr() % 64 == 0 else tape.clone()
    found = bound.backward(torch.get_num_threads(), y, tape, dy, dhn, dcn, tuple(wanted))
    if found is None:
        raise RuntimeError("fusedrnn.torch: the engine cannot read the gradients of a call's outputs")
    return found


def check_saved(
    call: Call, x: Tensor, y: Tensor, h0: Tensor | None, c0: Tensor | None, tape: Tensor, weights: list[Tensor]
) -> None:
    """RuntimeError where what was saved is not of its shape and dtype any more.

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

"""Under torch.compile and torch.export: the engine as two operators that the compiler need not look into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fusedrnn.torch import device, dispatch, engine
from fusedrnn.torch.autocast import under_autocast, weights_under_autocast
from fusedrnn.torch.call import Call
from fusedrnn.torch.config import STATES, config_of
from fusedrnn.torch.fitting import State, fit_cell, fit_layer, unfit_cell, unfit_layer
from fusedrnn.torch.obstacles import odd_tensor, place_obstacle, tensor_obstacle
from fusedrnn.torch.options import add_options, has_options, refuse_nested
from fusedrnn.torch.rerun import LAYERS
from fusedrnn.torch.weights import traced_weights

# A call without its tensors, as the arguments of an operator: cell, layers, bidirectional, bias, form.
Signature = tuple[str, int, bool, bool, str]
SIGNATURE = "str cell, int layers, bool bidirectional, bool bias, str form"
# torch's own layers and cells have no other states than these two, of which some lack the second.
SEQUENCE = "Tensor x, Tensor? h0, Tensor? c0, Tensor[] weights, Tensor? lengths, Tensor? reset"


RowOptions = tuple[Tensor | None, Tensor | None, Tensor | None]
"""lengths, reset and mask."""


def call_of(signature: Signature, x: Tensor, weights: Sequence[Tensor], options: RowOptions) -> Call:
    """The call that an operator's arguments describe."""
    cell, layers, bidirectional, bias, form = signature
    axes = {"time": 3, "batch": 3, "step": 2}.get(form)
    if x.dim() != axes or len(weights) < 2 or any(w.dim() != 2 for w in weights[:2]):
        raise RuntimeError("fusedrnn::layers: shapes do not fit together")
    first = 1 if form == "batch" else 0
    steps, rows = (1, x.shape[0]) if form == "step" else (x.shape[first], x.shape[1 - first])
    config = config_of(cell, int(weights[0].shape[1]), int(weights[1].shape[1]), layers, bidirectional, bias)
    return Call(config, form, steps, rows, None, *options, on_device=device.kind.holds(x) and device.missing() is None)


def prepared(signature: Signature, x: Tensor, h0: Any, c0: Any, weights: Any, options: RowOptions) -> Call:
    """The call, checked as an eager one is, and bound to its tensors or to copies that the engine can read."""
    call = call_of(signature, x, weights, options)
    initial = (h0, c0)[: STATES[signature[0]]]
    states = tuple(s for s in (h0, c0) if s is not None)
    reason = tensor_obstacle((x, *states, *weights))
    config = call.config
    fits = x.shape[-1] == config.input_size and all(s.shape == call.state_shape for s in states)
    flags = (x.shape[:-1], torch.bool)
    for given, (shape, dtype) in zip(options, (((call.rows,), torch.int64), flags, flags), strict=True):
        fits &= given is None or (given.shape == shape and given.dtype == dtype and given.device == x.device)
    if reason or not fits or not config.shapes_fit(weights) or len(states) not in (0, config.states):
        raise RuntimeError(f"fusedrnn::layers: {reason or 'shapes do not fit together'}")
    call.lengths = None if call.lengths is None else call.lengths.contiguous()
    call.make_lists(x)
    call.bound = engine.bind(call, x, initial, weights) or engine.bind_copies(call, x, initial, weights)
    return call


MASK = "Tensor? mask=None"
torch.library.define(
    "fusedrnn::layers", f"({SEQUENCE}, {SIGNATURE}, bool training, {MASK}) -> (Tensor, Tensor, Tensor, Tensor)"
)
torch.library.define(
    "fusedrnn::layers_backward",
    f"({SEQUENCE}, {SIGNATURE}, Tensor y, Tensor tape, Tensor? dy, Tensor? dhn, Tensor? dcn, bool[] wanted, "
    f"{MASK}) -> Tensor[]",
)


@torch.library.impl("fusedrnn::layers", ("cpu", "cuda"))
def _layers(
    x: Tensor, h0: Any, c0: Any, weights: Any, lengths: Any, reset: Any, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *signature, training, mask = (*rest, None)[:7]  # an argument that is the default may be left out
    bound = prepared(tuple(signature), x, h0, c0, weights, (lengths, reset, mask)).take_bound()
    y, final, tape = bound.forward(torch.get_num_threads(), training)
    # An operator's outputs may not share memory, and are always there.
    hn, cn = (*final, x.new_empty(0))[:2]
    return x.new_empty(0) if y is hn else y, hn, cn, x.new_empty(0) if tape is None else tape


@torch.library.register_fake("fusedrnn::layers")  # type: ignore[untyped-decorator]
def _layers_fake(
    x: Tensor, h0: Any, c0: Any, weights: Any, lengths: Any, reset: Any, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *signature, training, mask = (*rest, None)[:7]  # an argument that is the default may be left out
    call = call_of(tuple(signature), x, weights, (lengths, reset, mask))
    y = x.new_empty(0 if call.form == "step" else (*x.shape[:-1], call.config.width))
    size, dtype = engine.tape_form(call, x) if training else (0, x.dtype)
    tape = x.new_empty(size, dtype=dtype)
    return y, x.new_empty(call.state_shape), x.new_empty(call.state_shape if call.config.states > 1 else 0), tape


@torch.library.impl("fusedrnn::layers_backward", ("cpu", "cuda"))
def _layers_backward(x: Tensor, h0: Any, c0: Any, weights: Any, lengths: Any, reset: Any, *rest: Any) -> list[Tensor]:
    *signature, y, tape, dy, dhn, dcn, wanted, mask = (*rest, None)[:12]
    call = prepared(tuple(signature), x, h0, c0, weights, (lengths, reset, mask))
    shapes = [(*x.shape[:-1], call.config.width), call.state_shape, call.state_shape]
    like = [t is None or t.shape == shape for t, shape in zip((dy, dhn, dcn), shapes, strict=True)]
    made = y.shape == shapes[0] or call.form == "step"  # one step has no y but its h
    size, dtype = engine.tape_form(call, x)
    made &= tape.shape == (size,) and tape.dtype == dtype and tape.device == x.device
    if not (all(like) and made) or tensor_obstacle([t for t in (x, y, dy, dhn, dcn) if t is not None]):
        raise RuntimeError("fusedrnn::layers_backward: outputs and gradients do not fit the call")
    states = call.config.states
    asked = [*wanted[: 1 + states], *wanted[3:]]
    read = None if call.form == "step" else y
    found = engine.differentiate(call.take_bound(), read, tape, dy, (dhn, dcn)[:states], asked)
    every = *found[: 1 + states], *[None] * (2 - states), *found[1 + states :]
    return [x.new_empty(0) if gradient is None else gradient for gradient in every]


@torch.library.register_fake("fusedrnn::layers_backward")  # type: ignore[untyped-decorator]
def _layers_backward_fake(
    x: Tensor, h0: Any, c0: Any, weights: Any, lengths: Any, reset: Any, *rest: Any
) -> list[Tensor]:
    *signature, _y, _tape, _dy, _dhn, _dcn, wanted, mask = (*rest, None)[:12]
    call = call_of(tuple(signature), x, weights, (lengths, reset, mask))
    shapes = [x.shape, call.state_shape, call.state_shape, *(w.shape for w in weights)]
    return [x.new_empty(shape if want else 0) for shape, want in zip(shapes, wanted, strict=True)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, h0, c0, weights, lengths, reset, *rest = inputs
    *signature, _, mask = (*rest, None)[:7]
    y, _, _, tape = output
    ctx.signature = signature
    ctx.save_for_backward(x, h0, c0, lengths, reset, mask, y, tape, *weights)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dy: Any, dhn: Any, dcn: Any, _dtape: Any) -> tuple[Any, ...]:
    if torch.is_grad_enabled():
        raise RuntimeError("fusedrnn.torch: a compiled layer has no second derivative; torch.compile must not trace it")
    x, h0, c0, lengths, reset, mask, y, tape, *weights = ctx.saved_tensors
    needs = ctx.needs_input_grad
    asked = needs[3] if isinstance(needs[3], (list, tuple)) else [needs[3]] * len(weights)
    wanted = [needs[0], needs[1], needs[2], *asked]
    if ctx.signature[-1] == "step":
        dy = None
    dcn = dcn if STATES[ctx.signature[0]] > 1 else None
    found = torch.ops.fusedrnn.layers_backward(
        x, h0, c0, weights, lengths, reset, *ctx.signature, y, tape, dy, dhn, dcn, wanted, mask
    )
    dx, dh0, dc0, *dweights = (g if want else None for g, want in zip(found, wanted, strict=True))
    return dx, dh0, dc0, dweights, *[None] * (len(needs) - 4)


torch.library.register_autograd("fusedrnn::layers", _differentiate, setup_context=_save)


def run(call: Call, x: Tensor, states: State, weights: Sequence[Tensor]) -> tuple[Tensor, State]:
    """As `dispatch.run`, through the operator."""
    h0, c0 = (*states, None, None)[:2]
    config = call.config
    signature = (config.cell, config.layers, config.bidirectional, config.bias, call.form)
    asked = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *states, *weights))
    y, hn, cn, _ = torch.ops.fusedrnn.layers(
        x, h0, c0, list(weights), call.lengths, call.reset, *signature, asked, call.mask
    )
    # The operator's backward reads y. A model may write into it, as into what torch's layers return; the compiler fuses
    # the copy with what comes next.
    y = hn if call.form == "step" else y.clone() if asked else y
    return y, (hn, cn)[: config.states]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _eagerly(module: Any, input: Any, hx: Any) -> Any:
    return module.forward(input, hx)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def exporting() -> bool:
    """Whether the model is traced for export. Asked in Python: Dynamo of torch 2.11 says so whenever it traces."""
    return torch.compiler.is_exporting()


def compiled_forward(
    module: Any,
    own: Callable[[Any, Any], Any],
    input: Any,
    hx: Any,
    lengths: Any = None,
    reset: Any = None,
    mask: Any = None,
) -> Any:
    """As `dispatch.module_forward`, while a compiler traces it.

    What is exported, and cells, which the compiler fuses with what is around them, are torch's own operations.
    """
    options = has_options(module, input, lengths, reset, mask)
    standard = module._cell_name in LAYERS and not options
    if standard and (module._is_cell or exporting()):
        return own(input, hx)
    if isinstance(input, PackedSequence):
        return _eagerly(module, input, hx)
    if odd_tensor(input, hx) is not None:
        if standard:
            return own(input, hx)
        refuse_nested(input, hx)
    fitted = fit_cell(module, input, hx) if module._is_cell else fit_layer(module, input, hx)
    usable = place_obstacle(input) is None and module._static_obstacle() is None
    if fitted is None or (standard and (not usable or torch.is_autocast_enabled("cpu"))):
        return own(input, hx)
    call, x, states = fitted
    low = None
    if device.kind.holds(x):
        x, states, low, _, obstacle = under_autocast(module, x, states)
        if standard and obstacle is not None:
            return own(input, hx)
    weights = traced_weights(module)
    weights = weights if low is None else weights_under_autocast(weights, low)
    if options:
        add_options(call, module, input, lengths, reset, mask)
    dropout = module.dropout if module.training and not module._is_cell else 0.0
    how = run if usable and not exporting() else dispatch.through_torch
    y, states = dispatch.run_layers(how, call, x, states, weights, dropout)
    return unfit_cell(module, input, states) if module._is_cell else unfit_layer(module, input, y, states)

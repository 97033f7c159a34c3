"""From a module's arguments to a call of the engine, or to torch's own forward where the engine does not take them.

A check that fails never raises here: torch's own forward gets the arguments, and raises its own errors or computes.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fusedrnn.torch import device
from fusedrnn.torch.autocast import torch_is_faster, under_autocast, weights_under_autocast
from fusedrnn.torch.call import Call
from fusedrnn.torch.engine import apply_layers, bind, bind_copies, infer
from fusedrnn.torch.fitting import State, fit_cell, fit_layer, unfit_cell, unfit_layer
from fusedrnn.torch.frozen import may_keep, narrowed
from fusedrnn.torch.obstacles import call_obstacle, has_symbols, mode_obstacle, odd_tensor, tensor_obstacle
from fusedrnn.torch.options import add_options, has_options, refuse_nested
from fusedrnn.torch.rerun import LAYERS, torch_forward
from fusedrnn.torch.weights import computed_weights, stored_weights

_warned: set[tuple[str, str]] = set()


def warn_once(module: Any, reason: str, what: str = "torch's own forward") -> None:
    """Say what a module runs instead of the engine, once for each class and reason."""
    key = module._torch_class.__name__, reason
    if reason and key not in _warned:
        _warned.add(key)
        warnings.warn(f"fusedrnn.torch.{key[0]} runs {what}: {reason}", stacklevel=_levels_up_to_the_caller())


def _levels_up_to_the_caller() -> int:
    """As `warnings.warn` counts them, from the function that calls this one to the line that calls a module."""
    inside = os.path.dirname(__file__), torch.nn.modules.module.__file__
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        level, frame = level + 1, frame.f_back
    return level


def run(call: Call, x: Tensor, states: State, weights: Sequence[Tensor]) -> tuple[Tensor, State]:
    """y, and the final state: through the graph where anything asks for a gradient."""
    if call.on_device and call.form == "packed":
        return run_packed(call, x, states, weights)
    initial = states or call.config.no_states
    if call.bound is None:
        call.bound = bind(call, x, initial, weights) or bind_copies(call, x, initial, weights)
    # Within inference mode gradients may be enabled; nothing is recorded all the same.
    records = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    if records and (weights[0].requires_grad or any(t.requires_grad for t in (x, *states, *weights))):
        found = apply_layers(call, x, *initial, *weights)  # type: ignore[no-untyped-call]
        if call.form != "step":
            return found[0], found[1:]
        return (found, (found,)) if isinstance(found, Tensor) else (found[0], found)
    return infer(call, weights)[:2]


def run_packed(call: Call, x: Tensor, states: State, weights: Sequence[Tensor]) -> tuple[Tensor, State]:
    """As `run`, for packed rows on a device: the CUDA engine takes padded ones. The padding influences nothing."""
    alive = torch.arange(call.rows) < call.batch_sizes[:, None]  # type: ignore[index]
    own = replace(call, form="time", batch_sizes=None, lists=None)
    if len(x) == alive.numel():
        y, final = run(own, x.reshape(*alive.shape, x.shape[1]), states, weights)
        return y.flatten(0, 1), final
    where = device.kind.upload(alive.flatten().nonzero().squeeze(1), x.device, "a packing")
    own.lengths = device.kind.upload(alive.sum(0), x.device, "a packing")
    padded = x.new_zeros(alive.numel(), x.shape[1]).index_copy(0, where, x)
    y, final = run(own, padded.view(*alive.shape, x.shape[1]), states, weights)
    return y.flatten(0, 1).index_select(0, where), final


def through_torch(call: Call, x: Tensor, states: State, weights: Sequence[Tensor]) -> tuple[Tensor, State]:
    """The same through torch's own operations."""
    y, final = torch_forward(call, x, states, weights)
    return final[0] if y is None else y, final


Run = Callable[[Call, Tensor, State, Sequence[Tensor]], tuple[Tensor, State]]


def run_layers(
    how: Run, call: Call, x: Tensor, states: State, weights: Sequence[Tensor], dropout: float
) -> tuple[Tensor, State]:
    """`how` on the whole call, or layer by layer with torch's own dropout, and its masks, between."""
    config = call.config
    if dropout == 0.0 or config.layers == 1:
        return how(call, x, states, weights)
    turned = call.form == "batch"  # torch draws its masks time-major
    if turned:
        x = x.transpose(0, 1)
    directions, each = config.directions, len(weights) // config.layers
    finals = []
    for layer in range(config.layers):
        own = replace(call, config=config.at_layer(layer), form="time" if turned else call.form)
        if turned:
            own.reset, own.mask = (None if flags is None else flags.T for flags in (call.reset, call.mask))
        if layer > 0:
            x = functional.dropout(x, dropout, True)
        part, of_layer = slice(layer * directions, (layer + 1) * directions), slice(layer * each, (layer + 1) * each)
        own.names, own.bound = call.names[of_layer], None
        x, final = how(own, x, tuple(s[part] for s in states), weights[of_layer])
        finals.append(final)
    state = tuple(torch.cat(parts) for parts in zip(*finals, strict=True))
    return x.transpose(0, 1) if turned else x, state


def bind_or_ask(call: Call, x: Tensor, states: State, weights: Sequence[Any]) -> str | None:
    """Bind a call that fits together to its tensors as they lie, or tell why the engine does not take it.

    None and no bound call: copies of the tensors will do. "" where torch has an error for the call.
    """
    flags = call.reset is not None or call.mask is not None  # they may be on another device than x
    if has_symbols(call) or (flags and tensor_obstacle((x, *states, *weights)) is not None):
        return call_obstacle(call, x, states, weights)
    call.on_device = device.kind.holds(x)
    try:
        call.make_lists(x)
    except ValueError:
        return ""
    call.bound = bind(call, x, states or call.config.no_states, weights)
    return None if call.bound is not None else call_obstacle(call, x, states, weights)


def narrowed_weights(module: Any, call: Call, weights: Sequence[Any], low: torch.dtype) -> list[Tensor] | None:
    """The weights in autocast's dtype where a module keeps such copies."""
    engine = call.config.engines.get(weights[0].dtype)
    return None if engine is None or not may_keep(module) else narrowed(module, weights, low, engine)


class Prepared(NamedTuple):
    """How a call runs, on which input, states and weights, and the dtype to bring its outputs to."""

    how: Run
    x: Tensor
    states: State
    weights: Sequence[Any]
    outputs: torch.dtype | None


def prepare(module: Any, call: Call, x: Tensor, states: State, odd: str | None, standard: bool) -> Prepared | str:
    """How a call that fits together runs, or why torch's own forward has to run it; it can run `standard` calls."""
    reason = module._static_obstacle() or mode_obstacle() or odd
    given, low, outputs = (x, states), None, None
    if torch._C._is_any_autocast_enabled():
        x, states, low, outputs, found = under_autocast(module, x, states)
        reason = reason or found
    if standard and reason is None and torch_is_faster(call, x):
        return ""
    weights = stored_weights(module, call.names)
    computed = weights is None
    if weights is None:
        # Reading computed weights may have effects. Where torch's own forward runs, it alone reads them.
        reason = reason or tensor_obstacle((x, *states))
        if reason is not None and standard:
            return reason
        weights = computed_weights(module, call.names)
    if reason is None:
        if low is not None:
            kept = None if computed else narrowed_weights(module, call, weights, low)
            weights = kept or weights_under_autocast(weights, low)
        reason = bind_or_ask(call, x, states, weights)
    if reason is None:
        call.keeper = module if not computed and may_keep(module) else None
        return Prepared(run, x, states, weights, outputs)
    if standard and not computed:
        return reason
    warn_once(module, reason, "torch's own operations" if standard else "step by step in torch's operations")
    if not standard:
        return Prepared(through_torch, x, states, weights, outputs)
    if not module._is_cell:
        module._flat_weights = list(weights)  # check_input reads it, and torch's own forward leaves it there
        module.check_input(given[0], call.batch_sizes)
    return Prepared(through_torch, *given, weights, None)


def module_forward(
    module: Any,
    own: Callable[[Any, Any], Any],
    input: Any,
    hx: Any,
    lengths: Any = None,
    reset: Any = None,
    mask: Any = None,
) -> Any:
    """A layer's or a cell's forward; `own` is torch's."""
    if isinstance(input, torch.fx.Proxy) and getattr(input.tracer, "root", None) is not module:
        return as_leaf(module, input, hx, lengths, reset, mask)
    optional = has_options(module, input, lengths, reset, mask)
    standard = not optional and module._cell_name in LAYERS
    odd = odd_tensor(input, hx)
    prepared: Prepared | str | None = odd
    if odd is None or not standard:
        if odd is not None:
            refuse_nested(input, hx)
        fitted = fit_cell(module, input, hx) if module._is_cell else fit_layer(module, input, hx)
        if fitted is None:
            return unfitted(module, own, input, hx, optional)
        call, x, states = fitted
        call.names = module._weight_names()
        if optional:
            add_options(call, module, input, lengths, reset, mask)
        prepared = prepare(module, call, x, states, odd, standard)
    if prepared is None or isinstance(prepared, str):
        found = own(input, hx)  # any error of torch's own comes before the warning
        warn_once(module, prepared or "")
        return found
    how, x, states, weights, outputs = prepared
    dropout = module.dropout if module.training and not module._is_cell else 0.0
    y, states = run_layers(how, call, x, states, weights, dropout)
    if outputs is not None:
        y, states = y.to(outputs), tuple(s.to(outputs) for s in states)
    return unfit_cell(module, input, states) if module._is_cell else unfit_layer(module, input, y, states)


def no_steps(module: Any, input: Tensor) -> bool:
    """Whether a sequence has no steps."""
    return input.dim() in (2, 3) and input.shape[1 if module.batch_first and input.dim() == 3 else 0] == 0


def unfitted(module: Any, own: Callable[[Any, Any], Any], input: Any, hx: Any, optional: bool) -> Any:
    """Arguments that do not fit together: torch's own errors, and the empty cells and odd packings that it takes."""
    if module._options() and not module._is_cell and isinstance(input, Tensor) and no_steps(module, input):
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")  # torch's, of which it would not come
    found = own(input, hx)
    if module._cell_name in LAYERS and not optional:
        return found
    raise RuntimeError(f"fusedrnn.torch.{module!r} needs the engine, which does not take inputs of this form")


def as_leaf(module: Any, input: torch.fx.Proxy, *others: Any) -> torch.fx.Proxy:
    """torch.fx's node for a call of a module that it does not look into, which is how it takes torch's own."""
    while others and others[-1] is None:
        others = others[:-1]
    tracer: Any = input.tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (input, *others), {})  # type: ignore[no-any-return]

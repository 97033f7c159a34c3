"""From a module's arguments to a call of the engine, or to torch's own forward where the engine does not take them.

A check that fails never raises here: torch's own forward gets the arguments, and raises its own errors or computes.
Only `lengths`, `reset` and `mask`, which torch does not know, have errors of ours.
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.parameter import Parameter
from torch.nn.utils.rnn import PackedSequence

from fusedrnn.torch import device
from fusedrnn.torch.engine import Call, apply_layers, config_of
from fusedrnn.torch.frozen import may_keep
from fusedrnn.torch.rerun import LAYERS, torch_forward

State = tuple[Tensor, ...]
FLOATS = (torch.float32, torch.float64)
NARROW = (torch.float32, torch.float16, torch.bfloat16)
PLAIN = (Tensor, Parameter)


def odd_tensor(input: Any, hx: Any) -> str | None:
    """Why the sizes of an input or of a state are not to be looked at: they may be symbols, or not be there.

    So it is with nested tensors, and may be with any subclass.
    """
    x = input.data if isinstance(input, PackedSequence) else input
    for t in (x, *hx) if isinstance(hx, (tuple, list)) else (x, hx):
        if isinstance(t, Tensor) and (type(t) not in PLAIN or t.is_nested):
            return "a nested tensor" if type(t) in PLAIN else f"{type(t).__name__} is not torch.Tensor itself"
    return None


def refuse_nested(input: Any, hx: Any) -> None:
    """TypeError for nested tensors where torch has no forward of its own that they could be left to."""
    for name, given in (("input", input), *(("hx", h) for h in (hx if isinstance(hx, (tuple, list)) else (hx,)))):
        if isinstance(given, Tensor) and given.is_nested:
            raise TypeError(
                f"{name} must not be nested where lengths or reset are given or torch lacks the cell: "
                "pad it, and pass lengths"
            )


def mode_obstacle() -> str | None:
    """What of torch's modes the engine cannot run under."""
    if torch._C._get_tracing_state() is not None:
        return "the module is being traced"
    if torch._C._are_functorch_transforms_active():
        return "a torch.func transform is active"
    if torch._C._len_torch_dispatch_stack() > 0:
        return "a torch dispatch mode is active"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation is active"
    return None


def tensor_obstacle(tensors: Sequence[Any]) -> str | None:
    """Why the engine does not read these tensors."""
    first = tensors[0]
    for t in tensors:
        kind = type(t)
        if kind is not Tensor and kind is not Parameter:
            return f"{kind.__name__} is not torch.Tensor itself"
        if t.dtype is not first.dtype:
            return "its tensors are of several dtypes"
        if t.is_cpu is not first.is_cpu or t.get_device() != first.get_device():
            return "its tensors are on several devices"
        if t.layout is not torch.strided:
            return f"tensors of the layout {t.layout}"
    return place_obstacle(first)


def place_obstacle(tensor: Tensor) -> str | None:
    """Why there is no engine for a tensor's device or dtype."""
    if device.place.holds(tensor):
        reason = device.missing()
        if reason is not None:
            return f"tensors on {tensor.device.type} are torch's here: {reason}"
        return None if tensor.dtype in device.DTYPES else f"the engine does not compute in {tensor.dtype}"
    if tensor.device.type != "cpu":
        return f"tensors on {tensor.device.type} are torch's: the engine is one for the CPU and for CUDA"
    return None if tensor.dtype in FLOATS else f"the engine computes in float32 and float64, not in {tensor.dtype}"


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


def stored_weights(module: Any, names: Sequence[str]) -> list[Any] | None:
    """The parameters as they are now, functional_call's in their place; None where any of them is computed."""
    parameters = module._parameters
    try:
        return [parameters[name] for name in names]
    except KeyError:
        return None


def computed_weights(module: Any, names: Sequence[str]) -> list[Any]:
    """The weights where parametrizations, pruning or hooks compute some of them.

    They are read as often as torch's own forward reads them, and in its order: a parametrization may draw random
    numbers, or change its state. Unlike torch's, the module does not keep what is found, and the graph behind it.
    """
    if module._is_cell:
        return [getattr(module, name) for name in names]
    if module._weights_have_changed():
        return [getattr(module, name) if hasattr(module, name) else None for name in names]
    return list(module._flat_weights)


def split_state(hx: Any, two_states: bool) -> State | None:
    """The tensors of a state, () for None; None where it is not one."""
    if hx is None:
        return ()
    if not two_states:
        return (hx,) if isinstance(hx, Tensor) else None
    if isinstance(hx, (tuple, list)) and len(hx) == 2 and all(isinstance(h, Tensor) for h in hx):
        return tuple(hx)
    return None


def under_autocast(
    module: Any, x: Tensor, states: State
) -> tuple[Tensor, State, torch.dtype | None, torch.dtype | None, str | None]:
    """Under autocast: an input and states as the engine takes them, a dtype for weights, one for outputs, any obstacle.

    None for a dtype that does not change. Autocast leaves float64 alone. Where torch would compute in bfloat16 on the
    CPU, the engine computes in float32, and rounds what torch returns rounded. On a device it computes in autocast's
    dtype, torch's own layers in float16.
    """
    on_device = device.place.holds(x)
    kind = "cuda" if on_device else "cpu"
    if not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return x, states, None, None, None
    low = torch.get_autocast_dtype(kind)
    if not on_device and low != torch.bfloat16:
        return x, states, None, None, f"autocast to {low} on the CPU"
    for name, t in (("an input", x), *(("a state", s) for s in states)):
        if t.dtype not in (NARROW if on_device else (torch.float32, low)):
            return x, states, None, None, f"autocast to {low} of {name} of {t.dtype}"
    if on_device:
        return x.to(low), tuple(s.to(low) for s in states), low, None, None
    narrow = low if module._autocast_narrows or (x, *states)[-1].dtype == low else None
    return x.float(), tuple(s.float() for s in states), None, narrow, None


@functools.cache
def has_amx() -> bool:
    """Whether torch multiplies bfloat16 on the CPU's matrix units, many times as fast as float32 is multiplied."""
    ask = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return ask is not None and bool(ask())


def torch_is_faster_under_autocast(call: Call, x: Tensor) -> bool:
    """Whether torch's own bfloat16, on matrix units, outruns float32 on the engine.

    The bounds are on rows times units squared. torch has a fused layer for the LSTM alone, and this gains less in
    training.
    """
    if not has_amx() or x.dtype == torch.float64 or device.place.holds(x) or not torch.is_autocast_enabled("cpu"):
        return False
    bound = 1 << 24
    if call.config.cell == "lstm" and call.form != "step":
        bound = 1 << 21 if torch.is_grad_enabled() else 1 << 18
    return call.rows * call.config.hidden_size**2 >= bound


def weights_under_autocast(weights: Sequence[Any], low: torch.dtype) -> list[Any]:
    """The weights in autocast's dtype; those that autocast would not cast are an obstacle by their dtype."""
    return [w.to(low) if isinstance(w, Tensor) and w.dtype in NARROW else w for w in weights]


def run(call: Call, x: Tensor, states: State, weights: Sequence[Tensor]) -> tuple[Tensor, State]:
    """y, and the final state: through the graph where anything asks for a gradient."""
    if call.on_device and call.form == "packed":
        return run_packed(call, x, states, weights)
    h0, c0 = (*states, None, None)[:2]
    if call.bound is None:
        call.bound = call.bind(x, h0, c0, weights) or call.bind_copies(x, h0, c0, weights)
    # Within inference mode gradients may be enabled; nothing is recorded all the same.
    records = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    if records and (weights[0].requires_grad or any(t.requires_grad for t in (x, *states, *weights))):
        found = apply_layers(call, x, h0, c0, *weights)  # type: ignore[no-untyped-call]
        if call.form != "step":
            return found[0], found[1:]
        return (found, (found,)) if isinstance(found, Tensor) else (found[0], found)
    y, hn, cn, _ = call.infer(weights)
    return y, (hn,) if cn is None else (hn, cn)


def run_packed(call: Call, x: Tensor, states: State, weights: Sequence[Tensor]) -> tuple[Tensor, State]:
    """As `run`, on packed rows where the engine takes padded ones: what they are padded with influences nothing."""
    alive = torch.arange(call.rows) < call.batch_sizes[:, None]  # type: ignore[index]
    own = replace(call, form="time", batch_sizes=None, lists=None)
    if len(x) == alive.numel():
        y, final = run(own, x.reshape(*alive.shape, x.shape[1]), states, weights)
        return y.flatten(0, 1), final
    where = device.place.upload(alive.flatten().nonzero().squeeze(1), x.device, "a packing")
    own.lengths = device.place.upload(alive.sum(0), x.device, "a packing")
    padded = x.new_zeros(alive.numel(), x.shape[1]).index_copy(0, where, x)
    y, final = run(own, padded.view(*alive.shape, x.shape[1]), states, weights)
    return y.flatten(0, 1).index_select(0, where), final


def through_torch(call: Call, x: Tensor, states: State, weights: Sequence[Tensor]) -> tuple[Tensor, State]:
    """The same through torch's own operations."""
    h0, c0 = (*states, None, None)[:2]
    y, hn, cn = torch_forward(call, x, h0, c0, weights)
    return hn if y is None else y, (hn,) if cn is None else (hn, cn)


Run = Callable[[Call, Tensor, State, Sequence[Tensor]], tuple[Tensor, State]]


def run_layers(
    how: Run, call: Call, x: Tensor, states: State, weights: Sequence[Tensor], dropout: float
) -> tuple[Tensor, State]:
    """`how` on the whole call, or layer by layer with torch's dropout between, whose masks are then torch's."""
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


def has_options(module: Any, input: Any, *options: Any) -> bool:
    """Whether `lengths`, `reset` or `mask` is given; none may be for a packed sequence or a projected LSTM."""
    given = any(option is not None for option in options)
    if given and getattr(module, "proj_size", 0) > 0:
        raise ValueError("lengths, reset and mask must be None for an LSTM with proj_size, which only torch's own has")
    if given and isinstance(input, PackedSequence):
        raise ValueError("lengths, reset and mask must be None for a PackedSequence, which has lengths of its own")
    return given


def add_options(call: Call, module: Any, input: Any, lengths: Any, reset: Any, mask: Any) -> None:
    """Put `lengths`, `reset` and `mask` into a call, checked."""
    if lengths is not None:
        if input.dim() == 2:
            raise ValueError("lengths must be None for an unbatched input")
        call.lengths = checked_lengths(lengths, call, input)
    call.reset = checked_flags(reset, "reset", module, input)
    call.mask = checked_flags(mask, "mask", module, input)


def checked_flags(flags: Any, name: str, module: Any, x: Tensor) -> Tensor | None:
    """A bool for every step of every row, with a batch axis and on x's device."""
    if flags is None:
        return None
    if not isinstance(flags, Tensor) or flags.dtype != torch.bool:
        raise TypeError(f"{name} must be a tensor of bool, not {getattr(flags, 'dtype', type(flags).__name__)}")
    if flags.is_nested:
        raise TypeError(f"{name} must be a tensor of bool, not a nested tensor")
    if flags.shape != x.shape[:-1]:
        raise ValueError(f"{name} must have shape {tuple(x.shape[:-1])}, not {tuple(flags.shape)}")
    if x.dim() == 2:
        flags = flags.unsqueeze(0 if module.batch_first else 1)
    return near(flags, x, name)


def checked_lengths(lengths: Any, call: Call, x: Tensor) -> Tensor:
    """Lengths as a contiguous tensor of int64 where x's engine reads them.

    Those that lie on a device are not looked at, which would wait for it: the engine clamps them.
    """
    if isinstance(lengths, (list, tuple)) and len(lengths) == 0:
        lengths = torch.empty(0, dtype=torch.int64)
    if isinstance(lengths, Tensor) and lengths.is_nested:
        raise TypeError("lengths must be integers, not a nested tensor")
    try:
        found = torch.as_tensor(lengths)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"lengths must be integers, not {type(lengths).__name__}") from error
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise TypeError(f"lengths must be integers, not {found.dtype}")
    if found.shape != (call.rows,):
        raise ValueError(f"lengths must have shape ({call.rows},), not {tuple(found.shape)}")
    on_device = device.place.holds(x)
    unseen = torch.compiler.is_compiling() or (on_device and isinstance(lengths, Tensor) and device.place.holds(found))
    if not unseen and ((found < 0) | (found > call.steps)).any():
        raise ValueError(f"lengths must lie in [0, {call.steps}], not {found.tolist()}")
    found = found.to(torch.int64).contiguous()
    return near(found, x, "lengths") if on_device else found.cpu()


def near(tensor: Tensor, x: Tensor, name: str) -> Tensor:
    """A tensor on x's device."""
    if tensor.device == x.device:
        return tensor
    upload = device.place.holds(x) and tensor.is_cpu and not torch.compiler.is_compiling()
    return device.place.upload(tensor, x.device, name) if upload else tensor.to(x.device)


def fit_layer(module: Any, input: Any, hx: Any) -> tuple[Call, Tensor, State] | None:
    """The call, x with a batch axis and the states in the order of its rows; None where they do not fit together."""
    states = split_state(hx, module._two_states)
    packed = isinstance(input, PackedSequence)
    x = input.data if packed else input
    if states is None or not isinstance(x, Tensor):
        return None
    batch_first, batch_sizes = module.batch_first, None
    if packed:
        batch_sizes = input.batch_sizes
        usable = batch_sizes.dim() == 1 and batch_sizes.dtype == torch.int64 and batch_sizes.is_cpu
        if x.dim() != 2 or not usable or len(batch_sizes) == 0:
            return None
        form, steps, rows = "packed", len(batch_sizes), int(batch_sizes[0])
        batch_sizes = batch_sizes.contiguous()
        if input.sorted_indices is not None and all(s.dim() == 3 for s in states):
            states = tuple(s.index_select(1, input.sorted_indices) for s in states)
    else:
        if x.dim() == 2:
            x = x.unsqueeze(0 if batch_first else 1)
            states = tuple(s.unsqueeze(1) for s in states)
        if x.dim() != 3:
            return None
        form, (steps, rows, _) = "time", x.shape
        if batch_first:
            form, steps, rows = "batch", rows, steps
    if steps == 0 or x.shape[-1] != module.input_size or module.input_size == 0:
        return None
    if states:
        shape = (module.num_layers * (2 if module.bidirectional else 1), rows, module.hidden_size)
        if any(s.shape != shape for s in states):
            return None
    return call_of(module, form, steps, rows, batch_sizes), x, states


def fit_cell(module: Any, input: Any, hx: Any) -> tuple[Call, Tensor, State] | None:
    """As `fit_layer`, for a cell."""
    states = split_state(hx, module._two_states)
    if states is None or not isinstance(input, Tensor):
        return None
    x = input
    if x.dim() == 1:
        x = x.unsqueeze(0)
        states = tuple(s.unsqueeze(0) for s in states)
    if x.dim() != 2 or x.shape[1] != module.input_size or 0 in (module.input_size, module.hidden_size):
        return None
    shape = (x.shape[0], module.hidden_size)
    if any(s.shape != shape for s in states):
        return None
    return call_of(module, "step", 1, x.shape[0]), x, states


def call_of(module: Any, form: str, steps: int, rows: int, batch_sizes: Tensor | None = None) -> Call:
    """A call with a module's sizes; a cell is a layer of one step."""
    layers, bidirectional = (1, False) if module._is_cell else (module.num_layers, module.bidirectional)
    sizes = (module._cell_name, module.input_size, module.hidden_size, layers, bidirectional, module.bias)
    return Call(config_of(*sizes), form, steps, rows, batch_sizes)


def obstacle(call: Call, x: Tensor, states: State, weights: Sequence[Any]) -> str | None:
    """Why the engine does not take a call that fits together; "" where torch has an error for it.

    Where the engine can read the tensors as they lie, the call is bound to them; where not, copies may do.
    """
    if type(call.steps) is not int or type(call.rows) is not int:
        return "sizes that are symbols"
    if not (call.reset is None and call.mask is None):  # may be on another device, as x is
        reason = tensor_obstacle((x, *states, *weights))
        if reason is not None:
            return reason
    call.on_device = device.place.holds(x)
    try:
        call.make_lists(x)
    except ValueError:
        return ""
    h0, c0 = (*states, None, None)[:2]
    call.bound = call.bind(x, h0, c0, weights)
    if call.bound is not None:
        return None
    reason = tensor_obstacle((x, *states, *weights))
    return "" if reason is None and not call.config.shapes_fit(weights) else reason


Plan = tuple[Run, Tensor, State, Sequence[Any], torch.dtype | None]
"""How a call runs, on which input, states and weights, and the dtype to round its outputs to."""


def plan_of(module: Any, call: Call, x: Tensor, states: State, odd: str | None, standard: bool) -> Plan | str:
    """A plan for a call that fits together, or why torch's own forward has to run it; a `standard` one it can run."""
    reason = module._static_obstacle() or mode_obstacle() or odd
    given, low, narrow = (x, states), None, None
    if torch._C._is_any_autocast_enabled():
        x, states, low, narrow, found = under_autocast(module, x, states)
        reason = reason or found
        if standard and reason is None and torch_is_faster_under_autocast(call, x):
            return ""
    weights = stored_weights(module, call.names)
    computed = weights is None
    if weights is None:
        # Where torch's own forward runs, it reads the weights, and nobody else may.
        reason = reason or tensor_obstacle((x, *states))
        if reason is not None and standard:
            return reason
        weights = computed_weights(module, call.names)
    if reason is None:
        weights = weights if low is None else weights_under_autocast(weights, low)
        reason = obstacle(call, x, states, weights)
    if reason is None:
        call.keeper = module if not computed and may_keep(module) else None
        return run, x, states, weights, narrow
    if standard and not computed:
        return reason
    warn_once(module, reason, "torch's own operations" if standard else "step by step in torch's operations")
    if not standard:
        return through_torch, x, states, weights, narrow
    if not module._is_cell:
        module._flat_weights = list(weights)  # what the check looks at, and torch's own forward leaves there
        module.check_input(given[0], call.batch_sizes)
    return through_torch, *given, weights, None


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
    plan: Plan | str | None = odd
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
        plan = plan_of(module, call, x, states, odd, standard)
    if plan is None or isinstance(plan, str):
        found = own(input, hx)  # any error of torch's own comes before the warning
        warn_once(module, plan or "")
        return found
    how, x, states, weights, narrow = plan
    dropout = module.dropout if module.training and not module._is_cell else 0.0
    y, states = run_layers(how, call, x, states, weights, dropout)
    if narrow is not None:
        y, states = y.to(narrow), tuple(s.to(narrow) for s in states)
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


def unfit_layer(module: Any, input: Any, y: Tensor, states: State) -> Any:
    """What torch's layer returns: the axes and the order of rows that `fit_layer` changed are as they were."""
    if isinstance(input, PackedSequence):
        if input.unsorted_indices is not None:
            states = tuple(s.index_select(1, input.unsorted_indices) for s in states)
        packed = PackedSequence(y, input.batch_sizes, input.sorted_indices, input.unsorted_indices)
        return packed, states if module._two_states else states[0]
    if input.dim() == 2:
        y = y.squeeze(0 if module.batch_first else 1)
        states = tuple(s.squeeze(1) for s in states)
    return y, states if module._two_states else states[0]


def unfit_cell(module: Any, input: Tensor, states: State) -> Any:
    """As `unfit_layer`, for a cell."""
    if input.dim() == 1:
        states = tuple(s.squeeze(0) for s in states)
    return states if module._two_states else states[0]

"""The usual call: whole sequences in plain tensors of the CPU, with none of torch's modes active.

The checks of `dispatch.py` take longer than a small cell's step. Here there are few, and any other call is left to
`dispatch.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fusedrnn.torch import device
from fusedrnn.torch.autocast import torch_is_faster
from fusedrnn.torch.call import Call
from fusedrnn.torch.config import config_of
from fusedrnn.torch.dispatch import module_forward, run
from fusedrnn.torch.engine import bind
from fusedrnn.torch.frozen import may_keep
from fusedrnn.torch.obstacles import mode_obstacle
from fusedrnn.torch.weights import stored_weights


def eager_forward(
    module: Any,
    own: Callable[[Any, Any], Any],
    input: Any,
    hx: Any,
    lengths: Any = None,
    reset: Any = None,
    mask: Any = None,
) -> Any:
    """A layer's or a cell's forward; `own` is torch's."""
    if lengths is None and reset is None and mask is None:
        found = plain_call(module, input, hx)
        if found is not None:
            return found
    return module_forward(module, own, input, hx, lengths, reset, mask)


def plain_call(module: Any, input: Any, hx: Any) -> Any:
    """What a module returns for a plain call; None where the call is another, or may be."""
    if type(input) is not Tensor or input.is_nested or mode_obstacle() or torch._C._is_any_autocast_enabled():
        return None
    states = plain_states(module, hx)
    weights = stored_weights(module, names := module._weight_names())
    if states is None or weights is None or module._static_obstacle() or device.kind.holds(input):
        return None
    call = plain_cell(module, input) if module._is_cell else plain_layer(module, input)
    if call is None or (input.dtype is torch.bfloat16 and torch_is_faster(call, input)):
        return None
    call.bound = bind(call, input, states or call.config.no_states, weights)
    if call.bound is None:
        return None
    call.names = names
    call.keeper = module if may_keep(module) else None
    y, final = run(call, input, states, weights)
    state = final if module._two_states else final[0]
    return state if module._is_cell else (y, state)


def plain_states(module: Any, hx: Any) -> tuple[Tensor, ...] | None:
    """The tensors of a state, () for none; None for one that is not plain."""
    if hx is None:
        return ()
    if not module._two_states:
        return (hx,) if type(hx) is Tensor else None
    return hx if type(hx) is tuple and len(hx) == 2 and type(hx[0]) is type(hx[1]) is Tensor else None


def plain_cell(module: Any, x: Tensor) -> Call | None:
    """A step of a batch."""
    inputs, hidden = module.input_size, module.hidden_size
    if x.dim() != 2 or inputs == 0 or hidden == 0:
        return None
    return Call(config_of(module._cell_name, inputs, hidden, 1, False, module.bias), "step", 1, x.size(0))


def plain_layer(module: Any, x: Tensor) -> Call | None:
    """A batch of whole sequences, without dropout."""
    inputs, hidden, layers = module.input_size, module.hidden_size, module.num_layers
    if x.dim() != 3 or inputs == 0 or hidden == 0 or (module.training and module.dropout > 0 and layers > 1):
        return None
    steps, rows, _ = x.shape
    form = "time"
    if module.batch_first:
        form, steps, rows = "batch", rows, steps
    if steps == 0:
        return None
    return Call(
        config_of(module._cell_name, inputs, hidden, layers, module.bidirectional, module.bias), form, steps, rows
    )

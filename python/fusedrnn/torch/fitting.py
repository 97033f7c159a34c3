"""From a module's arguments to a call, and from its results to what the module returns. Nothing raises here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fusedrnn.torch.call import Call
from fusedrnn.torch.config import config_of

State = tuple[Tensor, ...]
"""h, or h and c; () for zeros."""


def split_state(hx: Any, two_states: bool) -> State | None:
    """The tensors of a state, () for None; None where it is not one."""
    if hx is None:
        return ()
    if not two_states:
        return (hx,) if isinstance(hx, Tensor) else None
    if isinstance(hx, (tuple, list)) and len(hx) == 2 and all(isinstance(h, Tensor) for h in hx):
        return tuple(hx)
    return None


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

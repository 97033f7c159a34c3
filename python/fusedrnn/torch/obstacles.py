"""Does the engine take a call, and if not, why? Questions only: nothing is changed here, and nothing raised.

Each answer is None, or a reason that reads on after "torch's own forward runs:".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.parameter import Parameter
from torch.nn.utils.rnn import PackedSequence

from fusedrnn.torch import device
from fusedrnn.torch.call import Call

_FLOATS = (torch.float32, torch.float64, torch.bfloat16)
_PLAIN = (Tensor, Parameter)


def odd_tensor(input: Any, hx: Any) -> str | None:
    """Why the sizes of an input or of a state are not to be looked at: they may be symbols, or not be there.

    So it is with nested tensors, and may be with any subclass.
    """
    x = input.data if isinstance(input, PackedSequence) else input
    for t in (x, *hx) if isinstance(hx, (tuple, list)) else (x, hx):
        if isinstance(t, Tensor) and (type(t) not in _PLAIN or t.is_nested):
            return "a nested tensor" if type(t) in _PLAIN else f"{type(t).__name__} is not torch.Tensor itself"
    return None


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
    if device.kind.holds(tensor):
        reason = device.missing()
        if reason is not None:
            return f"tensors on {tensor.device.type} are torch's here: {reason}"
        return None if tensor.dtype in device.DTYPES else f"the engine does not compute in {tensor.dtype}"
    if tensor.device.type != "cpu":
        return f"tensors on {tensor.device.type} are torch's: the engine is one for the CPU and for CUDA"
    if tensor.dtype in _FLOATS:
        return None
    return f"the engine computes in float32, float64 and bfloat16, not in {tensor.dtype}"


def call_obstacle(call: Call, x: Tensor, states: Sequence[Tensor], weights: Sequence[Any]) -> str | None:
    """Why the engine does not take a call that fits together; "" where torch has an error for it."""
    if has_symbols(call):
        return "sizes that are symbols"
    reason = tensor_obstacle((x, *states, *weights))
    return "" if reason is None and not call.config.shapes_fit(weights) else reason


def has_symbols(call: Call) -> bool:
    """Whether sizes are those of a compiler, which are not known yet."""
    return type(call.steps) is not int or type(call.rows) is not int

"""What becomes of a call under autocast."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fusedrnn.torch import device
from fusedrnn.torch.call import Call
from fusedrnn.torch.fitting import State

_NARROW = (torch.float32, torch.float16, torch.bfloat16)


def under_autocast(
    module: Any, x: Tensor, states: State
) -> tuple[Tensor, State, torch.dtype | None, torch.dtype | None, str | None]:
    """Under autocast: an input and states as the engine takes them, a dtype for weights, one for outputs, any obstacle.

    None for a dtype that does not change. Autocast leaves float64 alone. The engine computes in autocast's dtype, and
    on the CPU widens what torch returns in float32. But a cell of the CPU it computes in float32, and rounds what torch
    returns rounded: casting all weights at every step takes longer than the products of a few rows.
    """
    on_device = device.kind.holds(x)
    kind = "cuda" if on_device else "cpu"
    if not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return x, states, None, None, None
    low = torch.get_autocast_dtype(kind)
    if not on_device and low != torch.bfloat16:
        return x, states, None, None, f"autocast to {low} on the CPU"
    for name, t in (("an input", x), *(("a state", s) for s in states)):
        if t.dtype not in (_NARROW if on_device else (torch.float32, low)):
            return x, states, None, None, f"autocast to {low} of {name} of {t.dtype}"
    if on_device:
        return x.to(low), tuple(s.to(low) for s in states), low, None, None
    narrows = module._autocast_narrows or (x, *states)[-1].dtype == low
    if module._is_cell:
        return x.float(), tuple(s.float() for s in states), None, low if narrows else None, None
    return x.to(low), tuple(s.to(low) for s in states), low, None if narrows else torch.float32, None


@functools.cache
def has_amx() -> bool:
    """Whether torch multiplies bfloat16 on the CPU's matrix units, many times as fast as float32 is multiplied."""
    ask = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return ask is not None and bool(ask())


def torch_is_faster(call: Call, x: Tensor) -> bool:
    """Whether torch's own bfloat16, on matrix units, outruns the engine, which does not use them.

    The bounds are on rows times units squared. torch has a fused layer for the LSTM alone, and this gains less in
    training.
    """
    if not has_amx() or x.dtype == torch.float64 or device.kind.holds(x):
        return False
    if x.dtype != torch.bfloat16 and not torch.is_autocast_enabled("cpu"):
        return False
    bound = 1 << 24
    if call.config.cell == "lstm" and call.form != "step":
        bound = 1 << 21 if torch.is_grad_enabled() else 1 << 18
    return call.rows * call.config.hidden_size**2 >= bound


def weights_under_autocast(weights: Sequence[Any], low: torch.dtype) -> list[Any]:
    """The weights in autocast's dtype; those that autocast would not cast are an obstacle by their dtype."""
    return [w.to(low) if isinstance(w, Tensor) and w.dtype in _NARROW else w for w in weights]

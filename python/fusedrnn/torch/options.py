"""`lengths`, `reset` and `mask`, which torch does not know: the only arguments with errors of ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fusedrnn.torch import device
from fusedrnn.torch.call import Call


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


def refuse_nested(input: Any, hx: Any) -> None:
    """TypeError for nested tensors where torch has no forward of its own that they could be left to."""
    for name, given in (("input", input), *(("hx", h) for h in (hx if isinstance(hx, (tuple, list)) else (hx,)))):
        if isinstance(given, Tensor) and given.is_nested:
            raise TypeError(
                f"{name} must not be nested where lengths or reset are given or torch lacks the cell: "
                "pad it, and pass lengths"
            )


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
    on_device = device.kind.holds(x)
    unseen = torch.compiler.is_compiling() or (on_device and isinstance(lengths, Tensor) and device.kind.holds(found))
    if not unseen and ((found < 0) | (found > call.steps)).any():
        raise ValueError(f"lengths must lie in [0, {call.steps}], not {found.tolist()}")
    found = found.to(torch.int64).contiguous()
    return near(found, x, "lengths") if on_device else found.cpu()


def near(tensor: Tensor, x: Tensor, name: str) -> Tensor:
    """A tensor on x's device."""
    if tensor.device == x.device:
        return tensor
    upload = device.kind.holds(x) and tensor.is_cpu and not torch.compiler.is_compiling()
    return device.kind.upload(tensor, x.device, name) if upload else tensor.to(x.device)

"""Memory that the caller holds: for graph capture, during which a call may allocate nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fusedrnn.arrays.device import Device
from fusedrnn.gradients import Gradients


@dataclass
class Buffers:
    """Everything that calls of one shape write; from ``layer.buffers(...)``, for ``out=``.

    A call given these writes and returns the same arrays each time; a tape that an earlier one made is then void. The
    backward pass of a tape made with them writes `gradients`, and returns it unless it is given ``grads=``.

    Attributes
    ----------
    y : array
    state : array or (array, array)
        The final state.
    gradients : Gradients or None
        None where they were made for inference.
    """

    y: Any
    state: Any
    gradients: Gradients | None
    layout: Any
    owner: Any
    recompute: int
    mask: bool
    kept: Any
    workspace: Any
    backward_workspace: Any


@dataclass
class NormBuffers:
    """What `clip_grad_norm` writes besides the gradients; from ``fusedrnn.norm_buffers``."""

    norm: Any
    workspace: Any


def require_no_buffers(out: Any) -> None:
    """Refuse memory held for a CUDA device where the arrays are the CPU's."""
    if out is not None:
        raise TypeError(f"out must be None for arrays on the CPU, not {type(out).__name__}")


def require_held(device: Device, held: Any, name: str) -> None:
    """Refuse to allocate while a graph is captured: the memory must be held by the caller."""
    if held is None and device.capturing():
        raise ValueError(f"out must be {name} while a graph is captured: its memory must be held by the caller")

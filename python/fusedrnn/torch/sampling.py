"""Sampling of images as a node of autograd's graph: the compiled operation on tensors of the CPU and of devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fusedrnn._core import sentences
from fusedrnn.ops.device_call import run
from fusedrnn.ops.grid_sample import (
    GridSampleTape,
    call_of,
    grid_sample_backward,
    grid_sample_forward,
    require_options,
)
from fusedrnn.torch import device as devices
from fusedrnn.torch.attention_device import TensorSpace
from fusedrnn.torch.nodes import array_of, floats, once
from fusedrnn.torch.tensors import check_memory, contiguous


def _device_call(tape: GridSampleTape, space: TensorSpace, **arrays: Tensor | None) -> Any:
    input: Any = tape.input
    return call_of(space, tape, devices.DTYPES[input.dtype], tape.grid.dtype != input.dtype, **arrays)


def _forward(input: Tensor, grid: Tensor, options: tuple[str, str, bool]) -> tuple[Tensor, GridSampleTape]:
    """The output, and a tape of arrays or of a device's tensors."""
    plain: list[Any] = [contiguous(tensor.detach()) for tensor in (input, grid)]
    tape = GridSampleTape(plain[0], plain[1], *options)
    if not devices.kind.holds(input):
        out, tape = grid_sample_forward(
            *map(array_of, plain), mode=tape.mode, padding_mode=tape.padding_mode, align_corners=tape.align_corners
        )
        return torch.from_numpy(out), tape
    result: Tensor = input.new_empty((*input.shape[:2], *grid.shape[1:3]))
    space = TensorSpace(input)
    run(space, _device_call(tape, space, out=result), "forward")
    return result, tape


def _backward(tape: GridSampleTape, dout: Tensor, wanted: Sequence[bool]) -> Sequence[Any]:
    """Gradients of input and grid; on a device None where not `wanted`."""
    dout = contiguous(dout.detach())
    tensors: tuple[Any, Any] = tape.input, tape.grid
    if not isinstance(tensors[0], Tensor):
        return grid_sample_backward(tape, array_of(dout))
    dinput, dgrid = (torch.empty_like(t) if want else None for t, want in zip(tensors, wanted, strict=True))
    space = TensorSpace(tensors[0])
    run(space, _device_call(tape, space, dout=dout, dinput=dinput, dgrid=dgrid), "backward")
    return dinput, dgrid


class _GridSample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, grid: Tensor, options: tuple[str, str, bool]) -> Tensor:
        out, tape = _forward(input, grid, options)
        ctx.tape = tape
        ctx.save_for_backward(input, grid)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors  # RuntimeError where they were written since: the tape refers to their memory
        found = _backward(ctx.tape, dout, ctx.needs_input_grad[:2])
        return *once("grid_sample", found, dout, inputs), None


def _on_a_device(input: Tensor, grid: Any) -> tuple[Tensor, Tensor]:
    """The tensors of a CUDA device, checked as the operation checks arrays; under autocast both of the wider dtype."""
    reason = devices.missing()
    if reason is not None:
        raise RuntimeError(f"fusedrnn.torch.grid_sample cannot run on {input.device}: {reason}")
    if not isinstance(grid, Tensor) or grid.device != input.device:
        came = grid.device if isinstance(grid, Tensor) else type(grid).__name__
        raise TypeError(f"grid must be a tensor on {input.device}, not {came}")
    if torch.is_autocast_enabled(input.device.type) and input.is_floating_point() and grid.is_floating_point():
        both = torch.promote_types(input.dtype, grid.dtype)
        input, grid = input.to(both), grid.to(both)
    if input.dtype not in devices.DTYPES:
        wanted = " or ".join(devices.DTYPES.values())
        raise TypeError(sentences["dtype"].format("input", wanted, str(input.dtype).removeprefix("torch."), ""))
    widest = torch.float32 if input.dtype.itemsize == 2 else input.dtype
    if grid.dtype not in (input.dtype, widest):
        kinds = (str(dtype).removeprefix("torch.") for dtype in (input.dtype, grid.dtype))
        raise TypeError(sentences["dtype"].format("grid", *kinds, ""))
    if input.dim() != 4 or 0 in input.shape[2:]:
        wanted = "(B, C, H, W) with the last two at least 1"
        raise ValueError(sentences["shape"].format("input", wanted, tuple(input.shape)))
    if grid.dim() != 4 or grid.shape[0] != input.shape[0] or grid.shape[3] != 2:
        raise ValueError(sentences["shape"].format("grid", f"({input.shape[0]}, h, w, 2)", tuple(grid.shape)))
    check_memory([("input", input), ("grid", grid)])
    return input, grid


@torch.compiler.disable  # type: ignore[untyped-decorator]
def grid_sample(
    input: Tensor,
    grid: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> Tensor:
    """`torch.nn.functional.grid_sample` of images on this library's kernels (`fusedrnn.grid_sample`).

    Three things differ: a point that is nan or infinite gives nan, and adds nothing to the gradient of the image; a
    second derivative is a RuntimeError; and results are bitwise the same for any number of threads and, on a CUDA
    device too, from run to run.

    Parameters
    ----------
    input : Tensor
        (N, C, H, W) with H and W at least 1; float32 or float64, on a CUDA device also bfloat16 or float16.
    grid : Tensor
        (N, h, w, 2), of input's dtype and on its device; the last axis is (x, y). For an input of 16 bits it may be
        float32.
    mode : 'bilinear' or 'nearest'
    padding_mode : 'zeros', 'border' or 'reflection'
    align_corners : bool, optional
        None is False.

    Returns
    -------
    Tensor
        (N, C, h, w).

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind, dtype, device, shape or value; the message names it.
    RuntimeError
        Where there is no engine for CUDA tensors, with the reason.
    """
    options = require_options(mode, padding_mode, False if align_corners is None else align_corners)
    given: Any = input
    if isinstance(given, Tensor) and devices.kind.holds(given):
        tensors = _on_a_device(given, grid)
    else:
        tensors = floats(input, "input"), floats(grid, "grid")
    out: Tensor = _GridSample.apply(*tensors, options)  # type: ignore[no-untyped-call]
    return out

"""Sampling of images on torch's CPU tensors: the compiled operation as a node of autograd's graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fusedrnn.ops.grid_sample import grid_sample_backward, grid_sample_forward
from fusedrnn.torch.nodes import array_of, floats, once
from fusedrnn.torch.tensors import contiguous


class _GridSample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, grid: Tensor, options: dict[str, Any]) -> Tensor:
        out, ctx.tape = grid_sample_forward(*(array_of(contiguous(t)) for t in (input, grid)), **options)
        ctx.save_for_backward(input, grid)
        return torch.from_numpy(out)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors  # RuntimeError where they were written since: the tape refers to their memory
        found = grid_sample_backward(ctx.tape, array_of(contiguous(dout)))
        return *once("grid_sample", found, dout, inputs), None


@torch.compiler.disable  # type: ignore[untyped-decorator]
def grid_sample(
    input: Tensor,
    grid: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> Tensor:
    """`torch.nn.functional.grid_sample` of images on this library's kernel (`fusedrnn.grid_sample`).

    Three things differ: a point that is nan or infinite gives nan, and adds nothing to the gradient of the image; a
    second derivative is a RuntimeError; and results are bitwise the same for any number of threads.

    Parameters
    ----------
    input : Tensor
        (N, C, H, W) with H and W at least 1; float32 or float64, on the CPU.
    grid : Tensor
        (N, h, w, 2), of input's dtype; the last axis is (x, y).
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
        Where an argument is of another kind, dtype, shape or value; the message names it.
    """
    tensors = floats(input, "input"), floats(grid, "grid")
    options = {
        "mode": mode,
        "padding_mode": padding_mode,
        "align_corners": False if align_corners is None else align_corners,
    }
    out: Tensor = _GridSample.apply(*tensors, options)  # type: ignore[no-untyped-call]
    return out

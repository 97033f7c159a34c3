"""What the compiled operations share as nodes of autograd's graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusedrnn.torch.tensors import check_memory


def floats(tensor: Any, name: str) -> Tensor:
    """A tensor of float32 or float64 on the CPU; under autocast any other dtype becomes float32, as in torch's own."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor of float32 or float64 on the CPU, not {type(tensor).__name__}")
    if tensor.device.type == "cpu" and torch.is_autocast_enabled("cpu") and tensor.is_floating_point():
        tensor = tensor if tensor.dtype == torch.float64 else tensor.float()
    if tensor.device.type != "cpu" or tensor.dtype not in (torch.float32, torch.float64):
        kind = f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
        raise TypeError(f"{name} must be a tensor of float32 or float64 on the CPU, not of {kind}")
    try:
        check_memory([(name, tensor)])
    except NotImplementedError:  # torch's own words for it name neither the argument nor a remedy
        what = "it is sparse" if tensor.layout != torch.strided else "it stands for others, as under torch.func"
        raise TypeError(f"{name} must be a tensor with elements in memory: {what}") from None
    checked: Tensor = tensor
    return checked


def array_of(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.detach().numpy()


class _Once(torch.autograd.Function):
    """Gradients, which stay what they are, with an error where they are differentiated again.

    `once_differentiable` takes a gradient for a constant wherever that of the result is one.
    """

    @staticmethod
    def forward(ctx: Any, name: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.name = name
        return tuple(gradient.view_as(gradient) for gradient in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(f"fusedrnn.torch.{ctx.name} has no second derivative: its gradient can't be differentiated")


def once(name: str, arrays: Sequence[Any], dout: Tensor, inputs: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Gradients as tensors, each of which depends on the gradient of the result and on all inputs."""
    gradients = [torch.from_numpy(array) if isinstance(array, np.ndarray) else array for array in arrays]
    if not torch.is_grad_enabled():
        return list(gradients)
    present = [gradient for gradient in gradients if gradient is not None]
    sources = [tensor for tensor in inputs if tensor is not None]
    found = iter(_Once.apply(name, len(present), *present, dout, *sources))  # type: ignore[no-untyped-call]
    return [None if gradient is None else next(found) for gradient in gradients]

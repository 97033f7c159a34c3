"""`gaussian_read` and `gaussian_write` under torch's autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import fusedrnn as fr


def read(image: Tensor, attention: Tensor, count: int) -> Tensor:
    """As `fusedrnn.gaussian_read`."""
    patch: Tensor = _Read.apply(image, attention, count)
    return patch


def write(patch: Tensor, attention: Tensor, size: tuple[int, int]) -> Tensor:
    """As `fusedrnn.gaussian_write`."""
    image: Tensor = _Write.apply(patch, attention, size)
    return image


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, attention: Tensor, count: int) -> Tensor:
        patch, ctx.tape = fr.gaussian_read_forward(_array(image), _array(attention), count)
        return torch.from_numpy(patch)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return *map(torch.from_numpy, fr.gaussian_read_backward(ctx.tape, _array(gradients[0]))), None


class _Write(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, patch: Tensor, attention: Tensor, size: tuple[int, int]) -> Tensor:
        image, ctx.tape = fr.gaussian_write_forward(_array(patch), _array(attention), size)
        return torch.from_numpy(image)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return *map(torch.from_numpy, fr.gaussian_write_backward(ctx.tape, _array(gradients[0]))), None


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()

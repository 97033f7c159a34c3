"""A tensor's memory, as the compiled engines read it."""

from __future__ import annotations

from torch import Tensor


def address(tensor: Tensor | None) -> int:
    """Where a tensor's elements are; 0 for None, and where there are none."""
    found = 0 if tensor is None else tensor.data_ptr()
    if not found and tensor is not None and tensor.numel():
        raise RuntimeError("fusedrnn.torch: the memory of a tensor has been freed, as by resizing its storage")
    return found


def unit_stride(tensor: Tensor) -> Tensor:
    """The tensor with neighbours in its last axis next to each other in memory; copied only where they are not."""
    if tensor.stride(-1) == 1 and not tensor.is_neg():
        return tensor
    return tensor.resolve_neg().contiguous()


def contiguous(tensor: Tensor) -> Tensor:
    """The tensor, copied only where its elements lie otherwise."""
    return tensor if tensor.is_contiguous() and not tensor.is_neg() else tensor.resolve_neg().contiguous()

"""A tensor's memory, as the compiled engines read it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def check_memory(tensors: Iterable[tuple[str, Tensor | None]]) -> None:
    """RuntimeError for a tensor whose storage has become too small for it: torch itself does not check that."""
    for name, t in tensors:
        if t is None or t.numel() == 0:
            continue
        extent = t.numel()
        if not t.is_contiguous():
            extent = 1 + sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
        if (t.storage_offset() + extent) * t.element_size() > t.untyped_storage().nbytes():
            raise RuntimeError(
                f"fusedrnn.torch: the memory of {name} has been freed or cut short, as by resizing its storage"
            )


def address(tensor: Tensor | None) -> int:
    """Where a tensor's elements are; 0 for None, and where there are none.

    RuntimeError for elements without memory: torch has tensors that stand for others, or for zeros.
    """
    if tensor is None:
        return 0
    where = tensor.data_ptr()
    if where == 0 and tensor.numel() > 0:
        raise RuntimeError("fusedrnn.torch: a tensor has elements, but no memory of its own")
    return where


def unit_stride(tensor: Tensor) -> Tensor:
    """The tensor with unit stride in its last axis; copied only where it has another."""
    if (tensor.stride(-1) == 1 or tensor.numel() == 0) and not tensor.is_neg():
        return tensor
    return tensor.resolve_neg().contiguous()


def contiguous(tensor: Tensor) -> Tensor:
    """The tensor, copied only where its elements lie otherwise."""
    return tensor if tensor.is_contiguous() and not tensor.is_neg() else tensor.resolve_neg().contiguous()

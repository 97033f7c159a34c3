"""Where the tests of CUDA tensors run: on a GPU, and always on a stand-in for one.

In the stand-in the tensors of the CPU are taken for those of a device, and run on the CUDA engine built for the host.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fusedrnn.torch import device

GUARD = 256  # bytes on each side of a tape or a workspace
GUARD_BYTE = 0xA5
STREAM = 33


class HostKind:
    """`fusedrnn.torch.device.Cuda` on the host. Tapes and workspaces lie between guard bands and are nan at first."""

    def __init__(self, native: Any, reason: str | None = None) -> None:
        self.native = native
        self.reason = reason
        self.bands: list[tuple[np.ndarray, int]] = []

    def holds(self, tensor: Tensor) -> bool:
        return tensor.is_cpu

    def index(self, tensor: Tensor) -> int:
        return 0

    def stream(self, index: int) -> int:
        return STREAM

    def memory(self, like: Tensor, count: int) -> Tensor:
        storage = np.full(count + 2 * GUARD, GUARD_BYTE, np.uint8)
        storage[GUARD : GUARD + count] = 0xFF
        self.bands.append((storage, count))
        return torch.from_numpy(storage[GUARD : GUARD + count])

    def upload(self, tensor: Tensor, device: torch.device, name: str) -> Tensor:
        return tensor.clone()

    def check_guards(self) -> None:
        """Assert that nothing was written around what the engine was given."""
        for storage, count in self.bands:
            assert (storage[:GUARD] == GUARD_BYTE).all() and (storage[GUARD + count :] == GUARD_BYTE).all()
        self.bands.clear()


@contextlib.contextmanager
def on_the_host(module: Any) -> Iterator[HostKind]:
    """Put the stand-in in CUDA's place; afterwards check all guard bands."""
    before, device.kind = device.kind, HostKind(module)
    try:
        yield device.kind
        device.kind.check_guards()
    finally:
        device.kind = before


def require_gpu() -> None:
    """Skip, with the reason, where no module runs CUDA tensors."""
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    reason = device.missing()
    if reason is not None:
        pytest.skip(f"no engine for CUDA tensors: {reason}")

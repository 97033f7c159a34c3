"""clip_grad_norm on device arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusedrnn.arrays.buffers import NormBuffers, require_held
from fusedrnn.arrays.checks import require_array, require_contiguous, require_writable
from fusedrnn.arrays.device import Device
from fusedrnn.arrays.dtypes import FLOATS


def norm_buffers(device: Device, count: int) -> NormBuffers:
    """Memory for `clip_grad_norm` over so many arrays, for ``out=``."""
    return NormBuffers(device.empty((), np.float64), device.memory(device.native.clip_bytes(count)))


def clip(device: Device, arrays: list[Any], limit: float, out: Any) -> Any:
    """Scale device arrays in place; the norm, float64 without axes, lies on the device."""
    for array in arrays:
        if array.dtype.name not in FLOATS:
            raise TypeError(f"grads must hold arrays of floating-point numbers, not of {array.dtype}")
        require_array(device, array, "grads", array.dtype)
        require_contiguous(array, "grads")
        require_writable(array, "grads")
    if out is not None and not isinstance(out, NormBuffers):
        raise TypeError(f"out must be NormBuffers or None, not {type(out).__name__}")
    if out is not None and out.workspace.nbytes < device.native.clip_bytes(len(arrays)):
        raise ValueError(f"out must be NormBuffers made for {len(arrays)} arrays or more")
    require_held(device, out, "NormBuffers")
    held = norm_buffers(device, len(arrays)) if out is None else out
    listed = [(device.address(array), int(array.size), array.dtype.name) for array in arrays]
    workspace = device.address(held.workspace)
    device.native.clip(device.index, device.stream(), listed, limit, device.address(held.norm), workspace)
    return held.norm

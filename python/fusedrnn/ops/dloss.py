"""The gradient of a loss on a device, as the backward passes of losses are given it."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusedrnn.arrays.checks import require_array, require_contiguous, require_shape
from fusedrnn.arrays.device import Device, owner_of


def device_dloss(
    device: Device, dloss: Any, dtype: Any, shape: tuple[int, ...] | None, which: str, held: Any = None
) -> tuple[Any, int]:
    """Return dloss on the device, of the loss's dtype, and its stride over rows.

    It may be a number, a device array without axes, or one of `shape`, which is None for losses that were reduced and
    which `which` puts into words. A number is written into `held`, an array of one element, where that is given.
    """
    if owner_of(dloss) is not None:
        require_array(device, dloss, "dloss", dtype)
        if shape is not None and dloss.ndim > 0:
            require_shape(dloss, "dloss", shape)
            require_contiguous(dloss, "dloss")
            return dloss, 1
        require_shape(dloss, "dloss", ())
        return dloss, 0
    if isinstance(dloss, (bool, np.bool_, str, bytes)) or np.ndim(dloss) != 0:
        wanted = f"a number or a device array {'without axes' if shape is None else which}"
        raise TypeError(f"dloss must be {wanted}, not {type(dloss).__name__}")
    try:
        number = float(dloss)
    except (TypeError, ValueError):
        raise TypeError(f"dloss must be a number or a device array, not {type(dloss).__name__}") from None
    except OverflowError:
        raise ValueError("dloss must be within the range of a float") from None
    scale = device.empty((1,), dtype) if held is None else held
    with device.on():
        scale.fill(number)
    return scale, 0

"""Which arrays share memory, NumPy's and a CUDA device's alike."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from fusedrnn.arrays.checks import bounds
from fusedrnn.arrays.device import owner_of

# Steps that NumPy's search for a common byte may take. The search is exponential in the number of axes.
_MOST_WORK = 10_000


def _address(array: Any) -> int:
    device = owner_of(array)
    return int(array.ctypes.data) if device is None else device.address(array)


def _outline(array: Any) -> np.ndarray[Any, Any]:
    """Address, shape and strides of an array as NumPy's; it may describe a device's memory, so it must not be read."""
    interface = {
        "version": 3,
        "data": (_address(array), True),
        "shape": tuple(array.shape),
        "strides": tuple(array.strides),
        "typestr": f"|V{array.dtype.itemsize}",
    }
    return np.asarray(SimpleNamespace(__array_interface__=interface))


def _share(one: Any, other: Any) -> bool:
    try:
        # NumPy's annotation knows its two special values alone.
        return np.shares_memory(_outline(one), _outline(other), max_work=_MOST_WORK)  # type: ignore[arg-type]
    except RuntimeError:  # numpy's TooHardError, whose place changed in 1.25
        return True


def sharing(arrays: Sequence[Any]) -> list[tuple[int, int]]:
    """The pairs i < j of arrays with an element in common. Interleaved views, such as two columns, have none.

    A pair also counts where NumPy's search takes too long. Only strides that no slicing makes can cause that.
    """
    spans = sorted((*bounds(_address(array), array), i) for i, array in enumerate(arrays) if array.size)
    found, reaching = [], list[tuple[int, int]]()
    for begin, end, i in spans:
        reaching = [(e, j) for e, j in reaching if e > begin]
        found += [(min(i, j), max(i, j)) for _, j in reaching if _share(arrays[i], arrays[j])]
        reaching.append((end, i))
    return sorted(found)

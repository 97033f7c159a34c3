"""Arrays beside a page that nobody may read: one byte too far ends the process."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

_libc = ctypes.CDLL(None, use_errno=True)
_regions: list[mmap.mmap] = []  # an array's memory is never given back: its pages stay fenced


def fenced(array: np.ndarray, *, at_end: bool) -> np.ndarray:
    """A copy of the array whose last byte, or whose first, lies at a fence."""
    page = mmap.PAGESIZE
    inside = -(-array.nbytes // page) * page
    region = mmap.mmap(-1, inside + 2 * page)
    _regions.append(region)
    start = ctypes.addressof(ctypes.c_char.from_buffer(region))
    for fence in (start, start + page + inside):
        if _libc.mprotect(ctypes.c_void_p(fence), ctypes.c_size_t(page), 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = page + (inside - array.nbytes if at_end else 0)
    copy = np.ndarray(array.shape, array.dtype, region, offset)
    copy[...] = array
    return copy

"""Types of elements."""

from __future__ import annotations

from typing import Any

import numpy as np

FLOATS = ("float32", "float64", "bfloat16", "float16")


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype of a name; bfloat16 is that of ml_dtypes."""
    if name == "bfloat16":
        try:
            import ml_dtypes
        except ImportError as error:
            raise ValueError("dtype 'bfloat16' needs ml_dtypes: pip install 'fusedrnn[bfloat16]'") from error
        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


def accumulator(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What sums, cell states and losses of a dtype have: float32 for the 16-bit ones."""
    return np.dtype(np.float32) if dtype.itemsize == 2 else dtype


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype is one of floating-point numbers, bfloat16 included."""
    return dtype.kind == "f" or dtype.name == "bfloat16"

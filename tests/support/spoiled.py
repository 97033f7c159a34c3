"""Arguments that a call must refuse, and the error that names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest


def misaligned(array: np.ndarray) -> np.ndarray:
    raw = np.zeros(array.nbytes + 1, np.uint8)
    moved = raw[1:].view(array.dtype).reshape(array.shape)
    moved[...] = array
    return moved


def spaced(array: np.ndarray) -> np.ndarray:
    """The same values, every second element of a larger array."""
    return np.repeat(array, 2, axis=-1)[..., ::2]


# Each builds an array like the one it is given but for one thing, and says what that should raise.
SPOILED: dict[str, tuple[Callable[[np.ndarray], Any], type[Exception]]] = {
    "other width": (lambda a: a.astype(np.float64 if a.dtype != np.float64 else np.float32), TypeError),
    "half": (lambda a: a.astype(np.float16), TypeError),
    "integers": (lambda a: a.astype(np.int32), TypeError),
    "complex": (lambda a: a.astype(np.complex64), TypeError),
    "objects": (lambda a: a.astype(object), TypeError),
    "byte order": (lambda a: a.astype(a.dtype.newbyteorder()), TypeError),
    "list": (lambda a: a.tolist(), TypeError),
    "text": (lambda a: "zeros", TypeError),
    "number": (lambda a: 1.5, TypeError),
    "object": (lambda a: object(), TypeError),
    "masked": (np.ma.masked_array, TypeError),
    "0-d": (lambda a: a.reshape(-1)[:1].reshape(()), ValueError),
    "one axis more": (lambda a: a[None, None], ValueError),
    "one axis less": (lambda a: a.reshape(-1), ValueError),
    "longer": (lambda a: np.concatenate([a, a], axis=-1), ValueError),
    "empty": (lambda a: a[..., :0], ValueError),
    "misaligned": (misaligned, ValueError),
    "last axis strided": (spaced, ValueError),
    "last axis reversed": (lambda a: a[..., ::-1], ValueError),
}


def raises(error: Any, name: str) -> Any:
    """Expect an error whose message begins with the argument's name."""
    return pytest.raises(error, match=rf"^{name}\b")

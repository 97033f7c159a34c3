"""Checks of plain arguments; arrays are checked by the compiled module."""

from __future__ import annotations

import math
import operator
from typing import Any, SupportsFloat, SupportsIndex

import numpy as np

DTYPES = ("float32", "float64")
# Beyond this a size cannot be a whole number of bytes in memory, whatever it counts.
_LARGEST = 2**48


def require_integer(value: SupportsIndex, name: str, *, least: int, most: int = _LARGEST) -> int:
    """Return `value` as an int within [least, most]; TypeError or ValueError names it."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}") from None
    if not least <= number <= most:
        raise ValueError(f"{name} must lie in [{least}, {most}], not {number}")
    return number


def require_flag(value: bool, name: str) -> bool:
    """Return `value` as a bool, or raise a TypeError that names it."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, not {type(value).__name__}")
    return bool(value)


def require_number(value: SupportsFloat, name: str, *, least: float, most: float) -> float:
    """Return `value` as a float within [least, most]; TypeError or ValueError names it."""
    if isinstance(value, (bool, np.bool_, str, bytes)):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}") from None
    except OverflowError:
        raise ValueError(f"{name} must lie in [{least}, {most}], and this number is beyond a float") from None
    if math.isnan(number) or not least <= number <= most:
        raise ValueError(f"{name} must lie in [{least}, {most}], not {number}")
    return number


def require_clip(value: SupportsFloat | None) -> float | None:
    """Return a bound on gates' pre-activations, or None for none; it must be a positive number of single precision."""
    single = np.finfo(np.float32)
    return None if value is None else require_number(value, "clip", least=float(single.tiny), most=float(single.max))


def require_unmasked(array: Any, name: str) -> None:
    """Refuse a masked array, whose mask would be ignored, by a TypeError that names it."""
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} must be an array without a mask, not {type(array).__name__}")


def require_choice(value: str, name: str, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of `choices`; TypeError or ValueError names it."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {type(value).__name__}")
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")
    return value


def require_dtype(value: Any) -> str:
    """Return 'float32' or 'float64' for a name, NumPy type or dtype of one of them."""
    if isinstance(value, (str, type, np.dtype)):
        try:
            dtype = np.dtype(value)
        except (TypeError, ValueError):  # the latter for a string beyond UTF-8
            dtype = None
        if dtype is not None and dtype.name in DTYPES and dtype.isnative:
            return str(dtype.name)
    error = ValueError if isinstance(value, str) else TypeError
    raise error(f"dtype must be 'float32' or 'float64', not {value!r}")


def require_device(value: str) -> str:
    """Return 'cpu', the one device this version has."""
    if not isinstance(value, str):
        raise TypeError(f"device must be a string, not {type(value).__name__}")
    if value != "cpu":
        raise ValueError(f"device must be 'cpu', not {value!r}: this version has no CUDA engine")
    return value


def require_seed(value: int | None) -> int:
    """Return a seed in [0, 2**64): the one given, or a fresh one for None."""
    if value is None:
        return int(np.random.SeedSequence().generate_state(1, np.uint64)[0])
    return require_integer(value, "seed", least=0, most=2**64 - 1)

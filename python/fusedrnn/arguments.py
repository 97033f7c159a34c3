"""Checks of plain arguments; arrays are checked by the compiled module."""

from __future__ import annotations

import math
import operator
from typing import Any, SupportsFloat, SupportsIndex

import numpy as np

from fusedrnn.arrays.device import parse
from fusedrnn.arrays.dtypes import FLOATS, numpy_dtype

# What layers and cells compute in on the CPU; on a device it is all of FLOATS.
CPU_DTYPES = ("float32", "float64", "bfloat16")
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
    """Return a bound on gates' pre-activations, or None for none; it must be a positive number of float32."""
    float32 = np.finfo(np.float32)
    return None if value is None else require_number(value, "clip", least=float(float32.tiny), most=float(float32.max))


def require_choice(value: str, name: str, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of `choices`; TypeError or ValueError names it."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {type(value).__name__}")
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")
    return value


def require_dtype(value: Any, device: str = "cpu") -> str:
    """Return the name of a dtype that the device's engine computes in, given as name, NumPy type or dtype."""
    choices = CPU_DTYPES if device == "cpu" else FLOATS
    if isinstance(value, str) and value == "bfloat16" and value in choices:
        return str(numpy_dtype(value).name)
    if isinstance(value, (str, type, np.dtype)):
        try:
            dtype = np.dtype(value)
        except (TypeError, ValueError):  # the latter for a string beyond UTF-8
            dtype = None
        if dtype is not None and dtype.name in choices and dtype.isnative:
            return str(dtype.name)
    error = ValueError if isinstance(value, str) else TypeError
    where = "" if device == "cpu" else f" on {device}"
    raise error(f"dtype must be {', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}{where}, not {value!r}")


def require_device(value: str) -> str:
    """Return 'cpu', or 'cuda:N' for a CUDA device that can be used; ValueError tells what is missing for it."""
    if not isinstance(value, str):
        raise TypeError(f"device must be a string, not {type(value).__name__}")
    if value == "cpu":
        return value
    index = parse(value)
    if index is None:
        raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:N', not {value!a}")
    return f"cuda:{index}"


def require_precision(value: str, device: str, dtype: str) -> str:
    """Return 'ieee' or 'tf32', the latter only for float32 on a CUDA device."""
    require_choice(value, "precision", ("ieee", "tf32"))
    if value == "tf32" and (device == "cpu" or dtype != "float32"):
        raise ValueError(
            f"precision must be 'ieee' but for float32 on a CUDA device, not 'tf32' for {dtype} on {device}"
        )
    return value


def require_engine(value: str, device: str) -> str:
    """Return 'auto', 'stepwise' or 'persistent'; what the last one cannot run is refused where that is known."""
    require_choice(value, "engine", ("auto", "stepwise", "persistent"))
    if value != "auto" and device == "cpu":
        raise ValueError(f"engine must be 'auto' on the CPU, not {value!r}: the choice is a CUDA device's")
    return value


def require_seed(value: int | np.random.Generator | None) -> int:
    """Return a seed in [0, 2**64): the one given, one drawn from a generator, or a fresh one for None."""
    if value is None:
        return int(np.random.SeedSequence().generate_state(1, np.uint64)[0])
    if isinstance(value, np.random.Generator):
        return int(value.integers(2**64 - 1, dtype=np.uint64, endpoint=True))
    return require_integer(value, "seed", least=0, most=2**64 - 1)


def require_generator(value: int | np.random.Generator | None) -> np.random.Generator:
    """Return a generator: the one given, one of a seed in [0, 2**64), or a fresh one for None."""
    return value if isinstance(value, np.random.Generator) else np.random.default_rng(require_seed(value))

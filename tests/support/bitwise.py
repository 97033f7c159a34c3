"""Equality to the last bit, of arrays and of whatever holds them, and the number of threads it must not depend on."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fusedrnn import _core


def leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every array in a nest of tuples, mappings, Gradients and results, with a name for it."""
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{name}.{key}")
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from leaves(item, f"{name}[{index}]")
    elif value is not None:
        yield name, np.asarray(value)


def assert_same(actual: Any, expected: Any, name: str = "result") -> None:
    """Assert that two nests hold the same arrays: shapes, dtypes and every bit, the sign of a zero included."""
    ours, theirs = dict(leaves(actual, name)), dict(leaves(expected, name))
    assert list(ours) == list(theirs)
    for key, array in ours.items():
        other = theirs[key]
        assert (array.dtype, array.shape) == (other.dtype, other.shape), key
        if array.tobytes() != other.tobytes():
            differs = np.flatnonzero(array.ravel() != other.ravel())
            example = f"{array.ravel()[differs[0]]!r} and {other.ravel()[differs[0]]!r}" if differs.size else "0 and -0"
            raise AssertionError(f"{key}: {differs.size} of {array.size} elements differ, first {example}")


def copied(value: Any) -> Any:
    """A deep copy of a nest of tuples, dicts and arrays."""
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(copied(item) for item in value)
    return value.copy() if isinstance(value, np.ndarray) else value


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Let calls use exactly `count` threads, however few processors there are and whatever else runs on them."""
    before = _core.num_threads()
    _core.set_num_threads(count, oversubscribe=True, always=True)
    try:
        yield
    finally:
        _core.set_num_threads(before, oversubscribe=True)

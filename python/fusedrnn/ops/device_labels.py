"""What losses over label sequences share on a device."""

from __future__ import annotations

from typing import Any

from fusedrnn.arrays.checks import integers
from fusedrnn.arrays.device import Device, owner_of
from fusedrnn.ops.labels import lengths_of

REDUCTION_NUMBERS = {"mean": 0, "sum": 1, "none": 2}
"""A device's numbers."""


def copied(device: Device, values: Any, name: str, shape: tuple[int, ...]) -> Any:
    """A device array of integers as int64, in memory of its own: the tape does not depend on the caller's."""
    wide = integers(device, values, name, shape)
    if wide is values:
        with device.on():
            wide = wide.copy()
    return wide


def lengths_on(device: Device, values: Any, name: str, rows: int, most: int) -> tuple[Any, int]:
    """Lengths on the device, None where they are `most` throughout, and the largest one they may be."""
    if values is None:
        return None, most
    if owner_of(values) is not None:
        return copied(device, values, name, (rows,)), most
    lengths = lengths_of(values, name, rows, most)
    return device.from_host(lengths), int(lengths.max(initial=0))

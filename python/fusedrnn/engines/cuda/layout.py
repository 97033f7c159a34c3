"""How the arrays of a call lie: which axis is time, which the batch, and what the compiled module reads of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from fusedrnn.arrays.device import Device

View = tuple[int, int, int]
"""An array as the compiled module takes it: its address, and in elements the strides of time, or layers, and rows."""
NormView = tuple[int, int, int, int]
"""Norms of a state's gradients: their address, and in elements the strides of layers, time and rows."""
ABSENT: View = (0, 0, 0)
PRESENT: View = (1, 0, 0)
"""An array whose memory only has to be counted."""


def stride_of(array: Any, axis: int) -> int:
    """Stride of an axis in elements; 0 for an axis of one element or none, whose stride means nothing."""
    return 0 if axis < 0 or array.shape[axis] <= 1 else array.strides[axis] // array.dtype.itemsize


class Layout(NamedTuple):
    """One call's extents. Unbatched arrays have no batch axis; a single step has no time axis."""

    batch_first: bool
    single_step: bool
    batched: bool
    steps: int
    rows: int

    @property
    def time_axis(self) -> int:
        """Axis of time, or -1."""
        return -1 if self.single_step else int(self.batched and self.batch_first)

    @property
    def row_axis(self) -> int:
        """Axis of the batch, or -1."""
        return -1 if not self.batched else 0 if self.single_step or self.batch_first else 1

    def outer(self) -> tuple[int, ...]:
        """Axes before the last one."""
        if self.single_step:
            return (self.rows,) if self.batched else ()
        if not self.batched:
            return (self.steps,)
        return (self.rows, self.steps) if self.batch_first else (self.steps, self.rows)

    def state(self, layers: int, hidden: int) -> tuple[int, ...]:
        """Shape of a state array."""
        return (*(() if self.single_step else (layers,)), *((self.rows,) if self.batched else ()), hidden)

    def norms(self, device: Device, array: Any) -> NormView:
        """Norms (layers, T, B), shaped as `norms_shape`, as the compiled module takes them."""
        row_axis = self.row_axis + 1 if self.batched else -1
        layers, time, row = (stride_of(array, axis) for axis in (0, self.time_axis + 1, row_axis))
        return device.address(array), layers, time, row

    def norms_shape(self, layers: int) -> tuple[int, ...]:
        """Shape of the norms of a state's gradients."""
        return (layers, *self.outer())

    def sequence(self, device: Device, array: Any) -> View:
        """A sequence array as the compiled module takes it."""
        if array is None:
            return ABSENT
        return device.address(array), stride_of(array, self.time_axis), stride_of(array, self.row_axis)

    def states(self, device: Device, arrays: Sequence[Any]) -> list[View]:
        """The arrays of a state's parts as the compiled module takes them."""
        layer_axis, row_axis = -1 if self.single_step else 0, -1 if not self.batched else 0 if self.single_step else 1
        return [
            ABSENT
            if array is None
            else (device.address(array), stride_of(array, layer_axis), stride_of(array, row_axis))
            for array in arrays
        ]

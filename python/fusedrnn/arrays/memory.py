"""Where arrays lie: the host's memory or a device's, by one interface."""

from __future__ import annotations

import contextlib
from typing import Any, Protocol

from fusedrnn.arrays.device import owner_of
from fusedrnn.arrays.host import HOST
from fusedrnn.gradients import Array


class Memory(Protocol):
    """What `Host` and `Device` have in common."""

    name: str
    """'cpu' or 'cuda:N'."""

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """A new C-contiguous array; what it holds is undefined."""

    def from_host(self, array: Array) -> Any:
        """A host array's values as an array here."""

    def to_host(self, array: Any) -> Array:
        """An array's values as a host array."""

    def read(self, value: Any, name: str) -> Array:
        """A caller's value, wherever it lies, as a host array; TypeError or ValueError names it."""

    def assign(self, array: Any, values: Any) -> None:
        """Write host values into a contiguous array."""

    def on(self) -> contextlib.AbstractContextManager[Any]:
        """Make this the place where the array library works."""

    def capturing(self) -> bool:
        """Whether a graph is captured: then nothing may be allocated."""


def memory_of(array: Any) -> Memory:
    """The memory that an array lies in."""
    return owner_of(array) or HOST

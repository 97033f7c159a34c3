"""What backpropagation needs of a call on a device; a copy of the parameters for later calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fusedrnn.arrays.buffers import Buffers
from fusedrnn.engines.cuda.layout import Layout


@dataclass(frozen=True, slots=True, eq=False)
class Tape:
    """What backpropagation needs of one forward call on a device; it refers to x, y and the parameters."""

    owner: object
    layout: Layout
    call: Any
    kept: Any
    arrays: list[Any]
    out: Buffers | None

    @property
    def nbytes(self) -> int:
        """Bytes it holds beyond the arrays it refers to."""
        return int(self.kept.nbytes)


class FrozenParameters(dict[str, Any]):
    """A copy of the parameters, which later calls take in their place."""

    @property
    def nbytes(self) -> int:
        """Bytes it holds."""
        return sum(int(array.nbytes) for array in self.values())

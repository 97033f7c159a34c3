"""A call of the engine as data: what runs and how its rows lie, without the tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from fusedrnn import _core
from fusedrnn.torch.config import Config
from fusedrnn.torch.tensors import address, check_memory

States = tuple[Tensor | None, ...]
"""A tensor for each of the cell's states, or for the gradient of each; None: zeros, or unwanted."""


class Bound(Protocol):
    """A call on tensors that an engine can read, to be run at once: `_core.RawCall`, or a device's."""

    def forward(self, threads: int, training: bool) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
        """y, the final states, and in training the tape. A single step has no y but its h."""

    def backward(
        self,
        threads: int,
        y: Tensor | None,
        tape: Tensor,
        dy: Tensor | None,
        dfinal: States,
        wanted: tuple[bool, ...],
        /,
    ) -> tuple[Tensor | None, ...] | None:
        """Gradients of x, the states and the weights, None where not `wanted`; None where it cannot read a tensor."""


@dataclass(slots=True)
class Call:
    """What a call runs, beside its tensors.

    `form` says how x lies: "time" (T, B, I), "batch" (B, T, I), "packed" (N, I) or "step" (B, I). `batch_sizes` belongs
    to "packed"; `lengths`, (B,) of int64, and `reset` and `mask`, bool and of x's leading shape, are None where no row
    ends early, no link is cut and no step skipped. `on_device`: the CUDA engine runs it. `names` are those of the
    parameters, for errors. `bound` is the call on its tensors as the engine has read them, from there until it runs.
    `keeper` is the module whose packed parameters the call may use and keep.
    """

    config: Config
    form: str
    steps: int
    rows: int
    batch_sizes: Tensor | None = None
    lengths: Tensor | None = None
    reset: Tensor | None = None
    mask: Tensor | None = None
    lists: _core.RowLists | None = None
    on_device: bool = False
    names: Sequence[str] = ()
    bound: Bound | None = None
    keeper: Any = None

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of h and of c."""
        if self.form == "step":
            return self.rows, self.config.hidden_size
        return self.config.layers * self.config.directions, self.rows, self.config.hidden_size

    def make_lists(self, x: Tensor) -> None:
        """Note which rows run at which step, unless all run at all steps. ValueError where the counts do not fit."""
        if self.batch_sizes is not None:
            check_memory([("batch_sizes", self.batch_sizes)])
            self.lists = _core.RowLists.packed(self.steps, address(self.batch_sizes), x.shape[0])
        elif any(t is not None for t in (self.lengths, self.reset, self.mask)):
            check_memory([("lengths", self.lengths), ("reset", self.reset), ("mask", self.mask)])
            if self.on_device:  # the device reads them itself
                return
            reset, mask = (
                (0, 0, 0) if flags is None else (address(flags), *self.strides(flags))
                for flags in (self.reset, self.mask)
            )
            self.lists = _core.RowLists.padded(self.steps, self.rows, address(self.lengths), reset, mask)

    def strides(self, tensor: Tensor) -> tuple[int, int]:
        """Strides of time and row in a sequence of this form."""
        strides = tensor.stride()
        if self.form == "time":
            return strides[0], strides[1]
        return (strides[1] if self.form == "batch" else 0), strides[0]

    def take_bound(self) -> Bound:
        """`bound`, which the call then no longer has: it keeps the tensors alive, and does not see changes of them."""
        bound, self.bound = self.bound, None
        assert bound is not None
        return bound

    def keep_own_counts(self) -> None:
        """Copy what a second derivative would read again: the caller may write to it until then."""
        self.batch_sizes, self.lengths, self.reset, self.mask = (
            None if t is None else t.clone() for t in (self.batch_sizes, self.lengths, self.reset, self.mask)
        )

"""What layers and cells ask of an engine. Whatever satisfies it may stand behind them."""

from __future__ import annotations

from typing import Any, Protocol

from fusedrnn.arrays.buffers import Buffers
from fusedrnn.arrays.memory import Memory
from fusedrnn.gradients import Array


class Tape(Protocol):
    """What backpropagation needs of one forward call; it refers to x, y and the parameters."""

    @property
    def nbytes(self) -> int:
        """Bytes it holds beyond the arrays it refers to."""


class Packed(Protocol):
    """A copy of the parameters, which `infer` takes in their place."""

    @property
    def nbytes(self) -> int:
        """Bytes it holds."""


class Stepper(Protocol):
    """Runs a layer one step at a time and keeps the state; made by ``layer.stream``."""

    @property
    def state(self) -> Any:
        """The state, (L, B, H) or a pair of such: a copy. Setting it copies."""

    @state.setter
    def state(self, value: Any) -> None: ...

    def step(self, x_t: Array, out: Array | None = None) -> Array:
        """One step: (B, I) -> h of the last layer, (B, H)."""

    def reset(self, rows: Any = None) -> None:
        """Set the state of all rows to what it was at first, or of some: a mask (B,) or integers."""


class ParameterEngine(Protocol):
    """What the parameters of an object are: all that `Recurrent` asks of an engine, a decoder's included."""

    calls: int
    """Training calls so far, the counter of what is drawn."""

    @property
    def memory(self) -> Memory:
        """Where its arrays lie."""

    @property
    def tape_type(self) -> type[Tape]:
        """Class of the tapes that `forward` returns."""

    @property
    def parameter_shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names and shapes, in order."""

    def check_parameters(self, parameters: dict[str, Array], /) -> None:
        """Raise an error unless these are writable parameters of this object."""


class Engine(ParameterEngine, Protocol):
    """A layer or cell of certain options, without its parameters.

    It checks the arrays that it is given, and raises the errors that the layers document. Calls pass their arguments
    on as they are, by position: a cell's call takes less than two microseconds.
    """

    def infer(
        self, parameters: Any, x: Any, state: Any, lengths: Any, reset: Any, mask: Any, out: Any, /
    ) -> tuple[Array, Any]:
        """y and the final state, from parameters or from what `freeze` made of them."""

    def forward(
        self,
        parameters: dict[str, Array],
        x: Any,
        state: Any,
        lengths: Any,
        reset: Any,
        mask: Any,
        recompute: int,
        out: Any,
        /,
    ) -> tuple[Array, Any, Tape]:
        """y, the final state and a tape; `recompute` is 0 or the length of a window."""

    def backward(
        self, tape: Any, dy: Any, dstate: Any, gradients: dict[str, Array] | None, norms: bool, /
    ) -> tuple[Array, Any, dict[str, Array], tuple[Array, ...] | None]:
        """Gradients of x, of the initial state and of the parameters, the last added into `gradients` if given; last,
        with `norms`, those of each state's gradients, else None.

        The tape is of `tape_type`; one of another object is refused.
        """

    def freeze(self, parameters: Any, int8: bool = False, /) -> Packed:
        """The parameters as they are now, or what `unfreeze` gave; with `int8` the weights are rounded to 8 bits."""

    def unfreeze(self, packed: Any, /) -> Any:
        """What freezes to the same: parameters, or of int8 weights the engine's own."""

    def stream(self, parameters: dict[str, Array], batch: int, state: Any, int8: bool = False, /) -> Stepper:
        """A stepper of so many rows, which begins with this state; None: zeros."""

    def buffers(self, steps: Any, batch: Any, recompute: Any, training: Any, mask: Any, /) -> Buffers:
        """Memory for calls of one shape; ValueError where calls take none."""

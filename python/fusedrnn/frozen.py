"""Frozen layers: the parameters as they were, packed once for many calls."""

from __future__ import annotations

from typing import Any, Protocol

from fusedrnn.arrays.buffers import Buffers
from fusedrnn.engines.protocol import Engine
from fusedrnn.gradients import Array, State


class _Layer(Protocol):
    """What a runner asks of its layer."""

    parameters: dict[str, Array]
    initial_state: State | None
    _engine: Engine

    def buffers(
        self,
        steps: int,
        batch: int | None = None,
        *,
        training: bool = True,
        recompute: int | None = None,
        mask: bool = False,
    ) -> Buffers: ...
    def _with_parameters(self, parameters: dict[str, Array]) -> Any: ...


class Runner:
    """Calls of a layer from its parameters and initial state as they were when ``layer.freeze()`` made this object.

    With ``weights='int8'`` the weights are rounded to 8 bits, and results are those of the layer's stepper with such.

    It may be called from several threads at once. It pickles; a copy is the object itself, which nothing changes.
    """

    def __init__(self, layer: _Layer, weights: str | None = None, packed: Any = None) -> None:
        # Without its parameters, which would stay alive here.
        self._layer = layer._with_parameters({})
        self._layer.initial_state = layer.initial_state  # a copy
        self._engine = layer._engine
        self._weights = weights
        # `packed` is what a pickle has of weights of 8 bits.
        parameters = layer.parameters if packed is None else packed
        self._packed = self._engine.freeze(parameters, weights == "int8")
        self._from_zero = layer.initial_state is None  # a call of a small layer is not much longer than asking again

    def __call__(
        self,
        x: Array,
        state: State | None = None,
        lengths: Any = None,
        reset: Array | None = None,
        out: Array | Buffers | None = None,
        *,
        mask: Array | None = None,
    ) -> tuple[Array, State]:
        """Run a sequence: arguments, errors and, of float weights, results to the last bit are the layer's call's."""
        if state is None and not self._from_zero:
            state = self._layer._begin(x)
        result: tuple[Array, State] = self._engine.infer(self._packed, x, state, lengths, reset, mask, out)
        return result

    @property
    def nbytes(self) -> int:
        """Bytes of its parameters."""
        return self._packed.nbytes

    def buffers(self, steps: int, batch: int | None = None, *, mask: bool = False) -> Buffers:
        """Make the memory that calls of one shape write, for ``out=``, on a CUDA device; see the layer's `buffers`."""
        made: Buffers = self._layer.buffers(steps, batch, training=False, mask=mask)
        return made

    def __repr__(self) -> str:
        return f"{self._layer!r}.freeze({'' if self._weights is None else f'weights={self._weights!r}'})"

    def __copy__(self) -> Runner:
        return self

    def __deepcopy__(self, memo: Any) -> Runner:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        kept = self._engine.unfreeze(self._packed)
        if self._weights is None:
            return Runner, (self._layer._with_parameters(kept),)
        return Runner, (self._layer, self._weights, kept)

"""The sizes of a module's layers, and the compiled objects for them."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from fusedrnn import _core

# None before torch 2.10: the attributes are then read one by one, which takes a few microseconds more.
_EXCHANGE = getattr(Tensor, "__dlpack_c_exchange_api__", None)
TENSORS = _core.Tensors(torch, _EXCHANGE)

# How many states a cell has: plain values, which a compiler that traces this module looks up like any others.
STATES = {name: len(cell.states) for name, cell in _core.cells.items()}


class Config:
    """The sizes of a module's layers, what follows from them, and the compiled objects for them."""

    def __init__(
        self, cell: str, input_size: int, hidden_size: int, layers: int, bidirectional: bool, bias: bool
    ) -> None:
        self.cell = cell
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.layers = layers
        self.bidirectional = bidirectional
        self.bias = bool(bias)  # which torch does not look at
        self.directions = 2 if bidirectional else 1
        self.width = self.directions * hidden_size
        self.states = STATES[cell]
        self.no_states = (None,) * self.states  # which all begin at zero

    @functools.cached_property
    def engines(self) -> dict[torch.dtype, _core.RawRecurrent]:
        """The compiled object for each dtype."""
        sizes = (self.cell, self.input_size, self.hidden_size, self.layers, self.bidirectional, self.bias)
        names = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}
        return {dtype: _core.RawRecurrent(*sizes, name, TENSORS) for dtype, name in names.items()}

    @functools.cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the parameters of all directions of all layers, in torch's order."""
        return [tuple(shape) for shape in self.engines[torch.float32].parameter_shapes]

    def at_layer(self, layer: int) -> Config:
        """The configuration of one layer alone."""
        inputs = self.input_size if layer == 0 else self.width
        return config_of(self.cell, inputs, self.hidden_size, 1, self.bidirectional, self.bias)

    def shapes_fit(self, weights: Sequence[Tensor]) -> bool:
        """Whether the parameters have the shapes that the sizes ask for."""
        return [w.shape for w in weights] == self.shapes


_cached_config = functools.lru_cache(maxsize=1024)(Config)


def config_of(cell: str, input_size: int, hidden_size: int, layers: int, bidirectional: bool, bias: bool) -> Config:
    """A configuration, made once. A compiler cannot look into the cache and makes its own."""
    make = Config if torch.compiler.is_compiling() else _cached_config
    return make(cell, input_size, hidden_size, layers, bidirectional, bias)

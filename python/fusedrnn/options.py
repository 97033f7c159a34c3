"""What a layer or cell is made with, checked once and never changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, SupportsFloat, SupportsIndex

import numpy as np

from fusedrnn import _core
from fusedrnn.arguments import (
    require_clip,
    require_device,
    require_dtype,
    require_engine,
    require_flag,
    require_integer,
    require_number,
    require_precision,
    require_seed,
)


@dataclass(frozen=True, slots=True)
class Options:
    """Cell, sizes and settings, as the engines read them; made by `Options.checked`.

    `clip` is 0 where there is no bound. `single_step` is a cell's: arrays have no axis of time.
    """

    cell: str
    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    bidirectional: bool
    dropout: float
    seed: int
    dtype: str
    batch_first: bool
    single_step: bool
    reverse: bool
    clip: float
    device: str
    precision: str
    engine: str

    @classmethod
    def checked(
        cls,
        cell: str,
        input_size: SupportsIndex,
        hidden_size: SupportsIndex,
        *,
        bias: bool,
        clip: SupportsFloat | None,
        dtype: Any,
        device: str,
        seed: int | np.random.Generator | None,
        precision: str,
        engine: str,
        num_layers: SupportsIndex = 1,
        batch_first: bool = False,
        dropout: SupportsFloat = 0.0,
        bidirectional: bool = False,
        reverse: bool = False,
        single_step: bool = False,
    ) -> Options:
        """Options of what a constructor was given; TypeError or ValueError names what is wrong."""
        num_layers = require_integer(num_layers, "num_layers", least=1, most=2**16)
        dropout = require_number(dropout, "dropout", least=0.0, most=1.0)
        bidirectional = require_flag(bidirectional, "bidirectional")
        reverse = require_flag(reverse, "reverse")
        if reverse and bidirectional:
            raise ValueError("reverse must be False for a bidirectional layer, which has the reverse direction already")
        batch_first = require_flag(batch_first, "batch_first")
        device = require_device(device)
        input_size = require_integer(input_size, "input_size", least=1, most=2**31)
        hidden_size = require_integer(hidden_size, "hidden_size", least=1, most=2**31)
        bias = require_flag(bias, "bias")
        seed = require_seed(seed)
        dtype = require_dtype(dtype, device)
        return cls(
            cell=cell,
            input_size=input_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            bias=bias,
            bidirectional=bidirectional,
            dropout=dropout,
            seed=seed,
            dtype=dtype,
            batch_first=batch_first,
            single_step=single_step,
            reverse=reverse,
            clip=require_clip(clip) or 0.0,
            device=device,
            precision=require_precision(precision, device, dtype),
            engine=require_engine(engine, device),
        )

    @property
    def directions(self) -> int:
        """D."""
        return 2 if self.bidirectional else 1

    @property
    def states(self) -> tuple[str, ...]:
        """Names of the cell's states."""
        return _core.cells[self.cell].states

    def moved(self, device: str | None, dtype: Any) -> Options:
        """The same on another device or of another dtype, checked; itself where nothing changes."""
        device = self.device if device is None else require_device(device)
        dtype = require_dtype(self.dtype if dtype is None else dtype, device)
        if (device, dtype) == (self.device, self.dtype):
            return self
        require_precision(self.precision, device, dtype)
        require_engine(self.engine, device)
        return replace(self, device=device, dtype=dtype)

"""The CPU's engine: the compiled object, and what a layer asks beside its calls."""

from __future__ import annotations

from typing import Any

from fusedrnn import _core
from fusedrnn.arrays.buffers import Buffers
from fusedrnn.arrays.dtypes import numpy_dtype
from fusedrnn.arrays.host import HOST, Host
from fusedrnn.options import Options


def compiled(options: Options, dtype: str) -> _core.Recurrent:
    """The compiled object of these options."""
    return _core.Recurrent(
        cell=options.cell,
        input_size=options.input_size,
        hidden_size=options.hidden_size,
        num_layers=options.num_layers,
        bias=options.bias,
        bidirectional=options.bidirectional,
        dropout=options.dropout,
        seed=options.seed,
        dtype=numpy_dtype(dtype),
        batch_first=options.batch_first,
        single_step=options.single_step,
        reverse=options.reverse,
        clip=options.clip,
    )


class CpuEngine:
    """An `Engine` on the host. Its calls are the compiled object's own methods, so that no frame stands between."""

    memory: Host = HOST
    tape_type = _core.Tape

    def __init__(self, options: Options) -> None:
        self._compiled = own = compiled(options, options.dtype)
        self.parameter_shapes = own.parameter_shapes
        self.check_parameters = own.check_parameters
        self.infer = own.infer
        self.forward = own.forward
        self.backward = own.backward
        self.freeze = own.freeze
        self.unfreeze = own.unfreeze
        self.stream = own.stream

    @property
    def calls(self) -> int:
        """Training calls so far, dropout's counter."""
        return self._compiled.calls

    @calls.setter
    def calls(self, count: int) -> None:
        self._compiled.calls = count

    def buffers(self, steps: Any, batch: Any, recompute: Any, training: Any, mask: Any) -> Buffers:
        """Refuse: calls take an array for y."""
        raise ValueError("device must be a CUDA device for buffers; on the CPU out= takes an array for y")

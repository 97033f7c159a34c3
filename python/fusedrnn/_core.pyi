from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

_Array = np.ndarray[Any, np.dtype[Any]]

class _PoolUse(TypedDict):
    live: int
    idle: int
    fresh: int

version: str
cells: Mapping[str, Cell]
sentences: Mapping[str, str]

class Cell:
    @property
    def name(self) -> str: ...
    @property
    def gates(self) -> tuple[str, ...]: ...
    @property
    def states(self) -> tuple[str, ...]: ...
    @property
    def parameters(self) -> dict[str, tuple[str, ...]]: ...

class _Operation:
    """A module; what its functions take and return is told by the operation's file in `fusedrnn`."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    Tape: type[Any]

operations: dict[str, _Operation]

class Tape:
    @property
    def nbytes(self) -> int: ...

class Stepper:
    state: Any
    def step(self, x_t: _Array, out: _Array | None = None) -> _Array: ...
    def reset(self, rows: Any = None) -> None: ...

class Packed:
    @property
    def nbytes(self) -> int: ...

class Recurrent:
    calls: int
    def __init__(
        self,
        *,
        cell: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        bidirectional: bool,
        dropout: float,
        seed: int,
        dtype: np.dtype[Any],
        batch_first: bool,
        single_step: bool,
        reverse: bool = False,
        clip: float = 0.0,
    ) -> None: ...
    @property
    def parameter_shapes(self) -> list[tuple[str, tuple[int, ...]]]: ...
    def check_parameters(self, parameters: dict[str, _Array]) -> None: ...
    def infer(
        self,
        parameters: dict[str, _Array] | Packed,
        x: Any,
        state: Any,
        lengths: Any,
        reset: Any,
        mask: Any,
        out: Any,
    ) -> tuple[_Array, Any]: ...
    def forward(
        self,
        parameters: dict[str, _Array],
        x: Any,
        state: Any,
        lengths: Any,
        reset: Any,
        mask: Any,
        recompute: int,
        out: Any,
    ) -> tuple[_Array, Any, Tape]: ...
    def stream(self, parameters: dict[str, _Array], batch: int, state: Any, int8: bool = False) -> Stepper: ...
    def freeze(self, parameters: dict[str, _Array] | bytes, int8: bool = False) -> Packed: ...
    def unfreeze(self, packed: Packed) -> dict[str, _Array] | bytes: ...
    def backward(
        self, tape: Tape, dy: Any, dstate: Any, gradients: Any, norms: bool
    ) -> tuple[_Array, Any, dict[str, _Array], tuple[_Array, ...] | None]: ...

class DecoderTape:
    @property
    def nbytes(self) -> int: ...
    @property
    def attention(self) -> _Array: ...
    @property
    def locations(self) -> _Array | None: ...
    @property
    def log_prob(self) -> _Array | None: ...
    @property
    def entropy(self) -> _Array | None: ...

class DecoderStream:
    state: Any
    @property
    def attention(self) -> _Array: ...
    def step(self, x_t: _Array) -> tuple[_Array, _Array]: ...
    def select(self, rows: list[int]) -> None: ...

class Decoder:
    calls: int
    def __init__(
        self,
        *,
        cell: str,
        input_size: int,
        hidden_size: int,
        memory_size: int,
        attention_size: int,
        hard: bool,
        bias: bool,
        seed: int,
        dtype: str,
        batch_first: bool,
        clip: float,
    ) -> None: ...
    @property
    def parameter_shapes(self) -> list[tuple[str, tuple[int, ...]]]: ...
    def check_parameters(self, parameters: dict[str, _Array]) -> None: ...
    def run(
        self,
        parameters: dict[str, _Array],
        x: Any,
        memory: Any,
        memory_lengths: Any,
        state: Any,
        lengths: Any,
        training: bool,
        draw: bool,
    ) -> tuple[Any, ...]: ...
    def backward(
        self,
        tape: DecoderTape,
        dy: Any,
        dcontext: Any,
        dstate: Any,
        dlog_prob: Any,
        dentropy: Any,
        gradients: Any,
    ) -> tuple[_Array, _Array, Any, dict[str, _Array]]: ...
    def stream(self, parameters: dict[str, _Array], memory: Any, memory_lengths: Any) -> DecoderStream: ...

class RowLists:
    @staticmethod
    def padded(
        steps: int, rows: int, lengths: int, reset: tuple[int, int, int], mask: tuple[int, int, int]
    ) -> RowLists: ...
    @staticmethod
    def packed(steps: int, active: int, packed_rows: int) -> RowLists: ...
    @property
    def rows(self) -> int: ...

class Tensors:
    def __init__(self, torch: Any, exchange: Any, /) -> None: ...

class RawPacked: ...

class RawCall:
    def pack(self, threads: int, /) -> RawPacked: ...
    def fits(self, packed: RawPacked, /) -> bool: ...
    def forward(
        self, threads: int, training: bool, packed: RawPacked | None = None
    ) -> tuple[Any, tuple[Any, ...], Any]: ...
    def backward(
        self, threads: int, y: Any, tape: Any, dy: Any, dfinal: tuple[Any, ...], wanted: tuple[bool, ...], /
    ) -> tuple[Any, ...] | None: ...

class RawRecurrent:
    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        layers: int,
        bidirectional: bool,
        bias: bool,
        dtype: str,
        tensors: Tensors,
        /,
    ) -> None: ...
    @property
    def tape_row(self) -> int: ...
    @property
    def parameter_shapes(self) -> list[list[int]]: ...
    def samples(self, weights: Sequence[Any], /) -> bytes | None: ...
    def bind(
        self,
        form: str,
        steps: int,
        rows: int,
        lists: RowLists | None,
        x: Any,
        states: tuple[Any, ...],
        weights: Sequence[Any],
        /,
    ) -> RawCall | None: ...

def isa() -> str: ...
def isas() -> list[str]: ...
def pair_isa() -> str: ...
def pair_isas() -> list[str]: ...
def int8_isa() -> str: ...
def int8_isas() -> list[str]: ...
def int8_instruction() -> str: ...
def x86_level(leaf1_ecx: int, leaf7_ebx: int, extended_ecx: int, saved_state: int) -> int: ...
def num_threads() -> int: ...
def available_threads() -> int: ...
def set_num_threads(threads: int, oversubscribe: bool = False, always: bool = False) -> None: ...
def teams_are_whole() -> bool: ...
def set_signal_interval(seconds: float) -> None: ...
def set_pool_span(seconds: float) -> None: ...
def set_worker_process() -> None: ...
def pool_use() -> _PoolUse: ...
def release_memory() -> int: ...
def activate(name: str, x: _Array, isa: str | None = None) -> _Array: ...
def fma_peak(threads: int, isa: str | None = None, dtype: str = "float32") -> float: ...
def read_bandwidth(bytes: int, threads: int) -> float: ...

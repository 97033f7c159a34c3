"""CUDA tensors on the CUDA engine, as `engine.py` runs the others on the CPU's.

torch allocates everything, on the tensors' device: CuPy is not needed. What a call frees belongs to the stream that it
ran on. torch hands it out again on that stream only, so the next user runs after the call, and nothing has to wait.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fusedrnn.engines.cuda import blocks
from fusedrnn.engines.cuda.layout import ABSENT, PRESENT, View
from fusedrnn.native import Unavailable, load_native, open_blas
from fusedrnn.torch.call import Call, States
from fusedrnn.torch.config import Config
from fusedrnn.torch.tensors import address

DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


class DeviceKind(Protocol):
    """Tensors of one kind of device, and the compiled module for them."""

    @property
    def native(self) -> Any:
        """The compiled module."""

    @property
    def reason(self) -> str | None:
        """Why there is none."""

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor lies on a device of this kind."""

    def index(self, tensor: Tensor) -> int:
        """Number of a tensor's device."""

    def stream(self, index: int) -> int:
        """A device's current stream."""

    def memory(self, like: Tensor, count: int) -> Tensor:
        """So many bytes on a tensor's device."""

    def upload(self, tensor: Tensor, device: torch.device, name: str) -> Tensor:
        """A copy of a host tensor, for which nothing waits."""


class Cuda:
    """torch's CUDA tensors and the module for them. Tests put a stand-in for it into `kind`."""

    @functools.cached_property
    def _found(self) -> tuple[Any, str | None]:
        if torch.version.cuda is None:
            return None, "this build of torch is not one for CUDA"
        try:
            module = load_native()
            try:
                open_blas(module, loaded_blas())
            except Unavailable:  # torch's is too old, or its file is gone
                open_blas(module)
        except Unavailable as error:
            return None, str(error)
        return module, None

    @property
    def native(self) -> Any:
        """The compiled module."""
        return self._found[0]

    @property
    def reason(self) -> str | None:
        """Why there is none."""
        return self._found[1]

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor lies on a device of this kind."""
        return tensor.is_cuda

    def index(self, tensor: Tensor) -> int:
        """Number of a tensor's device."""
        return tensor.device.index or 0

    def stream(self, index: int) -> int:
        """A device's current stream."""
        return int(torch._C._cuda_getCurrentRawStream(index))

    def memory(self, like: Tensor, count: int) -> Tensor:
        """So many bytes on a tensor's device."""
        return like.new_empty(count, dtype=torch.uint8)

    def upload(self, tensor: Tensor, device: torch.device, name: str) -> Tensor:
        """A copy of a host tensor, for which nothing waits."""
        with torch.cuda.device(device):
            capturing = torch.cuda.is_current_stream_capturing()
        if capturing:
            raise ValueError(f"{name} must lie on {device} while a graph is captured: a replay would not copy it again")
        return tensor.pin_memory().to(device, non_blocking=True)


kind: DeviceKind = Cuda()


def loaded_blas(maps_of_process: str = "/proc/self/maps") -> str | None:
    """Path of the cuBLAS that this process has loaded, as torch does where it is built for CUDA."""
    try:
        with open(maps_of_process) as maps:
            paths = [fields[5] for line in maps if len(fields := line.rstrip("\n").split(maxsplit=5)) == 6]
    except OSError:
        return None
    return next((path for path in paths if path.rpartition("/")[2].startswith("libcublas.so")), None)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def missing() -> str | None:
    """Why there is no engine for CUDA tensors."""
    return kind.reason


def allows_tf32(single_step: bool) -> bool:
    """Whether torch's own module would round float32 factors to tf32: cuDNN's setting; for cells, cuBLAS's."""
    getter = getattr(torch._C, "_get_fp32_precision_getter", None)
    if getter is not None:
        return bool(getter("cuda", "matmul" if single_step else "rnn") == "tf32")
    return bool(torch.backends.cuda.matmul.allow_tf32 if single_step else torch.backends.cudnn.allow_tf32)


@functools.lru_cache(maxsize=1024)
def _net(native: Any, config: Config, dtype: torch.dtype, index: int, tf32: bool) -> Any:
    """The compiled object for a configuration."""
    return native.Net(
        cell=config.cell,
        input_size=config.input_size,
        hidden_size=config.hidden_size,
        layers=config.layers,
        directions=config.directions,
        bias=config.bias,
        reverse=False,
        clip=0.0,
        dropout=0.0,
        seed=0,
        dtype=DTYPES[dtype],
        tf32=tf32,
        loop_inside=blocks.LOOP_INSIDE,
        device=index,
    )


@functools.lru_cache(maxsize=1024)
def _tape_terms(native: Any, config: Config, dtype: torch.dtype, index: int, masked: bool) -> tuple[int, int, int]:
    """The terms of a tape's size in bytes: for each row of each step, for each row, and a constant.

    A compiler has to compute the size from symbolic shapes. The engine aligns each array of a tape to `unit` bytes.
    With rows in multiples of `unit` there is no padding, which gives the first two terms; the constant bounds the
    padding.
    """
    unit = 256
    net = _net(native, config, dtype, index, False)

    def size(steps: int) -> int:
        given: dict[str, Any] = dict.fromkeys(("x", "y", "reset"), PRESENT)
        given |= dict.fromkeys(("initial", "final"), [PRESENT] * config.states)
        given["mask"] = PRESENT if masked else ABSENT
        numbers = {"steps": steps, "rows": unit, "recompute": 0, "lengths": 1, "calls": 0}
        return int(net.kept_bytes(native.ForwardCall(**numbers, **given, weights=[], training=True, persistent=False)))

    none, whole, arrays = size(0), size(unit), 5 * config.layers + 3 + 5 * masked
    return (whole - none) // unit**2, none // unit, arrays * unit


def tape_bytes(call: Call, like: Tensor) -> Any:
    """Bytes of a call's tape."""
    each, row, beside = _tape_terms(kind.native, call.config, like.dtype, kind.index(like), call.mask is not None)
    return call.steps * call.rows * each + call.rows * row + beside


def _state_dtype(dtype: torch.dtype, number: int) -> torch.dtype:
    """The dtype of a state in the engine: the net's, but float32 for all but the first state of a 16-bit net."""
    return torch.float32 if number > 0 and dtype.itemsize == 2 else dtype


def _in_engine(state: States) -> States:
    """A state, or its gradient, in the engine's dtypes."""
    return tuple(None if s is None else s.to(_state_dtype(s.dtype, i)) for i, s in enumerate(state))


def _sequence(call: Call, tensor: Tensor | None) -> View:
    return ABSENT if tensor is None else (address(tensor), *call.strides(tensor))


def _views(call: Call, state: States) -> list[View]:
    hidden = call.config.hidden_size
    return [ABSENT if s is None else (address(s), call.rows * hidden, hidden) for s in state]


def _native_call(
    call: Call,
    weights: Sequence[Tensor],
    training: bool,
    net: Any,
    *,
    x: Tensor,
    y: Tensor | None,
    initial: States,
    final: States = (),
    tape: Tensor | None,
) -> Any:
    """A call as the compiled module takes it."""
    return kind.native.ForwardCall(
        steps=call.steps,
        rows=call.rows,
        training=training,
        persistent=blocks.runs_blocks(net, "auto", call.steps, call.rows, training=training),
        recompute=0,
        weights=[address(w) for w in weights],
        x=_sequence(call, x),
        y=ABSENT if call.form == "step" else _sequence(call, y),
        initial=_views(call, initial),
        final=_views(call, final),
        lengths=address(call.lengths),
        reset=_sequence(call, call.reset),
        mask=_sequence(call, call.mask),
        calls=0,
        kept=address(tape),
    )


def _find_net(call: Call, x: Tensor) -> tuple[Any, int]:
    """The compiled object for a call, and the number of its device."""
    index = kind.index(x)
    tf32 = x.dtype == torch.float32 and allows_tf32(call.form == "step")
    return _net(kind.native, call.config, x.dtype, index, tf32), index


@dataclass(frozen=True, slots=True)
class BoundCall:
    """As `_core.RawCall`: a call on tensors that have been checked, and lie as the engine reads them."""

    call: Call
    x: Tensor
    states: States
    weights: Sequence[Tensor]

    def _new_state(self, number: int) -> Tensor:
        return self.x.new_empty(self.call.state_shape, dtype=_state_dtype(self.x.dtype, number))

    def forward(self, _threads: int, training: bool) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
        """y, the final states, and in training the tape. A single step has no y but its h."""
        call, x = self.call, self.x
        net, index = _find_net(call, x)
        final = tuple(self._new_state(number) for number in range(call.config.states))
        y = final[0] if call.form == "step" else x.new_empty((*x.shape[:-1], call.config.width))
        tape = kind.memory(x, tape_bytes(call, x)) if training else None
        initial = _in_engine(self.states)
        made = _native_call(call, self.weights, training, net, x=x, y=y, initial=initial, final=final, tape=tape)
        workspace = kind.memory(x, net.forward_bytes(made))
        net.forward(index, kind.stream(index), made, address(tape), address(workspace))
        return y, tuple(s.to(x.dtype) for s in final), tape

    def backward(
        self,
        _threads: int,
        y: Tensor | None,
        tape: Tensor,
        dy: Tensor | None,
        dfinal: States,
        wanted: Sequence[bool],
    ) -> tuple[Tensor | None, ...]:
        """Gradients of x, the states and the weights from those of y and the final states, None where not `wanted`."""
        call, x, weights = self.call, self.x, self.weights
        first = 1 + call.config.states
        net, index = _find_net(call, x)
        dfinal = _in_engine(dfinal)
        dx = x.new_empty(x.shape) if wanted[0] else None
        dinitial = tuple(self._new_state(i) if want else None for i, want in enumerate(wanted[1:first]))
        dweights = [torch.empty_like(w) if want else None for w, want in zip(weights, wanted[first:], strict=True)]
        made = _native_call(call, weights, True, net, x=x, y=y, initial=self.states, tape=tape)
        workspace = kind.memory(x, net.backward_bytes(made))
        net.backward(
            index,
            kind.stream(index),
            made,
            dy=_sequence(call, dy),
            dx=_sequence(call, dx),
            dfinal=_views(call, dfinal),
            dinitial=_views(call, dinitial),
            gradients=[address(w) for w in dweights],
            accumulate=False,
            workspace=address(workspace),
        )
        return dx, *(None if d is None else d.to(x.dtype) for d in dinitial), *dweights

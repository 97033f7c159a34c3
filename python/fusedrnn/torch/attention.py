"""The attention decoder as a module of torch: the kernels of the CPU and of CUDA devices under autograd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.parameter import Parameter

import fusedrnn
from fusedrnn.torch import device as devices
from fusedrnn.torch.attention_device import DeviceCall
from fusedrnn.torch.tensors import check_memory

State = Tensor | tuple[Tensor, ...]


class Attended(NamedTuple):
    """What `AttentionDecoder.attend` returns; the last three are None for soft attention."""

    y: Tensor
    context: Tensor
    state: State
    attention: Tensor
    locations: Tensor | None
    log_prob: Tensor | None
    entropy: Tensor | None


@dataclass(frozen=True)
class _Call:
    """One call, but for its tensors."""

    compiled: Any
    names: tuple[str, ...]  # of the parameters
    memory_lengths: Any
    lengths: Any
    states: int  # tensors of an initial state: none, or all of the cell's
    draws: bool

    def run(self, tensors: Sequence[Tensor], training: bool) -> tuple[list[Any], Any]:
        """y, context and the final states, and in training the tape."""
        x, memory, *rest = map(_array, tensors)
        state = rest[: self.states]
        found = self.compiled.run(
            dict(zip(self.names, rest[self.states :], strict=True)),
            x,
            memory,
            self.memory_lengths,
            None if not state else tuple(state) if len(state) == 2 else state[0],
            self.lengths,
            training,
            self.draws,
        )
        final = found[2] if isinstance(found[2], tuple) else (found[2],)
        return [torch.from_numpy(array) for array in (*found[:2], *final)], found[3] if training else None

    def told(self, tape: Any) -> tuple[list[Tensor], list[Tensor]]:
        """Copies of what a tape tells: what has gradients, and attention and locations."""
        drawn = [] if tape.locations is None else [tape.log_prob, tape.entropy]
        rest = [array for array in (tape.attention, tape.locations) if array is not None]
        return [torch.tensor(array) for array in drawn], [torch.tensor(array) for array in rest]

    def differentiate(self, tape: Any, given: Sequence[Tensor | None]) -> list[Tensor]:
        """Gradients of the tensors of `run`, from those of its outputs and of what `told` gives first."""
        arrays = [None if g is None else _array(g) for g in given]
        states = len(given) - 2 - (0 if tape.locations is None else 2)
        dstate: Any = tuple(arrays[2 : 2 + states]) if states == 2 else arrays[2]
        dx, dmemory, initial, parameters = self.compiled.backward(
            tape, arrays[0], arrays[1], dstate, *(arrays[2 + states :] or (None, None)), None
        )
        initial = (initial if isinstance(initial, tuple) else (initial,)) if self.states else ()
        return list(map(torch.from_numpy, (dx, dmemory, *initial, *parameters.values())))


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The memory of a tensor, which the decoder checks."""
    tensor = tensor.detach()
    if tensor.dim() > 0 and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        tensor = tensor.contiguous()
    found: np.ndarray[Any, Any] = tensor.numpy()
    return found


class _Attend(torch.autograd.Function):
    """One call as a node: of x, memory, an initial state and the parameters.

    It gives y, context, the final states and, of hard attention, log_prob and entropy; then, without gradients,
    attention and, of hard attention, locations.
    """

    @staticmethod
    def forward(ctx: Any, call: _Call | DeviceCall, *tensors: Tensor) -> Any:
        outputs, tape = call.run(tensors, True)
        drawn, rest = call.told(tape)
        outputs += drawn
        ctx.wanted = len(outputs)
        outputs += rest
        ctx.mark_non_differentiable(*outputs[ctx.wanted :])
        ctx.set_materialize_grads(False)
        ctx.call, ctx.tape = call, tape
        # The tape refers to their memory: torch refuses a backward pass where one was written since.
        ctx.save_for_backward(*tensors, *outputs[:2])
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        _ = ctx.saved_tensors
        found = ctx.call.differentiate(ctx.tape, gradients[: ctx.wanted])
        return None, *(one if wanted else None for one, wanted in zip(found, ctx.needs_input_grad[1:], strict=True))


class AttentionDecoder(nn.Module):
    """`fusedrnn.AttentionDecoder` under autograd, on tensors of the CPU or of a CUDA device, which needs no CuPy.

    Hard attention draws its locations in training mode, and takes the most probable ones in evaluation mode. There are
    no second derivatives: asking for one is a RuntimeError.

    Parameters
    ----------
    input_size, hidden_size, memory_size, attention_size, cell, attention, batch_first, **cell_options
        As `fusedrnn.AttentionDecoder` takes them; the parameters have the same names and shapes.
    dtype : torch.dtype, optional
        float32 or float64, on a CUDA device also bfloat16 or float16; torch's default dtype if None.
    device : optional
        Of the parameters, as torch's modules take it; ``module.to`` moves them.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind or out of range.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        memory_size: int,
        attention_size: int,
        *,
        cell: str = "lstm",
        attention: str = "soft",
        batch_first: bool = False,
        dtype: torch.dtype | None = None,
        device: Any = None,
        **cell_options: Any,
    ) -> None:
        super().__init__()
        dtype = torch.get_default_dtype() if dtype is None else dtype
        there = device is not None and torch.device(device).type != "cpu"
        # Of torch's generator, so that its seed decides the draws too.
        seed = int(torch.randint(2**62, ()))
        own = fusedrnn.AttentionDecoder(
            input_size,
            hidden_size,
            memory_size,
            attention_size,
            cell=cell,
            attention=attention,
            batch_first=batch_first,
            dtype="float32" if there and dtype.itemsize == 2 else str(dtype).removeprefix("torch."),
            seed=seed,
            **cell_options,
        )
        self._names = tuple(own.parameters)
        for name, array in own.parameters.items():
            self.register_parameter(name, Parameter(torch.empty(array.shape, dtype=dtype, device=device)))
        own.parameters = {}  # calls are given the module's
        self._own = own
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter from U(-1/sqrt(H), 1/sqrt(H))."""
        bound = self._own.hidden_size**-0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def extra_repr(self) -> str:
        return repr(self._own).removeprefix("AttentionDecoder(").removesuffix(")")

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        memory_lengths: Any = None,
        state: State | None = None,
        lengths: Any = None,
    ) -> tuple[Tensor, Tensor, State]:
        """Run a sequence: (y, context, state).

        Parameters
        ----------
        x, memory : Tensor
            (T, B, I) and (S, B, M), or with `batch_first` (B, T, I) and (B, S, M), of the parameters' dtype.
        memory_lengths, lengths : Tensor or sequence of int, optional
            (B,), each in [0, S] and [0, T]. Those on a CUDA device are not looked at, and clamped.
        state : Tensor or (Tensor, Tensor), optional
            h, or (h, c) for an LSTM, each (1, B, H). Zeros if None.

        Returns
        -------
        y, context, state
            As from `fusedrnn.AttentionDecoder`.

        Raises
        ------
        TypeError, ValueError
            Where an argument is of another kind, dtype, device, shape or value.
        """
        call, tensors = self._bound(x, memory, memory_lengths, state, lengths)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            y, context, *rest = _Attend.apply(call, *tensors)  # type: ignore[no-untyped-call]
        else:
            (y, context, *rest), _ = call.run(tensors, False)
        return y, context, self._joined(rest)

    def attend(
        self,
        x: Tensor,
        memory: Tensor,
        memory_lengths: Any = None,
        state: State | None = None,
        lengths: Any = None,
    ) -> Attended:
        """Run a sequence, and return besides what was attended to.

        Parameters
        ----------
        x, memory, memory_lengths, state, lengths
            As for `forward`.

        Returns
        -------
        Attended
            y, context, state, and attention (T, B, S), which has no gradient; of hard attention, else None, locations
            (T, B) of int64, and log_prob and entropy (T, B), which have one: REINFORCE multiplies log_prob with a
            reward. With `batch_first` B comes before T. Of 16-bit types attention, log_prob and entropy are float32.

        Raises
        ------
        TypeError, ValueError
            As `forward`.
        """
        call, tensors = self._bound(x, memory, memory_lengths, state, lengths)
        y, context, *rest = _Attend.apply(call, *tensors)  # type: ignore[no-untyped-call]
        hard, choice = self._own.attention == "hard", rest[2 if self._own.cell == "lstm" else 1 :]
        log_prob, entropy, attention, locations = choice if hard else (None, None, choice[0], None)
        return Attended(y, context, self._joined(rest), attention, locations, log_prob, entropy)

    def _joined(self, outputs: Sequence[Tensor]) -> State:
        """The state of what follows the context."""
        return (outputs[0], outputs[1]) if self._own.cell == "lstm" else outputs[0]

    def _bound(
        self, x: Tensor, memory: Tensor, memory_lengths: Any, state: State | None, lengths: Any
    ) -> tuple[_Call | DeviceCall, tuple[Tensor, ...]]:
        """The call, and its tensors, checked for what the compiled part cannot see."""
        own, given = self._own, () if state is None else state if isinstance(state, tuple) else (state,)
        states = 2 if own.cell == "lstm" else 1
        if given and len(given) != states:
            raise ValueError(f"state must have {states} tensors for cell={own.cell!r}, not {len(given)}")
        tensors = (x, memory, *given, *(getattr(self, name) for name in self._names))
        names = ("x", "memory", *["state"] * len(given), *self._names)
        for tensor, name in zip(tensors, names, strict=True):
            _check(tensor, name, tensors[-1])
        draws = own.attention == "hard" and self.training
        if _on_a_device(tensors[-1]):
            return self._device_call(memory_lengths, lengths, len(given), draws), tensors
        counts = _counts(memory_lengths), _counts(lengths)
        return _Call(self._compiled(tensors[-1].dtype), self._names, *counts, len(given), draws), tensors

    def _device_call(self, memory_lengths: Any, lengths: Any, states: int, draws: bool) -> DeviceCall:
        own = self._own
        number = own._engine.calls
        own._engine.calls += draws or torch.is_grad_enabled()
        sizes, hard = (own.memory_size, own.attention_size), own.attention == "hard"
        shapes = tuple(own._engine.parameter_shapes)
        draw = number if draws else None
        return DeviceCall(own._options, sizes, hard, memory_lengths, lengths, states, draw, shapes)

    def _compiled(self, dtype: torch.dtype) -> Any:
        """The compiled decoder of the parameters' dtype, which ``.double()`` and the like may have changed."""
        options = self._own._options.moved(None, str(dtype).removeprefix("torch."))
        if options is not self._own._options:
            self._own._options, calls = options, self._own._engine.calls
            self._own._engine = self._own._new_engine(options)
            self._own._engine.calls = calls
        engine: Any = self._own._engine
        return engine.compiled


def _counts(lengths: Any) -> Any:
    return lengths.cpu().numpy() if isinstance(lengths, Tensor) else lengths


def _on_a_device(tensor: Tensor) -> bool:
    """Whether a tensor lies on a CUDA device that has an engine; RuntimeError where the engine is missing."""
    if not devices.kind.holds(tensor):
        return False
    reason = devices.missing()
    if reason is not None:
        raise RuntimeError(f"fusedrnn.torch.AttentionDecoder cannot run on {tensor.device}: {reason}")
    return True


def _check(tensor: Any, name: str, like: Tensor) -> None:
    """TypeError unless it is a dense tensor of a parameter's dtype on its device, where there is an engine for both."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(tensor).__name__}")
    there = devices.kind.holds(like)
    if tensor.device != like.device or tensor.layout is not torch.strided or not (there or tensor.is_cpu):
        kind = f"{tensor.device}, {tensor.layout}"
        raise TypeError(
            f"{name} must be a dense tensor on the parameters' device, of the CPU or CUDA, not one of {kind}"
        )
    dtypes = tuple(devices.DTYPES) if there else (torch.float32, torch.float64)
    if tensor.dtype is not like.dtype or like.dtype not in dtypes:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name} must be of {wanted} as the parameters are, {like.dtype}, not of {tensor.dtype}")
    check_memory([(name, tensor)])

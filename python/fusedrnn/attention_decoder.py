"""Attention decoders: a cell whose input is x and what it reads from a memory with its state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, SupportsFloat

import numpy as np

from fusedrnn import _core
from fusedrnn.arguments import require_choice, require_flag, require_integer
from fusedrnn.arrays.device import Device, arrays, owner_of
from fusedrnn.arrays.host import HOST, Host
from fusedrnn.arrays.memory import Memory
from fusedrnn.engines.cuda.decoder import DecoderEngine
from fusedrnn.gradients import Array, Gradients, State
from fusedrnn.options import Options
from fusedrnn.recurrent import Recurrent, lstm_name

_CELL_OPTIONS: dict[str, dict[str, Any]] = {
    "lstm": {"peephole": False, "coupled": False},
    "gru": {"reset_after": True},
    "rnn": {"nonlinearity": "tanh"},
}
_ANY_CELL: dict[str, Any] = {"bias": True, "clip": None}


@dataclass(slots=True)
class DecoderGradients(Gradients):
    """Gradients of one backward call of a decoder.

    Attributes
    ----------
    x, state, parameters
        As those of a layer.
    memory : ndarray
        Gradient of the memory, in its shape; 0 past a row's length.
    """

    memory: Array = field(kw_only=True)


class _Engine(Protocol):
    """What a decoder asks of an engine: `engines.protocol.ParameterEngine`, and its calls."""

    calls: int

    @property
    def memory(self) -> Memory: ...

    @property
    def tape_type(self) -> type[Any]: ...

    @property
    def parameter_shapes(self) -> list[tuple[str, tuple[int, ...]]]: ...

    def check_parameters(self, parameters: dict[str, Array], /) -> None: ...

    def run(
        self,
        parameters: Any,
        x: Any,
        memory: Any,
        memory_lengths: Any,
        state: Any,
        lengths: Any,
        training: bool,
        draws: bool,
        /,
    ) -> tuple[Any, ...]: ...

    def backward(
        self, tape: Any, dy: Any, dcontext: Any, dstate: Any, dlog_prob: Any, dentropy: Any, into: Any, /
    ) -> tuple[Any, Any, Any, dict[str, Array]]: ...

    def stream(self, parameters: Any, memory: Any, memory_lengths: Any, /) -> Any: ...


def _require_host(**given: Any) -> None:
    """TypeError for an array on a CUDA device."""
    for name, array in given.items():
        if owner_of(array) is not None:
            raise TypeError(f"{name} must be a numpy.ndarray, as the decoder is the CPU's, not a CUDA device's array")


class _HostStream:
    """The compiled stepper, which is given arrays of the host alone."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self.select = compiled.select

    def step(self, x_t: Any) -> tuple[Array, Array]:
        _require_host(x_t=x_t)
        found: tuple[Array, Array] = self._compiled.step(x_t)
        return found

    @property
    def attention(self) -> Array:
        found: Array = self._compiled.attention
        return found

    @property
    def state(self) -> State:
        found: State = self._compiled.state
        return found

    @state.setter
    def state(self, value: State) -> None:
        self._compiled.state = value


_HOST_DTYPES = ("float32", "float64")  # what the CPU's decoder computes in, which a layer does in bfloat16 too


class _HostEngine:
    """The compiled decoder of the CPU."""

    memory: Host = HOST
    tape_type = _core.DecoderTape

    def __init__(self, options: Options, memory_size: int, attention_size: int, hard: bool) -> None:
        self.compiled = _core.Decoder(
            cell=options.cell,
            input_size=options.input_size,
            hidden_size=options.hidden_size,
            memory_size=memory_size,
            attention_size=attention_size,
            hard=hard,
            bias=options.bias,
            seed=options.seed,
            dtype=options.dtype if options.device == "cpu" else "float32",
            batch_first=options.batch_first,
            clip=options.clip,
        )
        self.parameter_shapes: list[tuple[str, tuple[int, ...]]] = self.compiled.parameter_shapes
        self.check_parameters = self.compiled.check_parameters

    @property
    def calls(self) -> int:
        return self.compiled.calls

    @calls.setter
    def calls(self, count: int) -> None:
        self.compiled.calls = count

    def run(self, parameters: Any, x: Any, memory: Any, *rest: Any) -> tuple[Any, ...]:
        _require_host(x=x, memory=memory)
        found: tuple[Any, ...] = self.compiled.run(parameters, x, memory, *rest)
        return found

    def backward(
        self, tape: Any, dy: Any, dcontext: Any, dstate: Any, dlog_prob: Any, dentropy: Any, into: Any
    ) -> tuple[Any, Any, Any, dict[str, Array]]:
        _require_host(dy=dy, dcontext=dcontext, dlog_prob=dlog_prob, dentropy=dentropy)
        found: tuple[Any, Any, Any, dict[str, Array]] = self.compiled.backward(
            tape, dy, dcontext, dstate, dlog_prob, dentropy, into
        )
        return found

    def stream(self, parameters: Any, memory: Any, memory_lengths: Any) -> _HostStream:
        _require_host(memory=memory)
        return _HostStream(self.compiled.stream(parameters, memory, memory_lengths))


class AttentionStepper:
    """Runs a decoder one step at a time and keeps its state; made by `AttentionDecoder.stream`.

    For one thread at a time: a call while another thread's runs is a RuntimeError.
    """

    def __init__(self, core: Any) -> None:
        self._core = core

    def step(self, x_t: Array) -> tuple[Array, Array]:
        """One step of every row: (N, I) -> (h, context), (N, H) and (N, M), with the bits of a call on all steps.

        Raises
        ------
        TypeError, ValueError
            Where `x_t` is of another kind, dtype or shape. The state is as it was then.
        """
        found: tuple[Array, Array] = self._core.step(x_t)
        return found

    @property
    def attention(self) -> Array:
        """(N, S): the distribution over the memory of the last step, a copy; zeros before the first."""
        found: Array = self._core.attention
        return found

    @property
    def state(self) -> State:
        """h, or (h, c) for an LSTM, each (1, N, H): a copy. Setting it copies. At first zeros."""
        found: State = self._core.state
        return found

    @state.setter
    def state(self, value: State) -> None:
        self._core.state = value

    def select(self, rows: Any) -> None:
        """Go on with these rows, in this order: some may be left out and some repeated, as a beam search needs it.

        The memory is indexed, not copied: a row keeps reading what it read.

        Parameters
        ----------
        rows : array of integers
            (N',), each in [0, N); of the host, or of a CUDA device, for which this waits.

        Raises
        ------
        TypeError, ValueError
            Where `rows` is none such.
        """
        owner = owner_of(rows)
        rows = rows if owner is None else owner.to_host(rows)
        if isinstance(rows, np.ma.MaskedArray):
            raise TypeError("rows must be an array without a mask")
        if isinstance(rows, (list, tuple)):
            rows = np.array(rows) if rows else np.zeros(0, np.int64)
        if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "iu":
            kind = f"of {rows.dtype}" if isinstance(rows, np.ndarray) else type(rows).__name__
            raise TypeError(f"rows must be an array of integers, not {kind}")
        if rows.ndim != 1:
            raise ValueError(f"rows must have shape (N,), not {rows.shape}")
        self._core.select([int(row) for row in rows])


class AttentionDecoder(Recurrent):
    """A recurrent decoder with additive attention (Bahdanau et al. 2015), or with attention of one location.

    At step t, with the memory m_1 .. m_S of a row::

        e_tj = weight_score . tanh(weight_query h_{t-1} + weight_memory m_j + bias_attention)
        a_t = softmax(e_t),   context_t = sum of a_tj m_j
        the cell, on [x_t; context_t] and the state;   y_t = h_t

    With ``attention="hard"`` (Xu et al. 2015) context_t is one row of the memory: in training one is drawn from a_t,
    by a hash of the seed, the call, t and the row; in inference it is the most probable one. A row without memory has
    context 0.

    The whole teacher-forced loop is one native call, forward and backward. The keys, ``weight_memory m_j +
    bias_attention``, are made once, and no array of T*B*S*A elements ever exists.

    Parameters
    ----------
    input_size, hidden_size : int
        I and H.
    memory_size, attention_size : int
        M, features of a row of the memory, and A, the width of the score.
    cell : {'lstm', 'gru', 'rnn'}
    attention : {'soft', 'hard'}
    batch_first : bool
        Whether sequences are (B, T, ...) and the memory (B, S, M).
    dtype : {'float32', 'float64', 'bfloat16', 'float16'}
        The 16-bit types on a CUDA device alone; there attention, log_prob, entropy, their gradients and c are float32.
    device : str
        'cpu', 'cuda' or 'cuda:N'. On a CUDA device arrays are CuPy's; lengths may lie there, where they are clamped, or
        on the host. No call can be captured in a graph.
    seed : int or numpy.random.Generator, optional
        Of the initial parameters and of the drawn locations.
    **cell_options
        ``bias`` and ``clip``; for an LSTM ``peephole`` and ``coupled``, for a GRU ``reset_after``, for an RNN
        ``nonlinearity``: as the layers'.

    Attributes
    ----------
    parameters : dict of str to ndarray
        Those of a layer whose input is [x; context], as weight_ih_l0 (G*H, I+M); weight_query (A, H), weight_memory
        (A, M), bias_attention (A,) and weight_score (A,).

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind or out of range.
    """

    _engine: _Engine

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
        dtype: Any = "float32",
        device: str = "cpu",
        seed: int | np.random.Generator | None = None,
        **cell_options: Any,
    ) -> None:
        self.cell = require_choice(cell, "cell", ("lstm", "gru", "rnn"))
        self.attention = require_choice(attention, "attention", ("soft", "hard"))
        self.memory_size = require_integer(memory_size, "memory_size", least=1, most=2**31)
        self.attention_size = require_integer(attention_size, "attention_size", least=1, most=2**31)
        known = {**_CELL_OPTIONS[cell], **_ANY_CELL}
        unknown = [name for name in cell_options if name not in known]
        if unknown:
            raise TypeError(f"{unknown[0]} must not be given for cell={cell!r}, whose options are {', '.join(known)}")
        options = {**known, **cell_options}
        clip: SupportsFloat | None = options["clip"]
        checked = Options.checked(
            self._cell_of(options),
            input_size,
            hidden_size,
            bias=options["bias"],
            clip=clip,
            dtype=dtype,
            device=device,
            seed=seed,
            precision="ieee",
            engine="auto",
            batch_first=batch_first,
        )
        super().__init__(checked)

    def _cell_of(self, options: dict[str, Any]) -> str:
        """Name of the compiled cell; the options become attributes, as a layer's are."""
        for name in _CELL_OPTIONS[self.cell]:
            value = options[name]
            is_choice = name == "nonlinearity"
            value = require_choice(value, name, ("tanh", "relu")) if is_choice else require_flag(value, name)
            setattr(self, name, value)
        if self.cell == "lstm":
            return lstm_name(options["peephole"], options["coupled"])
        if self.cell == "gru":
            return "gru" if options["reset_after"] else "gru_reset_before"
        return f"rnn_{options['nonlinearity']}"

    def _new_engine(self, options: Options) -> _Engine:
        if options.device == "cpu" and options.dtype not in _HOST_DTYPES:
            raise ValueError(
                f"dtype must be {' or '.join(map(repr, _HOST_DTYPES))} for an AttentionDecoder on the CPU, not "
                f"{options.dtype!r}"
            )
        host = _HostEngine(options, self.memory_size, self.attention_size, self.attention == "hard")
        if options.device == "cpu":
            return host
        device = Device(arrays(), int(options.device.removeprefix("cuda:")))
        sizes = self.memory_size, self.attention_size
        return DecoderEngine(options, device, sizes, self.attention == "hard", host.parameter_shapes)

    @property
    def batch_first(self) -> bool:
        """Whether sequences are (B, T, ...) and the memory (B, S, M)."""
        return self._options.batch_first

    def __call__(
        self,
        x: Array,
        memory: Array,
        memory_lengths: Any = None,
        state: State | None = None,
        lengths: Any = None,
    ) -> tuple[Array, Array, State]:
        """Run a sequence for its result alone; of hard attention the most probable locations.

        Parameters
        ----------
        x : ndarray
            (T, B, I), or (B, T, I) with `batch_first`; of the decoder's dtype, unit stride in the last axis.
        memory : ndarray
            (S, B, M), or (B, S, M) with `batch_first`; S may be 0.
        memory_lengths : ndarray of integers, optional
            (B,), each in [0, S], in any order. What lies past a length influences nothing, nan included.
        state : ndarray or (ndarray, ndarray), optional
            Initial state: h, or (h, c) for an LSTM, each (1, B, H). Zeros if None.
        lengths : ndarray of integers, optional
            (B,), each in [0, T]. Past its length a row's y and context are 0, and its state stays.

        Returns
        -------
        y : ndarray
            (T, B, H), or (B, T, H): h at every step.
        context : ndarray
            (T, B, M), or (B, T, M): what was read at every step.
        state : ndarray or (ndarray, ndarray)
            Final state, shaped as the initial one.

        Raises
        ------
        TypeError, ValueError
            Where an argument is of another kind, dtype, device, shape or value.
        """
        found: tuple[Array, Array, State] = self._engine.run(
            self.parameters, x, memory, memory_lengths, state, lengths, False, False
        )
        return found

    def forward(
        self,
        x: Array,
        memory: Array,
        memory_lengths: Any = None,
        state: State | None = None,
        lengths: Any = None,
    ) -> tuple[Array, Array, State, Any]:
        """Run a sequence in training: as a call, but that hard attention draws its locations; with a tape.

        Parameters
        ----------
        x, memory, memory_lengths, state, lengths
            As in a call.

        Returns
        -------
        y, context, state
            As from a call.
        tape : DecoderTape
            For `backward`. It refers to x, memory, y, context and the parameters: do not write them before. Arrays of
            its own, which cannot be written: ``attention`` (T, B, S), 0 past a memory's and past a row's length; and of
            hard attention, else None, ``locations`` (T, B) of int64, -1 where there is none, ``log_prob`` (T, B), the
            logarithm of the drawn location's probability, and ``entropy`` (T, B), that of the distribution. With
            `batch_first` B comes before T. ``tape.nbytes`` tells what it holds: these, the keys, and what a layer's
            tape does.

        Raises
        ------
        TypeError, ValueError
            As in a call.
        """
        found: tuple[Array, Array, State, Any] = self._engine.run(
            self.parameters, x, memory, memory_lengths, state, lengths, True, True
        )
        return found

    def backward(
        self,
        tape: Any,
        dy: Array | None = None,
        dcontext: Array | None = None,
        dstate: Any = None,
        *,
        dlog_prob: Array | None = None,
        dentropy: Array | None = None,
        grads: DecoderGradients | None = None,
    ) -> DecoderGradients:
        """Run backpropagation through time over the sequence of a tape.

        Of hard attention it goes through the cell and the rows of the memory that were drawn, and adds ``dlog_prob *
        dlog p(location)`` and ``dentropy * dentropy``; with REINFORCE (Williams 1992) `dlog_prob` is the negative
        reward, less a baseline, of a loss that is minimised.

        Parameters
        ----------
        tape : DecoderTape
            From this decoder's `forward`. It is not written: it may be used again.
        dy, dcontext : ndarray, optional
            Gradients of y and context, in their shapes. Zeros if None.
        dstate : ndarray or (ndarray or None, ndarray or None), optional
            Gradient of the final state, shaped as it. Zeros where None.
        dlog_prob, dentropy : ndarray, optional
            Hard attention alone: gradients of ``tape.log_prob`` and ``tape.entropy``. Zeros if None.
        grads : DecoderGradients, optional
            Of an earlier call: this call's parameter gradients are added into its arrays, which the result shares.

        Returns
        -------
        DecoderGradients
            `x`, `memory` and `state` of this call, and `parameters` by name.

        Raises
        ------
        TypeError, ValueError
            Where an argument is of another kind, dtype or shape, or the tape is another object's.
        """
        if not isinstance(tape, self._engine.tape_type):
            raise TypeError(f"tape must be the one that forward returned, not {type(tape).__name__}")
        if grads is not None and not isinstance(grads, Gradients):
            raise TypeError(f"grads must be the Gradients of an earlier call or None, not {type(grads).__name__}")
        dx, dmemory, state, parameters = self._engine.backward(
            tape, dy, dcontext, dstate, dlog_prob, dentropy, None if grads is None else grads.parameters
        )
        return DecoderGradients(dx, state, parameters, memory=dmemory)

    def stream(self, memory: Array, memory_lengths: Any = None) -> AttentionStepper:
        """Make a stepper over a memory, which runs one step at a time: for decoding what is not known beforehand.

        The weights are packed, the memory is copied and the keys are made, once, here: a later edit of either does not
        show in the stepper. Its state is zero at first; set ``stepper.state`` for another one. Hard attention takes the
        most probable locations.

        Parameters
        ----------
        memory, memory_lengths
            As in a call.

        Returns
        -------
        AttentionStepper
            ``h, context = stepper.step(x_t)``; ``stepper.attention``, ``stepper.state``, ``stepper.select(rows)``.

        Raises
        ------
        TypeError, ValueError
            Where an argument is of another kind, dtype, shape or value.
        """
        return AttentionStepper(self._engine.stream(self.parameters, memory, memory_lengths))

    def __repr__(self) -> str:
        options = {**_CELL_OPTIONS[self.cell], **_ANY_CELL, "batch_first": False, "attention": "soft"}
        shown = {name: getattr(self, name) for name, value in options.items() if getattr(self, name) != value}
        listed = "".join(f", {name}={value!r}" for name, value in shown.items())
        dtype = "" if self._options.dtype == "float32" else f", dtype={self._options.dtype!r}"
        dtype += "" if self.device == "cpu" else f", device={self.device!r}"
        sizes = f"{self.input_size}, {self.hidden_size}, {self.memory_size}, {self.attention_size}"
        return f"AttentionDecoder({sizes}, cell={self.cell!r}{listed}{dtype})"

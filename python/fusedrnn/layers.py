"""Layers: whole sequences through one or many layers, one direction or both."""

from __future__ import annotations

import warnings
from typing import Any, SupportsFloat

import numpy as np

from fusedrnn import initial_state
from fusedrnn.arguments import require_choice, require_flag, require_integer
from fusedrnn.arrays.buffers import Buffers
from fusedrnn.engines.protocol import Engine, Stepper, Tape
from fusedrnn.frozen import Runner
from fusedrnn.gradients import Array, Gradients, State
from fusedrnn.options import Options
from fusedrnn.recurrent import Recurrent, differentiate, lstm_name


class _Layer(Recurrent):
    _engine: Engine
    _initial_state: State | None = None

    def __init__(self, options: Options) -> None:
        if options.dropout > 0 and options.num_layers == 1:
            warnings.warn("dropout acts between layers: with num_layers=1 it does nothing", stacklevel=3)
        super().__init__(options)

    @property
    def num_layers(self) -> int:
        """Layers, L."""
        return self._options.num_layers

    @property
    def bidirectional(self) -> bool:
        """Whether every layer runs in both directions (D = 2)."""
        return self._options.bidirectional

    @property
    def reverse(self) -> bool:
        """Whether every layer runs in the reverse direction alone."""
        return self._options.reverse

    @property
    def batch_first(self) -> bool:
        """Whether sequences are (B, T, ...) instead of (T, B, ...)."""
        return self._options.batch_first

    @property
    def dropout(self) -> float:
        """Probability with which an element between two layers is dropped in training."""
        return self._options.dropout

    @property
    def initial_state(self) -> State | None:
        """State that steppers, and calls without a state, begin with: None for zeros, else h, or (h, c) for an LSTM.

        Each is (L*D, 1, H), one row with which every row of a batch begins, or (L*D, B, H) for batches of B rows only.
        Setting it copies. The arrays that it gives are live: an edit shows at the next call. It is no parameter; its
        gradient is `grads.state` of a backward pass, row by row.
        """
        return self._initial_state

    @initial_state.setter
    def initial_state(self, value: State | None) -> None:
        if value is not None:
            value = initial_state.checked(value, self._options, self._engine.memory)
        self._initial_state = value

    def _begin(self, x: Any) -> State | None:
        """The state of a call that is given none."""
        ndim, batch_axis = getattr(x, "ndim", None), 0 if self.batch_first else 1
        if self._initial_state is None or ndim not in (2, 3):  # of other x the engine tells what is wrong
            return None
        rows = x.shape[batch_axis] if ndim == 3 else None
        return initial_state.for_rows(self._initial_state, rows, self._engine.memory)

    def to(self, device: str | None = None, dtype: Any = None) -> Any:
        before = self._engine.memory
        super().to(device, dtype)
        if self._initial_state is not None:
            after = self._engine.memory
            self._initial_state = initial_state.converted(self._initial_state, self.dtype, before, after)
        return self

    to.__doc__ = Recurrent.to.__doc__

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
        """Run a sequence for its result alone: nothing is kept for a backward pass, and no dropout is applied.

        Parameters
        ----------
        x : ndarray
            (T, B, I), or (B, T, I) with `batch_first`, or (T, I) unbatched; of the layer's dtype, unit stride in the
            last axis.
        state : ndarray or (ndarray, ndarray), optional
            Initial state: h, or (h, c) for an LSTM, of shape (L*D, B, H), or (L*D, H) unbatched. The layer's own
            `initial_state` if None, which is zeros unless it was set.
        lengths : ndarray of integers, optional
            (B,), each in [0, T], in any order. Past its length a row's y is 0 and its state stays.
        reset : ndarray of bool, optional
            (T, B), or (B, T) with `batch_first`, or (T,). ``reset[t]`` cuts the link between t-1 and t.
        out : ndarray or Buffers, optional
            Array to write y into; it must not share memory with x, the state or a parameter. On a CUDA device also what
            `buffers` gives: then no memory is allocated, and a graph may be captured.
        mask : ndarray of bool, optional
            As `reset`. Where False the row skips the step: its state stays, y repeats the state's h, gradients pass by,
            and x there influences nothing.

        Returns
        -------
        y : ndarray
            h of the last layer at every step: as x, with D*H in its last axis.
        state : ndarray or (ndarray, ndarray)
            Final state, shaped as the initial one.

        Raises
        ------
        TypeError, ValueError
            Where an argument is of another kind, dtype, shape or value; the message names it.
        """
        if state is None:
            state = self._begin(x)
        return self._engine.infer(self.parameters, x, state, lengths, reset, mask, out)

    def buffers(
        self,
        steps: int,
        batch: int | None = None,
        *,
        training: bool = True,
        recompute: int | None = None,
        mask: bool = False,
    ) -> Buffers:
        """Make the memory that calls of one shape write, for ``out=``: to capture a graph, or to allocate nothing.

        Parameters
        ----------
        steps, batch : int
            T and B; without a batch for unbatched sequences.
        training : bool
            For `forward` and `backward` as well as for calls.
        recompute : int, optional
            As it will be given to `forward`.
        mask : bool
            For calls with a mask as well, which take more.

        Returns
        -------
        Buffers

        Raises
        ------
        TypeError, ValueError
            Where an argument is of another kind or value, or the layer is on the CPU.
        """
        return self._engine.buffers(steps, batch, recompute, training, mask)

    def freeze(self, weights: str | None = None) -> Runner:
        """Make a runner: the layer's call with the parameters as they are now, for repeated inference.

        ``runner(x, state=None, lengths=None, reset=None, out=None, *, mask=None)`` takes and gives what a call of the
        layer does, to the last bit, for any T and B. The parameters are packed once, here, not in
        each call; at T = 2 packing is up to three quarters of a call. A later edit of the parameters does not show in
        the runner. It holds as much memory as they do, with H rounded up to a multiple of 16, and does not need the
        layer any more.

        Parameters
        ----------
        weights : {None, 'int8'}
            'int8': round the weights to 8 bits, each row of a weight matrix with a scale of its own, as docs/int8.md
            tells. The runner takes and gives the same arrays; its results are those of ``stream(weights="int8")`` to
            the last bit, and near the layer's own. It holds about a quarter of the memory. For float32 layers on the
            CPU.

        Returns
        -------
        Runner

        Raises
        ------
        TypeError, ValueError
            Where `weights` is none of these, or the layer is of another dtype, on a device, or has weights that are not
            finite; where an entry of `parameters` has been replaced by something else than such an array.
        """
        return Runner(self, self._rounding(weights))

    def _rounding(self, weights: str | None) -> str | None:
        """What the weights are rounded to, checked."""
        if weights is None:
            return None
        weights = require_choice(weights, "weights", ("int8",))
        if self.device != "cpu":
            raise ValueError(f"weights must be None on {self.device}; {weights!r} is the CPU's alone")
        if str(self.dtype) != "float32":
            raise TypeError(f"weights must be None for a layer of {self.dtype}; {weights!r} is for float32")
        return weights

    def _with_parameters(self, parameters: dict[str, Array]) -> Any:
        """A layer like this one with other parameters."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, parameters=parameters)
        return other

    def stream(self, batch: int = 1, weights: str | None = None) -> Stepper:
        """Make a stepper, which runs the layer one step at a time and keeps the state: for serving.

        ``stepper.step(x_t, out=None)`` takes (B, I) and gives h of the last layer, (B, H), with the bits of a call on
        the whole sequence; where `batch` is 1, (I,) will do and gives (H,). ``stepper.state`` reads and sets the state,
        at first the layer's `initial_state`, zeros unless that was set; ``stepper.reset(rows=None)`` sets it so again.

        The weights are packed once, here: a later edit of the parameters or the initial state does not show in the
        stepper.

        Parameters
        ----------
        batch : int
            Rows that step together, B, at least 1.
        weights : {None, 'int8'}
            'int8': round the weights to 8 bits, each row of a weight matrix with a scale of its own, and x and h to 16
            bits in the products; c, the gates and y are float32, as docs/int8.md tells. A step of a large layer is
            several times as fast. A row of x, or a state, with nan or infinity gives nan in that row. For float32
            layers on the CPU.

        Returns
        -------
        Stepper

        Raises
        ------
        TypeError, ValueError
            Where `batch` is no integer or less than 1, or the layer has a reverse direction; where `weights` is none of
            these, or the layer is of another dtype, on a device, or has weights that are not finite.
        """
        batch, rounding = require_integer(batch, "batch", least=1), self._rounding(weights)
        for name in ("bidirectional", "reverse"):
            if getattr(self, name):
                raise ValueError(f"{name} must be False for a stream, whose reverse direction would begin at its end")
        state = self._initial_state
        if state is not None:
            state = initial_state.for_rows(state, batch, self._engine.memory)
        return self._engine.stream(self.parameters, batch, state, rounding is not None)

    def forward(
        self,
        x: Array,
        state: State | None = None,
        lengths: Any = None,
        reset: Array | None = None,
        recompute: int | None = None,
        out: Array | Buffers | None = None,
        *,
        mask: Array | None = None,
    ) -> tuple[Array, State, Tape]:
        """Run a sequence in training: as a call, with dropout between the layers, and return (y, state, tape).

        The tape refers to x, y and the parameters: do not write them before the backward pass. An interrupted call
        raises KeyboardInterrupt and leaves `out` with no result.

        Parameters
        ----------
        x, state, lengths, reset, out, mask
            As in a call.
        recompute : int, optional
            Keep states every so many steps only, and make the gates again in the backward pass, one such window at a
            time. The gradients are the same, on the CPU to the last bit; the tape shrinks to about 1/recompute, and a
            training step takes about a third longer.

        Returns
        -------
        y, state
            As from a call.
        tape : Tape
            For `backward`; ``tape.nbytes`` tells what it holds.

        Raises
        ------
        TypeError, ValueError
            Where an argument is of another kind, dtype, shape or value; the message names it.
        """
        window = 0 if recompute is None else require_integer(recompute, "recompute", least=1)
        if state is None:
            state = self._begin(x)
        return self._engine.forward(self.parameters, x, state, lengths, reset, mask, window, out)

    def backward(
        self,
        tape: Tape,
        dy: Array | None = None,
        dstate: Any = None,
        grads: Gradients | None = None,
        *,
        norms: bool = False,
    ) -> Gradients:
        """Run backpropagation through time (Werbos 1990) over the sequence of a tape.

        Parameters
        ----------
        tape : Tape
            From this layer's `forward`. It is not written: it may be used again.
        dy : ndarray, optional
            Gradient of y, in its shape. Zeros if None.
        dstate : ndarray or (ndarray or None, ndarray or None), optional
            Gradient of the final state, shaped as it. Zeros where None.
        grads : Gradients, optional
            Of an earlier call: this call's parameter gradients are added into its arrays, which the result shares.
            Of 16 bits, each call's sums are rounded there. An interrupted call leaves them partly added to, of
            bfloat16 on the CPU as they were.
        norms : bool
            Measure how the gradient fares on its way back (Bengio et al. 1994; Pascanu et al. 2013): ``grads.norms.h``,
            and for LSTMs ``grads.norms.c``, are the 2-norms over the units of dE/dh_t and dE/dc_t, with all later steps
            and the step's own `dy` in them; dE/dc_t counts what c_t does through h_t too. Their shape is (L*D, T, B),
            or (L*D, B, T) with `batch_first`, or (L*D, T) unbatched, and their dtype the layer's; past a row's length
            they are 0. Where `mask` skips a step, h_t and c_t are the state that stays.

        Returns
        -------
        Gradients
            `x` and `state` of this call, `parameters` by name, and `norms`, which is None unless asked for.

        Raises
        ------
        TypeError, ValueError
            Where an argument is of another kind, dtype or shape, or the tape is another object's, or norms are asked
            for while a graph is captured.
        """
        return differentiate(self._engine, tape, dy, dstate, grads, norms)

    def _set_options(self) -> dict[str, object]:
        defaults = {"num_layers": 1, "batch_first": False, "dropout": 0.0, "bidirectional": False, "reverse": False}
        return {name: getattr(self, name) for name, value in defaults.items() if getattr(self, name) != value}


class RNN(_Layer):
    """Elman network: ``h_t = tanh(x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh)``, or relu (Elman 1990).

    Parameters
    ----------
    input_size, hidden_size : int
        I and H.
    num_layers : int
        L; layer l > 0 reads the D*H outputs of layer l-1.
    nonlinearity : {'tanh', 'relu'}
    bias, batch_first, bidirectional : bool
    reverse : bool
        Run from the end of the sequence to its beginning, in that direction alone; parameters, shapes and states are
        those of a layer of one direction.
    dropout : float
        Probability, in training, of dropping an element between two layers.
    clip : float, optional
        Bound the input of every gate's activation to [-clip, clip], as the ONNX operators do; no gradient flows where
        it acts. None: no bound.
    dtype : {'float32', 'float64', 'bfloat16', 'float16'}
        bfloat16 is that of ml_dtypes, float16 on a CUDA device only. With either, gates, sums and c of an LSTM's state
        are float32.
    device : str
        'cpu', 'cuda' (CuPy's current device) or 'cuda:N'. On a device all arrays are CuPy's and work goes on CuPy's
        current stream.
    seed : int or numpy.random.Generator, optional
        Of the initial parameters and of dropout. A generator is asked for one; None takes a fresh one, so that no two
        layers and no two runs are alike.
    precision : {'ieee', 'tf32'}
        'tf32' lets products of float32 on a CUDA device round their operands to 10 bits of mantissa.
    engine : {'auto', 'stepwise', 'persistent'}
        How a CUDA device runs the recurrence. 'persistent': with the recurrent weights in registers, for LSTM, coupled
        LSTM and GRU with ``reset_after``, H up to 1024, 16-bit dtypes or ``precision='tf32'``, no clip; a ValueError
        elsewhere, or in a call with too many rows. 'auto' is 'stepwise' until a GPU has shown the other to be right
        and faster.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind or out of range.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        reverse: bool = False,
        clip: SupportsFloat | None = None,
        dtype: Any = "float32",
        device: str = "cpu",
        seed: int | np.random.Generator | None = None,
        precision: str = "ieee",
        engine: str = "auto",
    ) -> None:
        self.nonlinearity = require_choice(nonlinearity, "nonlinearity", ("tanh", "relu"))
        cell = f"rnn_{nonlinearity}"
        super().__init__(
            Options.checked(
                cell,
                input_size,
                hidden_size,
                num_layers=num_layers,
                bias=bias,
                batch_first=batch_first,
                dropout=dropout,
                bidirectional=bidirectional,
                reverse=reverse,
                clip=clip,
                dtype=dtype,
                device=device,
                seed=seed,
                precision=precision,
                engine=engine,
            )
        )

    def __repr__(self) -> str:
        return self._describe(**self._set_options(), nonlinearity=self.nonlinearity)


class LSTM(_Layer):
    """Long short-term memory (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000).

    ``i, f, o = sigmoid(.)``, ``g = tanh(.)``, each of an affine function of x_t and h_{t-1};
    ``c_t = f c_{t-1} + i g``; ``h_t = o tanh(c_t)``. Gate blocks of the weights in the order i f g o.

    Parameters
    ----------
    peephole : bool
        i and f also see ``p c_{t-1}``, o sees ``p c_t`` (Gers & Schmidhuber 2000). Parameter `peephole` (3, H) in the
        order i f o; coupled: (2, H), order f o.
    coupled : bool
        ``i = 1 - f`` (Greff et al. 2015): three gate blocks, f g o.
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, reverse, clip, dtype,
    device, seed, precision, engine
        As for `RNN`.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind or out of range.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        reverse: bool = False,
        peephole: bool = False,
        coupled: bool = False,
        clip: SupportsFloat | None = None,
        dtype: Any = "float32",
        device: str = "cpu",
        seed: int | np.random.Generator | None = None,
        precision: str = "ieee",
        engine: str = "auto",
    ) -> None:
        self.peephole = require_flag(peephole, "peephole")
        self.coupled = require_flag(coupled, "coupled")
        cell = lstm_name(self.peephole, self.coupled)
        super().__init__(
            Options.checked(
                cell,
                input_size,
                hidden_size,
                num_layers=num_layers,
                bias=bias,
                batch_first=batch_first,
                dropout=dropout,
                bidirectional=bidirectional,
                reverse=reverse,
                clip=clip,
                dtype=dtype,
                device=device,
                seed=seed,
                precision=precision,
                engine=engine,
            )
        )

    def __repr__(self) -> str:
        return self._describe(**self._set_options(), peephole=self.peephole, coupled=self.coupled)


class GRU(_Layer):
    """Gated recurrent unit (Cho et al. 2014).

    ``r, z = sigmoid(.)``, ``h_t = (1 - z) n + z h_{t-1}``. Gate blocks of the weights in the order r z n.

    Parameters
    ----------
    reset_after : bool
        True: ``n = tanh(x W_in^T + b_in + r (h_{t-1} W_hn^T + b_hn))``, as torch, cuDNN and Keras v2 compute it.
        False: ``n = tanh(x W_in^T + b_in + (r h_{t-1}) W_hn^T + b_hn)``, as in Cho 2014.
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, reverse, clip, dtype,
    device, seed, precision, engine
        As for `RNN`.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind or out of range.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        reverse: bool = False,
        reset_after: bool = True,
        clip: SupportsFloat | None = None,
        dtype: Any = "float32",
        device: str = "cpu",
        seed: int | np.random.Generator | None = None,
        precision: str = "ieee",
        engine: str = "auto",
    ) -> None:
        self.reset_after = require_flag(reset_after, "reset_after")
        cell = "gru" if self.reset_after else "gru_reset_before"
        super().__init__(
            Options.checked(
                cell,
                input_size,
                hidden_size,
                num_layers=num_layers,
                bias=bias,
                batch_first=batch_first,
                dropout=dropout,
                bidirectional=bidirectional,
                reverse=reverse,
                clip=clip,
                dtype=dtype,
                device=device,
                seed=seed,
                precision=precision,
                engine=engine,
            )
        )

    def __repr__(self) -> str:
        return self._describe(**self._set_options(), reset_after=self.reset_after)

"""The equations of every cell, sequence and readout in plain NumPy, float64, time-major.

This module is the oracle of the compiled library and is meant to be read beside the equations: rows are samples, so
a step computes ``x W_ihᵀ`` where a paper writes ``W x``. Nothing here is fast, and nothing here is shared with the
compiled code. Shapes use ``T`` time, ``B`` batch, ``I`` input, ``H`` hidden, ``L`` layers, ``D`` directions and ``G``
gate blocks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from fusedrnn.reference_attention import (
    WEIGHTS,
    Memory,
    Read,
    Sums,
    additive_attention,
    additive_attention_backward,
    draw,
    score,
    uniform,
)
from fusedrnn.reference_ctc import ctc_align, ctc_loss, ctc_loss_backward
from fusedrnn.reference_transducer import transducer_loss, transducer_loss_backward
from fusedrnn.reference_vision import (
    affine_grid,
    affine_grid_backward,
    gaussian_read,
    gaussian_read_backward,
    gaussian_write,
    gaussian_write_backward,
    grid_sample,
    grid_sample_backward,
)

__all__ = [
    "DecoderTape",
    "Tape",
    "additive_attention",
    "additive_attention_backward",
    "affine_grid",
    "affine_grid_backward",
    "attention_decoder",
    "attention_decoder_backward",
    "backward",
    "cells",
    "ctc_align",
    "ctc_loss",
    "ctc_loss_backward",
    "forward",
    "gaussian_read",
    "gaussian_read_backward",
    "gaussian_write",
    "gaussian_write_backward",
    "grid_sample",
    "grid_sample_backward",
    "linear",
    "linear_backward",
    "linear_cross_entropy",
    "linear_cross_entropy_backward",
    "softmax",
    "softmax_backward",
    "state_gradients",
    "transducer_loss",
    "transducer_loss_backward",
]

Array = npt.NDArray[np.float64]
State = tuple[Array, ...]
Saved = tuple[Any, ...]
Weights = Mapping[str, Array]


def _array(values: npt.ArrayLike) -> Array:
    """`values` in float64; every array that `forward` and `backward` compute with begins here."""
    return np.asarray(values, np.float64)


def sigmoid(z: npt.ArrayLike) -> Array:
    """Logistic function 1 / (1 + exp(-z)), arranged so that the exponential never overflows."""
    z = np.asarray(z, np.float64)
    e = np.exp(-np.abs(z))
    return np.asarray(np.where(z >= 0, 1.0, e) / (1.0 + e))


def _bounded(z: Array, clip: float | None) -> tuple[Array, npt.NDArray[np.bool_]]:
    """The input of a gate's activation, clamp(z, -clip, clip), and where the clip acts."""
    if clip is None:
        return z, np.zeros(z.shape, np.bool_)
    return np.maximum(np.minimum(z, clip), -clip), np.abs(z) >= clip


def _through(outside: npt.NDArray[np.bool_], dz: Array) -> Array:
    """The gradient of a bounded z: that of its activation's input, and none where the clip acts."""
    return np.where(outside, 0.0, dz)


class Cell(Protocol):
    """One step of one layer and direction."""

    @property
    def gates(self) -> int:
        """Blocks of H rows in the weights and biases."""

    @property
    def states(self) -> int:
        """Arrays that make up the state: 1, ``(h,)``, or 2, ``(h, c)``."""

    @property
    def per_unit(self) -> dict[str, int]:
        """Rows of the parameter (rows, H) that no product reads, by its name; empty where the cell has none."""

    def forward(self, w: Weights, x: Array, state: State) -> tuple[State, Saved]:
        """Map x (B, I) and the state before the step to the state after it and what `backward` needs."""

    def backward(self, w: Weights, saved: Saved, dstate: State) -> tuple[Array, State, dict[str, Array]]:
        """Map the gradient of the state after the step to those of x, of the state before it and of the weights."""

    def whole_gradient(self, w: Weights, saved: Saved, dstate: State) -> State:
        """Add to the gradient of c_t, in that of the state after the step, what c_t does through h_t."""


def _affine(w: Weights, x: Array, h: Array) -> Array:
    z: Array = x @ w["weight_ih"].T + w["bias_ih"] + h @ w["weight_hh"].T + w["bias_hh"]
    return z


def _affine_backward(w: Weights, x: Array, h: Array, dz: Array) -> tuple[Array, Array, dict[str, Array]]:
    db = dz.sum(0)
    dw = {"weight_ih": dz.T @ x, "weight_hh": dz.T @ h, "bias_ih": db, "bias_hh": db}
    return dz @ w["weight_ih"], dz @ w["weight_hh"], dw


@dataclass(frozen=True)
class Elman:
    """Elman RNN, ``h_t = φ(x_t W_ihᵀ + b_ih + h_{t-1} W_hhᵀ + b_hh)`` with φ tanh or relu.

    Elman, "Finding structure in time", 1990; backward: Werbos, "Backpropagation through time", 1990.
    """

    nonlinearity: str
    clip: float | None = None

    gates = 1
    states = 1

    @property
    def per_unit(self) -> dict[str, int]:
        return {}

    def forward(self, w: Weights, x: Array, state: State) -> tuple[State, Saved]:
        z, outside = _bounded(_affine(w, x, state[0]), self.clip)
        h = np.tanh(z) if self.nonlinearity == "tanh" else np.maximum(z, 0.0)
        return (h,), (x, state[0], h, outside)

    def backward(self, w: Weights, saved: Saved, dstate: State) -> tuple[Array, State, dict[str, Array]]:
        x, h_prev, h, outside = saved
        # Both derivatives are functions of the output: 1 - tanh² and the step function.
        slope = 1.0 - h**2 if self.nonlinearity == "tanh" else (h > 0).astype(np.float64)
        dx, dh_prev, dw = _affine_backward(w, x, h_prev, _through(outside, dstate[0] * slope))
        return dx, (dh_prev,), dw

    def whole_gradient(self, w: Weights, saved: Saved, dstate: State) -> State:
        return dstate


@dataclass(frozen=True)
class LSTM:
    """LSTM, gate blocks i f g o; with `coupled` f g o and ``i = 1 - f``.

    ::

        i = sigmoid(z_i + p_i∘c_{t-1})    f = sigmoid(z_f + p_f∘c_{t-1})    g = tanh(z_g)
        c_t = f∘c_{t-1} + i∘g             o = sigmoid(z_o + p_o∘c_t)        h_t = o∘tanh(c_t)

    with ``z = x_t W_ihᵀ + b_ih + h_{t-1} W_hhᵀ + b_hh``, and p = 0 without peepholes. The peephole rows stand in the
    order i f o, coupled f o.

    Hochreiter & Schmidhuber, "Long short-term memory", 1997; forget gate: Gers, Schmidhuber & Cummins, "Learning to
    forget", 2000; peepholes: Gers & Schmidhuber, "Recurrent nets that time and count", 2000; coupled gates (CIFG):
    Greff et al., "LSTM: a search space odyssey", 2015.
    """

    peephole: bool = False
    coupled: bool = False
    clip: float | None = None

    states = 2

    @property
    def gates(self) -> int:
        return 3 if self.coupled else 4

    @property
    def per_unit(self) -> dict[str, int]:
        return {"peephole": self.gates - 1} if self.peephole else {}

    def _peephole_rows(self, w: Weights, hidden: int) -> Array:
        """The peephole weights in the order i f o; rows the cell does not have are zero."""
        rows = w["peephole"] if self.peephole else np.zeros((0, hidden))
        return np.concatenate([np.zeros((3 - len(rows), hidden)), rows])

    def forward(self, w: Weights, x: Array, state: State) -> tuple[State, Saved]:
        h_prev, c_prev = state
        p_i, p_f, p_o = self._peephole_rows(w, h_prev.shape[1])
        *z_i, z_f, z_g, z_o = np.split(_affine(w, x, h_prev), self.gates, axis=1)
        z_f, out_f = _bounded(z_f + p_f * c_prev, self.clip)
        f = sigmoid(z_f)
        if self.coupled:
            i, out_i = 1.0 - f, out_f
        else:
            bounded_i, out_i = _bounded(z_i[0] + p_i * c_prev, self.clip)
            i = sigmoid(bounded_i)
        z_g, out_g = _bounded(z_g, self.clip)
        g = np.tanh(z_g)
        c = f * c_prev + i * g
        z_o, out_o = _bounded(z_o + p_o * c, self.clip)
        o = sigmoid(z_o)
        return (o * np.tanh(c), c), (x, h_prev, c_prev, i, f, g, o, c, out_i, out_f, out_g, out_o)

    def backward(self, w: Weights, saved: Saved, dstate: State) -> tuple[Array, State, dict[str, Array]]:
        x, h_prev, c_prev, i, f, g, _, c, out_i, out_f, out_g, _ = saved
        p_i, p_f, _ = self._peephole_rows(w, h_prev.shape[1])
        dh, dc = self.whole_gradient(w, saved, dstate)
        dz_o = self._output_gate_gradient(saved, dh)
        di, df, dg = dc * g, dc * c_prev, dc * i
        dz_i = np.zeros_like(di) if self.coupled else _through(out_i, di * i * (1.0 - i))
        dz_f = _through(out_f, (df - di if self.coupled else df) * f * (1.0 - f))
        dz_g = _through(out_g, dg * (1.0 - g**2))
        dc_prev = dc * f + dz_i * p_i + dz_f * p_f
        dz = np.concatenate(([] if self.coupled else [dz_i]) + [dz_f, dz_g, dz_o], axis=1)
        dx, dh_prev, dw = _affine_backward(w, x, h_prev, dz)
        if self.peephole:
            rows = np.stack([(dz_i * c_prev).sum(0), (dz_f * c_prev).sum(0), (dz_o * c).sum(0)])
            dw["peephole"] = rows[4 - self.gates :]
        return dx, (dh_prev, dc_prev), dw

    def _output_gate_gradient(self, saved: Saved, dh: Array) -> Array:
        _, _, _, _, _, _, o, c, _, _, _, out_o = saved
        return _through(out_o, dh * np.tanh(c) * o * (1.0 - o))

    def whole_gradient(self, w: Weights, saved: Saved, dstate: State) -> State:
        _, h_prev, _, _, _, _, o, c, _, _, _, _ = saved
        dh, dc = dstate
        p_o = self._peephole_rows(w, h_prev.shape[1])[2]
        # o looks at c_t, so its share must be in dc_t before anything is drawn from dc_t.
        return dh, dc + dh * o * (1.0 - np.tanh(c) ** 2) + self._output_gate_gradient(saved, dh) * p_o


@dataclass(frozen=True)
class GRU:
    """GRU, gate blocks r z n; the reset gate acts after or before the recurrent product of the candidate.

    ::

        r = sigmoid(x_t W_irᵀ + b_ir + h_{t-1} W_hrᵀ + b_hr)      z likewise
        n = tanh(x_t W_inᵀ + b_in + r∘(h_{t-1} W_hnᵀ + b_hn))        reset_after
        n = tanh(x_t W_inᵀ + b_in + (r∘h_{t-1}) W_hnᵀ + b_hn)        otherwise
        h_t = (1 - z)∘n + z∘h_{t-1}

    Cho et al., "Learning phrase representations using RNN encoder-decoder", 2014, has the reset before the product;
    the form after it is the one cuDNN, PyTorch and Keras compute.
    """

    reset_after: bool = True
    clip: float | None = None

    gates = 3
    states = 1

    @property
    def per_unit(self) -> dict[str, int]:
        return {}

    def forward(self, w: Weights, x: Array, state: State) -> tuple[State, Saved]:
        (h_prev,) = state
        hidden = h_prev.shape[1]
        a_r, a_z, a_n = np.split(x @ w["weight_ih"].T + w["bias_ih"], 3, axis=1)
        w_n, b_n = w["weight_hh"][2 * hidden :], w["bias_hh"][2 * hidden :]
        u_r, u_z = np.split(h_prev @ w["weight_hh"][: 2 * hidden].T + w["bias_hh"][: 2 * hidden], 2, axis=1)
        (z_r, out_r), (z_z, out_z) = _bounded(a_r + u_r, self.clip), _bounded(a_z + u_z, self.clip)
        r, z = sigmoid(z_r), sigmoid(z_z)
        u_n = (h_prev if self.reset_after else r * h_prev) @ w_n.T + b_n
        z_n, out_n = _bounded(a_n + (r * u_n if self.reset_after else u_n), self.clip)
        n = np.tanh(z_n)
        return ((1.0 - z) * n + z * h_prev,), (x, h_prev, r, z, n, u_n, out_r, out_z, out_n)

    def backward(self, w: Weights, saved: Saved, dstate: State) -> tuple[Array, State, dict[str, Array]]:
        x, h_prev, r, z, n, u_n, out_r, out_z, out_n = saved
        (dh,) = dstate
        hidden = h_prev.shape[1]
        w_rz, w_n = w["weight_hh"][: 2 * hidden], w["weight_hh"][2 * hidden :]
        da_n = _through(out_n, dh * (1.0 - z) * (1.0 - n**2))
        if self.reset_after:
            du_n, dr = da_n * r, da_n * u_n
            dh_prev = du_n @ w_n
            dw_n = du_n.T @ h_prev
        else:
            du_n, drh = da_n, da_n @ w_n
            dr, dh_prev = drh * h_prev, drh * r
            dw_n = du_n.T @ (r * h_prev)
        du_r, du_z = _through(out_r, dr * r * (1.0 - r)), _through(out_z, dh * (h_prev - n) * z * (1.0 - z))
        du_rz = np.concatenate([du_r, du_z], axis=1)
        da = np.concatenate([du_rz, da_n], axis=1)
        dw = {
            "weight_ih": da.T @ x,
            "weight_hh": np.concatenate([du_rz.T @ h_prev, dw_n]),
            "bias_ih": da.sum(0),
            "bias_hh": np.concatenate([du_rz.sum(0), du_n.sum(0)]),
        }
        return da @ w["weight_ih"], (dh_prev + dh * z + du_rz @ w_rz,), dw

    def whole_gradient(self, w: Weights, saved: Saved, dstate: State) -> State:
        return dstate


cells: dict[str, Cell] = {
    "rnn_tanh": Elman("tanh"),
    "rnn_relu": Elman("relu"),
    "lstm": LSTM(),
    "lstm_peephole": LSTM(peephole=True),
    "lstm_coupled": LSTM(coupled=True),
    "lstm_peephole_coupled": LSTM(peephole=True, coupled=True),
    "gru": GRU(),
    "gru_reset_before": GRU(reset_after=False),
}
"""Every cell by the name the compiled library gives it."""


@dataclass(frozen=True)
class _Step:
    """One step as the forward pass took it: the rows alive at time t, who of them ran, and which began from zero."""

    t: int
    rows: npt.NDArray[np.intp]
    running: npt.NDArray[np.intp]
    fresh: npt.NDArray[np.bool_]
    saved: Saved


@dataclass(frozen=True)
class _Run:
    """One layer in one direction: its weights, its parameters' suffix, and its steps in the order they ran."""

    weights: Weights
    suffix: str
    steps: list[_Step]


@dataclass(frozen=True)
class Tape:
    """What `backward` needs of a `forward`: the steps of every layer and direction."""

    cell: Cell
    input_shape: tuple[int, int, int]
    hidden_size: int
    runs: list[list[_Run]]
    dropout_masks: list[Array] | None
    parameter_names: list[str]


def _weights(cell: Cell, parameters: Mapping[str, Any], suffix: str) -> dict[str, Array]:
    """The parameters of one layer and direction; biases that a layer does not have are zero."""
    names = ["weight_ih", "weight_hh", *cell.per_unit]
    weights = {name: _array(parameters[name + suffix]) for name in names}
    for name in ("bias_ih", "bias_hh"):
        bias = parameters.get(name + suffix)
        weights[name] = _array(np.zeros(len(weights["weight_hh"])) if bias is None else bias)
    return weights


def _rows_alive(lengths: npt.ArrayLike | None, time: int, batch: int) -> npt.NDArray[np.bool_]:
    """Mask (T, B), true where t is inside the row's length."""
    lengths = np.full(batch, time) if lengths is None else np.asarray(lengths)
    alive: npt.NDArray[np.bool_] = np.arange(time)[:, None] < lengths
    return alive


def _rows_fresh(reset: npt.ArrayLike | None, alive: npt.NDArray[np.bool_], reverse: bool) -> npt.NDArray[np.bool_]:
    """Mask (T, B), true where a step is entered from zero: ``reset[t]`` cuts the link between t-1 and t."""
    fresh = np.zeros_like(alive)
    if reset is not None:
        cut = _flags(reset, "reset", alive.shape) & alive
        if reverse:
            fresh[:-1] = cut[1:]
        else:
            fresh = cut
    return fresh


def _flags(values: npt.ArrayLike, name: str, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    flags = np.asarray(values)
    if flags.dtype != np.bool_:
        raise TypeError(f"{name} must be bool, got {flags.dtype}")
    if flags.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {flags.shape}")
    return flags


def _run_forward(
    cell: Cell,
    run: _Run,
    x: Array,
    state: State,
    alive: npt.NDArray[np.bool_],
    kept: npt.NDArray[np.bool_],
    fresh: npt.NDArray[np.bool_],
    reverse: bool,
) -> tuple[Array, State]:
    """Run one layer in one direction, keeping its steps in `run`; give its output (T, B, H) and final state."""
    y = np.zeros_like(x, shape=(*x.shape[:2], state[0].shape[1]))
    state = tuple(s.copy() for s in state)
    for t in reversed(range(len(x))) if reverse else range(len(x)):
        rows, running = np.flatnonzero(alive[t]), np.flatnonzero(alive[t] & kept[t])
        begins = fresh[t, rows, None]
        for s in state:
            s[rows] = np.where(begins, 0.0, s[rows])
        after, saved = cell.forward(run.weights, x[t, running], tuple(s[running] for s in state))
        for s, new in zip(state, after, strict=True):
            s[running] = new
        y[t, rows] = state[0][rows]
        run.steps.append(_Step(t, rows, running, begins, saved))
    return y, state


def _run_backward(
    cell: Cell, run: _Run, dy: Array, dstate: State, dx: Array, dstates: State
) -> tuple[State, dict[str, Array]]:
    """Walk a run's steps back: add into dx (T, B, I), write the gradient of the state after every step into dstates,
    (T, B, H) each, and give those of the initial state and the weights."""
    dstate = tuple(d.copy() for d in dstate)
    dweights = {name: np.zeros_like(weight) for name, weight in run.weights.items()}
    for step in reversed(run.steps):
        dstate[0][step.rows] = dstate[0][step.rows] + dy[step.t, step.rows]
        after = tuple(d[step.running] for d in dstate)
        for every, d, whole in zip(dstates, dstate, cell.whole_gradient(run.weights, step.saved, after), strict=True):
            every[step.t, step.rows] = d[step.rows]
            every[step.t, step.running] = whole
        dx_t, before, dw = cell.backward(run.weights, step.saved, after)
        for d, new in zip(dstate, before, strict=True):
            d[step.running] = new
        for d in dstate:
            d[step.rows] = np.where(step.fresh, 0.0, d[step.rows])
        dx[step.t, step.running] += dx_t
        for name, gradient in dw.items():
            dweights[name] += gradient
    return dstate, dweights


def _state_arrays(cell: Cell, state: Any, shape: tuple[int, int, int]) -> State:
    """A state, or the gradient of one, as a tuple of float64 arrays; None, whole or in part, is zero."""
    parts = (state,) if cell.states == 1 else (None, None) if state is None else tuple(state)
    if len(parts) != cell.states:
        raise ValueError(f"state must have {cell.states} arrays, got {len(parts)}")
    arrays = tuple(_array(np.zeros(shape) if part is None else part) for part in parts)
    for array in arrays:
        if array.shape != shape:
            raise ValueError(f"state must have shape {shape}, got {array.shape}")
    return arrays


def _joined(cell: Cell, state: State) -> Array | State:
    return state[0] if cell.states == 1 else state


def forward(
    cell: str,
    parameters: Mapping[str, Any],
    x: npt.ArrayLike,
    state: Any = None,
    *,
    lengths: npt.ArrayLike | None = None,
    reset: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    num_layers: int = 1,
    bidirectional: bool = False,
    reverse: bool = False,
    clip: float | None = None,
    dropout_masks: Sequence[npt.ArrayLike] | None = None,
) -> tuple[Array, Array | State, Tape]:
    """Run a recurrent layer over a whole sequence.

    Parameters
    ----------
    cell : str
        A name in `cells`.
    parameters : mapping
        Arrays by torch's names, ``weight_ih_l0`` (G*H, I or D*H), ``weight_hh_l0`` (G*H, H), ``bias_ih_l0`` and
        ``bias_hh_l0`` (G*H,), ``peephole_l0`` (3 or 2, H), with the suffix ``_reverse``; biases may be missing.
    x : array (T, B, I)
    state : array (L*D, B, H), or a pair of them for an LSTM, optional
        The initial state, zero where None.
    lengths : integers (B,), optional
        Steps of each row. Past them y is zero and the state stays; what stands there influences nothing. The reverse
        direction starts at length-1, from its initial state.
    reset : bool (T, B), optional
        ``reset[t]`` cuts the link between t-1 and t: the forward direction enters t from zero, the reverse one
        enters t-1 from zero.
    mask : bool (T, B), optional
        Where False a row skips the step, in every layer: its state stays, cut or not by ``reset[t]``, y is the state's
        h, and x there influences nothing.
    reverse : bool
        Run in the reverse direction alone; the parameters have no suffix for it.
    clip : float, optional
        Bound the input of every gate's activation to [-clip, clip] (ONNX); no gradient flows where it acts.
    dropout_masks : L-1 arrays (T, B, D*H), optional
        Already scaled, multiplied onto the output of each layer but the last.

    Returns
    -------
    y : float64 array (T, B, D*H)
    state : like the argument
        The state of each row after its last step.
    tape : Tape
        For `backward`.

    Raises
    ------
    TypeError, ValueError
        Where `reset` or `mask` is not bool, or a shape is not that above.
    """
    kind = dataclasses.replace(cast(Any, cells[cell]), clip=clip)
    x = _array(x)
    time, batch, _ = x.shape
    hidden = np.asarray(parameters["weight_hh_l0"]).shape[1]
    directions = 2 if bidirectional else 1
    initial = _state_arrays(kind, state, (num_layers * directions, batch, hidden))
    masks = None if dropout_masks is None else [_array(mask) for mask in dropout_masks]
    alive = _rows_alive(lengths, time, batch)
    kept = np.ones_like(alive) if mask is None else _flags(mask, "mask", (time, batch))
    runs: list[list[_Run]] = []
    finals: list[State] = []
    tape = Tape(kind, (time, batch, x.shape[2]), hidden, runs, masks, list(parameters))
    for layer in range(num_layers):
        runs.append([])
        outputs = []
        for direction in range(directions):
            backwards = reverse or direction == 1
            suffix = f"_l{layer}" + "_reverse" * direction
            run = _Run(_weights(kind, parameters, suffix), suffix, [])
            before = tuple(s[layer * directions + direction] for s in initial)
            y, final = _run_forward(kind, run, x, before, alive, kept, _rows_fresh(reset, alive, backwards), backwards)
            runs[-1].append(run)
            outputs.append(y)
            finals.append(final)
        x = np.concatenate(outputs, axis=2)
        if masks is not None and layer < num_layers - 1:
            x = x * masks[layer]
    return x, _joined(kind, tuple(np.stack(arrays) for arrays in zip(*finals, strict=True))), tape


def backward(
    tape: Tape, dy: npt.ArrayLike | None = None, dstate: Any = None
) -> tuple[Array, Array | State, dict[str, Array]]:
    """Backpropagate through time, through every layer and direction.

    ``∂E/∂W = Σ_t Σ_{k≤t} ∂E_t/∂s_t (Π_{k<j≤t} ∂s_j/∂s_{j-1}) ∂⁺s_k/∂W``, summed in one pass by carrying ``∂E/∂s_t``
    back through the steps (Werbos 1990).

    Parameters
    ----------
    tape : Tape
        From `forward`; it is not changed.
    dy : array (T, B, D*H), optional
        Gradient of the output.
    dstate : like the state, optional
        Gradient of the final state; either half of a pair may be None.

    Returns
    -------
    dx : array (T, B, I)
    dstate : like the state
        Gradient of the initial state.
    grads : dict
        Gradients of the parameters, by the names `forward` was given.
    """
    dx, dinitial, grads, _ = _differentiate(tape, dy, dstate)
    return dx, _joined(tape.cell, dinitial), grads


def state_gradients(tape: Tape, dy: npt.ArrayLike | None = None, dstate: Any = None) -> State:
    """Gradients of the states after every step, whose norms tell how far back an error reaches.

    Bengio, Simard & Frasconi, "Learning long-term dependencies with gradient descent is difficult", 1994; Pascanu,
    Mikolov & Bengio, "On the difficulty of training recurrent neural networks", 2013.

    Parameters
    ----------
    tape, dy, dstate
        As for `backward`.

    Returns
    -------
    tuple of arrays (L*D, T, B, H)
        dE/dh_t, and dE/dc_t for an LSTM: with all later steps and the step's own `dy` in it, and for c_t what it does
        through h_t. Where the step was skipped the state is the one that stayed. Zeros past a row's length.
    """
    return _differentiate(tape, dy, dstate)[3]


def _differentiate(tape: Tape, dy: npt.ArrayLike | None, dstate: Any) -> tuple[Array, State, dict[str, Array], State]:
    """Gradients of x, of the initial state, of the parameters, and of the states after every step."""
    time, batch, _ = tape.input_shape
    hidden, directions = tape.hidden_size, len(tape.runs[0])
    dfinal = _state_arrays(tape.cell, dstate, (len(tape.runs) * directions, batch, hidden))
    dinitial = tuple(np.zeros_like(d) for d in dfinal)
    dstates = tuple(np.zeros_like(d, shape=(len(d), time, batch, hidden)) for d in dfinal)
    dx = _array(np.zeros((time, batch, directions * hidden)) if dy is None else dy)
    grads: dict[str, Array] = {}
    for layer in reversed(range(len(tape.runs))):
        douts = dx if tape.dropout_masks is None or layer == len(tape.runs) - 1 else dx * tape.dropout_masks[layer]
        dx = np.zeros_like(dx, shape=(time, batch, tape.runs[layer][0].weights["weight_ih"].shape[1]))
        for direction, run in enumerate(tape.runs[layer]):
            index = layer * directions + direction
            part = douts[:, :, direction * hidden : (direction + 1) * hidden]
            before = tuple(d[index] for d in dfinal)
            every = tuple(_array(np.zeros((time, batch, hidden))) for _ in dfinal)
            dbefore, dweights = _run_backward(tape.cell, run, part, before, dx, every)
            for target, value in zip(dstates, every, strict=True):
                target[index] = value
            for target, value in zip(dinitial, dbefore, strict=True):
                target[index] = value
            grads.update({name + run.suffix: value for name, value in dweights.items()})
    return dx, dinitial, {name: grads[name] for name in tape.parameter_names}, dstates


@dataclass(frozen=True)
class DecoderTape:
    """What `attention_decoder_backward` needs.

    And what a step read: `attention` (T, B, S), and of hard attention `locations`, `log_prob` and `entropy` (T, B).
    """

    cell: Any
    weights: Weights
    attention_weights: Weights
    names: list[str]
    memory: Memory
    alive: npt.NDArray[np.bool_]
    reads: list[Read]
    saved: list[Saved]
    attention: Array
    locations: npt.NDArray[np.int64] | None
    log_prob: Array | None
    entropy: Array | None


def attention_decoder(
    cell: str,
    parameters: Mapping[str, Any],
    x: npt.ArrayLike,
    memory: npt.ArrayLike,
    memory_lengths: npt.ArrayLike | None = None,
    state: Any = None,
    lengths: npt.ArrayLike | None = None,
    *,
    hard: bool = False,
    locations: npt.ArrayLike | None = None,
    seed: int | None = None,
    call: int = 0,
    clip: float | None = None,
) -> tuple[Array, Array, Array | State, DecoderTape]:
    """Run a decoder with additive attention; see `fusedrnn.AttentionDecoder`.

    Parameters
    ----------
    cell : str
        A name in `cells`.
    parameters : mapping
        Those of the cell, with the suffix ``_l0``, for an input [x; context], and attention's four.
    x, memory, memory_lengths, state, lengths
        As the decoder takes them, time first.
    hard : bool
        Attention of one location: the one that `locations` (T, B) names, or one drawn for `seed` and `call`, or without
        either the most probable one.

    Returns
    -------
    y, context, state, tape
    """
    kind = dataclasses.replace(cast(Any, cells[cell]), clip=clip)
    weights = _weights(kind, parameters, "_l0")
    own = {name: _array(parameters[name]) for name in WEIGHTS}
    held = Memory.of(own, memory, memory_lengths)
    x = _array(x)
    time, batch, _ = x.shape
    initial = _state_arrays(kind, state, (1, batch, weights["weight_hh"].shape[1]))
    now = tuple(s[0].copy() for s in initial)
    alive = _rows_alive(lengths, time, batch)
    y, context = np.zeros((time, batch, now[0].shape[1])), np.zeros((time, batch, held.values.shape[2]))
    attention, chosen = np.zeros((time, batch, len(held.values))), np.full((time, batch), -1)
    log_prob, entropy = np.zeros((time, batch)), np.zeros((time, batch))
    reads, saved = [], []
    for t in range(time):
        shares, squashed = score(own, held, now[0])
        picked = _locations(held, shares, t, locations, seed, call) if hard else None
        read = Read(now[0], squashed, shares, picked)
        running = alive[t, :, None]
        context[t] = np.where(running, read.context(held), 0.0)
        attention[t] = np.where(running, shares, 0.0)
        if picked is not None:
            chosen[t] = np.where(alive[t], picked, -1)
            log_prob[t], entropy[t] = np.where(alive[t], read.log_prob(), 0.0), np.where(alive[t], read.entropy(), 0.0)
        inputs = np.where(running, np.concatenate([x[t], context[t]], axis=1), 0.0)
        after, kept = kind.forward(weights, inputs, now)
        now = tuple(np.where(running, new, old) for new, old in zip(after, now, strict=True))
        y[t] = np.where(running, now[0], 0.0)
        reads.append(read)
        saved.append(kept)
    found = (chosen, log_prob, entropy) if hard else (None, None, None)
    tape = DecoderTape(kind, weights, own, list(parameters), held, alive, reads, saved, attention, *found)
    return y, context, _joined(kind, tuple(s[None] for s in now)), tape


def _locations(
    memory: Memory, shares: Array, t: int, given: npt.ArrayLike | None, seed: int | None, call: int
) -> npt.NDArray[np.int64]:
    counts = memory.present.sum(axis=0)
    if given is not None:
        found = np.asarray(given)[t]
    elif seed is not None:
        found = np.array(
            [draw(shares[b, : counts[b]], uniform(seed, call, t, b)) for b in range(len(counts))], np.int64
        )
    else:
        found = shares.argmax(axis=1) if shares.shape[1] else np.full(len(counts), -1)
    return np.where(counts > 0, found, -1)


def attention_decoder_backward(
    tape: DecoderTape,
    dy: npt.ArrayLike | None = None,
    dcontext: npt.ArrayLike | None = None,
    dstate: Any = None,
    *,
    dlog_prob: npt.ArrayLike | None = None,
    dentropy: npt.ArrayLike | None = None,
) -> tuple[Array, Array, Array | State, dict[str, Array]]:
    """Gradients of x, of the memory, of the initial state, and of the parameters by name."""
    time, batch = tape.alive.shape
    hidden, features = tape.weights["weight_hh"].shape[1], tape.memory.values.shape[2]
    outer = _array(np.zeros((time, batch, hidden)) if dy is None else dy)
    outer_context = _array(np.zeros((time, batch, features)) if dcontext is None else dcontext)
    flat = [_array(np.zeros((time, batch)) if d is None else d) for d in (dlog_prob, dentropy)]
    after = tuple(d[0].copy() for d in _state_arrays(tape.cell, dstate, (1, batch, hidden)))
    sums = Sums.zeros(tape.attention_weights, tape.memory)
    grads = {name: np.zeros_like(weight) for name, weight in tape.weights.items()}
    dx = np.zeros((time, batch, tape.weights["weight_ih"].shape[1] - features))
    for t in reversed(range(time)):
        alive = tape.alive[t, :, None]
        carried = (after[0] + np.where(alive, outer[t], 0.0), *after[1:])
        dinputs, before, dweights = tape.cell.backward(
            tape.weights, tape.saved[t], tuple(np.where(alive, d, 0.0) for d in carried)
        )
        for name, gradient in dweights.items():
            grads[name] += gradient
        dx[t] = dinputs[:, :-features]
        of_context = np.where(alive, dinputs[:, -features:] + outer_context[t], 0.0)
        of_choice = [np.where(tape.alive[t], d[t], 0.0) for d in flat]
        dquery = sums.add(tape.attention_weights, tape.memory, tape.reads[t], of_context, 0.0, *of_choice)
        before = (before[0] + dquery, *before[1:])
        after = tuple(np.where(alive, new, old) for new, old in zip(before, carried, strict=True))
    dmemory = sums.finish(tape.attention_weights, tape.memory)
    named = {f"{name}_l0": gradient for name, gradient in grads.items()} | sums.weights
    return dx, dmemory, _joined(tape.cell, tuple(d[None] for d in after)), {name: named[name] for name in tape.names}


def _log_softmax(z: Array) -> Array:
    shifted = z - z.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def linear(x: npt.ArrayLike, weight: npt.ArrayLike, bias: npt.ArrayLike | None = None) -> Array:
    """Linear map of the last axis, ``y = x Wᵀ + b``: x (..., I), weight (O, I), bias (O,) or None, y (..., O)."""
    y: Array = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T
    return y if bias is None else y + np.asarray(bias, np.float64)


def linear_backward(x: npt.ArrayLike, weight: npt.ArrayLike, dy: npt.ArrayLike) -> tuple[Array, Array, Array]:
    """Gradients of `linear`: ``dx = dy W``, ``dW = Σ dyᵀ x``, ``db = Σ dy``, the sums over all leading axes."""
    x, weight, dy = np.asarray(x, np.float64), np.asarray(weight, np.float64), np.asarray(dy, np.float64)
    flat = dy.reshape(-1, dy.shape[-1])
    return dy @ weight, flat.T @ x.reshape(-1, x.shape[-1]), np.asarray(flat.sum(axis=0))


def softmax(x: npt.ArrayLike) -> Array:
    """Softmax over the last axis, ``y_i = exp(x_i) / Σ_j exp(x_j)``."""
    return np.asarray(np.exp(_log_softmax(np.asarray(x, np.float64))))


def softmax_backward(x: npt.ArrayLike, dy: npt.ArrayLike) -> Array:
    """Gradient of `softmax`: ``dx_i = y_i (dy_i - Σ_j dy_j y_j)``."""
    y, dy = softmax(x), np.asarray(dy, np.float64)
    return np.asarray(y * (dy - (dy * y).sum(axis=-1, keepdims=True)))


def linear_cross_entropy(
    x: npt.ArrayLike,
    weight: npt.ArrayLike,
    bias: npt.ArrayLike | None,
    targets: npt.ArrayLike,
    *,
    reduction: str = "mean",
    ignore_index: int = -100,
) -> Array | float:
    """Softmax cross-entropy of a linear readout, ``E = -log softmax(x Wᵀ + b)[target]``.

    Parameters
    ----------
    x : array (..., H)
    weight : array (V, H)
    bias : array (V,) or None
    targets : integers (...)
        Classes; `ignore_index` marks positions that count for nothing.
    reduction : {"mean", "sum", "none"}
        Over the positions that count; the mean over none of them is nan.

    Returns
    -------
    float, or with ``reduction="none"`` an array of the targets' shape, 0 where ignored
    """
    targets = np.asarray(targets)
    kept = targets != ignore_index
    picked = np.where(kept, targets, 0)[..., None]
    losses: Array = np.where(kept, -np.take_along_axis(_log_softmax(linear(x, weight, bias)), picked, -1)[..., 0], 0.0)
    if reduction == "none":
        return losses
    count = int(kept.sum())
    if reduction == "mean":
        return float(losses.sum() / count) if count else float("nan")
    return float(losses.sum())


def linear_cross_entropy_backward(
    x: npt.ArrayLike,
    weight: npt.ArrayLike,
    bias: npt.ArrayLike | None,
    targets: npt.ArrayLike,
    dloss: npt.ArrayLike = 1.0,
    *,
    reduction: str = "mean",
    ignore_index: int = -100,
) -> tuple[Array, Array, Array | None]:
    """Gradients of `linear_cross_entropy`: ``∂E/∂z = softmax(z) - onehot(target)``, then those of the linear map.

    Parameters
    ----------
    dloss : float, or array of the targets' shape with ``reduction="none"``
        Gradient of the loss.

    Returns
    -------
    dx (..., H), dweight (V, H), dbias (V,) or None
    """
    x, weight, targets = np.asarray(x, np.float64), np.asarray(weight, np.float64), np.asarray(targets)
    kept = targets != ignore_index
    scale = np.where(kept, np.asarray(dloss, np.float64), 0.0)
    if reduction == "mean":
        scale = scale / max(int(kept.sum()), 1)
    dz = np.exp(_log_softmax(linear(x, weight, bias)))
    dz -= np.where(kept, targets, 0)[..., None] == np.arange(len(weight))
    dz *= scale[..., None]
    flat = dz.reshape(-1, len(weight))
    return dz @ weight, flat.T @ x.reshape(-1, x.shape[-1]), None if bias is None else flat.sum(0)

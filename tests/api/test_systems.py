"""The systems the library must make work, S2 to S16, each by the equation that defines it."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from cases import LAYERS, Case, assert_close, make_inputs, make_layer, make_parameters, small_cases
from oracles import Result, as_tuple
from rounding import error_bounds

import fusedrnn as fr
from fusedrnn import reference

SMALL = small_cases(time=12)
DEEP = small_cases(time=12, num_layers=2, directions=2, ragged=True, reset=True)


def zeros(state: Any) -> Any:
    parts = tuple(np.zeros_like(s) for s in as_tuple(state))
    return parts if isinstance(state, tuple) else parts[0]


def assert_parameters_close(
    actual: dict[str, Any], expected: dict[str, Any], bounds: dict[str, Any], factor: float = 1.0
) -> None:
    assert list(actual) == list(expected)
    for name, gradient in actual.items():
        assert_close(gradient, expected[name], factor * bounds[name], name)


def bounds_of(case: Case, layer: Any, inputs: Any, *, other: str | None = None) -> Result:
    """Bounds between two results of the library, or of the library and one in another precision."""
    return error_bounds(case, layer.parameters, inputs, other=other or case.dtype)


# S2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("classes", [1, 7, 300])
def test_readout_is_softmax_cross_entropy(
    dtype: str, reduction: str, bias: bool, classes: int, rng: np.random.Generator
) -> None:
    hidden, shape = 17, (9, 5)
    eps = np.finfo(dtype).eps
    x = rng.standard_normal((*shape, hidden)).astype(dtype)
    weight = rng.standard_normal((classes, hidden)).astype(dtype)
    b = rng.standard_normal(classes).astype(dtype) if bias else None
    targets = rng.integers(0, classes, shape)
    targets[rng.random(shape) < 0.2] = -100
    dloss = rng.standard_normal(shape).astype(dtype) if reduction == "none" else 0.7
    loss, tape = fr.linear_cross_entropy_forward(x, weight, b, targets, reduction=reduction)
    grads = fr.linear_cross_entropy_backward(tape, dloss)
    # Logits of magnitude 4·sqrt(H) carry an absolute error that softmax turns into a relative one of its results.
    near = 16 * eps * np.sqrt(hidden * classes) * np.sqrt(hidden)
    expected = reference.linear_cross_entropy(x, weight, b, targets, reduction=reduction)
    assert_close(np.asarray(loss), np.asarray(expected), near, "loss")
    again = fr.linear_cross_entropy(x, weight, b, targets, reduction=reduction)
    np.testing.assert_array_equal(np.asarray(again), np.asarray(loss))
    wanted = reference.linear_cross_entropy_backward(x, weight, b, targets, dloss, reduction=reduction)
    for name, gradient, right in zip(("dx", "dweight", "dbias"), grads, wanted, strict=True):
        if right is None:
            assert gradient is None
        else:
            assert_close(gradient, right, near, name)


# S3


@pytest.mark.parametrize("case", SMALL + DEEP)
def test_one_backward_pass_is_the_sum_of_the_passes_per_step(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    _, _, tape = layer.forward(inputs.x, inputs.state, **inputs.sequence_options())
    whole = layer.backward(tape, inputs.dy)
    dx, total = np.zeros_like(inputs.x), None
    for t in range(case.time):
        dy = np.zeros_like(inputs.dy)
        dy[t] = inputs.dy[t]
        part = layer.backward(tape, dy, grads=total)
        dx += part.x
        total = part
    # The passes' own roundings are of parts that add up to the whole's; the running sums are rounded in every pass.
    bounds, passes = bounds_of(case, layer, dataclasses.replace(inputs, dstate=None)), np.sqrt(case.time)
    assert_close(whole.x, dx, passes * bounds.dx, "dx")
    assert_parameters_close(whole.parameters, total.parameters, bounds.parameters, passes)


# S4


@pytest.mark.parametrize("case", small_cases(time=9, ragged=True))
def test_many_to_one_by_state_or_by_last_output(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng, shortest=1)
    y, state, tape = layer.forward(inputs.x, inputs.state, lengths=inputs.lengths)
    rows = np.arange(case.batch)
    np.testing.assert_array_equal(y[inputs.lengths - 1, rows], as_tuple(state)[0][0])
    seed = rng.standard_normal((case.batch, case.hidden_size))
    dy = np.zeros_like(inputs.dy)
    dy[inputs.lengths - 1, rows] = seed
    by_output = layer.backward(tape, dy)
    by_state = layer.backward(tape, None, (seed[None], None) if case.two_states else seed[None])
    np.testing.assert_array_equal(by_output.x, by_state.x)
    for name, gradient in by_output.parameters.items():
        np.testing.assert_array_equal(gradient, by_state.parameters[name])


# S5


@pytest.mark.parametrize("case", SMALL)
@pytest.mark.parametrize("window", [1, 5, 12, 100])
def test_windows_with_everything_carried_are_full_bptt(case: Case, window: int, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    y, final, tape = layer.forward(inputs.x, inputs.state)
    whole = layer.backward(tape, inputs.dy, inputs.dstate)
    state, pieces = inputs.state, []
    for x, dy in fr.tbptt_windows(inputs.x, inputs.dy, window=window):
        assert np.shares_memory(x, inputs.x) and np.shares_memory(dy, inputs.dy)
        out, state, piece = layer.forward(x, state)
        pieces.append((out, dy, piece))
    assert [len(out) for out, _, _ in pieces[:-1]] == [window] * (len(pieces) - 1)
    np.testing.assert_array_equal(np.concatenate([out for out, _, _ in pieces]), y)
    for a, b in zip(as_tuple(state), as_tuple(final), strict=True):
        np.testing.assert_array_equal(a, b)
    dstate, total, dx = inputs.dstate, None, []
    for _, dy, piece in reversed(pieces):
        total = layer.backward(piece, dy, dstate, grads=total)
        dstate = total.state
        dx.insert(0, total.x)
    np.testing.assert_array_equal(np.concatenate(dx), whole.x)
    for a, b in zip(as_tuple(dstate), as_tuple(whole.state), strict=True):
        np.testing.assert_array_equal(a, b)
    assert_parameters_close(total.parameters, whole.parameters, bounds_of(case, layer, inputs).parameters)


@pytest.mark.parametrize("case", SMALL)
def test_a_window_is_truncated_bptt(case: Case, rng: np.random.Generator) -> None:
    """A window's own pass takes the state as a constant: the terms of S3 with k inside the window, and no other."""
    layer, inputs = make_layer(case), make_inputs(case, rng)
    begin = 7
    dy = inputs.dy.copy()
    dy[:begin] = 0.0
    _, _, tape = layer.forward(inputs.x, inputs.state)
    full = layer.backward(tape, dy)
    assert np.all(np.abs(full.x[:begin]).max(axis=(1, 2)) > 0)
    _, carried, _ = layer.forward(inputs.x[:begin], inputs.state)
    _, _, window = layer.forward(inputs.x[begin:], carried)
    inside = layer.backward(window, dy[begin:])
    np.testing.assert_array_equal(inside.x, full.x[begin:])
    _, _, before = layer.forward(inputs.x[:begin], inputs.state)
    outside = layer.backward(before, None, inside.state)
    together = {name: inside.parameters[name] + outside.parameters[name] for name in inside.parameters}
    bounds = bounds_of(case, layer, dataclasses.replace(inputs, dy=dy, dstate=None))
    assert_parameters_close(together, full.parameters, bounds.parameters)


@pytest.mark.parametrize("case", SMALL)
def test_no_gradient_crosses_a_cut(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    begin = 7
    reset = np.zeros((case.time, case.batch), bool)
    reset[begin] = True
    dy = inputs.dy.copy()
    dy[:begin] = 0.0
    _, _, tape = layer.forward(inputs.x, inputs.state, reset=reset)
    grads = layer.backward(tape, dy, inputs.dstate)
    assert not grads.x[:begin].any()
    assert not any(s.any() for s in as_tuple(grads.state))
    _, _, window = layer.forward(inputs.x[begin:], zeros(inputs.state))
    bounds = bounds_of(case, layer, dataclasses.replace(inputs, dy=dy, reset=reset))
    expected = layer.backward(window, dy[begin:], inputs.dstate)
    assert_parameters_close(grads.parameters, expected.parameters, bounds.parameters)


# S6


def gradient_norms(layer: Any, x: np.ndarray, state: Any, dstate: Any) -> list[float]:
    """‖∂E/∂s_k‖ for k = 0 .. T, for a loss whose gradient at the end is `dstate`, by passes over single steps."""
    tapes = []
    for t in range(len(x)):
        _, state, tape = layer.forward(x[t : t + 1], state)
        tapes.append(tape)
    norms = [float(np.linalg.norm(np.concatenate([d.ravel() for d in as_tuple(dstate)])))]
    for tape in reversed(tapes):
        dstate = layer.backward(tape, None, dstate).state
        norms.insert(0, float(np.linalg.norm(np.concatenate([d.ravel() for d in as_tuple(dstate)]))))
    return norms


def test_state_gradients_are_products_of_jacobians(rng: np.random.Generator) -> None:
    case = Case("rnn_tanh", time=9, batch=1, input_size=3, hidden_size=6)
    layer, inputs = make_layer(case), make_inputs(case, rng)
    y, _ = layer(inputs.x, inputs.state)
    gradient = inputs.dstate[0, 0]
    expected = [np.linalg.norm(gradient)]
    for t in reversed(range(case.time)):
        # ∂s_t/∂s_{t-1} = diag(1 - s_t²) W, with W as it multiplies a column.
        gradient = gradient @ (np.diag(1.0 - y[t, 0] ** 2) @ layer.parameters["weight_hh_l0"])
        expected.insert(0, np.linalg.norm(gradient))
    norms = gradient_norms(layer, inputs.x, inputs.state, inputs.dstate)
    np.testing.assert_allclose(norms, expected, rtol=100 * case.eps)


@pytest.mark.parametrize("case", small_cases(time=20))
def test_state_gradients_of_every_cell_are_at_hand(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    norms = gradient_norms(layer, inputs.x, inputs.state, inputs.dstate)
    _, _, tape = layer.forward(inputs.x, inputs.state)
    whole = layer.backward(tape, None, inputs.dstate).state
    assert len(norms) == case.time + 1
    assert norms[0] == np.linalg.norm(np.concatenate([d.ravel() for d in as_tuple(whole)]))


@pytest.mark.parametrize("scale", [0.5, 1.5])
def test_gradients_vanish_or_explode_with_the_recurrent_weights(scale: float, rng: np.random.Generator) -> None:
    case = Case("rnn_relu", time=20, batch=1, input_size=3, hidden_size=6)
    layer, inputs = make_layer(case), make_inputs(case, rng)
    # Every unit is on, so that the Jacobian is the recurrent matrix and the norms are powers of its scale.
    layer.parameters["weight_hh_l0"][...] = scale * np.eye(6)
    layer.parameters["bias_ih_l0"][...] = 100.0
    norms = gradient_norms(layer, inputs.x, np.abs(inputs.state), inputs.dstate)
    np.testing.assert_allclose(np.divide(norms[:-1], norms[1:]), scale, rtol=16 * case.eps)


# S7


def test_clipping_scales_all_gradients_by_one_factor(rng: np.random.Generator) -> None:
    case = Case("lstm", 2, dtype="float32")
    layer, inputs = make_layer(case), make_inputs(case, rng)
    _, _, tape = layer.forward(inputs.x, inputs.state)
    grads = layer.backward(tape, inputs.dy, inputs.dstate)
    before = {name: gradient.copy() for name, gradient in grads.parameters.items()}
    dx = grads.x.copy()
    norm = np.sqrt(sum(float(np.sum(g.astype(np.float64) ** 2)) for g in before.values()))
    assert fr.clip_grad_norm(grads, 2 * norm) == pytest.approx(norm, rel=1e-5)
    for name, gradient in grads.parameters.items():
        np.testing.assert_array_equal(gradient, before[name])
    assert fr.clip_grad_norm(grads, norm / 4) == pytest.approx(norm, rel=1e-5)
    for name, gradient in grads.parameters.items():
        np.testing.assert_allclose(gradient, before[name] / 4, rtol=1e-5)
    np.testing.assert_array_equal(grads.x, dx)


def test_clipping_takes_mappings_and_several_layers_at_once(rng: np.random.Generator) -> None:
    first, second = ({"a": rng.standard_normal(5), "b": rng.standard_normal((2, 3))} for _ in range(2))
    arrays = [*first.values(), *second.values()]
    before = [a.copy() for a in arrays]
    norm = np.sqrt(sum(float(np.sum(a**2)) for a in arrays))
    assert fr.clip_grad_norm([first, second], norm / 2) == pytest.approx(norm, rel=1e-14)
    for a, b in zip(arrays, before, strict=True):
        np.testing.assert_allclose(a, b / 2, rtol=1e-14)
    assert fr.clip_grad_norm(first, 1e9) == pytest.approx(norm_of(first), rel=1e-14)


def norm_of(arrays: dict[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(np.sum(a**2) for a in arrays.values())))


def losses_of_training(max_norm: float | None) -> list[float]:
    """Losses of plain gradient descent on a relu RNN whose recurrent weights expand, to a final state far off."""
    rng = np.random.default_rng(3)
    case = Case("rnn_relu", input_size=2, hidden_size=8)
    layer = make_layer(case)
    layer.load_parameters(make_parameters(case, rng))
    layer.parameters["weight_hh_l0"][...] = 1.1 * np.eye(8)
    x, target = rng.standard_normal((20, 4, 2)), 100 * rng.random((4, 8))
    losses = []
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(300):
            _, state, tape = layer.forward(x)
            error = state[0] - target
            losses.append(float(np.mean(error**2)))
            grads = layer.backward(tape, None, 2 * error[None] / error.size)
            if max_norm is not None:
                fr.clip_grad_norm(grads, max_norm)
            for name, gradient in grads.parameters.items():
                layer.parameters[name] -= 0.02 * gradient
    return losses


def test_clipping_cures_a_run_that_diverges_without_it() -> None:
    clipped, free = losses_of_training(max_norm=1.0), losses_of_training(max_norm=None)
    assert max(clipped) < 2 * clipped[0] and clipped[-1] < clipped[0] / 2
    # Either may come first, a loss beyond all measure or one that is no number.
    assert not max(free) < 1e6 * free[0] and not free[-1] < free[0] / 2


# S9, S10


@pytest.mark.parametrize("cell", [name for name in LAYERS if "c" in fr._core.cells[name].states])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lstm_with_its_gates_driven_is_tanh_of_tanh(cell: str, dtype: str, rng: np.random.Generator) -> None:
    case = Case(cell, dtype=dtype, time=9, batch=6, input_size=5, hidden_size=19)
    layer, inputs = make_layer(case), make_inputs(case, rng)
    p = {name: value.astype(np.float64) for name, value in layer.parameters.items()}
    blocks = np.split(layer.parameters["bias_ih_l0"], 4 if "coupled" not in cell else 3)
    *input_gate, forget_gate, _, output_gate = blocks
    for block, drive in [*((block, 1e3) for block in input_gate), (forget_gate, -1e3), (output_gate, 1e3)]:
        block[...] = drive
    y, (_, c), tape = layer.forward(inputs.x, inputs.state)
    rows = slice((len(blocks) - 2) * 19, (len(blocks) - 1) * 19)
    h, expected = inputs.state[0][0], []
    for x in inputs.x:
        z = x @ p["weight_ih_l0"][rows].T + h @ p["weight_hh_l0"][rows].T
        inner = np.tanh(z + p["bias_ih_l0"][rows] + p["bias_hh_l0"][rows])
        h = np.tanh(inner)
        expected.append(h)
    bounds = bounds_of(case, layer, inputs, other="float64")
    assert_close(y, np.array(expected), bounds.y, "y")
    assert_close(c[0], inner, bounds.state[1][0], "c")
    grads = layer.backward(tape, inputs.dy, inputs.dstate)
    # Shut gates pass nothing back: not to the cell state before the sequence, and not to their own weights.
    assert not grads.state[1].any()
    for index, gradient in enumerate(np.split(grads.parameters["weight_ih_l0"], len(blocks))):
        assert np.all(np.isfinite(gradient)) and gradient.any() == (index == len(blocks) - 2)


@pytest.mark.parametrize("cell", ["lstm", "lstm_coupled"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_direct_path_of_the_cell_state_is_the_forget_gate(cell: str, dtype: str, rng: np.random.Generator) -> None:
    case = Case(cell, dtype=dtype, time=1, batch=6, input_size=5, hidden_size=19)
    layer, inputs = make_layer(case), make_inputs(case, rng)
    _, _, tape = layer.forward(inputs.x, inputs.state)
    # With no gradient on h nothing but c_t = f∘c_{t-1} + i∘g leads from c_t to c_{t-1}.
    dc = layer.backward(tape, None, (None, inputs.dstate[1])).state[1]
    forget = slice(0, 19) if "coupled" in cell else slice(19, 38)
    p = {name: value[forget].astype(np.float64) for name, value in layer.parameters.items()}
    z = inputs.x[0] @ p["weight_ih_l0"].T + inputs.state[0][0] @ p["weight_hh_l0"].T
    f = reference.sigmoid(z + p["bias_ih_l0"] + p["bias_hh_l0"])
    only_c = dataclasses.replace(inputs, dy=None, dstate=(None, inputs.dstate[1]))
    assert_close(dc[0], f * inputs.dstate[1][0], bounds_of(case, layer, only_c, other="float64").dstate[1][0], "dc")


# S15


@pytest.mark.parametrize("reset_after", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gru_with_its_gates_driven_is_an_elman_rnn(reset_after: bool, dtype: str, rng: np.random.Generator) -> None:
    case = Case("rnn_tanh", dtype=dtype, time=9, batch=6, input_size=5, hidden_size=19)
    elman, inputs = make_layer(case), make_inputs(case, rng)
    gru = fr.GRU(5, 19, reset_after=reset_after, dtype=dtype, seed=1)
    for name, value in gru.parameters.items():
        value[38:] = elman.parameters[name]
    gru.parameters["bias_ih_l0"][:19] = 1e3
    gru.parameters["bias_ih_l0"][19:38] = -1e3
    y, state, tape = gru.forward(inputs.x, inputs.state)
    expected_y, expected_state, elman_tape = elman.forward(inputs.x, inputs.state)
    bounds = bounds_of(dataclasses.replace(case, cell="gru" if reset_after else "gru_reset_before"), gru, inputs)
    assert_close(y, expected_y, bounds.y, "y")
    assert_close(state, expected_state, bounds.state, "state")
    grads = gru.backward(tape, inputs.dy, inputs.dstate)
    expected = elman.backward(elman_tape, inputs.dy, inputs.dstate)
    assert_close(grads.x, expected.x, bounds.dx, "dx")
    assert_close(grads.state, expected.state, bounds.dstate, "dstate")
    for name, gradient in grads.parameters.items():
        assert not gradient[:38].any()
        assert_close(gradient[38:], expected.parameters[name], bounds.parameters[name][38:], name)


# S16


class Adam:
    """Kingma & Ba, 2015."""

    def __init__(self, parameters: dict[str, np.ndarray], rate: float) -> None:
        self.parameters, self.rate, self.step = parameters, rate, 0
        self.moments = {name: (np.zeros_like(p), np.zeros_like(p)) for name, p in parameters.items()}

    def update(self, gradients: dict[str, np.ndarray]) -> None:
        self.step += 1
        for name, gradient in gradients.items():
            first, second = self.moments[name]
            first += 0.1 * (gradient - first)
            second += 0.001 * (gradient**2 - second)
            scale = np.sqrt(second / (1 - 0.999**self.step)) + 1e-8
            self.parameters[name] -= self.rate * first / (1 - 0.9**self.step) / scale


SENTENCE = "the state is carried from window to window; "


@pytest.mark.parametrize("cell", LAYERS)
def test_a_small_language_model_learns_a_sentence(cell: str) -> None:
    """Next-symbol targets, truncated BPTT with the state carried on, clipping; then the model recites on its own."""
    symbols = sorted(set(SENTENCE))
    text = np.array([symbols.index(symbol) for symbol in SENTENCE * 2])
    onehot = np.eye(len(symbols), dtype=np.float32)
    case = Case(cell, dtype="float32", input_size=len(symbols), hidden_size=48)
    rng = np.random.default_rng(0)
    layer = make_layer(case)
    layer.load_parameters(make_parameters(case, rng))
    readout = {
        "readout_weight": rng.uniform(-0.1, 0.1, (len(symbols), 48)).astype(np.float32),
        "readout_bias": np.zeros(len(symbols), np.float32),
    }
    optimiser = Adam({**layer.parameters, **readout}, 0.01)
    for _ in range(80):
        state = None
        for inputs, targets in fr.tbptt_windows(text[:-1], text[1:], window=16):
            y, state, tape = layer.forward(np.ascontiguousarray(onehot[inputs][:, None]), state)
            _, readout_tape = fr.linear_cross_entropy_forward(y, *readout.values(), targets[:, None])
            dy, *dreadout = fr.linear_cross_entropy_backward(readout_tape)
            grads = layer.backward(tape, dy).parameters | dict(zip(readout, dreadout, strict=True))
            fr.clip_grad_norm(grads, 1.0)
            optimiser.update(grads)
    assert recite(layer, readout, onehot, text[0], len(SENTENCE)) == list(text[1 : len(SENTENCE) + 1])


def recite(layer: Any, readout: dict[str, np.ndarray], onehot: np.ndarray, symbol: int, count: int) -> list[int]:
    """The most likely continuation, one step at a time."""
    state, said = None, []
    for _ in itertools.repeat(None, count):
        y, state = layer(onehot[symbol][None, None], state)
        symbol = int(np.argmax(y[0, 0] @ readout["readout_weight"].T + readout["readout_bias"]))
        said.append(symbol)
    return said

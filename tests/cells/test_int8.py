"""Weights of 8 bits: the arithmetic, its error, the bits that must not differ, arguments."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import pickle
from typing import Any

import numpy as np
import pytest
from bitwise import assert_same, threads
from cases import CASES, EMPTY_CASES, LAYERS, Case, make_inputs, make_layer, small_cases
from guards import assert_guards_untouched, guarded
from isa_process import run_on
from oracles import as_tuple
from spoiled import SPOILED, raises

import fusedrnn as fr
from fusedrnn import _core

F = np.float32
PART = 512  # of the inner dimension, whose sums are exact

# The oracle: NumPy's integers and float32, by the equations of docs/int8.md.


def on_grid(row: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Whether the row is integers in [-128, 127] times a scale, for each of some scales."""
    multiples = row * (F(1) / scales)[:, None]
    integers = np.rint(multiples)
    return (np.abs(multiples - integers) <= 2.0**-13).all(1) & (integers.min(1) >= -128) & (integers.max(1) <= 127)


def rounded_weights(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scale of each row, and integers."""
    scales, integers = np.zeros(len(weight), F), np.zeros(weight.shape, np.int64)
    for number, row in enumerate(weight):
        largest = np.abs(row).max()
        if largest == 0:
            continue
        fitting = largest / np.arange(128, 0, -1, dtype=F)
        for part in (row[:8], row):  # few pass the first
            fitting = fitting[on_grid(part, fitting)] if len(fitting) else fitting
        scales[number] = scale = fitting[0] if len(fitting) else largest / F(127)
        integers[number] = np.clip(np.rint(row * (F(1) / scale)), -128, 127)
    return scales, integers


def rounded_rows(rows: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """The scale of each row of x or h, (B, 1), and integers of 16 bits."""
    largest = np.maximum(np.abs(rows).max(axis=-1, keepdims=True), F(least))
    inverse = np.where(largest < 2.0**-100, F(0), F(32767) / np.maximum(largest, F(2.0**-100)))
    return np.where(largest < 2.0**-100, F(0), largest / F(32767)), np.rint(rows * inverse).astype(np.int64)


def fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return (a.astype(np.float64) * b.astype(np.float64) + c).astype(F)


def product(rows: np.ndarray, weight: np.ndarray, least: float, z: np.ndarray) -> np.ndarray:
    scales, integers = rounded_weights(weight)
    scale, numbers = rounded_rows(rows, least)
    total = np.zeros((len(rows), len(weight)), F)
    for first in range(0, weight.shape[1], PART):
        part = numbers[:, first : first + PART] @ integers[:, first : first + PART].T
        assert np.abs(part).max(initial=0) < 2**31
        total = part.astype(F) if first == 0 else total + part.astype(F)
    return fused(scale * scales, total, z)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -z.astype(np.float64)))


def oracle_step(cell: str, parameters: dict[str, np.ndarray], x: np.ndarray, state: Any) -> tuple[np.ndarray, ...]:
    """A step of layer 0: sums as the library has them, and the cell's equations in float64."""
    states = as_tuple(state)
    h = states[0]
    w_ih, w_hh, b_ih, b_hh = (parameters[name + "_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    if cell.startswith("gru"):
        n = 2 * len(w_ih) // 3
        before = np.broadcast_to(b_ih + b_hh, (len(x), len(w_ih)))
        if cell == "gru":  # n has a sum of its own with h
            from_x = product(x, w_ih, 0, np.concatenate([before[:, :n], np.tile(b_ih[n:], (len(x), 1))], axis=1))
            from_h = product(h, w_hh, 1, np.concatenate([from_x[:, :n], np.tile(b_hh[n:], (len(x), 1))], axis=1))
            r, z = np.split(sigmoid(from_h[:, :n]), 2, axis=1)
            new = np.tanh(from_x[:, n:] + r * from_h[:, n:])
        else:
            from_x = product(x, w_ih, 0, before)
            r, z = np.split(sigmoid(product(h, w_hh[:n], 1, from_x[:, :n])), 2, axis=1)
            new = np.tanh(product((r * h).astype(F), w_hh[n:], 1, from_x[:, n:]).astype(np.float64))
        return (z * h + (1 - z) * new,)
    z = product(h, w_hh, 1, product(x, w_ih, 0, np.broadcast_to(b_ih + b_hh, (len(x), len(w_ih)))))
    if cell.startswith("rnn"):
        return (np.tanh(z.astype(np.float64)) if cell == "rnn_tanh" else np.maximum(z, 0),)
    gates = [part.astype(np.float64) for part in np.split(z, 3 if "coupled" in cell else 4, axis=1)]
    peephole = parameters.get("peephole_l0")
    if peephole is not None:
        for gate, weight in zip(gates, peephole[:-1], strict=False):
            gate += weight * states[1]
    f = sigmoid(gates[-3])
    i = 1 - f if "coupled" in cell else sigmoid(gates[0])
    c = f * states[1] + i * np.tanh(gates[-2])
    o = sigmoid(gates[-1] + (peephole[-1] * c if peephole is not None else 0))
    return o * np.tanh(c), c


SIZES = [(1, 1, 1), (3, 7, 17), (33, 129, 7), (1, 17, 129), (2, 1030, 5), (5, 3, 600)]


@pytest.mark.parametrize(("batch", "inputs", "hidden"), SIZES)
@pytest.mark.parametrize("cell", LAYERS)
def test_a_step_is_the_oracles(cell: str, batch: int, inputs: int, hidden: int, rng: np.random.Generator) -> None:
    layer = make_layer(Case(cell, dtype="float32", input_size=inputs, hidden_size=hidden))
    stepper = layer.stream(batch, weights="int8")
    for step in range(3):
        x = (rng.standard_normal((batch, inputs)) * 10.0 ** rng.integers(-3, 3, (batch, 1))).astype(F)
        if step == 1:  # a caller's h may be larger than 1
            stepper.state = (
                tuple(half * F(3) for half in stepper.state) if cell.startswith("lstm") else stepper.state * F(3)
            )
        before = tuple(half[0] for half in as_tuple(stepper.state))
        expected = oracle_step(cell, layer.parameters, x, before)
        y = stepper.step(x)
        for found, wanted in zip((y, *[half[0] for half in as_tuple(stepper.state)][1:]), expected, strict=True):
            # Activations of 2 ulp, sums that a double rounding may leave an ulp off, a few operations of the cell. With
            # cells of two phases r h may come to lie on the other side of a tie: a step of 16 bits, of one weight.
            scale = 1 + np.abs(wanted) + (max(np.abs(half).max() for half in before))
            slack = 2.0**-16 * np.abs(layer.parameters["weight_hh_l0"]).max() if cell == "gru_reset_before" else 0
            largest = np.abs(x).max(axis=1, keepdims=True) * (cell == "rnn_relu")
            np.testing.assert_array_less(np.abs(found - wanted), 16 * np.finfo(F).eps * (scale + largest) + slack)


# Its error


def test_error_of_a_step(rng: np.random.Generator) -> None:
    """Half a step of each row's weights and of each row's 16 bits, times what they are multiplied with."""
    inputs, hidden, batch = 40, 96, 7
    layer = fr.LSTM(inputs, hidden, seed=0)
    x = rng.standard_normal((batch, inputs)).astype(F)
    h, c = np.tanh(rng.standard_normal((batch, hidden))).astype(F), rng.standard_normal((batch, hidden)).astype(F)
    stepper = layer.stream(batch, weights="int8")
    stepper.state = (h[None], c[None])
    y = stepper.step(x)
    bound = np.zeros((batch, 4 * hidden))
    for rows, name, least in ((x, "weight_ih_l0", 0), (h, "weight_hh_l0", 1)):
        weight = layer.parameters[name].astype(np.float64)
        of_weights = np.abs(weight).max(axis=1) / 127 / 2
        of_rows = np.maximum(np.abs(rows).max(axis=1, keepdims=True), least) / 32767 / 2
        bound += np.abs(rows).sum(axis=1, keepdims=True) * of_weights + of_rows * (
            np.abs(weight) + of_weights[:, None]
        ).sum(axis=1)
    exact, _ = fr.reference.forward(
        "lstm", {k: v.astype(np.float64) for k, v in layer.parameters.items()}, x[None], (h[None], c[None])
    )[:2]
    i, f, g, o = np.split(bound, 4, axis=1)
    of_c = f / 4 * np.abs(c) + i / 4 + g  # slopes of at most 1/4 and 1
    np.testing.assert_array_less(np.abs(y - exact[0]), o / 4 + of_c + 1e-6)
    assert np.abs(y - exact[0]).max() < 0.01


def gridded(layer: Any) -> Any:
    """The layer with weights that 8 bits hold: whatever is off is due to 16 bits of x and h."""
    for name, array in layer.parameters.items():
        if name.startswith("weight"):
            step = np.abs(array).max(axis=1, keepdims=True) / F(127)
            array[...] = np.rint(array / step) * step
    return layer


SEQUENCES = [case for case in CASES + EMPTY_CASES if case.dtype == "float32"]
SEQUENCES += [
    dataclasses.replace(case, masked=True) for case in small_cases(dtype="float32", directions=2, ragged=True)
]
SEQUENCES += [
    dataclasses.replace(case, masked=True, reset=True)
    for case in small_cases(dtype="float32", num_layers=2, hidden_size=33, batch=9)
]


@pytest.mark.parametrize("case", SEQUENCES, ids=lambda case: case.id)
def test_sequences_are_near_the_layers(case: Case) -> None:
    """Lengths, resets, masks, directions, layers, states: a mistake in any would show by tenths."""
    layer, inputs = gridded(make_layer(case)), make_inputs(case, np.random.default_rng(case.seed))
    expected = layer(inputs.x, inputs.state, **inputs.sequence_options())
    runner = layer.freeze(weights="int8")
    found = runner(inputs.x, inputs.state, **inputs.sequence_options())
    for ours, theirs in zip((found[0], *as_tuple(found[1])), (expected[0], *as_tuple(expected[1])), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-3)
    for count in (1, 2, 3):
        with threads(count):
            assert_same(runner(inputs.x, inputs.state, **inputs.sequence_options()), found)


# Bits

STEPPED = [
    Case(cell, 1 + number % 3, 1, "float32", 5, batch, inputs, hidden)
    for number, cell in enumerate(LAYERS)
    for batch, inputs, hidden in ((1, 17, 129), (3, 129, 7), (33, 7, 65))
]
STEPPED += [Case("lstm", 2, 1, "float32", 3, 1, 31, 520), Case("gru_reset_before", 2, 1, "float32", 3, 6, 520, 150)]


def results(case: Case) -> list[np.ndarray]:
    """Of the stepper and the runner, with 1, 2 and 3 threads and of rows alone, which all must agree."""
    layer, inputs = make_layer(case), make_inputs(case, np.random.default_rng(case.seed))
    runner = layer.freeze(weights="int8")
    y, state = runner(inputs.x, inputs.state)
    for count in (1, 2, 3):
        with threads(count):
            stepper = layer.stream(case.batch, "int8")
            stepper.state = inputs.state
            assert_same((np.stack([stepper.step(x) for x in inputs.x]), stepper.state), (y, state), case.id)
    for row in {0, case.batch - 1}:
        of_row = [np.ascontiguousarray(half[:, row]) for half in as_tuple(inputs.state)]
        alone, _ = runner(np.ascontiguousarray(inputs.x[:, row]), tuple(of_row) if case.two_states else of_row[0])
        assert_same(alone, np.ascontiguousarray(y[:, row]))
    return [y, *as_tuple(state)]


@pytest.mark.parametrize("case", STEPPED, ids=lambda case: case.id)
def test_bits_of_steppers_and_runners(case: Case) -> None:
    results(case)


def digest() -> str:
    found = hashlib.sha256()
    for case in STEPPED[::2]:
        for array in results(case):
            found.update(array.tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("isa", _core.int8_isas())
def test_bits_of_every_instruction_set(isa: str) -> None:
    fused_here = not _core.int8_isa().endswith(("v2", "generic"))
    expected = digest() if fused_here and not isa.endswith("v2") else ""
    program = (
        "import sys, test_int8 as t; found = t.digest(); from fusedrnn import _core;"
        f"assert _core.int8_isa() == {isa!r}; assert sys.argv[1] in ('', found), 'other bits'"
    )
    run_on(isa, program, __file__, expected)


# What goes in and comes out


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("cell", LAYERS)
def test_a_row_that_is_not_finite(cell: str, bad: float, rng: np.random.Generator) -> None:
    case = Case(cell, 2, 1, "float32", 4, 4, 7, 17)
    layer, inputs = make_layer(case), make_inputs(case, rng)
    runner = layer.freeze(weights="int8")
    expected, _ = runner(inputs.x, inputs.state)
    inputs.x[1, 2, 3] = bad
    y, _ = runner(inputs.x, inputs.state)
    others = [0, 1, 3]
    assert_same(np.ascontiguousarray(y[:, others]), np.ascontiguousarray(expected[:, others]))
    assert_same(y[0], expected[0])
    assert np.isnan(y[1:, 2]).all()


def test_rows_of_nothing_and_next_to_nothing() -> None:
    layer = fr.LSTM(3, 5, seed=0)
    layer.parameters["weight_hh_l0"][2] = 0
    runner = layer.freeze(weights="int8")
    y, _ = runner(np.zeros((2, 1, 3), F))
    for small in (1e-40, 1e-35):
        assert_same(runner(np.full((2, 1, 3), small, F))[0], y)
    assert np.isfinite(runner(np.full((2, 1, 3), 3e38, F))[0]).all()


@pytest.mark.parametrize("case", small_cases(dtype="float32", num_layers=2, directions=2, hidden_size=17))
def test_out_pickles_and_copies(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    runner = layer.freeze(weights="int8")
    expected = runner(inputs.x, inputs.state)
    buffer, out = guarded(expected[0].shape, "float32")
    found = runner(inputs.x, inputs.state, out=out)
    assert found[0] is out
    assert_same(found, expected)
    assert_guards_untouched(buffer, out)
    again = pickle.loads(pickle.dumps(runner))
    assert copy.deepcopy(runner) is runner
    assert repr(again) == repr(runner) == f"{layer!r}.freeze(weights='int8')"
    for array in layer.parameters.values():
        array[...] = np.nan
    assert_same(again(inputs.x, inputs.state), expected)
    assert again.nbytes == runner.nbytes < layer.freeze().nbytes


def test_stepper_keeps_and_resets_its_state(rng: np.random.Generator) -> None:
    layer = fr.GRU(5, 9, 2, seed=0)
    layer.initial_state = rng.uniform(-1, 1, (2, 1, 9)).astype(F)
    stepper, x = layer.stream(3, weights="int8"), rng.standard_normal((3, 5)).astype(F)
    first = stepper.step(x)
    buffer, out = guarded((3, 9), "float32")
    stepper.reset([0, 2])
    again = stepper.step(x, out=out)
    assert again is out
    assert_same(again[[0, 2]], first[[0, 2]])
    assert (again[1] != first[1]).any()
    assert_guards_untouched(buffer, out)


def test_weights_that_8_bits_hold_are_kept(rng: np.random.Generator) -> None:
    """Whatever the scale, and however far from 127 a row's largest integer is."""
    layer = fr.LSTM(64, 64, seed=0)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        integers = rng.integers(-128, 128, (256, 64)) // rng.integers(1, 60, (256, 1))
        layer.parameters[name][...] = integers.astype(F) * rng.uniform(1e-4, 1e-3, (256, 1)).astype(F)
    x = rng.uniform(-1, 1, (20, 1, 64)).astype(F)
    # 16 bits of x and h; of requantised weights it would be a hundred times as much.
    np.testing.assert_allclose(layer.freeze(weights="int8")(x)[0], layer(x)[0], rtol=0, atol=2e-5)


# Arguments


@pytest.mark.parametrize(
    "make", [lambda layer, weights: layer.freeze(weights=weights), lambda layer, weights: layer.stream(1, weights)]
)
def test_bad_weights(make: Any) -> None:
    with raises(ValueError, "weights"):
        make(fr.LSTM(3, 5), "int4")
    with raises(TypeError, "weights"):
        make(fr.LSTM(3, 5), 8)
    with raises(TypeError, "weights"):
        make(fr.LSTM(3, 5, dtype="float64"), "int8")
    for bad in (np.nan, np.inf):
        layer = fr.GRU(3, 5, 2)
        layer.parameters["weight_hh_l1"][3, 2] = bad
        with raises(ValueError, "weights"):
            make(layer, "int8")


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("name", ["x", "out"])
def test_arrays(name: str, how: str) -> None:
    spoil, error = SPOILED[how]
    arguments = {"x": np.zeros((4, 3, 2), F), "out": np.zeros((4, 3, 5), F)}
    arguments[name] = spoil(arguments[name])
    with raises(error, name):
        fr.LSTM(2, 5, seed=0).freeze(weights="int8")(**arguments)


def test_bytes_of_another_layer_are_refused() -> None:
    one, other = (fr.LSTM(3, size, seed=0)._engine for size in (5, 17))
    kept = one.unfreeze(one.freeze(fr.LSTM(3, 5).parameters, True))
    with raises(ValueError, "parameters"):
        other.freeze(kept, True)
    with raises(TypeError, "parameters"):
        one.freeze([1], True)


def test_info_names_the_instruction() -> None:
    isa, instruction = fr.info()["int8"].split(": ")
    assert isa in _core.int8_isas()
    assert (instruction == "vpdpbusd") == isa.endswith("vnni")

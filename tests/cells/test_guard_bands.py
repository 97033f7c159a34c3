"""What a call writes: all of its results and nothing else. What it reads: nothing but what it should."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from bitwise import assert_same, copied, threads
from cases import LAYERS, Case, make_inputs, make_layer, small_cases
from guards import GUARD, assert_guards_untouched, guarded, guarded_gradients, poison, spoil_buffers
from oracles import as_tuple, run_library

import fusedrnn as fr

CASES = [
    *small_cases(dtype="float32", ragged=True),
    *small_cases(dtype="float64", num_layers=2, directions=2, hidden_size=17, reset=True),
    *small_cases(dtype="float32", batch=13, hidden_size=64, directions=2, ragged=True, reset=True),
    *small_cases(dtype="bfloat16", num_layers=2, directions=2, hidden_size=17, ragged=True),
]
LARGE = [
    case
    for dtype in ("float32", "bfloat16")
    for case in small_cases(dtype=dtype, time=40, batch=13, hidden_size=70, num_layers=2, directions=2, ragged=True)
]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_out_is_filled_and_its_surroundings_are_not(
    case: Case, batch_first: bool, count: int, rng: np.random.Generator
) -> None:
    layer, inputs = make_layer(case, batch_first=batch_first), make_inputs(case, rng)
    if batch_first:
        inputs = dataclasses.replace(
            inputs, x=inputs.x.swapaxes(0, 1), reset=None if inputs.reset is None else inputs.reset.swapaxes(0, 1)
        )
    expected = layer(inputs.x, inputs.state, **inputs.sequence_options())
    with threads(count):
        for run in (layer, layer.forward):
            buffer, out = guarded(expected[0].shape, case.dtype)
            y, state = run(inputs.x, inputs.state, out=out, **inputs.sequence_options())[:2]
            assert y is out
            assert_same((y, state), expected)
            assert_guards_untouched(buffer, out)


@pytest.mark.parametrize("case", CASES[:8])
def test_out_may_run_backwards(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    expected = run_library(layer, inputs)
    buffer, view = guarded(expected.y.shape, case.dtype)
    y, _, tape = layer.forward(inputs.x, inputs.state, out=view[::-1, ::-1], **inputs.sequence_options())
    grads = layer.backward(tape, inputs.dy, inputs.dstate)
    assert_same((y, grads.parameters), (expected.y, expected.parameters))
    assert_guards_untouched(buffer, view)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_added_to_and_their_surroundings_are_not(
    case: Case, count: int, rng: np.random.Generator
) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    expected = run_library(layer, inputs)
    buffers, gradients = guarded_gradients(layer)
    arrays = dict(gradients)
    _, _, tape = layer.forward(inputs.x, inputs.state, **inputs.sequence_options())
    with threads(count):
        given = fr.Gradients(expected.dx, expected.dstate, gradients)
        grads = layer.backward(tape, inputs.dy, inputs.dstate, grads=given)
    assert_same(grads.parameters, expected.parameters)
    for name, buffer in buffers.items():
        assert grads.parameters[name] is arrays[name]
        bands = np.concatenate([buffer[:GUARD], buffer[-GUARD:]])
        assert_same(bands, poison(bands.shape, bands.dtype), name)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("case", LARGE)
def test_nothing_is_read_from_a_reused_buffer(case: Case, count: int, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    expected = run_library(layer, inputs)
    # A ragged row read past its length meets what the whole sequence left there.
    whole = dataclasses.replace(inputs, lengths=None)
    with threads(count):
        for spoiled in (inputs, whole):
            spoil_buffers(layer, spoiled)
            assert_same(run_library(layer, inputs), expected)


@pytest.mark.parametrize("case", LARGE)
def test_gradients_are_zero_where_no_row_runs(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    spoil_buffers(layer, inputs)
    empty = dataclasses.replace(inputs, lengths=np.zeros(case.batch, np.int64))
    for gradient in run_library(layer, empty).parameters.values():
        assert_same(gradient, np.zeros_like(gradient))


@pytest.mark.parametrize("filler", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("case", small_cases(dtype="float32", num_layers=2, directions=2, ragged=True, reset=True))
def test_padding_influences_nothing(case: Case, filler: float, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    assert inputs.lengths is not None and inputs.reset is not None
    beyond = np.arange(case.time)[:, None] >= inputs.lengths
    inputs.x[beyond] = inputs.dy[beyond] = 0
    expected = run_library(layer, inputs)
    inputs.x[beyond] = inputs.dy[beyond] = filler
    inputs.reset[beyond] = ~inputs.reset[beyond]
    result = run_library(layer, inputs)
    assert_same(result, expected)
    assert not result.y[beyond].any() and not result.dx[beyond].any()


@pytest.mark.parametrize("case", small_cases(dtype="float32", num_layers=2, hidden_size=17, reset=True))
def test_nothing_passes_a_cut_link(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    assert inputs.reset is not None
    # Row 1 starts afresh at step 0, row 2 at step 3.
    inputs.reset[0, 1] = inputs.reset[3, 2] = True
    clean = run_library(layer, inputs)
    for state in as_tuple(inputs.state):
        state[:, 1] = np.nan
    inputs.x[:3, 2] = np.nan
    result = run_library(layer, inputs)
    assert_same((result.y[:, 1], result.dx[:, 1]), (clean.y[:, 1], clean.dx[:, 1]))
    assert_same((result.y[3:, 2], result.dx[3:, 2]), (clean.y[3:, 2], clean.dx[3:, 2]))
    assert np.isnan(result.y[:3, 2]).all()
    for dstate in as_tuple(result.dstate):
        assert not dstate[:, 1].any()


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("case", small_cases(dtype="float32", num_layers=2, batch=13, directions=2, ragged=True))
def test_a_nan_stays_in_its_row(case: Case, count: int, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    assert inputs.lengths is not None
    clean = run_library(layer, inputs)
    row = int(inputs.lengths.argmax())
    inputs.x[0, row] = np.nan
    with threads(count):
        result = run_library(layer, inputs)
    assert np.isnan(result.y[0, row]).any()
    for ours, expected in ((result.y, clean.y), (result.dx, clean.dx), (result.state, clean.state)):
        for a, b in zip(as_tuple(ours), as_tuple(expected), strict=True):
            assert_same(np.delete(a, row, 1), np.delete(b, row, 1))


def overwrite(array: np.ndarray) -> None:
    array[...] = ~array if array.dtype == bool else 1


@pytest.mark.parametrize("what", ["lengths", "reset", "state", "final state"])
@pytest.mark.parametrize("case", small_cases(dtype="float32", directions=2, ragged=True, reset=True))
def test_the_tape_keeps_what_it_does_not_refer_to(case: Case, what: str, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    expected = run_library(layer, inputs)
    _, state, tape = layer.forward(inputs.x, inputs.state, **inputs.sequence_options())
    chosen = {"lengths": inputs.lengths, "reset": inputs.reset, "state": inputs.state, "final state": state}[what]
    for array in as_tuple(chosen):
        overwrite(array)
    grads = layer.backward(tape, inputs.dy, inputs.dstate)
    assert_same((grads.x, grads.state, grads.parameters), (expected.dx, expected.dstate, expected.parameters))


@pytest.mark.parametrize("case", CASES)
def test_inputs_are_not_written(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    before = copied(dataclasses.asdict(inputs)), copied(layer.parameters)
    run_library(layer, inputs)
    layer(inputs.x, inputs.state, **inputs.sequence_options())
    assert_same((dataclasses.asdict(inputs), layer.parameters), before)


@pytest.mark.parametrize("case", CASES)
def test_read_only_inputs_will_do(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    expected = run_library(layer, inputs)
    for array in (inputs.x, inputs.dy, inputs.lengths, inputs.reset, *as_tuple(inputs.state)):
        if array is not None:
            array.flags.writeable = False
    for array in (*as_tuple(inputs.dstate), *layer.parameters.values()):
        array.flags.writeable = False
    assert_same(run_library(layer, inputs), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", LAYERS)
def test_results_share_no_memory(cell: str, dtype: str, rng: np.random.Generator) -> None:
    case = Case(cell, 2, 2, dtype, 0 if dtype == "float64" else 3)
    layer, inputs = make_layer(case), make_inputs(case, rng)
    y, state, tape = layer.forward(inputs.x, inputs.state)
    grads = layer.backward(tape, inputs.dy, inputs.dstate)
    given = [inputs.x, inputs.dy, *as_tuple(inputs.state), *as_tuple(inputs.dstate), *layer.parameters.values()]
    results = [y, *as_tuple(state), grads.x, *as_tuple(grads.state), *grads.parameters.values()]
    for number, array in enumerate(results):
        assert array.flags.writeable
        assert not any(np.shares_memory(array, other) for other in given + results[:number])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_linear_cross_entropy_writes_no_input(dtype: str, rng: np.random.Generator) -> None:
    x, weight = rng.standard_normal((5, 7)).astype(dtype), rng.standard_normal((19, 7)).astype(dtype)
    bias, targets = rng.standard_normal(19).astype(dtype), rng.integers(0, 19, 5)
    before = copied((x, weight, bias, targets))
    loss, tape = fr.linear_cross_entropy_forward(x, weight, bias, targets)
    expected = fr.linear_cross_entropy_backward(tape)
    assert_same((x, weight, bias, targets), before)
    targets[...] = 0
    assert_same(fr.linear_cross_entropy_backward(tape), expected)
    assert np.isfinite(loss)

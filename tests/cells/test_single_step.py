"""Calls of one step, which read the weights unpacked: the bits of the step within a longer sequence."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from bitwise import assert_same, threads
from cases import CLIP, LAYERS, SIZES, Case, make_clear_inputs, make_inputs, make_layer, small_cases
from guards import GUARD, assert_guards_untouched, guarded, guarded_gradients, poison, spoil_buffers
from isa_process import run_on
from oracles import Result, as_tuple, run_library
from rounding import assert_matches_reference
from rows import make_cell, row_of, rows

import fusedrnn as fr
from fusedrnn import _core


def shaped_cases() -> list[Case]:
    """Every cell and dtype at every H and numbers of rows on both sides of where packing begins to pay."""
    cases = []
    for cell, dtype in itertools.product(LAYERS, ("float32", "float64")):
        for turn, (batch, hidden) in enumerate(itertools.product((1, 2, 3, 5, 8, 13, 33), SIZES)):
            shift = turn + len(cases) // 35
            inputs, layers, directions = SIZES[(shift + turn // 5) % 5], 1 + shift % 3, 1 + shift % 2
            cases.append(Case(cell, layers, directions, dtype, 3, batch, inputs, hidden))
        cases += [Case(cell, 1, 1, dtype, 2, 1, 31, 520), Case(cell, 2, 2, dtype, 2, 6, 65, 150)]
        cases += [Case(cell, 2, 2, dtype, 3, 3, 7, 17, clip=CLIP)]
    return cases


CASES = shaped_cases()


def assert_single_steps_equal_the_sequence(case: Case) -> None:
    """One direction: call after call against the whole sequence. Both: a sequence of one against its training pass."""
    layer, inputs = make_layer(case), make_inputs(case, np.random.default_rng(case.seed))
    for count in (1, 2, 3):
        with threads(count):
            if case.directions == 2:
                expected = layer.forward(inputs.x[:1], inputs.state)[:2]
                assert_same(layer(inputs.x[:1], inputs.state), expected, f"{case.id}, {count} threads")
                continue
            state, outputs = inputs.state, []
            for t in range(case.time):
                y, state = layer(inputs.x[t : t + 1], state)
                outputs.append(y)
            result = np.concatenate(outputs), state
        assert_same(result, layer(inputs.x, inputs.state), f"{case.id}, {count} threads")


@pytest.mark.parametrize("case", CASES)
def test_single_steps_equal_the_sequence(case: Case) -> None:
    assert_single_steps_equal_the_sequence(case)


def assert_training_steps_equal_the_sequence(case: Case) -> None:
    """One direction: steps trained one by one, and back, against the whole. Both: every row of a step by itself."""
    layer, inputs = make_layer(case), make_inputs(case, np.random.default_rng(case.seed))
    first = dataclasses.replace(inputs, x=inputs.x[:1], dy=inputs.dy[:1])
    expected = run_library(layer, first if case.directions == 2 else inputs)
    for count in (1, 2, 3):
        with threads(count):
            if case.directions == 2:
                assert_same(run_library(layer, first), expected, f"{case.id}, {count} threads")
                continue
            state, tapes, outputs = inputs.state, [], []
            for x in fr.tbptt_windows(inputs.x, window=1):
                y, state, tape = layer.forward(x, state)
                outputs.append(y)
                tapes.append(tape)
            grads, dstate, dx = None, inputs.dstate, []
            for tape, dy in zip(reversed(tapes), reversed(list(fr.tbptt_windows(inputs.dy, window=1))), strict=True):
                grads = layer.backward(tape, dy, dstate, grads=grads)
                dstate = grads.state
                dx.insert(0, grads.x)
            assert grads is not None
            result = Result(np.concatenate(outputs), state, np.concatenate(dx), dstate, grads.parameters)
        assert_same(result, expected, f"{case.id}, {count} threads")


def assert_rows_are_the_batchs(case: Case) -> None:
    """A row of a step that packs its weights, and the same one alone, which does not."""
    layer, inputs = make_layer(case), make_inputs(dataclasses.replace(case, time=1), np.random.default_rng(case.seed))
    whole = run_library(layer, inputs)
    for row in (0, case.batch // 2, case.batch - 1):
        assert_same(row_of(run_library(layer, rows(inputs, row, 1)), 0, 1), row_of(whole, row, 1), f"{case.id}, {row}")


@pytest.mark.parametrize("case", CASES)
def test_training_steps_equal_the_sequence(case: Case) -> None:
    assert_training_steps_equal_the_sequence(case)


@pytest.mark.parametrize("case", [case for case in CASES if case.batch == 33])
def test_a_row_of_a_step_alone_or_in_a_batch(case: Case) -> None:
    assert_rows_are_the_batchs(case)


RUN_CASES = """
import test_single_step as t
for case in t.CASES:
    t.assert_single_steps_equal_the_sequence(case)
    t.assert_training_steps_equal_the_sequence(case)
    t.assert_rows_are_the_batchs(case)
"""


@pytest.mark.parametrize("isa", [isa for isa in _core.isas() if isa != _core.isa()])
def test_single_steps_equal_the_sequence_on_every_other_instruction_set(isa: str) -> None:
    run_on(isa, RUN_CASES, __file__)


@pytest.mark.parametrize("case", [case for case in CASES if case.num_layers == case.directions == 1])
def test_cells(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    cell, state = make_cell(case, layer), None
    expected, final = layer(inputs.x)
    for x, y in zip(inputs.x, expected, strict=True):
        state = cell(x, state)
        assert_same(as_tuple(state)[0], y)
    assert_same(as_tuple(state), tuple(half[0] for half in as_tuple(final)))


@pytest.mark.parametrize("options", [{"bias": False}, {"batch_first": True}])
@pytest.mark.parametrize("case", small_cases(dtype="float32", num_layers=2, directions=2, time=1))
def test_strided_arrays_and_their_surroundings(case: Case, options: dict[str, Any], rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case, **options), make_inputs(case, rng)
    x = inputs.x.swapaxes(0, 1) if layer.batch_first else inputs.x
    expected = layer.forward(x, inputs.state)[:2]
    x_buffer, x_view = guarded(x.shape, case.dtype)
    x_view[...] = x
    views = [guarded(half.shape, case.dtype)[1] for half in as_tuple(inputs.state)]
    for view, half in zip(views, as_tuple(inputs.state), strict=True):
        view[...] = half
    out_buffer, out = guarded(expected[0].shape, case.dtype)
    y, state = layer(x_view, tuple(views) if case.two_states else views[0], out=out)
    assert y is out
    assert_same((y, state), expected)
    assert_guards_untouched(out_buffer, out)
    assert_guards_untouched(x_buffer, x_view)


@pytest.mark.parametrize("case", small_cases(dtype="float32", num_layers=2, time=1))
def test_the_zero_state_meets_the_weights(case: Case, rng: np.random.Generator) -> None:
    # Zero times infinity is nan, in a call that packs and in one that does not.
    layer, inputs = make_layer(case), make_inputs(case, rng)
    layer.parameters["weight_hh_l0"][0, 0] = np.inf
    y = layer(inputs.x)[0]
    assert np.isnan(y).any()
    assert_same(np.isnan(y), np.isnan(layer.forward(inputs.x)[0]))


@pytest.mark.parametrize("case", small_cases(dtype="float32", time=1))
def test_lengths_and_resets_of_one_step(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    plain, state = layer(inputs.x, inputs.state)
    assert_same(layer(inputs.x, inputs.state, lengths=[1] * case.batch), (plain, state))
    assert_same(layer(inputs.x, inputs.state, reset=np.ones((1, case.batch), bool))[0], layer(inputs.x)[0])
    y = layer(inputs.x, inputs.state, lengths=[0, 1, 1, 1])[0]
    assert not y[:, 0].any()
    assert_same(y[:, 1:], plain[:, 1:])


TRAINED = [
    Case(cell, layers, directions, dtype, 1, batch, inputs, hidden, *flags)
    for number, cell in enumerate(LAYERS)
    for turn, (layers, directions, batch, inputs, hidden) in enumerate(
        [(1, 1, 1, 17, 64), (2, 2, 3, 64, 17), (1, 2, 13, 7, 48), (2, 1, 25, 33, 7), (1, 1, 40, 16, 33)]
    )
    for dtype, flags in zip(
        ("float32", "float64"), [((), (True, True)), ((True,), (False, True))][(number + turn) % 2], strict=True
    )
]


@pytest.mark.parametrize("case", TRAINED)
def test_training_one_step_against_the_reference(case: Case, rng: np.random.Generator) -> None:
    layer = make_layer(case)
    inputs = make_clear_inputs(case, layer.parameters, rng)
    assert_matches_reference(run_library(layer, inputs), case, layer.parameters, inputs)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("case", TRAINED)
def test_training_one_step_reads_and_writes_nothing_else(case: Case, count: int, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    expected = run_library(layer, inputs)
    buffers, gradients = guarded_gradients(layer)
    with threads(count):
        spoil_buffers(layer, inputs)
        assert_same(run_library(layer, inputs), expected)
        buffer, out = guarded(expected.y.shape, case.dtype)
        y, state, tape = layer.forward(inputs.x, inputs.state, out=out, **inputs.sequence_options())
        given = fr.Gradients(expected.dx, expected.dstate, gradients)
        grads = layer.backward(tape, inputs.dy, inputs.dstate, grads=given)
    assert_same((y, state, grads.x, grads.state, grads.parameters), tuple(expected))
    assert_guards_untouched(buffer, out)
    for name, padded in buffers.items():
        bands = np.concatenate([padded[:GUARD], padded[-GUARD:]])
        assert_same(bands, poison(bands.shape, bands.dtype), name)


@pytest.mark.parametrize("case", small_cases(dtype="float32", num_layers=3, time=1, directions=2))
def test_dropout_between_layers_of_one_step(case: Case, rng: np.random.Generator) -> None:
    # A call that recomputes packs its weights.
    inputs = make_inputs(case, rng)
    tapes = [(layer := make_layer(case, dropout=0.5), *layer.forward(inputs.x, recompute=k)) for k in (None, 1)]
    ours, theirs = ((y, state, layer.backward(tape, inputs.dy)) for layer, y, state, tape in tapes)
    assert_same(ours, theirs)

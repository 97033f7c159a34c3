"""Bitwise equality: what a result must not depend on, by the engine's fixed order of summation."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest
from bitwise import assert_same, threads
from cases import CLIP, LAYERS, Case, Inputs, make_inputs, make_layer
from isa_process import run_on
from oracles import Result, run_library
from rows import make_cell, row_of, rows

import fusedrnn as fr
from fusedrnn import _core

# (layers, directions, T, B, I, H), so that over the cells every size meets every other. With these the split
# rule gives a team rows alone, units alone, and a grid of both; H fills no, one and many blocks of 16; the last shape
# takes several chunks of time.
SHAPES = (
    (1, 1, 6, 33, 17, 129),
    (2, 2, 5, 13, 3, 64),
    (1, 1, 5, 1, 7, 129),
    (1, 2, 7, 5, 1, 17),
    (1, 1, 5, 6, 5, 150),
    (2, 1, 6, 13, 4, 7),
    (2, 2, 4, 33, 5, 1),
    (1, 1, 130, 5, 3, 16),
)


def shaped_cases() -> list[Case]:
    """Every cell at every shape, in one dtype or the other; ragged, reset, both or neither by turns."""
    cases = []
    for cell in LAYERS:
        for layers, directions, time, batch, inputs, hidden in SHAPES:
            turn = len(cases) + len(cases) // len(SHAPES)
            flags = (turn // 2 % 2 == 1, turn // 4 % 2 == 1)
            dtype = ("float32", "float64")[turn % 2]
            cases.append(Case(cell, layers, directions, dtype, time, batch, inputs, hidden, *flags))
        cases.append(dataclasses.replace(cases[-1], clip=CLIP))
    return cases


CASES = shaped_cases()
# Every cell at two of the shapes. Between steps a bfloat16 layer keeps the gradient of h in float32, and its sums of
# gradients are rounded at the end of a call: those of windows and cells, which are rounded more often, have other bits.
BFLOAT16 = [
    dataclasses.replace(CASES[k], cell=cell, dtype="bfloat16")
    for turn, cell in enumerate(LAYERS)
    for k in ((turn + 4) % len(SHAPES), len(SHAPES) + 1 + (turn * 3) % len(SHAPES))
]
EVERY = CASES + BFLOAT16
ONE_WAY = [case for case in CASES if case.directions == 1 and not case.ragged]


@pytest.mark.parametrize("case", EVERY)
def test_any_number_of_threads(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    with threads(1):
        expected = run_library(layer, inputs)
    for count in (2, 3, 4, 5):
        with threads(count):
            assert_same(run_library(layer, inputs), expected, f"{count} threads")


@pytest.mark.parametrize("case", EVERY)
def test_a_row_alone_or_in_a_batch_padded_or_not(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    whole = run_library(layer, inputs)
    for row in range(0, case.batch, 1 + case.batch // 8):
        steps = case.time if inputs.lengths is None else int(inputs.lengths[row])
        alone = run_library(layer, rows(inputs, row, steps))
        assert_same(row_of(alone, 0, steps), row_of(whole, row, steps), f"row {row}")


def lengthened(inputs: Inputs, steps: int) -> Inputs:
    """The same sequences with more padding, of nan; a whole batch comes to have lengths."""

    def more(array: np.ndarray, filler: Any) -> np.ndarray:
        padding = np.full((steps, *array.shape[1:]), filler, array.dtype)
        return np.concatenate([array, padding])

    time, batch = inputs.x.shape[:2]
    lengths = np.full(batch, time) if inputs.lengths is None else inputs.lengths
    reset = None if inputs.reset is None else more(inputs.reset, True)
    x, dy = more(inputs.x, np.nan), more(inputs.dy, np.nan)
    return Inputs(x, inputs.state, lengths, reset, dy, inputs.dstate)


@pytest.mark.parametrize("case", EVERY)
def test_any_amount_of_padding(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    expected = run_library(layer, inputs)
    result = run_library(layer, lengthened(inputs, 3))
    assert not result.y[case.time :].any() and not result.dx[case.time :].any()
    # Weight gradients too: padding adds no term.
    assert_same(result._replace(y=result.y[: case.time], dx=result.dx[: case.time]), expected)


@pytest.mark.parametrize("window", [1, 2, 5])
@pytest.mark.parametrize("case", ONE_WAY)
def test_in_windows_or_whole(case: Case, window: int, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    expected = run_library(layer, inputs)
    state, tapes, outputs = inputs.state, [], []
    resets = np.zeros((case.time, case.batch), bool) if inputs.reset is None else inputs.reset
    for x, reset in fr.tbptt_windows(inputs.x, resets, window=window):
        y, state, tape = layer.forward(x, state, reset=reset)
        outputs.append(y)
        tapes.append(tape)
    grads, dstate, dx = None, inputs.dstate, []
    for tape, dy in reversed(list(zip(tapes, fr.tbptt_windows(inputs.dy, window=window), strict=True))):
        grads = layer.backward(tape, dy, dstate, grads=grads)
        dstate = grads.state
        dx.insert(0, grads.x)
    assert grads is not None
    whole = Result(np.concatenate(outputs), state, np.concatenate(dx), dstate, grads.parameters)
    assert_same(whole, expected)


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("case", ONE_WAY + [c for c in BFLOAT16 if c.directions == 1 and not c.ragged])
def test_inference_in_windows_or_whole(case: Case, window: int, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    expected = layer.forward(inputs.x, inputs.state)[:2]
    assert_same(layer(inputs.x, inputs.state), expected, "whole")
    state, outputs = inputs.state, []
    for x in fr.tbptt_windows(inputs.x, window=window):
        y, state = layer(x, state)
        outputs.append(y)
    assert_same((np.concatenate(outputs), state), expected, "windows")


@pytest.mark.parametrize("case", EVERY)
def test_inference_or_training(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    expected = layer.forward(inputs.x, inputs.state, **inputs.sequence_options())[:2]
    assert_same(layer(inputs.x, inputs.state, **inputs.sequence_options()), expected)


def cell_state(state: Any) -> Any:
    return tuple(part[0] for part in state) if isinstance(state, tuple) else state[0]


def added(dstate: Any, dy: np.ndarray) -> Any:
    """The gradient of a step's new state, with that of its output: y is h."""
    return (dstate[0] + dy, dstate[1]) if isinstance(dstate, tuple) else dstate + dy


@pytest.mark.parametrize("cell", LAYERS)
def test_cells_step_as_layers_do_in_bfloat16(cell: str, rng: np.random.Generator) -> None:
    case = Case(cell, 1, 1, "bfloat16", 5, 7, 17, 33)
    layer, inputs = make_layer(case), make_inputs(case, rng)
    expected, final = layer(inputs.x, inputs.state)
    stepping, state = make_cell(case, layer), cell_state(inputs.state)
    for x, y in zip(inputs.x, expected, strict=True):
        called = stepping(x, state)
        state = stepping.forward(x, state)[0]
        assert_same(called, state, "called or run in training")
        assert_same(state[0] if case.two_states else state, y, "h")
    assert_same(state, cell_state(final))


@pytest.mark.parametrize("case", [case for case in CASES if case.num_layers == case.directions == 1])
def test_cells_step_as_layers_do(case: Case, rng: np.random.Generator) -> None:
    plain = dataclasses.replace(case, ragged=False, reset=False)
    layer, inputs = make_layer(plain), make_inputs(plain, rng)
    expected = run_library(layer, inputs)
    cell, state, tapes = make_cell(plain, layer), cell_state(inputs.state), []
    for t, x in enumerate(inputs.x):
        called = cell(x, state)
        state, tape = cell.forward(x, state)
        tapes.append(tape)
        assert_same(called, state, "called or run in training")
        assert_same(state[0] if plain.two_states else state, expected.y[t], "h")
    grads, dstate, dx = None, cell_state(inputs.dstate), []
    for t in reversed(range(plain.time)):
        grads = cell.backward(tapes[t], added(dstate, inputs.dy[t]), grads=grads)
        dstate = grads.state
        dx.insert(0, grads.x)
    assert grads is not None
    parameters = {name + "_l0": array for name, array in grads.parameters.items()}
    results = (state, np.stack(dx), dstate, parameters)
    assert_same(results, (cell_state(expected.state), expected.dx, cell_state(expected.dstate), expected.parameters))


def swapped(array: np.ndarray | None) -> Any:
    return None if array is None else np.ascontiguousarray(array.swapaxes(0, 1))


@pytest.mark.parametrize("case", EVERY)
def test_batch_first_or_time_major(case: Case, rng: np.random.Generator) -> None:
    inputs = make_inputs(case, rng)
    expected = run_library(make_layer(case), inputs)
    turned = dataclasses.replace(inputs, x=swapped(inputs.x), dy=swapped(inputs.dy), reset=swapped(inputs.reset))
    result = run_library(make_layer(case, batch_first=True), turned)
    assert_same(result._replace(y=swapped(result.y), dx=swapped(result.dx)), expected)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("case", [dataclasses.replace(case, batch=1, ragged=False) for case in EVERY])
def test_unbatched_or_a_batch_of_one(case: Case, batch_first: bool, rng: np.random.Generator) -> None:
    inputs = make_inputs(case, rng)
    expected = run_library(make_layer(case), inputs)

    def single(state: Any) -> Any:
        return tuple(part[:, 0] for part in state) if isinstance(state, tuple) else state[:, 0]

    reset = None if inputs.reset is None else inputs.reset[:, 0]
    unbatched = Inputs(inputs.x[:, 0], single(inputs.state), None, reset, inputs.dy[:, 0], single(inputs.dstate))
    result = run_library(make_layer(case, batch_first=batch_first), unbatched)
    y, dx = expected.y[:, 0], expected.dx[:, 0]
    assert_same(result, Result(y, single(expected.state), dx, single(expected.dstate), expected.parameters))


ISA_CASES = CASES[::2] + CASES[1::4] + BFLOAT16[::3]

RUN_CASES = """
import sys
import numpy as np
import test_invariance as t
from bitwise import leaves
arrays = {}
for case in t.ISA_CASES:
    result = t.run_library(t.make_layer(case), t.make_inputs(case, np.random.default_rng(case.seed)))
    arrays.update(leaves(result, case.id))
np.savez(sys.argv[1], **arrays)
"""


def results_on(isa: str, folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Results of every case of ISA_CASES, computed by a process that was told its instruction set."""
    path = folder / f"{isa}.npz"
    run_on(isa, RUN_CASES, __file__, str(path))
    with np.load(path) as arrays:
        return dict(arrays)


def test_recurrences_on_v3_or_v4(tmp_path: pathlib.Path) -> None:
    for isa in ("x86-64-v3", "x86-64-v4"):
        if isa not in _core.isas():
            pytest.skip(f"this processor does not run {isa}")
    assert_same(results_on("x86-64-v3", tmp_path), results_on("x86-64-v4", tmp_path))

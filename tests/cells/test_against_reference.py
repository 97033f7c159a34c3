"""Every cell of the compiled library, forward and backward, against the NumPy reference."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from cases import (
    BFLOAT16_CASES,
    CASES,
    EMPTY_CASES,
    LAYERS,
    Case,
    Inputs,
    assert_close,
    make_clear_inputs,
    make_layer,
)
from cases import small_cases as small
from oracles import Result, as_tuple, assert_results_close, map_result, run_library, run_reference
from rounding import assert_matches_reference, error_bounds

import fusedrnn as fr
from fusedrnn import reference

GATED = small(num_layers=2, directions=2, ragged=True, reset=True)
# relu's kinks are hard to keep away from in a coarse type.
COARSE = [case for case in small(num_layers=2, dtype="bfloat16", ragged=True, reset=True) if case.cell != "rnn_relu"]


def test_every_registered_cell_has_a_reference_and_cases() -> None:
    registered = set(fr.info()["cells"])
    assert registered == set(reference.cells) == set(LAYERS)
    assert registered == {case.cell for case in CASES}


EVERY = CASES + EMPTY_CASES + BFLOAT16_CASES


@pytest.mark.parametrize("case", EVERY)
def test_every_output_and_gradient(case: Case, rng: np.random.Generator) -> None:
    layer = make_layer(case)
    inputs = make_clear_inputs(case, layer.parameters, rng)
    ours = run_library(layer, inputs)
    states = as_tuple(ours.state), as_tuple(ours.dstate)
    for array in (ours.y, ours.dx, *(h for h, *_ in states), *ours.parameters.values()):
        assert array.dtype == case.dtype
    assert all(c.dtype == case.sums for _, *rest in states for c in rest)
    assert_matches_reference(ours, case, layer.parameters, inputs)


@pytest.mark.parametrize("case", EVERY)
def test_inference_computes_what_training_computes(case: Case, rng: np.random.Generator) -> None:
    layer = make_layer(case, dropout=0.0)
    inputs = make_clear_inputs(case, layer.parameters, rng)
    y, state = layer(inputs.x, inputs.state, **inputs.sequence_options())
    trained_y, trained_state, _ = layer.forward(inputs.x, inputs.state, **inputs.sequence_options())
    np.testing.assert_array_equal(y, trained_y)
    for a, b in zip(as_tuple(state), as_tuple(trained_state), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("case", GATED + COARSE)
def test_a_missing_state_is_zero(case: Case, rng: np.random.Generator) -> None:
    layer = make_layer(case)
    inputs = make_clear_inputs(case, layer.parameters, rng)
    absent = dataclasses.replace(inputs, state=None, dstate=None)
    assert_matches_reference(run_library(layer, absent), case, layer.parameters, absent)


@pytest.mark.parametrize("case", GATED + COARSE)
def test_a_missing_dy_is_zero(case: Case, rng: np.random.Generator) -> None:
    layer = make_layer(case)
    inputs = make_clear_inputs(case, layer.parameters, rng)
    absent = dataclasses.replace(inputs, dy=None)
    assert_matches_reference(run_library(layer, absent), case, layer.parameters, absent)


@pytest.mark.parametrize("case", [case for case in GATED + COARSE if case.two_states])
@pytest.mark.parametrize("half", [0, 1])
def test_half_of_dstate_may_be_missing(case: Case, half: int, rng: np.random.Generator) -> None:
    layer = make_layer(case)
    inputs = make_clear_inputs(case, layer.parameters, rng)
    kept = tuple(None if k == half else d for k, d in enumerate(inputs.dstate))
    absent = dataclasses.replace(inputs, dstate=kept)
    assert_matches_reference(run_library(layer, absent), case, layer.parameters, absent)


@pytest.mark.parametrize("case", GATED + COARSE)
def test_backward_accumulates_into_the_grads_it_is_given(case: Case, rng: np.random.Generator) -> None:
    layer = make_layer(case)
    inputs = make_clear_inputs(case, layer.parameters, rng)
    y, _, tape = layer.forward(inputs.x, inputs.state, **inputs.sequence_options())
    first = layer.backward(tape, inputs.dy, inputs.dstate)
    once = {name: gradient.copy() for name, gradient in first.parameters.items()}
    x_before = first.x.copy()
    second = layer.backward(tape, inputs.dy, inputs.dstate, grads=first)
    np.testing.assert_array_equal(first.x, x_before)
    np.testing.assert_array_equal(second.x, x_before)
    bounds = error_bounds(case, layer.parameters, inputs, other=case.dtype).parameters
    for name, gradient in once.items():
        assert second.parameters[name] is first.parameters[name]
        # The sum goes on from what is there: every partial sum, and so its rounding, is at most twice as large.
        assert_close(second.parameters[name], 2 * gradient, 2 * bounds[name], name)
    np.testing.assert_array_equal(y, layer(inputs.x, inputs.state, **inputs.sequence_options())[0])
    assert tape.nbytes > 0


@pytest.mark.parametrize("case", GATED + COARSE)
def test_backward_may_run_twice(case: Case, rng: np.random.Generator) -> None:
    layer = make_layer(case)
    inputs = make_clear_inputs(case, layer.parameters, rng)
    _, _, tape = layer.forward(inputs.x, inputs.state, **inputs.sequence_options())
    first = layer.backward(tape, inputs.dy, inputs.dstate)
    second = layer.backward(tape, inputs.dy, inputs.dstate)
    np.testing.assert_array_equal(first.x, second.x)
    for a, b in zip(as_tuple(first.state), as_tuple(second.state), strict=True):
        np.testing.assert_array_equal(a, b)
    for name in first.parameters:
        np.testing.assert_array_equal(first.parameters[name], second.parameters[name])


@pytest.mark.parametrize("case", GATED + COARSE)
def test_what_stands_beyond_a_length_influences_nothing(case: Case, rng: np.random.Generator) -> None:
    layer = make_layer(case)
    inputs = make_clear_inputs(case, layer.parameters, rng)
    poisoned = run_library(layer, inputs)
    plain = run_library(layer, dataclasses.replace(inputs, x=np.nan_to_num(inputs.x), dy=np.nan_to_num(inputs.dy)))
    for a, b in zip(poisoned, plain, strict=True):
        if isinstance(a, dict):
            a, b = tuple(a.values()), tuple(b.values())
        for left, right in zip(as_tuple(a), as_tuple(b), strict=True):
            np.testing.assert_array_equal(left, right)


def swapped(array: Any) -> np.ndarray:
    """The (B, T, ...) array of a (T, B, ...) one, or back, contiguous."""
    return np.ascontiguousarray(np.swapaxes(array, 0, 1))


@pytest.mark.parametrize("case", GATED)
def test_batch_first_swaps_x_y_and_reset_only(case: Case, rng: np.random.Generator) -> None:
    layer, flipped = make_layer(case), make_layer(case, batch_first=True)
    inputs = make_clear_inputs(case, layer.parameters, rng)
    turned = dataclasses.replace(inputs, x=swapped(inputs.x), dy=swapped(inputs.dy), reset=swapped(inputs.reset))
    expected, result = run_library(layer, inputs), run_library(flipped, turned)
    assert_results_close(result._replace(y=swapped(result.y), dx=swapped(result.dx)), expected)


@pytest.mark.parametrize("case", small(num_layers=2, directions=2, batch=1, reset=True))
def test_unbatched_is_a_batch_of_one(case: Case, rng: np.random.Generator) -> None:
    layer = make_layer(case)
    inputs = make_clear_inputs(case, layer.parameters, rng)

    def bare(state: Any) -> Any:
        parts = tuple(s[:, 0] for s in as_tuple(state))
        return parts if case.two_states else parts[0]

    alone = Inputs(inputs.x[:, 0], bare(inputs.state), None, inputs.reset[:, 0], inputs.dy[:, 0], bare(inputs.dstate))
    whole = run_library(layer, inputs)
    expected = Result(whole.y[:, 0], bare(whole.state), whole.dx[:, 0], bare(whole.dstate), whole.parameters)
    assert_results_close(run_library(layer, alone), expected)


def dropout_probe(case: Case, dropped: int, dropout: float) -> np.ndarray:
    """The mask that a layer of the case's seed multiplies onto layer `dropped` at its first training call.

    A relu network shows it: that layer puts out ones, whatever comes from below since its weights are zero, and the
    last layer, right above it, passes on what it is given. The hash knows nothing of cells or of layers to come.
    """
    relu = dataclasses.replace(case, cell="rnn_relu", num_layers=dropped + 2)
    layer = make_layer(relu, dropout=dropout, seed=case.seed)
    hidden = case.hidden_size
    for array in layer.parameters.values():
        array[...] = 0.0
    for direction, suffix in enumerate(("", "_reverse")[: case.directions]):
        layer.parameters[f"bias_ih_l{dropped}{suffix}"][...] = 1.0
        block = slice(direction * hidden, (direction + 1) * hidden)
        layer.parameters[f"weight_ih_l{dropped + 1}{suffix}"][:, block] = np.eye(hidden)
    y, _, _ = layer.forward(np.zeros((case.time, case.batch, case.input_size), case.dtype))
    return y


@pytest.mark.parametrize("case", small(num_layers=3, directions=2, reset=True, hidden_size=9) + COARSE)
def test_dropout_is_the_references_with_the_seeded_mask(case: Case, rng: np.random.Generator) -> None:
    dropout = 0.4
    masks = [dropout_probe(case, dropped, dropout) for dropped in range(case.num_layers - 1)]
    for mask in masks:
        kept = mask != 0
        assert_close(mask, kept / (1 - dropout), 2 * case.eps / (1 - dropout), "mask")
    layer = make_layer(case, dropout=dropout)
    inputs = make_clear_inputs(case, layer.parameters, rng)
    assert_matches_reference(run_library(layer, inputs), case, layer.parameters, inputs, masks)


def test_dropout_masks_are_fair_fresh_and_reproducible() -> None:
    case = Case("rnn_relu", time=40, batch=20, hidden_size=50)
    layers = [make_layer(dataclasses.replace(case, num_layers=2), dropout=0.25, seed=seed) for seed in (1, 1, 2)]
    for layer in layers:
        for array in layer.parameters.values():
            array[...] = 0.0
        layer.parameters["bias_ih_l0"][...] = 1.0
        layer.parameters["weight_ih_l1"][...] = np.eye(case.hidden_size)
    x = np.zeros((case.time, case.batch, case.input_size))
    first, second = (layers[0].forward(x)[0] for _ in range(2))
    np.testing.assert_array_equal(first, layers[1].forward(x)[0])
    np.testing.assert_array_equal(second, layers[1].forward(x)[0])
    other = layers[2].forward(x)[0]
    # A share of n fair draws strays from p by sqrt(p(1-p)/n) = 0.002; two fair masks agree in p² + (1-p)² of places.
    for mask in (first, second, other):
        assert np.mean(mask == 0) == pytest.approx(0.25, abs=0.01)
        for axis in range(3):
            share = np.mean(mask == 0, axis=tuple(k for k in range(3) if k != axis))
            assert np.all(np.abs(share - 0.25) < 0.1)
    for a, b in ((first, second), (first, other)):
        assert np.mean((a == 0) == (b == 0)) == pytest.approx(0.25**2 + 0.75**2, abs=0.01)
    np.testing.assert_array_equal(layers[0](x)[0], np.ones_like(first))


CELL_CLASSES = {name: (f"{kind}Cell", options) for name, (kind, options) in LAYERS.items()}


def one_step(
    case: Case, parameters: dict[str, np.ndarray], x: np.ndarray, state: Any, dstate: Any
) -> tuple[Result, Result]:
    """The reference's answer for one cell step, with the cell's parameter names, and its bounds."""
    named = {f"{name}_l0": value for name, value in parameters.items()}
    inputs = Inputs(x[None], lifted(state), None, None, None, lifted(dstate))
    return tuple(
        Result(
            result.y[0],
            tuple(s[0] for s in as_tuple(result.state)),
            result.dx[0],
            tuple(s[0] for s in as_tuple(result.dstate)),
            {name.removesuffix("_l0"): value for name, value in result.parameters.items()},
        )
        for result in (run_reference(case, named, inputs), error_bounds(case, named, inputs))
    )


def lifted(state: Any) -> Any:
    if state is None:
        return None
    parts = tuple(None if s is None else s[None] for s in as_tuple(state))
    return parts if isinstance(state, tuple) else parts[0]


@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("batch", [None, 1, 6])
@pytest.mark.parametrize("given", [True, False])
def test_cells_take_one_step(cell: str, dtype: str, batch: int | None, given: bool, rng: np.random.Generator) -> None:
    hidden = 3 if (cell, dtype) == ("rnn_relu", "bfloat16") else 19  # whose kinks must be far away
    case = Case(cell, dtype=dtype, time=1, batch=batch or 1, input_size=5, hidden_size=hidden)
    name, options = CELL_CLASSES[cell]
    module = getattr(fr, name)(case.input_size, case.hidden_size, dtype=dtype, seed=case.seed, **options)
    parameters = {f"{key}_l0": value for key, value in module.parameters.items()}
    inputs = make_clear_inputs(case, parameters, rng)

    def bare(state: Any) -> Any:
        parts = tuple(s[0] for s in as_tuple(state)) if given else None
        return None if parts is None else parts if case.two_states else parts[0]

    x, state, dstate = inputs.x[0], bare(inputs.state), bare(inputs.dstate)
    expected, bounds = one_step(case, module.parameters, x, state, dstate)
    if batch is None:
        x, state, dstate = x[0], *(without_batch(s) for s in (state, dstate))
        expected, bounds = (
            map_result(lambda a: a[0], r._replace(parameters={}))._replace(y=r.y, parameters=r.parameters)
            for r in (expected, bounds)
        )
    after, tape = module.forward(x, state)
    grads = module.backward(tape, dstate)
    actual = Result(expected.y, as_tuple(after), grads.x, as_tuple(grads.state), grads.parameters)
    assert_results_close(actual, expected, bounds)
    for a, b in zip(as_tuple(module(x, state)), as_tuple(after), strict=True):
        np.testing.assert_array_equal(a, b)


def without_batch(state: Any) -> Any:
    if state is None:
        return None
    parts = tuple(s[0] for s in as_tuple(state))
    return parts if isinstance(state, tuple) else parts[0]

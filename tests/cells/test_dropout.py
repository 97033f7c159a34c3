"""Dropout between layers: where it acts, how often, what it is reproducible by, and its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from bitwise import assert_same, threads
from cases import LAYERS, Case, Inputs, make_inputs, make_layer, small_cases
from oracles import assert_results_close, run_library, run_reference
from rounding import error_bounds

import fusedrnn as fr


def make_probe(width: int, probability: float, *, seed: int, layers: int = 2, **options: Any) -> Any:
    """Elman layers that are the identity for x >= 0 but for dropout: y is the product of the masks, times x."""
    probe = fr.RNN(width, width, layers, nonlinearity="relu", dropout=probability, seed=seed, **options)
    for name, array in probe.parameters.items():
        array[...] = np.eye(width) if name.startswith("weight_ih") else 0
    return probe


def mask_of(probe: Any, time: int, batch: int) -> np.ndarray:
    """The mask of the probe's next call, scaled as it is applied."""
    return probe.forward(np.ones((time, batch, probe.input_size), probe.dtype))[0]


def bidirectional_mask(case: Case, probability: float) -> np.ndarray:
    """The first call's mask of a bidirectional case: the probe's second layer reads one half of it at a time."""
    halves = []
    for half in range(case.directions):
        probe = fr.RNN(
            case.input_size,
            case.hidden_size,
            2,
            nonlinearity="relu",
            dropout=probability,
            seed=case.seed,
            bidirectional=case.directions == 2,
            dtype=case.dtype,
        )
        for array in probe.parameters.values():
            array[...] = 0
        for name, array in probe.parameters.items():
            if name.startswith("bias_ih_l0"):
                array[...] = 1
        columns = slice(half * case.hidden_size, (half + 1) * case.hidden_size)
        probe.parameters["weight_ih_l1"][:, columns] = np.eye(case.hidden_size)
        y = probe.forward(np.zeros((case.time, case.batch, case.input_size), case.dtype))[0]
        halves.append(y[..., : case.hidden_size])
    return np.concatenate(halves, axis=-1)


def test_dropout_acts_in_training_only() -> None:
    probe = make_probe(16, 0.5, seed=0)
    x = np.ones((5, 4, 16), np.float32)
    for _ in range(2):
        assert_same(probe(x)[0], x)
        assert (probe.forward(x)[0] == 0).any()


def test_inference_does_not_count_as_a_call() -> None:
    first, second = make_probe(16, 0.5, seed=0), make_probe(16, 0.5, seed=0)
    first(np.ones((2, 2, 16), np.float32))
    assert_same(mask_of(first, 3, 4), mask_of(second, 3, 4))


def test_dropout_acts_between_layers_only() -> None:
    with pytest.warns(UserWarning, match="num_layers=1"):
        single = make_probe(16, 0.5, seed=0, layers=1)
    assert_same(mask_of(single, 5, 4), np.ones((5, 4, 16), np.float32))
    # A gradient that meets two masks: of three layers, two are followed by another.
    values = np.unique(mask_of(make_probe(64, 0.5, seed=0, layers=3), 5, 4))
    assert_same(values, np.array([0, 4], np.float32))


@pytest.mark.parametrize("probability", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rate_and_scale(probability: float, dtype: str) -> None:
    mask = mask_of(make_probe(50, probability, seed=1, dtype=dtype), 20, 30)
    assert_same(np.unique(mask), np.array([0, 1 / (1 - probability)], dtype))
    # The standard deviation of a binomial share; seven of them are exceeded once in 10^11 draws.
    bound = 7 * math.sqrt(probability * (1 - probability) / mask.size)
    assert abs((mask == 0).mean() - probability) < bound
    for axis in range(3):
        shares = (mask == 0).mean(axis=tuple({0, 1, 2} - {axis}))
        assert np.abs(shares - probability).max() < bound * math.sqrt(mask.shape[axis])


def test_neighbours_are_independent() -> None:
    dropped = mask_of(make_probe(50, 0.5, seed=2), 40, 30) == 0
    for axis in range(3):
        same = np.diff(dropped.astype(int), axis=axis) == 0
        assert abs(same.mean() - 0.5) < 7 * 0.5 / math.sqrt(same.size)


def test_masks_are_reproducible_and_fresh() -> None:
    probe, twin, other = make_probe(16, 0.5, seed=3), make_probe(16, 0.5, seed=3), make_probe(16, 0.5, seed=4)
    masks = [mask_of(probe, 6, 5) for _ in range(4)]
    assert_same([mask_of(twin, 6, 5) for _ in range(4)], masks)
    for number, mask in enumerate(masks):
        # Of 480 independent elements 240 differ, with a standard deviation of 11.
        for another in (*masks[:number], mask_of(other, 6, 5)):
            assert abs((mask != another).sum() - 240) < 7 * 11


def test_masks_of_layers_differ() -> None:
    product = mask_of(make_probe(64, 0.5, seed=5, layers=3), 6, 5) != 0
    # Two independent masks keep a quarter.
    assert abs(product.mean() - 0.25) < 7 * math.sqrt(0.25 * 0.75 / product.size)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_mask_depends_on_row_and_step_alone(dtype: str) -> None:
    def first_mask(time: int, batch: int, **options: Any) -> np.ndarray:
        return mask_of(make_probe(16, 0.5, seed=6, dtype=dtype, **options), time, batch)

    whole = first_mask(9, 7)
    assert_same(first_mask(4, 7), whole[:4])
    assert_same(first_mask(9, 3), whole[:, :3])
    with threads(3):
        assert_same(first_mask(9, 7), whole)
    probe = make_probe(16, 0.5, seed=6, dtype=dtype, batch_first=True)
    assert_same(probe.forward(np.ones((7, 9, 16), dtype))[0].swapaxes(0, 1), whole)
    probe = make_probe(16, 0.5, seed=6, dtype=dtype)
    assert_same(probe.forward(np.ones((9, 16), dtype))[0], whole[:, 0])


def test_both_widths_drop_the_same() -> None:
    single, twice = (mask_of(make_probe(16, 0.3, seed=7, dtype=dtype), 5, 4) for dtype in ("float32", "float64"))
    assert_same(single != 0, twice != 0)


@pytest.mark.parametrize("case", small_cases(dtype="float32", num_layers=3, directions=2, ragged=True))
def test_probability_zero(case: Case, rng: np.random.Generator) -> None:
    inputs = make_inputs(case, rng)
    assert_same(run_library(make_layer(case, dropout=0.0), inputs), run_library(make_layer(case), inputs))


@pytest.mark.parametrize("case", small_cases(dtype="float64", num_layers=2, directions=2, ragged=True))
def test_probability_one(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case, dropout=1.0), make_inputs(case, rng)
    result = run_library(layer, inputs)
    # The second layer reads zeros; the first has no gradient of its outputs, and its state's own.
    changed = Inputs(**{**inputs.__dict__, "x": inputs.x + 1})
    assert_same(run_library(make_layer(case, dropout=1.0), changed).y, result.y)
    assert np.isfinite(result.y).all()
    assert not result.parameters["weight_ih_l1"].any()
    no_state = run_library(layer, Inputs(**{**inputs.__dict__, "dstate": None}))
    assert not no_state.dx.any()
    assert not no_state.parameters["weight_hh_l0"].any()


@pytest.mark.parametrize("probability", [0.3, 0.8])
@pytest.mark.parametrize("case", small_cases(num_layers=2, directions=2, ragged=True, reset=True))
def test_against_the_reference_with_the_mask(case: Case, probability: float, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case, dropout=probability), make_inputs(case, rng)
    mask = bidirectional_mask(case, probability)
    assert set(np.unique(mask)) == {0, 1 / (1 - probability)}
    expected = run_reference(case, layer.parameters, inputs, [mask])
    assert_results_close(run_library(layer, inputs), expected, error_bounds(case, layer.parameters, inputs, [mask]))


def central_difference(loss: Callable[[], float], array: np.ndarray, direction: np.ndarray, step: float) -> float:
    """Derivative of the loss along a direction of one array."""
    before = array.copy()
    array += step * direction
    above = loss()
    array[...] = before - step * direction
    below = loss()
    array[...] = before
    return (above - below) / (2 * step)


@pytest.mark.parametrize("cell", [cell for cell in LAYERS if cell != "rnn_relu"])
def test_gradient_by_finite_differences(cell: str, rng: np.random.Generator) -> None:
    case = Case(cell, 3, 2, "float64", 5, 3, 4, 6)
    inputs = make_inputs(case, rng)
    layer = make_layer(case, dropout=0.4)
    grads = run_library(layer, inputs)

    def loss() -> float:
        # A fresh layer of the same seed draws the first call's masks again.
        fresh = make_layer(case, dropout=0.4)
        fresh.load_parameters(layer.parameters)
        y, state, _ = fresh.forward(inputs.x, inputs.state)
        pairs = zip(state, inputs.dstate, strict=True) if case.two_states else [(state, inputs.dstate)]
        return float((y * inputs.dy).sum() + sum((s * d).sum() for s, d in pairs))

    for array, gradient in [(inputs.x, grads.dx), *((layer.parameters[n], g) for n, g in grads.parameters.items())]:
        direction = rng.standard_normal(array.shape) / np.sqrt(array.size)
        slope = central_difference(loss, array, direction, 1e-5)
        # Truncation of step^2 and cancellation of eps / step, both near 1e-10 of values of the order of ten.
        assert slope == pytest.approx(float((direction * gradient).sum()), rel=1e-6, abs=1e-7)

"""The error bounds themselves: they follow the reference, and results that are wrong in the least way break them."""

from __future__ import annotations

import numpy as np
import pytest
from cases import Case, assert_close, make_clear_inputs, make_layer, small_cases
from oracles import arrays_of, as_tuple, assert_results_close, names_of, run_library, run_reference
from rounding import error_bounds, run_rounded

from fusedrnn import reference

LONG = small_cases(dtype="float32", time=64, batch=32)


def clear(case: Case) -> Case:
    """relu's kink leaves room for few steps only."""
    return Case(**{**case.__dict__, "time": 6, "batch": 8}) if case.cell == "rnn_relu" else case


@pytest.mark.parametrize("case", small_cases(num_layers=2, directions=2, ragged=True, reset=True))
def test_the_values_are_the_references(case: Case, rng: np.random.Generator) -> None:
    layer = make_layer(case)
    inputs = make_clear_inputs(case, layer.parameters, rng)
    rounded = run_rounded(case, layer.parameters, inputs)
    expected = run_reference(case, layer.parameters, inputs)
    for name, a, b in zip(names_of(expected), arrays_of(rounded), arrays_of(expected), strict=True):
        np.testing.assert_allclose(a.value, b, rtol=1e-13, atol=1e-15, err_msg=name)
        assert np.isfinite(a.squares).all() and a.squares.any()


@pytest.mark.parametrize("case", [clear(case) for case in LONG])
def test_one_lost_term_of_a_weight_gradient_breaks_the_bound(case: Case, rng: np.random.Generator) -> None:
    layer = make_layer(case)
    inputs = make_clear_inputs(case, layer.parameters, rng)
    bounds = error_bounds(case, layer.parameters, inputs)
    ours, expected = run_library(layer, inputs), run_reference(case, layer.parameters, inputs)
    assert_results_close(ours, expected, bounds)
    tape = reference.forward(case.cell, layer.parameters, inputs.x, inputs.state)[2]
    ((run,),) = tape.runs
    row = slice(3, 4)
    dlast = [d[0, row].astype(np.float64) for d in as_tuple(inputs.dstate)]
    dlast[0] = dlast[0] + inputs.dy[-1, row]
    saved = tuple(array[row] for array in run.steps[-1].saved)
    _, _, term = tape.cell.backward(run.weights, saved, tuple(dlast))
    for name, lost in term.items():
        key = name + "_l0"
        with pytest.raises(AssertionError, match="beyond their bounds"):
            assert_close(ours.parameters[key] - lost, expected.parameters[key], bounds.parameters[key], name)


@pytest.mark.parametrize("case", [clear(case) for case in LONG])
@pytest.mark.parametrize("name", ["bias_ih_l0", "bias_hh_l0"])
def test_one_lost_bias_breaks_the_bound(case: Case, name: str, rng: np.random.Generator) -> None:
    layer = make_layer(case)
    inputs = make_clear_inputs(case, layer.parameters, rng)
    expected = run_reference(case, layer.parameters, inputs)
    bounds = error_bounds(case, layer.parameters, inputs)
    layer.parameters[name][-1] = 0.0
    with pytest.raises(AssertionError, match=r"y.*beyond their bounds"):
        assert_results_close(run_library(layer, inputs), expected, bounds)

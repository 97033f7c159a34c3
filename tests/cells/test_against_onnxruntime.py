"""Forward passes against onnxruntime, the oracle outside torch for peepholes, coupled gates and both GRUs."""

from __future__ import annotations

import numpy as np
import pytest
from cases import CASES, Case, assert_close, make_clear_inputs, make_layer
from oracles import as_tuple, run_onnxruntime
from rounding import onnxruntime_bounds

pytest.importorskip("onnxruntime")

# onnxruntime has no float64 and no reset.
ONNX_CASES = [case for case in CASES if case.dtype == "float32" and not case.reset]


@pytest.mark.parametrize("case", ONNX_CASES)
def test_outputs_and_final_states(case: Case, rng: np.random.Generator) -> None:
    layer = make_layer(case)
    # onnxruntime gives Y_h = 0 for a row of length 0, where this library keeps the initial state.
    inputs = make_clear_inputs(case, layer.parameters, rng, shortest=1)
    y, state = layer(inputs.x, inputs.state, **inputs.sequence_options())
    expected_y, expected_state = run_onnxruntime(case, layer.parameters, inputs)
    bounds = onnxruntime_bounds(case, layer.parameters, inputs, other="float32")
    assert_close(y, expected_y, bounds.y, "y")
    for a, b, bound in zip(as_tuple(state), as_tuple(expected_state), as_tuple(bounds.state), strict=True):
        assert_close(a, b, bound, "state")

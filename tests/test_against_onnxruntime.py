"""Forward passes against onnxruntime, the oracle outside torch for peepholes, coupled gates and both GRUs."""

from __future__ import annotations

import numpy as np
import pytest
from cases import CASES, Case, assert_close, make_clear_inputs, make_layer, tolerance
from oracles import as_tuple, run_onnxruntime

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
    # Both sides stray from the exact value, each by the case's tolerance at the most.
    assert_close(y, expected_y, 2 * tolerance(case), "y")
    for index, (a, b) in enumerate(zip(as_tuple(state), as_tuple(expected_state), strict=True)):
        assert_close(a, b, 2 * tolerance(case), f"state[{index}]")

"""bfloat16 on every instruction set of its own: numbers near the reference, and the bitwise promises."""

from __future__ import annotations

import numpy as np
import pytest
from bitwise import assert_same
from cases import BFLOAT16_CASES, make_clear_inputs, make_inputs, make_layer
from isa_process import run_on
from oracles import run_library
from rounding import assert_matches_reference

from fusedrnn import _core

PROMISES = BFLOAT16_CASES[1::2]


def assert_right() -> None:
    """Every case of bfloat16 on the instruction set in use."""
    for case in BFLOAT16_CASES:
        rng = np.random.default_rng(case.seed)
        layer = make_layer(case)
        inputs = make_clear_inputs(case, layer.parameters, rng)
        assert_matches_reference(run_library(layer, inputs), case, layer.parameters, inputs)


def assert_promises_kept() -> None:
    """Threads, recomputing and a runner give the bits of one thread."""
    for case in PROMISES:
        layer, inputs = make_layer(case), make_inputs(case, np.random.default_rng(case.seed))
        options = inputs.sequence_options()
        _core.set_num_threads(1, True, True)
        y, state, tape = layer.forward(inputs.x, inputs.state, **options)
        expected = layer.backward(tape, inputs.dy, inputs.dstate)
        for threads, recompute in ((2, None), (3, 1), (1, 3)):
            _core.set_num_threads(threads, True, True)
            again = layer.forward(inputs.x, inputs.state, **options, recompute=recompute)
            assert_same(again[:2], (y, state), case.id)
            found = layer.backward(again[2], inputs.dy, inputs.dstate)
            assert_same((found.x, found.state, found.parameters), (expected.x, expected.state, expected.parameters))
        assert_same(layer.freeze()(inputs.x, inputs.state, **options), (y, state), case.id)


@pytest.mark.parametrize("program", ["assert_right", "assert_promises_kept"])
@pytest.mark.parametrize("isa", [isa for isa in _core.pair_isas() if isa != _core.pair_isa()])
def test_every_other_instruction_set(isa: str, program: str) -> None:
    run_on(isa, f"import test_bfloat16_isas as t; t.{program}()", __file__)


def test_many_rows_in_one_chunk() -> None:
    # More rows than a panel of one product, and than are widened at once.
    rng = np.random.default_rng(0)
    case = BFLOAT16_CASES[2]
    layer = make_layer(case)
    x = rng.standard_normal((2, 1100, case.input_size)).astype(case.dtype)
    y, _, tape = layer.forward(x)
    grads = layer.backward(tape, y)
    total = {name: np.zeros(array.shape) for name, array in grads.parameters.items()}
    for rows in np.split(np.arange(1100), 10):
        part, _, tape = layer.forward(np.ascontiguousarray(x[:, rows]))
        assert_same(part, np.ascontiguousarray(y[:, rows]))
        for name, array in layer.backward(tape, part).parameters.items():
            total[name] += array.astype(np.float64)
    for name, array in grads.parameters.items():
        # Each of the eleven results is rounded once; float32 sums are finer by far.
        bound = 2.0**-8 * (np.abs(total[name]) + 10 * np.abs(total[name]).max())
        assert np.all(np.abs(array.astype(np.float64) - total[name]) <= bound), name

"""bfloat16 on every instruction set of its own: numbers near the reference, and the bitwise promises."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from bitwise import assert_same
from cases import BFLOAT16_CASES, LAYERS, Case, make_clear_inputs, make_inputs, make_layer
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


def assert_rows_apart(dtype: str = "bfloat16") -> None:
    """Infinity or nan in a row changes no other one, and the row is in a batch what it is alone."""
    for cell in LAYERS:
        for hidden, value in itertools.product((7, 17, 33), (np.inf, np.nan)):
            case = Case(cell, 1, 1, dtype, 3, 4, 5, hidden)
            layer, inputs = make_layer(case), make_inputs(case, np.random.default_rng(case.seed))
            spoiled = inputs.x.copy()
            spoiled[1, 2, 3] = value
            found, clean = (
                [y, layer.backward(tape, inputs.dy).x] for y, _, tape in map(layer.forward, (spoiled, inputs.x))
            )
            y, _, tape = layer.forward(np.ascontiguousarray(spoiled[:, 2:3]))
            alone = [y, layer.backward(tape, np.ascontiguousarray(inputs.dy[:, 2:3])).x]
            for one, other, single in zip(found, clean, alone, strict=True):
                for row in (0, 1, 3):
                    assert_same(one[:, row].copy(), other[:, row].copy(), case.id)
                assert_same(one[:, 2].copy(), single[:, 0].copy(), case.id)
            if value == np.inf and cell != "rnn_relu":  # gates saturate, and h stays within 1
                assert np.isfinite(found[0].astype(np.float32)).all(), case.id


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_infinity_and_nan_stay_in_their_row(dtype: str) -> None:
    assert_rows_apart(dtype)


@pytest.mark.parametrize("program", ["assert_right", "assert_promises_kept", "assert_rows_apart"])
@pytest.mark.parametrize("isa", [isa for isa in _core.pair_isas() if isa != _core.pair_isa()])
def test_every_other_instruction_set(isa: str, program: str) -> None:
    run_on(isa, f"import test_bfloat16_isas as t; t.{program}()", __file__)


@pytest.mark.parametrize("cell", LAYERS)
def test_the_tape_keeps_gates_in_16_bits(cell: str) -> None:
    sizes = {}
    for dtype in ("float32", "bfloat16"):
        case = Case(cell, 1, 1, dtype, 64, 4, 3, 64)
        layer = make_layer(case)
        sizes[dtype] = layer.forward(make_inputs(case, np.random.default_rng(0)).x)[2].nbytes
    slots = {"rnn_tanh": 1, "rnn_relu": 1, "gru": 4, "gru_reset_before": 3}.get(cell, 3 if "coupled" in cell else 4)
    elements, two_states = 64 * 4 * 64, "lstm" in cell
    saved = 2 * elements * slots  # c stays float32
    assert sizes["float32"] - sizes["bfloat16"] == saved
    assert sizes["float32"] >= elements * 4 * (slots + two_states)


def test_many_rows_in_one_chunk() -> None:
    # More rows than a panel of one product, and than are widened at once.
    rng = np.random.default_rng(0)
    case = BFLOAT16_CASES[2]
    layer = make_layer(case)
    x = rng.standard_normal((2, 1100, case.input_size)).astype(case.dtype)
    y, _, tape = layer.forward(x)
    grads = layer.backward(tape, y)
    total, rounded = ({name: np.zeros(array.shape) for name, array in grads.parameters.items()} for _ in range(2))
    for rows in np.split(np.arange(1100), 10):
        part, _, tape = layer.forward(np.ascontiguousarray(x[:, rows]))
        assert_same(part, np.ascontiguousarray(y[:, rows]))
        for name, array in layer.backward(tape, part).parameters.items():
            total[name] += array.astype(np.float64)
            rounded[name] += np.abs(array.astype(np.float64))
    for name, array in grads.parameters.items():
        # Each of the eleven results was rounded once, by half of its last place at most. A chain of 2200 float32 sums
        # adds as many roundings, of sums no larger than the largest gradient's parts together.
        found = array.astype(np.float64)
        bound = 2.0**-9 * (rounded[name] + np.abs(found)) + 2200 * 2.0**-24 * rounded[name].max()
        assert np.all(np.abs(found - total[name]) <= bound), name

"""engine="persistent": layers whose steps the block programs run, on a device and on its stand-in.

On the stand-in the programs themselves run, over the adverse host of test_block_program.py. What is tested there is not
tested again: here it is what the drivers make of them.
"""

from __future__ import annotations

import bisect
import copy
import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from bitwise import assert_same
from cases import CLIP, Case, Inputs, make_inputs, make_layer
from device_runs import host, run, shortened, widened, widened_inputs
from devices import TestDevice, stand_in
from oracles import Result, assert_results_close, map_result, run_library, run_reference
from rounding import run_rounded

import fusedrnn as fr
from fusedrnn.engines.cuda import blocks

CELLS = ("lstm", "lstm_coupled", "gru")
PRECISIONS = ("bfloat16", "float16", "tf32")


def small(cell: str, **options: Any) -> Case:
    fixed = {"time": 5, "batch": 4, "input_size": 3, "hidden_size": 17, "ragged": True, "reset": True}
    return Case(cell, dtype="float32", **{**fixed, **options})


CASES = [small(cell, num_layers=2, directions=2) for cell in CELLS]


@pytest.fixture(autouse=True, params=[True, False], ids=["one_kernel", "kernel_a_stage"])
def loop_inside(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Every test with all steps in one kernel, and with a kernel for each."""
    monkeypatch.setattr(blocks, "LOOP_INSIDE", request.param)
    return bool(request.param)


def make(
    case: Case, precision: str, rng: np.random.Generator, engine: str = "persistent", **options: Any
) -> tuple[Any, Inputs]:
    """A layer with products of this precision, and inputs that its arrays hold."""
    kind = {"precision": "tf32"} if precision == "tf32" else {"dtype": precision}
    layer = make_layer(case, device="cuda", engine=engine, **kind, **options)
    inputs = make_inputs(case, rng)
    return layer, inputs if precision == "tf32" else shortened(inputs, layer.dtype)


def bounds_of(case: Case, precision: str, parameters: dict[str, np.ndarray], inputs: Inputs) -> Result:
    """Of every operation rounded to the precision: more than is. Below the normal range steps are 2^-24."""
    eps = 2.0**-10 if precision == "tf32" else float(ml_dtypes.finfo(precision).eps)
    return map_result(lambda a: a.bound(eps) + 2.0**-20, run_rounded(case, parameters, inputs))


def assert_right(device: TestDevice, case: Case, precision: str, layer: Any, inputs: Inputs, result: Result) -> None:
    parameters, wide = widened(host(layer, device)), widened_inputs(inputs)
    expected = run_reference(case, parameters, wide)
    bounds = bounds_of(case, precision, parameters, wide)
    assert_results_close(Result(*map(widened, result)), expected, bounds)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES)
def test_every_output_and_gradient(device: TestDevice, case: Case, precision: str, rng: np.random.Generator) -> None:
    layer, inputs = make(case, precision, rng)
    assert_right(device, case, precision, layer, inputs, run(device, layer, inputs))


@pytest.mark.parametrize("case", [small("lstm", reverse=True), small("gru", reverse=True, num_layers=2)])
def test_the_reverse_direction_alone(device: TestDevice, case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make(case, "bfloat16", rng)
    assert_right(device, case, "bfloat16", layer, inputs, run(device, layer, inputs))


@pytest.mark.parametrize("case", [small("lstm", ragged=False, reset=False, directions=2), small("gru", batch=33)])
def test_dense_and_large_batches(device: TestDevice, case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make(case, "tf32", rng)
    assert_right(device, case, "tf32", layer, inputs, run(device, layer, inputs))


@pytest.mark.parametrize("recompute", [1, 2, 100])
@pytest.mark.parametrize("case", CASES)
def test_recompute(device: TestDevice, case: Case, recompute: int, rng: np.random.Generator) -> None:
    layer, inputs = make(case, "bfloat16", rng)
    moved = device.put(inputs)
    y, state, tape = layer.forward(moved.x, moved.state, moved.lengths, moved.reset, recompute=recompute)
    grads = layer.backward(tape, moved.dy, moved.dstate)
    result = device.get(Result(y, state, grads.x, grads.state, grads.parameters))
    assert_same((result.y, result.state), device.get(run_library(layer, moved))[:2])
    assert_right(device, case, "bfloat16", layer, inputs, result)


@pytest.mark.parametrize("case", CASES)
def test_inference_and_memory_held_by_the_caller(device: TestDevice, case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make(case, "float16", rng)
    moved = device.put(inputs)
    expected = device.get(run_library(layer, moved))
    y, state = layer(moved.x, moved.state, moved.lengths, moved.reset)
    assert_same(device.get((y, state)), expected[:2])
    buffers = layer.buffers(case.time, case.batch)
    for _ in range(2):
        y, state, tape = layer.forward(moved.x, moved.state, moved.lengths, moved.reset, out=buffers)
        grads = layer.backward(tape, moved.dy, moved.dstate)
        assert_same(device.get((y, state, grads.x, grads.parameters)), (*expected[:3], expected.parameters))


@pytest.mark.parametrize("case", CASES)
def test_neither_chunks_nor_launches_nor_orders_change_the_outputs(
    cuda_host_module: Any, case: Case, rng: np.random.Generator
) -> None:
    with stand_in(cuda_host_module) as device:
        layer, inputs = make(case, "bfloat16", rng)
        expected = run(device, layer, inputs)
        cuda_host_module.set_reversed(True)
        assert_same(run(device, layer, inputs), expected)
        cuda_host_module.set_block_bytes(least_block_bytes(cuda_host_module, layer, case.batch))
        assert_same(run(device, layer, inputs), expected)
        cuda_host_module.set_chunk_bytes(1000)
        chunked = run(device, layer, inputs)
        assert_same((chunked.y, chunked.state, chunked.dstate), (expected.y, expected.state, expected.dstate))
        assert_right(device, case, "bfloat16", layer, inputs, chunked)
        y = layer(device.put(inputs.x), device.put(inputs.state), inputs.lengths, device.put(inputs.reset))[0]
        assert_same(device.get(y), expected.y)
        cuda_host_module.set_block_bytes(1 << 10)
        with pytest.raises(ValueError, match="'persistent': the batch has so many rows"):
            layer(device.put(inputs.x))


def least_block_bytes(module: Any, layer: Any, rows: int) -> int:
    """The least limit under which a layer of two directions runs: one direction in a launch."""

    def fits(limit: int) -> bool:
        module.set_block_bytes(limit)
        return layer._engine._net.persistent_refusal(rows, True, False) is None

    return 1 + bisect.bisect_left(range(1, 1 << 26), True, key=fits)


def test_steppers_and_cells(device: TestDevice, rng: np.random.Generator) -> None:
    case = small("lstm", num_layers=2, ragged=False, reset=False)
    layer, inputs = make(case, "bfloat16", rng)
    x, state = device.put((inputs.x, inputs.state))
    y, final = layer(x, state)
    stepper = layer.stream(case.batch)
    stepper.state = state
    steps = [device.get(stepper.step(x[t])) for t in range(case.time)]
    if device.real:  # cuBLAS may add up x's part in another order for another number of rows
        bounds = bounds_of(case, "bfloat16", widened(host(layer, device)), widened_inputs(inputs))
        np.testing.assert_array_less(abs(widened(np.stack(steps)) - widened(device.get(y))), bounds.y)
    else:
        assert_same(np.stack(steps), device.get(y))
        assert_same(device.get(stepper.state), device.get(final))
    cells = [fr.GRUCell(3, 17, seed=5, dtype="float16", device="cuda", engine=e) for e in ("persistent", "stepwise")]
    h = device.put(rng.standard_normal((4, 17)).astype(np.float16))
    x_t = x[0].astype(np.float16)
    results = [cell.forward(x_t, h) for cell in cells]
    gradients = [cell.backward(tape, h) for cell, (_, tape) in zip(cells, results, strict=True)]
    for ours, theirs in ((r[0] for r in results), (g.x for g in gradients), (g.state for g in gradients)):
        a, b = widened(device.get(ours)), widened(device.get(theirs))
        np.testing.assert_allclose(a, b, rtol=0, atol=64 * 2.0**-10)


def test_without_steps_or_rows(device: TestDevice, rng: np.random.Generator) -> None:
    for time, batch in ((0, 4), (5, 0)):
        case = small("lstm", num_layers=2, directions=2, time=time, batch=batch)
        layer, inputs = make(case, "bfloat16", rng)
        assert_right(device, case, "bfloat16", layer, inputs, run(device, layer, inputs))


def test_what_it_does_not_run_is_refused(device: TestDevice) -> None:
    persistent = {"device": "cuda", "engine": "persistent"}
    short = {**persistent, "dtype": "bfloat16"}
    for make_it, words in (
        (lambda: fr.LSTM(3, 4, dtype="float64", **persistent), "float64"),
        (lambda: fr.LSTM(3, 4, **persistent), "precision='tf32'"),
        (lambda: fr.LSTM(3, 4, clip=CLIP, **short), "clip"),
        (lambda: fr.LSTM(3, 4, peephole=True, **short), "the cell"),
        (lambda: fr.GRU(3, 4, reset_after=False, **short), "the cell"),
        (lambda: fr.RNNCell(3, 4, **short), "the cell"),
        (lambda: fr.LSTM(3, 1025, **short), "the hidden size is not within 1 and 1024"),
    ):
        with pytest.raises(ValueError, match="engine must be 'auto' or 'stepwise' here, not 'persistent': .*" + words):
            make_it()
    with pytest.raises(ValueError, match="engine must be 'auto' on the CPU"):
        fr.LSTM(3, 4, engine="persistent")
    fr.LSTM(3, 1024, **short)
    layer = fr.LSTM(3, 4, **short)
    for change in ({"dtype": "float64"}, {"dtype": "float32"}, {"device": "cpu", "dtype": "float32"}):
        with pytest.raises(ValueError, match="engine must be 'auto'"):
            layer.to(**change)
        assert layer.dtype == ml_dtypes.bfloat16 and layer.device == device.name
    assert layer.to(dtype="float16").dtype == np.float16
    assert "engine='persistent'" in repr(copy.deepcopy(layer))


@pytest.mark.parametrize("steps", [blocks.AUTO_LEAST_STEPS - 1, blocks.AUTO_LEAST_STEPS])
@pytest.mark.parametrize("batch", [4, 9 * 32])
def test_auto_takes_what_fits_at_once_and_is_long(
    device: TestDevice, loop_inside: bool, steps: int, batch: int
) -> None:
    case = dataclasses.replace(CASES[0], num_layers=1, hidden_size=200, time=steps, batch=batch)
    auto, stepwise = (
        run(device, *make(case, "tf32", np.random.default_rng(1), engine)) for engine in ("auto", "stepwise")
    )
    if loop_inside and steps == blocks.AUTO_LEAST_STEPS and batch == 4:
        assert not np.array_equal(auto.y, stepwise.y), "sums in another order round otherwise"
    else:
        assert_same(auto, stepwise)


def test_auto_falls_back(device: TestDevice) -> None:
    fr.LSTM(3, 4, device="cuda", clip=CLIP)(device.put(np.ones((2, 2, 3), np.float32)))

"""backward(norms=True) on a device and on its stand-in: the reference's norms, from both engines."""

from __future__ import annotations

import dataclasses
from typing import Any

import masked_cases
import ml_dtypes
import numpy as np
import pytest
from bitwise import assert_same
from cases import CASES, EMPTY_CASES, LAYERS, Case, Inputs, assert_close, make_clear_inputs, make_inputs, make_layer
from device_runs import host, shortened, widened, widened_inputs
from devices import TestDevice, stand_in
from oracles import as_tuple
from rounding import norm_bounds

import fusedrnn as fr
from fusedrnn import reference
from fusedrnn.engines.cuda import blocks

CHOSEN = [case for case in CASES[::2] if case.time * case.batch * case.hidden_size**2 < 2e6]
MASKED = masked_cases.SHORT
SMALL = [
    Case(cell, 2, 2, "float32", 6, 5, 3, 17, ragged=True, reset=True, masked=masked)
    for cell in LAYERS
    for masked in (False, True)
]
BLOCKS = [case for case in SMALL if case.cell in ("lstm", "lstm_coupled", "gru")]


def gradients_of(device: TestDevice, layer: Any, inputs: Inputs, norms: bool = True, **options: Any) -> Any:
    moved = device.put(dataclasses.replace(inputs, lengths=None))
    given = {**moved.sequence_options(), "lengths": inputs.lengths}
    _, _, tape = layer.forward(moved.x, moved.state, **given, **options)
    return device.get(layer.backward(tape, moved.dy, moved.dstate, norms=norms))


def assert_right(case: Case, parameters: dict[str, np.ndarray], inputs: Inputs, norms: Any, eps: float) -> None:
    _, _, tape = reference.forward(
        case.cell, parameters, inputs.x, inputs.state, **inputs.sequence_options(), **case.reference_options()
    )
    expected = [np.linalg.norm(d, axis=-1) for d in reference.state_gradients(tape, inputs.dy, inputs.dstate)]
    bounds = norm_bounds(case, parameters, inputs, eps)
    assert case.two_states or norms.c is None
    for name, norm, bound in zip(("h", "c"), expected, bounds, strict=False):
        ours = getattr(norms, name).astype(np.float64)
        assert_close(ours, norm, bound + (0 if eps < 1e-6 else 2.0**-20), name)
        if inputs.lengths is not None:
            assert not ours[:, np.arange(case.time)[:, None] >= inputs.lengths].any()


@pytest.mark.parametrize("case", [*CHOSEN, *MASKED])
def test_against_the_reference_and_the_cpu(device: TestDevice, case: Case, rng: np.random.Generator) -> None:
    cpu, layer = make_layer(case), make_layer(case, device="cuda")
    inputs = make_clear_inputs(case, cpu.parameters, rng)
    norms = gradients_of(device, layer, inputs).norms
    assert norms.h.dtype == np.dtype(case.dtype)
    assert_right(case, cpu.parameters, inputs, norms, case.eps)
    _, _, tape = cpu.forward(inputs.x, inputs.state, **inputs.sequence_options())
    theirs = cpu.backward(tape, inputs.dy, inputs.dstate, norms=True).norms
    bounds = norm_bounds(case, cpu.parameters, inputs, 2 * case.eps)
    for ours, other, bound in zip((norms.h, norms.c), (theirs.h, theirs.c), bounds, strict=False):
        assert_close(ours, other, bound, "the CPU's")


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "tf32"])
@pytest.mark.parametrize("engine", ["stepwise", "persistent"])
@pytest.mark.parametrize("case", BLOCKS)
def test_both_engines(device: TestDevice, case: Case, engine: str, precision: str, rng: np.random.Generator) -> None:
    kind = {"precision": "tf32"} if precision == "tf32" else {"dtype": precision}
    layer, inputs = make_layer(case, device="cuda", engine=engine, **kind), make_inputs(case, rng)
    if precision != "tf32":
        inputs = shortened(inputs, layer.dtype)
    norms = gradients_of(device, layer, inputs).norms
    assert norms.h.dtype == layer.dtype
    eps = 2.0**-10 if precision == "tf32" else float(ml_dtypes.finfo(precision).eps)
    assert_right(case, widened(host(layer, device)), widened_inputs(inputs), norms, eps)


@pytest.mark.parametrize("engine", ["stepwise", "persistent"])
@pytest.mark.parametrize("inside", [True, False])
def test_the_gradients_are_those_without_norms_and_the_same_again(
    device: TestDevice, engine: str, inside: bool, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "LOOP_INSIDE", inside)
    for case in BLOCKS if engine == "persistent" else SMALL:
        layer = make_layer(case, device="cuda", engine=engine, precision="tf32")
        inputs = make_inputs(case, rng)
        with_norms = gradients_of(device, layer, inputs)
        assert_same(gradients_of(device, layer, inputs), with_norms)
        without = gradients_of(device, layer, inputs, norms=False)
        assert without.norms is None
        assert_same(dataclasses.replace(with_norms, norms=None), without)


@pytest.mark.parametrize("engine", ["stepwise", "persistent"])
@pytest.mark.parametrize("case", BLOCKS)
def test_chunks_recomputation_and_order(
    cuda_host_module: Any, case: Case, engine: str, rng: np.random.Generator
) -> None:
    with stand_in(cuda_host_module) as device:
        layer = make_layer(case, device="cuda", engine=engine, precision="tf32")
        inputs = make_inputs(case, rng)
        expected = gradients_of(device, layer, inputs).norms
        for size in (1, 5000):  # bytes of a chunk of time: a step, and some
            cuda_host_module.set_chunk_bytes(size)
            assert_same(gradients_of(device, layer, inputs).norms, expected)
        cuda_host_module.set_chunk_bytes(0)
        cuda_host_module.set_reversed(True)
        assert_same(gradients_of(device, layer, inputs).norms, expected)
        cuda_host_module.set_reversed(False)
        for window in (1, 2, 100):
            found = gradients_of(device, layer, inputs, recompute=window).norms
            for ours, theirs in zip(as_tuple((found.h, found.c)), as_tuple((expected.h, expected.c)), strict=True):
                if theirs is not None:
                    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", [*EMPTY_CASES, *masked_cases.EMPTY])
def test_nothing_to_measure(device: TestDevice, case: Case, rng: np.random.Generator) -> None:
    norms = gradients_of(device, make_layer(case, device="cuda"), make_inputs(case, rng)).norms
    assert norms.h.shape == (case.num_layers * case.directions, case.time, case.batch)


@pytest.mark.parametrize("case", SMALL[::3])
def test_batch_first_and_unbatched(device: TestDevice, case: Case, rng: np.random.Generator) -> None:
    inputs = make_inputs(case, rng)
    expected = gradients_of(device, make_layer(case, device="cuda"), inputs).norms
    swapped = {name: getattr(inputs, name) for name in ("x", "dy", "reset", "mask")}
    swapped = {n: None if a is None else np.ascontiguousarray(a.swapaxes(0, 1)) for n, a in swapped.items()}
    moved = dataclasses.replace(inputs, **swapped)
    norms = gradients_of(device, make_layer(case, device="cuda", batch_first=True), moved).norms
    assert_same(norms.h, expected.h.swapaxes(1, 2))
    x, dy = (np.nan_to_num(a[:, 0]) for a in (inputs.x, inputs.dy))  # nan stands past a length
    state, dstate = (tuple(s[:, 0].copy() for s in as_tuple(p)) for p in (inputs.state, inputs.dstate))
    alone = Inputs(x, state if case.two_states else state[0], None, None, dy, dstate if case.two_states else dstate[0])
    norms = gradients_of(device, make_layer(case, device="cuda"), alone).norms
    assert norms.h.shape == (case.num_layers * case.directions, case.time)
    assert_right(case, host(make_layer(case, device="cuda"), device), with_batch(alone), batched(norms), case.eps)


def with_batch(alone: Inputs) -> Inputs:
    """A call without a batch as one of a row."""
    states = [tuple(s[:, None] for s in as_tuple(p)) for p in (alone.state, alone.dstate)]
    state, dstate = (s if len(s) == 2 else s[0] for s in states)
    return Inputs(alone.x[:, None], state, None, None, alone.dy[:, None], dstate)


def batched(norms: Any) -> Any:
    return dataclasses.replace(norms, h=norms.h[..., None], c=None if norms.c is None else norms.c[..., None])


@pytest.mark.parametrize("dtype, powers", [("float32", (100, -90)), ("float64", (900, -900))])
def test_squares_may_leave_the_range_of_the_dtype(
    device: TestDevice, dtype: str, powers: tuple[int, int], rng: np.random.Generator
) -> None:
    """A power of two scales every gradient without rounding, and so the norms."""
    case = Case("lstm", 1, 2, dtype, 5, 3, 4, 33)
    layer, inputs = make_layer(case, device="cuda"), make_inputs(case, rng)
    expected = gradients_of(device, layer, inputs).norms
    for power in powers:
        factor = np.dtype(dtype).type(2.0**power)
        dstate = tuple(d * factor for d in inputs.dstate)
        scaled = dataclasses.replace(inputs, dy=inputs.dy * factor, dstate=dstate)
        norms = gradients_of(device, layer, scaled).norms
        assert_same((norms.h / factor, norms.c / factor), (expected.h, expected.c))


def test_no_finite_number_is_made_of_an_infinite_one(device: TestDevice) -> None:
    for dtype in ("float32", "float64"):
        layer = fr.LSTM(3, 5, dtype=dtype, device="cuda", seed=0)
        dy = np.zeros((4, 2, 5), dtype)
        dy[2, 0, 3], dy[2, 1, 0] = np.inf, np.nan
        _, _, tape = layer.forward(device.put(np.zeros((4, 2, 3), dtype)))
        norms = device.get(layer.backward(tape, device.put(dy), norms=True)).norms
        assert np.isposinf(norms.h[0, 2, 0]) and np.isnan(norms.h[0, 2, 1])
        assert not norms.h[0, 3].any() and not norms.c[0, 3].any()


def test_memory_held_by_the_caller(device: TestDevice, rng: np.random.Generator) -> None:
    case = SMALL[0]
    layer, inputs = make_layer(case, device="cuda"), make_inputs(case, rng)
    expected = gradients_of(device, layer, inputs)
    buffers = layer.buffers(case.time, case.batch)
    assert_same(gradients_of(device, layer, inputs, out=buffers), expected)
    if device.real:
        return
    moved = device.put(inputs)
    _, _, tape = layer.forward(moved.x, out=buffers)
    device.arrays.native.set_capturing(True)
    with pytest.raises(ValueError, match="norms must be False while a graph"):
        layer.backward(tape, moved.dy, norms=True)

"""The CUDA engine, on a device and on its stand-in: every cell against the reference and the CPU engine."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from bitwise import assert_same
from cases import (
    BFLOAT16_CASES,
    CASES,
    CLIP,
    EMPTY_CASES,
    LAYERS,
    Case,
    Inputs,
    make_clear_inputs,
    make_inputs,
    make_layer,
)
from cases import small_cases as small
from device_runs import host, run, shortened, widened, widened_inputs
from devices import TestDevice, stand_in
from oracles import Result, as_tuple, assert_results_close, map_result, run_library, run_reference
from rounding import error_bounds, run_rounded

import fusedrnn as fr

# Every cell, number of layers and directions, dtype, ragged and reset: the suite's list but for its largest cases.
CHOSEN = [case for case in CASES if case.time * case.batch * case.hidden_size**2 < 2e6]
GATED = small(num_layers=2, directions=2, dtype="float32", ragged=True, reset=True)
CLIPPED = small(num_layers=2, directions=2, dtype="float32", ragged=True, reset=True, clip=CLIP)
REVERSED = small(num_layers=2, dtype="float32", ragged=True, reset=True, reverse=True)


def make_twins(case: Case, **options: Any) -> tuple[Any, Any]:
    """A layer on the CPU and one of the same parameters on the device."""
    return make_layer(case, **options), make_layer(case, device="cuda", **options)


@pytest.mark.parametrize("case", CHOSEN + EMPTY_CASES + [c for c in BFLOAT16_CASES if not c.masked])
def test_every_output_and_gradient(device: TestDevice, case: Case, rng: np.random.Generator) -> None:
    cpu, layer = make_twins(case)
    assert_same(host(layer, device), cpu.parameters)
    inputs = make_clear_inputs(case, cpu.parameters, rng)
    result = run(device, layer, inputs)
    rounded = run_rounded(case, cpu.parameters, inputs)
    for expected, eps in (
        (run_reference(case, cpu.parameters, inputs), case.eps + float(np.finfo(np.float64).eps)),
        (run_library(cpu, inputs), 2 * case.eps),
    ):
        assert_results_close(result, expected, map_result(lambda a, eps=eps: a.bound(eps), rounded))


@pytest.mark.parametrize("case", CHOSEN[::3] + EMPTY_CASES[::2])
def test_inference_computes_what_training_computes(device: TestDevice, case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case, device="cuda"), make_inputs(case, rng)
    x, state, reset = device.put((inputs.x, inputs.state, inputs.reset))
    y, final = layer(x, state, inputs.lengths, reset)
    trained_y, trained, _ = layer.forward(x, state, inputs.lengths, reset)
    if device.real:  # cuBLAS may choose another order for another shape
        np.testing.assert_allclose(device.get(y), device.get(trained_y), atol=200 * case.eps)
    else:
        assert_same(device.get((y, final)), device.get((trained_y, trained)))


@pytest.mark.parametrize("recompute", [1, 2, 4, 100])
@pytest.mark.parametrize("case", GATED + CLIPPED + REVERSED)
def test_recompute(device: TestDevice, case: Case, recompute: int, rng: np.random.Generator) -> None:
    layer = make_layer(case, device="cuda")
    inputs = make_clear_inputs(case, host(layer, device), rng)
    x, state, reset, dy, dstate = device.put((inputs.x, inputs.state, inputs.reset, inputs.dy, inputs.dstate))
    expected = run(device, layer, inputs)
    whole = layer.forward(x, state, inputs.lengths, reset)[2]
    y, final, tape = layer.forward(x, state, inputs.lengths, reset, recompute=recompute)
    assert tape.nbytes < whole.nbytes
    grads = layer.backward(tape, dy, dstate)
    result = device.get(Result(y, final, grads.x, grads.state, grads.parameters))
    assert_results_close(result, expected, error_bounds(case, host(layer, device), inputs, other=case.dtype))


@pytest.mark.parametrize("case", small(num_layers=3, directions=2, dtype="float32", reset=True, hidden_size=9))
def test_dropout_has_the_cpus_masks(device: TestDevice, case: Case, rng: np.random.Generator) -> None:
    cpu, layer = make_twins(case, dropout=0.4)
    if case.cell == "rnn_relu":  # a mask scales, and moves some unit to its kink: only the outputs agree then
        inputs = make_inputs(case, rng)
        for _ in range(2):
            a, b = cpu.forward(inputs.x)[0], device.get(layer.forward(device.put(inputs.x))[0])
            np.testing.assert_allclose(a, b, atol=1e4 * case.eps)
        return
    inputs = make_inputs(case, rng)
    for _ in range(2):  # the second call has other masks
        bounds = map_result(lambda a: 64 * a, error_bounds(case, cpu.parameters, inputs, other=case.dtype))
        assert_results_close(run(device, layer, inputs), run_library(cpu, inputs), bounds)
    assert layer._engine.calls == cpu._engine.calls == 2


@pytest.mark.parametrize("case", GATED)
def test_device_lengths_are_clamped(device: TestDevice, case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case, device="cuda"), make_inputs(case, rng)
    assert inputs.lengths is not None
    moved = device.put(inputs)
    expected = device.get(run_library(layer, moved))
    assert_same(expected, run(device, layer, inputs))
    wild = np.where(inputs.lengths == case.time, 10**12, np.where(inputs.lengths == 0, -5, inputs.lengths))
    for dtype in (np.int64, np.int32) if wild.max() < 2**31 else (np.int64,):
        clamped = dataclasses.replace(moved, lengths=device.put(wild.astype(dtype)))
        assert_same(device.get(run_library(layer, clamped)), expected)


@pytest.mark.parametrize("case", GATED)
def test_what_is_beyond_a_length_or_a_cut_link_influences_nothing(
    device: TestDevice, case: Case, rng: np.random.Generator
) -> None:
    layer, inputs = make_layer(case, device="cuda"), make_inputs(case, rng)
    assert inputs.reset is not None
    inputs.reset[0, 1] = True
    expected = run(device, layer, dataclasses.replace(inputs, x=np.nan_to_num(inputs.x), dy=np.nan_to_num(inputs.dy)))
    # The initial state of row 1, forward direction, is cut off.
    for state in as_tuple(inputs.state):
        state[::2, 1] = np.nan
    result = run(device, layer, inputs)
    rows = [b for b in range(case.batch) if inputs.lengths[b] > 0 or b != 1]
    assert_same((result.y, result.dx, result.parameters), (expected.y, expected.dx, expected.parameters))
    for a, b in zip(as_tuple(result.dstate), as_tuple(expected.dstate), strict=True):
        assert_same(a[:, rows], b[:, rows])


@pytest.mark.parametrize("case", GATED + CLIPPED + REVERSED)
def test_no_kernel_depends_on_the_order_of_its_threads(
    cuda_host_module: Any, case: Case, rng: np.random.Generator
) -> None:
    with stand_in(cuda_host_module) as device:
        layer, inputs = make_layer(case, device="cuda"), make_inputs(case, rng)
        expected = run(device, layer, inputs)
        cuda_host_module.set_reversed(True)
        assert_same(run(device, layer, inputs), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", GATED + REVERSED)
def test_chunks_of_time_add_up_to_the_whole(
    cuda_host_module: Any, case: Case, dtype: str, rng: np.random.Generator
) -> None:
    with stand_in(cuda_host_module) as device:
        layer = make_layer(case, device="cuda", dtype=dtype)
        inputs = make_clear_inputs(case, widened(host(layer, device)), rng)
        if dtype == "bfloat16":
            inputs = shortened(inputs, layer.dtype)
        bounds = error_bounds(case, widened(host(layer, device)), widened_inputs(inputs), other=case.dtype)
        bounds = map_result(lambda a: a * float(ml_dtypes.finfo(layer.dtype).eps) / case.eps, bounds)
        expected = run(device, layer, inputs)
        y = device.get(
            layer(device.put(inputs.x), device.put(inputs.state), inputs.lengths, device.put(inputs.reset))[0]
        )
        assert_same(y, expected.y)
        for size in (1, 1500, 2500):  # a step at a time, and a few
            cuda_host_module.set_chunk_bytes(size)
            result = run(device, layer, inputs)
            assert_results_close(Result(*map(widened, result)), Result(*map(widened, expected)), bounds)
            again = layer(device.put(inputs.x), device.put(inputs.state), inputs.lengths, device.put(inputs.reset))[0]
            assert_same(device.get(again), expected.y)


@pytest.mark.parametrize("case", GATED)
def test_absent_arguments_are_zeros(device: TestDevice, case: Case, rng: np.random.Generator) -> None:
    layer = make_layer(case, device="cuda")
    inputs = make_clear_inputs(case, host(layer, device), rng)
    for absent in (
        dataclasses.replace(inputs, state=None, dstate=None),
        dataclasses.replace(inputs, dy=None),
        *([dataclasses.replace(inputs, dstate=(None, inputs.dstate[1]))] if case.two_states else []),
    ):
        expected = run_reference(case, host(layer, device), absent)
        assert_results_close(run(device, layer, absent), expected, error_bounds(case, host(layer, device), absent))


@pytest.mark.parametrize("case", GATED)
def test_backward_adds_into_the_grads_it_is_given(device: TestDevice, case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case, device="cuda"), make_inputs(case, rng)
    moved = device.put(inputs)
    tape = layer.forward(moved.x, moved.state, moved.lengths, moved.reset)[2]
    first = layer.backward(tape, moved.dy, moved.dstate)
    once = device.get(first.parameters)
    second = layer.backward(tape, moved.dy, moved.dstate, grads=first)
    for name, gradient in once.items():
        assert second.parameters[name] is first.parameters[name]
        assert_same(device.get(second.parameters[name]), 2 * gradient)
    assert_same(device.get(layer.backward(tape, moved.dy, moved.dstate).parameters), once)


@pytest.mark.parametrize("case", small(num_layers=2, directions=2, dtype="float32", ragged=True, reset=True))
def test_batch_first_and_strides(device: TestDevice, case: Case, rng: np.random.Generator) -> None:
    layer, flipped = make_layer(case, device="cuda"), make_layer(case, batch_first=True, device="cuda")
    inputs = make_inputs(case, rng)
    expected = run(device, layer, inputs)
    x, dy, reset = (device.put(a).swapaxes(0, 1) for a in (inputs.x, inputs.dy, inputs.reset))
    wide = device.put(np.full((case.batch, case.time + 1, 2 * case.hidden_size + 3), np.nan, case.dtype))
    out = wide[:, 1:, 2:-1]
    y, state, tape = flipped.forward(x, device.put(inputs.state), inputs.lengths, reset, out=out)
    grads = flipped.backward(tape, dy, device.put(inputs.dstate))
    assert y is out
    result = device.get(Result(y.swapaxes(0, 1), state, grads.x.swapaxes(0, 1), grads.state, grads.parameters))
    assert_same(result, expected)
    surroundings = device.get(wide)
    surroundings[:, 1:, 2:-1] = np.nan
    assert np.isnan(surroundings).all()


@pytest.mark.parametrize("case", small(num_layers=2, directions=2, batch=1, dtype="float32", reset=True))
def test_unbatched(device: TestDevice, case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case, device="cuda"), make_inputs(case, rng)
    whole = run(device, layer, inputs)

    def bare(state: Any) -> Any:
        parts = tuple(s[:, 0] for s in as_tuple(state))
        return parts if case.two_states else parts[0]

    alone = Inputs(inputs.x[:, 0], bare(inputs.state), None, inputs.reset[:, 0], inputs.dy[:, 0], bare(inputs.dstate))
    expected = Result(whole.y[:, 0], bare(whole.state), whole.dx[:, 0], bare(whole.dstate), whole.parameters)
    assert_same(run(device, layer, alone), expected)


@pytest.mark.parametrize(("batch", "clip"), [(None, None), (1, CLIP), (6, None), (6, CLIP)])
@pytest.mark.parametrize("cell", LAYERS)
def test_cells_take_one_step(
    device: TestDevice, cell: str, batch: int | None, clip: float | None, rng: np.random.Generator
) -> None:
    name, options = LAYERS[cell]
    modules = [
        getattr(fr, f"{name}Cell")(5, 19, seed=7, clip=clip, dtype="float64", device=where, **options)
        for where in ("cpu", "cuda")
    ]
    shape = () if batch is None else (batch,)
    states = 2 if name == "LSTM" else 1
    x, *parts = (rng.standard_normal((*shape, size)) for size in (5, *[19] * 2 * states))
    state, dstate = ((a[0] if states == 1 else tuple(a)) for a in (parts[:states], parts[states:]))
    results = []
    for module, put in zip(modules, (lambda a: a, device.put), strict=True):
        after, tape = module.forward(put(x), put(state))
        grads = module.backward(tape, put(dstate))
        results.append(device.get((after, grads.x, grads.state, grads.parameters)))
        assert_same(device.get(module(put(x), put(state))), results[-1][0])
    for ours, theirs in zip(*map(_flat, results), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-13)


def _flat(value: Any) -> list[np.ndarray]:
    if isinstance(value, dict):
        value = tuple(value.values())
    return [leaf for item in value for leaf in _flat(item)] if isinstance(value, tuple) else [value]


# ---- sixteen bits and tf32 ----


SHORT = [case for case in small(num_layers=2, directions=2, ragged=True, reset=True) if case.cell != "rnn_relu"]


@pytest.mark.parametrize("recompute", [None, 4])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", SHORT)
def test_sixteen_bits(
    device: TestDevice, case: Case, dtype: str, recompute: int | None, rng: np.random.Generator
) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype)) if dtype == "bfloat16" else np.dtype(dtype)
    layer = make_layer(case, dtype=dtype, device="cuda")
    inputs = make_inputs(case, rng)

    given = shortened(inputs, kind)
    moved = device.put(given)
    y, state, tape = layer.forward(moved.x, moved.state, moved.lengths, moved.reset, recompute=recompute)
    grads = layer.backward(tape, moved.dy, moved.dstate)
    result = device.get(Result(y, state, grads.x, grads.state, grads.parameters))
    for array in (result.y, result.dx, as_tuple(result.state)[0], *result.parameters.values()):
        assert array.dtype == kind
    if case.two_states:
        assert result.state[1].dtype == result.dstate[1].dtype == np.float32
    wide = widened_inputs(given)
    parameters = widened(host(layer, device))
    eps = float(ml_dtypes.finfo(kind).eps)
    # Every operation of the reference rounded to 16 bits: more than is. Below the normal range steps are 2^-24.
    bounds = map_result(lambda a: a.bound(eps) + 2.0**-20, run_rounded(case, parameters, wide))
    actual = Result(*(widened(part) for part in result))
    assert_results_close(actual, run_reference(case, parameters, wide), bounds)


def test_narrowing_rounds_to_nearest_even(device: TestDevice) -> None:
    values = np.concatenate(
        [
            np.float32(2.0) ** np.arange(-30, 18, dtype=np.float32) * np.float32(factor)
            for factor in (1, 1 + 2**-8, 1 + 2**-9, 1 + 3 * 2**-9, 1 + 2**-11, 1 + 3 * 2**-11, 1.9999, -1.3)
        ]
    ).astype(np.float32)
    values = np.concatenate([values, np.array([0.0, -0.0, 65519.9, 65520.0, np.inf, -np.inf, np.nan], np.float32)])
    for dtype in ("bfloat16", "float16"):
        kind = np.dtype(getattr(ml_dtypes, dtype)) if dtype == "bfloat16" else np.dtype(dtype)
        # A relu cell with the identity as its weights and c absent passes what it is given: float32 -> 16 bits -> out.
        layer = fr.RNNCell(1, 1, nonlinearity="relu", bias=False, dtype=dtype, device="cuda", seed=0)
        layer.load_parameters({"weight_ih": np.ones((1, 1), kind), "weight_hh": np.zeros((1, 1), kind)})
        with np.errstate(over="ignore"):
            expected = values.astype(kind)
        x = np.abs(expected[:, None])
        got = device.get(layer(device.put(x)))
        np.testing.assert_array_equal(got.view(np.uint16)[~np.isnan(x)], x.view(np.uint16)[~np.isnan(x)])


@pytest.mark.parametrize("case", [case for case in GATED if case.cell != "rnn_relu"])
def test_tf32(device: TestDevice, case: Case, rng: np.random.Generator) -> None:
    layer = make_layer(case, device="cuda", precision="tf32")
    inputs = make_inputs(case, rng)
    eps = 2.0**-10
    bounds = map_result(lambda a: a.bound(eps), run_rounded(case, host(layer, device), inputs))
    assert_results_close(run(device, layer, inputs), run_reference(case, host(layer, device), inputs), bounds)


def test_the_stand_ins_tf32_keeps_nans(cuda_host_module: Any, rng: np.random.Generator) -> None:
    with stand_in(cuda_host_module) as device:
        layer = fr.LSTM(3, 5, device="cuda", precision="tf32", engine="stepwise", seed=0)
        x = rng.standard_normal((2, 4, 3)).astype(np.float32)
        x[:, 1, 2] = np.uint32(0xFFFFFFFF).view(np.float32)
        y = device.get(layer(device.put(x))[0])
        assert np.isnan(y).any(2).tolist() == [[False, True, False, False]] * 2
        assert np.isnan(y[:, 1]).all()


# ---- steppers, moving about ----


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", small(num_layers=2, dtype="float32") + small(dtype="float32", clip=CLIP))
def test_a_stepper_steps_as_the_whole(device: TestDevice, case: Case, dtype: str, rng: np.random.Generator) -> None:
    layer = make_layer(case, device="cuda", dtype=dtype)
    inputs = make_inputs(case, rng)
    kind = layer.dtype
    x = device.put(inputs.x.astype(kind))
    state = [s.astype(kind if k == 0 else np.float32) for k, s in enumerate(as_tuple(inputs.state))]
    state = device.put(tuple(state) if case.two_states else state[0])
    y, final = layer(x, state)
    stepper = layer.stream(case.batch)
    stepper.state = state
    out = device.empty((case.batch, case.hidden_size), kind)
    near = 100 * float(ml_dtypes.finfo(kind).eps)
    for t in range(case.time):
        result = stepper.step(x[t], out=out if t % 2 else None)
        assert (result is out) == bool(t % 2)
        np.testing.assert_allclose(*(widened(device.get(a)) for a in (result, y[t])), rtol=0, atol=near)
    for a, b in zip(as_tuple(stepper.state), as_tuple(final), strict=True):
        np.testing.assert_allclose(*(widened(device.get(s)) for s in (a, b)), rtol=0, atol=near)
    stepper.reset([1])
    for a, b in zip(as_tuple(device.get(stepper.state)), as_tuple(device.get(final)), strict=True):
        assert not widened(a[:, 1]).any()
        np.testing.assert_allclose(widened(a[:, 2:]), widened(b[:, 2:]), rtol=0, atol=near)
    stepper.reset()
    assert not any(widened(s).any() for s in as_tuple(device.get(stepper.state)))


def test_layers_move_pickle_and_copy(device: TestDevice, rng: np.random.Generator) -> None:
    case = dataclasses.replace(small(num_layers=2)[2], dtype="float64")
    cpu = make_layer(case, dropout=0.5)
    inputs = make_inputs(case, rng)
    cpu.forward(inputs.x)
    layer = copy.deepcopy(cpu).to(device="cuda")
    assert layer.device == device.name and layer._engine.calls == 1
    assert_same(host(layer, device), cpu.parameters)
    expected = cpu(inputs.x)[0]
    for twin in (layer, pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert twin.device == device.name and twin._engine.calls == 1
        np.testing.assert_allclose(device.get(twin(device.put(inputs.x))[0]), expected, rtol=0, atol=1e-13)
    back = copy.deepcopy(layer).to(device="cpu")
    assert_same(back.parameters, cpu.parameters)
    half = copy.deepcopy(layer).to(dtype="float16")
    assert half.parameters["weight_ih_l0"].dtype == np.float16
    with pytest.raises(ValueError, match="dtype"):
        half.to(device="cpu")
    half = layer.to(dtype="bfloat16")
    assert half.parameters["weight_ih_l0"].dtype == ml_dtypes.bfloat16
    assert_same(copy.deepcopy(half).to(device="cpu").parameters, host(half, device))
    assert_same(
        device.get(half.to(dtype="float32").parameters["bias_ih_l0"]),
        cpu.parameters["bias_ih_l0"].astype(ml_dtypes.bfloat16).astype(np.float32),
    )


def test_initialisers_and_loading(device: TestDevice, rng: np.random.Generator) -> None:
    cpu, layer = make_twins(small()[2])
    for function in (fr.init.uniform_, fr.init.orthogonal_):
        assert_same(host(function(layer, 5), device), function(cpu, 5).parameters)
    assert_same(host(fr.init.forget_bias_(layer), device), fr.init.forget_bias_(cpu).parameters)
    fr.init.uniform_(layer, 9)
    for mapping in (cpu.parameters, device.put(cpu.parameters)):
        layer.load_parameters(mapping)
        assert_same(host(layer, device), cpu.parameters)
    with pytest.raises(TypeError, match="weight_ih_l0"):
        layer.load_parameters({name: array.astype(np.float32) for name, array in cpu.parameters.items()})


def test_loading_bfloat16(device: TestDevice) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.GRU(3, 4).bfloat16()
    mapping = {f"rnn.{name}": tensor for name, tensor in module.state_dict().items()}
    same, wide = fr.GRU(3, 4, dtype="bfloat16", device="cuda"), fr.GRU(3, 4, device="cuda")
    same.load_parameters(mapping, "rnn.")
    wide.load_parameters(mapping, "rnn.", convert=True)
    with pytest.raises(TypeError, match=r"rnn.weight_ih_l0.*float32, not of bfloat16"):
        wide.load_parameters(mapping, "rnn.")
    with pytest.raises(TypeError, match=r"weight_ih_l0.*bfloat16, not of float32"):
        same.load_parameters(device.get(wide.parameters))
    for layer in (same, wide):
        for name, array in host(layer, device).items():
            assert_same(array.astype(np.float32), getattr(module, name).detach().float().numpy())


# ---- readout and clipping ----


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape,hidden,classes", [((), 5, 7), ((4, 9), 16, 33), ((70,), 31, 300), ((0, 3), 4, 6)])
def test_linear_cross_entropy(
    device: TestDevice,
    shape: tuple[int, ...],
    hidden: int,
    classes: int,
    dtype: str,
    reduction: str,
    rng: np.random.Generator,
) -> None:
    from fusedrnn import reference

    kind = np.dtype(getattr(ml_dtypes, dtype)) if dtype == "bfloat16" else np.dtype(dtype)
    x, weight, bias = (rng.standard_normal(s).astype(kind) for s in ((*shape, hidden), (classes, hidden), classes))
    targets = np.asarray(rng.integers(0, classes, shape))
    if targets.size:
        targets[rng.random(shape) < 0.2] = -100
        targets.reshape(-1)[0] = 0
        x.reshape(-1, hidden)[targets.reshape(-1) == -100] = np.nan  # ignored rows influence nothing
    elif reduction == "mean":
        pytest.skip("the mean of none is nan")
    sums = np.float32 if kind.itemsize == 2 else kind
    dloss = rng.standard_normal(shape).astype(sums) if reduction == "none" else 0.7
    if not device.real:
        device.arrays.native.set_chunk_bytes(classes * 8 * 5)  # a few rows
    loss, tape = fr.linear_cross_entropy_forward(*device.put((x, weight, bias, targets)), reduction=reduction)
    grads = fr.linear_cross_entropy_backward(tape, device.put(dloss))
    assert loss.dtype == sums and loss.shape == (shape if reduction == "none" else ())
    clean = np.nan_to_num(widened(x)), widened(weight), widened(bias), targets
    expected = (
        reference.linear_cross_entropy(*clean, reduction=reduction),
        *reference.linear_cross_entropy_backward(*clean, dloss, reduction=reduction),
    )
    eps = float(ml_dtypes.finfo(kind).eps)
    rows = max(int(np.prod(shape, dtype=int)), 1)
    near = 4 * eps * (np.sqrt(hidden) * (np.sqrt(hidden) + 8) + np.sqrt(classes) + np.sqrt(rows))
    for name, a, b in zip(("loss", "dx", "dweight", "dbias"), (loss, *grads), expected, strict=True):
        a = np.asarray(widened(np.asarray(device.get(a))))
        ignored = name == "dx"
        assert a.shape == np.shape(b), name
        scale = max(float(np.abs(b).max(initial=0)), 1e-3)
        np.testing.assert_allclose(a, b, rtol=0, atol=near * scale + 2.0**-24, err_msg=name)
        assert not ignored or not a[targets == -100].any()


def test_device_targets_out_of_range_give_nan(device: TestDevice, rng: np.random.Generator) -> None:
    x, weight = rng.standard_normal((6, 5)), rng.standard_normal((9, 5))
    targets = np.array([0, 8, 9, -1, -100, 3])
    moved = device.put((x, weight))
    each = device.get(fr.linear_cross_entropy(*moved, None, device.put(targets), reduction="none"))
    assert np.isnan(each).tolist() == [False, False, True, True, False, False]
    loss = fr.linear_cross_entropy(*moved, None, device.put(targets))
    assert loss.shape == () and np.isnan(device.get(loss))
    with pytest.raises(TypeError, match="targets must be a"):
        fr.linear_cross_entropy(*moved, None, targets)
    none = device.put(np.full(6, -100))
    assert np.isnan(device.get(fr.linear_cross_entropy(*moved, None, none)))


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_clip_grad_norm(device: TestDevice, dtype: str, rng: np.random.Generator) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype)) if dtype == "bfloat16" else np.dtype(dtype)
    grads = {str(k): rng.standard_normal(shape).astype(kind) for k, shape in enumerate([(3, 5), (7,), (0,), (40, 60)])}
    norm = np.sqrt(sum(np.square(widened(g)).sum() for g in grads.values()))
    # Ours rounds the factor and the product to its type, this test's quotient and product are rounded to float64.
    near = 2 * float(ml_dtypes.finfo(kind).eps) / 2 + 2 * float(np.finfo(np.float64).eps) / 2
    for limit in (norm / 3, 2 * norm, np.inf):
        moved = device.put(grads)
        result = fr.clip_grad_norm(moved, limit)
        assert result.shape == () and result.dtype == np.float64
        np.testing.assert_allclose(device.get(result), norm, rtol=1e-12)
        factor = min(1.0, limit / float(device.get(result)))
        for name, array in device.get(moved).items():
            np.testing.assert_allclose(widened(array), widened(grads[name]) * factor, rtol=near, atol=1e-30)
    with pytest.raises(TypeError, match="grads must hold arrays of one device"):
        fr.clip_grad_norm([device.put(np.ones(2)), np.ones(2)], 1.0)

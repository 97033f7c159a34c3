"""fusedrnn.optim against torch.optim, on the CPU and on a device, with groups, and what is refused."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitwise import assert_same, copied
from devices import TestDevice

import fusedrnn as fr
from fusedrnn.arrays.dtypes import numpy_dtype
from fusedrnn.optimizer import Optimizer

STEPS = 30
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": 0.1}),
    "sgd_decay": ("SGD", {"lr": 0.1, "weight_decay": 0.03}),
    "momentum": ("SGD", {"lr": 0.1, "momentum": 0.9}),
    "momentum_decay": ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.03}),
    "adam": ("Adam", {"lr": 0.01}),
    "adam_options": ("Adam", {"lr": 0.01, "betas": (0.7, 0.95), "eps": 1e-3, "weight_decay": 0.1}),
    "adam_memoryless": ("Adam", {"lr": 0.01, "betas": (0.0, 0.0)}),
    "adamw": ("AdamW", {"lr": 0.01}),
    "adamw_options": ("AdamW", {"lr": 0.01, "betas": (0.7, 0.95), "eps": 1e-3, "weight_decay": 0.3}),
}
SHAPES = {"weight": (5, 3), "bias": (7,), "empty": (0, 4), "number": ()}


@pytest.fixture(params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return KINDS[request.param]


def draw(rng: np.random.Generator, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    return {name: np.asarray(rng.standard_normal(shape)).astype(dtype) for name, shape in SHAPES.items()}


def make(kind: tuple[str, dict[str, Any]], parameters: Any, **options: Any) -> Any:
    return getattr(fr.optim, kind[0])(parameters, **{**kind[1], **options})


def torch_run(
    kind: tuple[str, dict[str, Any]], start: dict[str, np.ndarray], gradients: list[dict[str, np.ndarray]], dtype: Any
) -> dict[str, np.ndarray]:
    """Where torch's optimizer ends, computing in `dtype`."""
    torch = pytest.importorskip("torch")
    parameters = {name: torch.nn.Parameter(torch.tensor(array.astype(dtype))) for name, array in start.items()}
    optimizer = getattr(torch.optim, kind[0])(parameters.values(), **kind[1])
    for each in gradients:
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(each[name].astype(dtype))
        optimizer.step()
    return {name: parameter.detach().numpy() for name, parameter in parameters.items()}


def tolerance(dtype: Any, kind: tuple[str, dict[str, Any]]) -> float:
    """A step rounds a parameter of a few units once or twice, and its change, of a few lr, in some 16 places."""
    change = kind[1]["lr"] * 4 / (1 - kind[1].get("momentum", 0.0))
    return float(np.finfo(dtype).eps) * STEPS * (4 + 16 * change)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_torchs_values(kind: tuple[str, dict[str, Any]], dtype: Any, rng: np.random.Generator) -> None:
    start, gradients = draw(rng, dtype), [draw(rng, dtype) for _ in range(STEPS)]
    parameters = copied(start)
    optimizer = make(kind, parameters)
    for each in gradients:
        kept = copied(each)
        optimizer.step(each)
        assert_same(each, kept)
    expected = torch_run(kind, start, gradients, np.float64)
    for name, array in parameters.items():
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=tolerance(dtype, kind))


def test_a_device_does_as_the_cpu(
    kind: tuple[str, dict[str, Any]], device: TestDevice, rng: np.random.Generator
) -> None:
    start, gradients = draw(rng), [draw(rng) for _ in range(3)]
    host, there = copied(start), device.put(start)
    optimizers = make(kind, host), make(kind, there)
    for each in gradients:
        optimizers[0].step(each)
        optimizers[1].step(device.put(each))
    for name, array in device.get(there).items():
        np.testing.assert_allclose(array, host[name], rtol=0, atol=tolerance(np.float32, kind))
    states = [optimizer.state_dict() for optimizer in optimizers]
    assert states[0].keys() == states[1].keys()
    assert all(type(value) in (int, float, np.ndarray) for state in states for value in state.values())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_round_the_parameter_alone(
    kind: tuple[str, dict[str, Any]], dtype: str, device: TestDevice, rng: np.random.Generator
) -> None:
    pytest.importorskip("ml_dtypes")
    narrow = numpy_dtype(dtype)
    start, gradient = draw(rng, narrow), draw(rng, narrow)
    there, wide = device.put(start), {name: array.astype(np.float32) for name, array in start.items()}
    optimizer = make(kind, there)
    optimizer.step(device.put(gradient))
    make(kind, wide).step({name: array.astype(np.float32) for name, array in gradient.items()})
    make(kind, start).step(gradient)
    for name, array in device.get(there).items():
        assert array.dtype == narrow
        assert_same(start[name], wide[name].astype(narrow))
        if device.real:  # whose float32 may round otherwise
            np.testing.assert_allclose(array.astype(float), wide[name], rtol=2.0**-7)
        else:
            assert_same(array, wide[name].astype(narrow))
    arrays = [value for value in optimizer.state_dict().values() if isinstance(value, np.ndarray)]
    assert all(array.dtype == np.float32 for array in arrays)


def test_a_layer_learns(rng: np.random.Generator) -> None:
    layer = fr.GRU(3, 8, seed=0)
    weight, bias = np.zeros((2, 8), np.float32), np.zeros(2, np.float32)
    groups = {"layer": layer.parameters, "readout": {"weight": weight, "bias": bias}}
    optimizer = fr.optim.Adam(groups, lr=0.02)
    x = rng.standard_normal((6, 32, 3), dtype=np.float32)
    targets = (x.sum(axis=-1) > 0).astype(np.int64)
    losses = []
    for _ in range(80):
        y, _, tape = layer.forward(x)
        loss, readout = fr.linear_cross_entropy_forward(y, weight, bias, targets)
        dy, dweight, dbias = fr.linear_cross_entropy_backward(readout)
        grads = {"layer": layer.backward(tape, dy), "readout": {"weight": dweight, "bias": dbias}}
        fr.clip_grad_norm(grads, 1.0)
        optimizer.step(grads)
        losses.append(float(loss))
    assert losses[0] == pytest.approx(math.log(2), rel=1e-6)
    assert losses[-1] < 0.2


def test_groups_equal_their_parts(kind: tuple[str, dict[str, Any]], rng: np.random.Generator) -> None:
    start, gradients = draw(rng), [draw(rng) for _ in range(3)]
    alone, first, second = copied(start), copied(start), copied(start)
    one, grouped = make(kind, alone), make(kind, {"a": first, "b": second})
    for each in gradients:
        one.step(each)
        grouped.step({"b": each, "a": fr.Gradients(x=np.zeros(1), state=np.zeros(1), parameters=each)})
    assert_same(first, alone)
    assert_same(second, alone)


def test_rates_by_group(rng: np.random.Generator) -> None:
    start, gradient = draw(rng), draw(rng)
    groups = {"a": copied(start), "b": copied(start)}
    optimizer = fr.optim.AdamW(groups, lr={"a": 0.1, "b": 0.0}, weight_decay={"b": 0.0, "a": 0.5})
    optimizer.step({"a": gradient, "b": gradient})
    expected = copied(start)
    fr.optim.AdamW(expected, lr=0.1, weight_decay=0.5).step(gradient)
    assert_same(groups["a"], expected)
    assert_same(groups["b"], start)
    optimizer.lr["b"] = 0.25
    other = fr.optim.AdamW({"a": copied(start), "b": copied(start)}, lr=1.0)
    other.load_state_dict(optimizer.state_dict())
    assert other.lr == {"a": 0.1, "b": 0.25}
    assert other.weight_decay == {"a": 0.5, "b": 0.0}
    optimizer.lr["b"] = -1.0
    with pytest.raises(ValueError, match=r"lr\['b'\]"):
        optimizer.step({"a": gradient, "b": gradient})


def test_the_rate_may_change(kind: tuple[str, dict[str, Any]], rng: np.random.Generator) -> None:
    parameters, gradient = draw(rng), draw(rng)
    optimizer = make(kind, parameters)
    optimizer.step(gradient)
    kept = copied(parameters)
    optimizer.lr = 0
    optimizer.step(gradient)
    assert_same(parameters, kept)
    optimizer.lr = 1e-2
    optimizer.lr *= 0.5
    assert optimizer.lr == 5e-3
    for bad, error in ((-1.0, ValueError), (math.nan, ValueError), (math.inf, ValueError), ("1", TypeError)):
        with pytest.raises(error, match="lr"):
            optimizer.lr = bad
    assert optimizer.lr == 5e-3


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("how", ["dict", "savez", "pickle", "pickled optimizer"])
def test_a_run_goes_on_from_its_state(
    kind: tuple[str, dict[str, Any]], how: str, grouped: bool, rng: np.random.Generator, tmp_path: Path
) -> None:
    def form(mapping: dict[str, Any]) -> Any:
        return {"net": mapping} if grouped else mapping

    parameters, gradients = draw(rng), [draw(rng) for _ in range(6)]
    optimizer = make(kind, form(parameters))
    for each in gradients[:3]:
        optimizer.step(form(each))
    state, resumed = optimizer.state_dict(), copied(parameters)
    for each in gradients[3:]:
        optimizer.step(form(each))
    other = make(kind, form(resumed), lr=7.0)
    if how == "savez":
        np.savez(tmp_path / "state.npz", **state)
        other.load_state_dict(np.load(tmp_path / "state.npz"))
    elif how == "pickled optimizer":
        other.load_state_dict(state)
        other = pickle.loads(pickle.dumps(other))
        resumed = other.parameters["net"] if grouped else other.parameters
    else:
        other.load_state_dict(pickle.loads(pickle.dumps(state)) if how == "pickle" else state)
    assert other.lr == kind[1]["lr"]
    for each in gradients[3:]:
        other.step(form(each))
    assert_same(resumed, parameters)
    assert other.steps == optimizer.steps == 6


def test_a_state_goes_to_a_device_and_back(device: TestDevice, rng: np.random.Generator) -> None:
    parameters, gradient = draw(rng), draw(rng)
    optimizer = fr.optim.Adam(parameters)
    optimizer.step(gradient)
    other = fr.optim.Adam(device.put(parameters))
    other.load_state_dict(optimizer.state_dict())
    assert_same(other.state_dict(), optimizer.state_dict())
    other.load_state_dict({name: device.put(value) for name, value in optimizer.state_dict().items()})
    assert_same(other.state_dict(), optimizer.state_dict())


def test_copies_keep_to_their_layer(rng: np.random.Generator) -> None:
    layer = fr.RNN(2, 3, seed=0)
    gradient = {name: np.ones_like(array) for name, array in layer.parameters.items()}
    optimizer = fr.optim.SGD(layer.parameters, 0.5)
    other_layer, other = copy.deepcopy((layer, optimizer))
    kept = copied(layer.parameters)
    other.step(gradient)
    assert_same(layer.parameters, kept)
    assert_same(other_layer.parameters, {name: array - np.float32(0.5) for name, array in kept.items()})


def test_strided_arrays(kind: tuple[str, dict[str, Any]], rng: np.random.Generator) -> None:
    start = rng.standard_normal((6, 8))
    plain, strided = {"w": start[::2, ::-2].copy()}, {"w": start[::2, ::-2]}
    untouched = start[1::2].copy()
    gradient = rng.standard_normal((4, 3))
    make(kind, plain).step({"w": gradient.T.copy()})
    make(kind, strided).step({"w": gradient.T})
    assert_same(strided["w"], plain["w"])
    assert_same(start[1::2], untouched)


def test_steps_take_no_fresh_memory() -> None:
    import tracemalloc

    parameters = {"a": np.ones((500, 500)), "b": np.ones((100, 500))}
    gradient = {name: array.copy() for name, array in parameters.items()}
    optimizers = [make(kind, parameters) for kind in KINDS.values()]
    for optimizer in optimizers:
        optimizer.step(gradient)
    tracemalloc.start()
    for optimizer in optimizers:
        optimizer.step(gradient)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_after_to_the_old_optimizer_says_so(rng: np.random.Generator) -> None:
    layer = fr.RNN(2, 3, seed=0)
    x = rng.standard_normal((4, 1, 2))
    optimizer = fr.optim.Adam(layer.parameters)
    layer.to(dtype="float64")
    grads = layer.backward(layer.forward(x)[2])
    with pytest.raises(TypeError, match=r"gradients\['weight_ih_l0'\].*float32.*not of float64.*layer\.to"):
        optimizer.step(grads)
    fr.optim.Adam(layer.parameters).step(grads)


BAD_GRADIENTS: dict[str, tuple[type, str, Any]] = {
    "missing": (ValueError, r"missing: \['bias'\]", lambda g: {n: a for n, a in g.items() if n != "bias"}),
    "unknown": (ValueError, r"unknown: \['more'\]", lambda g: {**g, "more": g["bias"]}),
    "shape": (ValueError, r"gradients\['bias'\].*\(7,\).*\(6,\)", lambda g: {**g, "bias": g["bias"][:6]}),
    "broadcast": (ValueError, r"gradients\['weight'\].*\(5, 3\)", lambda g: {**g, "weight": g["weight"][:, :1]}),
    "dtype": (TypeError, r"gradients\['bias'\].*float32.*float64", lambda g: {**g, "bias": g["bias"].astype(float)}),
    "integers": (TypeError, r"gradients\['bias'\].*int64", lambda g: {**g, "bias": g["bias"].astype(int)}),
    "none": (TypeError, r"gradients\['bias'\].*NoneType", lambda g: {**g, "bias": None}),
    "list": (TypeError, r"gradients\['bias'\].*list", lambda g: {**g, "bias": g["bias"].tolist()}),
    "masked": (TypeError, r"gradients\['bias'\].*mask", lambda g: {**g, "bias": np.ma.masked_less(g["bias"], 0)}),
    "sequence": (TypeError, "gradients must be a mapping", lambda g: list(g.values())),
    "array": (TypeError, "gradients must be a mapping", lambda g: g["bias"]),
    "groups": (TypeError, r"gradients\['bias'\].*dict", lambda g: {**g, "bias": g}),
    "number names": (TypeError, "gradients must have strings", lambda g: {**g, 3: g["bias"]}),
}


@pytest.mark.parametrize("bad", BAD_GRADIENTS)
def test_bad_gradients(bad: str, kind: tuple[str, dict[str, Any]], rng: np.random.Generator) -> None:
    error, message, spoil = BAD_GRADIENTS[bad]
    parameters, gradient = draw(rng), draw(rng)
    optimizer = make(kind, parameters)
    kept, state = copied(parameters), optimizer.state_dict()
    with pytest.raises(error, match=message):
        optimizer.step(spoil(gradient))
    with pytest.raises(error, match="net"):
        make(kind, {"net": parameters}).step({"net": spoil(gradient)})
    assert_same(parameters, kept)
    assert_same(optimizer.state_dict(), state)


def test_gradients_of_another_place(device: TestDevice, rng: np.random.Generator) -> None:
    parameters, gradient = draw(rng), draw(rng)
    with pytest.raises(TypeError, match=r"gradients\['weight'\].*on the CPU.*on cuda:0"):
        fr.optim.SGD(parameters, 0.1).step(device.put(gradient))
    with pytest.raises(TypeError, match=r"gradients\['weight'\].*on cuda:0.*on the CPU"):
        fr.optim.SGD(device.put(parameters), 0.1).step(gradient)
    if not device.real:
        with pytest.raises(TypeError, match=r"gradients\['weight'\].*on cuda:1.*on cuda:0"):
            fr.optim.SGD(device.put(parameters, 1), 0.1).step(device.put(gradient))


def test_bad_parameters() -> None:
    ones = np.ones(3)
    fixed = np.ones(3)
    fixed.flags.writeable = False
    for parameters, error, message in (
        ({}, ValueError, "parameters must hold"),
        ({"a": {}}, ValueError, "parameters must hold"),
        (ones, TypeError, "parameters must be a mapping"),
        ([ones], TypeError, "parameters must be a mapping"),
        (fr.RNN(2, 2), TypeError, "parameters must be a mapping"),
        ({"a": [1.0]}, TypeError, r"parameters\['a'\].*list"),
        ({"a": ones.astype(int)}, TypeError, r"parameters\['a'\].*int64"),
        ({"a": ones.astype(complex)}, TypeError, r"parameters\['a'\].*complex"),
        ({"a": np.ma.masked_array(ones)}, TypeError, r"parameters\['a'\].*mask"),
        ({"a": {"b": ones}, "c": ones}, TypeError, r"parameters\['c'\]"),
        ({"a": {"b": {"c": ones}}}, TypeError, r"parameters\['a'\]\['b'\]"),
        ({"a": ones, "b": ones}, ValueError, r"parameters\['b'\].*parameters\['a'\]"),
        ({"a": {"b.c": ones}, "a.b": {"c": ones.copy()}}, ValueError, r"parameters\['a.b'\]\['c'\]"),
        ({"a": fixed}, ValueError, r"parameters\['a'\].*writable"),
        ({"a": np.broadcast_to(ones, (2, 3))}, ValueError, r"parameters\['a'\]"),
        ({"a": np.lib.stride_tricks.as_strided(ones, (2, 2), (8, 8))}, ValueError, r"parameters\['a'\].*share"),
    ):
        for make_one in (lambda p: fr.optim.SGD(p, 0.1), fr.optim.Adam, fr.optim.AdamW):
            with pytest.raises(error, match=message):
                make_one(parameters)


def overlapping_views(memory: Any) -> list[tuple[Any, Any]]:
    """Pairs of views with an element in common, of an array (6, 6)."""
    return [
        (memory, memory[:]),
        (memory, memory.reshape(-1)),
        (memory, memory.T),
        (memory, memory[::-1, ::-1]),
        (memory[:4], memory[3:]),
        (memory[2], memory[:, 3]),
        (memory[3, 2:3], memory[:, 2]),
        (memory[::2], memory[::3]),
    ]


def disjoint_views(memory: Any) -> list[tuple[Any, Any]]:
    return [
        (memory[:3], memory[3:]),
        (memory[:, :3], memory[:, 3:]),
        (memory[::2], memory[1::2]),
        (memory[::-2], memory[::2]),
        (memory[0], memory[1:, 0]),
        (memory[:0], memory),
    ]


@pytest.mark.parametrize("there", [False, True])
def test_memory_of_two_parameters(there: bool, device: TestDevice) -> None:
    memory = np.ones((6, 6))
    memory = device.put(memory) if there else memory
    for one, other in overlapping_views(memory):
        for first, second in ((one, other), (other, one)):
            with pytest.raises(ValueError, match=r"parameters\['b'\] must not share memory with parameters\['a'\]"):
                fr.optim.SGD({"a": first, "b": second}, 1.0)
            with pytest.raises(ValueError, match=r"parameters\['n'\]\['b'\] must not share .*\['m'\]\['a'\]"):
                fr.optim.Adam({"m": {"a": first}, "n": {"b": second}})
            parameters = {"a": first, "b": second.copy()}
            optimizer = fr.optim.SGD(parameters, 1.0)
            parameters["b"] = second
            with pytest.raises(ValueError, match=r"parameters\['b'\] must not share memory"):
                optimizer.step({"a": first.copy(), "b": second.copy()})
            assert optimizer.steps == 0
    assert (memory == 1).all()
    for one, other in disjoint_views(memory):
        memory[...] = 1
        fr.optim.SGD({"a": one, "b": other}, 0.25).step({"a": one.copy(), "b": other.copy()})
        assert (one == 0.75).all() and (other == 0.75).all()


@pytest.mark.parametrize("there", [False, True])
def test_gradients_in_memory_of_the_parameters(
    there: bool, kind: tuple[str, dict[str, Any]], device: TestDevice, rng: np.random.Generator
) -> None:
    start = rng.standard_normal((2, 4, 4))
    memory, plain = (device.put(start) if there else start.copy()), start.copy()
    gradients = (
        lambda m: {"a": m[0], "b": m[1]},
        lambda m: {"a": m[1], "b": m[0]},
        lambda m: {"a": m[0].T, "b": m[0, ::-1]},
        lambda m: {"a": m[:, 0, 0].repeat(8).reshape(4, 4), "b": m.reshape(8, 4)[2:6]},
    )
    optimizer = make(kind, {"a": memory[0], "b": memory[1]})
    other = make(kind, {"a": plain[0], "b": plain[1]})
    for each in gradients:
        optimizer.step(each(memory))
        other.step(copied(each(plain)))
        found = device.get(memory) if there else memory
        if there and device.real:  # whose arithmetic may round otherwise
            np.testing.assert_allclose(found, plain, rtol=1e-10)
        else:
            assert_same(found, plain)


@pytest.mark.parametrize("beta1", [0.0, 0.25, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_small_gradient_after_a_large_one(beta1: float, dtype: Any) -> None:
    torch = pytest.importorskip("torch")
    values = (1e8, 1e-8, 1e8, 1e-9)
    ours, theirs = {"a": np.zeros(1, dtype)}, torch.nn.Parameter(torch.tensor(np.zeros(1, dtype)))
    optimizer = fr.optim.Adam(ours, betas=(beta1, 0.999))
    other = torch.optim.Adam([theirs], betas=(beta1, 0.999))
    for value in values:
        optimizer.step({"a": np.full(1, value, dtype)})
        theirs.grad = torch.full((1,), value, dtype=theirs.dtype)
        other.step()
        expected = other.state[theirs]["exp_avg"].numpy()
        eps = float(np.finfo(dtype).eps)
        np.testing.assert_allclose(optimizer.state_dict()["mean.a"], expected, rtol=8 * eps)
    if beta1 == 0:
        assert optimizer.state_dict()["mean.a"] == dtype(values[-1])


@pytest.mark.parametrize("how", ["raise", "warn"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_overflow_is_silent_and_leaves_nothing_half_done(
    how: Any, dtype: str, kind: tuple[str, dict[str, Any]], device: TestDevice
) -> None:
    finite = np.finfo(dtype)
    extreme = np.array([0, finite.max, finite.tiny, -np.inf, np.nan, 1], dtype)
    start = {"a": np.ones(6, dtype), "b": extreme[::-1].copy()}
    parameters, quiet = device.put(start), device.put(start)
    if dtype == "float64":
        parameters, quiet = copied(start), copied(start)
    gradient = {"a": extreme, "b": extreme}
    gradient = copied(gradient) if dtype == "float64" else device.put(gradient)
    optimizers = make(kind, parameters), make(kind, quiet)
    for steps in (1, 2):
        with np.errstate(all=how), warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizers[0].step(gradient)
        with np.errstate(all="ignore"):
            optimizers[1].step(gradient)
        assert_same(device.get(parameters), device.get(quiet)) if dtype != "float64" else assert_same(parameters, quiet)
        assert optimizers[0].steps == steps


def test_a_parameter_that_was_replaced() -> None:
    parameters = {"a": np.ones(3), "b": np.ones(2)}
    optimizer = fr.optim.Adam(parameters)
    gradient = copied(parameters)
    parameters["b"] = np.ones(4)
    with pytest.raises(ValueError, match=r"parameters\['b'\].*\(2,\).*\(4,\)"):
        optimizer.step(gradient)
    parameters["b"] = np.broadcast_to(np.ones(1), 2)
    with pytest.raises(ValueError, match=r"parameters\['b'\]"):
        optimizer.step(gradient)
    assert (parameters["a"] == 1).all()
    parameters["b"] = np.zeros(2)
    optimizer.step(gradient)
    assert (parameters["b"] < 0).all()


def test_bad_options() -> None:
    parameters = {"a": np.ones(3)}
    sgd, adam = fr.optim.SGD, fr.optim.Adam
    for maker, options, error, message in (
        (sgd, {"lr": -0.1}, ValueError, "lr"),
        (sgd, {"lr": math.nan}, ValueError, "lr"),
        (sgd, {"lr": None}, TypeError, "lr"),
        (sgd, {"lr": True}, TypeError, "lr"),
        (sgd, {"lr": {"b": 0.1}}, ValueError, "lr must"),
        (sgd, {"lr": {"a": 0.1}}, ValueError, "lr must"),
        (sgd, {"lr": {}}, ValueError, "lr must"),
        (sgd, {"lr": 0.1, "weight_decay": {}}, ValueError, "weight_decay must"),
        (fr.optim.AdamW, {"weight_decay": {}}, ValueError, "weight_decay must"),
        (sgd, {"lr": 0.1, "momentum": -1}, ValueError, "momentum"),
        (sgd, {"lr": 0.1, "weight_decay": -1}, ValueError, "weight_decay"),
        (adam, {"betas": (0.9, 1.0)}, ValueError, r"betas\[1\]"),
        (adam, {"betas": (-0.1, 0.9)}, ValueError, r"betas\[0\]"),
        (adam, {"betas": 0.9}, TypeError, "betas"),
        (adam, {"betas": np.array([0.9, 0.9])}, TypeError, "betas"),
        (adam, {"betas": (0.9, 0.9, 0.9)}, ValueError, "betas"),
        (adam, {"betas": (0.9,)}, ValueError, "betas"),
        (adam, {"betas": []}, ValueError, "betas"),
        (adam, {"betas": ("0.9", 0.9)}, TypeError, r"betas\[0\]"),
        (adam, {"eps": -1e-8}, ValueError, "eps"),
        (fr.optim.AdamW, {"weight_decay": math.inf}, ValueError, "weight_decay"),
    ):
        with pytest.raises(error, match=message):
            maker(parameters, **options)
    optimizer = adam(parameters)
    for name in ("lr", "weight_decay"):
        with pytest.raises(ValueError, match=f"{name} must"):
            setattr(optimizer, name, {})
        with pytest.raises(ValueError, match=f"{name} must"):
            optimizer.load_state_dict({**optimizer.state_dict(), name: {}})
        with pytest.raises(ValueError, match=f"{name} must"):
            adam({"net": parameters}, **{name: {}})


def test_the_base_is_not_made_directly() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Optimizer({"a": np.ones(3)}, 0.1, 0.0)  # type: ignore[abstract]


def test_bad_states(rng: np.random.Generator) -> None:
    parameters = draw(rng)
    optimizer = fr.optim.Adam(parameters)
    optimizer.step(draw(rng))
    good, square = optimizer.state_dict(), "square.weight"
    for state, error, message in (
        ({**good, square: good[square][:2]}, ValueError, r"state\['square.weight'\].*\(5, 3\).*\(2, 3\)"),
        ({**good, square: good[square].astype(float)}, TypeError, r"state\['square.weight'\].*float32.*float64"),
        ({**good, square: 1.0}, TypeError, r"state\['square.weight'\]"),
        ({**good, "steps": -1}, ValueError, r"state\['steps'\]"),
        ({**good, "steps": 1.5}, TypeError, r"state\['steps'\]"),
        ({**good, "lr": -1.0}, ValueError, "lr"),
        ({**good, "beta2": 1.0}, ValueError, "betas"),
        ({**good, "eps": "small"}, TypeError, "eps"),
        ({name: value for name, value in good.items() if name != square}, ValueError, r"missing: \['square.weight'\]"),
        ({**good, "more": 1}, ValueError, r"unknown: \['more'\]"),
        (fr.optim.SGD(parameters, 0.1).state_dict(), ValueError, "missing"),
        (None, TypeError, "state must be a mapping"),
    ):
        with pytest.raises(error, match=message):
            optimizer.load_state_dict(state)
        assert_same(optimizer.state_dict(), good)

"""Initial states that are data of a layer: calls, training, steppers, copies, files, ONNX and the device stand-in."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from cases import LAYERS, Case, make_layer
from devices import TestDevice, stand_in
from oracles import as_tuple

import fusedrnn as fr

SIZES = {"input_size": 5, "hidden_size": 18}


def layer_with_state(cell: str, rows: int = 1, **options: Any) -> tuple[Any, Any]:
    """A layer and an initial state of so many rows, which it has."""
    layer = make_layer(Case(cell, **{"num_layers": 2, "dtype": "float32", **SIZES, **options}))
    shape = (layer.num_layers * (2 if layer.bidirectional else 1), rows, layer.hidden_size)
    rng = np.random.default_rng(1)
    halves = [rng.standard_normal(shape).astype(layer.dtype) for _ in fr._core.cells[cell].states]
    layer.initial_state = halves[0] if len(halves) == 1 else (halves[0], halves[1])
    return layer, layer.initial_state


def for_rows(state: Any, rows: int) -> Any:
    halves = tuple(np.repeat(half, rows, axis=1) for half in as_tuple(state))
    return halves if isinstance(state, tuple) else halves[0]


def assert_same(one: Any, other: Any) -> None:
    for a, b in zip(as_tuple(one), as_tuple(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("options", [{}, {"directions": 2}, {"dtype": "float64"}], ids=["one", "two", "double"])
@pytest.mark.parametrize("cell", LAYERS)
def test_calls_begin_with_it(cell: str, options: dict[str, Any], batch: int, rng: np.random.Generator) -> None:
    layer, state = layer_with_state(cell, **options)
    x = rng.standard_normal((4, batch, 5)).astype(layer.dtype)
    lengths = rng.integers(0, 5, batch)
    expected = layer(x, for_rows(state, batch), lengths)
    y, final = layer(x, lengths=lengths)
    assert_same(y, expected[0])
    assert_same(final, expected[1])
    # With a state of the call's own it plays no part.
    zeros = tuple(np.zeros_like(half) for half in as_tuple(for_rows(state, batch)))
    begun = layer(x, zeros if isinstance(state, tuple) else zeros[0], lengths)
    layer.initial_state = None
    assert_same(begun[0], layer(x, lengths=lengths)[0])


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_gradients_are_those_of_the_same_state_given(cell: str, batch_first: bool, rng: np.random.Generator) -> None:
    layer, state = layer_with_state(cell)
    if batch_first:
        options = {"num_layers": 2, "batch_first": True}
        other = (fr.LSTM if cell == "lstm" else fr.GRU)(5, 18, **options)
        other.load_parameters(layer.parameters)
        other.initial_state = state
        layer = other
    x = rng.standard_normal((3, 4, 5), np.float32)
    results = []
    for given in (None, for_rows(state, 3 if batch_first else 4)):
        y, _, tape = layer.forward(x, given)
        results.append(layer.backward(tape, np.ones_like(y)))
    assert_same(results[0].state, results[1].state)
    assert_same(results[0].x, results[1].x)
    for name, gradient in results[0].parameters.items():
        np.testing.assert_array_equal(gradient, results[1].parameters[name])


@pytest.mark.parametrize("cell", ["lstm_coupled", "rnn_tanh"])
def test_unbatched_calls(cell: str, rng: np.random.Generator) -> None:
    layer, state = layer_with_state(cell)
    x = rng.standard_normal((4, 5), np.float32)
    y, final = layer(x)
    flat = tuple(half[:, 0] for half in as_tuple(state))
    expected = layer(x, flat if isinstance(state, tuple) else flat[0])
    assert_same(y, expected[0])
    assert_same(final, expected[1])


def test_rows_of_their_own(rng: np.random.Generator) -> None:
    layer, state = layer_with_state("gru", rows=3)
    x = rng.standard_normal((4, 3, 5), np.float32)
    assert_same(layer(x)[0], layer(x, state)[0])
    for other, wanted in ((x[:, :2], "2 rows"), (x[:, 0], "an unbatched x")):
        with pytest.raises(ValueError, match=f"state must be given for {wanted}: the layer's initial_state has 3 rows"):
            layer(np.ascontiguousarray(other))
        with pytest.raises(ValueError, match="state must be given for"):
            layer.forward(np.ascontiguousarray(other))
    with pytest.raises(ValueError, match="state must be given for 2 rows"):
        layer.stream(2)


def test_an_edit_shows_at_the_next_call(rng: np.random.Generator) -> None:
    layer, state = layer_with_state("gru")
    x = rng.standard_normal((4, 2, 5), np.float32)
    before, given = layer(x)[0], state.copy()
    layer.initial_state = given
    given[...] = 0  # it was copied
    assert_same(layer(x)[0], before)
    layer.initial_state[...] = 0
    layer_without = copy.deepcopy(layer)
    layer_without.initial_state = None
    assert_same(layer(x)[0], layer_without(x)[0])


def copies(layer: Any) -> list[Any]:
    return [pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer), copy.copy(layer)]


@pytest.mark.parametrize("cell", ["lstm_peephole", "gru_reset_before"])
def test_copies_keep_it(cell: str, rng: np.random.Generator) -> None:
    layer, state = layer_with_state(cell)
    x = rng.standard_normal((4, 2, 5), np.float32)
    for again in copies(layer):
        assert_same(again.initial_state, state)
        assert_same(again(x)[0], layer(x)[0])
    again = copies(layer)[0].to(dtype="float64")
    for half, own in zip(as_tuple(again.initial_state), as_tuple(state), strict=True):
        assert half.dtype == np.float64
        np.testing.assert_array_equal(half, own)
    again(x.astype(np.float64))


def test_a_layer_that_was_pickled_without_one(rng: np.random.Generator) -> None:
    layer = fr.GRU(5, 18, seed=0)
    kept = layer.__getstate__()
    kept.pop("_initial_state", None)
    again = fr.GRU.__new__(fr.GRU)
    again.__setstate__(kept)
    assert again.initial_state is None
    x = rng.standard_normal((4, 2, 5), np.float32)
    assert_same(again(x)[0], layer(x)[0])


@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before", "rnn_relu"])
@pytest.mark.parametrize("rows", [1, 3])
def test_steppers_begin_with_it_and_are_reset_to_it(cell: str, rows: int, rng: np.random.Generator) -> None:
    layer, state = layer_with_state(cell, rows)
    x = rng.standard_normal((4, 3, 5), np.float32)
    expected = layer(x)[0]
    stepper = layer.stream(3)
    assert_same(stepper.state, for_rows(state, 3) if rows == 1 else state)
    for again in range(2):
        steps = np.stack([stepper.step(x_t) for x_t in x])
        np.testing.assert_array_equal(steps, expected)
        stepper.reset() if again else stepper.reset([0, 1, 2])
    stepper.step(x[0])
    moved = as_tuple(stepper.state)
    stepper.reset(1)
    for half, before, first in zip(as_tuple(stepper.state), moved, as_tuple(state), strict=True):
        np.testing.assert_array_equal(half[:, 1], first[:, 1 if rows == 3 else 0])
        np.testing.assert_array_equal(half[:, [0, 2]], before[:, [0, 2]])
    # A later state is no later beginning.
    stepper.state = (
        tuple(np.zeros_like(half) for half in moved) if isinstance(state, tuple) else np.zeros_like(moved[0])
    )
    stepper.reset()
    assert_same(stepper.state, for_rows(state, 3) if rows == 1 else state)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_runners_begin_with_it_as_it_was(cell: str, rng: np.random.Generator) -> None:
    layer, state = layer_with_state(cell)
    x = rng.standard_normal((4, 2, 5), np.float32)
    expected, runner = layer(x), layer.freeze()
    for half in as_tuple(state):
        half[...] = 0
    for frozen in (runner, pickle.loads(pickle.dumps(runner))):
        y, final = frozen(x)
        assert_same(y, expected[0])
        assert_same(final, expected[1])
        assert_same(frozen(x, for_rows(state, 2))[0], layer(x)[0])


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (np.zeros((1, 1, 4), np.float64), TypeError, "initial_state must be an array of float32, not of float64"),
        (np.zeros((1, 4), np.float32), ValueError, r"initial_state must have shape \(1, 1, 4\) or \(1, B, 4\), not"),
        (np.zeros((1, 0, 4), np.float32), ValueError, "initial_state must have shape"),
        (np.zeros((2, 1, 4), np.float32), ValueError, "initial_state must have shape"),
        (np.zeros((1, 1, 5), np.float32), ValueError, "initial_state must have shape"),
        (3, TypeError, "initial_state must be an array"),
        ([[[1.0]]], TypeError, "initial_state must be an array"),
        (np.ma.zeros((1, 1, 4), np.float32), TypeError, "^initial_state must be an array without a mask"),
        ((np.zeros((1, 1, 4), np.float32),) * 2, TypeError, "initial_state must be an array"),
    ],
)
def test_what_it_must_be(value: Any, error: type[Exception], message: str) -> None:
    layer = fr.GRU(3, 4, seed=0)
    with pytest.raises(error, match=message):
        layer.initial_state = value
    assert layer.initial_state is None


def test_what_a_pair_must_be() -> None:
    layer, half = fr.LSTM(3, 4, seed=0), np.zeros((1, 1, 4), np.float32)
    for value, error, message in (
        (half, TypeError, r"initial_state must be a pair \(h, c\) of arrays or None, not ndarray"),
        ((half,), ValueError, r"initial_state must be a pair \(h, c\), not of length 1"),
        ((half, None), TypeError, r"initial_state\[1\] must be an array"),
        ((half, half.repeat(2, 1)), ValueError, r"halves of one shape, not \(1, 1, 4\) and \(1, 2, 4\)"),
        ((half, half[..., :3]), ValueError, r"initial_state\[1\] must have shape"),
    ):
        with pytest.raises(error, match=message):
            layer.initial_state = value
    layer.initial_state = [half, half + 1]
    assert isinstance(layer.initial_state, tuple)


def test_other_errors_are_still_the_calls_own() -> None:
    layer, _ = layer_with_state("lstm")
    for x, error in (([1.0], TypeError), (np.zeros((2, 2, 2, 5), np.float32), ValueError), (None, TypeError)):
        with pytest.raises(error, match=r"^x must"):
            layer(x)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_files_keep_it(cell: str, tmp_path: Any, rng: np.random.Generator) -> None:
    safetensors = pytest.importorskip("fusedrnn.safetensors")
    layer, state = layer_with_state(cell)
    safetensors.save(layer, tmp_path / "layer")
    again = safetensors.load(tmp_path / "layer")
    assert_same(again.initial_state, state)
    other, _ = layer_with_state(cell)
    other.initial_state = None
    assert_same(safetensors.load(tmp_path / "layer", other).initial_state, state)
    double = layer_with_state(cell, dtype="float64")[0]
    double.initial_state = None
    with pytest.raises(TypeError, match="convert=True"):
        safetensors.load(tmp_path / "layer", double)
    assert_same(safetensors.load(tmp_path / "layer", double, convert=True).initial_state, state)
    x = rng.standard_normal((4, 2, 5), np.float32)
    assert_same(again(x)[0], layer(x)[0])


def test_files_without_one_clear_it(tmp_path: Any) -> None:
    safetensors = pytest.importorskip("fusedrnn.safetensors")
    layer, state = layer_with_state("gru")
    layer.initial_state = None
    safetensors.save(layer, tmp_path / "layer")
    layer.initial_state = state
    assert safetensors.load(tmp_path / "layer", layer).initial_state is None
    assert safetensors.load(tmp_path / "layer").initial_state is None
    # A file of another maker says nothing of states.
    layer.initial_state = state
    pytest.importorskip("safetensors.numpy").save_file(layer.parameters, tmp_path / "other")
    assert_same(safetensors.load(tmp_path / "other", layer).initial_state, state)


@pytest.mark.parametrize(
    ("cell", "damage", "message"),
    [
        ("gru", {"initial_h": np.zeros((1, 1, 3), np.float32)}, "initial_state must have shape"),
        ("lstm", {"initial_h": np.zeros((1, 1, 3), np.float32)}, r"initial_state\[0\] must have shape"),
        ("lstm", {"initial_c": None}, "there must be an array 'initial_c' beside 'initial_h'"),
        ("lstm", {"initial_h": None}, "there must be an array 'initial_h' beside 'initial_c'"),
        ("gru", {"initial_c": np.zeros((4, 1, 18), np.float32)}, "there must be no array 'initial_c'"),
        ("gru", {"weight_hh_l0": np.zeros((1, 1), np.float32)}, r"mapping\['weight_hh_l0'\] must have shape"),
        ("gru", {"bias_hh_l0": None}, "missing"),
    ],
)
def test_files_with_a_wrong_part_change_nothing(cell: str, damage: Any, message: str, tmp_path: Any) -> None:
    safetensors = pytest.importorskip("fusedrnn.safetensors")
    numpy_files = pytest.importorskip("safetensors.numpy")
    path, (layer, _) = tmp_path / "layer", layer_with_state(cell)
    safetensors.save(layer, path)
    with safetensors.safe_open(path, "np") as file:
        metadata = file.metadata()
    arrays = {name: array for name, array in {**numpy_files.load_file(path), **damage}.items() if array is not None}
    numpy_files.save_file(arrays, path, metadata)
    for array in (*layer.parameters.values(), *as_tuple(layer.initial_state)):
        array += 1
    before = copy.deepcopy(layer)
    with pytest.raises(ValueError, match=message):
        safetensors.load(path, layer)
    for name, array in before.parameters.items():
        np.testing.assert_array_equal(layer.parameters[name], array)
    assert_same(layer.initial_state, before.initial_state)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("options", [{}, {"num_layers": 1, "directions": 2}], ids=["stacked", "two"])
@pytest.mark.parametrize("cell", LAYERS)
def test_models_keep_it(cell: str, options: dict[str, Any], batch_first: bool, rng: np.random.Generator) -> None:
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    from cases import Inputs, assert_close, make_inputs
    from rounding import onnxruntime_bounds

    from fusedrnn.onnx import from_onnx, to_onnx

    case = Case(cell, **{"num_layers": 2, "dtype": "float32", **SIZES, **options})
    layer, state = make_layer(case, batch_first=batch_first), layer_with_state(cell, **options)[1]
    layer.initial_state = state
    model = to_onnx(layer)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = make_inputs(case, rng).x
    inputs = Inputs(x, for_rows(state, x.shape[1]), None, None, None, None)
    bounds = onnxruntime_bounds(case, layer.parameters, inputs, other="float32")
    fed = np.ascontiguousarray(x.swapaxes(0, 1)) if batch_first else x
    expected, *_ = session.run(None, {"x": fed})
    y, _ = layer(fed)
    assert_close(y, expected, bounds.y.swapaxes(0, 1) if batch_first else bounds.y, "y")
    layers = from_onnx(model)
    parts = [layers] if layer.num_layers == 1 else list(layers.values())
    directions = 2 if layer.bidirectional else 1
    for number, part in enumerate(parts):
        rows = slice(number * directions, (number + 1) * directions)
        assert_same(part.initial_state, tuple(half[rows] for half in as_tuple(state)))


def test_models_of_rows_of_their_own(rng: np.random.Generator) -> None:
    pytest.importorskip("onnx")
    from fusedrnn.onnx import from_onnx, to_onnx

    layer, state = layer_with_state("lstm", rows=3, num_layers=1)
    assert_same(from_onnx(to_onnx(layer)).initial_state, state)
    assert from_onnx(to_onnx(layer, state=True)).initial_state is None


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_on_a_device(cell: str, dtype: str, device: TestDevice, rng: np.random.Generator) -> None:
    layer, state = layer_with_state(cell)
    x = rng.standard_normal((4, 3, 5), np.float32)
    if dtype == "bfloat16":
        dtypes = pytest.importorskip("ml_dtypes")
        x = x.astype(dtypes.bfloat16)
    layer.to(device=device.name, dtype=dtype)
    own = as_tuple(layer.initial_state)
    assert [half.dtype.name for half in own] == [dtype, "float32" if dtype == "bfloat16" else dtype][: len(own)]
    given = device.put(tuple(np.repeat(device.get(half), 3, axis=1) for half in own))
    given = given if isinstance(state, tuple) else given[0]
    on_device = device.put(x.astype(layer.dtype))
    expected = device.get(layer(on_device, given))
    y, final = device.get(layer(on_device))
    assert_same(y, expected[0])
    assert_same(final, expected[1])
    tape = layer.forward(on_device)[2]
    gradient = as_tuple(device.get(layer.backward(tape, layer(on_device)[0]).state))
    assert [half.shape for half in gradient] == [(2, 3, 18)] * len(own)
    stepper = layer.stream(3)
    assert_same(device.get(stepper.state), device.get(given))
    stepper.step(on_device[0])
    moved = as_tuple(device.get(stepper.state))
    stepper.reset(1)
    for half, before, first in zip(
        as_tuple(device.get(stepper.state)), moved, as_tuple(device.get(given)), strict=True
    ):
        np.testing.assert_array_equal(half[:, 1], first[:, 1])
        np.testing.assert_array_equal(half[:, [0, 2]], before[:, [0, 2]])
    stepper.reset()
    assert_same(device.get(stepper.state), device.get(given))
    layer.initial_state = device.get(layer.initial_state)  # from the host, too
    assert_same(device.get(layer(on_device)[0]), expected[0])
    if dtype != "bfloat16":
        layer.to(device="cpu", dtype="float32")
        assert_same(layer.initial_state, state)


@pytest.mark.parametrize("options", [{}, {"precision": "tf32"}, {"dtype": "float64"}], ids=str)
def test_models_of_layers_on_a_device(options: dict[str, Any], cuda_host_module: Any) -> None:
    to_onnx = pytest.importorskip("fusedrnn.onnx").to_onnx
    with stand_in(cuda_host_module):
        layer = fr.LSTM(5, 18, 2, bidirectional=True, device="cuda", seed=0, **options)
        half = np.random.default_rng(0).standard_normal((4, 1, 18)).astype(layer.dtype)
        layer.initial_state = (half, half + 1)
        written = to_onnx(layer).SerializeToString()
        assert layer.device == "cuda:0"
        assert layer.precision == options.get("precision", "ieee")
        on_host = fr.LSTM(5, 18, 2, bidirectional=True, dtype=layer.dtype, seed=0)
        on_host.load_parameters({name: np.asarray(array) for name, array in layer.parameters.items()})
        on_host.initial_state = (half, half + 1)
        assert to_onnx(on_host).SerializeToString() == written
        narrow = fr.GRU(5, 18, device="cuda", dtype="float16", seed=0)
        with pytest.raises(TypeError, match=r"layer must be of float32 or float64, not float16; use layer\.to"):
            to_onnx(narrow)


def test_under_capture_it_must_be_held(cuda_host_module: Any, rng: np.random.Generator) -> None:
    with stand_in(cuda_host_module) as device:
        layer, _ = layer_with_state("gru")
        layer.to(device="cuda")
        x, buffers = device.put(rng.standard_normal((4, 3, 5), np.float32)), layer.buffers(4, 3)
        cuda_host_module.set_capturing(True)
        with pytest.raises(ValueError, match="state must be given while a graph is captured"):
            layer(x, out=buffers)

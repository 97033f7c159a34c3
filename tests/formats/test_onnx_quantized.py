"""Integer weights: DequantizeLinear, as quantisation tools write it, and onnxruntime's DynamicQuantizeLSTM."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_support import (
    HIDDEN,
    INPUTS,
    assert_near,
    assert_parameters,
    directions_beside,
    model,
    node,
    onnx,
    random_x,
    session,
    value,
    weights,
)

from fusedrnn.onnx import from_onnx

quantization = pytest.importorskip("onnxruntime.quantization")

KINDS = list(itertools.product(["QInt8", "QUInt8"], [False, True], [1, 2]))
STATES = [value("h", None), value("c", None)]


def quantized(array: np.ndarray) -> np.ndarray:
    """The 8-bit numbers to which onnxruntime rounds what it multiplies with integer weights."""
    low, high = min(array.min(), np.float32(0)), max(array.max(), np.float32(0))
    scale = np.float32((high - low) / np.float32(255))
    zero = np.clip(np.rint(-low / scale), 0, 255)
    return ((np.clip(np.rint(array / scale) + zero, 0, 255) - zero) * scale).astype(np.float32)


def float_model(directions: int) -> Any:
    given = weights("LSTM", directions)
    # Rows of different ranges, off zero: scales and zero points differ.
    for name in ("W", "R"):
        given[name] = given[name] * np.linspace(0.1, 1, 4 * HIDDEN, dtype=np.float32)[:, None] + np.float32(0.1)
    direction = "bidirectional" if directions == 2 else "forward"
    lstm = node(
        "LSTM", ["X", "W", "R", "B", "", "h", "c"], ["Y", "Y_h", "Y_c"], "lstm", hidden_size=HIDDEN, direction=direction
    )
    x = value("X", ["T", "B", INPUTS])
    return model([lstm], given, inputs=[x, *STATES], outputs=["Y", "Y_h", "Y_c"])


@pytest.mark.parametrize(("kind", "per_channel", "directions"), KINDS)
def test_what_quantize_dynamic_writes(kind: str, per_channel: bool, directions: int, tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("float.onnx", "integer.onnx")]
    onnx.save(float_model(directions), paths[0])
    # Seven bits: sums of two products of eight each are cut off at 16 where a processor lacks the instruction for them.
    quantization.quantize_dynamic(
        *paths, per_channel=per_channel, weight_type=getattr(quantization.QuantType, kind), reduce_range=True
    )
    integer = onnx.load(paths[1])
    assert [one.op_type for one in integer.graph.node] == ["DynamicQuantizeLSTM"]
    scales = {tensor.name: tensor.dims for tensor in integer.graph.initializer}["W_scale"]
    assert len(scales) == (2 if per_channel else 1)
    layer, exact = from_onnx(integer), from_onnx(paths[0])
    for name, array in exact.parameters.items():
        # A range of at most 8 in 127 steps, half a step off.
        tolerance = 0 if name.startswith("bias") else 8 / 127 / 2
        np.testing.assert_allclose(layer.parameters[name], array, rtol=0, atol=tolerance)
    run = session(integer)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        x = quantized(random_x(1, 1, seed))
        # onnxruntime rounds each direction's state by itself.
        h = np.stack([quantized(rng.standard_normal((1, HIDDEN), np.float32)) for _ in range(directions)])
        c = rng.standard_normal((directions, 1, HIDDEN), np.float32)
        # One step of numbers that rounding leaves as they are: nothing else differs.
        y, final_h, final_c = run.run(None, {"X": x, "h": h, "c": c})
        ours, (our_h, our_c) = layer(x, (h, c))
        assert_near(ours, directions_beside(y))
        assert_near(our_h, final_h)
        assert_near(our_c, final_c)


QDQ = list(itertools.product(["int8", "uint8"], ["scalar", "one", "rows", "rows of each"], [10, 13, 19, 21]))


@pytest.mark.parametrize(("dtype", "scales", "opset"), QDQ)
def test_dequantized_weights(dtype: str, scales: str, opset: int) -> None:
    if scales.startswith("rows") and opset == 10:
        pytest.skip("one scale only before operator set 13")
    rng = np.random.default_rng(0)
    limits = np.iinfo(dtype)
    integers = rng.integers(limits.min, limits.max + 1, (1, 4 * HIDDEN, INPUTS)).astype(dtype)
    axis, count = (1, 4 * HIDDEN) if scales == "rows" else (2, INPUTS)
    shape = {"scalar": (), "one": (1,)}.get(scales, (count,))
    scale = rng.uniform(0.001, 0.01, shape).astype(np.float32)
    zero = rng.integers(limits.min // 2, limits.max // 2, shape).astype(dtype)
    options = {"axis": axis} if scales.startswith("rows") else {}
    dequantize = node("DequantizeLinear", ["w", "scale", "zero"], ["W"], **options)
    lstm = node("LSTM", ["X", "W", "R", "B"], ["Y"], hidden_size=HIDDEN)
    plain = weights("LSTM")
    constants = {"w": integers, "scale": scale, "zero": zero, "R": plain["R"], "B": plain["B"]}
    made = model([dequantize, lstm], constants, opset=opset)
    along = [1, 1, 1]
    along[axis] = -1
    spread = [array.reshape(along) if array.ndim and array.size > 1 else array for array in (scale, zero)]
    expected = (integers.astype(np.float32) - spread[1].astype(np.float32)) * spread[0]
    layer = from_onnx(made)
    assert_parameters(layer, from_onnx(model([lstm], {**plain, "W": expected})))
    assert_near(layer(random_x())[0], directions_beside(session(made).run(None, {"X": random_x()})[0]))


def test_onnxruntimes_own_dequantize_linear() -> None:
    integers = np.arange(4 * HIDDEN * INPUTS, dtype=np.uint16).reshape(1, -1, INPUTS)
    dequantize = onnx.helper.make_node("DequantizeLinear", ["w", "s", "z"], ["W"], domain="com.microsoft")
    constants = {"w": integers, "s": np.float32(0.25), "z": np.uint16(3), **weights("LSTM")}
    constants.pop("W")
    lstm = node("LSTM", ["X", "W", "R", "B"], ["Y"], hidden_size=HIDDEN)
    layer = from_onnx(model([dequantize, lstm], constants, domains=["com.microsoft"]))
    expected = (integers.astype(np.float32) - 3) * np.float32(0.25)
    assert_parameters(layer, from_onnx(model([lstm], {**weights("LSTM"), "W": expected})))


def quantized_lstm(**changed: Any) -> Any:
    """A DynamicQuantizeLSTM with some of its constants changed; None takes one away."""
    constants = {
        "W": np.zeros((1, INPUTS, 4 * HIDDEN), np.int8),
        "R": np.zeros((1, HIDDEN, 4 * HIDDEN), np.int8),
        **{name + "_scale": np.ones(1, np.float32) for name in "WR"},
        **{name + "_zero_point": np.zeros(1, np.int8) for name in "WR"},
        **changed,
    }
    kept = {name: array for name, array in constants.items() if array is not None}
    names = ["X", "W", "R", *[""] * 5, "W_scale", "W_zero_point", "R_scale", "R_zero_point"]
    inputs = [name if name in kept or name == "X" else "" for name in names]
    lstm = onnx.helper.make_node("DynamicQuantizeLSTM", inputs, ["Y"], "it", domain="com.microsoft", hidden_size=HIDDEN)
    return model([lstm], kept, domains=["com.microsoft"])


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"W": np.zeros((1, 4 * HIDDEN, INPUTS), np.int8)}, ValueError, r"W of .* must have shape \(1, I, 16\), not"),
        ({"R": np.zeros((1, 4 * HIDDEN, HIDDEN), np.int8)}, ValueError, r"R of .* must have shape \(1, 4, 16\), not"),
        ({"W": np.zeros((1, INPUTS, 4 * HIDDEN), np.float32)}, TypeError, "W of node 'it' must be of int8 or uint8"),
        ({"W_scale": np.ones((1, 3), np.float32)}, ValueError, r"must have shape \(1,\) or \(1, 16\), not"),
        ({"W_scale": np.ones((), np.float32)}, ValueError, "W_scale of node 'it' must have shape"),
        ({"R_zero_point": np.zeros((2,), np.int8)}, ValueError, "R_zero_point of node 'it' must have shape"),
        ({"R_zero_point": np.zeros((1,), np.uint8)}, TypeError, r"R_scale of node 'it' .* and its zero point of int8"),
        ({"W_scale": np.ones(1)}, TypeError, "W_scale of node 'it' must be of float32"),
        ({"W_scale": None}, ValueError, "node 'it' must have an input W_scale"),
        ({"R": None}, ValueError, "node 'it' must have an input R"),
    ],
)
def test_what_is_no_quantized_lstm(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        from_onnx(quantized_lstm(**changed))


def symmetric(array: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Integers in [-127, 127] and a scale for each slice along the axis."""
    scale = np.abs(array).max(axis=axis, keepdims=True) / np.float32(127)
    return np.rint(array / scale).astype(np.int8), scale.astype(np.float32)


def assert_serves_in_8_bits(layer: Any, expected: Any, tolerance: float) -> None:
    """The layer's int8 runner and stepper, against the float32 layer that the model's integers stand for."""
    x = random_x(6, 1)
    y, _ = layer.freeze(weights="int8")(x)
    np.testing.assert_allclose(y, expected(x)[0], rtol=0, atol=tolerance)
    stepper = layer.stream(weights="int8")
    assert np.array_equal(np.stack([stepper.step(row) for row in x]), y)


# Of 16 bits in x and h, a few steps long: a scale of half of 4 / 32767, sums of 7 products of weights below 2, 6 steps.
SIXTEEN_BITS = 4 / 32767 / 2 * 7 * 2 * 6
# Of weights rounded again: half of 2 / 127, the same sums.
EIGHT_BITS = 2 / 127 / 2 * 7 * 6


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_dequantized_models_serve_in_8_bits(op: str) -> None:
    given = weights(op)
    (w, w_scale), (r, r_scale) = (symmetric(given[name], 2) for name in "WR")
    nodes = [node("DequantizeLinear", [name.lower(), name.lower() + "_scale"], [name], axis=1) for name in "WR"]
    nodes.append(
        node(op, ["X", "W", "R", "B"], ["Y"], hidden_size=HIDDEN, **({"linear_before_reset": 1} if op == "GRU" else {}))
    )
    constants = {"w": w, "r": r, "w_scale": w_scale.ravel(), "r_scale": r_scale.ravel(), "B": given["B"]}
    layer = from_onnx(model(nodes, constants))
    assert_serves_in_8_bits(layer, layer, SIXTEEN_BITS)


@pytest.mark.parametrize(("zero", "tolerance"), [(0, SIXTEEN_BITS), (100, EIGHT_BITS)])
@pytest.mark.parametrize("per_row", [False, True])
def test_quantized_lstms_serve_in_8_bits(zero: int, tolerance: float, per_row: bool) -> None:
    rng = np.random.default_rng(0)
    shape = (1, 4 * HIDDEN) if per_row else (1,)
    changed: dict[str, Any] = {}
    for name, inner in (("W", INPUTS), ("R", HIDDEN)):
        changed[name] = rng.integers(-127, 128, (1, inner, 4 * HIDDEN)).astype(np.int8)
        changed[name + "_scale"] = rng.uniform(0.002, 0.008, shape).astype(np.float32)
        changed[name + "_zero_point"] = np.full(shape, zero, np.int8)
    layer = from_onnx(quantized_lstm(**changed))
    assert_serves_in_8_bits(layer, layer, tolerance)

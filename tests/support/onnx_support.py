"""What the tests of ONNX models share: onnxruntime, small models made by hand, nodes by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
INPUTS, HIDDEN = 3, 4
FLOAT = onnx.TensorProto.FLOAT


def session(model: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def node(op: str, inputs: Iterable[str], outputs: Iterable[str], name: str = "", **attributes: Any) -> Any:
    return onnx.helper.make_node(op, list(inputs), list(outputs), name=name, **attributes)


def value(name: str, shape: Any = None, kind: int = FLOAT) -> Any:
    return onnx.helper.make_tensor_value_info(name, kind, shape)


def tensor(name: str, array: Any) -> Any:
    return onnx.numpy_helper.from_array(np.asarray(array), name)


def graph(nodes: Iterable[Any], inputs: Iterable[Any], outputs: Iterable[str], constants: Mapping[str, Any]) -> Any:
    tensors = [tensor(name, array) for name, array in constants.items()]
    return onnx.helper.make_graph(list(nodes), "graph", list(inputs), [value(name) for name in outputs], tensors)


def model(
    nodes: Iterable[Any],
    constants: Mapping[str, Any],
    *,
    inputs: Iterable[Any] | None = None,
    outputs: Iterable[str] = ("Y",),
    opset: int = 17,
    functions: Iterable[Any] = (),
    domains: Iterable[str] = (),
) -> Any:
    """A model of these nodes, fed with X (T, B, I) unless other inputs are given."""
    inputs = [value("X", ["T", "B", INPUTS])] if inputs is None else inputs
    opsets = [onnx.helper.make_opsetid("", opset), *(onnx.helper.make_opsetid(domain, 1) for domain in domains)]
    return onnx.helper.make_model(
        graph(nodes, inputs, outputs, constants), opset_imports=opsets, ir_version=8, functions=list(functions)
    )


def weights(op: str, directions: int = 1, *, seed: int = 0, hidden: int = HIDDEN) -> dict[str, np.ndarray]:
    """W, R and B of a node."""
    rng, rows = np.random.default_rng(seed), GATES[op] * hidden
    shapes = {"W": (directions, rows, INPUTS), "R": (directions, rows, hidden), "B": (directions, 2 * rows)}
    return {name: rng.standard_normal(shape, np.float32) / 2 for name, shape in shapes.items()}


def random_x(time: int = 5, batch: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((time, batch, INPUTS), np.float32)


def assert_near(ours: Any, expected: Any, layers: int = 1) -> None:
    """Whether two results of short sequences, of values below 1, agree to rounding.

    A gate sums fewer than 16 products of values near 1, each rounded to half an ulp in both; five steps carry that on,
    and so does each of the layers that feed one another. Directions do not: they run beside each other.
    """
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, rtol=0, atol=layers * 5 * 16 * 2 * np.finfo(np.float32).eps)


def directions_beside(y: np.ndarray) -> np.ndarray:
    """The operator's Y, (T, D, B, H), as a layer's y, (T, B, D*H)."""
    time, _, batch, _ = y.shape
    return y.transpose(0, 2, 1, 3).reshape(time, batch, -1)


def assert_parameters(layer: Any, expected: Any) -> None:
    """Whether two layers have the same parameters, to the last bit."""
    assert list(layer.parameters) == list(expected.parameters)
    for name, array in expected.parameters.items():
        np.testing.assert_array_equal(layer.parameters[name], array)

"""Recurrent nodes of models from PyPI, each beside onnxruntime's outputs of that very node.

Skipped where the wheels are absent: ``pip install --no-deps silero-vad==6.2.3 ddddocr==1.6.1``, or unpacked below the
directory that the environment variable FUSEDRNN_MODELS names.
"""

from __future__ import annotations

import importlib.metadata
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import Case, Inputs, assert_close
from onnx_support import directions_beside, onnx, session, value
from rounding import onnxruntime_bounds

from fusedrnn.onnx import from_onnx

# The sixth graph in the wheel, silero_vad_op18_ifless.onnx, has its cell written out in other operators.
SILERO = {
    "silero_vad.onnx": 4,
    "silero_vad_16k_op15.onnx": 2,
    "silero_vad_16k_sequence.onnx": 1,
    "silero_vad_half.onnx": 2,
    "silero_vad_openvino_16k.onnx": 1,
}
VERSIONS = {"silero_vad": "6.2.3", "ddddocr": "1.6.1"}


def load(package: str, name: str) -> Any:
    """A model of an installed or unpacked wheel; the package itself is not imported."""
    for path in Path(os.environ.get("FUSEDRNN_MODELS", "/nowhere")).glob(f"**/{name}"):
        return onnx.load(path)
    try:
        installed = importlib.metadata.distribution(package.replace("_", "-"))
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} {VERSIONS[package]} is not installed")
    if installed.version != VERSIONS[package]:
        pytest.skip(f"{package} is {installed.version}, not {VERSIONS[package]}")
    return onnx.load(next(str(file.locate()) for file in installed.files or [] if file.name == name))


def recurrent(graph: Any, outer: tuple[Any, ...] = ()) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Recurrent nodes, and the graphs that each lies in."""
    for node in graph.node:
        if node.op_type in ("LSTM", "DynamicQuantizeLSTM"):
            yield node, (*outer, graph)
        for item in node.attribute:
            if item.HasField("g"):
                yield from recurrent(item.g, (*outer, graph))


def by_itself(model: Any, node: Any, graphs: tuple[Any, ...]) -> Any:
    """A model of one node, fed with its input and state, and of what its weights are computed from."""
    fed = [name for name in (node.input[0], *node.input[5:7]) if name]
    tensors = {tensor.name: tensor for graph in graphs for tensor in graph.initializer}
    makers = {name: one for graph in graphs for one in graph.node for name in one.output}
    waiting, needed, kept = [name for name in node.input if name and name not in fed], [], []
    while waiting:
        name = waiting.pop()
        if name in tensors:
            kept.append(tensors.pop(name))
        elif name in makers:
            maker = makers[name]
            for output in maker.output:
                makers.pop(output, None)
            needed.append(maker)
            waiting += maker.input
    order = [one for graph in graphs for one in graph.node if any(one is maker for maker in needed)]
    outputs = [value(name) for name in node.output]
    graph = onnx.helper.make_graph([*order, node], "node", [value(name) for name in fed], outputs, kept)
    opsets = [*model.opset_import]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version)


def near_onnxruntime(layer: Any, x: np.ndarray, state: Any, expected: list[np.ndarray]) -> None:
    directions = 2 if layer.bidirectional else 1
    case = Case("lstm", 1, directions, "float32", *x.shape[:2], layer.input_size, layer.hidden_size)
    bounds = onnxruntime_bounds(case, layer.parameters, Inputs(x, state, None, None, None, None), other="float32")
    y, final = layer(x, state)
    assert_close(y, directions_beside(expected[0]), bounds.y, "y")
    for half, other, bound in zip(final, expected[1:], bounds.state, strict=True):
        assert_close(half, other, bound, "state")


@pytest.mark.parametrize("name", SILERO)
def test_silero_vad(name: str) -> None:
    model = load("silero_vad", name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of states that are computed at run time
        found = from_onnx(model)
    layers = list(found.values()) if isinstance(found, dict) else [found]
    nodes = list(recurrent(model.graph))
    assert len(layers) == len(nodes) == SILERO[name]
    rng = np.random.default_rng(0)
    for layer, (node, graphs) in zip(layers, nodes, strict=True):
        x, h, c = (rng.standard_normal(shape, np.float32) for shape in ((7, 2, 128), (1, 2, 128), (1, 2, 128)))
        feeds = dict(zip((node.input[0], *node.input[5:7]), (x, h, c), strict=True))
        near_onnxruntime(layer, x, (h, c), session(by_itself(model, node, graphs)).run(None, feeds))


def test_the_graph_without_recurrent_nodes() -> None:
    with pytest.raises(ValueError, match=r"it has none, but Gemm .*model.decoder.rnn.weight_hh.* written out in then_"):
        from_onnx(load("silero_vad", "silero_vad_op18_ifless.onnx"))


def test_ddddocr_in_its_own_model() -> None:
    """What goes into the node is what the model makes of an image."""
    model = load("ddddocr", "common.onnx")
    layer = from_onnx(model)
    assert layer.bidirectional and layer.hidden_size == 512 and layer.initial_state is None
    node = next(one for one in model.graph.node if one.op_type == "LSTM")
    names = [node.input[0], *node.output]
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(value(name) for name in names)
    image = np.random.default_rng(0).random((1, 1, 64, 80), np.float32)
    x, *expected = session(shown).run(names, {model.graph.input[0].name: image})
    near_onnxruntime(layer, x, None, expected)


def quantized(a: np.ndarray) -> np.ndarray:
    """The 8-bit numbers to which onnxruntime rounds what it multiplies with integer weights."""
    low, high = min(a.min(), np.float32(0)), max(a.max(), np.float32(0))
    scale = np.float32((high - low) / np.float32(255))
    zero = np.clip(np.rint(-low / scale), 0, 255)
    return ((np.clip(np.rint(a / scale) + zero, 0, 255) - zero) * scale).astype(np.float32)


def test_ddddocr_with_integer_weights() -> None:
    model = load("ddddocr", "common_old.onnx")
    layer = from_onnx(model)
    ((node, graphs),) = recurrent(model.graph)
    assert node.op_type == "DynamicQuantizeLSTM"
    rng = np.random.default_rng(0)
    x = quantized(rng.standard_normal((1, 1, layer.input_size), np.float32))
    h, c = (rng.standard_normal((2, 1, layer.hidden_size), np.float32) for _ in range(2))
    h = np.stack([quantized(row) for row in h])  # each direction by itself
    feeds = dict(zip((node.input[0], *node.input[5:7]), (x, h, c), strict=True))
    # One step, fed with numbers that rounding to 8 bits leaves as they are: nothing else differs.
    near_onnxruntime(layer, x, (h, c), session(by_itself(model, node, graphs)).run(None, feeds))

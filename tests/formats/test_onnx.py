"""Layers from ONNX nodes and back, beside onnxruntime: random attributes, ONNX's node tests, round trips, refusals."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import unittest
import warnings
from typing import Any

import numpy as np
import pytest
from cases import CLIP, LAYERS, Case, Inputs, assert_close, make_inputs, make_layer
from onnx_support import GATES, onnx, session
from oracles import as_tuple
from rounding import onnxruntime_bounds

import fusedrnn as fr
from fusedrnn.onnx import backend, call_arguments, from_onnx, to_onnx

STATES = {"RNN": ["initial_h"], "GRU": ["initial_h"], "LSTM": ["initial_h", "initial_c"]}


@dataclasses.dataclass
class Node:
    """A recurrent node and arrays for all of its inputs, in layout 0."""

    op: str
    attributes: dict[str, Any]
    weights: dict[str, np.ndarray]
    feeds: dict[str, np.ndarray]
    opset: int = 14

    def model(self, layout: int = 0, **more: Any) -> Any:
        """A model of it whose weights are initializers and whose other inputs are the graph's."""
        names = ["X", "W", "R", "B", "sequence_lens", *STATES[self.op], *["P"] * (self.op == "LSTM")]
        given = {**self.weights, **self.feeds}
        outputs = ["Y", "Y_h", "Y_c"][: 1 + len(STATES[self.op])]
        attributes = self.attributes | more | ({"layout": 1} if layout else {})
        inputs = [name if name in given else "" for name in names]
        node = onnx.helper.make_node(self.op, inputs, outputs, name="the node", **attributes)
        value = onnx.helper.make_tensor_value_info
        kinds = {name: onnx.helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in self.feeds.items()}
        graph = onnx.helper.make_graph(
            [node],
            "graph",
            [value(name, kind, None) for name, kind in kinds.items()],
            [value(name, onnx.TensorProto.FLOAT, None) for name in outputs],
            [onnx.numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", self.opset)], ir_version=8)


def random_node(rng: np.random.Generator) -> Node:
    def maybe() -> bool:
        return bool(rng.integers(2))

    op = str(rng.choice(list(GATES)))
    time, batch, width, hidden = (int(size) for size in rng.integers(1, [7, 5, 6, 20]))
    direction = str(rng.choice(["forward", "reverse", "bidirectional"]))
    directions, rows = 2 if direction == "bidirectional" else 1, GATES[op] * hidden

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    weights = {"W": normal(directions, rows, width), "R": normal(directions, rows, hidden) / np.float32(hidden**0.5)}
    feeds = {"X": normal(time, batch, width)}
    attributes: dict[str, Any] = {"direction": direction, "hidden_size": hidden}
    if maybe():
        weights["B"] = normal(directions, 2 * rows)
    if maybe():
        feeds["sequence_lens"] = rng.integers(1, time + 1, batch, np.int32)
    if maybe():
        attributes["clip"] = float(rng.uniform(0.2, 2.0))
    states = [state for state in STATES[op] if maybe()]
    feeds |= {state: normal(directions, batch, hidden) for state in states}
    if op == "LSTM" and maybe():
        weights["P"] = normal(directions, 3 * hidden)
    if op == "LSTM" and maybe():
        attributes["input_forget"] = 1
    if op == "GRU" and maybe():
        attributes["linear_before_reset"] = 1
    if op == "RNN" and maybe():
        attributes["activations"] = [str(rng.choice(["Tanh", "Relu"]))] * directions
    return Node(op, attributes, weights, feeds, int(rng.integers(7, 23)))


def case_of(layer: Any, time: int, batch: int) -> Case:
    return Case(
        layer.cell_name,
        layer.num_layers,
        2 if layer.bidirectional else 1,
        str(layer.dtype),
        time,
        batch,
        layer.input_size,
        layer.hidden_size,
        reverse=layer.reverse,
        clip=layer.clip,
    )


def bounds_of(layer: Any, x: np.ndarray, state: Any, lengths: Any) -> Any:
    """How far a call may be from onnxruntime's answer."""
    case = case_of(layer, *x.shape[:2])
    zeros = make_inputs(case, np.random.default_rng(0))
    inputs = Inputs(x, state, lengths, None, zeros.dy, zeros.dstate)
    parameters = layer.parameters
    return onnxruntime_bounds(case, parameters, inputs, other="float32")


@pytest.mark.parametrize("seed", range(120))
def test_random_attributes_agree_with_onnxruntime(seed: int) -> None:
    rng = np.random.default_rng(seed)
    node = random_node(rng)
    time, batch, _ = node.feeds["X"].shape
    y, *finals = session(node.model()).run(None, node.feeds)
    layout = int(rng.integers(2))  # onnxruntime has layout 0 only
    layer = from_onnx(node.model(layout))
    assert (layer.batch_first, layer.bias) == (bool(layout), "B" in node.weights)
    assert layer.clip == pytest.approx(node.attributes.get("clip"))
    given = [node.feeds.get(name) for name in STATES[node.op]]
    state: Any = None
    if any(half is not None for half in given):
        shape = y.shape[1:]
        given = [np.zeros(shape, np.float32) if half is None else half for half in given]
        state = tuple(given) if node.op == "LSTM" else given[0]
    x, lengths = node.feeds["X"], node.feeds.get("sequence_lens")
    ours, our_finals = layer(x.swapaxes(0, 1) if layout else x, state, lengths)
    bounds = bounds_of(layer, x, state, lengths)
    expected = y.transpose(0, 2, 1, 3).reshape(time, batch, -1)
    assert_close(ours.swapaxes(0, 1) if layout else ours, expected, bounds.y, "y")
    for ours, final, bound in zip(as_tuple(our_finals), finals, as_tuple(bounds.state), strict=True):
        assert_close(ours, final, bound, "state")


def test_the_node_tests_of_onnx_pass() -> None:
    from onnx.backend.test import BackendTest

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other operators' tests, which are made too
        kinds = BackendTest(backend, __name__).include(r"^test_(rnn|lstm|gru|simple_rnn)_.*_cpu$").test_cases
    suite = unittest.TestSuite(unittest.defaultTestLoader.loadTestsFromTestCase(kind) for kind in kinds.values())
    result = unittest.TestResult()
    suite.run(result)
    assert not result.failures and not result.errors
    ran = result.testsRun - len(result.skipped)
    assert ran >= (18 if tuple(map(int, onnx.__version__.split(".")[:2])) >= (1, 23) else 12)


def written_cases() -> list[Case]:
    """Every cell as each kind of model there is, in turn."""
    kinds: list[dict[str, Any]] = [
        {},
        {"directions": 2, "ragged": True},
        {"num_layers": 3},
        {"num_layers": 2, "directions": 2, "ragged": True, "clip": CLIP},
        {"num_layers": 2, "reverse": True, "ragged": True},
    ]
    return [Case(cell, dtype="float32", input_size=5, hidden_size=18, **kind) for cell in LAYERS for kind in kinds]


@pytest.mark.parametrize("case", written_cases(), ids=lambda case: case.id)
@pytest.mark.parametrize("batch_first", [False, True])
def test_onnxruntime_runs_what_is_written(case: Case, batch_first: bool, rng: np.random.Generator) -> None:
    layer = make_layer(case, batch_first=batch_first, bias=not batch_first or case.num_layers > 1)
    inputs = make_inputs(case, rng, shortest=1)
    x = np.nan_to_num(inputs.x)
    feeds = {"x": np.ascontiguousarray(x.swapaxes(0, 1)) if batch_first else x}
    state = inputs.state if case.num_layers > 1 else None
    if state is not None:
        feeds |= dict(zip(("h0", "c0"), as_tuple(state), strict=False))
    if case.ragged:
        feeds["lengths"] = inputs.lengths.astype(np.int32)
    model = to_onnx(layer, state=state is not None, lengths=case.ragged)
    onnx.checker.check_model(model, full_check=True)
    expected_y, *expected = session(model).run(None, feeds)
    y, final = layer(feeds["x"], state, inputs.lengths)
    bounds = onnxruntime_bounds(case, layer.parameters, dataclasses.replace(inputs, x=x, state=state), other="float32")
    assert_close(y, expected_y, bounds.y.swapaxes(0, 1) if batch_first else bounds.y, "y")
    for ours, theirs, bound in zip(as_tuple(final), expected, as_tuple(bounds.state), strict=True):
        assert_close(ours, theirs, bound, "state")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"directions": 2, "clip": 3.0}, {"reverse": True}], ids=["one", "two", "back"])
@pytest.mark.parametrize("cell", LAYERS)
def test_written_and_read_again(cell: str, options: dict[str, Any], dtype: str, rng: np.random.Generator) -> None:
    layer = make_layer(Case(cell, dtype=dtype, **options))
    again = from_onnx(to_onnx(layer).SerializeToString())
    assert repr(again) == repr(layer)
    assert list(again.parameters) == list(layer.parameters)
    for name, array in layer.parameters.items():
        assert again.parameters[name].dtype == array.dtype
        np.testing.assert_array_equal(again.parameters[name], array)


def test_several_nodes_are_named(tmp_path: Any) -> None:
    layer = fr.GRU(3, 4, num_layers=2, reset_after=False, seed=0)
    path = tmp_path / "model.onnx"
    onnx.save(to_onnx(layer), path)
    layers = from_onnx(path)
    assert len(layers) == 2 and all(isinstance(one, fr.GRU) for one in layers.values())
    for number, (name, one) in enumerate(layers.items()):
        for key, array in from_onnx(str(path), name).parameters.items():
            np.testing.assert_array_equal(array, layer.parameters[key.replace("_l0", f"_l{number}")])
            np.testing.assert_array_equal(array, one.parameters[key])
    with pytest.raises(ValueError, match=r"node must be one of \['GRU_\d+', 'GRU_\d+'\], not 'other'"):
        from_onnx(path, "other")
    with pytest.raises(ValueError, match="node must name one of"):
        call_arguments(path)
    model = to_onnx(layer)
    for node in model.graph.node:
        node.name = ""
    assert list(from_onnx(model)) == ["Y_l0", "Y_l1"]  # their first outputs
    next(node for node in model.graph.node if "Y_l0" in node.output).name = "Y_l1"
    with pytest.raises(ValueError, match="model_or_node must not name a node as the output of another"):
        from_onnx(model)


def plain_node(op: str = "LSTM", directions: int = 1, **attributes: Any) -> Node:
    rng = np.random.default_rng(0)
    rows = 4 * GATES[op]
    shapes = {"W": (directions, rows, 3), "R": (directions, rows, 4), "B": (directions, 2 * rows)}
    weights = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    direction = "bidirectional" if directions == 2 else "forward"
    return Node(op, {"direction": direction, **attributes}, weights, {"X": rng.standard_normal((5, 2, 3), np.float32)})


def test_weights_that_are_no_initializers() -> None:
    node = plain_node()
    expected = from_onnx(node.model()).parameters
    recurrent = node.weights.pop("R")
    node.feeds["R"] = recurrent
    with pytest.raises(
        ValueError, match="R of node 'the node' must be an initializer of the model or computed from such alone; 'R'"
    ):
        from_onnx(node.model())
    with pytest.raises(ValueError, match="must be an initializer"):
        from_onnx(node.model().graph.node[0])
    for layer in (
        from_onnx(node.model(), weights={"R": recurrent}),
        from_onnx(node.model().graph.node[0], weights={**node.weights, "R": recurrent}),
    ):
        for name, array in expected.items():
            np.testing.assert_array_equal(layer.parameters[name], array)


def test_weights_of_constant_nodes() -> None:
    node = plain_node("GRU")
    expected, model = from_onnx(node.model()).parameters, node.model()
    constants = [onnx.helper.make_node("Constant", [], [t.name], value=t) for t in model.graph.initializer]
    del model.graph.initializer[:]
    nodes = [*constants, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for name, array in from_onnx(model).parameters.items():
        np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize("layout", [0, 1])
def test_constant_states_and_lengths(layout: int, rng: np.random.Generator) -> None:
    node = plain_node(hidden_size=4)
    h0, lengths = rng.standard_normal((1, 2, 4), np.float32), np.array([5, 3], np.int32)
    node.weights["initial_h"], node.weights["sequence_lens"] = h0, lengths
    expected = session(node.model()).run(None, node.feeds)[0]
    if layout:
        node.weights["initial_h"] = np.ascontiguousarray(h0.swapaxes(0, 1))
    with pytest.warns(UserWarning, match="call_arguments"):
        layer = from_onnx(node.model(layout))
    arguments = call_arguments(node.model(layout))
    np.testing.assert_array_equal(arguments["state"][0], h0)
    assert not arguments["state"][1].any()
    x = node.feeds["X"].swapaxes(0, 1) if layout else node.feeds["X"]
    y, _ = layer(x, **arguments)
    bound = bounds_of(layer, node.feeds["X"], arguments["state"], lengths).y
    assert_close(y.swapaxes(0, 1) if layout else y, expected[:, 0], bound, "y")


def test_zero_states_are_no_cause_for_a_warning() -> None:
    node = plain_node("GRU")
    node.weights["initial_h"] = np.zeros((1, 2, 4), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_onnx(node.model())


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (plain_node("RNN", activations=["Sigmoid"]), r"must be \['Tanh'\] or \['Relu'\] for this library, not"),
        (plain_node("RNN", 2, activations=["Tanh", "Relu"]), "activations of node 'the node' must be"),
        (plain_node("RNN", 2, activations=["Tanh"]), "activations of node 'the node' must be"),
        (plain_node("GRU", activations=["HardSigmoid", "Tanh"], activation_alpha=[0.2]), "not .'Hardsigmoid', 'Tanh'"),
        (plain_node("LSTM", activations=["Sigmoid", "Tanh", "Relu"]), "activations of node 'the node' must be"),
        (plain_node(direction="sideways"), "direction of node 'the node' must be one of"),
        (plain_node(layout=2), "layout of node 'the node' must be one of"),
        (plain_node(clip="1"), "clip of node 'the node' must be FLOAT, not STRING"),
        (plain_node(clip=0.0), "clip of node 'the node' must be positive"),
        (plain_node(clip=float("nan")), "clip of node 'the node' must be positive"),
        (plain_node(linear_before_reset=1), "attribute 'linear_before_reset', which is none of LSTM"),
        (plain_node(output_sequence=1), "attribute 'output_sequence', which is none of LSTM"),
        (plain_node(hidden_size=5), "W of node 'the node' must have shape"),
        (plain_node(direction="bidirectional"), "R of node 'the node' must have shape"),
        (dataclasses.replace(plain_node(), opset=6), "operator set 7 or newer, not 6"),
    ],
)
def test_what_no_layer_can_do_is_refused(node: Node, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_onnx(node.model())


def test_spellings_of_the_same_activations() -> None:
    layer = from_onnx(plain_node("RNN", 2, activations=["ReLU", "relu"]).model())
    assert layer.nonlinearity == "relu"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: from_onnx(3), TypeError, "model_or_node must be an ONNX model or node"),
        (lambda: from_onnx(b"no model"), ValueError, "these bytes cannot be read"),
        (lambda: from_onnx("no/such/file.onnx"), FileNotFoundError, "file.onnx"),
        (lambda: from_onnx(plain_node().model(), 3), TypeError, "node must be the name of a node"),
        (lambda: from_onnx(plain_node().model().graph.node[0], "it"), ValueError, "node must be None"),
        (lambda: from_onnx(onnx.helper.make_node("Add", ["a", "b"], ["c"])), ValueError, "not 'Add'"),
        (lambda: from_onnx(plain_node().model(), weights=[1]), TypeError, "weights must be a mapping"),
        (lambda: from_onnx(onnx.ModelProto()), ValueError, "must have an RNN, LSTM or GRU node"),
        (lambda: to_onnx(fr.LSTMCell(2, 3)), TypeError, "layer must be an RNN, LSTM or GRU layer, not LSTMCell"),
        (lambda: to_onnx(fr.LSTM(2, 3), state=1), TypeError, "state must be True or False"),
        (lambda: backend.prepare(plain_node().model(), "CUDA"), ValueError, "device must be 'CPU'"),
        (lambda: backend.prepare(to_onnx(fr.LSTM(2, 3))), ValueError, "nodes only, not Identity, Reshape, Transpose"),
        (lambda: backend.prepare(plain_node().model()).run([]), ValueError, "inputs must be 1 arrays"),
    ],
)
def test_other_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("dtype", ["float16", "int32"])
def test_weights_of_other_types(dtype: str) -> None:
    node = plain_node()
    node.weights["R"] = node.weights["R"].astype(dtype)
    with pytest.raises(TypeError, match=f"R of node 'the node' must be of float32 or float64.*not {dtype}"):
        from_onnx(node.model())


def test_the_library_imports_no_onnx() -> None:
    code = "import sys, fusedrnn; assert not {'onnx', 'torch', 'keras', 'safetensors'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

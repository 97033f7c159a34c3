"""A case as an ONNX model: our parameters in the operators' gate order."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from bench.cases import GATES, STATES
from bench.problem import Array, Problem

OPSET = 14
IR_VERSION = 8

# Our gate blocks in the order ONNX wants them: LSTM i o f c, GRU z r h.
LSTM_ORDER = (0, 3, 1, 2)
GRU_ORDER = (1, 0, 2)
PEEPHOLE_ORDER = (0, 2, 1)


def onnx_rows(cell: str, array: Array) -> Array:
    """The gate blocks of a weight (G*H, K) or bias (G*H,) in ONNX's order.

    Coupled gates: onnxruntime keeps the input gate i and takes f = 1 - i, ours keeps f and takes i = 1 - f. Since
    1 - sigmoid(a) = sigmoid(-a), our f block negated is its i block; its f block is never read.
    """
    gates = np.split(array, GATES[cell])
    if cell.startswith("rnn"):
        return array
    if cell.startswith("gru"):
        return np.concatenate([gates[k] for k in GRU_ORDER])
    if "coupled" in cell:
        forget, candidate, output = gates
        return np.concatenate([-forget, output, np.zeros_like(forget), candidate])
    return np.concatenate([gates[k] for k in LSTM_ORDER])


def onnx_peephole(cell: str, peephole: Array) -> Array:
    """The peephole rows (3*H,) in ONNX's order i o f."""
    if "coupled" in cell:
        forget, output = peephole
        return np.concatenate([-forget, output, np.zeros_like(forget)])
    return np.concatenate([peephole[k] for k in PEEPHOLE_ORDER])


def operator(cell: str, hidden: int, directions: int) -> tuple[str, dict[str, Any]]:
    """The ONNX operator of a cell and its attributes."""
    attributes: dict[str, Any] = {
        "hidden_size": hidden,
        "direction": "bidirectional" if directions == 2 else "forward",
    }
    if cell.startswith("rnn"):
        return "RNN", attributes | {"activations": ["Tanh" if cell == "rnn_tanh" else "Relu"] * directions}
    if cell.startswith("gru"):
        return "GRU", attributes | {"linear_before_reset": int(cell == "gru")}
    return "LSTM", attributes | {"input_forget": int("coupled" in cell)}


def layer_weights(problem: Problem, layer: int) -> dict[str, Array]:
    """W, R, B and, where the cell has peepholes, P of one layer, the directions stacked in front."""
    case, parameters = problem.case, problem.parameters
    ends = [f"_l{layer}", f"_l{layer}_reverse"][: case.directions]

    def stack(name: str) -> Array:
        return np.stack([onnx_rows(case.cell, parameters[name + end]) for end in ends])

    weights = {
        "W": stack("weight_ih"),
        "R": stack("weight_hh"),
        "B": np.concatenate([stack("bias_ih"), stack("bias_hh")], axis=1),
    }
    if "peephole" in case.cell:
        weights["P"] = np.stack([onnx_peephole(case.cell, parameters["peephole" + end]) for end in ends])
    return weights


def constant(name: str, *values: int) -> TensorProto:
    """An integer list that a reshaping operator takes as an input."""
    return numpy_helper.from_array(np.array(values, np.int64), name)


def layer_nodes(problem: Problem, layer: int, source: str) -> tuple[list[NodeProto], list[TensorProto], str]:
    """The nodes and initializers of one layer, and the name of its output.

    Between layers, and for two directions, the operator's (T, D, B, H) becomes the (T, B, D*H) every other peer
    delivers. The last layer of a single direction stays (T, 1, B, H): there dropping the axis is a view.
    """
    case = problem.case
    weights = {f"{key}{layer}": value for key, value in layer_weights(problem, layer).items()}
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    inputs = [source, f"W{layer}", f"R{layer}", f"B{layer}"]
    if f"P{layer}" in weights:
        inputs += ["", "", "", f"P{layer}"]
    raw, joined = f"raw{layer}", f"y{layer}"
    name, attributes = operator(case.cell, case.hidden, case.directions)
    nodes = [helper.make_node(name, inputs, [raw], **attributes)]
    if case.directions == 2:
        nodes.append(helper.make_node("Transpose", [raw], [f"side{layer}"], perm=[0, 2, 1, 3]))
        nodes.append(helper.make_node("Reshape", [f"side{layer}", f"shape{layer}"], [joined]))
        initializers.append(constant(f"shape{layer}", 0, 0, -1))
    elif layer < case.layers - 1:
        nodes.append(helper.make_node("Squeeze", [raw, f"axis{layer}"], [joined]))
        initializers.append(constant(f"axis{layer}", 1))
    else:
        joined = raw
    return nodes, initializers, joined


def serialise(graph: GraphProto) -> bytes:
    """The graph as a model of the operator set and format that all installed versions read."""
    opsets = [helper.make_opsetid("", OPSET)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString())


def build_model(problem: Problem) -> bytes:
    """A serialised model from "x" (T, B, I) to its one output; see `layer_nodes` for its shape."""
    case = problem.case
    nodes: list[NodeProto] = []
    initializers: list[TensorProto] = []
    current = "x"
    for layer in range(case.layers):
        more_nodes, more_initializers, current = layer_nodes(problem, layer, current)
        nodes += more_nodes
        initializers += more_initializers
    steps, batch, hidden = case.steps, case.batch, case.hidden
    shape = [steps, batch, 2 * hidden] if case.directions == 2 else [steps, 1, batch, hidden]
    graph = helper.make_graph(
        nodes,
        "sequence",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, problem.x.shape)],
        [helper.make_tensor_value_info(current, TensorProto.FLOAT, shape)],
        initializers,
    )
    return serialise(graph)


def build_step_model(problem: Problem) -> bytes:
    """A serialised model of one step of one layer: "x" (1, B, I) and the states to the states that follow.

    The states h and, for an LSTM, c are (1, B, H), and go by the names "h" and "c" in, "h_next" and "c_next" out.
    """
    case = problem.case
    weights = layer_weights(problem, 0)
    names = list(STATES[case.cell])
    outputs = [f"{name}_next" for name in names]
    inputs = ["x", "W", "R", "B", "", *names]
    if "P" in weights:
        inputs.append("P")
    name, attributes = operator(case.cell, case.hidden, directions=1)
    shape = [1, case.batch, case.hidden]
    graph = helper.make_graph(
        [helper.make_node(name, inputs, ["", *outputs], **attributes)],
        "step",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, case.batch, case.inputs]),
            *(helper.make_tensor_value_info(state, TensorProto.FLOAT, shape) for state in names),
        ],
        [helper.make_tensor_value_info(state, TensorProto.FLOAT, shape) for state in outputs],
        [numpy_helper.from_array(value, key) for key, value in weights.items()],
    )
    return serialise(graph)

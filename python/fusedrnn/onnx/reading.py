"""Layers from the nodes of a model."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fusedrnn.gradients import Array, State
from fusedrnn.layers import GRU, LSTM, RNN
from fusedrnn.onnx.gates import peephole_table, to_ours, weight_table

Layer = RNN | LSTM | GRU
Values = Mapping[str, Any]  # arrays, or tensors of a model

INPUTS = {
    "RNN": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
    "GRU": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
    "LSTM": ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"),
}
_ACTIVATIONS = {
    "RNN": (("Tanh",), ("Relu",)),
    "GRU": (("Sigmoid", "Tanh"),),
    "LSTM": (("Sigmoid", "Tanh", "Tanh"),),
}
_DIRECTIONS = ("forward", "reverse", "bidirectional")
# The kind and the default of each attribute.
_ATTRIBUTES: dict[str, tuple[int, Any]] = {
    "activations": (onnx.AttributeProto.STRINGS, None),
    "activation_alpha": (onnx.AttributeProto.FLOATS, None),  # tanh, sigmoid and relu take none of these
    "activation_beta": (onnx.AttributeProto.FLOATS, None),
    "clip": (onnx.AttributeProto.FLOAT, None),
    "direction": (onnx.AttributeProto.STRING, "forward"),
    "hidden_size": (onnx.AttributeProto.INT, None),
    "input_forget": (onnx.AttributeProto.INT, 0),
    "layout": (onnx.AttributeProto.INT, 0),
    "linear_before_reset": (onnx.AttributeProto.INT, 0),
}
_OWN_ATTRIBUTES = {"input_forget": "LSTM", "linear_before_reset": "GRU"}
_OLDEST_OPSET = 7


def from_onnx(
    model_or_node: onnx.ModelProto | onnx.NodeProto | bytes | str | os.PathLike[str],
    node: str | None = None,
    *,
    weights: Mapping[str, Array] | None = None,
) -> Any:
    """Make layers of the RNN, LSTM and GRU nodes of an ONNX model (operator sets 7 and newer).

    A layer takes the weights and attributes of its node: ``direction``, ``layout`` (1 is `batch_first`), ``clip``,
    ``input_forget`` (`coupled`), ``linear_before_reset`` (`reset_after`), and peepholes. Initial states and lengths are
    arguments of its calls: `call_arguments` gives those that a model holds as constants, and a warning tells of states
    that are not zero and of lengths. A row of length 0 keeps its initial state, where onnxruntime gives zeros.

    Parameters
    ----------
    model_or_node : ModelProto, path, bytes of a model, or NodeProto
    node : str, optional
        Name of one node of the model, or of its first output where it has no name of its own.
    weights : mapping of str to array, optional
        Values by the names of a node's inputs, for those that are not initializers or constants of the model. A
        NodeProto, which holds no values, needs them.

    Returns
    -------
    RNN, LSTM or GRU
        float32 or float64, as the weights are. A dict of them by the names of the nodes, if the model has several and
        `node` is None.

    Raises
    ------
    TypeError
        Where an argument is of another kind, or weights are not float32 or float64.
    ValueError
        Where the model has no such node or an older operator set, a weight is neither constant nor given, a shape or
        attribute is wrong, or an activation is none that the layers have: tanh or relu for RNN, both directions alike,
        and the operator's own for GRU and LSTM.
    """
    if weights is not None and not isinstance(weights, Mapping):
        raise TypeError(f"weights must be a mapping of names to arrays or None, not {type(weights).__name__}")
    nodes, values = _nodes_and_values(model_or_node, node)
    layers = {name: _layer(name, proto, {**values, **(weights or {})}) for name, proto in nodes.items()}
    for name, proto in nodes.items():
        _warn_of_constants(name, proto, values)
    return next(iter(layers.values())) if len(layers) == 1 else layers


def call_arguments(
    model_or_node: onnx.ModelProto | onnx.NodeProto | bytes | str | os.PathLike[str], node: str | None = None
) -> dict[str, Any]:
    """The initial state and the lengths that a model holds as constants, as arguments of its layer's calls.

    Parameters
    ----------
    model_or_node, node
        As for `from_onnx`; they must mean one node.

    Returns
    -------
    dict
        ``state``, h or (h, c), each (D, B, H), zeros where only the other half is constant; ``lengths``, (B,). What
        is not a constant of the model is not in the dict: ``layer(x, **call_arguments(model))``.

    Raises
    ------
    TypeError, ValueError
        As from `from_onnx`; where the model has several nodes and `node` is None.
    """
    nodes, values = _nodes_and_values(model_or_node, node)
    if len(nodes) != 1:
        raise ValueError(f"node must name one of {list(nodes)}, as the model has several")
    ((name, proto),) = nodes.items()
    return _constant_arguments(name, proto, values)


def _nodes_and_values(model_or_node: Any, node: str | None) -> tuple[dict[str, onnx.NodeProto], Values]:
    """The nodes that are meant, by name, and the constants of their model."""
    if node is not None and not isinstance(node, str):
        raise TypeError(f"node must be the name of a node or None, not {type(node).__name__}")
    if isinstance(model_or_node, onnx.NodeProto):
        if node is not None:
            raise ValueError("node must be None where model_or_node is a node itself")
        if not _is_recurrent(model_or_node):
            raise ValueError(f"model_or_node must be an RNN, LSTM or GRU node, not {model_or_node.op_type!r}")
        return {model_or_node.name or _first_output(model_or_node): model_or_node}, {}
    model = _model(model_or_node)
    nodes = [proto for proto in model.graph.node if _is_recurrent(proto)]
    if not nodes:
        raise ValueError("model_or_node must have an RNN, LSTM or GRU node in its graph; it has none")
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version < _OLDEST_OPSET:
            raise ValueError(f"model_or_node must be of operator set {_OLDEST_OPSET} or newer, not {opset.version}")
    uses = Counter(proto.name for proto in nodes)
    named = {proto.name if proto.name and uses[proto.name] == 1 else _first_output(proto): proto for proto in nodes}
    if len(named) < len(nodes):
        raise ValueError("model_or_node must not name a node as the output of another; rename it")
    if node is not None and node not in named:
        raise ValueError(f"node must be one of {list(named)}, not {node!r}")
    return named if node is None else {node: named[node]}, _constants(model.graph)


def _model(value: Any) -> onnx.ModelProto:
    if isinstance(value, onnx.ModelProto):
        return value
    try:
        if isinstance(value, bytes):
            return onnx.load_model_from_string(value)
        if isinstance(value, (str, os.PathLike)):
            return onnx.load(os.fspath(value))
    except OSError:
        raise
    except Exception as error:  # the kind depends on protobuf's version
        shown = "these bytes" if isinstance(value, bytes) else repr(os.fspath(value))
        raise ValueError(f"model_or_node must be an ONNX model; {shown} cannot be read as one: {error}") from error
    raise TypeError(f"model_or_node must be an ONNX model or node, bytes or a path, not {type(value).__name__}")


def _is_recurrent(node: onnx.NodeProto) -> bool:
    return node.domain in ("", "ai.onnx") and node.op_type in INPUTS


def _first_output(node: onnx.NodeProto) -> str:
    return next((name for name in node.output if name), "")


def _constants(graph: onnx.GraphProto) -> dict[str, Any]:
    """The tensors of a graph's initializers and Constant nodes."""
    constants: dict[str, Any] = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            constants |= {name: item.t for name in node.output for item in node.attribute if item.name == "value"}
    return constants


def input_names(node: onnx.NodeProto) -> dict[str, str]:
    """What the operator calls its inputs, and the names that a node gives to those it has."""
    names = dict(zip(INPUTS[node.op_type], node.input, strict=False))
    return {formal: name for formal, name in names.items() if name}


class _Weights:
    """A node's weights, checked."""

    def __init__(self, node_name: str, node: onnx.NodeProto, values: Values) -> None:
        self.node_name, self.names, self.values = node_name, input_names(node), values

    def array(self, formal: str, *shape: int | str) -> Array:
        """An input by the operator's name for it, of this shape: integers, or letters for what is free."""
        name = self.names.get(formal)
        if name is None:
            raise ValueError(f"node {self.node_name!r} must have an input {formal}")
        if name not in self.values:
            raise ValueError(
                f"{formal} of node {self.node_name!r} must be an initializer of the model; {name!r} is computed or fed"
                f" at run time. Pass its values in weights={{{name!r}: array}}"
            )
        array = as_array(self.values[name], name)
        fixed = [got if isinstance(want, str) else want for want, got in zip(shape, array.shape, strict=False)]
        if array.ndim != len(shape) or [*array.shape] != fixed:
            wanted = f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
            raise ValueError(f"{formal} of node {self.node_name!r} must have shape {wanted}, not {array.shape}")
        return array

    def has(self, formal: str) -> bool:
        return formal in self.names


def as_array(value: Any, name: str) -> Array:
    """A tensor of a model, or an array."""
    if not isinstance(value, onnx.TensorProto):
        return np.asarray(value)
    try:
        return np.asarray(numpy_helper.to_array(value))
    except Exception as error:  # data that was left in another file, or too short for its shape
        raise ValueError(f"the tensor {name!r} of the model cannot be read: {error}") from error


def _attributes(name: str, node: onnx.NodeProto) -> dict[str, Any]:
    found = {attribute: default for attribute, (_, default) in _ATTRIBUTES.items()}
    for item in node.attribute:
        if _OWN_ATTRIBUTES.get(item.name, node.op_type) != node.op_type or item.name not in found:
            raise ValueError(f"node {name!r} has an attribute {item.name!r}, which is none of {node.op_type}")
        wanted, names = _ATTRIBUTES[item.name][0], onnx.AttributeProto.AttributeType
        if item.type != wanted:
            raise ValueError(f"{item.name} of node {name!r} must be {names.Name(wanted)}, not {names.Name(item.type)}")
        found[item.name] = helper.get_attribute_value(item)
    found["direction"] = _text(found["direction"])
    for attribute, choices in (
        ("direction", _DIRECTIONS),
        ("layout", (0, 1)),
        ("input_forget", (0, 1)),
        ("linear_before_reset", (0, 1)),
    ):
        if found[attribute] not in choices:
            raise ValueError(f"{attribute} of node {name!r} must be one of {choices}, not {found[attribute]!r}")
    clip = found["clip"]
    if clip is not None and not clip > 0:
        raise ValueError(f"clip of node {name!r} must be positive, not {clip}")
    return found


def _text(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _activations(name: str, op: str, given: Any, directions: int) -> tuple[str, ...]:
    """The activations of every direction, which must be some that the layers have."""
    known = _ACTIVATIONS[op]
    if not given:
        return known[0]
    functions = [_text(function).capitalize() for function in given]
    for own in known:
        if functions == [*own] * directions:
            return own
    wanted = " or ".join(str([*own] * directions) for own in known)
    raise ValueError(f"activations of node {name!r} must be {wanted} for this library, not {functions}")


def _layer(name: str, node: onnx.NodeProto, values: Values) -> Layer:
    attributes = _attributes(name, node)
    op, directions = node.op_type, 2 if attributes["direction"] == "bidirectional" else 1
    activations = _activations(name, op, attributes["activations"], directions)
    coupled = bool(attributes["input_forget"])
    arrays = _arrays(node, _Weights(name, node, values), directions, attributes["hidden_size"])
    options: dict[str, dict[str, Any]] = {
        "RNN": {"nonlinearity": activations[0].lower()},
        "GRU": {"reset_after": bool(attributes["linear_before_reset"])},
        "LSTM": {"coupled": coupled, "peephole": "P" in arrays},
    }
    kind: Any = {"RNN": RNN, "GRU": GRU, "LSTM": LSTM}[op]
    layer: Layer = kind(
        arrays["W"].shape[2],
        arrays["R"].shape[2],
        bias="B" in arrays,
        batch_first=bool(attributes["layout"]),
        bidirectional=directions == 2,
        reverse=attributes["direction"] == "reverse",
        clip=attributes["clip"],
        dtype=arrays["W"].dtype,
        seed=0,
        **options[op],
    )
    layer.load_parameters(_parameters(op, coupled, arrays))
    return layer


def _arrays(node: onnx.NodeProto, weights: _Weights, directions: int, hidden: int | None) -> dict[str, Array]:
    """The weights of a node by the operator's names, of one dtype and the right shapes."""
    hidden = hidden or weights.array("R", directions, "G*H", "H").shape[2]
    rows = len(weight_table(node.op_type)) * hidden
    shapes = {"W": (rows, "I"), "R": (rows, hidden), "B": (2 * rows,), "P": (3 * hidden,)}
    arrays = {
        formal: weights.array(formal, directions, *shape)
        for formal, shape in shapes.items()
        if formal in "WR" or weights.has(formal)
    }
    for formal, array in arrays.items():
        if array.dtype.name not in ("float32", "float64") or array.dtype != arrays["W"].dtype:
            raise TypeError(
                f"{formal} of node {weights.node_name!r} must be of float32 or float64, as all its weights,"
                f" not {array.dtype}"
            )
    return arrays


def _parameters(op: str, coupled: bool, arrays: dict[str, Array]) -> dict[str, Array]:
    """Our parameters from ONNX's arrays, whose first axis is the direction."""
    table, parameters = weight_table(op, coupled), {}
    for direction, suffix in enumerate(("_l0", "_l0_reverse")[: len(arrays["W"])]):
        blocks = {formal: array[direction] for formal, array in arrays.items()}
        parameters["weight_ih" + suffix] = to_ours(blocks["W"], table)
        parameters["weight_hh" + suffix] = to_ours(blocks["R"], table)
        if "B" in blocks:
            for kind, half in zip(("bias_ih", "bias_hh"), np.split(blocks["B"], 2), strict=True):
                parameters[kind + suffix] = to_ours(half, table)
        if "P" in blocks:
            parameters["peephole" + suffix] = to_ours(blocks["P"].reshape(3, -1), peephole_table(coupled))
    return parameters


def state_of(layout: int, halves: list[Array]) -> State:
    """Initial states of a node as a layer takes them: (D, B, H), whatever the layout."""
    ours = [np.ascontiguousarray(half.swapaxes(0, 1) if layout else half) for half in halves]
    return ours[0] if len(ours) == 1 else (ours[0], ours[1])


def _constant_arguments(name: str, node: onnx.NodeProto, values: Values) -> dict[str, Any]:
    names = input_names(node)
    constant = {
        formal: as_array(values[names[formal]], names[formal])
        for formal in ("sequence_lens", "initial_h", "initial_c")
        if names.get(formal) in values
    }
    arguments: dict[str, Any] = {}
    if "sequence_lens" in constant:
        arguments["lengths"] = constant.pop("sequence_lens")
    if constant:
        parts = ["initial_h", "initial_c"] if node.op_type == "LSTM" else ["initial_h"]
        known = next(iter(constant.values()))
        halves = [constant.get(part, np.zeros_like(known)) for part in parts]
        arguments["state"] = state_of(_attributes(name, node)["layout"], halves)
    return arguments


def _warn_of_constants(name: str, node: onnx.NodeProto, values: Values) -> None:
    arguments = _constant_arguments(name, node, values)
    state = arguments.get("state", ())
    if "lengths" in arguments or any(half.any() for half in (state if isinstance(state, tuple) else (state,))):
        warnings.warn(
            f"node {name!r} has a constant initial state or lengths, which a layer does not hold: call it with those"
            " that fusedrnn.onnx.call_arguments gives",
            stacklevel=3,
        )

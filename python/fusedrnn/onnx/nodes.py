"""Layers from recurrent nodes: attributes, weights, shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper

from fusedrnn.gradients import Array
from fusedrnn.layers import GRU, LSTM, RNN
from fusedrnn.onnx.folding import Folder, Unknown
from fusedrnn.onnx.gates import peephole_table, to_ours, weight_table
from fusedrnn.onnx.scopes import RECURRENT, RecurrentNode

Layer = RNN | LSTM | GRU

INPUTS = {
    "RNN": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
    "GRU": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
    "LSTM": ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"),
}
_QUANTIZED = {
    "DynamicQuantizeLSTM": (*INPUTS["LSTM"], "W_scale", "W_zero_point", "R_scale", "R_zero_point"),
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
_OWN_ATTRIBUTES = {"input_forget": ("LSTM", "DynamicQuantizeLSTM"), "linear_before_reset": ("GRU",)}
_OLDEST_OPSET = 7


def operator_of(node: onnx.NodeProto) -> str:
    """RNN, GRU or LSTM, whatever the weights are stored as."""
    return RECURRENT[node.domain, node.op_type]


def input_names(recurrent: RecurrentNode) -> dict[str, str]:
    """What the operator calls its inputs, and the names that a node gives to those it has."""
    op = recurrent.node.op_type
    names = zip(_QUANTIZED.get(op) or INPUTS[op], recurrent.node.input, strict=False)
    return {formal: name for formal, name in names if recurrent.scope.is_given(name)}


def attributes_of(recurrent: RecurrentNode) -> dict[str, Any]:
    """The attributes of a node, checked, with the operator's defaults for those it lacks."""
    name, node = recurrent.name, recurrent.node
    found = {attribute: default for attribute, (_, default) in _ATTRIBUTES.items()}
    for item in node.attribute:
        if node.op_type not in _OWN_ATTRIBUTES.get(item.name, (node.op_type,)) or item.name not in found:
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


class _Weights:
    """A node's weights, checked."""

    def __init__(self, recurrent: RecurrentNode, folder: Folder) -> None:
        self.recurrent, self.names, self.folder = recurrent, input_names(recurrent), folder
        self.quantized = recurrent.node.op_type in _QUANTIZED

    def array(self, formal: str, *shape: int | str) -> Array:
        """An input by the operator's name for it, of this shape: integers, or letters for what is free."""
        array = self._value(formal)
        wanted = shape[:1] + shape[:0:-1] if self.quantized and formal in ("W", "R") else shape
        _require_shape(self.recurrent.name, formal, array, *wanted)
        return self._dequantized(formal, array) if wanted is not shape else array

    def _value(self, formal: str) -> Array:
        name = self.names.get(formal)
        if name is None:
            raise ValueError(f"node {self.recurrent.name!r} must have an input {formal}")
        value = self.folder.constant(self.recurrent.scope, name)
        if isinstance(value, Unknown):
            raise ValueError(
                f"{formal} of node {self.recurrent.name!r} must be an initializer of the model or computed from such"
                f" alone; {value.reason}. Pass its values in weights={{{name!r}: array}}"
            )
        return value

    def _dequantized(self, formal: str, array: Array) -> Array:
        """Integers (D, columns, rows) as the numbers (D, rows, columns) that they stand for."""
        if array.dtype.name not in ("int8", "uint8"):
            raise TypeError(f"{formal} of node {self.recurrent.name!r} must be of int8 or uint8, not {array.dtype}")
        scale, zero = (self._of_rows(formal + ending, array) for ending in ("_scale", "_zero_point"))
        if scale.dtype != np.float32 or zero.dtype != array.dtype:
            raise TypeError(
                f"{formal}_scale of node {self.recurrent.name!r} must be of float32, and its zero point of"
                f" {array.dtype}, not {scale.dtype} and {zero.dtype}"
            )
        numbers = (array.astype(np.int32) - zero.astype(np.int32)) * scale
        return np.ascontiguousarray(numbers.swapaxes(1, 2), np.float32)

    def _of_rows(self, formal: str, array: Array) -> Array:
        """A scale or zero point: one of a direction, or one of each of its rows."""
        value = self._value(formal)
        if value.ndim not in (1, 2) or value.shape not in ((array.shape[0],), (array.shape[0], array.shape[2])):
            raise ValueError(
                f"{formal} of node {self.recurrent.name!r} must have shape {(array.shape[0],)} or"
                f" {(array.shape[0], array.shape[2])}, not {value.shape}"
            )
        return value.reshape(array.shape[0], 1, -1)

    def has(self, formal: str) -> bool:
        return formal in self.names


def _require_shape(node: str, formal: str, array: Array, *shape: int | str) -> None:
    fixed = [got if isinstance(want, str) else want for want, got in zip(shape, array.shape, strict=False)]
    if array.ndim != len(shape) or [*array.shape] != fixed:
        wanted = f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
        raise ValueError(f"{formal} of node {node!r} must have shape {wanted}, not {array.shape}")


def layer_of(recurrent: RecurrentNode, folder: Folder) -> Layer:
    """The layer of a node, without an initial state of its own."""
    if recurrent.scope.opset and recurrent.scope.opset < _OLDEST_OPSET:
        raise ValueError(f"model_or_node must be of operator set {_OLDEST_OPSET} or newer, not {recurrent.scope.opset}")
    attributes, op = attributes_of(recurrent), operator_of(recurrent.node)
    directions = 2 if attributes["direction"] == "bidirectional" else 1
    activations = _activations(recurrent.name, op, attributes["activations"], directions)
    coupled = bool(attributes["input_forget"])
    arrays = _arrays(op, _Weights(recurrent, folder), directions, attributes["hidden_size"])
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


def _arrays(op: str, weights: _Weights, directions: int, hidden: int | None) -> dict[str, Array]:
    """The weights of a node by the operator's names, of one dtype and the right shapes."""
    hidden = hidden or weights.array("R", directions, "G*H", "H").shape[2]
    rows = len(weight_table(op)) * hidden
    shapes = {"W": (rows, "I"), "R": (rows, hidden), "B": (2 * rows,), "P": (3 * hidden,)}
    arrays = {
        formal: weights.array(formal, directions, *shape)
        for formal, shape in shapes.items()
        if formal in "WR" or weights.has(formal)
    }
    for formal, array in arrays.items():
        if array.dtype.name not in ("float32", "float64"):
            raise TypeError(
                f"{formal} of node {weights.recurrent.name!r} must be of float32 or float64, not {array.dtype}"
            )
        if array.dtype != arrays["W"].dtype:
            raise TypeError(
                f"{formal} of node {weights.recurrent.name!r} must be of {arrays['W'].dtype} as W, not {array.dtype}"
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

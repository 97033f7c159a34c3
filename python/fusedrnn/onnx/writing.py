"""Models from layers."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fusedrnn.arguments import require_flag
from fusedrnn.gradients import Array
from fusedrnn.layers import GRU, LSTM, RNN
from fusedrnn.onnx.gates import peephole_table, to_theirs, weight_table
from fusedrnn.onnx.nodes import Layer

# Old enough for every runtime in use; newer operator sets add nothing that a layer has.
_OPSET = 14
_IR_VERSION = 8


def to_onnx(layer: Layer, *, state: bool = False, lengths: bool = False) -> onnx.ModelProto:
    """Write a layer as an ONNX model, which computes what a call of the layer does (no dropout).

    Inputs: ``x``, as the layer takes it, batched; with `state` ``h0`` and, for an LSTM, ``c0`` (L*D, B, H); with
    `lengths` ``lengths`` (B,), int32. Outputs: ``y``, ``h`` and, for an LSTM, ``c``. T and B are free. A coupled LSTM
    is written with ``input_forget`` as onnxruntime reads it, f = 1 - i. onnxruntime runs no float64 model, and gives a
    row of length 0 the state zero, not its initial one.

    Parameters
    ----------
    layer : RNN, LSTM or GRU
        Of float32 or float64; one on a CUDA device is copied to the host.
    state, lengths : bool
        Whether the model has these inputs. Otherwise states begin as those of the layer's calls do, at its
        `initial_state`, zeros unless that is set, and sequences are whole.

    Returns
    -------
    ModelProto
        Of operator set 14; ``onnx.save`` writes it to a file.

    Raises
    ------
    TypeError
        Where `layer` is no layer or of a 16-bit dtype, or an option no bool.
    """
    if not isinstance(layer, (RNN, LSTM, GRU)):
        raise TypeError(f"layer must be an RNN, LSTM or GRU layer, not {type(layer).__name__}")
    graph = _Graph(_on_host(layer), require_flag(state, "state"), require_flag(lengths, "lengths"))
    return helper.make_model(
        graph.build(),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="fusedrnn",
    )


def _on_host(layer: Layer) -> Layer:
    """The layer, or a copy of it on the CPU."""
    if layer.dtype.name not in ("float32", "float64"):
        raise TypeError(
            f"layer must be of float32 or float64, not {layer.dtype}; use layer.to(device='cpu', dtype='float32')"
        )
    if layer.device == "cpu":
        return layer
    own = copy.deepcopy(layer)
    # Choices that the CPU has not, and a model does not say.
    own._options = replace(own._options, precision="ieee", engine="auto")
    moved: Layer = own.to(device="cpu")
    return moved


class _Graph:
    def __init__(self, layer: Layer, state: bool, lengths: bool) -> None:
        self.layer, self.state, self.lengths = layer, state, lengths
        self.op = _operator(layer)
        self.coupled = isinstance(layer, LSTM) and layer.coupled
        self.directions = 2 if layer.bidirectional else 1
        self.states = ["h", "c"] if self.op == "LSTM" else ["h"]
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []

    def build(self) -> onnx.GraphProto:
        layer = self.layer
        many = layer.num_layers > 1
        if many and self.state:
            for half in self.states:
                sizes = self.constant("state_sizes_" + half, np.full(layer.num_layers, self.directions))
                pieces = [f"{half}0_l{number}" for number in range(layer.num_layers)]
                self.node("Split", [half + "0", sizes], pieces, axis=0)
        starts = self.add_starts() if not self.state and layer.initial_state is not None else {}
        y = "x"
        if layer.batch_first:
            y = self.node("Transpose", [y], ["x_by_time"], perm=[1, 0, 2])
        for number in range(layer.num_layers):
            y = self.add_layer(number, y, many, starts)
        if many:
            for half in self.states:
                pieces = [f"{half}_l{number}" for number in range(layer.num_layers)]
                self.node("Concat", pieces, [half], axis=0)
        self.node("Transpose" if layer.batch_first else "Identity", [y], ["y"], **self.last_permutation())
        return helper.make_graph(self.nodes, "fusedrnn", self.inputs(), self.outputs(), self.initializers)

    def add_starts(self) -> dict[tuple[str, int], str]:
        """The nodes of the layer's own initial state; their names by half and number of the layer."""
        own = self.layer.initial_state
        halves = own if isinstance(own, tuple) else (own,)
        # Expanded to (1, B, 1), which takes the other sizes from the state.
        axis = self.constant("batch_axis", np.array([0 if self.layer.batch_first else 1]))
        one = self.constant("one", np.array([1]))
        batch = self.node("Gather", [self.node("Shape", ["x"], ["x_shape"]), axis], ["batch"], axis=0)
        shape = self.node("Concat", [one, batch, one], ["rows_shape"], axis=0)
        names = {}
        for half, array in zip(self.states, halves, strict=True):
            assert array is not None
            for number, rows in enumerate(np.split(array, self.layer.num_layers)):
                name = self.constant(f"initial_{half}_l{number}", rows)
                one_row = rows.shape[1] == 1
                expanded = f"{half}0_l{number}"
                names[half, number] = self.node("Expand", [name, shape], [expanded]) if one_row else name
        return names

    def add_layer(self, number: int, x: str, many: bool, starts: dict[tuple[str, int], str]) -> str:
        """The nodes of one layer; the name of its output, (T, B, D*H)."""
        ending = f"_l{number}" if many else ""
        names = {key: self.constant(f"{key}_l{number}", value) for key, value in self.weights(number).items()}
        inputs = [x, names["W"], names["R"], names.get("B", ""), "lengths" if self.lengths else ""]
        inputs += [half + "0" + ending if self.state else starts.get((half, number), "") for half in self.states]
        if "P" in names:
            inputs.append(names["P"])
        outputs = [f"Y_l{number}", *(half + ending for half in self.states)]
        self.node(self.op, inputs, outputs, **self.attributes())
        self.node("Transpose", outputs[:1], [f"Y_by_row_l{number}"], perm=[0, 2, 1, 3])
        shape = self.constant(f"shape_l{number}", np.array([0, 0, self.directions * self.layer.hidden_size]))
        return self.node("Reshape", [f"Y_by_row_l{number}", shape], [f"y_l{number}"])

    def weights(self, number: int) -> dict[str, Array]:
        parameters, table = self.layer.parameters, weight_table(self.op, self.coupled)
        suffixes = [f"_l{number}", f"_l{number}_reverse"][: self.directions]

        def stacked(name: str) -> Array:
            return np.stack([to_theirs(parameters[name + suffix], table) for suffix in suffixes])

        weights = {"W": stacked("weight_ih"), "R": stacked("weight_hh")}
        if self.layer.bias:
            weights["B"] = np.concatenate([stacked("bias_ih"), stacked("bias_hh")], axis=1)
        if isinstance(self.layer, LSTM) and self.layer.peephole:
            rows = peephole_table(self.coupled)
            weights["P"] = np.stack([to_theirs(parameters["peephole" + s], rows).reshape(-1) for s in suffixes])
        return weights

    def attributes(self) -> dict[str, Any]:
        layer = self.layer
        direction = "bidirectional" if layer.bidirectional else "reverse" if layer.reverse else "forward"
        attributes: dict[str, Any] = {"hidden_size": layer.hidden_size, "direction": direction}
        if layer.clip is not None:
            attributes["clip"] = layer.clip
        if isinstance(layer, RNN):
            attributes["activations"] = [layer.nonlinearity.capitalize()] * self.directions
        if isinstance(layer, GRU):
            attributes["linear_before_reset"] = int(layer.reset_after)
        if self.coupled:
            attributes["input_forget"] = 1
        return attributes

    def last_permutation(self) -> dict[str, Any]:
        return {"perm": [1, 0, 2]} if self.layer.batch_first else {}

    def node(self, op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> str:
        """Add a node; the name of its first output."""
        self.nodes.append(helper.make_node(op, inputs, outputs, name=f"{op}_{len(self.nodes)}", **attributes))
        return outputs[0]

    def constant(self, name: str, value: Array) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def value(self, name: str, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(self.layer.dtype), shape)

    def sequence(self, name: str, width: int) -> onnx.ValueInfoProto:
        return self.value(name, *(("B", "T") if self.layer.batch_first else ("T", "B")), width)

    def state_value(self, name: str) -> onnx.ValueInfoProto:
        return self.value(name, self.layer.num_layers * self.directions, "B", self.layer.hidden_size)

    def inputs(self) -> list[onnx.ValueInfoProto]:
        inputs = [self.sequence("x", self.layer.input_size)]
        if self.state:
            inputs += [self.state_value(half + "0") for half in self.states]
        if self.lengths:
            inputs.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"]))
        return inputs

    def outputs(self) -> list[onnx.ValueInfoProto]:
        y = self.sequence("y", self.directions * self.layer.hidden_size)
        return [y, *(self.state_value(half) for half in self.states)]


def _operator(layer: Layer) -> str:
    return "RNN" if isinstance(layer, RNN) else "GRU" if isinstance(layer, GRU) else "LSTM"

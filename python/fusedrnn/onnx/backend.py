"""An implementation of ``onnx.backend`` for graphs of RNN, LSTM and GRU nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.base import Backend as OnnxBackend
from onnx.backend.base import BackendRep

from fusedrnn.gradients import Array
from fusedrnn.onnx.folding import Budget, Folder
from fusedrnn.onnx.nodes import INPUTS
from fusedrnn.onnx.scopes import RecurrentNode, first_output, scope_of_node
from fusedrnn.onnx.states import layer_and_start


class Backend(OnnxBackend):
    """Runs models whose every node is an RNN, LSTM or GRU; weights may be inputs of the graph."""

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether `prepare` takes the model."""
        return cls.supports_device(device) and all(node.op_type in INPUTS for node in model.graph.node)

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> Representation:
        """Make a model ready to run.

        Raises
        ------
        ValueError
            Where it has a node of another kind, or the device is not the CPU.
        """
        if not cls.supports_device(device):
            raise ValueError(f"device must be 'CPU', not {device!r}")
        others = sorted({node.op_type for node in model.graph.node} - set(INPUTS))
        if others:
            raise ValueError(f"model must have RNN, LSTM and GRU nodes only, not {', '.join(others)}")
        return Representation(model)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether the device is the CPU."""
        return device.split(":")[0] == "CPU"


class Representation(BackendRep):
    """A model ready to run."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.inputs = [value.name for value in model.graph.input if value.name not in self.constants]

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Array, ...]:
        """Run the graph on its inputs in order; its outputs in order."""
        if len(inputs) != len(self.inputs):
            raise ValueError(f"inputs must be {len(self.inputs)} arrays, {self.inputs}, not {len(inputs)}")
        values = dict(self.constants) | dict(zip(self.inputs, inputs, strict=True))
        for node in self.graph.node:
            values |= run_node(node, values)
        return tuple(values[value.name] for value in self.graph.output)


def run_node(node: onnx.NodeProto, values: dict[str, Array]) -> dict[str, Array]:
    """The outputs of a recurrent node by name, in the operator's own shapes."""
    recurrent = RecurrentNode(node.name or first_output(node), scope_of_node(node, values), node)
    layer, start = layer_and_start(recurrent, Folder(Budget(sum(array.nbytes for array in values.values()))))
    layout = layer.batch_first
    y, final = layer(np.ascontiguousarray(values[node.input[0]]), lengths=start.lengths)
    directions = 2 if layer.bidirectional else 1
    y = y.reshape(*y.shape[:2], directions, layer.hidden_size)
    finals = final if isinstance(final, tuple) else (final,)
    # Y is (T, D, B, H), or (B, T, D, H) with layout 1; the states are (D, B, H), or (B, D, H).
    outputs = [y if layout else y.swapaxes(1, 2), *(half.swapaxes(0, 1) if layout else half for half in finals)]
    return {name: np.ascontiguousarray(a) for name, a in zip(node.output, outputs, strict=False) if name}


prepare = Backend.prepare
run_model = Backend.run_model
is_compatible = Backend.is_compatible
supports_device = Backend.supports_device

"""Layers from the RNN, LSTM and GRU nodes of ONNX models, and models from layers. Needs the package ``onnx``.

``fusedrnn.onnx.backend`` is an implementation of ``onnx.backend`` for graphs of such nodes.
"""

from fusedrnn.onnx.reading import call_arguments, from_onnx
from fusedrnn.onnx.writing import to_onnx

__all__ = ["call_arguments", "from_onnx", "to_onnx"]

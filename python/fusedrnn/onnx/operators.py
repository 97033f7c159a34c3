"""The operators that are folded: how much their results take, and onnx's own evaluation of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from fusedrnn.gradients import Array
from fusedrnn.onnx.scopes import STANDARD

Growth = tuple[int, int]  # elements of the results at most, and multiplications
# onnx's evaluator walks the indices of some operators in Python.
_MOST_LOOPED = 2**20
# onnx's evaluator lacks the older versions of these operators; this newer version computes the same. onnxruntime has
# them in a domain of its own, too.
_NEWER = {"DequantizeLinear": 21, "QuantizeLinear": 21}
_DOMAINS = {"com.microsoft": tuple(_NEWER)}
# NumPy has these types from ml_dtypes.
_NARROW = ("bfloat16", "float8", "float4", "int4", "uint4", "int2", "uint2")


def standard_name(node: onnx.NodeProto) -> str:
    """The standard operator that a node is, or nothing."""
    return node.op_type if node.domain in STANDARD or node.op_type in _DOMAINS.get(node.domain, ()) else ""


class NodeCall:
    """A node and its inputs; None for those that it leaves out."""

    def __init__(self, node: onnx.NodeProto, inputs: Sequence[Array | None]) -> None:
        self.node, self.inputs = node, inputs

    def given(self) -> list[Array]:
        """The inputs that are there."""
        return [array for array in self.inputs if array is not None]

    def input(self, number: int) -> Array:
        """An input that must be there."""
        found = self.inputs[number] if number < len(self.inputs) else None
        if found is None:
            raise ValueError(f"input {number} is missing")
        return found

    def integers(self, number: int, attribute: str) -> list[int] | None:
        """A list of integers, which old operator sets have as an attribute; None if it is neither."""
        if number < len(self.inputs):
            found = self.inputs[number]
            return None if found is None else [int(value) for value in found.reshape(-1)]
        value = self.attribute(attribute, None)
        return None if value is None else [int(item) for item in value]

    def attribute(self, name: str, default: Any) -> Any:
        """The value of an attribute."""
        return next((helper.get_attribute_value(item) for item in self.node.attribute if item.name == name), default)


def _no_larger(call: NodeCall) -> Growth:
    return 2 * sum(array.size for array in call.given()) + len(call.node.output), 0


def _broadcast(call: NodeCall) -> Growth:
    return math.prod(np.broadcast_shapes(*(array.shape for array in call.given()))), 0


def _expand(call: NodeCall) -> Growth:
    return math.prod(np.broadcast_shapes(call.input(0).shape, tuple(map(int, call.input(1).reshape(-1))))), 0


def _tile(call: NodeCall) -> Growth:
    return call.input(0).size * math.prod(map(int, call.input(1).reshape(-1))), 0


def _constant_of_shape(call: NodeCall) -> Growth:
    return math.prod(map(int, call.input(0).reshape(-1))), 0


def _range(call: NodeCall) -> Growth:
    start, limit, delta = (call.input(number).reshape(()).item() for number in range(3))
    return max(math.ceil((limit - start) / delta), 0), 0


def _pad(call: NodeCall) -> Growth:
    sizes, pads = list(call.input(0).shape), call.integers(1, "pads") or []
    axes = call.integers(3, "") or list(range(len(sizes)))
    for number, axis in enumerate(axes):
        sizes[axis] += max(pads[number], 0) + max(pads[number + len(axes)], 0)
    return math.prod(sizes), 0


def _gather(call: NodeCall) -> Growth:
    data, indices = call.input(0), call.input(1)
    return data.size // max(data.shape[call.attribute("axis", 0)], 1) * indices.size, 0


def _indexed(call: NodeCall) -> Growth:
    """Gather and Scatter by elements or by N indices."""
    data, indices = call.input(0), call.input(1)
    if indices.size > _MOST_LOOPED:
        raise ValueError(f"{indices.size} indices are more than {_MOST_LOOPED}")
    tail = math.prod(data.shape[indices.shape[-1] :]) if call.node.op_type == "GatherND" and indices.ndim else 1
    return data.size + indices.size * tail, 0


def _matmul(call: NodeCall) -> Growth:
    a, b = call.input(0).shape, call.input(1).shape
    rows, inner, columns = (a[-2] if len(a) > 1 else 1), a[-1], (b[-1] if len(b) > 1 else 1)
    elements = math.prod(np.broadcast_shapes(a[:-2], b[:-2])) * rows * columns
    return elements, elements * inner


def _gemm(call: NodeCall) -> Growth:
    a, b = call.input(0).shape, call.input(1).shape
    rows, inner = reversed(a) if call.attribute("transA", 0) else a
    columns = b[0 if call.attribute("transB", 0) else 1]
    return rows * columns + sum(array.size for array in call.given()), rows * inner * columns


def _einsum(call: NodeCall) -> Growth:
    equation = call.attribute("equation", b"").decode().replace(" ", "")
    given, _, result = equation.partition("->")
    terms, sizes, rest = given.split(","), dict[str, int](), 1
    for term, array in zip(terms, call.given(), strict=True):
        before, dots, after = term.partition("...")
        others = array.ndim - len(before) - len(after)
        if others < 0 or (others and not dots):
            raise ValueError(f"{term!r} does not name {array.ndim} axes")
        for label, size in zip(before, array.shape, strict=False):
            sizes[label] = max(size, sizes.get(label, 0))
        for label, size in zip(reversed(after), reversed(array.shape), strict=False):
            sizes[label] = max(size, sizes.get(label, 0))
        rest = max(rest, math.prod(array.shape[len(before) : array.ndim - len(after)]))
    products = math.prod(sizes.values()) * rest ** len(terms)
    shown = math.prod(sizes[label] for label in result if label in sizes) * rest ** len(terms)
    return (shown if "->" in equation else products), products


def _one_hot(call: NodeCall) -> Growth:
    return call.input(0).size * int(call.input(1).reshape(-1)[0]), 0


def _dropout(call: NodeCall) -> Growth:
    if len(call.inputs) > 2 and call.inputs[2] is not None and call.inputs[2].any():
        raise ValueError("it drops at random, in training mode")
    return _no_larger(call)


_NO_LARGER = """
Constant Identity Cast CastLike Shape Size Reshape Squeeze Unsqueeze Flatten Transpose Concat Split Slice
ReverseSequence Compress NonZero Trilu EyeLike CumSum ArgMax ArgMin ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd
ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSum ReduceLogSumExp Neg Abs Sign Sqrt Exp Log Erf Sin Cos Reciprocal Floor
Ceil Round Not Clip Sigmoid HardSigmoid Tanh Relu LeakyRelu Elu Softplus Softsign Softmax LogSoftmax LpNormalization
IsNaN IsInf DequantizeLinear QuantizeLinear DynamicQuantizeLinear Gelu Selu Celu HardSwish Mish ThresholdedRelu Shrink
Hardmax Tan Sinh Cosh Asin Acos Atan Asinh Acosh Atanh BitwiseNot DepthToSpace SpaceToDepth TopK LayerNormalization
"""
_BROADCAST = """
Add Sub Mul Div Pow Mod Min Max Sum Mean And Or Xor Equal Less Greater LessOrEqual GreaterOrEqual Where PRelu BitShift
BitwiseAnd BitwiseOr BitwiseXor
"""
#: What is folded, and a bound on what its results take.
GROWTH: dict[str, Callable[[NodeCall], Growth]] = {
    **dict.fromkeys(_NO_LARGER.split(), _no_larger),
    **dict.fromkeys(_BROADCAST.split(), _broadcast),
    **dict.fromkeys(("GatherElements", "GatherND", "ScatterElements", "ScatterND"), _indexed),
    "Expand": _expand,
    "Tile": _tile,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Pad": _pad,
    "Gather": _gather,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "OneHot": _one_hot,
    "Dropout": _dropout,
}


def evaluate(node: onnx.NodeProto, opset: int, inputs: Sequence[Array | None]) -> list[Any]:
    """The results of a node, in order, by onnx's own evaluator; whatever it raises."""
    version = max(opset or onnx.defs.onnx_opset_version(), _NEWER.get(node.op_type, 0))
    plain = onnx.NodeProto()
    plain.CopyFrom(node)
    plain.domain = ""
    feeds = {name: array for name, array in zip(node.input, inputs, strict=True) if name}
    outputs = [name for name in node.output if name]
    function = helper.make_function("fold", "fold", [*feeds], outputs, [plain], [helper.make_opsetid("", version)])
    with np.errstate(all="ignore"):
        results = ReferenceEvaluator(function).run(outputs, feeds, attributes={})
    return list(results)


def dense(tensor: onnx.TensorProto | onnx.SparseTensorProto, most: int) -> Array:
    """A tensor of a model; ValueError where a sparse one has more than so many elements."""
    if isinstance(tensor, onnx.TensorProto):
        return np.asarray(numpy_helper.to_array(tensor))
    shape = tuple(tensor.dims)
    if any(size < 0 for size in shape) or math.prod(shape) > most:
        raise ValueError(f"its shape {shape} is of more than {most} elements")
    values, indices = (np.asarray(numpy_helper.to_array(part)) for part in (tensor.values, tensor.indices))
    array = np.zeros(shape, values.dtype)
    array[np.unravel_index(indices, shape) if indices.ndim == 1 else tuple(indices.T)] = values
    return array


def is_numeric(array: Any) -> bool:
    """Whether NumPy computes with it: no text, no objects, no complex numbers."""
    return isinstance(array, (np.ndarray, np.generic)) and (
        array.dtype.kind in "biuf" or array.dtype.name.startswith(_NARROW)
    )

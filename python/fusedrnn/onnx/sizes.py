"""The sizes of inputs that a model leaves open, and what can be told of values computed from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx

from fusedrnn.gradients import Array
from fusedrnn.onnx.scopes import Scope, bodies_of

# Shape inference copies what it is given; larger tensors than this are told by their types alone.
_LARGEST_TENSOR = 4096
_MOST_BYTES = 2**28


class Shapes:
    """The shapes that a model declares, or that onnx's shape inference finds where it declares none."""

    def __init__(self, model: onnx.ModelProto | None = None) -> None:
        self._model = model
        self._inferred: dict[str, onnx.ValueInfoProto] | None = None

    def of(self, scope: Scope, name: str) -> tuple[int | str, ...] | None:
        """Sizes, and for each that is open what it is called; None where not even the number of axes is known."""
        home = scope.home_of(name) or scope
        declared = home.declared.get(name)
        while (declared is None or not _has_shape(declared)) and name in home.arguments:
            caller, name = home.arguments[name]
            home = caller.home_of(name) or caller
            declared = home.declared.get(name)
        if (declared is None or not _has_shape(declared)) and not home.in_function:
            declared = self._all_inferred().get(name)
        elif declared is not None and name in home.producers and not home.in_function:
            declared = self._all_inferred().get(name, declared)
        if declared is None or not _has_shape(declared):
            return None
        return tuple(
            dim.dim_value if dim.dim_value > 0 else dim.dim_param or f"{home.place}{name} {axis}"
            for axis, dim in enumerate(declared.type.tensor_type.shape.dim)
        )

    def _all_inferred(self) -> dict[str, onnx.ValueInfoProto]:
        if self._inferred is None:
            self._inferred = {} if self._model is None else _inferred(self._model)
        return self._inferred


def _has_shape(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.HasField("shape"))


def _inferred(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """What shape inference says of names that the model's graph and bodies have once. Functions are not followed."""
    graph = model.graph
    known = {value.name for value in graph.input}
    small = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    small.graph.name = graph.name
    small.graph.input.extend(graph.input)
    small.graph.output.extend(graph.output)
    small.graph.value_info.extend(graph.value_info)
    for tensor in graph.initializer:
        if tensor.ByteSize() <= _LARGEST_TENSOR and tensor.data_location != onnx.TensorProto.EXTERNAL:
            small.graph.initializer.append(tensor)
        elif tensor.name not in known:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            small.graph.input.append(value)
    if sum(node.ByteSize() for node in graph.node) > _MOST_BYTES:
        return {}
    small.graph.node.extend(graph.node)
    try:
        found = onnx.shape_inference.infer_shapes(small).graph
    except Exception:  # for a model that contradicts itself, of whatever kind the version of onnx raises
        return {}
    values = list(_values_of(found))
    uses = Counter(value.name for value in values)
    return {value.name: value for value in values if uses[value.name] == 1}


def _values_of(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    waiting = [graph]
    while waiting:
        graph = waiting.pop()
        yield from graph.value_info
        yield from graph.output
        waiting += [body for node in graph.node for _, body in bodies_of(node)]


class Varying:
    """A value by several choices of the open sizes: the first has each of them 1, the last has large ones."""

    def __init__(self, samples: Sequence[Array], growing: bool) -> None:
        self.samples = list(samples)
        #: No element of it falls where a size grows, and its shape is always the same.
        self.growing = growing
        #: Its elements are the same whatever the sizes, which only say how often they are repeated.
        self.repeats = _repeat_one(self.samples)

    def bounds(self) -> tuple[Array, Array] | None:
        """The least and the largest that its elements can be, where that is known."""
        if not self.growing:
            return None
        least, large = (np.asarray(sample, np.float64) for sample in (self.samples[0], self.samples[-1]))
        return least, np.where(least == large, large, np.inf)


def equal(one: Array, other: Array) -> bool:
    """Whether two arrays are the same to the last bit."""
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()


def _repeat_one(samples: list[Array]) -> bool:
    """Whether all are one array, repeated along the axes whose sizes differ."""
    first = samples[0]
    if any(array.ndim != first.ndim or array.size == 0 or array.dtype != first.dtype for array in samples):
        return False
    cut = tuple(
        slice(None) if all(array.shape[axis] == first.shape[axis] for array in samples) else slice(0, 1)
        for axis in range(first.ndim)
    )
    return all(
        equal(array[cut], first[cut]) and equal(array, np.broadcast_to(first[cut], array.shape)) for array in samples
    )


_SAMPLES = 6
_PRIMES = (2, 3, 5, 7, 11, 13)
_LARGE = (67, 71, 73, 79, 83, 89)


class Sizes:
    """Choices of the open sizes: distinct ones for those of different names, or one for all."""

    def __init__(self, shapes: Shapes, *, distinct: bool) -> None:
        self.shapes, self.distinct = shapes, distinct
        self._numbers: dict[str, int] = {}

    def shapes_of(self, scope: Scope, name: str) -> list[tuple[int, ...]] | None:
        """The shape of a tensor by each choice; None where the model does not tell its number of axes."""
        shape = self.shapes.of(scope, name)
        if shape is None:
            return None
        return [
            tuple(dim if isinstance(dim, int) else self._choice(dim, sample) for dim in shape)
            for sample in range(_SAMPLES)
        ]

    def _choice(self, name: str, sample: int) -> int:
        number = self._numbers.setdefault(name, len(self._numbers)) if self.distinct else 0
        if sample == 0 or (sample in (3, 4) and self.distinct and number % 2 == sample - 3):
            return 1
        choices = _LARGE if sample == _SAMPLES - 1 else _PRIMES
        return choices[(number + sample - 1) % len(choices)]


# Operators that move numbers or do arithmetic. A polynomial or a quotient of polynomials stays one, so a value that is
# the same for all choices above is the same for all sizes. Any other operator may treat one size unlike another.
_MOVES = (
    "Identity",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Transpose",
    "Concat",
    "Split",
    "Gather",
    "GatherND",
    "GatherElements",
    "Slice",
    "Dropout",
)
_SUMS = ("Add", "Mul", "Sum", "ReduceSum", "ReduceProd")
_ARITHMETIC = (
    "Sub",
    "Neg",
    "Mean",
    "ReduceMean",
    "ReduceSumSquare",
    "Reciprocal",
    "CumSum",
    "MatMul",
    "Gemm",
    "Einsum",
    "ConstantOfShape",
    "Expand",
    "Tile",
    "Range",
    "Pad",
    "DequantizeLinear",
)
_INTEGRAL = ("Cast", "CastLike", "Div", "Floor", "Ceil", "Round")
_COMPARED = ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
# Inputs that choose what is computed, so that the numbers in them must not vary.
_CHOOSING: dict[str, tuple[int, ...]] = {
    "Gather": (1,),
    "GatherND": (1,),
    "GatherElements": (1,),
    "Slice": (1, 2, 3, 4),
    "Where": (0,),
    "Pow": (1,),
}


def may_vary(op: str, number: int) -> bool:
    """Whether an input of an operator may hold numbers that depend on sizes."""
    if number in _CHOOSING.get(op, ()):
        return False
    return op in (*_MOVES, *_SUMS, *_ARITHMETIC, *_INTEGRAL, "Where", "Pow", "Shape", "Size", "Min", "Max")


def result_fits(op: str, inputs: Sequence[Any], results: Sequence[Array]) -> bool:
    """Whether an operator that may round or cut did neither, for all of the choices."""
    if op in _INTEGRAL and any(isinstance(value, Varying) and not value.repeats for value in inputs):
        return _is_exact(op, inputs, results)
    data = inputs[0] if inputs else None
    if op == "Slice" and isinstance(data, Varying):
        same = all(array.shape == results[0].shape for array in results)
        return same or all(
            all(
                got in (had, results[0].shape[axis])
                for axis, (got, had) in enumerate(zip(a.shape, b.shape, strict=True))
            )
            for a, b in zip(results, data.samples, strict=True)
        )
    return True


def _is_exact(op: str, inputs: Sequence[Any], results: Sequence[Array]) -> bool:
    for number, result in enumerate(results):
        given = [value.samples[number] if isinstance(value, Varying) else value for value in inputs]
        if result.dtype == bool:
            return False
        if op == "Div":
            if result.dtype.kind in "iu" and not np.array_equal(
                result * given[1], np.broadcast_to(given[0], result.shape)
            ):
                return False
        elif not np.array_equal(np.asarray(result, np.float64), np.asarray(given[0], np.float64)):
            return False
    return True


def grows(op: str, inputs: Sequence[Any], results: Sequence[Array]) -> bool:
    """Whether no element of a result falls where a size grows."""
    if any(array.shape != results[0].shape for array in results):
        return False
    if not all(value is None or not isinstance(value, Varying) or value.growing for value in inputs):
        return False
    if op in _SUMS:
        return all(value is None or (least_of(value) >= 0).all() for value in inputs)
    return op in (*_MOVES, "Where", "Cast", "CastLike", "Min", "Max")


def least_of(value: Array | Varying) -> Array:
    """The least that the elements of a constant or growing value can be."""
    return value.samples[0] if isinstance(value, Varying) else value


def decided(op: str, inputs: Sequence[Any]) -> Array | int | None:
    """What a comparison of sizes gives, if it is the same for all of them; of Min and Max the number of that input."""
    if len(inputs) != 2 or any(value is None for value in inputs):
        return None
    one, other = (value.bounds() if isinstance(value, Varying) else (value, value) for value in inputs)
    if one is None or other is None:
        return None
    try:
        return _decided(op, one, other)
    except ValueError:  # shapes that do not fit
        return None


def _decided(op: str, one: tuple[Array, Array], other: tuple[Array, Array]) -> Array | int | None:
    (low, high), (least, most) = one, other
    if op in ("Min", "Max"):
        if np.all(high <= least):
            return int(op == "Max")
        return int(op == "Min") if np.all(most <= low) else None
    if op.startswith("Greater"):
        (low, high), (least, most), op = other, one, op.replace("Greater", "Less")
    if op == "Equal":
        yes, no = (low == high) & (least == most) & (low == least), (low > most) | (least > high)
    elif op == "Less":
        yes, no = high < least, low >= most
    else:
        yes, no = high <= least, low > most
    return np.asarray(yes) if np.all(yes | no) else None


def is_compared(op: str) -> bool:
    """Whether `decided` knows the operator."""
    return op in (*_COMPARED, "Min", "Max")


def samples_of(values: Iterable[Any], number: int) -> list[Any]:
    """Inputs by one of the choices."""
    return [value.samples[number] if isinstance(value, Varying) else value for value in values]


def number_of_samples() -> int:
    """How many choices there are."""
    return _SAMPLES

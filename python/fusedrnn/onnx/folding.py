"""Values that a model computes from its constants alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx

from fusedrnn.gradients import Array
from fusedrnn.onnx.operators import GROWTH, NodeCall, dense, evaluate, is_numeric, standard_name
from fusedrnn.onnx.scopes import Scope, bodies_of, key_of
from fusedrnn.onnx.sizes import (
    Shapes,
    Sizes,
    Varying,
    decided,
    equal,
    grows,
    is_compared,
    may_vary,
    number_of_samples,
    result_fits,
    samples_of,
)

Name = tuple[Scope, str]

# Memory that folding may take beside that of the model itself, so that a small file cannot ask for much.
_BYTES_AT_LEAST = 2**26
_TIMES_THE_MODEL = 32
_MOST_NODES = 100_000
_MOST_PRODUCTS = 2**34
_WIDEST = 8  # bytes of an element


class Unknown(NamedTuple):
    """A value that the model has at run time only, or not at all."""

    reason: str
    #: It is an input of the graph itself, so that whoever runs the model knows of it.
    fed: bool = False
    #: It depends on constants and on the sizes of what is fed.
    sized: bool = False
    #: No run could have it.
    wrong: bool = False


class Budget:
    """What all folds of a model may take together."""

    def __init__(self, model_bytes: int) -> None:
        self.bytes = self.limit = _BYTES_AT_LEAST + _TIMES_THE_MODEL * model_bytes
        self.nodes, self.products = _MOST_NODES, _MOST_PRODUCTS

    def take(self, elements: int, products: int = 0) -> str | None:
        """Subtract what a node needs; None, or the reason why the budget does not allow it."""
        self.bytes -= elements * _WIDEST
        self.nodes -= 1
        self.products -= products
        if self.bytes < 0:
            return f"takes {elements} elements, and all that is folded {self.limit / 2**20:.0f} MiB at most"
        if self.nodes < 0:
            return f"comes after {_MOST_NODES} other nodes that were folded"
        return None if self.products >= 0 else f"comes after {_MOST_PRODUCTS} multiplications"


class Folder:
    """Folds values of a model, each once."""

    def __init__(self, budget: Budget, shapes: Shapes | None = None, sizes: Sizes | None = None) -> None:
        self.budget, self.shapes, self.sizes = budget, shapes or Shapes(), sizes
        self._known: dict[Name, Array | Varying | Unknown] = {}
        self._sized: dict[bool, Folder] = {}

    def constant(self, scope: Scope, name: str) -> Array | Unknown:
        """The value of a name where it is the same whatever is fed."""
        return self.of_any_size(
            scope, name, lambda values: values[0] if all(equal(values[0], value) for value in values) else None
        )

    def of_any_size(self, scope: Scope, name: str, common: Callable[[list[Array]], Array | None]) -> Array | Unknown:
        """The value of a name, or what `common` finds in the values that it has for several sizes of what is fed.

        Sizes of different names are distinct at first. A model that cannot run with distinct ones gets equal ones.
        """
        value = self.value(scope, name)
        for distinct in (True, False):
            if not isinstance(value, Unknown) or value.wrong or not (value.sized or distinct is False):
                break
            value = self._with_sizes(distinct).value(scope, name)
            if isinstance(value, Unknown) and value.sized:
                return value
        if not isinstance(value, Varying):
            return value
        found = common(value.samples)
        return _depends_on_sizes(name) if found is None else found

    def _with_sizes(self, distinct: bool) -> Folder:
        """One that chooses sizes."""
        if distinct not in self._sized:
            folder = Folder(self.budget, self.shapes, Sizes(self.shapes, distinct=distinct))
            folder._known = {
                key: value
                for key, value in self._known.items()
                if not (isinstance(value, Unknown) and (value.sized or value.fed))
            }
            self._sized[distinct] = folder
        return self._sized[distinct]

    def value(self, scope: Scope, name: str) -> Array | Varying | Unknown:
        """The value of a name, or why there is none. No recursion: chains of nodes may be of any length."""
        waiting, begun = [(scope, name)], set()
        while waiting:
            wanted = waiting[-1]
            if wanted in self._known:
                waiting.pop()
                continue
            found = self._value_or_needs(*wanted)
            begun.add(wanted)
            if not isinstance(found, list):
                self._known[wanted] = found
            elif any(need in begun for need in found):
                self._known[wanted] = Unknown(f"{wanted[1]!r} is computed from itself", wrong=True)
            else:
                waiting += found
        return self._known[scope, name]

    def _value_or_needs(self, scope: Scope, name: str) -> Array | Varying | Unknown | list[Name]:
        """The value of a name, or the names whose values must be known before."""
        home = scope.home_of(name)
        if name in scope.model.given:
            return np.asarray(scope.model.given[name])
        if home is None:
            return Unknown(f"{name!r} is nowhere in the model", wrong=True)
        if home is not scope:
            return self._same(home, name)
        if name in scope.tensors:
            return self._tensor(scope.tensors[name], name)
        if name in scope.arguments:
            return self._same(*scope.arguments[name])
        if name not in scope.producers:
            return Unknown(f"{name!r} is {scope.inputs[name]}", fed=not scope.place)
        return self._computed(scope, scope.producers[name], name)

    def _same(self, scope: Scope, name: str) -> Array | Varying | Unknown | list[Name]:
        """The value that another name stands for, or that name, to be looked up first."""
        if not name:
            return Unknown("the call of a function leaves it out", wrong=True)
        return self._known.get((scope, name), [(scope, name)])

    def _computed(self, scope: Scope, node: onnx.NodeProto, name: str) -> Array | Varying | Unknown | list[Name]:
        called = scope.model.functions.get(key_of(node))
        if called is not None:
            return self._same(scope.function(node), _result(called.output, node, name))
        if standard_name(node) == "If":
            return self._chosen(scope, node, name)
        if standard_name(node) not in GROWTH or next(bodies_of(node), None):
            return Unknown(f"{name!r} is computed by {node.op_type} {scope.label(node)!r}, which is not folded")
        needs = [(scope, given) for given in node.input if given]
        missing = [need for need in needs if need not in self._known]
        return missing or self._folded(scope, node, name)

    def _chosen(self, scope: Scope, node: onnx.NodeProto, name: str) -> Array | Varying | Unknown | list[Name]:
        """A result of the body that an If runs, where that is known."""
        condition = self._same(scope, node.input[0] if node.input else "")
        if isinstance(condition, Unknown):
            return condition._replace(fed=False)
        if isinstance(condition, list):
            return condition
        if isinstance(condition, Varying):
            return Unknown(f"{name!r} is chosen by If {scope.label(node)!r} by the sizes of what is fed", sized=True)
        wanted = "then_branch" if condition.size == 1 and condition.reshape(-1)[0] else "else_branch"
        graph = dict(bodies_of(node)).get(wanted)
        if graph is None:
            return Unknown(f"If {scope.label(node)!r} has no {wanted}", wrong=True)
        results = [value.name for value in graph.output]
        return self._same(scope.body(node, wanted, graph), _result(results, node, name))

    def _folded(self, scope: Scope, node: onnx.NodeProto, name: str) -> Array | Varying | Unknown:
        """The value of a node's output, once all its inputs are known; its other outputs are kept as well."""
        inputs = [self._known[scope, given] if given else None for given in node.input]
        unknown = [value for value in inputs if isinstance(value, Unknown)]
        op = standard_name(node)
        if op == "Gather" and len(inputs) == 2 and isinstance(inputs[1], Unknown):
            return self._any_of(node, inputs[0], inputs[1])
        if unknown and op in ("Shape", "Size") and not unknown[0].wrong:
            return self._shape(scope, node, name, unknown[0])
        if unknown:
            first = min(unknown, key=lambda value: (not value.wrong, value.sized))
            return first if op == "Identity" else first._replace(fed=False)
        if any(isinstance(value, Varying) for value in inputs):
            return self._folded_with_sizes(scope, node, name, inputs)
        results = self._results(scope, node, name, inputs)
        if isinstance(results, Unknown):
            return results
        for output, value in zip(node.output, results, strict=False):
            self._known[scope, output] = _numeric(value, output)
        return self._known.get((scope, name), _no_output(node, scope, name))

    def _results(self, scope: Scope, node: onnx.NodeProto, name: str, inputs: Sequence[Any]) -> list[Any] | Unknown:
        """What onnx's evaluator gives for a node."""
        what = f"{node.op_type} {scope.label(node)!r}, which gives {name!r},"
        arrays = [None if value is None else np.asarray(value) for value in inputs]
        try:
            lack = self.budget.take(*GROWTH[standard_name(node)](NodeCall(node, arrays)))
            results = [] if lack else evaluate(node, scope.opset, arrays)
        except Exception as error:  # of onnx's evaluator or of NumPy, for shapes, types or attributes that do not fit
            return Unknown(f"{what} cannot be computed: {type(error).__name__}: {error}")
        return Unknown(f"{what} {lack}", wrong=True) if lack else results

    def _shape(self, scope: Scope, node: onnx.NodeProto, name: str, unknown: Unknown) -> Array | Varying | Unknown:
        """The shape of a tensor that is fed, or computed from what is."""
        shape = self.shapes.of(scope, node.input[0])
        if shape is not None and all(isinstance(dim, int) for dim in shape):
            choices = [tuple(int(dim) for dim in shape)]
        elif self.sizes is None:
            return _depends_on_sizes(name)
        elif unknown.sized:  # its own size may be that of a shape, which is 0 for a scalar
            return unknown
        else:
            found = self.sizes.shapes_of(scope, node.input[0])
            if found is None:
                return Unknown(f"{name!r} depends on the number of axes of {node.input[0]!r}", sized=True)
            choices = found
        arrays = []
        for choice in choices:
            if self.budget.take(len(choice)):
                return Unknown(f"{name!r} comes after too much else that was folded", wrong=True)
            try:  # a view of one element, whatever the shape
                results = evaluate(node, scope.opset, [np.broadcast_to(np.float32(0), choice)])
            except Exception as error:  # of onnx's evaluator, for attributes that do not fit
                return Unknown(f"{name!r} cannot be computed: {type(error).__name__}: {error}")
            arrays.append(np.asarray(results[0]))
        return _varying(arrays, growing=True)

    def _folded_with_sizes(
        self, scope: Scope, node: onnx.NodeProto, name: str, inputs: Sequence[Any]
    ) -> Array | Varying | Unknown:
        """The value of a node's output for each choice of the sizes, unless it may differ for others."""
        op = standard_name(node)
        varies = [number for number, value in enumerate(inputs) if isinstance(value, Varying) and not value.repeats]
        cannot = Unknown(f"{name!r} depends on the sizes of what is fed, by {node.op_type}", sized=True)
        if varies and is_compared(op):
            known = decided(op, inputs)
            if known is None:
                return cannot
            if not isinstance(known, int):
                return known
        elif not all(may_vary(op, number) for number in varies):
            return cannot
        samples = []
        for number in range(number_of_samples()):
            results = self._results(scope, node, name, samples_of(inputs, number))
            if isinstance(results, Unknown):
                return results
            samples.append(results)
        for number, output in enumerate(node.output):
            arrays = [_numeric(results[number], output) for results in samples if number < len(results)]
            wrong = [array for array in arrays if isinstance(array, Unknown)]
            fitting = [array for array in arrays if not isinstance(array, Unknown)]
            if wrong:
                self._known[scope, output] = wrong[0]
            elif arrays and not result_fits(op, inputs, fitting):
                self._known[scope, output] = cannot
            elif arrays:
                self._known[scope, output] = _varying(fitting, grows(op, inputs, fitting))
        return self._known.get((scope, name), _no_output(node, scope, name))

    def _any_of(
        self, node: onnx.NodeProto, data: Array | Varying | Unknown | None, indices: Unknown
    ) -> Array | Varying | Unknown:
        """Rows taken by indices of a run, as torch sorts a batch by length: known if all are alike."""
        unknown = indices._replace(fed=False)
        if isinstance(data, Unknown):
            return data._replace(fed=False) if data.wrong or not indices.wrong else unknown
        if data is None or indices.wrong or indices.sized:
            return unknown
        if self.sizes is None:
            return unknown._replace(sized=True)
        arrays = data.samples if isinstance(data, Varying) else [data]
        for array in arrays:
            axis = NodeCall(node, [array]).attribute("axis", 0)
            if array.size == 0 or not -array.ndim <= axis < array.ndim:
                return unknown
            if not equal(array, np.broadcast_to(array.take([0], axis), array.shape)):
                return unknown
        return data

    def _tensor(self, tensor: onnx.TensorProto | onnx.SparseTensorProto, name: str) -> Array | Unknown:
        try:
            return _numeric(dense(tensor, max(self.budget.bytes, 0) // _WIDEST), name)
        except Exception as error:  # data that was left in another file, or too short for its shape
            return Unknown(f"the tensor {name!r} of the model cannot be read: {error}", wrong=True)


def _varying(arrays: Sequence[Array], growing: bool) -> Array | Varying:
    same = all(equal(array, arrays[0]) for array in arrays)
    return arrays[0] if same else Varying(arrays, growing)


def _depends_on_sizes(name: str) -> Unknown:
    return Unknown(f"{name!r} depends on the sizes of what is fed", sized=True)


def _no_output(node: onnx.NodeProto, scope: Scope, name: str) -> Unknown:
    return Unknown(f"{node.op_type} {scope.label(node)!r}, which gives {name!r}, has no such output", wrong=True)


def _result(names: Sequence[str], node: onnx.NodeProto, name: str) -> str:
    """What the body that makes a node's output calls it."""
    number = list(node.output).index(name)
    return names[number] if number < len(names) else ""


def _numeric(value: object, name: str) -> Array | Unknown:
    if not is_numeric(value):
        return Unknown(f"{name!r} does not hold numbers", wrong=True)
    return np.asarray(value)

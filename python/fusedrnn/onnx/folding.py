"""Values that a model computes from its constants alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import onnx

from fusedrnn.gradients import Array
from fusedrnn.onnx.operators import GROWTH, Call, dense, evaluate, is_numeric, standard_name
from fusedrnn.onnx.scopes import Scope, bodies_of, key_of

Name = tuple[Scope, str]

# What a fold may take beside what the model itself takes, so that a small file cannot ask for much.
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
        """Take what a node needs, or tell why it may not be had."""
        self.bytes -= elements * _WIDEST
        self.nodes -= 1
        self.products -= products
        if self.bytes < 0:
            return f"takes {elements} elements, and all that is folded {self.limit / 2**20:.0f} MiB at most"
        if self.nodes < 0:
            return f"comes after {_MOST_NODES} other nodes that were folded"
        return None if self.products >= 0 else f"comes after {_MOST_PRODUCTS} multiplications"


class Sizes:
    """Assumed sizes of what is fed, where the model leaves them open: distinct ones, or all the same."""

    _CHOICES = (2, 3, 5, 7, 11, 13)

    def __init__(self, shift: int, *, rank: int, distinct: bool) -> None:
        self.shift, self.rank, self.distinct = shift, rank, distinct
        self.guessed = False
        self._numbers: dict[str, int] = {}

    def of(self, scope: Scope, name: str) -> tuple[int, ...]:
        """The shape of a tensor: as declared, else of the assumed rank."""
        home = scope.home_of(name) or scope
        declared = home.declared.get(name)
        if declared is None or not declared.type.tensor_type.HasField("shape"):
            self.guessed = True
            return tuple(self._open(f"{home.place}{name} {axis}") for axis in range(self.rank))
        return tuple(
            dim.dim_value if dim.dim_value > 0 else self._open(dim.dim_param or f"{home.place}{name} {axis}")
            for axis, dim in enumerate(declared.type.tensor_type.shape.dim)
        )

    def _open(self, what: str) -> int:
        number = self._numbers.setdefault(what, len(self._numbers)) if self.distinct else 0
        return self._CHOICES[(number + self.shift) % len(self._CHOICES)]


class Folder:
    """Folds values of a model, each once."""

    def __init__(self, budget: Budget, sizes: Sizes | None = None) -> None:
        self.budget, self.sizes = budget, sizes
        self._known: dict[Name, Array | Unknown] = {}
        self._sized: dict[tuple[int, bool], tuple[Folder, Folder]] = {}

    def constant(self, scope: Scope, name: str) -> Array | Unknown:
        """The value of a name where it is the same whatever is fed."""
        value = self.value(scope, name)
        if isinstance(value, Unknown) and value.sized:
            return self.of_any_size(scope, name, lambda one, other: one if _equal(one, other) else None)
        return value

    def of_any_size(self, scope: Scope, name: str, common: Callable[[Array, Array], Array | None]) -> Array | Unknown:
        """What `common` finds in the values that a name has for two choices of the sizes of what is fed.

        Where the model does not declare a tensor's rank some are tried: a wrong one gives an error or no such value.
        """
        reason = Unknown(f"{name!r} depends on the sizes of what is fed", sized=True)
        for rank in (3, 2, 4, 1):
            for distinct in (True, False):
                folders = self._folders(rank, distinct)
                one, other = (folder.value(scope, name) for folder in folders)
                if not isinstance(one, Unknown) and not isinstance(other, Unknown):
                    found = common(one, other)
                    if found is not None:
                        return found
                for value in (one, other):
                    if isinstance(value, Unknown):
                        reason = value
                        if value.wrong:
                            return value
            if not any(folder.sizes and folder.sizes.guessed for folder in folders):
                break
        return reason

    def _folders(self, rank: int, distinct: bool) -> tuple[Folder, Folder]:
        """Two that assume sizes."""
        if (rank, distinct) not in self._sized:
            one, other = (Folder(self.budget, Sizes(shift, rank=rank, distinct=distinct)) for shift in (0, 1))
            for folder in (one, other):
                folder._known = {
                    key: value
                    for key, value in self._known.items()
                    if not (isinstance(value, Unknown) and (value.sized or value.fed))
                }
            self._sized[rank, distinct] = one, other
        return self._sized[rank, distinct]

    def value(self, scope: Scope, name: str) -> Array | Unknown:
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

    def _value_or_needs(self, scope: Scope, name: str) -> Array | Unknown | list[Name]:
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

    def _same(self, scope: Scope, name: str) -> Array | Unknown | list[Name]:
        """What has another name elsewhere."""
        if not name:
            return Unknown("the call of a function leaves it out", wrong=True)
        return self._known.get((scope, name), [(scope, name)])

    def _computed(self, scope: Scope, node: onnx.NodeProto, name: str) -> Array | Unknown | list[Name]:
        called = scope.model.functions.get(key_of(node))
        if called is not None:
            return self._same(scope.function(node), _result(called.output, node, name))
        if standard_name(node) == "If":
            return self._chosen(scope, node, name)
        if standard_name(node) not in GROWTH or next(bodies_of(node), None):
            return Unknown(f"{name!r} is computed by {node.op_type} {scope.label(node)!r}")
        needs = [(scope, given) for given in node.input if given]
        missing = [need for need in needs if need not in self._known]
        return missing or self._folded(scope, node, name)

    def _chosen(self, scope: Scope, node: onnx.NodeProto, name: str) -> Array | Unknown | list[Name]:
        """A result of the body that an If runs, where that is known."""
        condition = self._same(scope, node.input[0] if node.input else "")
        if isinstance(condition, Unknown):
            return condition._replace(fed=False)
        if isinstance(condition, list):
            return condition
        wanted = "then_branch" if condition.size == 1 and condition.reshape(-1)[0] else "else_branch"
        graph = dict(bodies_of(node)).get(wanted)
        if graph is None:
            return Unknown(f"If {scope.label(node)!r} has no {wanted}", wrong=True)
        results = [value.name for value in graph.output]
        return self._same(scope.body(node, wanted, graph), _result(results, node, name))

    def _folded(self, scope: Scope, node: onnx.NodeProto, name: str) -> Array | Unknown:
        """The value of a node's output whose inputs are all looked up; the other outputs are noted."""
        inputs = [self._known[scope, given] if given else None for given in node.input]
        unknown = [value for value in inputs if isinstance(value, Unknown)]
        if standard_name(node) == "Gather" and len(inputs) == 2 and isinstance(inputs[1], Unknown):
            return self._any_of(node, inputs[0], inputs[1])
        op, what = standard_name(node), f"{node.op_type} {scope.label(node)!r}, which gives {name!r},"
        if unknown and op in ("Shape", "Size") and not unknown[0].wrong:
            if self.sizes is None:
                return Unknown(f"{name!r} depends on the sizes of what is fed", sized=True)
            # Of its memory one element is there, whatever its shape.
            inputs = [np.broadcast_to(np.float32(0), self.sizes.of(scope, node.input[0]))]
        elif unknown:
            first = min(unknown, key=lambda value: (not value.wrong, value.sized))
            return first if op == "Identity" else first._replace(fed=False)
        arrays = [None if value is None else np.asarray(value) for value in inputs]
        try:
            lack = self.budget.take(*GROWTH[op](Call(node, arrays)))
            results = [] if lack else evaluate(node, scope.opset, arrays)
        except Exception as error:  # of onnx's evaluator or of NumPy, for shapes, types or attributes that do not fit
            return Unknown(f"{what} cannot be computed: {type(error).__name__}: {error}")
        if lack:
            return Unknown(f"{what} {lack}", wrong=True)
        for output, value in zip(node.output, results, strict=False):
            self._known[scope, output] = _numeric(value, output)
        return self._known.get((scope, name), Unknown(f"{what} has no such output", wrong=True))

    def _any_of(self, node: onnx.NodeProto, data: Array | Unknown | None, indices: Unknown) -> Array | Unknown:
        """Rows taken by indices of a run, as torch sorts a batch by length: known if all are alike."""
        unknown = indices._replace(fed=False)
        if isinstance(data, Unknown):
            return data._replace(fed=False) if data.wrong or not indices.wrong else unknown
        if data is None or indices.wrong or indices.sized:
            return unknown
        if self.sizes is None:
            return unknown._replace(sized=True)
        axis = Call(node, [data]).attribute("axis", 0)
        if data.size == 0 or not -data.ndim <= axis < data.ndim:
            return unknown
        return data if _equal(data, np.broadcast_to(data.take([0], axis), data.shape)) else unknown

    def _tensor(self, tensor: onnx.TensorProto | onnx.SparseTensorProto, name: str) -> Array | Unknown:
        try:
            return _numeric(dense(tensor, max(self.budget.bytes, 0) // _WIDEST), name)
        except Exception as error:  # data that was left in another file, or too short for its shape
            return Unknown(f"the tensor {name!r} of the model cannot be read: {error}", wrong=True)


def _equal(one: Array, other: Array) -> bool:
    return one.shape == other.shape and one.tobytes() == other.tobytes()


def _result(names: Sequence[str], node: onnx.NodeProto, name: str) -> str:
    """What the body that makes a node's output calls it."""
    number = list(node.output).index(name)
    return names[number] if number < len(names) else ""


def _numeric(value: object, name: str) -> Array | Unknown:
    if not is_numeric(value):
        return Unknown(f"{name!r} does not hold numbers", wrong=True)
    return np.asarray(value)

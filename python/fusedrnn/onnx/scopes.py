"""Where names of a model have their meaning: its graph, bodies of If, Loop and Scan, bodies of functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import onnx

STANDARD = ("", "ai.onnx")
OPERATORS = ("RNN", "GRU", "LSTM")
# The last one is onnxruntime's own, what its `quantize_dynamic` makes of an LSTM.
RECURRENT = {
    **{(domain, op): op for domain in STANDARD for op in OPERATORS},
    ("com.microsoft", "DynamicQuantizeLSTM"): "LSTM",
}
# A small file can ask for much: functions that call functions twice each, bodies within bodies.
_DEEPEST = 64
_MOST_NODES = 2_000_000
_MOST_FOUND = 10_000

Key = tuple[str, str, str]  # of a function: domain, name, overload


def key_of(node: onnx.NodeProto) -> Key:
    """What a node calls."""
    return node.domain, node.op_type, getattr(node, "overload", "")


def first_output(node: onnx.NodeProto) -> str:
    """The name of a node's first output that has one."""
    return next((name for name in node.output if name), "")


def bodies_of(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """The graphs among a node's attributes, by the attributes' names."""
    for item in node.attribute:
        if item.HasField("g"):
            yield item.name, item.g
        for number, graph in enumerate(item.graphs):
            yield f"{item.name}_{number}", graph


def all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes and those of all bodies within them."""
    waiting = [iter(nodes)]
    while waiting:
        node = next(waiting[-1], None)
        if node is None:
            waiting.pop()
            continue
        yield node
        waiting += [iter(graph.node) for _, graph in bodies_of(node)]


class Model:
    """The functions of a model, and the values that a caller gives by name."""

    def __init__(self, functions: Iterable[onnx.FunctionProto] = (), given: Mapping[str, Any] | None = None) -> None:
        self.functions: dict[Key, onnx.FunctionProto] = {
            (function.domain, function.name, getattr(function, "overload", "")): function for function in functions
        }
        self.given = given or {}
        self.recurrent = self._recurrent_functions()
        self._nodes = 0

    def count(self, nodes: int, place: str, depth: int) -> None:
        """Count the nodes of a scope; ValueError where bodies and calls go too far."""
        self._nodes += nodes
        if depth > _DEEPEST or self._nodes > _MOST_NODES:
            raise ValueError(
                f"model_or_node must nest bodies and calls at most {_DEEPEST} deep and have at most {_MOST_NODES} nodes"
                f" with those of all calls; {place!r} goes beyond"
            )

    def _recurrent_functions(self) -> set[Key]:
        """The functions that have recurrent nodes, in themselves or in what they call; none may call itself."""
        called: dict[Key, set[Key]] = {}
        found: set[Key] = set()
        for key, function in self.functions.items():
            nodes = [(key_of(node), node) for node in all_nodes(function.node)]
            called[key] = {callee for callee, _ in nodes if callee in self.functions}
            if any(node[:2] in RECURRENT and node not in self.functions for node, _ in nodes):
                found.add(key)
        depth: dict[Key, int] = {}
        while len(depth) < len(called):
            ready = [key for key, callees in called.items() if key not in depth and callees <= depth.keys()]
            if not ready:
                looped = sorted(f"{key[0]}::{key[1]}" for key in called if key not in depth)
                raise ValueError(f"model_or_node must not have functions that call themselves: {', '.join(looped[:5])}")
            for key in ready:
                depth[key] = 1 + max((depth[callee] for callee in called[key]), default=0)
                if depth[key] > _DEEPEST:
                    raise ValueError(f"model_or_node must nest calls at most {_DEEPEST} deep; {key[1]!r} goes deeper")
                if called[key] & found:
                    found.add(key)
        return found


class Scope:
    """A graph or the body of a function at one place of a model: what its names stand for."""

    def __init__(
        self,
        model: Model,
        place: str,
        nodes: Iterable[onnx.NodeProto],
        opsets: Mapping[str, int],
        outer: Scope | None = None,
        depth: int = 0,
    ) -> None:
        self.model, self.place, self.opsets, self.outer, self.depth = model, place, opsets, outer, depth
        self.attributes: Mapping[str, onnx.AttributeProto] = {} if outer is None else outer.attributes
        self.nodes = list(nodes)
        model.count(len(self.nodes), place, depth)
        self.tensors: dict[str, onnx.TensorProto | onnx.SparseTensorProto] = {}
        self.inputs: dict[str, str] = {}  # what is fed, and by what
        self.arguments: dict[str, tuple[Scope, str]] = {}  # of a function, and what its caller calls them
        self.declared: dict[str, onnx.ValueInfoProto] = {}
        #: It lies in a function, whose names may be those of other places.
        self.in_function: bool = outer is not None and outer.in_function
        self._inner: dict[tuple[int, str], Scope] = {}

    def settle(self, attributes: Mapping[str, onnx.AttributeProto] | None = None) -> Scope:
        """Put a function's attributes into its nodes, and note who makes what."""
        if attributes is not None:
            self.attributes = attributes
        if self.attributes:
            self.nodes = [_with_attributes(node, self.attributes) for node in self.nodes]
        self.producers = {name: node for node in self.nodes for name in node.output if name}
        self.labels = _labels(self.nodes, self.model)
        return self

    @property
    def opset(self) -> int:
        """Version of the standard operators; 0 where none is imported."""
        return next((self.opsets[domain] for domain in STANDARD if domain in self.opsets), 0)

    def home_of(self, name: str) -> Scope | None:
        """The scope that has a name: this one, or one it lies in."""
        scope: Scope | None = self
        while scope is not None:
            if any(name in names for names in (scope.tensors, scope.producers, scope.inputs, scope.arguments)):
                return scope
            scope = scope.outer
        return None

    def is_given(self, name: str) -> bool:
        """Whether a node's input is there: one of a function may be left out by the caller."""
        scope: Scope | None = self
        while name:
            home = None if scope is None else scope.home_of(name)
            if home is None or name not in home.arguments or name in self.model.given:
                return True
            scope, name = home.arguments[name]
        return False

    def label(self, node: onnx.NodeProto) -> str:
        """What a node is called here."""
        return self.labels.get(id(node)) or node.name or first_output(node)

    def body(self, node: onnx.NodeProto, attribute: str, graph: onnx.GraphProto) -> Scope:
        """The scope of a graph among the attributes of a node of this scope."""
        key = id(node), attribute
        if key not in self._inner:
            place = f"{self.place}{self.label(node)}/{attribute}/"
            scope = Scope(self.model, place, graph.node, self.opsets, self, self.depth + 1)
            _fill(scope, graph, f"fed by {node.op_type} {self.label(node)!r}")
            self._inner[key] = scope.settle()
        return self._inner[key]

    def function(self, node: onnx.NodeProto) -> Scope:
        """The scope of the body of a function that a node of this scope calls."""
        key = id(node), ""
        if key not in self._inner:
            function = self.model.functions[key_of(node)]
            opsets = {opset.domain: opset.version for opset in function.opset_import} or self.opsets
            scope = Scope(self.model, f"{self.place}{self.label(node)}/", function.node, opsets, depth=self.depth + 1)
            scope.in_function = True
            passed = [*node.input, *[""] * len(function.input)]
            scope.arguments = {name: (self, actual) for name, actual in zip(function.input, passed, strict=False)}
            scope.declared = {value.name: value for value in getattr(function, "value_info", ())}
            defaults = {item.name: item for item in getattr(function, "attribute_proto", ())}
            self._inner[key] = scope.settle({**defaults, **{item.name: item for item in node.attribute}})
        return self._inner[key]


def _with_attributes(node: onnx.NodeProto, attributes: Mapping[str, onnx.AttributeProto]) -> onnx.NodeProto:
    """A node of a function with the values of the attributes that it takes from the function."""
    if not any(item.ref_attr_name for item in node.attribute):
        return node
    bound = onnx.NodeProto()
    bound.CopyFrom(node)
    del bound.attribute[:]
    for item in node.attribute:
        if not item.ref_attr_name:
            bound.attribute.add().CopyFrom(item)
        elif item.ref_attr_name in attributes:
            copy = bound.attribute.add()
            copy.CopyFrom(attributes[item.ref_attr_name])
            copy.name = item.name
    return bound


def _labels(nodes: list[onnx.NodeProto], model: Model) -> dict[int, str]:
    """Names of nodes that are recurrent or hold others: their own where no other has it, else their first output's."""
    named = [
        node
        for node in nodes
        if key_of(node)[:2] in RECURRENT or key_of(node) in model.functions or next(bodies_of(node), None)
    ]
    uses = Counter(node.name for node in named)
    return {id(node): node.name if node.name and uses[node.name] == 1 else first_output(node) for node in named}


def _fill(scope: Scope, graph: onnx.GraphProto, fed: str) -> None:
    scope.tensors = {tensor.name: tensor for tensor in graph.initializer}
    scope.tensors |= {tensor.values.name: tensor for tensor in graph.sparse_initializer}
    scope.inputs = {value.name: fed for value in graph.input}
    scope.declared = {value.name: value for value in [*graph.value_info, *graph.output, *graph.input]}


def scope_of(model: onnx.ModelProto, given: Mapping[str, Any] | None = None) -> Scope:
    """The scope of a model's graph."""
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    scope = Scope(Model(model.functions, given), "", model.graph.node, opsets)
    _fill(scope, model.graph, "an input of the graph")
    return scope.settle()


def scope_of_node(node: onnx.NodeProto, given: Mapping[str, Any] | None = None) -> Scope:
    """A scope for a node by itself, whose inputs are all fed."""
    scope = Scope(Model((), given), "", [node], {"": onnx.defs.onnx_opset_version()})
    scope.inputs = {name: "an input of the node" for name in node.input if name}
    return scope.settle()


class RecurrentNode(NamedTuple):
    """A recurrent node of a model, and the name that tells where it stands."""

    name: str
    scope: Scope
    node: onnx.NodeProto


def recurrent_nodes(root: Scope) -> list[RecurrentNode]:
    """All recurrent nodes of a model, in the order in which they stand."""
    found: list[RecurrentNode] = []
    for recurrent in _recurrent_nodes(root):
        if len(found) == _MOST_FOUND:
            raise ValueError(f"model_or_node must have at most {_MOST_FOUND} recurrent nodes")
        found.append(recurrent)
    return found


def _recurrent_nodes(scope: Scope) -> Iterator[RecurrentNode]:
    for node in scope.nodes:
        key = key_of(node)
        if key in scope.model.functions:
            if key in scope.model.recurrent:
                yield from _recurrent_nodes(scope.function(node))
        elif key[:2] in RECURRENT:
            yield RecurrentNode(scope.place + scope.label(node), scope, node)
        else:
            for attribute, graph in bodies_of(node):
                yield from _recurrent_nodes(scope.body(node, attribute, graph))

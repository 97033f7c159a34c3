"""What a model without recurrent nodes has instead, for the error that says so."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import onnx

from fusedrnn.onnx.scopes import STANDARD, all_nodes, bodies_of, first_output, key_of

_OPERATOR = re.compile("rnn|lstm|gru", re.IGNORECASE)
_WEIGHT = re.compile("weight_hh|recurrent_kernel|recurrent_weight|hidden_weight", re.IGNORECASE)
_SHOWN = 8


def recurrent_things(model: onnx.ModelProto) -> str:
    """What looks recurrent in a model, and where, as the end of a sentence."""
    found = list(dict.fromkeys(_things(model)))
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", but " + "; ".join(found[:_SHOWN]) + more if found else ", nor anything else that looks recurrent"


def _things(model: onnx.ModelProto) -> Iterator[str]:
    bodies = [model.graph.node, *(function.node for function in model.functions)]
    called = {key_of(node) for body in bodies for node in all_nodes(body)}
    yield from _things_in("", model.graph.node)
    for function in model.functions:
        key = function.domain, function.name, getattr(function, "overload", "")
        never = "" if key in called else ", which nothing calls"
        yield from _things_in(f" in function '{function.domain}::{function.name}'{never}", function.node)


def _things_in(where: str, nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    for node in nodes:
        label = node.name or first_output(node)
        weights = [name for name in node.input if _WEIGHT.search(name)]
        if _OPERATOR.search(node.op_type):
            domain = "" if node.domain in STANDARD else node.domain + "::"
            yield f"{domain}{node.op_type} {label!r}{where}"
        elif node.domain in STANDARD and node.op_type in ("Loop", "Scan"):
            yield f"{node.op_type} {label!r}{where}"
        elif weights:
            yield f"{node.op_type} {label!r} with the weight {weights[0]!r}, of a cell written out{where}"
        for attribute, graph in bodies_of(node):
            yield from _things_in(f" in {attribute} of {label!r}{where}", graph.node)

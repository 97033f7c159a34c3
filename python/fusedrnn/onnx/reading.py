"""Layers from the nodes of a model."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import onnx

from fusedrnn.arguments import require_flag, require_integer
from fusedrnn.arrays.host import as_array
from fusedrnn.gradients import Array
from fusedrnn.onnx.folding import Budget, Folder
from fusedrnn.onnx.nodes import Layer
from fusedrnn.onnx.operators import is_numeric
from fusedrnn.onnx.scopes import (
    RECURRENT,
    RecurrentNode,
    all_nodes,
    bodies_of,
    first_output,
    key_of,
    recurrent_nodes,
    scope_of,
    scope_of_node,
)
from fusedrnn.onnx.seen import recurrent_things
from fusedrnn.onnx.sizes import Shapes
from fusedrnn.onnx.states import Start, call_arguments_of, layer_and_start

Source = onnx.ModelProto | onnx.NodeProto | bytes | str | os.PathLike[str]


def from_onnx(
    model_or_node: Source,
    node: str | None = None,
    *,
    weights: Mapping[str, Array] | None = None,
    skip_unsupported: bool = False,
) -> Any:
    """Make layers of the RNN, LSTM and GRU nodes of an ONNX model (operator sets 7 and newer).

    A layer takes the weights and attributes of its node: ``direction``, ``layout`` (1 is `batch_first`), ``clip``,
    ``input_forget`` (`coupled`), ``linear_before_reset`` (`reset_after`), and peepholes. Weights may be initializers or
    whatever the model computes from initializers alone, such as slices, casts, transposes, sums, dequantised integers.
    Nodes may stand in the bodies of If, Loop and Scan and in the model's own functions. onnxruntime's
    ``DynamicQuantizeLSTM`` becomes a float32 LSTM with the weights that its integers stand for.

    An initial state that depends on initializers alone becomes the layer's `initial_state`, with which its calls begin.
    One that is computed at run time, and lengths, are arguments of calls: a warning names them; `call_arguments` gives
    lengths that the model holds. A row of length 0 keeps its initial state, where onnxruntime gives zeros.

    Parameters
    ----------
    model_or_node : ModelProto, path, bytes of a model, or NodeProto
    node : str, optional
        Name of one node of the model, or of its first output where it has no name of its own, or another has the same.
        Before it stand, with slashes between, the names of what it lies in: ``"If_3/then_branch/LSTM_7"``,
        ``"encoder_call/LSTM_7"``. The last part will do where it means one node only.
    weights : mapping of str to array, optional
        Values by the names of tensors, for those that are not constant in the model. A NodeProto, which holds no
        values, needs them.
    skip_unsupported : bool
        Leave out nodes that cannot be taken, and warn of each with the reason. It is an error still where none can.

    Returns
    -------
    RNN, LSTM or GRU
        float32 or float64, as the weights are. A dict of them by the names of the nodes, if the model has several and
        `node` is None.

    Raises
    ------
    TypeError
        Where an argument is of another kind, a value in `weights` is no array or one with a mask, or the weights of a
        node are not float32 or float64.
    ValueError
        Where the model has no such node, or an older operator set, or no tensor of a name in `weights`; where a weight
        is neither constant nor given, a shape or attribute is wrong, or an activation is none that the layers have:
        tanh or relu for RNN, both directions alike, and the operator's own for GRU and LSTM. Where computing the
        constants would take more memory than 64 MiB and 32 times the model's size.
    """
    if weights is not None and not isinstance(weights, Mapping):
        raise TypeError(f"weights must be a mapping of names to arrays or None, not {type(weights).__name__}")
    weights = None if weights is None else {name: _given(name, value) for name, value in weights.items()}
    skip = require_flag(skip_unsupported, "skip_unsupported")
    recurrents, folder = _recurrent_nodes_of(model_or_node, node, weights)
    layers: dict[str, Layer] = {}
    problems: list[TypeError | ValueError] = []
    for recurrent in recurrents:
        try:
            layers[recurrent.name], start = layer_and_start(recurrent, folder)
        except (TypeError, ValueError) as error:
            if not skip:
                raise
            problems.append(error)
            warnings.warn(f"node {recurrent.name!r} is left out: {error}", stacklevel=2)
        else:
            _warn_of_missing(recurrent, start)
    if not layers:
        raise problems[0]
    return next(iter(layers.values())) if len(recurrents) == 1 else layers


def call_arguments(model_or_node: Source, node: str | None = None, *, batch: int | None = None) -> dict[str, Any]:
    """The initial state and the lengths that a model holds as constants, as arguments of its layer's calls.

    The layer that `from_onnx` makes begins with that state anyway; lengths have to be given to its calls.

    Parameters
    ----------
    model_or_node, node
        As for `from_onnx`; they must mean one node.
    batch : int, optional
        Rows of the state, where all rows of the model's are the same. None: as many as the model has; a state that it
        makes for whatever batch it is fed is not in the result then.

    Returns
    -------
    dict
        ``state``, h or (h, c), each (D, B, H), zeros where only the other half is constant; ``lengths``, (B,). What
        is not a constant of the model is not in the dict: ``layer(x, **call_arguments(model))``.

    Raises
    ------
    TypeError, ValueError
        As from `from_onnx`; where the model has several nodes and `node` is None, or the rows of its state differ and
        are not `batch` in number.
    """
    batch = None if batch is None else require_integer(batch, "batch", least=0)
    recurrents, folder = _recurrent_nodes_of(model_or_node, node, None)
    if len(recurrents) != 1:
        raise ValueError(
            f"node must name one of {[recurrent.name for recurrent in recurrents]}, as the model has several"
        )
    layer, start = layer_and_start(recurrents[0], folder)
    return call_arguments_of(recurrents[0], layer, start, batch)


def _recurrent_nodes_of(
    model_or_node: Any, node: str | None, weights: Mapping[str, Any] | None
) -> tuple[list[RecurrentNode], Folder]:
    """The nodes that are meant, and what computes the constants of their model."""
    if node is not None and not isinstance(node, str):
        raise TypeError(f"node must be the name of a node or None, not {type(node).__name__}")
    given_bytes = sum(getattr(array, "nbytes", 0) for array in (weights or {}).values())
    if isinstance(model_or_node, onnx.NodeProto):
        if node is not None:
            raise ValueError("node must be None where model_or_node is a node itself")
        if key_of(model_or_node)[:2] not in RECURRENT:
            raise ValueError(f"model_or_node must be an RNN, LSTM or GRU node, not {model_or_node.op_type!r}")
        _require_names(weights, model_or_node.input)
        scope = scope_of_node(model_or_node, weights)
        name = model_or_node.name or first_output(model_or_node)
        return [RecurrentNode(name, scope, model_or_node)], Folder(Budget(given_bytes))
    model = _model(model_or_node)
    _require_names(weights, _names_of(model) if weights else ())
    root = scope_of(model, weights)
    recurrents = recurrent_nodes(root)
    if not recurrents:
        raise ValueError(
            f"model_or_node must have an RNN, LSTM or GRU node in its graph; it has none{recurrent_things(model)}"
        )
    names = [recurrent.name for recurrent in recurrents]
    if len(set(names)) < len(names):
        raise ValueError("model_or_node must not name a node as the output of another; rename it")
    return recurrents if node is None else [_named(recurrents, node)], Folder(
        Budget(model.ByteSize() + given_bytes), Shapes(model)
    )


def _given(name: Any, value: Any) -> Array:
    """An array that the caller passes for a tensor."""
    if not isinstance(name, str):
        raise TypeError(f"weights must have strings for names, not {name!r}")
    array = as_array(value, f"weights[{name!r}]")
    if not is_numeric(array):
        raise TypeError(f"weights[{name!r}] must be an array of numbers, not of {array.dtype}")
    return array


def _require_names(weights: Mapping[str, Any] | None, names: Iterable[str]) -> None:
    unknown = sorted(set(weights or ()) - set(names))
    if unknown:
        raise ValueError(f"weights must be named as tensors of the model, which has no {', '.join(map(repr, unknown))}")


def _names_of(model: onnx.ModelProto) -> Iterator[str]:
    """The names of all tensors of a model, those of bodies and functions too."""
    graphs = [model.graph]
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in all_nodes(nodes):
            yield from (*node.input, *node.output)
            graphs += [graph for _, graph in bodies_of(node)]
    for graph in graphs:
        yield from (value.name for value in (*graph.input, *graph.output, *graph.initializer))
        yield from (tensor.values.name for tensor in graph.sparse_initializer)


def _named(recurrents: list[RecurrentNode], node: str) -> RecurrentNode:
    meant = [recurrent for recurrent in recurrents if recurrent.name == node]
    meant = meant or [one for one in recurrents if one.name == one.scope.place + node]
    if len(meant) != 1:
        which = "must be one of" if not meant else "means several, must be one of"
        raise ValueError(f"node {which} {[recurrent.name for recurrent in meant or recurrents]}, not {node!r}")
    return meant[0]


def _model(value: Any) -> onnx.ModelProto:
    if isinstance(value, onnx.ModelProto):
        return value
    try:
        if isinstance(value, bytes):
            return onnx.load_model_from_string(value)
        if isinstance(value, (str, os.PathLike)):
            return onnx.load(os.fspath(value))
    except OSError:
        raise
    except Exception as error:  # the kind depends on protobuf's version
        shown = "these bytes" if isinstance(value, bytes) else repr(os.fspath(value))
        raise ValueError(f"model_or_node must be an ONNX model; {shown} cannot be read as one: {error}") from error
    raise TypeError(f"model_or_node must be an ONNX model or node, bytes or a path, not {type(value).__name__}")


def _warn_of_missing(recurrent: RecurrentNode, start: Start) -> None:
    """Tell of what the model feeds to a node and the layer does not hold."""
    if start.lengths is not None:
        warnings.warn(
            f"node {recurrent.name!r} has constant lengths, sequence_lens, which a layer does not hold: call it with"
            " those that fusedrnn.onnx.call_arguments gives",
            stacklevel=3,
        )
    for formal, unknown in start.missing.items():
        if not unknown.fed:
            without = "take sequences as whole" if formal == "sequence_lens" else "begin at zero there"
            warnings.warn(
                f"{formal} of node {recurrent.name!r} is no constant of the model: {unknown.reason}. Give it to the"
                f" layer's calls, which {without} otherwise",
                stacklevel=3,
            )

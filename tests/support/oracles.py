"""One sequence through the library, the reference, torch and onnxruntime, all answering in the same form."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from cases import Case, Inputs, assert_close

from fusedrnn import reference


class Result(NamedTuple):
    """Outputs of a forward pass, and of a backward pass from `Inputs.dy` and `Inputs.dstate`."""

    y: np.ndarray
    state: Any
    dx: np.ndarray
    dstate: Any
    parameters: dict[str, np.ndarray]


def as_tuple(state: Any) -> tuple[Any, ...]:
    return state if isinstance(state, tuple) else (state,)


def assert_results_close(actual: Result, expected: Result, bounds: Result | None = None) -> None:
    """Assert that every element of every output and gradient is within its bound; without bounds, equal."""
    assert list(actual.parameters) == list(expected.parameters)
    for name, a, b, bound in zip(
        names_of(actual), arrays_of(actual), arrays_of(expected), arrays_of(bounds or actual), strict=True
    ):
        assert_close(a, b, bound if bounds else 0.0, name)


def arrays_of(result: Result) -> list[Any]:
    """Every array of a result, gradients of the parameters last."""
    return [result.y, *as_tuple(result.state), result.dx, *as_tuple(result.dstate), *result.parameters.values()]


def names_of(result: Result) -> list[str]:
    states = len(as_tuple(result.state))
    halves = [f"{name}[{half}]" for name in ("state", "dstate") for half in range(states)]
    return ["y", *halves[:states], "dx", *halves[states:], *result.parameters]


def map_result(function: Callable[[Any], Any], result: Result) -> Result:
    """A result with `function` applied to each of its arrays."""

    def mapped(state: Any) -> Any:
        return tuple(map(function, state)) if isinstance(state, tuple) else function(state)

    parameters = {name: function(gradient) for name, gradient in result.parameters.items()}
    return Result(function(result.y), mapped(result.state), function(result.dx), mapped(result.dstate), parameters)


def run_library(layer: Any, inputs: Inputs) -> Result:
    y, state, tape = layer.forward(inputs.x, inputs.state, **inputs.sequence_options())
    grads = layer.backward(tape, inputs.dy, inputs.dstate)
    return Result(y, state, grads.x, grads.state, grads.parameters)


def run_reference(
    case: Case, parameters: dict[str, np.ndarray], inputs: Inputs, dropout_masks: list[np.ndarray] | None = None
) -> Result:
    y, state, tape = reference.forward(
        case.cell,
        parameters,
        inputs.x,
        inputs.state,
        **inputs.sequence_options(),
        **case.reference_options(),
        dropout_masks=dropout_masks,
    )
    return Result(y, state, *reference.backward(tape, inputs.dy, inputs.dstate))


def torch_module(case: Case, parameters: dict[str, np.ndarray], **options: Any) -> Any:
    """torch's own layer for a case that torch has, holding copies of `parameters`."""
    import torch

    kind = {"rnn_tanh": torch.nn.RNN, "rnn_relu": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[case.cell]
    if case.cell.startswith("rnn"):
        options["nonlinearity"] = case.cell.removeprefix("rnn_")
    module = kind(
        case.input_size,
        case.hidden_size,
        case.num_layers,
        bidirectional=case.directions == 2,
        dtype=getattr(torch, case.dtype),
        **options,
    )
    module.load_state_dict({name: torch.tensor(value) for name, value in parameters.items()})
    return module


def _torch_sequence(module: Any, x: Any, state: Any, lengths: np.ndarray | None) -> tuple[Any, Any]:
    import torch

    if lengths is None:
        return module(x, state)
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        x, torch.tensor(lengths), batch_first=module.batch_first, enforce_sorted=False
    )
    out, final = module(packed, state)
    time = x.shape[1 if module.batch_first else 0]
    y, _ = torch.nn.utils.rnn.pad_packed_sequence(out, batch_first=module.batch_first, total_length=time)
    return y, final


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Keep torch's pool from waiting for the library's cores, and give the setting back."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def run_torch(case: Case, parameters: dict[str, np.ndarray], inputs: Inputs, **options: Any) -> Result:
    """torch's layer forward and backward; lengths go through packed sequences, which must all be 1 or more."""
    import torch

    module = torch_module(case, parameters, **options)
    x = torch.tensor(inputs.x, requires_grad=True)
    leaves = tuple(torch.tensor(s, requires_grad=True) for s in as_tuple(inputs.state))
    # Multiplying would let the nan beyond a row's length through; torch has no gradient to take there.
    dy = torch.nan_to_num(torch.tensor(inputs.dy))
    with one_torch_thread():
        y, final = _torch_sequence(module, x, leaves if case.two_states else leaves[0], inputs.lengths)
        torch.autograd.backward([y, *as_tuple(final)], [dy, *(torch.tensor(d) for d in as_tuple(inputs.dstate))])

    def joined(arrays: list[np.ndarray]) -> Any:
        return tuple(arrays) if case.two_states else arrays[0]

    return Result(
        y.detach().numpy(),
        joined([s.detach().numpy() for s in as_tuple(final)]),
        x.grad.numpy(),
        joined([s.grad.numpy() for s in leaves]),
        {name: getattr(module, name).grad.numpy() for name in parameters},
    )


def _blocks(array: np.ndarray, order: list[int | None], signs: list[int]) -> np.ndarray:
    """Gate blocks of `array` in another order and sign, None standing for a block of zeros."""
    gates = len({block for block in order if block is not None})
    parts = np.split(array, gates)
    chosen = [np.zeros_like(parts[0]) if k is None else s * parts[k] for k, s in zip(order, signs, strict=True)]
    return np.concatenate(chosen)


def _onnx_layout(cell: str) -> tuple[str, list[int | None], list[int], list[int | None], dict[str, Any]]:
    """Operator, our gate block for each of ONNX's with its sign, our peephole row for each of ONNX's, attributes.

    ONNX has LSTM gates i o f c, peepholes i o f and GRU gates z r h. onnxruntime reads `input_forget` as f = 1 - i
    and takes i from its gate; as 1 - sigmoid(z) = sigmoid(-z), our forget gate is its input gate negated.
    """
    if cell.startswith("rnn"):
        return "RNN", [0], [1], [], {"activations": cell.removeprefix("rnn_").capitalize()}
    if cell.startswith("gru"):
        return "GRU", [1, 0, 2], [1, 1, 1], [], {"linear_before_reset": int(cell == "gru")}
    if "coupled" in cell:
        return "LSTM", [0, 2, None, 1], [-1, 1, 1, 1], [0, 1, None], {"input_forget": 1}
    return "LSTM", [0, 3, 1, 2], [1, 1, 1, 1], [0, 2, 1], {}


def _onnx_layer(case: Case, parameters: dict[str, np.ndarray], layer: int) -> Any:
    """An onnxruntime session of one layer, with inputs X, sequence_lens and the initial states."""
    import onnx
    import onnxruntime

    op, order, signs, rows, attributes = _onnx_layout(case.cell)
    suffixes = [f"_l{layer}" + suffix for suffix in ("", "_reverse")[: case.directions]]

    def stacked(name: str) -> np.ndarray:
        return np.stack([_blocks(parameters[name + suffix], order, signs) for suffix in suffixes])

    constants = {
        "W": stacked("weight_ih"),
        "R": stacked("weight_hh"),
        "B": np.concatenate([stacked("bias_ih"), stacked("bias_hh")], axis=1),
    }
    if reference.cells[case.cell].per_unit:
        row_signs = [-1, 1, 1] if "coupled" in case.cell else [1, 1, 1]
        constants["P"] = np.stack([_blocks(parameters["peephole" + s], rows, row_signs).reshape(-1) for s in suffixes])
    states = ["h0", "c0"][: 1 + case.two_states]
    inputs = ["X", "W", "R", "B", "sequence_lens", *states, *(["P"] if "P" in constants else [])]
    outputs = ["Y", "Y_h", "Y_c"][: 2 + case.two_states]
    if "activations" in attributes:
        attributes["activations"] = [attributes["activations"]] * case.directions
    node = onnx.helper.make_node(
        op,
        inputs,
        outputs,
        hidden_size=case.hidden_size,
        direction="bidirectional" if case.directions == 2 else "reverse" if case.reverse else "forward",
        **attributes,
        **({"clip": case.clip} if case.clip else {}),
    )
    # Six floating inputs at the most, so shapes are left open and only types are declared.
    kinds = {"sequence_lens": onnx.TensorProto.INT32}
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "layer",
        [value(name, kinds.get(name, onnx.TensorProto.FLOAT), None) for name in ["X", "sequence_lens", *states]],
        [value(name, onnx.TensorProto.FLOAT, None) for name in outputs],
        [onnx.numpy_helper.from_array(a.astype(np.float32), name) for name, a in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_onnxruntime(case: Case, parameters: dict[str, np.ndarray], inputs: Inputs) -> tuple[np.ndarray, Any]:
    """Forward pass of float32 layers through onnxruntime, one session a layer; lengths must all be 1 or more."""
    lengths = np.full(case.batch, case.time) if inputs.lengths is None else inputs.lengths
    x = np.nan_to_num(inputs.x)
    finals = []
    for layer in range(case.num_layers):
        initial = [s[layer * case.directions : (layer + 1) * case.directions] for s in as_tuple(inputs.state)]
        feeds = {"X": x, "sequence_lens": lengths.astype(np.int32), **dict(zip(("h0", "c0"), initial, strict=False))}
        y, *final = _onnx_layer(case, parameters, layer).run(None, feeds)
        x = np.ascontiguousarray(y.transpose(0, 2, 1, 3)).reshape(case.time, case.batch, -1)
        finals.append(final)
    states = tuple(np.concatenate(arrays) for arrays in zip(*finals, strict=True))
    return x, states if case.two_states else states[0]

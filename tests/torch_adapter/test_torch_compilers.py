"""Swapped modules under torch.compile, torch.export, ONNX export, scripting and quantization."""

from __future__ import annotations

import copy
import io
import os
import warnings
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch_support import (  # noqa: E402
    CELLS,
    LAYERS,
    SIZE,
    Tagger,
    accelerated,
    assert_near,
    leaf,
    outputs_and_gradients,
    tensors_in,
)

import fusedrnn.torch as ft  # noqa: E402

T, B = 6, 4
DEPTH = 1024
pytestmark = [
    pytest.mark.filterwarnings("ignore:fusedrnn.torch"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
each_layer = pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.__name__)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def assert_compiles(model: nn.Module, x: Any, *, fullgraph: bool, backend: str = "aot_eager") -> None:
    expected = outputs_and_gradients(model, x)
    with torch._dynamo.config.patch(allow_rnn=fullgraph):
        compiled = torch.compile(model, fullgraph=fullgraph, backend=backend)
        assert_near(outputs_and_gradients(compiled, x), expected, DEPTH)


@each_layer
@pytest.mark.parametrize("fullgraph", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_compile(kind: Any, fullgraph: bool, batch_first: bool) -> None:
    recurrent = kind(**SIZE, num_layers=2, bidirectional=True, batch_first=batch_first)
    x = leaf(T, B, SIZE["input_size"], dtype=torch.float32)
    assert_compiles(accelerated(Tagger(recurrent, 14)), x, fullgraph=fullgraph)


def test_compile_uses_the_engine() -> None:
    seen: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        seen.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    model, x = accelerated(nn.GRU(**SIZE)), torch.randn(T, B, SIZE["input_size"])
    with torch._dynamo.config.patch(allow_rnn=True):
        torch.compile(model, fullgraph=True, backend=backend)(x)
    assert torch.ops.fusedrnn.layers in seen or torch.ops.fusedrnn.layers.default in seen
    assert torch._dynamo.config.allow_rnn is False  # importing the adapter changes no setting


@each_layer
@pytest.mark.parametrize("inside", [True, False])
def test_a_compiler_that_refuses_a_layer_does_not_look_into_it(kind: Any, inside: bool) -> None:
    """As with torch's own layers: at most a break for each, and no function of this library's compiled by itself."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(5, 5), kind(**SIZE, num_layers=2)
            self.third, self.readout = kind(7, 7), nn.Linear(7, 3)

        def forward(self, x: Any) -> Any:
            y = self.second(self.first(x).relu())[0]
            return self.readout(self.third(y.relu_())[0])

    model, x = accelerated(Model()), leaf(T, B, SIZE["input_size"], dtype=torch.float32)

    def step(x: Any) -> Any:
        y = model(x)
        y.sin().sum().backward()
        return y

    expected = outputs_and_gradients(model, x)
    counters = torch._dynamo.utils.counters
    counters.clear()
    traced: list[str] = []

    def backend(graph: Any, inputs: Any) -> Any:
        traced.extend(node.stack_trace or "" for node in graph.graph.nodes)
        return graph.forward

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        if inside:
            torch.compile(step, backend=backend)(x)
        else:
            assert_near(outputs_and_gradients(torch.compile(model, backend=backend), x), expected, 0)
    assert not [w for w in seen if "know how to trace" in str(w.message) or "fusedrnn" in str(w.message)]
    refused = {reason: n for reason, n in counters["graph_break"].items() if "backward" not in reason}
    assert all("RNN, GRU, or LSTM" in reason for reason in refused) and sum(refused.values()) <= 2
    assert not any(os.path.dirname(ft.__file__) in trace for trace in traced)


@pytest.mark.parametrize("options", [{"peephole": True}, {"peephole": True, "coupled": True}])
def test_compile_with_options_lengths_and_resets(options: dict[str, bool]) -> None:
    recurrent = ft.LSTM(**SIZE, num_layers=2, **options)
    model = Tagger(recurrent, 7, lengths=torch.tensor([6, 0, 3, 1]), reset=torch.rand(T, B) < 0.3)
    assert_compiles(model, leaf(T, B, SIZE["input_size"], dtype=torch.float32), fullgraph=True)


@pytest.mark.parametrize(
    "recurrent",
    [kind(**SIZE) for kind in CELLS] + [ft.LSTMCell(**SIZE, peephole=True), ft.GRUCell(**SIZE, reset_after=False)],
    ids=lambda module: type(module).__name__,
)
def test_compile_of_cells(recurrent: nn.Module) -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = recurrent

        def forward(self, x: Any) -> Any:
            state, outputs = None, []
            for t in range(3):
                state = self.cell(x[t], state)
                outputs.append(state[0] if isinstance(state, tuple) else state)
            return torch.stack(outputs)

    model = Loop()
    ft.accelerate(model)
    assert_compiles(model, leaf(T, B, SIZE["input_size"], dtype=torch.float32), fullgraph=True)


@pytest.mark.parametrize("form", ["time", "batch", "step"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("given", [True, False])
def test_the_operator_tells_the_truth_about_itself(form: str, cell: str, given: bool) -> None:
    gates = 4 if cell == "lstm" else 3
    shapes = [(gates * 7, 5), (gates * 7, 7), (gates * 7,), (gates * 7,)]
    weights = [torch.randn(shape, requires_grad=True) for shape in shapes]
    x = torch.randn(*([B] if form == "step" else [T, B] if form == "time" else [B, T]), 5, requires_grad=True)
    state = torch.randn(*[] if form == "step" else [1], B, 7, requires_grad=True) if given else None
    arguments = (x, state, state if cell == "lstm" else None, weights, None, None, cell, 1, False, True, form, True)
    torch.library.opcheck(torch.ops.fusedrnn.layers.default, arguments)


def test_the_operator_refuses_what_does_not_fit() -> None:
    weights = [torch.randn(28, 5), torch.randn(28, 7), torch.randn(28), torch.randn(28)]
    plan = ("lstm", 1, False, True, "time", False)
    for x, state in ((torch.randn(T, B, 4), None), (torch.randn(T, B, 5), torch.randn(1, B, 6))):
        with pytest.raises(RuntimeError, match="fusedrnn::layers"):
            torch.ops.fusedrnn.layers(x, state, state, weights, None, None, *plan)
    x = torch.randn(T, B, 5)
    for lengths, reset in (
        (torch.ones(1, dtype=torch.int64), None),
        (torch.ones(B, dtype=torch.int32), None),
        (None, torch.ones(1, B, dtype=torch.bool)),
        (None, torch.ones(T, B)),
    ):
        with pytest.raises(RuntimeError, match="fusedrnn::layers"):
            torch.ops.fusedrnn.layers(x, None, None, weights, lengths, reset, *plan)
    y, hn, _, tape = torch.ops.fusedrnn.layers(x, None, None, weights, None, None, *plan[:-1], True)
    small, wanted = torch.zeros(1), [True, False, False, True, True, True, True]
    for given in ((small, tape, y, hn, hn), (y, small, y, hn, hn), (y, tape, small, hn, hn), (y, tape, y, hn, small)):
        with pytest.raises(RuntimeError, match="fusedrnn::layers"):
            torch.ops.fusedrnn.layers_backward(x, None, None, weights, None, None, *plan[:-1], *given, wanted)


@each_layer
def test_export_is_torchs_own(kind: Any) -> None:
    model, x = accelerated(Tagger(kind(**SIZE, batch_first=True), 7)).eval(), torch.randn(B, T, SIZE["input_size"])
    program = torch.export.export(model, (x,))
    assert "fusedrnn" not in str(program.graph)
    assert_near(tensors_in(program.module()(x)), tensors_in(model(x)), DEPTH)


@pytest.mark.parametrize(
    "module",
    [
        ft.LSTM(**SIZE, num_layers=2, bidirectional=True, peephole=True, batch_first=True),
        ft.LSTM(**SIZE, coupled=True, batch_first=True),
        ft.GRU(**SIZE, reset_after=False, batch_first=True),
    ],
    ids=repr,
)
def test_export_of_cells_that_torch_lacks_is_in_its_operations(module: Any) -> None:
    model, x = Tagger(module, 14 if module.bidirectional else 7).eval(), torch.randn(B, T, SIZE["input_size"])
    program = torch.export.export(model, (x,))
    assert "fusedrnn" not in str(program.graph)
    assert_near(tensors_in(program.module()(x)), tensors_in(model(x)), DEPTH)


@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx_export_is_torchs_own(dynamo: bool) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if dynamo:
        pytest.importorskip("onnxscript", reason="torch's newer ONNX exporter needs onnxscript")
    model, x = accelerated(nn.LSTM(**SIZE)).eval(), torch.randn(T, B, SIZE["input_size"])
    stream = io.BytesIO()
    torch.onnx.export(model, (x,), stream, input_names=["x"], dynamo=dynamo)
    session = onnxruntime.InferenceSession(stream.getvalue(), providers=["CPUExecutionProvider"])
    y = session.run(None, {"x": x.numpy()})[0]
    assert_near([torch.from_numpy(y)], [model(x)[0].detach()], DEPTH)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU], ids=lambda kind: kind.__name__)
def test_script_compiles_torchs_module(kind: Any) -> None:
    # Within a model: torch scripts no overloaded forward, as that of its own LSTM, by itself.
    model, x = accelerated(nn.Sequential(kind(**SIZE, num_layers=2))), torch.randn(T, B, SIZE["input_size"])
    expected = tensors_in(model(x))
    scripted = torch.jit.script(copy.deepcopy(model))
    assert type(model[0]).__module__.startswith("fusedrnn")
    assert_near(tensors_in(scripted(x)), expected, DEPTH)
    with pytest.raises(RuntimeError, match="cannot be scripted"):
        torch.jit.script(ft.GRU(**SIZE, reset_after=False))


def test_quantization_is_a_clear_error_or_works_after_restore() -> None:
    model = nn.Sequential(nn.LSTM(**SIZE))
    ft.accelerate(model)
    with pytest.raises(RuntimeError, match="restore"):
        torch.ao.quantization.quantize_dynamic(model, {nn.LSTM})
    ft.restore(model)
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM})
    assert "quantized" in type(quantized[0]).__module__
    assert "not one of" in str(ft.why_not(quantized[0]))

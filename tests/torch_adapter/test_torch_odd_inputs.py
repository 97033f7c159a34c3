"""Inputs of swapped modules that are empty, nested or of a subclass, and options by position: all as torch has them."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils.rnn import PackedSequence  # noqa: E402
from torch_support import CELLS, LAYERS, SIZE, accelerated, assert_near, tensors_in  # noqa: E402

import fusedrnn.torch as ft  # noqa: E402
from fusedrnn.torch.modules import CLASSES  # noqa: E402

T = 6
INPUTS, UNITS = SIZE.values()
pytestmark = [
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
    pytest.mark.filterwarnings("ignore:fusedrnn.torch"),
]
each_layer = pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.__name__)
each_kind = pytest.mark.parametrize("kind", [*LAYERS, *CELLS], ids=lambda kind: kind.__name__)

# (T, 0, INPUTS), with strides that are no contiguous tensor's.
EMPTY = {
    "contiguous": lambda: torch.randn(T, 0, INPUTS),
    "permuted": lambda: torch.randn(0, INPUTS, T).permute(2, 0, 1),
    "turned": lambda: torch.randn(INPUTS, 0, T).permute(2, 1, 0),
    "sliced": lambda: torch.randn(T, 4, 2 * INPUTS)[:, 2:2, ::2],
    "expanded": lambda: torch.randn(T, 1, INPUTS)[:, :0].expand(T, 0, INPUTS),
    "expanded whole": lambda: torch.zeros(1).expand(T, 0, INPUTS),
}
LOSSES = {
    "sum": lambda outputs: outputs[0].sum(),
    "all": lambda outputs: sum(t.sum() for t in outputs),
    "state": lambda outputs: outputs[-1].sum(),
    "transposed": lambda outputs: outputs[0].transpose(0, -1).sin().sum(),
}
each_loss = pytest.mark.parametrize("loss", LOSSES)


def empty_state(kind: Any, *leading: int) -> Any:
    h = torch.randn(UNITS, 0, *reversed(leading)).permute(*reversed(range(2 + len(leading)))).requires_grad_()
    return (h, h) if kind in (nn.LSTM, nn.LSTMCell) else h


def differentiate(module: Any, x: Any, hx: Any, loss: str) -> list[Any]:
    """Outputs and every gradient, zeros for those that are None."""
    leaves = [x, *tensors_in(hx), *module.parameters()]
    outputs = tensors_in(module(x, hx))
    grads = torch.autograd.grad(LOSSES[loss](outputs), leaves, allow_unused=True)
    return [*outputs, *(torch.zeros_like(t) if g is None else g for g, t in zip(grads, leaves, strict=True))]


@each_layer
@pytest.mark.parametrize("layout", EMPTY)
@each_loss
@pytest.mark.parametrize(
    "options", [{}, {"batch_first": True}, {"num_layers": 2, "bidirectional": True, "dropout": 0.5}]
)
def test_empty_batches_of_layers(kind: Any, layout: str, loss: str, options: dict[str, Any]) -> None:
    own = kind(**SIZE, **options)
    x = EMPTY[layout]()
    x = (x.transpose(0, 1) if own.batch_first else x).detach().requires_grad_()
    for hx in ((), empty_state(kind, 4 if own.bidirectional else 1)):
        hx = hx if len(hx) else None
        ours, theirs = (differentiate(module, x, hx, loss) for module in (accelerated(own), own))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        with torch.no_grad():
            assert accelerated(own)(x, hx)[0].shape == theirs[0].shape


@pytest.mark.parametrize("kind", CELLS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("layout", EMPTY)
@each_loss
def test_empty_batches_of_cells(kind: Any, layout: str, loss: str) -> None:
    own, x = kind(**SIZE), EMPTY[layout]()[0].detach().requires_grad_()
    for hx in (None, empty_state(kind)):
        ours, theirs = (differentiate(module, x, hx, loss) for module in (accelerated(own), own))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@each_layer
def test_empty_batches_with_lengths_and_resets(kind: Any) -> None:
    module, x = accelerated(kind(**SIZE)), EMPTY["permuted"]().requires_grad_()
    reset = torch.zeros(0, T, dtype=torch.bool).T
    for lengths in ([], torch.zeros(0, dtype=torch.int64)):
        y, _ = module(x, lengths=lengths, reset=reset)
        y.sum().backward()
        assert y.shape == (T, 0, UNITS) and all(not p.grad.any() for p in module.parameters())


@pytest.mark.parametrize(
    "module",
    [
        ft.RNN(INPUTS, UNITS),
        ft.LSTM(INPUTS, UNITS),
        ft.LSTM(INPUTS, UNITS, peephole=True),
        ft.LSTM(INPUTS, UNITS, bidirectional=True, peephole=True, coupled=True, batch_first=True),
        ft.GRU(INPUTS, UNITS, reset_after=False),
    ],
    ids=repr,
)
def test_a_sequence_without_steps_is_torchs_error(module: Any) -> None:
    batched = torch.zeros(2, 0, INPUTS) if module.batch_first else torch.zeros(0, 2, INPUTS)
    for x in (batched, torch.zeros(0, INPUTS)):
        with pytest.raises(RuntimeError, match="Expected sequence length to be larger than 0 in RNN"):
            module(x)


@each_layer
def test_an_empty_packing_is_torchs(kind: Any) -> None:
    own = kind(**SIZE)
    for x, sizes in (
        (torch.randn(INPUTS, 0).T, [0, 0]),
        (torch.randn(0, 2 * INPUTS)[:, ::2], [0]),
        (torch.randn(0, INPUTS), [1]),
    ):
        found = []
        for module in (accelerated(own), own):
            try:
                found.append(tensors_in(module(PackedSequence(x, torch.tensor(sizes)))))
            except (RuntimeError, ValueError) as error:
                found.append((type(error), str(error)))
        assert type(found[0]) is type(found[1])
        if isinstance(found[1], list):
            assert_near(found[0], found[1], 0)
        else:
            assert found[0] == found[1]


def nested(layout: Any, *shapes: tuple[int, ...]) -> Any:
    return torch.nested.nested_tensor([torch.randn(shape) for shape in shapes], layout=layout)


def error_of(function: Any) -> BaseException:
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("no error")


@each_kind
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided], ids=str)
@pytest.mark.parametrize("batch_first", [True, False])
def test_nested_tensors_are_torchs_errors(kind: Any, layout: Any, batch_first: bool) -> None:
    single, two = kind in CELLS, kind in (nn.LSTM, nn.LSTMCell)
    own = kind(**SIZE, **{} if single else {"batch_first": batch_first})
    ours, ragged = accelerated(own), nested(layout, *[(3,), (5,)] if single else [(3, INPUTS), (5, INPUTS)])
    plain, state = torch.randn(*[T] * (not single), 2, INPUTS), torch.randn(*[1] * (not single), 2, UNITS)
    for x, h in ((ragged, None), (ragged, state), (plain, ragged)):
        hx = (h, h) if two and h is not None else h
        found, expected = error_of(lambda: ours(x, hx)), error_of(lambda: own(x, hx))  # noqa: B023
        assert type(found) is type(expected) and str(found) == str(expected)
    if not single:
        packed = PackedSequence(ragged, torch.tensor([2, 1]))
        assert str(error_of(lambda: ours(packed))) == str(error_of(lambda: own(packed)))


def test_jagged_batches_raise_torchs_value_error() -> None:
    module = ft.LSTM(INPUTS, UNITS, batch_first=True)
    with pytest.raises(ValueError, match="Transpose is not supported on the batch dimension"):
        module(nested(torch.jagged, (3, INPUTS), (5, INPUTS)))


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided], ids=str)
def test_nested_tensors_with_options_are_an_error_that_names_them(layout: Any) -> None:
    x, ragged = torch.randn(T, 2, INPUTS), nested(layout, (3, INPUTS), (5, INPUTS))
    for module, options in (
        (ft.GRU(**SIZE), {"lengths": [3, 5]}),
        (ft.GRU(**SIZE), {"reset": torch.zeros(T, 2, dtype=torch.bool)}),
        (ft.GRU(**SIZE, reset_after=False), {}),
    ):
        with pytest.raises(TypeError, match="input must not be nested"):
            module(ragged, **options)
        with pytest.raises(TypeError, match="hx must not be nested"):
            module(x, ragged, **options)
    counts = torch.nested.nested_tensor([torch.ones(n, dtype=torch.int64) for n in (1, 2)], layout=layout)
    with pytest.raises(TypeError, match="lengths must be integers, not a nested tensor"):
        ft.GRU(**SIZE)(x, lengths=counts)
    with pytest.raises(TypeError, match="reset must be a tensor of bool, not a nested tensor"):
        ft.GRU(**SIZE)(x, reset=counts.bool())


@each_kind
def test_symbolic_sizes_are_torchs(kind: Any) -> None:
    """Fake tensors whose sizes are symbols, within their mode and without, and with options."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    shape = [T] * (kind in LAYERS) + [4, INPUTS]
    x = mode.from_tensor(torch.randn(shape), static_shapes=False)
    assert any(type(n) is not int for n in x.shape)
    own = kind(**SIZE)
    ours = accelerated(own)
    for outside in (True, False):
        with torch.no_grad(), contextlib.nullcontext() if outside else mode:
            assert shapes_or_error(ours, x) == shapes_or_error(own, x)


def shapes_or_error(module: Any, x: Any) -> list[Any]:
    try:
        return [tuple(map(int, t.shape)) for t in tensors_in(module(x))]
    except Exception as error:
        return [type(error), str(error)]


class Tagged(torch.Tensor):
    """A subclass with nothing of its own."""


@each_kind
def test_subclasses_run_torchs_own_forward(kind: Any) -> None:
    own = kind(**SIZE)
    x = torch.randn(*[T] * (kind in LAYERS), 4, INPUTS)
    with pytest.warns(
        UserWarning, match=f"{kind.__name__} runs torch's own forward: Tagged is not torch.Tensor itself"
    ):
        found = tensors_in(accelerated(own)(x.as_subclass(Tagged)))
    assert all(type(t) is Tagged for t in found)
    assert_near([t.as_subclass(torch.Tensor) for t in found], tensors_in(own(x)), 0)


POSITIONAL = {
    nn.LSTM: [
        (2, True, True),
        (2, False, True, 0.25, True),
        (1, True, False, 0.0, False, 3),
        (2, True, True, 0.0, True, 0),
    ],
    nn.GRU: [(2, True, True), (2, False, True, 0.25, True), (2, True, True, 0.0, True, 0)],
    nn.RNN: [(2, "relu", True, True), (2, "tanh", False, True, 0.25, True), (2, "relu", True, True, 0.0, True, 0)],
    nn.LSTMCell: [(False,), (True,)],
    nn.GRUCell: [(False,), (True,)],
    nn.RNNCell: [(False, "relu"), (True, "tanh"), (True,)],
}


@pytest.mark.parametrize(("kind", "options"), [(kind, options) for kind in POSITIONAL for options in POSITIONAL[kind]])
@pytest.mark.parametrize("more", [(), ("cpu", torch.float64)])
def test_options_by_position(kind: Any, options: tuple[Any, ...], more: tuple[Any, ...]) -> None:
    longest = max(map(len, POSITIONAL[kind]))
    if more and len(options) < longest:
        pytest.skip("torch has arguments before the device")
    own, ours = kind(INPUTS, UNITS, *options, *more), CLASSES[kind](INPUTS, UNITS, *options, *more)
    ours.load_state_dict(own.state_dict())
    assert repr(ours) == repr(own)
    x = torch.randn(
        *[T] * (kind in LAYERS), 4, INPUTS, dtype=own.weight_ih.dtype if kind in CELLS else own.weight_ih_l0.dtype
    )
    for m in (own, ours):
        m.eval()
    assert_near(tensors_in(ours(x)), tensors_in(own(x)), 1024)


@each_layer
@pytest.mark.parametrize("options", [("two",), (2, 3), (2, "relu", 3), (2, True, True, 2.0), (1,) * 12])
def test_positions_that_torch_refuses(kind: Any, options: tuple[Any, ...]) -> None:
    expected, found = (error_of(lambda kind=kind: kind(*SIZE.values(), *options)) for kind in (kind, CLASSES[kind]))
    assert type(found) is type(expected) and str(found) == str(expected)

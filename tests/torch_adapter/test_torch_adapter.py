"""fusedrnn.torch against the native layers, bit by bit, and against torch's own modules, to rounding."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
from cases import CASES, Case, make_inputs, make_layer, small_cases
from cases import LAYERS as NATIVE
from oracles import as_tuple, assert_results_close, run_library

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrize, prune  # noqa: E402
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from torch_support import (  # noqa: E402
    CELLS,
    LAYERS,
    SIZE,
    accelerated,
    assert_memory_is_looked_after,
    assert_near,
    assert_options_are_copied,
    leaf,
    loss_of,
    module_of,
    outputs_and_gradients,
    run_module,
    state_of,
    tensors_in,
)

import fusedrnn as fr  # noqa: E402
import fusedrnn.torch as ft  # noqa: E402
from fusedrnn.torch import autocast, dispatch  # noqa: E402
from fusedrnn.torch.optional_cells import OPTIONAL_CELLS  # noqa: E402

T, B = 6, 4
DEPTH = 1024  # roundings in a row in what is compared with torch here: 6 steps, 3 layers, products of 19 terms, twice
pytestmark = pytest.mark.filterwarnings("ignore:fusedrnn.torch")

each_layer = pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.__name__)
each_cell = pytest.mark.parametrize("kind", CELLS, ids=lambda kind: kind.__name__)
each_option = pytest.mark.parametrize("cell", OPTIONAL_CELLS)


def build(kind: Any, **options: Any) -> Any:
    return kind(**SIZE, **{"dtype": torch.float64, **options})


def build_option(cell: str, single: bool = False, **options: Any) -> Any:
    """A module of a cell that torch lacks."""
    name, own = NATIVE[cell]
    return build(getattr(ft, name + "Cell" * single), **own, **options)


def sequence(batch_first: bool = False) -> Any:
    return leaf(B, T, SIZE["input_size"]) if batch_first else leaf(T, B, SIZE["input_size"])


def flattened(module: Any, x: Any, **options: Any) -> tuple[Any, Any]:
    """A module as a function of one vector, its input, state and parameters, to one of all its outputs; and a vector.

    So a check of gradients perturbs all at once.
    """
    names = [name for name, _ in module.named_parameters()]
    shape = x.shape[:1] if module._is_cell else (module.num_layers * (1 + module.bidirectional), x.shape[1])
    leaves = [x, *tensors_in(state_of(type(module), *shape, SIZE["hidden_size"])), *module.parameters()]

    def run(flat: Any) -> Any:
        parts = flat.split([t.numel() for t in leaves])
        x, *rest = (part.reshape(t.shape) for part, t in zip(parts, leaves, strict=True))
        states, weights = rest[: -len(names)], dict(zip(names, rest[-len(names) :], strict=True))
        arguments = (x, tuple(states) if module._two_states else states[0])
        found = tensors_in(torch.func.functional_call(module, weights, arguments, options))
        return torch.cat([t.flatten() for t in found])

    return run, torch.cat([t.detach().flatten() for t in leaves]).requires_grad_()


# A module has neither clip nor reverse.
@pytest.mark.parametrize("case", [c for c in CASES if c.hidden_size < 100 and not c.clip and not c.reverse])
def test_is_the_native_layer_bit_by_bit(case: Case, rng: np.random.Generator) -> None:
    layer = make_layer(case)
    inputs = make_inputs(case, rng)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing may run torch's own forward
        actual = run_module(case, module_of(case, layer), inputs)
    assert_results_close(actual, run_library(layer, inputs))


@each_layer
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("training", [True, False])
def test_dropout_masks_are_torchs(kind: Any, batch_first: bool, dropout: float, training: bool) -> None:
    own = build(kind, num_layers=3, bidirectional=True, dropout=dropout, batch_first=batch_first).train(training)
    x, hx = sequence(batch_first), state_of(kind, 6, B, SIZE["hidden_size"])
    states = tensors_in(hx)
    ours = outputs_and_gradients(accelerated(own), x, hx, seed=3)
    after = torch.rand(1)
    theirs = outputs_and_gradients(own, x, hx, seed=3)
    assert torch.equal(after, torch.rand(1)) and len(states)  # the generator has gone as far
    assert_near(ours, theirs, DEPTH)


@each_layer
@pytest.mark.parametrize("sort", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("given", [True, False])
def test_packed_sequences(kind: Any, sort: bool, dropout: float, given: bool) -> None:
    own = build(kind, num_layers=2, bidirectional=True, dropout=dropout)
    lengths = [6, 4, 4, 1] if sort else [4, 1, 6, 4]
    x, hx = sequence(), state_of(kind, 4, B, SIZE["hidden_size"]) if given else None

    class Packed(nn.Module):
        def __init__(self, module: Any) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: Any, hx: Any) -> Any:
            packed = pack_padded_sequence(x, lengths, enforce_sorted=sort)
            y, state = self.module(packed, hx)
            assert y.batch_sizes is packed.batch_sizes and y.sorted_indices is packed.sorted_indices
            return pad_packed_sequence(y)[0], state

    theirs = outputs_and_gradients(Packed(own), x, hx)
    assert_near(outputs_and_gradients(accelerated(Packed(own)), x, hx), theirs, DEPTH)


@each_layer
def test_packed_and_padded_have_the_same_bits(kind: Any) -> None:
    module = accelerated(build(kind, num_layers=2, bidirectional=True))
    lengths = [4, 1, 6, 4]
    x = sequence()
    padded, state = module(x, lengths=lengths)
    packed, packed_state = module(pack_padded_sequence(x, lengths, enforce_sorted=False))
    again = pad_packed_sequence(packed)[0]
    assert torch.equal(padded, again)
    assert all(torch.equal(a, b) for a, b in zip(tensors_in(state), tensors_in(packed_state), strict=True))


@each_layer
@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched(kind: Any, batch_first: bool) -> None:
    own = build(kind, num_layers=2, batch_first=batch_first)
    x, hx = leaf(T, SIZE["input_size"]), state_of(kind, 2, SIZE["hidden_size"])
    assert_near(outputs_and_gradients(accelerated(own), x, hx), outputs_and_gradients(own, x, hx), DEPTH)


@each_cell
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("given", [True, False])
def test_cells(kind: Any, batched: bool, bias: bool, given: bool) -> None:
    own = build(kind, bias=bias)
    x = leaf(*[B] * batched, SIZE["input_size"])
    hx = state_of(kind, *[B] * batched, SIZE["hidden_size"]) if given else None
    ours = accelerated(own)
    assert_near(outputs_and_gradients(ours, x, hx), outputs_and_gradients(own, x, hx), DEPTH)
    with torch.no_grad():
        assert_near(tensors_in(ours(x, hx)), tensors_in(own(x, hx)), DEPTH)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTMCell", {"peephole": True}),
        ("LSTMCell", {"coupled": True}),
        ("LSTMCell", {"peephole": True, "coupled": True}),
        ("GRUCell", {"reset_after": False}),
    ],
)
def test_cells_with_options_are_the_native_ones(kind: str, options: dict[str, bool]) -> None:
    module = getattr(ft, kind)(**SIZE, **options)
    native = getattr(fr, kind)(**SIZE, **options)
    native.load_parameters(module.state_dict())
    x = leaf(B, SIZE["input_size"], dtype=torch.float32)
    hx = state_of(type(module), B, SIZE["hidden_size"], dtype=torch.float32)
    found = module(x, hx)
    states = tuple(h.detach().numpy() for h in tensors_in(hx))
    expected, tape = native.forward(x.detach().numpy(), states if len(states) == 2 else states[0])
    assert all(np.array_equal(a.detach(), b) for a, b in zip(tensors_in(found), as_tuple(expected), strict=True))
    loss_of(tensors_in(found)).backward()
    dstate = tuple(torch.cos(torch.arange(h.numel()).double()).reshape(h.shape).float().numpy() for h in tensors_in(hx))
    grads = native.backward(tape, dstate if len(dstate) == 2 else dstate[0])
    assert np.array_equal(x.grad, grads.x)
    for name, parameter in module.named_parameters():
        assert np.array_equal(parameter.grad, grads.parameters[name])


@each_layer
@pytest.mark.parametrize("frozen", ["x", "weight_ih", "weight_hh", "bias", "all"])
def test_frozen_parameters(kind: Any, frozen: str) -> None:
    own = build(kind, num_layers=2, bidirectional=True)
    for name, parameter in own.named_parameters():
        parameter.requires_grad_(not (name.startswith(frozen) or frozen == "all"))
    x, hx = sequence(), state_of(kind, 4, B, SIZE["hidden_size"])
    x.requires_grad_(frozen != "x")
    ours = accelerated(own)
    found = outputs_and_gradients(ours, x, hx)
    assert_near(found, outputs_and_gradients(own, x, hx), DEPTH)
    assert all((p.grad is None) == (not p.requires_grad) for p in ours.parameters())


@each_layer
def test_strides_do_not_matter(kind: Any) -> None:
    module = accelerated(build(kind, num_layers=2, bidirectional=True))
    x = sequence().detach()
    wide = torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0].requires_grad_()
    turned = x.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    plain = outputs_and_gradients(module, x.requires_grad_())
    for other in (wide, turned):
        assert all(torch.equal(a, b) for a, b in zip(outputs_and_gradients(module, other), plain, strict=True))
    imaginary = torch.complex(x.detach(), x.detach()).conj().imag  # a view with its sign yet to be turned
    assert imaginary.is_neg()
    assert torch.equal(module(imaginary)[0], module(-x)[0])


@each_layer
def test_gradients_of_every_layout(kind: Any) -> None:
    """Expanded, transposed and missing gradients."""
    own = build(kind)
    ours, x = accelerated(own), sequence()
    losses = (
        lambda y, s: y.sum(),
        lambda y, s: (y.transpose(0, 2) * torch.arange(B).double()[:, None]).sum(),
        lambda y, s: sum(h.sum() for h in tensors_in(s)),
        lambda y, s: y[-1, :, ::2].sum(),
    )
    for loss in losses:
        pairs = []
        for module in (ours, own):
            found = torch.autograd.grad(loss(*module(x)), [x, *module.parameters()])
            pairs.append(found)
        assert_near(*pairs, DEPTH)


@each_layer
def test_what_is_returned_may_be_written_in_place(kind: Any) -> None:
    own = build(kind)
    x, found = sequence(), []
    for module in (accelerated(own), own):
        y, state = module(x)
        y = y.clone() if module is own else y.mul_(1)  # torch's LSTM on oneDNN refuses it; ours makes y again
        y.mul_(2).relu_()
        tensors_in(state)[0].add_(1)
        found.append(torch.autograd.grad(y.sum() + sum(h.sum() for h in tensors_in(state)), [x, *module.parameters()]))
    assert_near(*found, DEPTH)


@each_layer
def test_backward_runs_twice_to_the_same_bits(kind: Any) -> None:
    module = accelerated(build(kind, num_layers=2))
    x = sequence()
    loss = loss_of(tensors_in(module(x)))
    first = torch.autograd.grad(loss, [x, *module.parameters()], retain_graph=True)
    second = torch.autograd.grad(loss, [x, *module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@each_layer
def test_inputs_that_depend_on_each_other_have_second_derivatives(kind: Any) -> None:
    module = accelerated(build(kind))
    x = sequence()

    def run(x: Any) -> Any:
        h = x[0, :, :1].expand(1, B, SIZE["hidden_size"]).contiguous()
        return module(x, (h, h * 2) if kind is nn.LSTM else h)[0]

    assert torch.autograd.gradcheck(run, (x,), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x,), fast_mode=True)


@each_layer
def test_second_derivatives_with_lengths_and_resets(kind: Any) -> None:
    module = accelerated(build(kind, num_layers=2, bidirectional=True, batch_first=True))
    x, reset = sequence(True), torch.rand(B, T) < 0.3

    def run(x: Any) -> Any:
        return tuple(tensors_in(module(x, lengths=[6, 3, 0, 1], reset=reset)))

    assert torch.autograd.gradcheck(run, (x,), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x,), fast_mode=True)


@pytest.mark.parametrize(
    "case",
    [
        *small_cases(ragged=True, reset=True),
        *(c for c in small_cases(num_layers=2, directions=2) if c.cell in OPTIONAL_CELLS),
    ],
)
def test_calls_through_torchs_operations(case: Case, rng: np.random.Generator) -> None:
    """The way that calls take which the engine cannot: here under a dispatch mode."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Passing(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return function(*args, **(kwargs or {}))

    layer = make_layer(case)
    inputs = make_inputs(case, rng)
    inputs.dy = np.nan_to_num(inputs.dy)
    with Passing():
        found = run_module(case, module_of(case, layer), inputs)
    expected = run_library(layer, inputs)
    for a, b in zip(tensors_in([found.y, found.dx]), tensors_in([expected.y, expected.dx]), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=DEPTH * case.eps)
    for name, gradient in expected.parameters.items():
        np.testing.assert_allclose(found.parameters[name], gradient, rtol=0, atol=DEPTH * case.eps * 8)
    np.testing.assert_allclose(found.dx, expected.dx, rtol=0, atol=DEPTH * case.eps)


@each_option
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("given", [True, False])
def test_second_derivatives_of_cells_that_torch_lacks(cell: str, bias: bool, given: bool) -> None:
    module = build_option(cell, num_layers=2, bidirectional=True, bias=bias)
    options = {"lengths": [6, 3, 0, 1], "reset": torch.rand(T, B) < 0.3} if given else {}
    single = build_option(cell, single=True, bias=bias)
    for run, flat in (flattened(module, sequence(), **options), flattened(single, leaf(B, SIZE["input_size"]))):
        assert torch.autograd.gradcheck(run, (flat,), fast_mode=True)
        assert torch.autograd.gradgradcheck(run, (flat,), fast_mode=True)


@each_option
@pytest.mark.parametrize("form", ["layers", "batch_first", "ragged", "packed", "cell"])
def test_cells_that_torch_lacks_run_again_to_the_engines_gradients(cell: str, form: str) -> None:
    if form == "cell":
        module, x = build_option(cell, single=True), leaf(B, SIZE["input_size"])
        hx = state_of(type(module), B, SIZE["hidden_size"])
    else:
        module, x = build_option(cell, num_layers=2, bidirectional=True, batch_first=form == "batch_first"), sequence()
        hx = state_of(type(module), 4, T if form == "batch_first" else B, SIZE["hidden_size"])
    lengths = [4, 1, 6, 4]
    options = {"lengths": lengths, "reset": torch.rand(T, B) < 0.3} if form == "ragged" else {}
    given = pack_padded_sequence(x, lengths, enforce_sorted=False) if form == "packed" else x
    loss = loss_of(tensors_in(module(given, hx, **options))).sin()
    leaves = [x, *tensors_in(hx), *module.parameters()]
    expected = torch.autograd.grad(loss, leaves, retain_graph=True)
    found = torch.autograd.grad(loss, leaves, create_graph=True)
    assert all(t.requires_grad for t in found)
    assert_near(found, expected, DEPTH)


@each_option
@pytest.mark.parametrize("single", [True, False])
def test_cells_that_torch_lacks_under_torch_func(cell: str, single: bool) -> None:
    module = build_option(cell, single=single)
    x = (leaf(B, SIZE["input_size"]) if single else sequence()).detach()
    weights = {name: p.detach() for name, p in module.named_parameters()}

    def outputs(weights: Any, x: Any) -> Any:
        return tensors_in(torch.func.functional_call(module, weights, (x,)))

    def loss(weights: Any, x: Any) -> Any:
        return loss_of(outputs(weights, x))

    found = torch.func.grad(loss)(weights, x)
    loss_of(tensors_in(module(x))).backward()
    assert_near([found[name] for name in weights], [p.grad for p in module.parameters()], DEPTH)
    several = torch.stack([x, 2 * x, -x])
    samples = torch.func.vmap(outputs, (None, 0))(weights, several)
    apart = zip(*(outputs(weights, x) for x in several), strict=True)
    assert_near(samples, [torch.stack(parts) for parts in apart], DEPTH)
    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, several)
    assert_near([each[name][0] for name in weights], [found[name] for name in weights], DEPTH)
    step = 2.0**-20  # the error of central differences: step squared, and eps over step
    _, (tangent, *_) = torch.func.jvp(lambda x: outputs(weights, x), (x,), (torch.ones_like(x),))
    difference = (outputs(weights, x + step)[0] - outputs(weights, x - step)[0]) / (2 * step)
    assert float((tangent - difference).abs().max()) < 1e-8


@each_option
def test_cells_that_torch_lacks_drop_out_as_torchs_do(cell: str) -> None:
    """A call in torch's operations draws the masks that the engine's call draws."""
    module, x = build_option(cell, num_layers=3, dropout=0.5), sequence()
    torch.manual_seed(0)
    expected = module(x)[0]
    torch.manual_seed(0)
    (found,) = torch.func.vmap(lambda x: module(x)[0], randomness="same")(x[None])
    assert_near([found], [expected], DEPTH)


@each_option
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_dtypes_of_cells_that_torch_lacks(cell: str, low: Any) -> None:
    module = build_option(cell, dtype=torch.float32)
    x = torch.randn(T, B, SIZE["input_size"])
    expected = module(x)[0]
    for given in (x, x.to(low)):
        with torch.autocast("cpu", dtype=low):
            y = module(given)[0]
        # Computed in float32 from an input rounded once, and rounded at most once more.
        assert float((y.float() - expected).abs().max()) < 16 * torch.finfo(low).eps
    narrow = copy.deepcopy(module).to(low)
    assert narrow(x.to(low))[0].dtype == low
    with pytest.raises(RuntimeError, match="needs tensors of one dtype"):
        narrow(x)


@functools.cache
def onednn_has_the_lstm() -> bool:
    """Whether torch's own LSTM runs in bfloat16: oneDNN has none for processors without AVX-512."""
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            nn.LSTM(2, 2)(torch.zeros(1, 1, 2))
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [*LAYERS, *CELLS], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("narrow_input", [True, False])
def test_autocast_returns_torchs_dtypes(kind: Any, low: Any, narrow_input: bool) -> None:
    own = build(kind, dtype=torch.float32)
    x = torch.randn(*[T] * (kind in LAYERS), B, SIZE["input_size"], dtype=low if narrow_input else torch.float32)
    x.requires_grad_()
    ours = accelerated(own)
    try:
        with torch.autocast("cpu", dtype=low):
            theirs = tensors_in(own(x))
        dtypes = [t.dtype for t in theirs]
    except RuntimeError:
        if low == torch.float16:  # which is left to torch
            with torch.autocast("cpu", dtype=low), pytest.raises(RuntimeError):
                ours(x)
            return
        assert kind is nn.LSTM and not onednn_has_the_lstm()
        dtypes = [low] * 3
    with torch.autocast("cpu", dtype=low):
        found = tensors_in(ours(x))
    assert [t.dtype for t in found] == dtypes
    with torch.no_grad():
        exact = tensors_in(own(x.float()))
    # A cell is computed in float32 and rounded at most once; a layer, and torch's own, round operands of products.
    roundings = 1 if low == torch.bfloat16 and kind in (nn.LSTMCell, nn.GRUCell) else 16
    for a, b in zip(found, exact, strict=True):
        assert float((a.detach().float() - b).abs().max()) <= roundings * torch.finfo(low).eps
    loss_of(found).backward()
    assert x.grad.dtype == x.dtype and all(p.grad.dtype == torch.float32 for p in ours.parameters())


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("dtypes", [*itertools.product((torch.float32, torch.bfloat16), repeat=3)], ids=str)
def test_autocast_of_states_in_other_dtypes_than_the_input(kind: Any, dtypes: Any) -> None:
    own = build(kind, dtype=torch.float32)
    shape = [1] * (kind in LAYERS) + [B, SIZE["hidden_size"]]
    x = leaf(*[T] * (kind in LAYERS), B, SIZE["input_size"], dtype=dtypes[0])
    states = tuple(leaf(*shape, dtype=dtype) for dtype in dtypes[1:])
    hx = states if kind in (nn.LSTM, nn.LSTMCell) else states[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if kind is nn.LSTM and not onednn_has_the_lstm():
            expected = [torch.bfloat16] * 3
        else:
            expected = [t.dtype for t in tensors_in(own(x, hx))]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = tensors_in(accelerated(own)(x, hx))
    assert [t.dtype for t in found] == expected
    with torch.no_grad():
        exact = tensors_in(own(x.float(), tuple(s.float() for s in hx) if isinstance(hx, tuple) else hx.float()))
    for a, b in zip(found, exact, strict=True):
        # A cell is computed in float32 and rounded once; a layer in bfloat16, and an RNNCell, whose graph is torch's.
        roundings = 1 if kind in (nn.LSTMCell, nn.GRUCell) else 16
        assert float((a.detach().float() - b).abs().max()) <= roundings * torch.finfo(torch.bfloat16).eps
    loss_of(found).backward()
    assert x.grad.dtype == x.dtype and all(h.grad.dtype == h.dtype for h in tensors_in(hx))


@each_layer
def test_autocast_that_the_engine_does_not_take_warns_of_its_cause_once_for_each_class(kind: Any) -> None:
    dispatch._warned.discard((kind.__name__, "autocast to torch.bfloat16 of an input of torch.float16"))
    dispatch._warned.discard((kind.__name__, "autocast to torch.bfloat16 of a state of torch.float16"))
    x, h = torch.randn(T, B, SIZE["input_size"]), torch.zeros(1, B, SIZE["hidden_size"]).half()
    module = accelerated(build(kind, dtype=torch.float32))
    if kind is nn.LSTM and not onednn_has_the_lstm():
        pytest.skip("torch's own forward fails")
    for given, what in (((x.half(),), "an input"), ((x, (h, h) if kind is nn.LSTM else h), "a state")):
        expected = f"{kind.__name__} runs torch's own forward: autocast to torch.bfloat16 of {what} of torch.float16"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with pytest.warns(UserWarning, match=expected) as seen:
                module(*given)
            assert [w.filename for w in seen] == [__file__]  # the line that called the module
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                module(*given)


@pytest.mark.parametrize(
    ("kind", "rows", "units", "training"),
    [
        (nn.LSTM, 32, 256, True),
        (nn.LSTM, 1, 512, False),
        (nn.GRU, 64, 512, True),
        (nn.RNN, 64, 512, False),
        (nn.LSTMCell, 64, 512, True),
    ],
)
def test_autocast_on_a_cpu_with_matrix_units_is_torchs_from_a_size_on(
    kind: Any, rows: int, units: int, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told by the bits: the engine rounds at other places than torch."""
    if kind is nn.LSTM and not onednn_has_the_lstm():
        pytest.skip("torch's own forward fails")
    for there in (True, False):
        monkeypatch.setattr(autocast, "has_amx", lambda there=there: there)
        for size in (rows, rows // 2):
            own = kind(8, units)
            x = torch.randn(*[2] * (kind in LAYERS), max(size, 1), 8)
            modes = torch.autocast("cpu", dtype=torch.bfloat16), torch.set_grad_enabled(training)
            with modes[0], modes[1], warnings.catch_warnings():
                warnings.simplefilter("error")
                found, expected = tensors_in(accelerated(own)(x)), tensors_in(own(x))
            if there and size == rows:
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
            elif size:
                assert not all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@each_layer
def test_checkpointing(kind: Any) -> None:
    module = accelerated(build(kind, num_layers=2, dropout=0.5))
    x = sequence()

    class Checkpointed(nn.Module):
        def __init__(self, reentrant: bool) -> None:
            super().__init__()
            self.module, self.reentrant = module, reentrant

        def forward(self, x: Any) -> Any:
            # The reentrant kind differentiates no tuple within a tuple.
            return checkpoint(lambda x: self.module(x)[0], x, use_reentrant=self.reentrant)

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: Any) -> Any:
            return self.module(x)[0]

    plain = outputs_and_gradients(Plain(), x)
    for reentrant in (False, True):
        found = outputs_and_gradients(Checkpointed(reentrant), x)
        assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


@each_layer
def test_saved_tensor_hooks(kind: Any) -> None:
    module = accelerated(build(kind, bidirectional=True))
    x = sequence().detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    plain = outputs_and_gradients(module, x)
    with torch.autograd.graph.save_on_cpu():
        assert all(torch.equal(a, b) for a, b in zip(outputs_and_gradients(module, x), plain, strict=True))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t.reshape(-1)[:1]):
        loss = module(x)[0].sum()
    with pytest.raises(RuntimeError, match="saved-tensor hook"):
        loss.backward()


@each_layer
def test_transforms_of_torch_func(kind: Any) -> None:
    own = build(kind)
    ours, x = accelerated(own), sequence().detach()
    weights = dict(own.named_parameters())

    def loss(module: Any) -> Any:
        return lambda w: torch.func.functional_call(module, w, (x,))[0].sin().sum()

    found, expected = (torch.func.grad(loss(m))(weights) for m in (ours, own))
    assert_near(list(found.values()), list(expected.values()), DEPTH)
    tangent = torch.ones_like(x)
    (_, found), (_, expected) = (torch.func.jvp(lambda x, m=m: m(x)[0], (x,), (tangent,)) for m in (ours, own))
    assert_near([found], [expected], DEPTH)


@each_layer
def test_parameters_that_are_computed(kind: Any) -> None:
    """Pruning, parametrizations and functional_call put other tensors where the parameters were."""

    class Doubled(nn.Module):
        def forward(self, w: Any) -> Any:
            return 2 * w.T.contiguous().T

    own = build(kind)
    ours, x = accelerated(own), sequence()
    for module in (own, ours):
        prune.l1_unstructured(module, "weight_ih_l0", 0.5)
        parametrize.register_parametrization(module, "weight_hh_l0", Doubled())
    assert ft.why_not(ours) is None
    assert_near(outputs_and_gradients(ours, x), outputs_and_gradients(own, x), DEPTH)
    other = {name: p.detach() + 1 for name, p in build(kind).named_parameters()}
    plain, fast = build(kind), accelerated(build(kind))
    found, expected = (torch.func.functional_call(m, other, (x,))[0] for m in (fast, plain))
    assert_near([found], [expected], DEPTH)


class PackedTagger(nn.Module):
    """A tagger over packed sentences."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 5)
        self.recurrent = nn.LSTM(5, 7, 2, bidirectional=True, batch_first=True, dropout=0.2)
        self.readout = nn.Linear(14, 3)

    def forward(self) -> Any:
        codes, lengths = torch.randint(11, (B, T)), torch.tensor([4, 6, 1, 3])
        packed = pack_padded_sequence(self.embedding(codes), lengths, batch_first=True, enforce_sorted=False)
        return self.readout(pad_packed_sequence(self.recurrent(packed)[0], batch_first=True)[0]).logsumexp(-1).mean()


class Translator(nn.Module):
    """An encoder, and a decoder step by step from its state."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.GRU(5, 7), nn.GRUCell(7, 7)

    def forward(self) -> Any:
        _, h = self.encoder(torch.randn(T, B, 5))
        h, losses = h[0], []
        for _ in range(T):
            h = self.decoder(torch.tanh(h), h)
            losses.append(h.square().mean())
        return torch.stack(losses).mean()


class Actor(nn.Module):
    """Convolution, then a recurrent policy whose state is masked where an episode ends."""

    def __init__(self) -> None:
        super().__init__()
        self.eye, self.memory = nn.Conv1d(2, 5, 3, padding=1), nn.LSTMCell(5, 7)
        self.tail = nn.RNN(7, 7, nonlinearity="relu")

    def forward(self) -> Any:
        frames, done = torch.randn(B, 2, T), torch.rand(T, B, 1) < 0.3
        seen, outputs = self.eye(frames).permute(2, 0, 1), []
        h = c = torch.zeros(B, 7)
        for t in range(T):
            h, c = self.memory(seen[t], (h.masked_fill(done[t], 0), c.masked_fill(done[t], 0)))
            outputs.append(h)
        return self.tail(torch.stack(outputs))[0].square().mean()


@pytest.mark.parametrize("kind", [PackedTagger, Translator, Actor], ids=lambda kind: kind.__name__)
def test_models_train_to_the_same_numbers(kind: Any) -> None:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        own, losses = kind(), []
        for model in (accelerated(own), own):
            torch.manual_seed(1)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            for _ in range(5):
                optimizer.zero_grad()
                loss = model()
                loss.backward()
                optimizer.step()
            losses.append([loss.detach(), *(p.detach() for p in model.parameters())])
        assert_near(*losses, 5 * DEPTH)
    finally:
        torch.set_default_dtype(torch.float32)


def test_accelerate_reports_and_restores() -> None:
    class Mine(nn.LSTM):
        pass

    shared = nn.GRU(3, 4)
    model = nn.ModuleDict(
        {
            "a": nn.LSTM(3, 4, 2, dropout=0.1),
            "b": nn.Sequential(shared, nn.GRUCell(3, 4)),
            "again": shared,
            "mine": Mine(3, 4),
            "projected": nn.LSTM(3, 4, proj_size=2),
            "narrow": nn.RNN(3, 4, dtype=torch.float16),
            "odd": nn.RNNCell(3, 4, nonlinearity="cube"),
            "linear": nn.Linear(3, 4),
        }
    )
    before = {name: type(m) for name, m in model.named_modules()}
    ids = [id(p) for p in model.parameters()]
    keys = list(model.state_dict())
    seen: list[Any] = []
    shared.register_forward_hook(lambda module, args, out: seen.append(module))
    swap = ft.accelerate(model)
    assert set(swap.swapped) == {"a", "b.0", "b.1"} and model["again"] is model["b"][0]
    assert set(swap.left) == {"mine", "projected", "narrow", "odd"}
    for name, text in {
        "mine": "subclass",
        "projected": "proj_size",
        "narrow": "float16",
        "odd": "nonlinearity",
    }.items():
        assert text in swap.left[name] and swap.left[name] == ft.why_not(model[name]) and name in str(swap)
    assert [id(p) for p in model.parameters()] == ids and list(model.state_dict()) == keys
    assert ft.why_not(model["a"]) is None and "Linear" in str(ft.why_not(model["linear"]))
    model["b"][0](torch.randn(2, 1, 3))
    assert seen == [shared]
    assert not ft.accelerate(model).swapped
    assert set(ft.restore(model).swapped) == {"a", "b.0", "b.1"}
    assert {name: type(m) for name, m in model.named_modules()} == before
    for function in (ft.accelerate, ft.restore, ft.why_not):
        with pytest.raises(TypeError, match="Module"):
            function("model")
    peephole = ft.LSTM(3, 4, peephole=True)
    assert ft.restore(peephole).left == {"": "torch has no module with peephole"}


def test_what_the_engine_does_not_take_runs_torchs_own_and_says_so_once() -> None:
    dispatch._warned.clear()
    module = accelerated(nn.LSTM(3, 4))
    x = torch.randn(5, 2, 3)
    with pytest.warns(UserWarning, match="torch's own forward.*trac"):
        traced = torch.jit.trace(module, (x,))
    assert_near([traced(x)[0]], [module(x)[0]], DEPTH)
    module = accelerated(nn.GRU(3, 4)).half()
    with pytest.warns(UserWarning, match="float16"):
        assert module(x.half())[0].dtype == torch.float16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(x.half())
    assert "float16" in str(ft.why_not(module))
    meta = ft.LSTM(3, 4, device="meta")
    assert "meta" in str(ft.why_not(meta)) and meta(x.to("meta"))[0].shape == (5, 2, 4)


def test_options_run_elsewhere_too_and_say_so_once() -> None:
    dispatch._warned.clear()
    module = ft.GRU(3, 4, reset_after=False)
    x = torch.randn(5, 2, 3)
    expected, _ = module(x)
    with pytest.warns(UserWarning, match="step by step in torch's operations.*trac"):
        traced = torch.jit.trace(module, (x,))
    assert_near([traced(x)[0]], [expected], DEPTH)
    with pytest.warns(UserWarning, match="step by step in torch's operations.* torch.float16"):
        copy.deepcopy(module).half()(x.half())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copy.deepcopy(module).half()(x.half(), lengths=[5, 3])
    meta = ft.LSTM(3, 4, peephole=True, device="meta")
    assert "meta" in str(ft.why_not(meta)) and meta(x.to("meta"))[0].shape == (5, 2, 4)
    for sizes in ([2, 1], [1, 2], [2, 2]):
        with pytest.raises(RuntimeError, match="batch_sizes"):
            module(PackedSequence(x[0, :1].expand(3, 3) if sizes == [1, 2] else x[:, 0], torch.tensor(sizes)))


def test_errors_of_options() -> None:
    module = ft.GRU(3, 4, reset_after=False)
    with pytest.raises(TypeError, match="reset_after"):
        ft.GRU(3, 4, reset_after=1)
    with pytest.raises(ValueError, match="proj_size"):
        ft.LSTM(3, 4, proj_size=2, coupled=True)
    assert repr(ft.LSTM(3, 4, peephole=True)) == "LSTM(3, 4, peephole=True)"
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert repr(other) == repr(module)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"lengths": [1.0, 2.0]}, TypeError, "lengths must be integers"),
        ({"lengths": "ab"}, TypeError, "lengths must be integers"),
        ({"lengths": [1, 2, 3]}, ValueError, r"lengths must have shape \(2,\)"),
        ({"lengths": [1, 6]}, ValueError, r"lengths must lie in \[0, 5\]"),
        ({"lengths": [-1, 5]}, ValueError, r"lengths must lie in \[0, 5\]"),
        ({"reset": np.zeros((5, 2), bool)}, TypeError, "reset must be a tensor of bool"),
        ({"reset": torch.zeros(5, 2)}, TypeError, "reset must be a tensor of bool"),
        ({"reset": torch.zeros(2, 5, dtype=torch.bool)}, ValueError, r"reset must have shape \(5, 2\)"),
    ],
)
def test_errors_of_lengths_and_reset(options: dict[str, Any], error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        ft.LSTM(3, 4)(torch.randn(5, 2, 3), **options)
    with pytest.raises(ValueError, match="PackedSequence"):
        ft.LSTM(3, 4)(pack_padded_sequence(torch.randn(5, 2, 3), [5, 2]), lengths=[5, 2])
    with pytest.raises(ValueError, match="unbatched"):
        ft.LSTM(3, 4)(torch.randn(5, 3), lengths=[5])


def test_weights_of_wrong_shape_or_without_memory_crash_nothing() -> None:
    module = ft.GRU(3, 4)
    module.weight_hh_l0 = nn.Parameter(torch.randn(2, 2))
    with pytest.raises(RuntimeError):
        module(torch.randn(5, 2, 3))
    module = ft.LSTM(3, 4, coupled=True)
    module.bias_hh_l0 = nn.Parameter(torch.randn(2))
    with pytest.raises(RuntimeError, match="shapes"):
        module(torch.randn(5, 2, 3))
    module = ft.GRU(3, 4)
    module.weight_hh_l0.untyped_storage().resize_(0)
    with pytest.raises((RuntimeError, ValueError)):
        module(torch.randn(5, 2, 3))


@each_layer
def test_a_packing_of_other_rows_than_its_data_is_torchs(kind: Any) -> None:
    own = build(kind)
    ours = accelerated(own)
    sizes, short = torch.tensor([400_000, 400_000]), torch.randn(3, SIZE["input_size"], dtype=torch.float64)
    for module in (own, ours):
        with pytest.raises(RuntimeError):
            module(PackedSequence(short, sizes))
    long, sizes = torch.randn(30, SIZE["input_size"], dtype=torch.float64), torch.tensor([4, 4])
    found, expected = (m(PackedSequence(long, sizes))[0].data for m in (ours, own))
    assert_near([found], [expected], DEPTH)


@each_layer
@pytest.mark.parametrize("what", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "x", "h"])
def test_tensors_that_change_without_a_version_crash_nothing(kind: Any, what: str) -> None:
    def run() -> Any:
        module = accelerated(kind(64, 64))
        given = {"x": torch.randn(T, B, 64), "h": torch.randn(1, B, 64)}
        y, _ = module(given["x"], (given["h"], given["h"].clone()) if kind is nn.LSTM else given["h"])
        tensor = given[what] if what in given else module.get_parameter(what)
        return module, tensor, lambda: y.backward(y.detach())

    for data in (torch.zeros(1), torch.zeros(1, 1, 1)):
        _, tensor, backward = run()
        tensor.data = data
        with pytest.raises(RuntimeError, match="another shape, dtype or device"):
            backward()
    _, tensor, backward = run()
    tensor.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="has been freed"):
        backward()
    for other in (torch.half, torch.float64):
        module, _, backward = run()
        module.to(other)
        with pytest.raises(RuntimeError, match="another shape, dtype or device"):
            backward()


# nn.RNNCell's graph is torch's own, which reads what is there.
@pytest.mark.parametrize("kind", [*LAYERS, nn.LSTMCell, nn.GRUCell], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("size", [0, 8])
def test_tensors_without_all_of_their_memory_are_an_error(kind: Any, size: int) -> None:
    assert_memory_is_looked_after(kind, size)


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS], ids=lambda kind: kind.__name__)
def test_inference_mode_records_nothing_where_gradients_are_enabled_in_it(kind: Any) -> None:
    own = build(kind)
    module, x = accelerated(own), torch.randn(*[T] * (kind in LAYERS), B, SIZE["input_size"], dtype=torch.float64)
    with torch.inference_mode(), torch.enable_grad():
        found, expected = tensors_in(module(x)), tensors_in(own(x))
    for a, b in zip(found, expected, strict=True):
        assert a.is_inference() and not a.requires_grad
        torch.testing.assert_close(a, b)


def test_an_elman_cells_graph_is_torchs_own() -> None:
    """Where none is recorded the engine runs it, whose output has the native cell's bits."""
    own = nn.RNNCell(5, 7)
    module, native = accelerated(own), fr.RNNCell(5, 7)
    native.load_parameters(own.state_dict())
    x, h = torch.randn(4, 5, requires_grad=True), torch.randn(4, 7)
    assert type(module(x, h).grad_fn) is type(own(x, h).grad_fn)
    assert torch.equal(module(x, h), own(x, h))
    with torch.no_grad():
        found = module(x, h)
    assert found.grad_fn is None
    assert np.array_equal(found.numpy(), native(x.detach().numpy(), h.numpy()))


def test_a_parameter_at_the_end_of_a_larger_storage() -> None:
    module = accelerated(build(nn.GRU))
    flat = torch.randn(100 + module.bias_hh_l0.numel(), dtype=torch.float64)
    module.bias_hh_l0.data = flat[100:]
    module(sequence())
    flat.untyped_storage().resize_(8 * (len(flat) - 1))
    with pytest.raises(RuntimeError, match="the memory of bias_hh_l0"):
        module(sequence())


def test_layers_with_dropout_name_the_parameter_without_memory() -> None:
    module = accelerated(build(nn.GRU, num_layers=2, dropout=0.5))
    module.weight_hh_l1.untyped_storage().resize_(8)
    with pytest.raises(RuntimeError, match="the memory of weight_hh_l1"):
        module(sequence())


@each_layer
def test_lengths_and_resets_may_be_written_after_the_call(kind: Any) -> None:
    assert_options_are_copied(kind)


@each_layer
def test_a_torch_without_dlpacks_exchange_functions(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fusedrnn.torch import config

    module, x = accelerated(build(kind, num_layers=2, bidirectional=True)), sequence()
    expected = outputs_and_gradients(module, x)
    monkeypatch.setattr(config, "TENSORS", config._core.Tensors(torch, None))
    config._cached_config.cache_clear()
    assert all(torch.equal(a, b) for a, b in zip(outputs_and_gradients(module, x), expected, strict=True))
    with pytest.raises(ValueError, match="dtype"):
        module(x.float())
    config._cached_config.cache_clear()


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS], ids=lambda kind: kind.__name__)
def test_batches_of_gradients(kind: Any) -> None:
    own = build(kind)
    x = leaf(*[T] * (kind in LAYERS), B, SIZE["input_size"])
    pairs = []
    for module in (accelerated(own), own):
        y = tensors_in(module(x))[0]
        gradients = torch.cos(torch.arange(3 * y.numel()).double()).reshape(3, *y.shape)
        pairs.append(torch.autograd.grad(y, [x, *module.parameters()], gradients, is_grads_batched=True))
    assert_near(*pairs, DEPTH)


@each_option
@pytest.mark.parametrize("single", [True, False])
def test_batches_of_gradients_of_cells_that_torch_lacks(cell: str, single: bool) -> None:
    module = build_option(cell, single=single)
    x = leaf(B, SIZE["input_size"]) if single else sequence()
    y, leaves = tensors_in(module(x))[0], [x, *module.parameters()]
    gradients = torch.cos(torch.arange(3 * y.numel()).double()).reshape(3, *y.shape)
    found = torch.autograd.grad(y, leaves, gradients, is_grads_batched=True, retain_graph=True)
    apart = [torch.autograd.grad(y, leaves, gradient, retain_graph=True) for gradient in gradients]
    assert_near(found, [torch.stack(parts) for parts in zip(*apart, strict=True)], DEPTH)


@each_cell
@pytest.mark.parametrize("sizes", [(0, 4), (3, 0)])
def test_cells_of_size_zero(kind: Any, sizes: tuple[int, int]) -> None:
    own = kind(*sizes)
    x = leaf(B, sizes[0], dtype=torch.float32)
    assert_near(outputs_and_gradients(accelerated(own), x), outputs_and_gradients(own, x), DEPTH)


def test_symbolic_traces_call_the_module() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.cell = nn.LSTM(3, 4), nn.GRUCell(4, 4)

        def forward(self, x: Any) -> Any:
            y, (h, _) = self.layer(x)
            return self.cell(y[0], h[0])

    model, x = accelerated(Model()), torch.randn(T, B, 3)
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(x), model(x)) and type(traced.layer) is ft.LSTM


@pytest.mark.parametrize("batch", [0, 1])
@each_layer
def test_an_empty_batch(kind: Any, batch: int) -> None:
    own = build(kind)
    x = leaf(T, batch, SIZE["input_size"])
    assert_near(outputs_and_gradients(accelerated(own), x), outputs_and_gradients(own, x), DEPTH)


def test_torchs_thread_setting_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    from fusedrnn.torch import engine

    asked = []
    real = torch.get_num_threads
    monkeypatch.setattr(engine.torch, "get_num_threads", lambda: asked.append(real()) or asked[-1])
    before = real()
    try:
        module, results = accelerated(nn.LSTM(40, 40)), []
        x = torch.randn(9, 6, 40, requires_grad=True)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(outputs_and_gradients(module, x))
        assert asked == [1, 1, 2, 2, 3, 3]
        assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
@pytest.mark.parametrize("imports", ["import fusedrnn.torch", "import fusedrnn, torch", "import torch, fusedrnn"])
def test_there_is_one_openmp_runtime(imports: str) -> None:
    code = f"""{imports}
import re
found = set(re.findall(r"\\S*/lib(?:gomp|omp|iomp5)[^/\\s]*", open("/proc/self/maps").read()))
assert len(found) == 1, found
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_imports_torch_only_when_asked() -> None:
    code = "import sys, fusedrnn; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def _stands_for_another(of: Any) -> Any:
    return torch._to_functional_tensor(of)


@pytest.mark.parametrize("make", [lambda of: torch._efficientzerotensor(of.shape), _stands_for_another])
def test_tensors_without_memory_are_an_error(make: Any) -> None:
    layer, x = ft.LSTM(5, 8), torch.randn(6, 3, 5)
    h = torch.randn(1, 3, 8)
    for call in (lambda: layer(make(x)), lambda: layer(x, (make(h), make(h)))):
        with pytest.raises(RuntimeError, match=r"fusedrnn\.torch: "):
            call()


@pytest.mark.parametrize("change", [torch.Tensor.half, torch.Tensor.double, lambda t: torch.empty(1), lambda t: None])
def test_tensors_that_a_mode_makes_are_checked(change: Any) -> None:
    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = function(*args, **(kwargs or {}))
            return change(made) if function is torch.Tensor.new_empty else made

    with Mode(), pytest.raises(TypeError, match="torch made another tensor"):
        ft.LSTM(5, 8)(torch.randn(6, 3, 5))


def test_a_tape_may_come_back_less_aligned() -> None:
    layer, x = ft.GRU(5, 8), torch.randn(6, 3, 5)
    layer(x)[0].sum().backward()
    expected = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()

    def packed(t: Any) -> Any:
        storage = torch.empty(t.numel() + 16, dtype=t.dtype)
        moved = storage[(4 - storage.data_ptr() // 4) % 16 :][: t.numel()].view(t.shape)
        return moved.copy_(t.detach())

    with torch.autograd.graph.saved_tensors_hooks(packed, lambda t: t):
        y = layer(x)[0]
    y.sum().backward()
    assert all(torch.equal(p.grad, e) for p, e in zip(layer.parameters(), expected, strict=True))


def test_gradients_have_no_forward_mode_derivative() -> None:
    layer = ft.LSTM(5, 8)
    y = layer(torch.randn(6, 3, 5))[0]
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(torch.ones_like(y), torch.ones_like(y))
        with pytest.raises(NotImplementedError, match="forward-mode"):
            torch.autograd.grad(y, list(layer.parameters()), dual)


def test_the_operator_has_no_second_derivative() -> None:
    weights = [torch.randn(32, 5, requires_grad=True), torch.randn(32, 8, requires_grad=True)]
    x = torch.randn(6, 3, 5, requires_grad=True)
    y = torch.ops.fusedrnn.layers(x, None, None, weights, None, None, "lstm", 1, False, False, "time", True)[0]
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(y.square().sum(), x, create_graph=True)

"""fusedrnn.torch in bfloat16 on the CPU: the native layers' bits, torch's dtypes, and errors no larger than torch's."""

from __future__ import annotations

import copy
import itertools
import warnings
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from bitwise import assert_same
from cases import BFLOAT16_CASES, Case, make_inputs, make_layer
from cases import LAYERS as NATIVE
from oracles import Result, as_tuple, map_result, run_library

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence  # noqa: E402
from torch_support import (  # noqa: E402
    CELLS,
    LAYERS,
    SIZE,
    accelerated,
    leaf,
    outputs_and_gradients,
    state_of,
    tensors_in,
)

import fusedrnn.torch as ft  # noqa: E402
from fusedrnn.torch import autocast  # noqa: E402

T, B = 6, 4
LOW = torch.bfloat16
pytestmark = pytest.mark.filterwarnings("error:fusedrnn.torch")  # nothing may run torch's own forward

each_layer = pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.__name__)


@pytest.fixture(autouse=True)
def without_matrix_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autocast, "has_amx", lambda: False)


def tensor_of(array: np.ndarray) -> Any:
    """A tensor of an array's dtype, or of bfloat16's from ml_dtypes."""
    if array.dtype.name != "bfloat16":
        return torch.from_numpy(array.copy())
    return torch.from_numpy(array.view(np.int16).copy()).view(LOW)


def array_of(tensor: Any) -> np.ndarray:
    tensor = tensor.detach()
    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if tensor.dtype == LOW else tensor.numpy()


def rounded_state(state: Any) -> Any:
    """A state whose c has what bfloat16 holds alone, as torch's has."""
    if not isinstance(state, tuple):
        return state
    return state[0], state[1].astype(ml_dtypes.bfloat16).astype(np.float32)


def module_of(case: Case, layer: Any) -> Any:
    name, options = NATIVE[case.cell]
    options = {**options, "bidirectional": case.directions == 2, "dtype": LOW}
    module = getattr(ft, name)(case.input_size, case.hidden_size, case.num_layers, **options)
    module.load_state_dict({name: tensor_of(value) for name, value in layer.parameters.items()})
    return module


@pytest.mark.parametrize("case", [case for case in BFLOAT16_CASES if not (case.clip or case.reverse)])
def test_is_the_native_layer_bit_by_bit(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    inputs.state, inputs.dstate = rounded_state(inputs.state), rounded_state(inputs.dstate)
    expected = run_library(layer, inputs)
    module = module_of(case, layer)
    assert ft.why_not(module) is None
    x = tensor_of(inputs.x).requires_grad_()
    states = [tensor_of(s).to(LOW).requires_grad_() for s in as_tuple(inputs.state)]
    options = {name: None if a is None else torch.from_numpy(a) for name, a in inputs.sequence_options().items()}
    y, final = module(x, tuple(states) if case.two_states else states[0], **options)
    gradients = [tensor_of(inputs.dy), *(tensor_of(d).to(LOW) for d in as_tuple(inputs.dstate))]
    torch.autograd.backward([y, *tensors_in(final)], gradients)
    parameters = {name: array_of(module.get_parameter(name).grad) for name in expected.parameters}
    final, dstate = [array_of(s) for s in tensors_in(final)], [array_of(s.grad) for s in states]
    found = Result(array_of(y), tuple(final), array_of(x.grad), tuple(dstate), parameters)
    bits = map_result(lambda a: a.astype(ml_dtypes.bfloat16), expected)
    assert_same(found, bits._replace(state=as_tuple(bits.state), dstate=as_tuple(bits.dstate)))


def relative_error(found: Any, exact: Any) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("under_autocast", [False, True])
@pytest.mark.parametrize(("rows", "units"), [(17, 64), (8, 129), (1, 33)])
@each_layer
def test_errors_are_no_larger_than_torchs(kind: Any, rows: int, units: int, under_autocast: bool) -> None:
    """Root mean squares over whole arrays, each against float64; dtypes are torch's."""
    torch.manual_seed(units)
    own = kind(17, units, 2, dtype=None if under_autocast else LOW)
    if under_autocast:  # what autocast rounds on its way in is no error of either
        for parameter in own.parameters():
            parameter.data = parameter.data.to(LOW).float()
    x = torch.randn(30, rows, 17).to(LOW).to(own.weight_ih_l0.dtype).requires_grad_()
    with torch.autocast("cpu", LOW, enabled=under_autocast):
        ours, theirs = (outputs_and_gradients(module, x) for module in (accelerated(own), own))
    exact = outputs_and_gradients(copy.deepcopy(own).double(), x.detach().double().requires_grad_())
    assert [t.dtype for t in ours] == [t.dtype for t in theirs]
    for number, (a, b, c) in enumerate(zip(ours, theirs, exact, strict=True)):
        # Two samples of errors of as many elements differ by chance, and ours by a tenth at most.
        assert relative_error(a, c) <= 1.1 * relative_error(b, c), number


@each_layer
@pytest.mark.parametrize("sort", [True, False])
@pytest.mark.parametrize("under_autocast", [False, True])
def test_packed_and_padded_have_the_same_bits(kind: Any, sort: bool, under_autocast: bool) -> None:
    module = accelerated(kind(**SIZE, num_layers=2, bidirectional=True, dtype=None if under_autocast else LOW))
    lengths = [6, 4, 4, 1] if sort else [4, 1, 6, 4]
    x = torch.randn(T, B, SIZE["input_size"], dtype=module.weight_ih_l0.dtype)
    with torch.autocast("cpu", LOW, enabled=under_autocast):
        padded, state = module(x, lengths=lengths)
        packed, packed_state = module(pack_padded_sequence(x, lengths, enforce_sorted=sort))
    assert torch.equal(padded, pad_packed_sequence(packed)[0])
    assert all(torch.equal(a, b) for a, b in zip(tensors_in(state), tensors_in(packed_state), strict=True))


@pytest.mark.parametrize("batch", [None, 1, 5])
@pytest.mark.parametrize("kind", CELLS, ids=lambda kind: kind.__name__)
def test_cells(kind: Any, batch: int | None) -> None:
    torch.manual_seed(0)
    own = kind(17, 33, dtype=LOW)
    shape = [] if batch is None else [batch]
    x, hx = leaf(*shape, 17, dtype=LOW), state_of(kind, *shape, 33, dtype=LOW)
    results = [outputs_and_gradients(module, x, hx) for module in (accelerated(own), own)]
    exact_state = tuple(h.detach().double().requires_grad_() for h in tensors_in(hx))
    exact = outputs_and_gradients(
        copy.deepcopy(own).double(),
        x.detach().double().requires_grad_(),
        exact_state if len(exact_state) == 2 else exact_state[0],
    )
    for ours, theirs, right in zip(*results, exact, strict=True):
        assert ours.dtype == theirs.dtype == LOW and ours.shape == theirs.shape
        # A pre-activation's and a gate gradient's rounding, and that of the result: each of eps of what it goes into.
        scale = max(1.0, float(right.abs().max()))
        assert float((ours.double() - right).abs().max()) <= 2 * torch.finfo(LOW).eps * scale
    with torch.no_grad():
        fast = accelerated(own)
        assert all(torch.equal(a, b) for a, b in zip(tensors_in(fast(x, hx)), tensors_in(fast(x, hx)), strict=True))


@each_layer
def test_inference_and_training_have_the_same_bits(kind: Any) -> None:
    module = accelerated(kind(**SIZE, num_layers=2, bidirectional=True, dtype=LOW)).eval()
    for steps, rows in itertools.product((1, 6), (1, 4, 40)):
        x = torch.randn(steps, rows, SIZE["input_size"], dtype=LOW)
        expected = tensors_in(module(x))
        with torch.inference_mode():
            for _ in range(3):  # from the parameters, and from packed ones that are kept
                assert all(torch.equal(a, b) for a, b in zip(tensors_in(module(x)), expected, strict=True))


@pytest.mark.parametrize("write", ["version", "data", "load", "numpy"])
@each_layer
def test_copies_that_autocast_keeps_follow_the_parameters(kind: Any, write: str) -> None:
    module = accelerated(kind(**SIZE, num_layers=2)).eval()
    x = torch.randn(3, 2, SIZE["input_size"])

    def run() -> Any:
        with torch.autocast("cpu", LOW):
            with torch.inference_mode():
                kept = [module(x)[0] for _ in range(3)]
            fresh = module(x)[0].detach()
        assert all(torch.equal(y, fresh) for y in kept)
        return fresh

    before = run()
    parameter = module.weight_hh_l1
    if write == "version":
        with torch.no_grad():
            parameter[2, 3] += 1
    elif write == "data":
        parameter.data.mul_(2)
    elif write == "load":
        module.load_state_dict({name: 2 * value for name, value in module.state_dict().items()})
    else:
        parameter.detach().numpy()[...] *= 2
    assert not torch.equal(run(), before)


@each_layer
def test_weights_have_no_gradient_where_no_row_runs(kind: Any) -> None:
    module = accelerated(kind(**SIZE, dtype=LOW))
    module(torch.zeros(3, 0, SIZE["input_size"], dtype=LOW))[0].sum().backward()
    assert not any(p.grad.any() for p in module.parameters())


@each_layer
def test_a_second_derivative(kind: Any) -> None:
    module = accelerated(kind(**SIZE, dtype=LOW))
    x = leaf(T, B, SIZE["input_size"], dtype=LOW)
    (dx,) = torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
    (again,) = torch.autograd.grad(dx.sum(), x)
    assert again.dtype == LOW and torch.isfinite(again).all()


def test_a_saved_tape_of_another_alignment_and_strides_do_not_matter() -> None:
    module = accelerated(nn.LSTM(**SIZE, dtype=LOW))
    x = torch.randn(T, B, SIZE["input_size"], dtype=LOW)
    plain = outputs_and_gradients(module, x.clone().requires_grad_())
    wide = torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0].requires_grad_()
    found = outputs_and_gradients(module, wide)

    def moved(tensor: Any) -> Any:
        return torch.empty(tensor.numel() + 1, dtype=LOW)[1:].copy_(tensor.flatten()).view(tensor.shape)

    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, moved):
        again = outputs_and_gradients(module, x.clone().requires_grad_())
    for other in (found, again):
        assert all(torch.equal(a, b) for a, b in zip(other, plain, strict=True))


def test_a_compiled_module_has_the_same_bits() -> None:
    module = accelerated(nn.LSTM(**SIZE, num_layers=2, dtype=LOW))
    x = torch.randn(T, B, SIZE["input_size"], dtype=LOW)
    plain = outputs_and_gradients(module, x.clone().requires_grad_())
    compiled: Any = torch.compile(module, backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found = outputs_and_gradients(compiled, x.clone().requires_grad_())
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))

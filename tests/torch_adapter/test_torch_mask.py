"""fusedrnn.torch: a mask of skipped steps on every way that a call can take."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from bitwise import assert_same
from cases import Case, make_inputs, make_layer
from masked_cases import SHORT
from oracles import run_library

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence  # noqa: E402
from torch_devices import on_the_host, require_gpu  # noqa: E402
from torch_support import (  # noqa: E402
    SIZE,
    Tagger,
    accelerated,
    assert_near,
    leaf,
    module_of,
    outputs_and_gradients,
    run_module,
    tensors_in,
)

import fusedrnn.torch as ft  # noqa: E402

T, B = 6, 4
CASES = [dataclasses.replace(case, clip=None, reverse=False) for case in SHORT]
EXACT = [dataclasses.replace(case, dtype="float64") for case in CASES[1::5]]  # no TF32
DEPTH = 1024  # roundings in a row: 6 steps, 2 layers, products of 14 terms, twice
pytestmark = pytest.mark.filterwarnings("ignore:fusedrnn.torch")


def modules() -> list[Any]:
    """A layer of every class, and of a cell that torch lacks."""
    options: dict[str, Any] = {**SIZE, "num_layers": 2, "bidirectional": True, "dtype": torch.float64}
    kinds = [(ft.RNN, {}), (ft.LSTM, {}), (ft.GRU, {}), (ft.LSTM, {"peephole": True}), (ft.GRU, {"reset_after": False})]
    return [kind(**options, **own) for kind, own in kinds]


each_module = pytest.mark.parametrize("number", range(5))


def options() -> dict[str, Any]:
    torch.manual_seed(0)
    return {"lengths": [6, 3, 0, 5], "reset": torch.rand(T, B) < 0.3, "mask": torch.rand(T, B) < 0.6}


@pytest.mark.parametrize("case", CASES)
def test_the_same_bits_as_the_native_layer(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    inputs.dy = np.nan_to_num(inputs.dy)  # torch adds up what it is given
    assert_same(run_module(case, module_of(case, layer), inputs), run_library(layer, inputs))


@pytest.mark.parametrize("case", EXACT)
def test_cuda_tensors_on_the_stand_in(cuda_host_module: Any, case: Case, rng: np.random.Generator) -> None:
    with on_the_host(cuda_host_module):
        assert_near_native(case, rng, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("case", EXACT)
def test_cuda_tensors(case: Case, rng: np.random.Generator) -> None:
    require_gpu()
    assert_near_native(case, rng, "cuda")


def assert_near_native(case: Case, rng: np.random.Generator, where: str) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    inputs.dy = np.nan_to_num(inputs.dy)
    results = run_module(case, module_of(case, layer, where), inputs), run_library(layer, inputs)
    found, expected = (
        [torch.tensor(r.y), torch.tensor(r.dx), *map(torch.tensor, r.parameters.values())] for r in results
    )
    assert_near(found, expected, DEPTH)


@each_module
def test_second_derivatives(number: int) -> None:
    module, given = modules()[number], options()
    x = leaf(T, B, SIZE["input_size"])

    def run(x: Any) -> Any:
        return tuple(tensors_in(module(x, **given)))

    assert torch.autograd.gradcheck(run, (x,), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x,), fast_mode=True)


@each_module
@pytest.mark.parametrize("present", [{"lengths", "reset", "mask"}, {"mask"}, {"reset", "mask"}])
@pytest.mark.parametrize("batch_first", [False, True])
def test_through_torchs_operations(number: int, present: set[str], batch_first: bool) -> None:
    """Where a torch.func transform is active the engine does not run: its gradients are the engine's, to rounding."""
    module = modules()[number]
    given = {name: value for name, value in options().items() if name in present}
    x = leaf(T, B, SIZE["input_size"])
    with torch.no_grad():
        x[~given["mask"]] = torch.nan
    module.batch_first = batch_first
    if batch_first:
        x = x.detach().transpose(0, 1).requires_grad_()
        given = {name: value.T if name != "lengths" else value for name, value in given.items()}

    def loss(x: Any) -> Any:
        y, state = module(x, **given)
        outputs = [y, *tensors_in(state)]
        return sum((t * torch.linspace(0.5, 1, t.numel()).reshape(t.shape)).sum() for t in outputs), y

    found, y = torch.func.grad(loss, has_aux=True)(x)
    value, own_y = loss(x)
    (expected,) = torch.autograd.grad(value, x)
    assert_near([found, y], [expected, own_y], DEPTH)
    skipped = ~given["mask"]
    assert not found[skipped].any() and not expected[skipped].any()


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("masked_alone", [False, True])
def test_compiled(number: int, masked_alone: bool) -> None:
    given = options()
    given = {"mask": given["mask"]} if masked_alone else {**given, "lengths": torch.tensor(given["lengths"])}
    model, x = Tagger(modules()[number], 2 * SIZE["hidden_size"], **given).double(), leaf(T, B, SIZE["input_size"])
    expected = outputs_and_gradients(model, x)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(allow_rnn=True):
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert_near(outputs_and_gradients(compiled, x), expected, DEPTH)
    torch._dynamo.reset()


@pytest.mark.parametrize("batch_first", [False, True])
def test_dropout_between_layers(batch_first: bool) -> None:
    """Torch draws the masks of dropout: a call layer by layer, whose masks have to be turned where x is."""
    results = []
    for turned in (False, batch_first):
        module = accelerated(nn.GRU(**SIZE, num_layers=3, dropout=0.5, batch_first=turned, dtype=torch.float64))
        torch.manual_seed(2)
        for parameter in module.parameters():
            nn.init.uniform_(parameter, -0.3, 0.3)
        given, x = options(), torch.linspace(-1, 1, T * B * SIZE["input_size"]).double().reshape(T, B, -1)
        torch.manual_seed(1)
        if turned:
            y = module(x.transpose(0, 1), mask=given["mask"].T, reset=given["reset"].T)[0].transpose(0, 1)
        else:
            y = module(x, mask=given["mask"], reset=given["reset"])[0]
        results.append(y)
    assert_near([results[0]], [results[1]], DEPTH)
    for t, b in itertools.product(range(1, T), range(B)):
        if not given["mask"][t, b] and not given["reset"][t, b]:
            assert torch.equal(y[t, b], y[t - 1, b])


def test_unbatched_and_kept_all() -> None:
    module, x = accelerated(nn.LSTM(**SIZE)), torch.randn(T, SIZE["input_size"])
    mask = torch.tensor([True, False, True, True, False, False])
    y, (h, _) = module(x, mask=mask)
    expected, _ = module(x[mask])
    assert torch.equal(y[mask], expected) and torch.equal(y[1], y[0]) and torch.equal(y[5], h[0])
    assert torch.equal(module(x, mask=torch.ones(T, dtype=torch.bool))[0], module(x)[0])


@pytest.mark.parametrize(
    "mask, error, text",
    [
        (np.ones((5, 2), bool), TypeError, "mask must be a tensor of bool, not bool"),
        ([[True] * 2] * 5, TypeError, "mask must be a tensor of bool, not list"),
        (torch.ones(5, 2), TypeError, "mask must be a tensor of bool, not torch.float32"),
        (torch.ones(2, 5, dtype=torch.bool), ValueError, r"mask must have shape \(5, 2\), not \(2, 5\)"),
        (torch.ones(5, dtype=torch.bool), ValueError, r"mask must have shape \(5, 2\), not \(5,\)"),
    ],
)
def test_bad_masks_are_named(mask: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        ft.LSTM(3, 4)(torch.randn(5, 2, 3), mask=mask)


@pytest.mark.parametrize("name", ["lengths", "reset", "mask"])
def test_packed_sequences_take_no_options(name: str) -> None:
    """Packings that the engine leaves to torch neither, which would ignore them."""
    value = {"lengths": [5, 2]}.get(name, torch.ones(5, 2, dtype=torch.bool))
    packed = pack_padded_sequence(torch.randn(5, 2, 3), [5, 2])
    odd = packed._replace(batch_sizes=packed.batch_sizes[:0])
    for sequence in (packed, odd):
        with pytest.raises(ValueError, match="lengths, reset and mask must be None for a PackedSequence"):
            ft.LSTM(3, 4)(sequence, **{name: value})


def test_torch_fx_keeps_a_mask() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent = ft.GRU(**SIZE)

        def forward(self, x: Any, mask: Any) -> Any:
            return self.recurrent(x, mask=mask)[0]

    model, x, mask = Model(), torch.randn(T, B, SIZE["input_size"]), torch.rand(T, B) < 0.5
    assert torch.equal(torch.fx.symbolic_trace(model)(x, mask), model(x, mask))


@pytest.mark.parametrize("hx", [None, (torch.zeros(1, 2, 4), torch.zeros(1, 2, 16))])
@pytest.mark.parametrize(
    "options", [{"mask": torch.zeros(5, 2, dtype=torch.bool)}, {"lengths": [0, 0]}, {"reset": torch.ones(5, 2) > 0}]
)
def test_a_projected_lstm_takes_no_options(options: dict[str, Any], hx: Any) -> None:
    """It is torch's own, which would ignore them."""
    module = ft.LSTM(8, 16, proj_size=4)
    with pytest.raises(ValueError, match="must be None for an LSTM with proj_size"):
        module(torch.randn(5, 2, 8), hx, **options)
    with pytest.raises(ValueError, match="must be None for an LSTM with proj_size"):
        torch.compile(module, backend="eager")(torch.randn(5, 2, 8), hx, **options)

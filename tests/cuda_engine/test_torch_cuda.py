"""fusedrnn.torch on CUDA tensors: on a GPU, and on its stand-in on the host (torch_devices.py)."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cases import CASES, LAYERS, Case, make_clear_inputs, make_inputs, make_layer
from cases import small_cases as small
from device_runs import run, shortened, widened, widened_inputs
from devices import stand_in
from oracles import Result, as_tuple, assert_results_close, map_result, run_reference
from rounding import error_bounds, run_rounded

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from torch_devices import STREAM, HostKind, on_the_host, require_gpu  # noqa: E402
from torch_support import (  # noqa: E402
    CELLS,
    SIZE,
    Tagger,
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
from torch_support import LAYERS as KINDS  # noqa: E402

import fusedrnn.torch as ft  # noqa: E402
from fusedrnn.engines.cuda import blocks  # noqa: E402
from fusedrnn.torch import device, dispatch  # noqa: E402
from fusedrnn.torch.autocast import under_autocast  # noqa: E402
from fusedrnn.torch.call import Call  # noqa: E402
from fusedrnn.torch.config import config_of  # noqa: E402
from fusedrnn.torch.optional_cells import OPTIONAL_CELLS  # noqa: E402

T, B = 6, 4
DEPTH = 64  # roundings in a row: on the host a quarter of them, in whichever order cuBLAS takes on a GPU
# Nothing may run torch's own forward, which would say so.
pytestmark = pytest.mark.filterwarnings("error:fusedrnn.torch")

each_layer = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
each_cell = pytest.mark.parametrize("kind", CELLS, ids=lambda kind: kind.__name__)
each_module = pytest.mark.parametrize("kind", [*KINDS, *CELLS], ids=lambda kind: kind.__name__)
on_gpu = pytest.mark.gpu


@pytest.fixture(params=["host", pytest.param("cuda", marks=on_gpu)])
def where(request: pytest.FixtureRequest) -> Iterator[str]:
    """Name of the device whose tensors the CUDA engine takes."""
    if request.param == "cuda":
        require_gpu()
        yield "cuda"
        return
    with on_the_host(request.getfixturevalue("cuda_host_module")):
        yield "cpu"


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """TF32 off, and afterwards as it was."""
    before = torch._C._get_cudnn_allow_tf32()
    allow_tf32(False)
    yield
    allow_tf32(before)


def allow_tf32(allowed: bool) -> None:
    """torch.backends.cudnn.allow_tf32, which torch's own test helpers, once imported, refuse to set."""
    torch._C._set_cudnn_allow_tf32(allowed)


@pytest.fixture
def gpu() -> str:
    require_gpu()
    return "cuda"


def moved(value: Any, where: str) -> Any:
    """Leaves of their own on a device, of every tensor in a nest."""
    if isinstance(value, torch.Tensor):
        return value.detach().to(where, copy=True).requires_grad_(value.requires_grad)
    return type(value)(moved(v, where) for v in value) if isinstance(value, (tuple, list)) else value


def assert_as_torch(own: Any, where: str, *arguments: Any, **options: Any) -> Any:
    """Assert that a swapped copy on the device has the outputs and gradients of torch's module on the CPU."""
    theirs = outputs_and_gradients(own, *arguments, **options)
    ours = accelerated(own).to(where)
    found = outputs_and_gradients(ours, *moved(arguments, where), **options)
    assert all(t.device.type == where for t in found)
    assert_near([t.cpu() for t in found], theirs, DEPTH)
    return ours


def build(kind: Any, **options: Any) -> Any:
    return kind(**SIZE, **{"dtype": torch.float64, **options})


def sequence(batch_first: bool = False) -> Any:
    return leaf(B, T, SIZE["input_size"]) if batch_first else leaf(T, B, SIZE["input_size"])


# ---- what is computed ----

CHOSEN = [c for c in CASES if c.time * c.batch * c.hidden_size**2 < 1e6 and not c.clip and not c.reverse]
SHORT = [c for c in small(num_layers=2, directions=2, ragged=True, reset=True) if c.cell != "rnn_relu"]


@pytest.mark.parametrize("case", CHOSEN)
def test_every_output_and_gradient(where: str, case: Case, rng: np.random.Generator) -> None:
    layer = make_layer(case)
    inputs = make_clear_inputs(case, layer.parameters, rng)
    found = run_module(case, module_of(case, layer, where), inputs)
    expected = run_reference(case, layer.parameters, inputs)
    assert_results_close(found, expected, error_bounds(case, layer.parameters, inputs))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", SHORT)
def test_sixteen_bits(where: str, case: Case, dtype: str, rng: np.random.Generator) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype)) if dtype == "bfloat16" else np.dtype(dtype)
    layer = make_layer(dataclasses.replace(case, dtype="float32"))
    parameters = {name: value.astype(kind).astype(np.float64) for name, value in layer.parameters.items()}
    inputs = widened_inputs(shortened(make_inputs(case, rng), kind))
    if case.two_states:  # torch's c has 16 bits
        inputs.state, inputs.dstate = ((h, c.astype(kind).astype(np.float64)) for h, c in (inputs.state, inputs.dstate))
    module = module_of(case, layer, where).to(getattr(torch, dtype))
    eps = float(ml_dtypes.finfo(kind).eps)
    # Every operation of the reference rounded to 16 bits: more than is. Below the normal range steps are 2^-24.
    bounds = map_result(lambda a: a.bound(eps) + 2.0**-20, run_rounded(case, parameters, inputs))
    found = Result(*(widened(part) for part in run_module(case, module, inputs)))
    assert_results_close(found, run_reference(case, parameters, inputs), bounds)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("case", small(num_layers=2, directions=2, ragged=True, reset=True))
def test_the_native_layers_bits(cuda_host_module: Any, case: Case, dtype: str, rng: np.random.Generator) -> None:
    """The same engine on CuPy arrays and on tensors."""
    kind = np.dtype(getattr(ml_dtypes, dtype)) if dtype == "bfloat16" else np.dtype(dtype)
    cpu, narrow = make_layer(dataclasses.replace(case, dtype="float32")), kind.itemsize == 2
    inputs = make_inputs(case, rng)
    inputs = dataclasses.replace(
        shortened(inputs, kind),
        state=_cast(inputs.state, kind, np.float32 if narrow else kind),
        dstate=_cast(inputs.dstate, kind, np.float32 if narrow else kind),
    )
    with stand_in(cuda_host_module) as native:
        layer = make_layer(case, dtype=dtype, device="cuda")
        layer.load_parameters({name: value.astype(kind) for name, value in cpu.parameters.items()})
        expected = run(native, layer, inputs)
    with on_the_host(cuda_host_module):
        found = run_module(case, module_of(case, cpu).to(getattr(torch, dtype)), widened_inputs(inputs))
    if case.two_states:
        halves = {name: _cast(getattr(expected, name), kind, kind) for name in ("state", "dstate")}
        expected = expected._replace(**halves)
    assert_results_close(Result(*map(widened, found)), Result(*map(widened, expected)))


def _cast(state: Any, kind: Any, cell_kind: Any) -> Any:
    """A state with h and c of these dtypes, c having first been rounded to that of h."""
    if not isinstance(state, tuple):
        return state.astype(kind)
    return state[0].astype(kind), state[1].astype(kind).astype(cell_kind)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", small(num_layers=2, directions=2, ragged=True, reset=True, dtype="float32")[2:7:4])
def test_block_programs(
    cuda_host_module: Any, case: Case, dtype: str, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """The same bits as the native layer's with engine="persistent", where that is what engine="auto" means."""
    monkeypatch.setattr(blocks, "AUTO_LEAST_STEPS", 1)
    kind = np.dtype(getattr(ml_dtypes, dtype)) if dtype == "bfloat16" else np.dtype(dtype)
    cpu, inputs = make_layer(case), dataclasses.replace(make_inputs(case, rng), state=None, dstate=None)
    inputs = dataclasses.replace(inputs, x=inputs.x.astype(kind), dy=inputs.dy.astype(kind))
    with stand_in(cuda_host_module) as native:
        layer = make_layer(case, dtype=dtype, device="cuda", engine="persistent")
        layer.load_parameters({name: value.astype(kind) for name, value in cpu.parameters.items()})
        y, _, tape = layer.forward(native.put(inputs.x), None, inputs.lengths, native.put(inputs.reset))
        expected = layer.backward(tape, native.put(inputs.dy))
        expected = native.get((y, expected.x, *expected.parameters.values()))
    with on_the_host(cuda_host_module):
        module = module_of(case, cpu).to(getattr(torch, dtype))
        x, dy = (torch.tensor(a.astype(np.float32)).to(module.weight_ih_l0) for a in (inputs.x, inputs.dy))
        y, _ = module(x.requires_grad_(), lengths=inputs.lengths, reset=torch.tensor(inputs.reset))
        y.backward(dy)
        found = [t.detach().float().numpy() for t in (y, x.grad, *(p.grad for p in module.parameters()))]
    assert all(np.array_equal(a, widened(b)) for a, b in zip(found, expected, strict=True))


@each_layer
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_layers(where: str, kind: Any, batch_first: bool, bias: bool, given: bool) -> None:
    own = build(kind, num_layers=2, bidirectional=True, batch_first=batch_first, bias=bias)
    hx = state_of(kind, 4, B, SIZE["hidden_size"]) if given else None
    ours = assert_as_torch(own, where, sequence(batch_first), hx)
    with torch.no_grad():
        x = sequence(batch_first)
        assert_near([t.cpu() for t in tensors_in(ours(x.to(where)))], tensors_in(own(x)), DEPTH)


@each_layer
@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched(where: str, kind: Any, batch_first: bool) -> None:
    own = build(kind, num_layers=2, batch_first=batch_first)
    assert_as_torch(own, where, leaf(T, SIZE["input_size"]), state_of(kind, 2, SIZE["hidden_size"]))


@each_cell
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("given", [True, False])
def test_cells(where: str, kind: Any, batched: bool, bias: bool, given: bool) -> None:
    hx = state_of(kind, *[B] * batched, SIZE["hidden_size"]) if given else None
    assert_as_torch(build(kind, bias=bias), where, leaf(*[B] * batched, SIZE["input_size"]), hx)


@pytest.mark.parametrize("cell", LAYERS)
def test_cells_are_layers_of_one_step(where: str, cell: str) -> None:
    name, options = LAYERS[cell]
    layer = getattr(ft, name)(5, 7, dtype=torch.float64, device=where, **options)
    single = getattr(ft, f"{name}Cell")(5, 7, dtype=torch.float64, device=where, **options)
    single.load_state_dict({key.removesuffix("_l0"): value for key, value in layer.state_dict().items()})
    x, state = leaf(B, 5).to(where), moved(state_of(type(single), B, 7), where)
    after = tensors_in(single(x, state))
    found = torch.autograd.grad(loss_of(after), [*tensors_in(state), *single.parameters()])
    first = tuple(s[None] for s in tensors_in(state))
    expected = tensors_in(layer(x[None], first if len(first) == 2 else first[0])[1])
    gradients = torch.autograd.grad(loss_of([t[0] for t in expected]), [*tensors_in(state), *layer.parameters()])
    assert_near([*after, *found], [*(t[0] for t in expected), *gradients], 8)


class Packed(nn.Module):
    """A module over what it packs and unpacks itself."""

    def __init__(self, module: Any, lengths: list[int], batch_first: bool = False) -> None:
        super().__init__()
        self.module, self.lengths, self.batch_first = module, lengths, batch_first

    def forward(self, x: Any, hx: Any = None) -> Any:
        sort = self.lengths == sorted(self.lengths, reverse=True)
        packed = pack_padded_sequence(x, self.lengths, self.batch_first, enforce_sorted=sort)
        y, state = self.module(packed, hx)
        assert y.batch_sizes is packed.batch_sizes and y.sorted_indices is packed.sorted_indices
        return pad_packed_sequence(y, self.batch_first)[0], state


@each_layer
@pytest.mark.parametrize("lengths", [[6, 4, 4, 1], [4, 1, 6, 4], [6, 6, 6, 6], [3, 2, 2, 1]])
@pytest.mark.parametrize("given", [True, False])
def test_packed_sequences(where: str, kind: Any, lengths: list[int], given: bool) -> None:
    own = Packed(build(kind, num_layers=2, bidirectional=True), lengths)
    hx = state_of(kind, 4, B, SIZE["hidden_size"]) if given else None
    assert_as_torch(own, where, sequence(), hx)


@each_layer
def test_packed_and_padded_have_the_same_bits(where: str, kind: Any) -> None:
    module, lengths = accelerated(build(kind, num_layers=2, bidirectional=True)).to(where), [4, 1, 6, 4]
    x = sequence().to(where)
    padded, state = module(x, lengths=lengths)
    packed, packed_state = module(pack_padded_sequence(x, lengths, enforce_sorted=False))
    # Rows are sorted in a packing, and so are those of a product: on a GPU a row's place may decide how it is added up.
    found, expected = [pad_packed_sequence(packed)[0], *tensors_in(packed_state)], [padded, *tensors_in(state)]
    assert_near(found, expected, 0 if where == "cpu" else 32)


@each_layer
@pytest.mark.parametrize("where_lengths", ["list", "device"])
def test_lengths_and_resets(where: str, kind: Any, where_lengths: str) -> None:
    """As torch's own module on each row alone."""
    own, lengths = build(kind, num_layers=2, bidirectional=True, batch_first=True), [6, 3, 1, 4]
    ours, x = accelerated(own).to(where), sequence(True)
    given = lengths if where_lengths == "list" else torch.tensor(lengths, dtype=torch.int32, device=where)
    y, state = ours(x.to(where), lengths=given)
    for b, n in enumerate(lengths):
        alone, final = own(x[b, :n])
        assert_near([y[b, :n].cpu()], [alone], DEPTH)
        assert_near([s[:, b].cpu() for s in tensors_in(state)], tensors_in(final), DEPTH)
        assert not y[b, n:].any()
    forward = build(kind)
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[3] = True
    y, _ = accelerated(forward).to(where)(x.transpose(0, 1).to(where), reset=reset.to(where))
    parts = [forward(part)[0] for part in x.transpose(0, 1).split(3)]
    assert_near([y.cpu()], [torch.cat(parts)], DEPTH)


@each_layer
@pytest.mark.parametrize("dropout", [0.4, 1.0])
def test_dropout_is_torchs_between_layers(where: str, kind: Any, dropout: float) -> None:
    module = accelerated(build(kind, num_layers=2, dropout=dropout)).to(where)
    hidden, settings = SIZE["hidden_size"], {"dtype": torch.float64, "device": where}
    first, second = build(kind, device=where), kind(hidden, hidden, **settings)
    for layer, single in enumerate((first, second)):
        names = [name for name in module.state_dict() if f"_l{layer}" in name]
        single.load_state_dict({n.replace(f"_l{layer}", "_l0"): module.state_dict()[n] for n in names})

    class Composed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = accelerated(first), accelerated(second)

        def forward(self, x: Any) -> Any:
            y, below = self.first(x)
            y, above = self.second(functional.dropout(y, dropout, True))
            return y, [torch.cat(pair) for pair in zip(tensors_in(below), tensors_in(above), strict=True)]

    x = moved(sequence(), where)
    found, expected = outputs_and_gradients(module, x, seed=3), outputs_and_gradients(Composed(), x, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    module.eval()
    assert torch.equal(module(x)[0], module(x)[0])


@pytest.mark.parametrize("batch", [0, 1])
@each_layer
def test_an_empty_batch(where: str, kind: Any, batch: int) -> None:
    assert_as_torch(build(kind, bidirectional=True), where, leaf(T, batch, SIZE["input_size"]))


# ---- autograd ----


@each_layer
@pytest.mark.parametrize("frozen", ["x", "weight_ih", "weight_hh", "bias", "weight", "l0", "all"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_frozen_parameters(where: str, kind: Any, frozen: str, dtype: Any) -> None:
    own = build(kind, num_layers=2, bidirectional=True)
    for name, parameter in own.named_parameters():
        parameter.requires_grad_(not (frozen in name or frozen == "all"))
    x, hx = sequence(), state_of(kind, 4, B, SIZE["hidden_size"])
    x.requires_grad_(frozen != "x")
    for h in tensors_in(hx):
        h.requires_grad_(frozen != "weight_ih")
    if dtype == torch.float64:
        ours = assert_as_torch(own, where, x, hx)
        assert all((p.grad is None) == (not p.requires_grad) for p in ours.parameters())
        return
    # A gradient that is asked for does not depend on which others are.
    ours = accelerated(own).to(where, dtype)
    x, hx = (moved(_narrowed(t, dtype), where) for t in (x, hx))
    some = dict(_named_gradients(ours, x, hx))
    for t in (x, *tensors_in(hx), *ours.parameters()):
        t.requires_grad_()
    every = _named_gradients(ours, x, hx)
    assert all(torch.equal(gradient, every[name]) for name, gradient in some.items())


def _narrowed(value: Any, dtype: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_narrowed(v, dtype) for v in value)
    return value.detach().to(dtype).requires_grad_(value.requires_grad)


def _named_gradients(module: Any, x: Any, hx: Any) -> dict[str, Any]:
    leaves = {"x": x, **{f"h{k}": h for k, h in enumerate(tensors_in(hx))}, **dict(module.named_parameters())}
    asked = {name: t for name, t in leaves.items() if t.requires_grad}
    found = torch.autograd.grad(loss_of(tensors_in(module(x, hx))), list(asked.values()))
    return dict(zip(asked, found, strict=True))


@each_layer
def test_strides_do_not_matter(where: str, kind: Any) -> None:
    module = accelerated(build(kind, num_layers=2, bidirectional=True)).to(where)
    x = sequence().detach().to(where)
    wide = torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0].requires_grad_()
    turned = x.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    plain = outputs_and_gradients(module, x.requires_grad_())
    for other in (wide, turned):
        assert_near(outputs_and_gradients(module, other), plain, 0 if where == "cpu" else 8)
    imaginary = torch.complex(x.detach(), x.detach()).conj().imag  # a view with its sign yet to be turned
    assert imaginary.is_neg() and torch.equal(module(imaginary)[0], module(-x)[0])
    assert_near([module(x[:1].expand(T, B, -1))[0]], [module(x[:1].repeat(T, 1, 1))[0]], 8)


@each_layer
def test_gradients_of_every_layout(where: str, kind: Any) -> None:
    """Expanded, transposed and missing gradients."""
    own = build(kind)
    ours, x = accelerated(own).to(where), sequence()
    losses = (
        lambda y, s: y.sum(),
        lambda y, s: (y.transpose(0, 2) * torch.arange(B, device=y.device).double()[:, None]).sum(),
        lambda y, s: sum(h.sum() for h in tensors_in(s)),
        lambda y, s: tensors_in(s)[-1].sum(),
        lambda y, s: y[-1, :, ::2].sum(),
    )
    for loss in losses:
        pairs = []
        for module, given in ((ours, moved(x, where)), (own, x)):
            pairs.append([t.cpu() for t in torch.autograd.grad(loss(*module(given)), [given, *module.parameters()])])
        assert_near(*pairs, DEPTH)


@each_layer
def test_what_is_returned_may_be_written_in_place(where: str, kind: Any) -> None:
    own = build(kind, num_layers=2)
    x, found = sequence(), []
    for module, given in ((accelerated(own).to(where), moved(x, where)), (own, x)):
        y, state = module(given)
        y = y.clone() if module is own else y
        y.mul_(2).relu_()
        tensors_in(state)[0].add_(1)
        loss = y.sum() + sum(h.sum() for h in tensors_in(state))
        found.append([t.cpu() for t in torch.autograd.grad(loss, [given, *module.parameters()])])
    assert_near(*found, DEPTH)


@each_layer
def test_backward_runs_twice_to_the_same_bits(where: str, kind: Any) -> None:
    module, x = accelerated(build(kind, num_layers=2)).to(where), moved(sequence(), where)
    loss = loss_of(tensors_in(module(x)))
    first = torch.autograd.grad(loss, [x, *module.parameters()], retain_graph=True)
    second = torch.autograd.grad(loss, [x, *module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@each_module
def test_second_derivatives(where: str, kind: Any) -> None:
    module = accelerated(build(kind)).to(where)
    x = moved(sequence() if kind in KINDS else leaf(B, SIZE["input_size"]), where)

    def run(x: Any, *weights: Any) -> Any:
        named = dict(zip(dict(module.named_parameters()), weights, strict=True))
        return tuple(tensors_in(torch.func.functional_call(module, named, (x,))))

    assert torch.autograd.gradcheck(run, (x, *module.parameters()), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x, *module.parameters()), fast_mode=True)


@each_layer
def test_second_derivatives_with_lengths_and_resets(where: str, kind: Any) -> None:
    module = accelerated(build(kind, num_layers=2, bidirectional=True, batch_first=True)).to(where)
    x, reset = moved(sequence(True), where), torch.rand(B, T) < 0.3

    def run(x: Any) -> Any:
        return tuple(tensors_in(module(x, lengths=[6, 3, 0, 1], reset=reset)))

    assert torch.autograd.gradcheck(run, (x,), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x,), fast_mode=True)


@pytest.mark.parametrize("cell", OPTIONAL_CELLS)
@pytest.mark.parametrize("single", [True, False])
def test_second_derivatives_of_cells_that_torch_lacks(where: str, cell: str, single: bool) -> None:
    name, options = LAYERS[cell]
    kind = getattr(ft, name + "Cell" * single)
    module = build(kind, device=where, **options, **({} if single else {"num_layers": 2, "bidirectional": True}))
    x = moved(leaf(B, SIZE["input_size"]) if single else sequence(), where)
    arguments = {} if single else {"lengths": [6, 3, 0, 1], "reset": (torch.rand(T, B) < 0.3).to(where)}
    leaves = [x, *module.parameters()]

    def run(flat: Any) -> Any:
        parts = flat.split([t.numel() for t in leaves])
        x, *weights = (part.reshape(t.shape) for part, t in zip(parts, leaves, strict=True))
        named = dict(zip(dict(module.named_parameters()), weights, strict=True))
        found = tensors_in(torch.func.functional_call(module, named, (x,), arguments))
        return torch.cat([t.flatten() for t in found])

    flat = torch.cat([t.detach().flatten() for t in leaves]).requires_grad_()
    assert torch.autograd.gradcheck(run, (flat,), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (flat,), fast_mode=True)
    y = tensors_in(module(x, **arguments))[0]
    gradients = torch.cos(torch.arange(3 * y.numel(), device=where).double()).reshape(3, *y.shape)
    found = torch.autograd.grad(y, leaves, gradients, is_grads_batched=True, retain_graph=True)
    apart = [torch.autograd.grad(y, leaves, gradient, retain_graph=True) for gradient in gradients]
    assert not any(t.requires_grad for t in found)
    assert_near(found, [torch.stack(parts) for parts in zip(*apart, strict=True)], DEPTH)


@each_module
def test_batches_of_gradients(where: str, kind: Any) -> None:
    own, pairs = build(kind), []
    x = leaf(*[T] * (kind in KINDS), B, SIZE["input_size"])
    for module, given in ((accelerated(own).to(where), moved(x, where)), (own, x)):
        y = tensors_in(module(given))[0]
        gradients = torch.cos(torch.arange(3 * y.numel(), device=y.device).double()).reshape(3, *y.shape)
        found = torch.autograd.grad(y, [given, *module.parameters()], gradients, is_grads_batched=True)
        assert module is own or not any(t.requires_grad for t in found)
        pairs.append([t.cpu() for t in found])
    assert_near(*pairs, DEPTH)


@each_layer
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_and_saved_tensor_hooks(where: str, kind: Any, reentrant: bool) -> None:
    module, x = accelerated(build(kind, num_layers=2, dropout=0.5)).to(where), moved(sequence(), where)

    class Checkpointed(nn.Module):
        def __init__(self, keeps: bool) -> None:
            super().__init__()
            self.module, self.keeps = module, keeps

        def forward(self, x: Any) -> Any:
            if self.keeps:
                return self.module(x)[0]
            return checkpoint(lambda x: self.module(x)[0], x, use_reentrant=reentrant)

    plain = outputs_and_gradients(Checkpointed(True), x)
    found = outputs_and_gradients(Checkpointed(False), x)
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    with torch.autograd.graph.save_on_cpu():
        found = outputs_and_gradients(Checkpointed(True), x)
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


@each_layer
@pytest.mark.parametrize("what", ["weight_hh_l0", "x"])
def test_tensors_that_change_without_a_version_crash_nothing(where: str, kind: Any, what: str) -> None:
    module, x = accelerated(build(kind)).to(where), sequence().detach().to(where)
    y, _ = module(x)
    (x if what == "x" else module.get_parameter(what)).data = torch.zeros(1, dtype=x.dtype, device=where)
    with pytest.raises(RuntimeError, match="another shape, dtype or device"):
        y.backward(y.detach())


@each_module
@pytest.mark.parametrize("size", [0, 8])
def test_tensors_without_all_of_their_memory_are_an_error(where: str, kind: Any, size: int) -> None:
    assert_memory_is_looked_after(kind, size, where)


@each_layer
def test_lengths_and_resets_may_be_written_after_the_call(where: str, kind: Any) -> None:
    assert_options_are_copied(kind, where)


# ---- precision ----


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@each_module
@pytest.mark.parametrize("narrow_input", [True, False])
def test_autocast_computes_in_its_dtype(where: str, kind: Any, low: Any, narrow_input: bool) -> None:
    own = build(kind, dtype=torch.float32).to(where)
    ours = accelerated(own)
    x = torch.randn(*[T] * (kind in KINDS), B, SIZE["input_size"], device=where)
    x = x.to(low if narrow_input else x.dtype).requires_grad_()
    with autocast(low):
        found = tensors_in(ours(x))
    expected = tensors_in(copy.deepcopy(ours).to(low)(x.detach().to(low)))
    assert all(torch.equal(a, b) and a.dtype == low for a, b in zip(found, expected, strict=True))
    loss_of(found).backward()
    assert x.grad.dtype == x.dtype and all(p.grad.dtype == torch.float32 for p in ours.parameters())
    with autocast(low):
        assert ours.double()(x.double())[0].dtype == torch.float64
        if where == "cuda":
            theirs = torch.float16 if kind in KINDS else low  # cuDNN's layers know no other
            assert [t.dtype for t in tensors_in(own(x))] == [theirs] * len(found)


@contextlib.contextmanager
def autocast(low: Any) -> Iterator[None]:
    """torch.autocast("cuda"), which does nothing where there is no GPU."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", low)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
        torch.clear_autocast_cache()


def test_tf32_is_torchs_setting(cuda_host_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not device.allows_tf32(False) and not device.allows_tf32(True)
    allow_tf32(True)
    assert device.allows_tf32(False) and not device.allows_tf32(True)  # torch's cells are no part of cuDNN
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    assert device.allows_tf32(True)
    torch.set_float32_matmul_precision(before)
    with monkeypatch.context() as older:
        older.delattr(torch._C, "_get_fp32_precision_getter")
        assert device.allows_tf32(False) and not device.allows_tf32(True)
    case = small(num_layers=2, dtype="float32")[2]
    inputs, layer = make_inputs(case, np.random.default_rng(0)), make_layer(case)
    with stand_in(cuda_host_module) as native:
        rounded = run(native, make_layer(case, device="cuda", precision="tf32"), inputs)
    with on_the_host(cuda_host_module):
        assert_results_close(run_module(case, module_of(case, layer), inputs), rounded)
        allow_tf32(False)
        assert np.any(run_module(case, module_of(case, layer), inputs).y != rounded.y)


@on_gpu
@each_module
def test_tf32_rounds_factors(gpu: str, kind: Any) -> None:
    own = kind(256, 256, dtype=torch.float64)
    x = torch.randn(*[T] * (kind in KINDS), 64, 256)
    module, errors = accelerated(own).float().to(gpu), []
    matmul = torch.backends.cuda.matmul.allow_tf32
    for allowed in (False, True):
        allow_tf32(allowed)
        torch.backends.cuda.matmul.allow_tf32 = allowed
        y = tensors_in(module(x.to(gpu)))[0]
        errors.append(float((y.detach().cpu().double() - tensors_in(own(x.double()))[0]).abs().max()))
    torch.backends.cuda.matmul.allow_tf32 = matmul
    assert errors[0] < 2.0**-18 < errors[1] < 2.0**-6  # factors of 24 bits, and of 11


# ---- torch.compile ----


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def with_operator(graph: Any, inputs: Any) -> Any:
    """The backend "aot_eager" for graphs in which the engine's operator stands."""
    called = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert {torch.ops.fusedrnn.layers, torch.ops.fusedrnn.layers.default} & set(called), called
    return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)


def assert_compiles(model: Any, x: Any) -> None:
    expected = outputs_and_gradients(model, x)
    with torch._dynamo.config.patch(allow_rnn=True):
        found = outputs_and_gradients(torch.compile(model, fullgraph=True, backend=with_operator), x)
    assert_near(found, expected, DEPTH)


@each_layer
@pytest.mark.parametrize("batch_first", [True, False])
def test_compile(where: str, fresh_compiler: None, kind: Any, batch_first: bool) -> None:
    recurrent = kind(**SIZE, num_layers=2, bidirectional=True, batch_first=batch_first)
    model = accelerated(Tagger(recurrent, 14)).to(where)
    assert_compiles(model, moved(leaf(T, B, SIZE["input_size"], dtype=torch.float32), where))
    assert_compiles(model, moved(leaf(T + 1, B + 2, SIZE["input_size"], dtype=torch.float32), where))  # other symbols


def test_compile_with_options_lengths_and_resets(where: str, fresh_compiler: None) -> None:
    recurrent = ft.LSTM(**SIZE, num_layers=2, peephole=True, coupled=True)
    given = {"lengths": torch.tensor([6, 0, 3, 1], device=where), "reset": torch.rand(T, B).to(where) < 0.3}
    x = moved(leaf(T, B, SIZE["input_size"], dtype=torch.float32), where)
    assert_compiles(Tagger(recurrent, 7, **given).to(where), x)


def test_compile_under_autocast(where: str, fresh_compiler: None) -> None:
    model, x = accelerated(nn.Sequential(nn.GRU(**SIZE))).to(where), torch.randn(T, B, SIZE["input_size"]).to(where)
    with autocast(torch.bfloat16):
        expected = tensors_in(model(x))
        with torch._dynamo.config.patch(allow_rnn=True):
            found = tensors_in(torch.compile(model, fullgraph=True, backend=with_operator)(x))
    assert {t.dtype for t in found} == {torch.bfloat16}
    assert_near(found, expected, 0)


@contextlib.contextmanager
def filled_memory() -> Iterator[None]:
    """What torch allocates holds the same bytes each time, also between the arrays of a tape."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fills


@pytest.mark.parametrize("form", ["time", "batch", "step"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operator_tells_the_truth_about_itself(where: str, form: str, cell: str, dtype: Any) -> None:
    gates = 4 if cell == "lstm" else 3
    shapes = [(gates * 7, 5), (gates * 7, 7), (gates * 7,), (gates * 7,)]

    def leaf_of(*shape: int) -> Any:
        return torch.randn(shape, dtype=dtype, device=where, requires_grad=True)

    weights = [leaf_of(*shape) for shape in shapes]
    x = leaf_of(*([B] if form == "step" else [T, B] if form == "time" else [B, T]), 5)
    state = leaf_of(*[] if form == "step" else [1], B, 7)
    arguments = (x, state, state if cell == "lstm" else None, weights, None, None, cell, 1, False, True, form, True)
    with filled_memory():
        torch.library.opcheck(torch.ops.fusedrnn.layers.default, arguments)


@pytest.mark.parametrize(
    ("shape", "form"),
    [((5, 3), "time"), ((5, 3), "batch"), ((2, 5, 4, 3), "time"), ((5, 4, 3), "step"), ((5, 4, 3), "packed")],
)
def test_the_operator_refuses_x_of_another_rank(where: str, shape: tuple[int, ...], form: str) -> None:
    weights = [torch.randn(12, 3).to(where), torch.randn(12, 4).to(where)]
    for given in (weights, weights[:1], [], [w[0] for w in weights]):
        with pytest.raises(RuntimeError, match="shapes do not fit together"):
            torch.ops.fusedrnn.layers(
                torch.randn(shape).to(where), None, None, given, None, None, "gru", 1, False, False, form, False
            )


def test_autocast_converts_nothing_else(where: str) -> None:
    ours = accelerated(nn.GRU(**SIZE)).to(where)
    x = torch.randn(T, B, SIZE["input_size"]).to(where)
    for module, given in ((ours, (x.long(),)), (ours, (x, torch.zeros(1, B, SIZE["hidden_size"]).double().to(where)))):
        with autocast(torch.bfloat16):
            _, _, _, _, reason = under_autocast(module, given[0], given[1:])
        assert reason is not None and reason.startswith("autocast to torch.bfloat16 of a")
        assert reason.endswith(str(given[-1].dtype))


def test_a_loaded_library_is_found_whatever_its_path(tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    maps.write_text("7f00-7f01 r-xp 00 08:01 5 \n7f01-7f02 r-xp 00 08:01 5    /opt/my env/libcublas.so.13\n")
    assert device.loaded_blas(str(maps)) == "/opt/my env/libcublas.so.13"
    assert device.loaded_blas(str(tmp_path / "none")) is None


# ---- memory, devices, streams ----


@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize("dtype", device.DTYPES)
def test_a_tape_is_as_large_as_the_engine_asks_for(cuda_host_module: Any, cell: str, dtype: Any) -> None:
    with on_the_host(cuda_host_module) as kind:
        for layers, both, hidden in itertools.product((1, 3), (False, True), (1, 7, 64)):
            config = config_of(cell, 5, hidden, layers, both, True)
            net = device._net(kind.native, config, dtype, 0, False)
            for steps, rows in itertools.product((1, 2, 7, 100), (0, 1, 3, 64)):
                for mask in (None, torch.ones(1)):
                    call = Call(config, "time", steps, rows, mask=mask, on_device=True)
                    present: dict[str, Any] = dict.fromkeys(("x", "y", "reset"), (1, 0, 0))
                    present |= dict.fromkeys(("initial", "final"), [(1, 0, 0)] * config.states)
                    present["mask"] = (0 if mask is None else 1, 0, 0)
                    numbers = {"steps": steps, "rows": rows, "recompute": 0, "lengths": 1, "calls": 0}
                    made = kind.native.ForwardCall(**numbers, **present, weights=[], training=True, persistent=False)
                    spare = device.tape_bytes(call, torch.empty(0, dtype=dtype)) - net.kept_bytes(made)
                    assert 0 <= spare <= 256 * (5 * layers + 3 + 5 * (mask is not None))


@each_layer
def test_the_current_stream_is_the_engines(cuda_host_module: Any, kind: Any) -> None:
    seen: list[Any] = []

    class Watching:
        """The module, whose nets say which stream they were given."""

        ForwardCall = cuda_host_module.ForwardCall

        class Net:
            def __init__(self, **options: Any) -> None:
                self.net = cuda_host_module.Net(**options)

            def __getattr__(self, name: str) -> Any:
                return getattr(self.net, name)

            def forward(self, index: int, stream: int, *rest: Any) -> None:
                seen.append(("forward", index, stream))
                self.net.forward(index, stream, *rest)

            def backward(self, index: int, stream: int, *rest: Any, **others: Any) -> None:
                seen.append(("backward", index, stream))
                self.net.backward(index, stream, *rest, **others)

    with on_the_host(Watching):
        module = accelerated(build(kind, num_layers=2))
        module(sequence())[0].sum().backward()
    assert seen == [("forward", 0, STREAM), ("backward", 0, STREAM)]


def test_without_an_engine_torchs_own_forward_runs_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    dispatch._warned.clear()
    own, x = nn.LSTM(3, 4), torch.randn(5, 2, 3)
    module = accelerated(own)
    monkeypatch.setattr(device, "kind", HostKind(None, "the module is on holiday"))
    assert "on holiday" in str(ft.why_not(module)) and "on holiday" in str(ft.why_not(own))
    with pytest.warns(UserWarning, match="torch's own forward.*on holiday"):
        y, _ = module(x)
    assert torch.equal(y, own(x)[0])
    assert_near([module(x, lengths=[5, 5])[0]], [y], 64)
    assert not ft.accelerate(nn.Sequential(own)).swapped
    dispatch._warned.clear()
    with pytest.warns(UserWarning, match="step by step in torch's operations.*on holiday"):
        ft.GRU(3, 4, reset_after=False)(x)
    with torch._dynamo.config.patch(allow_rnn=True), torch.no_grad():
        torch._dynamo.reset()
        assert_near([torch.compile(module, backend="aot_eager")(x)[0]], [y], 8)
        torch._dynamo.reset()


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(device, "kind", device.Cuda())
    assert "not one for CUDA" in str(device.missing())
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(device, "kind", device.Cuda())
    monkeypatch.setitem(__import__("sys").modules, "fusedrnn._cuda", None)
    assert "no CUDA module" in str(device.missing())
    assert device.loaded_blas() is None or "libcublas.so" in str(device.loaded_blas())


def test_weights_that_cudnn_does_not_know_are_not_laid_out_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, odd = ft.LSTM(3, 4), [ft.LSTM(3, 4, peephole=True), ft.LSTM(3, 4, coupled=True)]
    asked: list[Any] = []
    monkeypatch.setattr(nn.LSTM, "flatten_parameters", lambda self: asked.append(self))
    for module in (plain, *odd):
        module.double()
    assert asked == [plain]


def test_modules_copy_and_pickle(where: str) -> None:
    module = accelerated(build(nn.LSTM, num_layers=2)).to(where)
    x = sequence().to(where)
    expected = module(x)[0]
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(other) is ft.LSTM and torch.equal(other(x)[0], expected)
    assert ft.why_not(module) is None and set(ft.restore(module).swapped) == {""}
    assert_near([module(x)[0]], [expected], DEPTH)


@on_gpu
def test_accelerate_takes_modules_on_a_device(gpu: str) -> None:
    model = nn.Sequential(nn.LSTM(5, 7), nn.GRUCell(7, 7)).to(gpu)
    assert set(ft.accelerate(model).swapped) == {"0", "1"}
    with pytest.raises(ValueError, match=r"lengths must lie in \[0, 6\]"):
        model[0](torch.randn(T, B, 5, device=gpu), lengths=torch.tensor([7, 1, 1, 1]))
    with pytest.raises(RuntimeError, match="device"):
        model[0](torch.randn(T, B, 5))


@on_gpu
def test_device_lengths_are_clamped_and_not_waited_for(gpu: str) -> None:
    module, x = ft.LSTM(5, 7, device=gpu), torch.randn(T, B, 5, device=gpu)
    expected = module(x, lengths=[6, 0, 3, 6])[0]
    torch.cuda.set_sync_debug_mode("error")
    try:
        wild = module(x, lengths=torch.tensor([10**9, -5, 3, 6]).pin_memory().to(gpu, non_blocking=True))[0]
        host = module(x, lengths=[6, 0, 3, 6])[0]
        packed = module(pack_padded_sequence(x, [6, 4, 4, 1]))[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(wild, expected) and torch.equal(host, expected) and isinstance(packed, PackedSequence)


@on_gpu
@each_layer
def test_the_current_streams_order_is_kept(gpu: str, kind: Any) -> None:
    """What comes before a call on its stream is seen by it, and what comes after it sees the call's results."""
    module, x = accelerated(kind(64, 64, num_layers=2)).to(gpu), torch.randn(50, B, 64, device=gpu)
    other = torch.randn_like(x)
    expected, gradients = [], []
    for given in (x, other):
        y, _ = module(given)
        expected.append(y.detach().clone())
        gradients.append(torch.autograd.grad(y.square().sum(), list(module.parameters())))
    torch.cuda.synchronize()
    for stream in (torch.cuda.Stream(), torch.cuda.current_stream()):
        given = torch.zeros_like(x)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            for k, value in enumerate((x, other)):
                torch.cuda._sleep(100_000_000)  # so long that a call elsewhere would come first
                given.copy_(value)
                y, _ = module(given)
                found = torch.autograd.grad(y.square().sum(), list(module.parameters()))
                sums = [y.detach() * 1, *(g * 1 for g in found)]
                given.zero_()
                assert not stream.query()  # nothing has waited
                stream.synchronize()
                assert torch.equal(sums[0], expected[k])
                assert all(torch.equal(a, b) for a, b in zip(sums[1:], gradients[k], strict=True))


@on_gpu
def test_two_streams_at_once(gpu: str) -> None:
    module, xs = ft.GRU(64, 64, device=gpu), [torch.randn(100, 8, 64, device=gpu) for _ in range(2)]
    expected = [module(x)[0].detach().clone() for x in xs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in xs]
    for _ in range(5):
        found = []
        for stream, x in zip(streams, xs, strict=True):
            with torch.cuda.stream(stream):
                found.append(module(x)[0])
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@on_gpu
def test_a_graph_captures_training_steps(gpu: str) -> None:
    module, x = ft.LSTM(32, 32, 2, device=gpu), torch.randn(20, B, 32, device=gpu)
    lengths = torch.tensor([20, 3, 11, 0], device=gpu)

    def step() -> Any:
        y, _ = module(x, lengths=lengths)
        return y.detach(), *torch.autograd.grad(y.square().sum(), list(module.parameters()))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = step()
    for _ in range(2):
        x.copy_(torch.randn_like(x))
        graph.replay()
        expected = step()
        assert all(torch.equal(a, b) for a, b in zip(held, expected, strict=True))
    with pytest.raises(ValueError, match="while a graph is captured"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        module(x, lengths=[20, 3, 11, 0])


@on_gpu
def test_a_training_loop_settles_to_no_fresh_memory(gpu: str) -> None:
    module, x = ft.LSTM(64, 64, 2, bidirectional=True, device=gpu), torch.randn(30, 8, 64, device=gpu)
    sizes = []
    for _ in range(6):
        module(x)[0].sum().backward()
        module.zero_grad(set_to_none=True)
        sizes.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert sizes[2:] == sizes[2:3] * 4


@on_gpu
def test_another_device_than_the_current_one(gpu: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one CUDA device")
    own, x = build(nn.LSTM), sequence()
    assert_near(
        [t.cpu() for t in outputs_and_gradients(accelerated(own).to("cuda:1"), moved(x, "cuda:1"))],
        outputs_and_gradients(own, x),
        DEPTH,
    )
    assert torch.cuda.current_device() == 0
    assert as_tuple(accelerated(own).to("cuda:1")(x.to("cuda:1"))[1])[0].device == torch.device("cuda:1")

"""fusedrnn.torch.AttentionDecoder on CUDA tensors: on a GPU, and on its stand-in on the host (torch_devices.py)."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch_devices import on_the_host, require_gpu  # noqa: E402

from fusedrnn.torch import AttentionDecoder, attention_device  # noqa: E402
from fusedrnn.torch import device as devices  # noqa: E402

T, B, S, INPUTS, HIDDEN, FEATURES, SIZE = 6, 3, 5, 4, 9, 7, 11
CELLS: list[dict[str, Any]] = [
    {"cell": "lstm"},
    {"cell": "lstm", "peephole": True, "coupled": True, "clip": 0.5},
    {"cell": "gru"},
    {"cell": "gru", "reset_after": False},
    {"cell": "rnn", "bias": False},
]


@pytest.fixture(params=["host", pytest.param("cuda", marks=pytest.mark.gpu)])
def where(request: pytest.FixtureRequest) -> Iterator[str]:
    """Name of the device whose tensors the CUDA engine takes."""
    if request.param == "cuda":
        require_gpu()
        yield "cuda"
        return
    with on_the_host(request.getfixturevalue("cuda_host_module")):
        yield "cpu"


@contextlib.contextmanager
def without_the_stand_in() -> Iterator[None]:
    """Tensors of the CPU on the CPU's engine."""
    before, devices.kind = devices.kind, devices.Cuda()
    try:
        yield
    finally:
        devices.kind = before


def inputs(where: str = "cpu", dtype: Any = torch.float64) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Any:
        drawn = torch.randn(*shape, generator=generator, dtype=torch.float64).to(torch.bfloat16)
        return drawn.to(where, dtype).requires_grad_()

    return {
        "x": draw(T, B, INPUTS),
        "memory": draw(S, B, FEATURES),
        "memory_lengths": [5, 0, 2],
        "state": (draw(1, B, HIDDEN), draw(1, B, HIDDEN)),
        "lengths": [6, 4, 0],
    }


def module(where: str = "cpu", dtype: Any = torch.float64, **options: Any) -> Any:
    torch.manual_seed(0)
    own = AttentionDecoder(INPUTS, HIDDEN, FEATURES, SIZE, dtype=torch.float64, **options)
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
    return own.to(where, dtype)


def run(own: Any, given: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """Everything that `attend` gives, and the gradients of it all, in float64 on the CPU."""
    state = given["state"] if own._own.cell == "lstm" else given["state"][0]
    found = own.attend(**{**given, "state": state})
    outputs = [found.y, found.context, *(found.state if isinstance(found.state, tuple) else (found.state,))]
    outputs += [t for t in (found.log_prob, found.entropy) if t is not None]
    total = sum(
        (t.double() * torch.linspace(-1, 1, t.numel(), dtype=torch.float64).reshape(t.shape).to(t.device)).sum()
        for t in outputs
    )
    states = state if isinstance(state, tuple) else (state,)
    wanted = [given["x"], given["memory"], *states, *own.parameters()]
    gradients = torch.autograd.grad(total, wanted)
    for gradient, tensor in zip(gradients, wanted, strict=True):
        assert gradient.dtype == tensor.dtype and gradient.device == tensor.device
    extra = [found.attention] + ([] if found.locations is None else [found.locations])
    return [t.detach().cpu() for t in (*outputs, *extra)], [g.cpu() for g in gradients]


def assert_near(ours: list[Any], theirs: list[Any], eps: float) -> None:
    """As many roundings as in `attention_cases.assert_close`."""
    bound = 4 * eps * (T * (INPUTS + HIDDEN + FEATURES + SIZE + S + B)) ** 0.5
    for one, other in zip(ours, theirs, strict=True):
        a, b = one.detach().double(), other.detach().double()
        assert a.shape == b.shape and float((a - b).abs().max()) <= bound * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("attention", ["soft", "hard"])
@pytest.mark.parametrize("options", CELLS, ids=str)
def test_against_the_cpu(where: str, options: dict[str, Any], attention: str) -> None:
    with without_the_stand_in():
        expected = run(module(attention=attention, **options), inputs())
    own = module(where, attention=attention, **options)
    found = run(own, inputs(where))
    for ours, theirs in zip(found, expected, strict=True):
        assert_near(ours, theirs, 2.0**-52)
    if attention == "hard":
        assert torch.equal(found[0][-1], expected[0][-1])
        assert not torch.equal(run(own, inputs(where))[0][-1], found[0][-1])  # the next call draws anew


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("options", CELLS[:4], ids=str)
def test_every_dtype(where: str, options: dict[str, Any], dtype: str) -> None:
    kind = getattr(torch, dtype)
    with without_the_stand_in():
        expected = run(module(**options), inputs())
    found = run(module(where, kind, **options), inputs(where, kind))
    assert found[0][0].dtype is kind and found[0][-1].dtype is torch.float32
    for ours, theirs in zip(found, expected, strict=True):
        assert_near(ours, theirs, torch.finfo(kind).eps)
    again = run(module(where, kind, **options), inputs(where, kind))
    for ours, theirs in zip(found, again, strict=True):
        assert all(map(torch.equal, ours, theirs))


def test_a_module_made_on_the_device(where: str) -> None:
    own = AttentionDecoder(INPUTS, HIDDEN, FEATURES, SIZE, device=where, dtype=torch.float32)
    assert all(p.device.type == where and p.abs().max() <= HIDDEN**-0.5 for p in own.parameters())
    given = inputs(where, torch.float32)
    with torch.no_grad():
        y = own(**given)[0]
        assert torch.equal(own.eval()(**given)[0], y) and not y.requires_grad


@pytest.mark.parametrize("kind", [torch.int64, torch.int32])
def test_lengths_on_the_device_are_clamped(where: str, kind: Any) -> None:
    own, given = module(where), inputs(where)
    expected = own(**given)
    wild = {"memory_lengths": torch.tensor([99, -4, 2], dtype=kind), "lengths": torch.tensor([6, 4, -1], dtype=kind)}
    found = own(**{**given, **{key: value.to(where) for key, value in wild.items()}})
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert torch.equal(own(**{**given, "lengths": np.array([6, 4, 0])})[0], expected[0])


def test_strides_and_batch_first(where: str) -> None:
    own, plain, given = module(where, batch_first=True), module(where), inputs(where)
    expected = plain(**given)
    turned = {key: given[key].transpose(0, 1) for key in ("x", "memory")}
    found = own(**{**given, **turned})
    assert_near([found[0].transpose(0, 1)], [expected[0]], 2.0**-52)
    sparse = {key: given[key].repeat_interleave(2, dim=2)[..., ::2] for key in ("x", "memory")}
    assert_near(list(plain(**{**given, **sparse})[:2]), list(expected[:2]), 2.0**-52)
    (expanded,) = torch.autograd.grad(expected[0].sum(), [given["x"]])  # whose gradient has strides of 0
    (whole,) = torch.autograd.grad((found[0] * torch.ones_like(found[0])).sum(), [given["x"]])
    assert_near([expanded], [whole], 2.0**-52)


def test_gradcheck(where: str) -> None:
    own, given = module(where, cell="gru"), inputs(where)

    def call(x: Any, memory: Any, state: Any, *parameters: Any) -> Any:
        values = dict(zip(dict(own.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(own, values, (x, memory, given["memory_lengths"], state, given["lengths"]))

    parameters = [p.detach().requires_grad_() for p in own.parameters()]
    assert torch.autograd.gradcheck(call, (given["x"], given["memory"], given["state"][0], *parameters))


def test_a_second_derivative_and_what_was_written_are_errors(where: str) -> None:
    own, given = module(where), inputs(where)
    (first,) = torch.autograd.grad(own(**given)[0].square().sum(), [given["x"]], create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        first.square().sum().backward()
    for spoil in (lambda y: own.weight_query.zero_(), lambda y: y.detach().zero_()):
        y = own(**given)[0]
        with torch.no_grad():
            spoil(y)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_nothing_keeps_a_graph_alive(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tape that referred to the tensors that autograd hangs it on would stay until the collector comes."""
    tapes: list[Any] = []
    forward = attention_device.DecoderCalls.forward

    def watched(*arguments: Any, **options: Any) -> Any:
        made = forward(*arguments, **options)
        tapes.append(weakref.ref(made.y))
        return made

    monkeypatch.setattr(attention_device.DecoderCalls, "forward", watched)
    gc.collect()
    gc.disable()
    try:
        y = module(where)(**inputs(where))[0]
        assert tapes[0]() is not None
        del y
        assert tapes[0]() is None
    finally:
        gc.enable()


ERRORS: list[tuple[Callable[[str], Any], str, Any]] = [
    (lambda w: module(w)(np.zeros((2, 3, 4)), inputs(w)["memory"]), "x", TypeError),
    (lambda w: module(w)(inputs(w)["x"].float(), inputs(w)["memory"]), "x", TypeError),
    (lambda w: module(w)(inputs(w)["x"].to("meta"), inputs(w)["memory"]), "x", TypeError),
    (lambda w: module(w)(inputs(w)["x"], inputs(w)["memory"].to_sparse()), "memory", TypeError),
    (lambda w: module(w)(inputs(w)["x"][0], inputs(w)["memory"]), "x", ValueError),
    (lambda w: module(w)(inputs(w)["x"][..., :2], inputs(w)["memory"]), "x", ValueError),
    (lambda w: module(w)(inputs(w)["x"], inputs(w)["memory"][..., :3]), "memory", ValueError),
    (lambda w: module(w)(inputs(w)["x"], inputs(w)["memory"][:, :2]), "memory", ValueError),
    (lambda w: module(w)(inputs(w)["x"], inputs(w)["memory"], [9, 0, 0]), "memory_lengths", ValueError),
    (lambda w: module(w)(inputs(w)["x"], inputs(w)["memory"], lengths=torch.ones(3).to(w)), "lengths", TypeError),
    (
        lambda w: module(w)(inputs(w)["x"], inputs(w)["memory"], lengths=torch.ones(2, dtype=torch.int64).to(w)),
        "lengths",
        ValueError,
    ),
    (lambda w: module(w)(inputs(w)["x"], inputs(w)["memory"], state=inputs(w)["state"][0]), "state", ValueError),
    (
        lambda w: module(w)(inputs(w)["x"], inputs(w)["memory"], state=(inputs(w)["x"], inputs(w)["x"])),
        "state",
        ValueError,
    ),
]


@pytest.mark.parametrize("number", range(len(ERRORS)))
def test_errors_name_the_argument(where: str, number: int) -> None:
    call, name, error = ERRORS[number]
    with pytest.raises(error, match=rf"^{name}\b"):
        call(where)

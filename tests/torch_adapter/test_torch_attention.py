"""fusedrnn.torch.AttentionDecoder: autograd's gradients against the library's own and against torch's operations."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from bitwise import assert_same

import fusedrnn as fr

torch = pytest.importorskip("torch")

from fusedrnn.torch import AttentionDecoder  # noqa: E402

T, B, S, INPUTS, HIDDEN, FEATURES, SIZE = 6, 3, 5, 4, 9, 7, 11


def inputs(dtype: Any = None, seed: int = 1) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Any:
        return torch.randn(*shape, generator=generator, dtype=dtype or torch.float64).requires_grad_()

    return {
        "x": draw(T, B, INPUTS),
        "memory": draw(S, B, FEATURES),
        "memory_lengths": torch.tensor([5, 0, 2]),
        "state": (draw(1, B, HIDDEN), draw(1, B, HIDDEN)),
        "lengths": torch.tensor([6, 4, 0]),
    }


def module(**options: Any) -> Any:
    torch.manual_seed(0)
    return AttentionDecoder(INPUTS, HIDDEN, FEATURES, SIZE, dtype=torch.float64, **options)


def by_operations(own: Any, x: Any, memory: Any, memory_lengths: Any, state: Any, lengths: Any) -> Any:
    """An LSTM decoder of torch's operations: y, context and the final state."""
    values, (h, c) = memory.transpose(0, 1), (s[0] for s in state)
    keys = values @ own.weight_memory.T + own.bias_attention
    absent = torch.arange(memory.shape[0]) >= memory_lengths[:, None]
    outputs, contexts = [], []
    for t, x_t in enumerate(x):
        running = (t < lengths)[:, None]
        scores = torch.tanh(keys + (h @ own.weight_query.T)[:, None]) @ own.weight_score
        shares = torch.softmax(scores.masked_fill(absent, -torch.inf), 1).masked_fill(absent, 0.0)
        context = torch.where(running, (shares[..., None] * values).sum(1), 0.0)
        z = torch.cat([x_t, context], 1) @ own.weight_ih_l0.T + own.bias_ih_l0 + h @ own.weight_hh_l0.T + own.bias_hh_l0
        i, f, g, o = z.chunk(4, 1)
        after_c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        after_h = torch.sigmoid(o) * torch.tanh(after_c)
        h, c = torch.where(running, after_h, h), torch.where(running, after_c, c)
        outputs.append(torch.where(running, h, 0.0))
        contexts.append(context)
    return torch.stack(outputs), torch.stack(contexts), (h[None], c[None])


def test_against_operations_of_torch() -> None:
    own, given = module(), inputs()
    # A row without memory would be 0 / 0 in torch's softmax, and its gradient nan.
    given["memory_lengths"] = torch.tensor([5, 1, 2])
    found, expected = own(**given), by_operations(own, **given)
    wanted = [given["x"], given["memory"], *given["state"], *own.parameters()]
    grads = []
    for y, context, (h, c) in (found, expected):
        weights = [torch.linspace(-1, 1, t.numel(), dtype=t.dtype).reshape(t.shape) for t in (y, context, h, c)]
        total = sum((t * w).sum() for t, w in zip((y, context, h, c), weights, strict=True))
        grads.append(torch.autograd.grad(total, wanted))
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("attention", ["soft", "hard"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_the_bits_of_the_library(cell: str, attention: str) -> None:
    own = module(cell=cell, attention=attention)
    given = inputs()
    if cell != "lstm":
        given["state"] = given["state"][0]
    native = fr.AttentionDecoder(
        INPUTS, HIDDEN, FEATURES, SIZE, cell=cell, attention=attention, dtype="float64", seed=own._own._options.seed
    )
    native.load_parameters(own.state_dict())

    def array(value: Any) -> Any:
        return tuple(map(array, value)) if isinstance(value, tuple) else value.detach().numpy()

    arguments = {key: array(value) for key, value in given.items()}
    y, context, state, tape = native.forward(**arguments)
    found = own.attend(**given)
    assert_same(array((found.y, found.context, found.state)), (y, context, state))
    assert_same(array(found.attention), tape.attention)
    assert not found.attention.requires_grad
    terms = [found.y.sum(), found.context.sum()]
    extra = {}
    if attention == "hard":
        assert_same(
            array((found.locations, found.log_prob, found.entropy)), (tape.locations, tape.log_prob, tape.entropy)
        )
        terms += [found.log_prob.sum(), found.entropy.sum()]
        extra = {"dlog_prob": np.ones((T, B)), "dentropy": np.ones((T, B))}
    else:
        assert found.locations is None and found.log_prob is None and found.entropy is None
    sum(terms).backward()
    grads = native.backward(tape, np.ones_like(y), np.ones_like(context), **extra)
    assert_same((array(given["x"].grad), array(given["memory"].grad)), (grads.x, grads.memory))
    for name, parameter in own.named_parameters():
        assert_same(array(parameter.grad), grads.parameters[name], name)


def test_modes_of_hard_attention() -> None:
    own, given = module(attention="hard"), inputs()
    drawn = own.attend(**given).locations
    assert (own.attend(**given).locations != drawn).any()
    own.eval()
    found = own.attend(**given)
    there = found.locations >= 0
    assert (found.attention.argmax(2)[there] == found.locations[there]).all()
    assert_same(own.attend(**given).locations.numpy(), found.locations.numpy())
    found.y.sum().backward()
    with torch.no_grad():
        assert not own(**given)[0].requires_grad
    assert_same(module(attention="hard").attend(**given).locations.numpy(), drawn.numpy())


def test_gradients_of_what_is_asked_for() -> None:
    own, given = module(), inputs()
    own.requires_grad_(False)
    y = own(given["x"].detach(), given["memory"], state=tuple(s.detach() for s in given["state"]))[0]
    (found,) = torch.autograd.grad(y.sum(), [given["memory"]])
    assert found.shape == given["memory"].shape and found.any()
    assert not own(given["x"].detach(), given["memory"].detach())[0].requires_grad


def test_gradcheck() -> None:
    own, given = module(cell="gru"), inputs()
    lengths = (given["memory_lengths"], given["lengths"])

    def call(x: Any, memory: Any, state: Any, *parameters: Any) -> Any:
        return torch.func.functional_call(
            own,
            dict(zip(dict(own.named_parameters()), parameters, strict=True)),
            (x, memory, lengths[0], state, lengths[1]),
        )

    parameters = [p.detach().requires_grad_() for p in own.parameters()]
    assert torch.autograd.gradcheck(call, (given["x"], given["memory"], given["state"][0], *parameters))


def test_a_second_derivative_is_an_error() -> None:
    own, given = module(), inputs()
    (first,) = torch.autograd.grad(own(**given)[0].square().sum(), [given["x"]], create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        first.square().sum().backward()


def test_what_was_written_since_is_an_error() -> None:
    own, given = module(), inputs()
    y = own(**given)[0]
    with torch.no_grad():
        own.weight_query.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_strides_and_batch_first() -> None:
    own = module(batch_first=True)
    plain, given = module(), inputs()
    given["state"] = None
    expected = plain(**given)
    turned = {key: given[key].transpose(0, 1) for key in ("x", "memory")}
    found = own(**{**given, **turned})
    torch.testing.assert_close(found[0].transpose(0, 1), expected[0], rtol=0, atol=0)
    sparse = {key: given[key].repeat_interleave(2, dim=2)[..., ::2] for key in ("x", "memory")}
    torch.testing.assert_close(plain(**{**given, **sparse})[:2], expected[:2], rtol=0, atol=0)


def test_a_module_is_torchs() -> None:
    own = module(cell="lstm", peephole=True, clip=2.0)
    assert repr(own) == "AttentionDecoder(4, 9, 7, 11, cell='lstm', peephole=True, clip=2.0, dtype='float64')"
    file = io.BytesIO()
    torch.save(own.state_dict(), file)
    file.seek(0)
    other = AttentionDecoder(INPUTS, HIDDEN, FEATURES, SIZE, peephole=True, clip=2.0).double()
    other.load_state_dict(torch.load(file))
    given = inputs()
    expected = own(**given)[0]
    assert_same(other(**given)[0].detach().numpy(), expected.detach().numpy())
    assert_same(copy.deepcopy(own)(**given)[0].detach().numpy(), expected.detach().numpy())
    single = own.float()(**inputs(torch.float32))[0]
    assert single.dtype is torch.float32
    default = AttentionDecoder(1, 2, 3, 4)
    assert all(p.dtype is torch.float32 and p.abs().max() <= 2**-0.5 for p in default.parameters())


def test_an_optimizer_of_torch_trains_it() -> None:
    torch.manual_seed(1)
    own = AttentionDecoder(1, 16, 4, 8, cell="gru")
    optimizer = torch.optim.Adam(own.parameters(), lr=0.02)
    x, memory = torch.zeros(3, 8, 1), torch.randn(4, 8, 4)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (own(x, memory)[1] - memory[2]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


ERRORS: list[tuple[Callable[[], Any], str, Any]] = [
    (lambda: AttentionDecoder(1, 2, 3, 4, cell="x"), "cell", ValueError),
    (lambda: AttentionDecoder(1, 2, 3, 4, dtype=torch.float16), "dtype", ValueError),
    (lambda: module()(np.zeros((2, 3, 4)), inputs()["memory"]), "x", TypeError),
    (lambda: module()(inputs()["x"].float(), inputs()["memory"]), "x", TypeError),
    (lambda: module()(inputs()["x"].to("meta"), inputs()["memory"]), "x", TypeError),
    (lambda: module()(inputs()["x"], inputs()["memory"].to_sparse()), "memory", TypeError),
    (lambda: module()(inputs()["x"][0], inputs()["memory"]), "x", ValueError),
    (lambda: module()(inputs()["x"], inputs()["memory"][..., :3]), "memory", ValueError),
    (lambda: module()(inputs()["x"], inputs()["memory"], torch.tensor([9, 0, 0])), "memory_lengths", ValueError),
    (lambda: module()(inputs()["x"], inputs()["memory"], lengths=torch.ones(3)), "lengths", TypeError),
    (lambda: module()(inputs()["x"], inputs()["memory"], state=inputs()["state"][0]), "state", ValueError),
    (lambda: module().half()(inputs()["x"], inputs()["memory"]), "x", TypeError),
]


@pytest.mark.parametrize(("call", "name", "error"), ERRORS)
def test_errors_name_the_argument(call: Callable[[], Any], name: str, error: Any) -> None:
    with pytest.raises(error, match=rf"^{name}\b"):
        call()

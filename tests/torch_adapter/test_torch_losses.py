"""CTC's and the transducer's loss as nodes of torch's graph."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import fusedrnn as fr  # noqa: E402
import fusedrnn.torch as frt  # noqa: E402


def ctc_batch(dtype: Any = None) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(30, 4, 11, generator=generator, dtype=dtype or torch.float64)
    return {
        "logits": logits.requires_grad_(),
        "targets": torch.randint(1, 11, (4, 6), generator=generator),
        "input_lengths": torch.tensor([30, 17, 22, 30]),
        "target_lengths": torch.tensor([6, 0, 3, 5]),
    }


def gradient(loss_of: Any, logits: Any, *arguments: Any, **options: Any) -> tuple[Any, Any]:
    """The loss of log_softmax(logits), and the gradient of the logits of a sum of losses."""
    fresh = logits.detach().clone().requires_grad_()
    loss = loss_of(torch.log_softmax(fresh, -1), *arguments, **options)
    (loss * torch.arange(1, 1 + loss.numel(), dtype=loss.dtype).reshape(loss.shape)).sum().backward()
    return loss.detach(), fresh.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("concatenated", [False, True])
def test_ctc_is_torchs(dtype: Any, reduction: str, concatenated: bool) -> None:
    batch = ctc_batch()
    targets = batch["targets"]
    if concatenated:
        targets = torch.cat([row[:n] for row, n in zip(targets, batch["target_lengths"], strict=True)])
    given = targets, batch["input_lengths"], batch["target_lengths"]
    expected, theirs = gradient(torch.nn.functional.ctc_loss, batch["logits"], *given, reduction=reduction)
    loss, ours = gradient(frt.ctc_loss, batch["logits"].to(dtype), *given, reduction=reduction)
    assert loss.dtype == dtype and loss.shape == expected.shape
    # Torch's logarithms and log-probabilities lose a few digits more than 30 frames would.
    eps = 64 * torch.finfo(dtype).eps
    torch.testing.assert_close(loss, expected.to(dtype), rtol=eps, atol=eps)
    torch.testing.assert_close(ours, theirs.to(dtype), rtol=eps, atol=8 * eps)


def test_ctc_takes_what_torch_takes() -> None:
    batch = ctc_batch()
    log_probs = torch.log_softmax(batch["logits"].detach(), -1)
    given = batch["targets"], batch["input_lengths"], batch["target_lengths"]
    expected = torch.nn.functional.ctc_loss(log_probs, *given)
    lists = batch["targets"].int(), tuple(batch["input_lengths"].tolist()), batch["target_lengths"].tolist()
    torch.testing.assert_close(frt.ctc_loss(log_probs, *lists), expected)
    batch_first = log_probs.transpose(0, 1).contiguous().transpose(0, 1)
    torch.testing.assert_close(frt.ctc_loss(batch_first, *given), expected)
    strided = torch.stack([log_probs, log_probs], -1)[..., 0]
    torch.testing.assert_close(frt.ctc_loss(strided, *given), expected)
    last = log_probs.roll(-1, 2), batch["targets"] - 1
    torch.testing.assert_close(frt.ctc_loss(*last, *given[1:], blank=10), expected)
    for reduction, integer in itertools.product(("mean", "none"), (torch.tensor, int)):
        alone = log_probs[:, 0], batch["targets"][0], integer(30), integer(6)
        if integer is int:
            alone = log_probs[:, 0], batch["targets"][0], (30,), (6,)
        theirs = torch.nn.functional.ctc_loss(*alone, reduction=reduction)
        ours = frt.ctc_loss(*alone, reduction=reduction)
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs)


def test_ctc_rows_that_cannot_be_aligned() -> None:
    logits = torch.zeros(2, 2, 3, requires_grad=True)
    given = torch.tensor([[1, 1], [1, 2]]), torch.tensor([2, 2]), torch.tensor([2, 2])
    loss, ours = gradient(frt.ctc_loss, logits, *given, reduction="none")
    assert loss[0] == torch.inf and not ours[:, 0].any() and torch.isfinite(ours).all()
    expected, theirs = gradient(torch.nn.functional.ctc_loss, logits, *given, zero_infinity=True)
    loss, ours = gradient(frt.ctc_loss, logits, *given, zero_infinity=True)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours, theirs)


def transducer_batch(dtype: Any = torch.float64) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"encoder": (6, 3, 5), "predictor": (5, 3, 5), "weight": (7, 5), "bias": (7,)}
    tensors = {
        name: torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for name, shape in shapes.items()
    }
    return {
        **tensors,
        "targets": torch.randint(1, 7, (3, 4), generator=generator),
        "input_lengths": torch.tensor([6, 2, 5]),
        "target_lengths": torch.tensor([4, 3, 0]),
    }


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_transducer_is_the_librarys(reduction: str, bias: bool) -> None:
    batch = transducer_batch(torch.float32)
    if not bias:
        batch["bias"] = None
    loss = frt.transducer_loss(**batch, reduction=reduction)
    dloss = torch.tensor([0.5, -1.0, 2.0]) if reduction == "none" else torch.tensor(0.5)
    loss.backward(dloss)
    arrays = {name: None if value is None else value.detach().numpy() for name, value in batch.items()}
    expected, tape = fr.transducer_loss_forward(**arrays, reduction=reduction)
    assert np.array_equal(loss.detach().numpy(), expected)
    found = fr.transducer_loss_backward(tape, dloss.numpy() if reduction == "none" else 0.5)
    for name, theirs in zip(("encoder", "predictor", "weight", "bias"), found, strict=True):
        assert (theirs is None) == (batch[name] is None)
        assert theirs is None or np.array_equal(batch[name].grad.numpy(), theirs)


def test_the_transducers_gradients_are_those_of_autograd() -> None:
    batch = transducer_batch()

    def loss(*tensors: Any) -> Any:
        return frt.transducer_loss(*tensors, batch["targets"], batch["input_lengths"], batch["target_lengths"])

    assert torch.autograd.gradcheck(loss, [batch[name] for name in ("encoder", "predictor", "weight", "bias")])


def test_tensors_of_other_strides() -> None:
    batch = transducer_batch()
    expected = frt.transducer_loss(**batch)
    expected.backward()
    other = {name: value.detach() if value.is_floating_point() else value for name, value in batch.items()}
    for name in ("encoder", "predictor", "weight"):
        axes = list(range(other[name].ndim))[::-1]
        other[name] = other[name].permute(axes).contiguous().permute(axes).requires_grad_()
    loss = frt.transducer_loss(**other)
    loss.backward()
    assert torch.equal(loss, expected)
    assert all(torch.equal(other[name].grad, batch[name].grad) for name in ("encoder", "predictor", "weight"))


def losses() -> list[tuple[Any, Any]]:
    """Each loss as a function of one tensor, and that tensor."""
    ctc, transducer = ctc_batch(), transducer_batch()
    given = ctc["targets"], ctc["input_lengths"], ctc["target_lengths"]
    return [
        (lambda t: frt.ctc_loss(torch.log_softmax(t, -1), *given), ctc["logits"]),
        (lambda t: frt.transducer_loss(**{**transducer, "encoder": t}), transducer["encoder"]),
    ]


@pytest.mark.parametrize("number", [0, 1])
def test_a_second_derivative_is_an_error(number: int) -> None:
    loss, tensor = losses()[number]
    (first,) = torch.autograd.grad(loss(tensor), tensor, create_graph=True)
    assert torch.equal(first, torch.autograd.grad(loss(tensor), tensor)[0])
    with pytest.raises(RuntimeError, match=r"^fusedrnn\.torch\.\w+ has no second derivative"):
        first.sum().backward()


def test_what_was_written_since_is_noticed() -> None:
    ctc, transducer = ctc_batch(), transducer_batch()
    log_probs, encoder = torch.log_softmax(ctc["logits"], -1), transducer["encoder"] * 1
    values = (
        frt.ctc_loss(log_probs, ctc["targets"], ctc["input_lengths"], ctc["target_lengths"]),
        frt.transducer_loss(**{**transducer, "encoder": encoder}),
    )
    for tensor, value in zip((log_probs, encoder), values, strict=True):
        tensor.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            value.backward()


@pytest.mark.parametrize("number", [0, 1])
def test_backward_may_run_twice(number: int) -> None:
    loss, tensor = losses()[number]
    value = loss(tensor)
    first = torch.autograd.grad(value, tensor, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(value, tensor)[0], first)


def test_losses_may_be_written_in_place() -> None:
    """As where infinite ones are set to 0."""
    batch = transducer_batch()
    expected = torch.autograd.grad(frt.transducer_loss(**batch, reduction="none").sum(), batch["encoder"])[0]
    value = frt.transducer_loss(**batch, reduction="none")
    value += 1
    assert torch.equal(torch.autograd.grad(value.sum(), batch["encoder"])[0], expected)


def test_without_a_graph_and_under_autocast() -> None:
    batch = transducer_batch(torch.float32)
    with torch.no_grad():
        assert not frt.transducer_loss(**batch).requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        encoder = torch.nn.functional.linear(batch["encoder"], torch.eye(5))
        assert encoder.dtype == torch.bfloat16
        loss = frt.transducer_loss(**{**batch, "encoder": encoder})
    loss.backward()
    assert loss.dtype == torch.float32 and batch["encoder"].grad.dtype == torch.float32


def test_under_a_compiler() -> None:
    batch = transducer_batch(torch.float32)
    loss = torch.compile(lambda encoder: 2 * frt.transducer_loss(**{**batch, "encoder": encoder}), backend="eager")
    assert torch.equal(loss(batch["encoder"]), 2 * frt.transducer_loss(**batch))


ERRORS = [
    (lambda: frt.ctc_loss(np.zeros((3, 1, 2)), [[1]], [3], [1]), "log_probs", TypeError),
    (lambda: frt.ctc_loss(torch.zeros(3, 1, 2, dtype=torch.bfloat16), [[1]], [3], [1]), "log_probs", TypeError),
    (lambda: frt.ctc_loss(torch.zeros(3, 1, 2, device="meta"), [[1]], [3], [1]), "log_probs", TypeError),
    (lambda: frt.ctc_loss(torch.zeros(2), [[1]], [3], [1]), "log_probs", ValueError),
    (lambda: frt.ctc_loss(torch.zeros(3, 1, 0), [[1]], [3], [1]), "log_probs", ValueError),
    (lambda: frt.ctc_loss(torch.zeros(3, 1, 2), torch.ones(1, 1), [3], [1]), "targets", TypeError),
    (lambda: frt.ctc_loss(torch.zeros(3, 1, 2), torch.ones(1, 1, device="meta"), [3], [1]), "targets", TypeError),
    (lambda: frt.ctc_loss(torch.zeros(3, 1, 2), torch.tensor([[2]]), [3], [1]), "targets", ValueError),
    (lambda: frt.ctc_loss(torch.zeros(3, 1, 2), torch.tensor([[1]]), [4], [1]), "input_lengths", ValueError),
    (lambda: frt.transducer_loss(**{**transducer_batch(), "encoder": None}), "encoder", TypeError),
    (lambda: frt.transducer_loss(**{**transducer_batch(), "weight": torch.zeros(7, 4).double()}), "weight", ValueError),
    (lambda: frt.transducer_loss(**transducer_batch(), blank=7), "blank", ValueError),
    (lambda: frt.transducer_loss(**transducer_batch(), reduction="max"), "reduction", ValueError),
]


@pytest.mark.parametrize("number", range(len(ERRORS)))
def test_what_cannot_be_is_named(number: int) -> None:
    call, name, error = ERRORS[number]
    with pytest.raises(error, match=rf"^{name}\b"):
        call()

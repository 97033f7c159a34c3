"""fusedrnn.torch.ctc_loss and transducer_loss on CUDA tensors: on a GPU, and on its stand-in (torch_devices.py)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from devices import stand_in

torch = pytest.importorskip("torch")

from torch_devices import on_the_host, require_gpu  # noqa: E402

import fusedrnn as fr  # noqa: E402
import fusedrnn.torch as frt  # noqa: E402
from fusedrnn.torch import device as devices  # noqa: E402

LENGTHS = ("input_lengths", "target_lengths")


@pytest.fixture(params=["host", pytest.param("cuda", marks=pytest.mark.gpu)])
def where(request: pytest.FixtureRequest) -> Iterator[str]:
    """Name of the device whose tensors the CUDA engine takes."""
    if request.param == "cuda":
        require_gpu()
        yield "cuda"
        return
    with on_the_host(request.getfixturevalue("cuda_host_module")):
        yield "cpu"


def ctc_case(dtype: Any = np.float64) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "log_probs": rng.standard_normal((30, 4, 11)).astype(dtype),
        "targets": rng.integers(1, 11, (4, 6)),
        "input_lengths": np.array([30, 17, 22, 30]),
        "target_lengths": np.array([6, 0, 3, 5]),
    }


def transducer_case(dtype: Any = np.float64) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    shapes = {"encoder": (6, 3, 5), "predictor": (5, 3, 5), "weight": (7, 5), "bias": (7,)}
    return {
        **{name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()},
        "targets": rng.integers(1, 7, (3, 4)),
        "input_lengths": np.array([6, 2, 5]),
        "target_lengths": np.array([4, 3, 0]),
    }


CASES = {"ctc_loss": ctc_case, "transducer_loss": transducer_case}


def results(name: str, given: dict[str, Any], where: str, dtype: Any = None, **options: Any) -> list[Any]:
    """The loss and the gradients of a weighted sum of it, on the CPU; lists stay lists."""
    moved = {k: torch.as_tensor(v).to(where) if isinstance(v, np.ndarray) else v for k, v in given.items()}
    leaves = {k: v for k, v in moved.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
    leaves = {k: v.to(dtype or v.dtype).clone().requires_grad_() for k, v in leaves.items()}
    loss = getattr(frt, name)(**{**moved, **leaves}, **options)
    weights = torch.arange(1, 1 + loss.numel(), dtype=loss.dtype, device=loss.device).reshape(loss.shape)
    (loss * weights).sum().backward()
    return [loss.detach().cpu(), *(leaf.grad.cpu() for leaf in leaves.values())]


def of_arrays(name: str, given: dict[str, Any], device: Any = None, **options: Any) -> list[Any]:
    """The same by the functions of arrays, on a device or on the CPU."""
    put, get = (device.put, device.get) if device else (lambda x: x, lambda x: x)
    moved = {("logits" if k == "log_probs" else k): put(v) for k, v in given.items()}
    loss, tape = getattr(fr, f"{name}_forward")(**moved, **options)
    rows = given["input_lengths"].shape[0]
    dloss = put(np.arange(1, 1 + rows, dtype=loss.dtype)) if options.get("reduction") == "none" else 1.0
    gradients = getattr(fr, f"{name}_backward")(tape, dloss)
    return [get(part) for part in (loss, *(gradients if isinstance(gradients, tuple) else (gradients,)))]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", CASES)
def test_they_are_the_librarys_bits(cuda_host_module: Any, name: str, reduction: str, dtype: str) -> None:
    given = CASES[name](dtype)
    with on_the_host(cuda_host_module):
        found = results(name, given, "cpu", reduction=reduction)
    with stand_in(cuda_host_module) as device:
        expected = of_arrays(name, given, device, reduction=reduction)
    for tensor, array in zip(found, expected, strict=True):
        assert np.array_equal(tensor.numpy(), array) and tensor.numpy().dtype == array.dtype


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", CASES)
def test_they_are_the_cpus_numbers(where: str, name: str, reduction: str) -> None:
    given = CASES[name]()
    expected = of_arrays(name, given, reduction=reduction)
    # Sums of tens of terms of about 1, in another order.
    for tensor, array in zip(results(name, given, where, reduction=reduction), expected, strict=True):
        np.testing.assert_allclose(tensor.numpy(), array, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CASES)
def test_tensors_of_16_bits(where: str, name: str, dtype: Any) -> None:
    given = {
        k: torch.as_tensor(v).to(dtype).double().numpy() if v.dtype.kind == "f" else v for k, v in CASES[name]().items()
    }
    loss, *gradients = results(name, given, where, dtype, reduction="none")
    wanted, *slopes = of_arrays(name, given, reduction="none")
    eps = torch.finfo(dtype).eps
    assert loss.dtype == torch.float32
    # CTC's sums are in float32; the transducer's hidden values have 16 bits, and errors of many add up.
    near = 64 * torch.finfo(torch.float32).eps if name == "ctc_loss" else 4 * eps
    np.testing.assert_allclose(loss.numpy(), wanted, rtol=near, atol=near)
    for tensor, slope in zip(gradients, slopes, strict=True):
        assert tensor.dtype == dtype
        largest = np.abs(slope).max()
        bound = eps * np.abs(slope) + (1e-5 if name == "ctc_loss" else 4 * eps) * largest
        np.testing.assert_array_less(np.abs(tensor.double().numpy() - slope), bound + 1e-30)


@pytest.mark.parametrize("name", CASES)
def test_integers_may_lie_anywhere(where: str, name: str) -> None:
    given = CASES[name]("float32")
    usual = results(name, given, where, reduction="none")
    lists = {k: given[k].tolist() for k in ("targets", *LENGTHS)}
    for of_host in (("targets",), LENGTHS, ("targets", *LENGTHS), ("target_lengths",)):
        mixed = {**given, **{k: lists[k] for k in of_host}}
        for found, wanted in zip(results(name, mixed, where, reduction="none"), usual, strict=True):
            assert torch.equal(found, wanted)
    short = {**given, "targets": given["targets"].astype(np.int32)}
    for found, wanted in zip(results(name, short, where, reduction="none"), usual, strict=True):
        assert torch.equal(found, wanted)


def test_ctc_takes_what_torch_takes(where: str) -> None:
    given = ctc_case()
    log_probs = torch.log_softmax(torch.as_tensor(given["log_probs"]).to(where), -1)
    integers = [torch.as_tensor(given[k]).to(where) for k in ("targets", *LENGTHS)]
    expected = torch.nn.functional.ctc_loss(log_probs.cpu(), *(one.cpu() for one in integers)).to(where)
    torch.testing.assert_close(frt.ctc_loss(log_probs, *integers), expected)
    joined = torch.cat([row[:n] for row, n in zip(integers[0], given["target_lengths"], strict=True)])
    torch.testing.assert_close(frt.ctc_loss(log_probs, joined, *integers[1:]), expected)
    torch.testing.assert_close(frt.ctc_loss(log_probs, joined, *(one.tolist() for one in integers[1:])), expected)
    batch_first = log_probs.transpose(0, 1).contiguous().transpose(0, 1)
    torch.testing.assert_close(frt.ctc_loss(batch_first, *integers), expected)
    assert not frt.ctc_loss(log_probs, *integers).requires_grad
    for reduction in ("mean", "none"):
        alone = log_probs[:, 0], integers[0][0], torch.tensor(30).to(where), torch.tensor(6).to(where)
        theirs = torch.nn.functional.ctc_loss(*(one.cpu() for one in alone), reduction=reduction)
        torch.testing.assert_close(frt.ctc_loss(*alone, reduction=reduction).cpu(), theirs)


def test_what_the_device_alone_sees_is_nan(where: str) -> None:
    ctc, transducer = ctc_case(), transducer_case()
    ctc["targets"][1:, 0] = transducer["targets"][0, 0] = 99
    losses, gradient = results("ctc_loss", ctc, where, reduction="none")
    assert torch.isnan(losses).tolist() == [False, False, True, True] and torch.isfinite(gradient[:, :2]).all()
    losses, dencoder, *_ = results("transducer_loss", transducer, where, reduction="none")
    assert torch.isnan(losses).tolist() == [True, False, False] and torch.isfinite(dencoder[:, 1:]).all()


@pytest.mark.parametrize("name", CASES)
def test_strides_and_what_has_no_gradient(where: str, name: str) -> None:
    given = {k: torch.as_tensor(v).to(where) for k, v in CASES[name]().items()}
    usual = getattr(frt, name)(**given)
    strided = {k: torch.stack([v, v], -1)[..., 0] if v.is_floating_point() else v for k, v in given.items()}
    assert torch.equal(getattr(frt, name)(**strided), usual)
    first = next(iter(given))
    leaf = given[first].clone().requires_grad_()
    getattr(frt, name)(**{**given, first: leaf}).backward()
    np.testing.assert_array_equal(leaf.grad.cpu(), results(name, CASES[name](), where)[1])


@pytest.mark.parametrize("name", CASES)
def test_a_second_derivative_is_an_error(where: str, name: str) -> None:
    given = {k: torch.as_tensor(v).to(where) for k, v in CASES[name]().items()}
    first = next(iter(given))
    leaf = given[first].requires_grad_()
    (gradient,) = torch.autograd.grad(getattr(frt, name)(**given), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=rf"^fusedrnn\.torch\.{name} has no second derivative"):
        gradient.sum().backward()
    written = given[first] * 1
    loss = getattr(frt, name)(**{**given, first: written})
    written.detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", CASES)
def test_autocast_computes_in_float32(where: str, name: str) -> None:
    given = {k: torch.as_tensor(v).to(where) for k, v in CASES[name]("float32").items()}
    short = {k: v.bfloat16() if v.is_floating_point() else v for k, v in given.items()}
    rounded = {k: v.float() if v.is_floating_point() else v for k, v in short.items()}
    with torch.autocast(where, torch.bfloat16):
        found = getattr(frt, name)(**short)
    assert found.dtype == torch.float32 and torch.equal(found, getattr(frt, name)(**rounded))


ERRORS: list[tuple[str, dict[str, Any], str, Any]] = [
    ("ctc_loss", {"log_probs": torch.zeros(3, 2, 4).long()}, "log_probs", TypeError),
    ("ctc_loss", {"log_probs": torch.zeros(4)}, "log_probs", ValueError),
    ("ctc_loss", {"log_probs": torch.zeros(3, 2, 0)}, "log_probs", ValueError),
    ("ctc_loss", {"targets": [[0], [1]]}, "targets must .* not be the blank", ValueError),
    ("ctc_loss", {"targets": torch.ones(2, 1)}, "targets", TypeError),
    ("ctc_loss", {"targets": torch.ones(3, 1, 1).long()}, "targets", ValueError),
    ("ctc_loss", {"input_lengths": [4, 1]}, "input_lengths", ValueError),
    ("ctc_loss", {"input_lengths": torch.ones(3).long()}, "input_lengths", ValueError),
    ("ctc_loss", {"target_lengths": torch.ones(2)}, "target_lengths", TypeError),
    ("ctc_loss", {"blank": 4}, "blank", ValueError),
    ("ctc_loss", {"reduction": "max"}, "reduction", ValueError),
    ("ctc_loss", {"zero_infinity": 1}, "zero_infinity", TypeError),
    ("transducer_loss", {"encoder": torch.zeros(3, 2)}, "encoder", ValueError),
    ("transducer_loss", {"encoder": torch.zeros(3, 2, 5).int()}, "encoder", TypeError),
    ("transducer_loss", {"predictor": torch.zeros(2, 3, 5)}, "predictor", ValueError),
    ("transducer_loss", {"predictor": torch.zeros(2, 2, 5).double()}, "predictor", TypeError),
    ("transducer_loss", {"weight": torch.zeros(7, 4)}, "weight", ValueError),
    ("transducer_loss", {"weight": np.zeros((7, 5), np.float32)}, "weight", TypeError),
    ("transducer_loss", {"bias": torch.zeros(6)}, "bias", ValueError),
    ("transducer_loss", {"targets": [[7], [1]]}, "targets", ValueError),
    ("transducer_loss", {"targets": torch.ones(2, 2).long()}, "targets", ValueError),
    ("transducer_loss", {"target_lengths": [2, 1]}, "target_lengths", ValueError),
    ("transducer_loss", {"blank": 7}, "blank", ValueError),
    ("transducer_loss", {"reduction": "max"}, "reduction", ValueError),
]
PLAIN: dict[str, dict[str, Any]] = {
    "ctc_loss": {
        "log_probs": torch.zeros(3, 2, 4),
        "targets": [[1], [1]],
        "input_lengths": [3, 3],
        "target_lengths": [1, 1],
    },
    "transducer_loss": {
        "encoder": torch.zeros(3, 2, 5),
        "predictor": torch.zeros(2, 2, 5),
        "weight": torch.zeros(7, 5),
        "bias": torch.zeros(7),
        "targets": [[1], [1]],
    },
}


@pytest.mark.parametrize("number", range(len(ERRORS)))
def test_what_cannot_be_is_named(where: str, number: int) -> None:
    name, changed, words, error = ERRORS[number]
    given = {**PLAIN[name], **changed}
    moved = {k: v.to(where) if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    with pytest.raises(error, match=rf"^{words}\b"):
        getattr(frt, name)(**moved)


@pytest.mark.parametrize("name", CASES)
def test_what_is_missing_is_told(cuda_host_module: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with on_the_host(cuda_host_module):
        monkeypatch.setattr(devices.kind, "reason", "the module is not there")
        with pytest.raises(RuntimeError, match=rf"{name} cannot run on cpu: the module is not there"):
            getattr(frt, name)(**PLAIN[name])

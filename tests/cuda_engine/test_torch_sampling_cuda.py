"""fusedrnn.torch.grid_sample on CUDA tensors: on a GPU, and on its stand-in on the host (torch_devices.py)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from devices import stand_in
from vision_cases import EDGES, sampling_case

torch = pytest.importorskip("torch")

from torch_devices import on_the_host, require_gpu  # noqa: E402

import fusedrnn as fr  # noqa: E402
import fusedrnn.torch as frt  # noqa: E402
from fusedrnn.torch import device as devices  # noqa: E402


@pytest.fixture(params=["host", pytest.param("cuda", marks=pytest.mark.gpu)])
def where(request: pytest.FixtureRequest) -> Iterator[str]:
    """Name of the device whose tensors the CUDA engine takes."""
    if request.param == "cuda":
        require_gpu()
        yield "cuda"
        return
    with on_the_host(request.getfixturevalue("cuda_host_module")):
        yield "cpu"


def sampled(function: Any, arrays: tuple[Any, ...], where: str, *options: Any) -> list[Any]:
    """The output and the gradients, on the CPU."""
    input, grid, dout = (torch.as_tensor(array).to(where) for array in arrays)
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (input, grid)]
    out = function(*leaves, *options)
    out.backward(dout)
    return [tensor.detach().cpu() for tensor in (out, *(leaf.grad for leaf in leaves))]


@pytest.mark.parametrize(("mode", "padding_mode", "align_corners"), EDGES)
def test_values_and_gradients_are_torchs(where: str, mode: str, padding_mode: str, align_corners: bool) -> None:
    arrays = sampling_case(5, (2, 5, 7, 17), (17, 19), np.float64)
    options = (mode, padding_mode, align_corners)
    expected = sampled(torch.nn.functional.grid_sample, arrays, "cpu", *options)
    # A point's place has the error of a few roundings, in pixels; a gradient of a pixel sums up to all points.
    bound = 8 * 17 * torch.finfo(torch.float64).eps * 17 * 19
    for found, wanted in zip(sampled(frt.grid_sample, arrays, where, *options), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=bound, atol=bound)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_they_are_the_librarys_bits(cuda_host_module: Any, dtype: str) -> None:
    arrays = sampling_case(6, (3, 2, 9, 8), (5, 70), np.dtype(dtype))
    with on_the_host(cuda_host_module):
        found = sampled(frt.grid_sample, arrays, "cpu", "bilinear", "border", True)
    with stand_in(cuda_host_module) as device:
        input, grid, dout = device.put(arrays)
        out, tape = fr.grid_sample_forward(input, grid, padding_mode="border", align_corners=True)
        expected = device.get((out, *fr.grid_sample_backward(tape, dout)))
    for tensor, array in zip(found, expected, strict=True):
        assert np.array_equal(tensor.numpy(), array)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wide", [False, True])
def test_images_of_16_bits(where: str, dtype: Any, wide: bool) -> None:
    image, grid, dout = map(torch.as_tensor, sampling_case(7, (2, 3, 6, 5), (8, 9), np.float32))
    given = image.to(dtype), grid if wide else grid.to(dtype), dout.to(dtype)
    options = ("bilinear", "zeros", False)
    found = sampled(frt.grid_sample, given, where, *options)
    assert [tensor.dtype for tensor in found] == [dtype, dtype, given[1].dtype]
    expected = sampled(torch.nn.functional.grid_sample, tuple(t.double() for t in given), "cpu", *options)
    eps = torch.finfo(dtype).eps
    for tensor, wanted in zip(found, expected, strict=True):
        # Rounded once, of sums in float32.
        torch.testing.assert_close(tensor.double(), wanted, rtol=eps, atol=2.0**-18)


def test_gradients_that_nobody_asks_for(where: str) -> None:
    image, grid, _ = (torch.as_tensor(array).to(where) for array in sampling_case(8, (2, 3, 6, 5), (8, 9), np.float64))
    both = sampled(frt.grid_sample, (image, grid, torch.ones(2, 3, 8, 9, dtype=torch.float64)), where)
    for number in (0, 1):
        leaves = [image.clone(), grid.clone()]
        leaves[number].requires_grad_()
        frt.grid_sample(*leaves).sum().backward()
        assert leaves[1 - number].grad is None and torch.equal(leaves[number].grad.cpu(), both[1 + number])
    assert not frt.grid_sample(image, grid).requires_grad


def test_tensors_of_other_strides(where: str) -> None:
    arrays = tuple(torch.as_tensor(array) for array in sampling_case(9, (2, 3, 6, 5), (8, 9), np.float32))
    others = tuple(t.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0) for t in arrays)
    for found, wanted in zip(
        sampled(frt.grid_sample, others, where), sampled(frt.grid_sample, arrays, where), strict=True
    ):
        assert torch.equal(found, wanted)


def test_a_second_derivative_is_an_error(where: str) -> None:
    image, grid, _ = (torch.as_tensor(array).to(where) for array in sampling_case(8, (1, 2, 4, 5), (3, 2), np.float64))
    image.requires_grad_(), grid.requires_grad_()
    for gradient in torch.autograd.grad(frt.grid_sample(image, grid).square().sum(), (image, grid), create_graph=True):
        with pytest.raises(RuntimeError, match=r"^fusedrnn\.torch\.grid_sample has no second derivative"):
            gradient.sum().backward(retain_graph=True)
    out = frt.grid_sample(image * 1, grid)
    out.grad_fn.saved_tensors[0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_autocast_takes_the_wider_dtype(where: str) -> None:
    image, grid = torch.zeros(1, 1, 3, 3, device=where), torch.zeros(1, 2, 2, 2, device=where)
    with torch.autocast(where, torch.bfloat16):
        assert frt.grid_sample(image.bfloat16(), grid).dtype == torch.float32
        assert frt.grid_sample(image.bfloat16(), grid.bfloat16()).dtype == torch.bfloat16


IMAGE, GRID = torch.zeros(1, 2, 3, 3), torch.zeros(1, 4, 5, 2)
ERRORS = [
    (lambda put: frt.grid_sample(put(IMAGE.long()), put(GRID)), "input", TypeError),
    (lambda put: frt.grid_sample(put(IMAGE), GRID.numpy()), "grid", TypeError),
    (lambda put: frt.grid_sample(put(IMAGE), GRID.to("meta")), "grid", TypeError),
    (lambda put: frt.grid_sample(put(IMAGE), put(GRID.double())), "grid", TypeError),
    (lambda put: frt.grid_sample(put(IMAGE), put(GRID.half())), "grid", TypeError),
    (lambda put: frt.grid_sample(put(IMAGE[0]), put(GRID)), "input", ValueError),
    (lambda put: frt.grid_sample(put(IMAGE[:, :, :0]), put(GRID)), "input", ValueError),
    (lambda put: frt.grid_sample(put(IMAGE), put(GRID.repeat(2, 1, 1, 1))), "grid", ValueError),
    (lambda put: frt.grid_sample(put(IMAGE), put(GRID[..., :1])), "grid", ValueError),
    (lambda put: frt.grid_sample(put(IMAGE), put(GRID), mode="bicubic"), "mode", ValueError),
    (lambda put: frt.grid_sample(put(IMAGE), put(GRID), padding_mode="wrap"), "padding_mode", ValueError),
    (lambda put: frt.grid_sample(put(IMAGE), put(GRID), align_corners="no"), "align_corners", TypeError),
]


@pytest.mark.parametrize("number", range(len(ERRORS)))
def test_what_cannot_be_is_named(where: str, number: int) -> None:
    call, name, error = ERRORS[number]
    with pytest.raises(error, match=rf"^{name}\b"):
        call(lambda tensor: tensor.to(where))


def test_what_is_missing_is_told(cuda_host_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with on_the_host(cuda_host_module):
        monkeypatch.setattr(devices.kind, "reason", "the module is not there")
        with pytest.raises(RuntimeError, match=r"grid_sample cannot run on cpu: the module is not there"):
            frt.grid_sample(IMAGE, GRID)

"""The sampling of images as a node of torch's graph."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import fusedrnn as fr  # noqa: E402
import fusedrnn.torch as frt  # noqa: E402

EDGES = [
    (mode, padding, align)
    for mode in ("bilinear", "nearest")
    for padding in ("zeros", "border", "reflection")
    for align in (False, True)
]


def images(dtype: Any = torch.float64, shape: tuple[int, ...] = (2, 3, 7, 5), points: Any = (8, 9)) -> tuple[Any, Any]:
    """Images, and a grid that reaches beyond them."""
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(shape, generator=generator, dtype=dtype)
    grid = 3 * torch.rand((shape[0], *points, 2), generator=generator, dtype=dtype) - 1.5
    return image.requires_grad_(), grid.requires_grad_()


def sampled(function: Any, inputs: tuple[Any, Any], *arguments: Any, **options: Any) -> list[Any]:
    """The output, and the gradients of a weighted sum of it."""
    fresh = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    out = function(*fresh, *arguments, **options)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
    (out * weights).sum().backward()
    return [out.detach(), *(tensor.grad for tensor in fresh)]


@pytest.mark.parametrize(("mode", "padding_mode", "align_corners"), EDGES)
@pytest.mark.parametrize(
    ("shape", "points"), [((1, 1, 1, 1), (1, 1)), ((2, 3, 7, 17), (17, 7)), ((1, 7, 129, 3), (1, 129))]
)
def test_values_and_gradients_are_torchs(
    shape: tuple[int, ...], points: tuple[int, int], mode: str, padding_mode: str, align_corners: bool
) -> None:
    inputs = images(shape=shape, points=points)
    # A point's place has the error of a few roundings, in pixels, whose values are at most 6. A gradient of a pixel
    # sums up to all points.
    bound = 8 * max(shape) * torch.finfo(torch.float64).eps * points[0] * points[1]
    expected = sampled(torch.nn.functional.grid_sample, inputs, mode, padding_mode, align_corners)
    for found, wanted in zip(
        sampled(frt.grid_sample, inputs, mode, padding_mode, align_corners), expected, strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=bound, atol=bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_they_are_the_librarys_bits(dtype: Any) -> None:
    inputs = images(dtype)
    found = sampled(frt.grid_sample, inputs, padding_mode="border", align_corners=True)
    arrays = [tensor.detach().numpy() for tensor in inputs]
    out, tape = fr.grid_sample_forward(*arrays, padding_mode="border", align_corners=True)
    weights = torch.linspace(-1, 1, out.size, dtype=dtype).reshape(out.shape)
    for tensor, array in zip(found, (out, *fr.grid_sample_backward(tape, weights.numpy())), strict=True):
        assert tensor.dtype == dtype and np.array_equal(tensor.numpy(), array)


def test_arguments_are_torchs() -> None:
    ours, theirs = (
        inspect.signature(function).parameters for function in (frt.grid_sample, torch.nn.functional.grid_sample)
    )
    assert list(ours) == list(theirs)
    assert [p.default for p in ours.values()] == [p.default for p in theirs.values()]
    inputs = images()
    assert torch.equal(frt.grid_sample(*inputs), frt.grid_sample(*inputs, align_corners=False))


def test_gradients_are_those_of_autograd() -> None:
    image, grid = images(shape=(1, 2, 4, 3), points=(2, 3))
    assert torch.autograd.gradcheck(frt.grid_sample, (image, grid))
    out = frt.grid_sample(image, grid.detach())
    out.sum().backward()
    assert image.grad is not None and grid.grad is None


def test_tensors_of_other_strides() -> None:
    image, grid = images()
    expected = sampled(frt.grid_sample, (image, grid))
    others = [
        tensor.detach().permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0).requires_grad_()
        for tensor in (image, grid)
    ]
    out = frt.grid_sample(*others)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
    out.backward(weights.permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3))
    for found, wanted in zip((out, others[0].grad, others[1].grad), expected, strict=True):
        assert torch.equal(found, wanted)
    expanded = frt.grid_sample(image, grid).sum()  # the gradient of a sum has strides of 0
    expanded.backward()
    assert torch.isfinite(image.grad).all()


def test_a_second_derivative_is_an_error() -> None:
    image, grid = images()
    first = torch.autograd.grad(frt.grid_sample(image, grid).square().sum(), (image, grid), create_graph=True)
    plain = torch.autograd.grad(frt.grid_sample(image, grid).square().sum(), (image, grid))
    assert all(torch.equal(a, b) for a, b in zip(first, plain, strict=True))
    for gradient in first:
        with pytest.raises(RuntimeError, match=r"^fusedrnn\.torch\.grid_sample has no second derivative"):
            gradient.sum().backward(retain_graph=True)


@pytest.mark.parametrize("number", [0, 1])
def test_what_was_written_since_is_noticed(number: int) -> None:
    inputs = [tensor * 1 for tensor in images()]
    out = frt.grid_sample(*inputs)
    inputs[number].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_backward_may_run_twice() -> None:
    image, grid = images()
    out = frt.grid_sample(image, grid).sum()
    first = torch.autograd.grad(out, (image, grid), retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(out, (image, grid)), strict=True))


def test_a_point_that_is_no_number() -> None:
    image, grid = images()
    with torch.no_grad():
        grid[0, 0, 0, 0] = torch.nan
    out = frt.grid_sample(image, grid)
    assert out[0, :, 0, 0].isnan().all() and out.isnan().sum() == out.shape[1]
    out.sum().backward()
    assert torch.isfinite(image.grad).all()


def test_without_a_graph_and_under_autocast() -> None:
    image, grid = images(torch.float32)
    with torch.no_grad():
        assert not frt.grid_sample(image, grid).requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        out = frt.grid_sample(image.bfloat16(), grid)
    out.sum().backward()
    assert out.dtype == torch.float32 and image.grad.dtype == torch.float32


def test_under_a_compiler() -> None:
    image, grid = images(torch.float32)
    sample = torch.compile(lambda image, grid: 2 * frt.grid_sample(image, grid), backend="eager")
    assert torch.equal(sample(image, grid), 2 * frt.grid_sample(image, grid))


IMAGE, GRID = torch.zeros(1, 2, 3, 3), torch.zeros(1, 4, 5, 2)
ERRORS = [
    (lambda: frt.grid_sample(IMAGE.numpy(), GRID), "input", TypeError),
    (lambda: frt.grid_sample(IMAGE.bfloat16(), GRID), "input", TypeError),
    (lambda: frt.grid_sample(IMAGE.to("meta"), GRID), "input", TypeError),
    (lambda: frt.grid_sample(IMAGE, GRID.long()), "grid", TypeError),
    (lambda: frt.grid_sample(IMAGE, GRID.double()), "grid", TypeError),
    (lambda: frt.grid_sample(IMAGE[0], GRID), "input", ValueError),
    (lambda: frt.grid_sample(torch.zeros(1, 2, 3, 3, 3), torch.zeros(1, 2, 2, 2, 3)), "input", ValueError),
    (lambda: frt.grid_sample(IMAGE[:, :, :0], GRID), "input", ValueError),
    (lambda: frt.grid_sample(IMAGE, GRID.repeat(2, 1, 1, 1)), "grid", ValueError),
    (lambda: frt.grid_sample(IMAGE, GRID, mode="bicubic"), "mode", ValueError),
    (lambda: frt.grid_sample(IMAGE, GRID, padding_mode="wrap"), "padding_mode", ValueError),
    (lambda: frt.grid_sample(IMAGE, GRID, align_corners="no"), "align_corners", TypeError),
]


@pytest.mark.parametrize("number", range(len(ERRORS)))
def test_what_cannot_be_is_named(number: int) -> None:
    call, name, error = ERRORS[number]
    with pytest.raises(error, match=rf"^{name}\b"):
        call()


def test_tensors_without_memory_are_refused() -> None:
    image, grid = torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 2, 2)
    with pytest.raises(TypeError, match=r"^input must be a tensor with elements in memory: it is sparse"):
        frt.grid_sample(image.to_sparse(), grid)
    with pytest.raises(TypeError, match=r"^input must be a tensor with elements in memory: it stands for others"):
        torch.vmap(lambda one: frt.grid_sample(one, grid))(image[None])

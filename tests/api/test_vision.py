"""Spatial transformer and DRAW: grids, sampling, reading and writing through Gaussians, forward and backward."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from fences import fenced
from vision_cases import EDGES, PADDING, WINDOWS, assert_close, sampling_case, scale_of, uniform, window_case

import fusedrnn as fr
from fusedrnn import reference

DTYPES = (np.float32, np.float64)


def differences(function: Any, x: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Central differences of a scalar function."""
    gradient = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        moved = [x.copy(), x.copy()]
        moved[0][place] += step
        moved[1][place] -= step
        gradient[place] = (function(moved[0]) - function(moved[1])) / (2 * step)
    return gradient


# ---- affine_grid ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 17), (7, 1), (17, 129), (129, 7)])
def test_affine_grid(height: int, width: int, align_corners: bool, dtype: Any) -> None:
    theta = uniform(1, 3, 2, 3, dtype=dtype, width=2)
    size = (3, 5, height, width)
    grid, tape = fr.affine_grid_forward(theta, size, align_corners=align_corners)
    assert grid.dtype == dtype and tape.nbytes == 0
    # Two products and two sums of numbers of at most 2 each.
    wanted = reference.affine_grid(theta, size, align_corners=align_corners)
    assert_close(grid, wanted, np.abs(theta).sum(axis=2)[:, None, None, :], 3)
    np.testing.assert_array_equal(fr.affine_grid(theta, size, align_corners=align_corners), grid)

    dgrid = uniform(2, 3, height, width, 2, dtype=dtype)
    wanted = reference.affine_grid_backward(dgrid, align_corners=align_corners)
    scale = reference.affine_grid_backward(np.abs(dgrid), align_corners=align_corners)[..., 2:]
    assert_close(fr.affine_grid_backward(tape, dgrid), wanted, scale, 4 + width / 16 + height)


def test_affine_grid_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    theta = uniform(3, 2, 2, 3)
    for align_corners in (False, True):
        wanted = torch.nn.functional.affine_grid(torch.tensor(theta), [2, 1, 5, 6], align_corners=align_corners)
        np.testing.assert_allclose(
            fr.affine_grid(theta, (2, 1, 5, 6), align_corners=align_corners), wanted.numpy(), rtol=0, atol=1e-15
        )


def test_affine_grid_of_nothing() -> None:
    grid, tape = fr.affine_grid_forward(np.zeros((0, 2, 3)), (0, 0, 4, 5))
    assert grid.shape == (0, 4, 5, 2)
    assert fr.affine_grid_backward(tape, grid).shape == (0, 2, 3)


@pytest.mark.parametrize(
    ("theta", "size", "error", "words"),
    [
        (np.zeros((2, 3)), (1, 1, 2, 2), ValueError, "theta must have shape"),
        (np.zeros((1, 2, 3), np.int64), (1, 1, 2, 2), TypeError, "theta"),
        ([[1.0]], (1, 1, 2, 2), TypeError, "theta"),
        (np.zeros((1, 2, 3)), (2, 1, 2, 2), ValueError, "size must have the batch size of theta, 1, not 2"),
        (np.zeros((1, 2, 3)), (1, 1, 0, 2), ValueError, r"size\[2\]"),
        (np.zeros((1, 2, 3)), (1, 1, 2), ValueError, "size must be"),
        (np.zeros((1, 2, 3)), 4, TypeError, "size must be"),
        (np.zeros((1, 2, 3)), (1, 1, 2.0, 2), TypeError, r"size\[2\]"),
    ],
)
def test_affine_grid_refuses(theta: Any, size: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        fr.affine_grid(theta, size)


# ---- grid_sample ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("mode", "padding_mode", "align_corners"), EDGES)
@pytest.mark.parametrize(
    ("shape", "points"),
    [((1, 1, 1, 1), (1, 1)), ((2, 3, 7, 17), (17, 19)), ((3, 1, 17, 2), (1, 129)), ((1, 7, 5, 4), (7, 1))],
)
def test_grid_sample(
    shape: tuple[int, ...], points: tuple[int, int], mode: str, padding_mode: str, align_corners: bool, dtype: Any
) -> None:
    image, grid, dout = sampling_case(5, shape, points, dtype)
    options: Any = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}
    out, tape = fr.grid_sample_forward(image, grid, **options)
    assert out.dtype == dtype and tape.nbytes == 0
    # A coordinate is rounded in units of the image's size, four weights of it multiply pixels of at most 1.
    size = max(shape[2:])
    wanted = reference.grid_sample(image, grid, **options)
    assert_close(out, wanted, np.ones_like(wanted), 16 + 8 * size)
    np.testing.assert_array_equal(fr.grid_sample(image, grid, **options), out)

    dinput, dgrid = fr.grid_sample_backward(tape, dout)
    wanted_input, wanted_grid = reference.grid_sample_backward(image, grid, dout, **options)
    count, _ = reference.grid_sample_backward(np.ones_like(image), grid, np.ones_like(dout), **options)
    assert_close(dinput, wanted_input, count + 4, 16 + 8 * size)
    assert_close(dgrid, wanted_grid, np.full_like(wanted_grid, shape[1] * size), 16 + 8 * size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 2, 1, 2), (1, 2, 2, 1), (2, 1, 5, 7)])
@pytest.mark.parametrize(("mode", "padding_mode", "align_corners"), EDGES)
def test_grid_sample_reads_no_byte_beside_its_arrays(
    mode: str, padding_mode: str, align_corners: bool, shape: tuple[int, ...], at_end: bool, dtype: Any
) -> None:
    arrays = sampling_case(7, shape, (17, 17), dtype)
    image, grid, dout = (fenced(array, at_end=at_end) for array in arrays)
    options: Any = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}
    out, tape = fr.grid_sample_forward(image, grid, **options)
    found = (out, *fr.grid_sample_backward(tape, dout))
    out, tape = fr.grid_sample_forward(*arrays[:2], **options)
    for one, wanted in zip(found, (out, *fr.grid_sample_backward(tape, arrays[2])), strict=True):
        np.testing.assert_array_equal(one, wanted)


@pytest.mark.parametrize(("mode", "padding_mode", "align_corners"), EDGES)
def test_grid_sample_is_torchs(mode: str, padding_mode: str, align_corners: bool) -> None:
    torch = pytest.importorskip("torch")
    image, grid, dout = sampling_case(9, (2, 3, 6, 5), (8, 9), np.float64)
    # Corners and edges too, the outermost ones included.
    grid[0, 0, :5] = [[-1, -1], [1, 1], [-1, 1], [0, 0], [1, -1]]
    options: Any = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}
    inputs = [torch.tensor(array, requires_grad=True) for array in (image, grid)]
    wanted = torch.nn.functional.grid_sample(*inputs, **options)
    wanted.backward(torch.tensor(dout))
    out, tape = fr.grid_sample_forward(image, grid, **options)
    np.testing.assert_allclose(out, wanted.detach().numpy(), rtol=0, atol=1e-13)
    for found, one in zip(fr.grid_sample_backward(tape, dout), inputs, strict=True):
        np.testing.assert_allclose(found, one.grad.numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("padding_mode", PADDING)
def test_grid_sample_by_differences(padding_mode: str) -> None:
    image, grid, dout = sampling_case(13, (1, 2, 4, 5), (3, 2), np.float64)
    tape = fr.grid_sample_forward(image, grid, padding_mode=padding_mode)[1]
    dinput, dgrid = fr.grid_sample_backward(tape, dout)

    def loss(image: np.ndarray, grid: np.ndarray) -> float:
        return float((reference.grid_sample(image, grid, padding_mode=padding_mode) * dout).sum())

    np.testing.assert_allclose(dinput, differences(lambda x: loss(x, grid), image), rtol=0, atol=1e-8)
    np.testing.assert_allclose(dgrid, differences(lambda x: loss(image, x), grid), rtol=0, atol=1e-7)


@pytest.mark.parametrize(("mode", "padding_mode", "align_corners"), EDGES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_point_that_is_not_finite(mode: str, padding_mode: str, align_corners: bool, value: float) -> None:
    image, grid, dout = sampling_case(17, (2, 2, 5, 7), (3, 4), np.float32)
    options: Any = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}
    plain, tape = fr.grid_sample_forward(image, grid, **options)
    bad = grid.copy()
    bad[1, 2, 3, 0] = value
    out, bad_tape = fr.grid_sample_forward(image, bad, **options)
    assert np.isnan(out[1, :, 2, 3]).all()
    out[1, :, 2, 3] = plain[1, :, 2, 3]
    np.testing.assert_array_equal(out, plain)
    without = dout.copy()
    without[1, :, 2, 3] = 0
    dinput, dgrid = fr.grid_sample_backward(bad_tape, dout)
    np.testing.assert_array_equal(dinput, fr.grid_sample_backward(tape, without)[0])
    assert np.isnan(dgrid[1, 2, 3]).all() if mode == "bilinear" else (dgrid == 0).all()
    assert np.isfinite(np.delete(dgrid.reshape(-1, 2), 1 * 12 + 2 * 4 + 3, axis=0)).all()


@pytest.mark.parametrize(("mode", "padding_mode", "align_corners"), EDGES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_points_far_away(mode: str, padding_mode: str, align_corners: bool, dtype: Any) -> None:
    image = uniform(19, 1, 1, 3, 4, dtype=dtype)
    far = np.array([1e9, -1e9, 2.0**33, 1e18, -1e30, np.finfo(dtype).max, -np.finfo(dtype).max], dtype)
    grid = np.array(list(itertools.product(far, far)), dtype).reshape(1, 7, 7, 2)
    options: Any = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}
    out, tape = fr.grid_sample_forward(image, grid, **options)
    dinput, dgrid = fr.grid_sample_backward(tape, np.ones_like(out))
    if padding_mode == "zeros":
        assert not out.any() and not dinput.any()
    else:
        assert np.isfinite(out).all() and np.abs(out).max() <= np.abs(image).max() * (1 + 4 * np.finfo(dtype).eps)
        np.testing.assert_allclose(dinput.sum(), 49, rtol=49 * np.finfo(dtype).eps)
    if padding_mode != "reflection":
        assert not dgrid.any()


def test_what_lies_outside_has_no_influence() -> None:
    image = np.full((1, 1, 3, 3), np.nan)
    image[0, 0, 1, 1] = 2.0
    middle = np.zeros((1, 1, 1, 2))
    assert fr.grid_sample(image, middle, mode="nearest") == 2
    outside = np.full((1, 1, 1, 2), 3.0)
    out, tape = fr.grid_sample_forward(image, outside)
    assert out == 0
    assert not fr.grid_sample_backward(tape, np.full_like(out, np.inf))[0].any()


def test_grid_sample_of_nothing() -> None:
    for shape, points in (((0, 2, 3, 4), (2, 2)), ((2, 0, 3, 4), (2, 2)), ((2, 2, 3, 4), (0, 5))):
        out, tape = fr.grid_sample_forward(np.ones(shape), np.zeros((shape[0], *points, 2)))
        assert out.shape == (*shape[:2], *points)
        dinput, dgrid = fr.grid_sample_backward(tape, out)
        assert not dinput.any() and dinput.shape == shape
        assert not dgrid.any() and dgrid.shape == (shape[0], *points, 2)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"input": np.zeros((2, 3, 4))}, ValueError, "input must have shape"),
        ({"input": np.zeros((1, 1, 0, 4))}, ValueError, "input"),
        ({"input": np.zeros((1, 1, 3, 4), np.int32)}, TypeError, "input"),
        ({"input": np.zeros((1, 1, 3, 8))[..., ::2]}, ValueError, "input must be C-contiguous"),
        ({"grid": np.zeros((1, 2, 2, 3))}, ValueError, "grid must have shape"),
        ({"grid": np.zeros((2, 2, 2, 2))}, ValueError, "grid must have shape"),
        ({"grid": np.zeros((1, 2, 2, 2), np.float32)}, TypeError, "grid"),
        ({"mode": "bicubic"}, ValueError, "mode"),
        ({"mode": 1}, TypeError, "mode"),
        ({"padding_mode": "wrap"}, ValueError, "padding_mode"),
        ({"align_corners": 1}, TypeError, "align_corners"),
    ],
)
def test_grid_sample_refuses(change: dict[str, Any], error: type[Exception], words: str) -> None:
    arguments: Any = {"input": np.zeros((1, 1, 3, 4)), "grid": np.zeros((1, 2, 2, 2))} | change
    with pytest.raises(error, match=words):
        fr.grid_sample(arguments.pop("input"), arguments.pop("grid"), **arguments)


# ---- gaussian_read, gaussian_write ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", WINDOWS)
def test_gaussian_windows(window: tuple[int, int, int, int], dtype: Any) -> None:
    _, height, width, count = window
    image, patch, attention = window_case(*window, dtype)
    # The exponents are rounded once: their size times eps. They reach some tens where a filter still has weight.
    roundings = 64.0 + height + width
    # A filter far outside has weights that are lost before they are divided by 1e-8.
    lost = 1e8 * height * width
    read, read_tape = fr.gaussian_read_forward(image, attention, count)
    assert read.dtype == dtype and read.shape == patch.shape and read_tape.nbytes == 0
    bound = scale_of(lambda x: reference.gaussian_read(x, attention, count), np.abs(image))
    assert_close(read, reference.gaussian_read(image, attention, count), bound, roundings, lost)
    written, write_tape = fr.gaussian_write_forward(patch, attention, (height, width))
    bound = scale_of(lambda x: reference.gaussian_write(x, attention, (height, width)), np.abs(patch))
    assert_close(written, reference.gaussian_write(patch, attention, (height, width)), bound, roundings, lost)

    for tape, backward, wanted, given, gradient in (
        (read_tape, fr.gaussian_read_backward, reference.gaussian_read_backward, image, patch),
        (write_tape, fr.gaussian_write_backward, reference.gaussian_write_backward, patch, image),
    ):
        found, expected = backward(tape, gradient), wanted(given, attention, gradient)
        # Of what is added up, a row's largest: the gradients where nothing cancels.
        largest = [np.abs(part) for part in wanted(np.abs(given), attention, np.abs(gradient))]
        scale = largest[0].max(axis=(1, 2, 3), keepdims=True) + 0 * expected[0]
        assert found[0].dtype == found[1].dtype == dtype
        assert_close(found[0], expected[0], scale, roundings, lost)
        scale = np.maximum(largest[1], np.abs(expected[1])).max(axis=1, keepdims=True) + 0 * expected[1]
        assert_close(found[1], expected[1], scale, roundings, lost)


@pytest.mark.parametrize("window", [(2, 5, 7, 3), (1, 4, 3, 1)])
def test_gaussian_gradients_by_differences(window: tuple[int, int, int, int]) -> None:
    _, height, width, count = window
    image, patch, attention = window_case(*window, np.float64)

    def read(image: np.ndarray, attention: np.ndarray) -> float:
        return float((reference.gaussian_read(image, attention, count) * patch).sum())

    def write(patch: np.ndarray, attention: np.ndarray) -> float:
        return float((reference.gaussian_write(patch, attention, (height, width)) * image).sum())

    found = fr.gaussian_read_backward(fr.gaussian_read_forward(image, attention, count)[1], patch)
    np.testing.assert_allclose(found[0], differences(lambda x: read(x, attention), image), rtol=0, atol=1e-8)
    np.testing.assert_allclose(found[1], differences(lambda x: read(image, x), attention), rtol=1e-7, atol=1e-8)
    found = fr.gaussian_write_backward(fr.gaussian_write_forward(patch, attention, (height, width))[1], image)
    np.testing.assert_allclose(found[0], differences(lambda x: write(x, attention), patch), rtol=0, atol=1e-8)
    np.testing.assert_allclose(found[1], differences(lambda x: write(patch, x), attention), rtol=1e-7, atol=1e-8)


def test_filters_beyond_the_image() -> None:
    """Their sums are below the bound: reading gives next to nothing, and no gradient is nan."""
    image = uniform(29, 2, 1, 6, 6)
    attention = np.array([[40.0, 0, -3, 0, 0], [0, -40, 1, 0, 0]])
    patch, tape = fr.gaussian_read_forward(image, attention, 3)
    np.testing.assert_allclose(patch, reference.gaussian_read(image, attention, 3), rtol=0, atol=1e-15)
    for part in fr.gaussian_read_backward(tape, np.ones_like(patch)):
        assert np.isfinite(part).all()


def test_gaussian_windows_of_nothing() -> None:
    patch, tape = fr.gaussian_read_forward(np.zeros((0, 1, 4, 4)), np.zeros((0, 5)), 2)
    assert patch.shape == (0, 1, 2, 2)
    assert [part.shape for part in fr.gaussian_read_backward(tape, patch)] == [(0, 1, 4, 4), (0, 5)]
    image, tape = fr.gaussian_write_forward(np.zeros((2, 0, 3, 3)), np.zeros((2, 5)), (4, 6))
    assert image.shape == (2, 0, 4, 6)
    assert not fr.gaussian_write_backward(tape, image)[1].any()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: fr.gaussian_read(np.zeros((1, 4, 4)), np.zeros((1, 5)), 2), ValueError, "image must have shape"),
        (lambda: fr.gaussian_read(np.zeros((1, 1, 0, 4)), np.zeros((1, 5)), 2), ValueError, "image"),
        (
            lambda: fr.gaussian_read(np.zeros((1, 1, 4, 4)), np.zeros((1, 4)), 2),
            ValueError,
            "attention must have shape",
        ),
        (lambda: fr.gaussian_read(np.zeros((1, 1, 4, 4)), np.zeros((1, 5), np.float32), 2), TypeError, "attention"),
        (lambda: fr.gaussian_read(np.zeros((1, 1, 4, 4)), np.zeros((1, 5)), 0), ValueError, "count"),
        (lambda: fr.gaussian_read(np.zeros((1, 1, 4, 4)), np.zeros((1, 5)), 2.0), TypeError, "count"),
        (lambda: fr.gaussian_write(np.zeros((1, 1, 4, 3)), np.zeros((1, 5)), (4, 4)), ValueError, "patch"),
        (lambda: fr.gaussian_write(np.zeros((1, 1, 3, 3)), np.zeros((1, 5)), (0, 4)), ValueError, r"size\[0\]"),
        (lambda: fr.gaussian_write(np.zeros((1, 1, 3, 3)), np.zeros((1, 5)), 4), TypeError, "size"),
        (lambda: fr.gaussian_write(np.zeros((1, 1, 3, 3)), np.zeros((1, 5)), (4, 4, 4)), ValueError, "size"),
    ],
)
def test_gaussian_windows_refuse(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("values", [(1e9, 0, -700, 0, 0), (0, 0, -705, 300, 0), (0, 0, -1000, 0, 0)])
def test_a_variance_that_vanishes_leaves_zeros_and_no_nan(values: tuple[float, ...]) -> None:
    patch, tape = fr.gaussian_read_forward(np.ones((1, 1, 5, 5)), np.array([values], float), 3)
    dimage, dattention = fr.gaussian_read_backward(tape, np.ones_like(patch))
    assert np.isfinite(patch).all() and np.isfinite(dimage).all() and np.isfinite(dattention).all()


# ---- all of them ----


OPERATIONS = ("affine_grid", "grid_sample", "gaussian_read", "gaussian_write")


def calls(dtype: Any) -> dict[str, Any]:
    """Each operation's forward, its gradient, and its backward, on arrays large enough for a team."""
    theta = uniform(31, 5, 2, 3, dtype=dtype)
    image, grid, dout = sampling_case(32, (6, 3, 61, 67), (64, 66), dtype)  # on 2 and 3 threads by images, on 7 not
    pictures, patches, attention = window_case(9, 28, 31, 12, dtype)
    size = (5, 1, 128, 129)
    return {
        "affine_grid": (lambda: fr.affine_grid_forward(theta, size), uniform(33, 5, 128, 129, 2, dtype=dtype)),
        "grid_sample": (lambda: fr.grid_sample_forward(image, grid, padding_mode="reflection"), dout),
        "gaussian_read": (lambda: fr.gaussian_read_forward(pictures, attention, 12), patches),
        "gaussian_write": (lambda: fr.gaussian_write_forward(patches, attention, (28, 31)), pictures),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_any_number_of_threads_gives_the_same_bits(name: str, dtype: Any) -> None:
    forward, gradient = calls(dtype)[name]
    backward = getattr(fr, f"{name}_backward")
    results = []
    before = fr.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            fr.set_num_threads(threads)
            out, tape = forward()
            parts = backward(tape, gradient)
            results.append([out, *(parts if isinstance(parts, tuple) else (parts,))])
    finally:
        fr.set_num_threads(before)
    for other in results[1:]:
        for part, wanted in zip(other, results[0], strict=True):
            assert part.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_tape_serves_twice_and_is_the_operations_own(name: str) -> None:
    forward, gradient = calls(np.float64)[name]
    backward = getattr(fr, f"{name}_backward")
    tape = forward()[1]
    first, second = backward(tape, gradient), backward(tape, gradient)
    for part, other in zip(*(x if isinstance(x, tuple) else (x,) for x in (first, second)), strict=True):
        np.testing.assert_array_equal(part, other)
    with pytest.raises(TypeError, match="tape must be the one that"):
        backward(object(), gradient)
    with pytest.raises((TypeError, ValueError), match=r"d(grid|out|patch|image) must"):
        backward(tape, gradient[:1])


@pytest.mark.parametrize("name", ["grid_sample", "gaussian_read", "gaussian_write"])
def test_a_row_alone_gives_the_same_bits(name: str) -> None:
    image, grid, dout = sampling_case(41, (4, 2, 9, 8), (5, 6), np.float32)
    pictures, patches, attention = window_case(2, 9, 8, 5, np.float32)
    functions: dict[str, Any] = {
        "grid_sample": (lambda r: fr.grid_sample_forward(image[r], grid[r]), dout),
        "gaussian_read": (lambda r: fr.gaussian_read_forward(pictures[r], attention[r], 5), patches),
        "gaussian_write": (lambda r: fr.gaussian_write_forward(patches[r], attention[r], (9, 8)), pictures),
    }
    forward, gradient = functions[name]
    backward = getattr(fr, f"{name}_backward")
    out, tape = forward(slice(None))
    together = [out, *backward(tape, gradient)]
    for row in range(4):
        rows = slice(row, row + 1)
        out, tape = forward(rows)
        for part, wanted in zip([out, *backward(tape, gradient[rows])], together, strict=True):
            assert part.tobytes() == wanted[rows].tobytes()

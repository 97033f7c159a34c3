"""Sampling grids, sampling, and windows of Gaussians, on a device and on its stand-in, against the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from bitwise import assert_same
from device_runs import widened
from devices import TestDevice
from vision_cases import EDGES, PADDING, WINDOWS, sampling_case, scale_of, uniform, window_case

import fusedrnn as fr
from fusedrnn import reference

DTYPES = ("float32", "float64", "bfloat16", "float16")
OPERATIONS = ("affine_grid", "grid_sample", "gaussian_read", "gaussian_write")


def as_dtype(array: np.ndarray, dtype: str) -> np.ndarray:
    return array.astype(getattr(ml_dtypes, dtype, dtype))


def assert_near(
    found: np.ndarray, wanted: np.ndarray, scale: np.ndarray | float, factor: float, lost: float = 1.0
) -> None:
    """Within `factor` roundings of `scale` in the accumulator's type, and one of the result where that has 16 bits.

    What is below the smallest normal number may be missing, `lost` times that.
    """
    assert found.shape == wanted.shape
    short = found.dtype.itemsize == 2
    sums, own = np.finfo(np.float32 if short else found.dtype), ml_dtypes.finfo(found.dtype)
    bound = factor * float(sums.eps) * np.abs(scale) + lost * float(sums.tiny)
    if short:
        bound = bound + float(own.eps) / 2 * np.abs(wanted) + float(own.smallest_subnormal)
    np.testing.assert_array_less(np.abs(found.astype(np.float64) - wanted), bound + np.zeros_like(wanted))


def run(device: TestDevice, name: str, arguments: tuple[Any, ...], gradient: Any, **options: Any) -> tuple[Any, ...]:
    """The result and the gradients of an operation, on the host."""
    out, tape = getattr(fr, f"{name}_forward")(*device.put(arguments), **options)
    assert isinstance(out, device.arrays.kind) and tape.nbytes == 0
    found = getattr(fr, f"{name}_backward")(tape, device.put(gradient))
    assert_same(device.get(getattr(fr, name)(*device.put(arguments), **options)), device.get(out))
    return device.get((out, *(found if isinstance(found, tuple) else (found,))))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 17), (7, 1), (17, 129), (129, 70)])
def test_affine_grid(device: TestDevice, height: int, width: int, align_corners: bool, dtype: str) -> None:
    theta, dgrid = as_dtype(uniform(1, 3, 2, 3, width=2), dtype), as_dtype(uniform(2, 3, height, width, 2), dtype)
    size = (3, 5, height, width)
    grid, dtheta = run(device, "affine_grid", (theta, size), dgrid, align_corners=align_corners)
    assert grid.dtype == dtheta.dtype == theta.dtype
    exact, slopes = widened(theta), widened(dgrid)
    # Two products and two sums of numbers of at most 2 each.
    wanted = reference.affine_grid(exact, size, align_corners=align_corners)
    assert_near(grid, wanted, np.abs(exact).sum(axis=2)[:, None, None, :], 3)
    # A thread adds up 32 pixels, 128 of them in pairs.
    wanted = reference.affine_grid_backward(slopes, align_corners=align_corners)
    scale = reference.affine_grid_backward(np.abs(slopes), align_corners=align_corners)[..., 2:]
    assert_near(dtheta, wanted, scale, 4 + 32 + 7)


def assert_sampled(
    found: tuple[Any, ...], image: np.ndarray, grid: np.ndarray, dout: np.ndarray, options: dict[str, Any]
) -> None:
    """The result and the gradients are those of the reference."""
    out, dinput, dgrid = found
    assert out.dtype == dinput.dtype == image.dtype and dgrid.dtype == grid.dtype
    image, grid, dout = widened((image, grid, dout))
    # A coordinate is rounded in units of the image's size, four weights of it multiply pixels of at most 1.
    size = max(image.shape[2:])
    wanted = reference.grid_sample(image, grid, **options)
    assert_near(out, wanted, np.ones_like(wanted), 16 + 8 * size)
    wanted_input, wanted_grid = reference.grid_sample_backward(image, grid, dout, **options)
    count, _ = reference.grid_sample_backward(np.ones_like(image), grid, np.ones_like(dout), **options)
    assert_near(dinput, wanted_input, count + 4, 16 + 8 * size)
    assert_near(dgrid, wanted_grid, np.full_like(wanted_grid, image.shape[1] * size), 16 + 8 * size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("mode", "padding_mode", "align_corners"), EDGES)
@pytest.mark.parametrize(
    ("shape", "points"),
    [((1, 1, 1, 1), (1, 1)), ((2, 3, 7, 17), (17, 19)), ((3, 1, 17, 2), (1, 129)), ((1, 7, 5, 4), (7, 1))],
)
def test_grid_sample(
    device: TestDevice,
    shape: tuple[int, ...],
    points: tuple[int, int],
    mode: str,
    padding_mode: str,
    align_corners: bool,
    dtype: str,
) -> None:
    image, grid, dout = (as_dtype(array, dtype) for array in sampling_case(5, shape, points, np.float32))
    options: Any = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}
    found = run(device, "grid_sample", (image, grid), dout, **options)
    assert_sampled(found, image, grid, dout, options)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_grid_of_float32_for_images_of_16_bits(device: TestDevice, dtype: str) -> None:
    image, grid, dout = sampling_case(6, (2, 5, 33, 40), (9, 31), np.float32)
    image, dout = as_dtype(image, dtype), as_dtype(dout, dtype)
    found = run(device, "grid_sample", (image, grid), dout, padding_mode="border")
    assert found[2].dtype == np.float32
    options = {"mode": "bilinear", "padding_mode": "border", "align_corners": False}
    assert_sampled(found, image, grid, dout, options)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_many_points_in_one_cell(device: TestDevice, mode: str) -> None:
    """More than a block of threads sorts at once, of an image whose points have all come together."""
    image, _, dout = sampling_case(7, (2, 3, 6, 5), (30, 27), np.float64)
    grid = np.full((2, 30, 27, 2), 0.3)
    grid[1, ::7] = -0.4
    options: Any = {"mode": mode, "padding_mode": "zeros", "align_corners": False}
    _, dinput, dgrid = run(device, "grid_sample", (image, grid), dout, mode=mode)
    wanted = reference.grid_sample_backward(image, grid, dout, **options)
    assert_near(dinput, wanted[0], np.full_like(image, 30 * 27), 30 * 27)
    assert_near(dgrid, wanted[1], np.full_like(grid, 3 * 6), 64)


@pytest.mark.parametrize(("mode", "padding_mode", "align_corners"), EDGES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_point_that_is_not_finite(
    device: TestDevice, mode: str, padding_mode: str, align_corners: bool, value: float
) -> None:
    image, grid, dout = sampling_case(17, (2, 2, 5, 7), (3, 4), np.float32)
    options: Any = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}
    without = dout.copy()
    without[1, :, 2, 3] = 0
    plain, dplain, _ = run(device, "grid_sample", (image, grid), without, **options)
    grid[1, 2, 3, 0] = value
    out, dinput, dgrid = run(device, "grid_sample", (image, grid), dout, **options)
    assert np.isnan(out[1, :, 2, 3]).all()
    out[1, :, 2, 3] = plain[1, :, 2, 3]
    np.testing.assert_array_equal(out, plain)
    np.testing.assert_array_equal(dinput, dplain)
    assert np.isnan(dgrid[1, 2, 3]).all() if mode == "bilinear" else (dgrid == 0).all()
    assert np.isfinite(np.delete(dgrid.reshape(-1, 2), 1 * 12 + 2 * 4 + 3, axis=0)).all()


@pytest.mark.parametrize(("mode", "padding_mode", "align_corners"), EDGES)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_points_far_away(device: TestDevice, mode: str, padding_mode: str, align_corners: bool, dtype: str) -> None:
    image = as_dtype(uniform(19, 1, 1, 3, 4), dtype)
    most = float(ml_dtypes.finfo(image.dtype).max)
    far = np.array([1e9, -1e9, 2.0**33, 1e18, -1e30, most, -most])
    grid = as_dtype(np.stack(np.meshgrid(far, far), -1)[None], dtype)
    dout = np.ones((1, 1, 7, 7), image.dtype)
    options: Any = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}
    out, dinput, dgrid = widened(run(device, "grid_sample", (image, grid), dout, **options))
    eps = float(ml_dtypes.finfo(image.dtype).eps)
    if padding_mode == "zeros":
        assert not out.any() and not dinput.any()
    else:
        assert np.isfinite(out).all() and np.abs(out).max() <= np.abs(widened(image)).max() * (1 + 4 * eps)
        np.testing.assert_allclose(dinput.sum(), 49, rtol=49 * eps)
    if padding_mode != "reflection":
        assert not dgrid.any()


def test_what_lies_outside_has_no_influence(device: TestDevice) -> None:
    image = np.full((1, 1, 3, 3), np.nan)
    image[0, 0, 1, 1] = 2.0
    assert device.get(fr.grid_sample(*device.put((image, np.zeros((1, 1, 1, 2)))), mode="nearest")) == 2
    outside = np.full((1, 1, 1, 2), 3.0)
    out, dinput, _ = run(device, "grid_sample", (image, outside), np.full((1, 1, 1, 1), np.inf))
    assert out == 0 and not dinput.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", WINDOWS)
def test_gaussian_windows(device: TestDevice, window: tuple[int, int, int, int], dtype: str) -> None:
    _, height, width, count = window
    image, patch, attention = (as_dtype(array, dtype) for array in window_case(*window, np.float64))
    read = run(device, "gaussian_read", (image, attention, count), patch)
    written = run(device, "gaussian_write", (patch, attention, (height, width)), image)
    assert_windows(read, written, (image, patch, attention), count)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_attention_of_float32_for_images_of_16_bits(device: TestDevice, dtype: str) -> None:
    image, patch, attention = window_case(2, 9, 11, 4, np.float32)
    image, patch = as_dtype(image, dtype), as_dtype(patch, dtype)
    read = run(device, "gaussian_read", (image, attention, 4), patch)
    written = run(device, "gaussian_write", (patch, attention, (9, 11)), image)
    assert read[2].dtype == written[2].dtype == np.float32
    assert_windows(read, written, (image, patch, attention), 4)


def assert_windows(read: tuple[Any, ...], written: tuple[Any, ...], arrays: tuple[Any, ...], count: int) -> None:
    """What was read and written, and the gradients, are those of the reference."""
    image, patch, attention = widened(arrays)
    height, width = image.shape[2:]
    assert read[1].dtype == written[0].dtype == arrays[0].dtype and read[0].dtype == written[1].dtype == arrays[1].dtype
    assert read[2].dtype == written[2].dtype == arrays[2].dtype
    # The exponents are rounded once: their size times eps. They reach some tens where a filter still has weight.
    roundings = 64.0 + height + width
    # A filter far outside has weights that are lost before they are divided by 1e-8.
    lost = 1e8 * height * width
    bound = scale_of(lambda x: reference.gaussian_read(x, attention, count), np.abs(image))
    assert_near(read[0], reference.gaussian_read(image, attention, count), bound, roundings, lost)
    bound = scale_of(lambda x: reference.gaussian_write(x, attention, (height, width)), np.abs(patch))
    assert_near(written[0], reference.gaussian_write(patch, attention, (height, width)), bound, roundings, lost)
    for found, wanted, given, gradient in (
        (read[1:], reference.gaussian_read_backward, image, patch),
        (written[1:], reference.gaussian_write_backward, patch, image),
    ):
        expected = wanted(given, attention, gradient)
        # Of what is added up, a row's largest: the gradients where nothing cancels.
        largest = [np.abs(part) for part in wanted(np.abs(given), attention, np.abs(gradient))]
        scale = largest[0].max(axis=(1, 2, 3), keepdims=True) + 0 * expected[0]
        assert_near(found[0], expected[0], scale, roundings, lost)
        scale = np.maximum(largest[1], np.abs(expected[1])).max(axis=1, keepdims=True) + 0 * expected[1]
        assert_near(found[1], expected[1], scale, roundings, lost)


def calls(rows: slice = slice(None)) -> dict[str, tuple[tuple[Any, ...], Any, dict[str, Any]]]:
    """Arguments, gradient and options of each operation, of some rows of four."""
    theta, dgrid = uniform(31, 4, 2, 3, dtype=np.float32), uniform(33, 4, 90, 61, 2, dtype=np.float32)
    image, grid, dout = sampling_case(32, (4, 6, 9, 8), (19, 17), np.float32)
    pictures, patches, attention = window_case(3, 9, 8, 5, np.float32)
    reflected = {"padding_mode": "reflection"}
    return {
        "affine_grid": ((theta[rows], (len(theta[rows]), 1, 90, 61)), dgrid[rows], {}),
        "grid_sample": ((image[rows], grid[rows]), dout[rows], reflected),
        "gaussian_read": ((pictures[rows], attention[rows], 5), patches[rows], {}),
        "gaussian_write": ((patches[rows], attention[rows], (9, 8)), pictures[rows], {}),
    }


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_row_alone_has_the_bits_it_has_in_a_batch(device: TestDevice, name: str) -> None:
    arguments, gradient, options = calls()[name]
    together = run(device, name, arguments, gradient, **options)
    assert_same(run(device, name, arguments, gradient, **options), together)
    for row in range(4):
        rows = slice(row, row + 1)
        arguments, gradient, options = calls(rows)[name]
        assert_same(run(device, name, arguments, gradient, **options), tuple(part[rows] for part in together))


@pytest.mark.parametrize("name", OPERATIONS)
def test_order_and_chunks_change_no_bit(device: TestDevice, name: str) -> None:
    """Threads from the last to the first; the points of one image at a time, or of three."""
    if device.real:
        pytest.skip("these are settings of the stand-in")
    native, (arguments, gradient, options) = device.arrays.native, calls()[name]
    expected = run(device, name, arguments, gradient, **options)
    for set_one in (
        lambda: native.set_reversed(True),
        lambda: native.set_chunk_bytes(1),
        lambda: native.set_chunk_bytes(3 * (8 * (91 + 2 * 323) + 8 * 323)),
    ):
        set_one()
        assert_same(run(device, name, arguments, gradient, **options), expected)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_tape_serves_twice_and_is_the_operations_own(device: TestDevice, name: str) -> None:
    arguments, gradient, options = device.put(calls()[name])
    backward = getattr(fr, f"{name}_backward")
    tape = getattr(fr, f"{name}_forward")(*arguments, **options)[1]
    first, second = backward(tape, gradient), backward(tape, gradient)
    assert_same(device.get(first), device.get(second))
    with pytest.raises(ValueError, match=r"^d(grid|out|patch|image) must have shape"):
        backward(tape, gradient[:1])
    with pytest.raises(TypeError, match=r"^d(grid|out|patch|image) must"):
        backward(tape, device.get(gradient))
    with pytest.raises(TypeError, match=r"^d(grid|out|patch|image) must"):
        backward(tape, gradient.astype(np.float64))


def test_nothing(device: TestDevice) -> None:
    grid, dtheta = run(device, "affine_grid", (np.zeros((0, 2, 3)), (0, 0, 4, 5)), np.zeros((0, 4, 5, 2)))
    assert grid.shape == (0, 4, 5, 2) and dtheta.shape == (0, 2, 3)
    for shape, points in (((0, 2, 3, 4), (2, 2)), ((2, 0, 3, 4), (2, 2)), ((2, 2, 3, 4), (0, 5))):
        arguments, dout = (np.ones(shape), np.zeros((shape[0], *points, 2))), np.zeros((*shape[:2], *points))
        out, dinput, dgrid = run(device, "grid_sample", arguments, dout)
        assert out.shape == dout.shape
        assert not dinput.any() and dinput.shape == shape
        assert not dgrid.any() and dgrid.shape == (shape[0], *points, 2)
    arguments = (np.zeros((0, 1, 4, 4)), np.zeros((0, 5)), 2)
    assert [part.shape for part in run(device, "gaussian_read", arguments, np.zeros((0, 1, 2, 2)))] == [
        (0, 1, 2, 2),
        (0, 1, 4, 4),
        (0, 5),
    ]
    for name, given, gradient in (
        ("gaussian_read", (np.zeros((2, 0, 3, 3)), np.zeros((2, 5)), 2), np.zeros((2, 0, 2, 2))),
        ("gaussian_write", (np.zeros((2, 0, 3, 3)), np.zeros((2, 5)), (4, 6)), np.zeros((2, 0, 4, 6))),
    ):
        assert not run(device, name, given, gradient)[2].any()


IMAGE, GRID, ATTENTION = np.zeros((1, 1, 3, 4)), np.zeros((1, 2, 2, 2)), np.zeros((1, 5))
ERRORS: list[tuple[Callable[[Callable[[Any], Any]], Any], type[Exception], str]] = [
    (lambda put: fr.affine_grid(put(np.zeros((2, 3))), (2, 1, 4, 4)), ValueError, "theta must have shape"),
    (lambda put: fr.affine_grid(put(np.zeros((1, 2, 4))), (1, 1, 4, 4)), ValueError, "theta must have shape"),
    (lambda put: fr.affine_grid(put(np.zeros((1, 2, 3), int)), (1, 1, 4, 4)), TypeError, "theta must"),
    (lambda put: fr.affine_grid(put(np.zeros((1, 2, 6)))[..., ::2], (1, 1, 4, 4)), ValueError, "theta must be C-cont"),
    (lambda put: fr.affine_grid(put(np.zeros((1, 2, 3))), (2, 1, 4, 4)), ValueError, "size must"),
    (lambda put: fr.grid_sample(put(np.zeros((2, 3, 4))), put(GRID)), ValueError, "input must have shape"),
    (lambda put: fr.grid_sample(put(np.zeros((1, 1, 0, 4))), put(GRID)), ValueError, "input must have shape"),
    (lambda put: fr.grid_sample(put(IMAGE.astype(int)), put(GRID)), TypeError, "input must"),
    (lambda put: fr.grid_sample(put(np.zeros((1, 1, 3, 8)))[..., ::2], put(GRID)), ValueError, "input must be C-cont"),
    (lambda put: fr.grid_sample(put(IMAGE), GRID), TypeError, "grid must be a"),
    (lambda put: fr.grid_sample(put(IMAGE), put(np.zeros((1, 2, 2, 3)))), ValueError, "grid must have shape"),
    (lambda put: fr.grid_sample(put(IMAGE), put(np.zeros((2, 2, 2, 2)))), ValueError, "grid must have shape"),
    (lambda put: fr.grid_sample(put(IMAGE), put(GRID.astype("f4"))), TypeError, "grid must"),
    (lambda put: fr.grid_sample(put(IMAGE.astype("f4")), put(GRID)), TypeError, "grid must"),
    (lambda put: fr.grid_sample(put(IMAGE), put(GRID), mode="bicubic"), ValueError, "mode"),
    (lambda put: fr.grid_sample(put(IMAGE), put(GRID), padding_mode="wrap"), ValueError, "padding_mode"),
    (lambda put: fr.grid_sample(put(IMAGE), put(GRID), align_corners=1), TypeError, "align_corners"),
    (lambda put: fr.gaussian_read(put(IMAGE[0]), put(ATTENTION), 2), ValueError, "image must have shape"),
    (lambda put: fr.gaussian_read(put(IMAGE[:, :, :0]), put(ATTENTION), 2), ValueError, "image must have shape"),
    (lambda put: fr.gaussian_read(put(IMAGE), put(ATTENTION[:, :4]), 2), ValueError, "attention must have shape"),
    (lambda put: fr.gaussian_read(put(IMAGE), put(ATTENTION.astype("f4")), 2), TypeError, "attention must"),
    (lambda put: fr.gaussian_read(put(IMAGE), ATTENTION, 2), TypeError, "attention must be a"),
    (lambda put: fr.gaussian_read(put(IMAGE), put(ATTENTION), 0), ValueError, "count"),
    (lambda put: fr.gaussian_write(put(IMAGE), put(ATTENTION), (4, 4)), ValueError, "patch must have shape"),
    (lambda put: fr.gaussian_write(put(IMAGE[..., :3]), put(ATTENTION), (0, 4)), ValueError, r"size\[0\]"),
]


@pytest.mark.parametrize("number", range(len(ERRORS)))
def test_what_cannot_be_is_named(device: TestDevice, number: int) -> None:
    call, error, words = ERRORS[number]
    with pytest.raises(error, match=f"^{words}"):
        call(device.put)


def test_arrays_of_another_device_are_refused(device: TestDevice) -> None:
    if device.arrays.count() < 2:
        pytest.skip("there is one CUDA device only")
    with pytest.raises(TypeError, match="grid must be on cuda:0, not on cuda:1"):
        fr.grid_sample(device.put(IMAGE), device.put(GRID, 1))
    with pytest.raises(TypeError, match="attention must be on cuda:0, not on cuda:1"):
        fr.gaussian_read(device.put(IMAGE), device.put(ATTENTION, 1), 2)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_graph_is_refused(device: TestDevice, name: str) -> None:
    if device.real:
        pytest.skip("the stand-in says that a graph is captured")
    arguments, gradient, options = device.put(calls()[name])
    tape = getattr(fr, f"{name}_forward")(*arguments, **options)[1]
    device.arrays.native.set_capturing(True)
    with pytest.raises(ValueError, match=r"^(theta|input|image|patch) must not be used while a graph"):
        getattr(fr, name)(*arguments, **options)
    with pytest.raises(ValueError, match=r"^tape must not be used while a graph"):
        getattr(fr, f"{name}_backward")(tape, gradient)


@pytest.mark.parametrize("padding_mode", PADDING)
def test_gradients_are_near_the_cpus(device: TestDevice, padding_mode: str) -> None:
    """On the corners and edges of pixels too, where the reference may take either side."""
    image, grid, dout = sampling_case(9, (2, 3, 6, 5), (8, 9), np.float64)
    grid[0, 0, :5] = [[-1, -1], [1, 1], [-1, 1], [0, 0], [1, -1]]
    for align_corners in (False, True):
        options: Any = {"padding_mode": padding_mode, "align_corners": align_corners}
        out, tape = fr.grid_sample_forward(image, grid, **options)
        expected = (out, *fr.grid_sample_backward(tape, dout))
        for found, wanted in zip(run(device, "grid_sample", (image, grid), dout, **options), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)

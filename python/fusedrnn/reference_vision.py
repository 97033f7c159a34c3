"""Sampling of images in plain NumPy, float64: `fusedrnn.reference` has its functions. Nothing here is fast."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def _middles(size: int, align_corners: bool) -> Array:
    """Coordinates of the middles of pixels, between -1 and 1."""
    if align_corners:
        return np.linspace(-1, 1, size) if size > 1 else np.zeros(1)
    return (2 * np.arange(size) + 1) / size - 1


def _base(height: int, width: int, align_corners: bool) -> Array:
    """(x, y, 1) of every pixel: (H, W, 3)."""
    y, x = np.meshgrid(_middles(height, align_corners), _middles(width, align_corners), indexing="ij")
    return np.stack([x, y, np.ones_like(x)], axis=-1)


def affine_grid(theta: npt.ArrayLike, size: tuple[int, int, int, int], *, align_corners: bool = False) -> Array:
    """(B, H, W, 2): theta (x, y, 1) for every pixel."""
    base = _base(size[2], size[3], align_corners)
    return np.asarray(np.einsum("hwk,brk->bhwr", base, np.asarray(theta, np.float64)))


def affine_grid_backward(dgrid: npt.ArrayLike, *, align_corners: bool = False) -> Array:
    """dtheta, (B, 2, 3)."""
    gradient = np.asarray(dgrid, np.float64)
    base = _base(gradient.shape[1], gradient.shape[2], align_corners)
    return np.asarray(np.einsum("bhwr,hwk->brk", gradient, base))


def _pixels(values: Array, size: int, padding_mode: str, align_corners: bool) -> tuple[Array, Array]:
    """Coordinates in pixels, and their derivatives by the grid's."""
    span = size - 1 if align_corners else size
    at = (values + 1) * span / 2 - (0.0 if align_corners else 0.5)
    slope = np.full_like(at, span / 2)
    if padding_mode == "zeros":
        return at, slope
    if padding_mode == "reflection":
        if span == 0:
            return np.zeros_like(at), np.zeros_like(at)
        low = 0.0 if align_corners else -0.5
        distance = np.abs(at - low)
        times, rest = np.floor(distance / span), np.fmod(distance, span)
        odd = times % 2 == 1
        slope = slope * np.where(at < low, -1, 1) * np.where(odd, -1, 1)
        at = np.where(odd, span - rest, rest) + low
    slope = np.where((at <= 0) | (at >= size - 1), 0.0, slope)
    return np.clip(at, 0, size - 1), slope


def _taps(
    input: Array, grid: Array, mode: str, padding_mode: str, align_corners: bool
) -> tuple[list[tuple[Any, ...]], Any]:
    """For each pixel of a point: image, line, column, weight, and the weight's derivatives by the grid's x and y.

    A pixel outside has the weight 0, and stands for the one at (0, 0). Also gives which points are finite.
    """
    height, width = input.shape[2:]
    finite: Any = np.isfinite(grid).all(axis=-1)
    x, x_slope = _pixels(np.where(finite, grid[..., 0], 0.0), width, padding_mode, align_corners)
    y, y_slope = _pixels(np.where(finite, grid[..., 1], 0.0), height, padding_mode, align_corners)
    zero = np.zeros_like(x)
    image = np.broadcast_to(np.arange(input.shape[0])[:, None, None], x.shape)
    if mode == "nearest":
        corners: list[tuple[Any, ...]] = [(np.rint(x), np.rint(y), zero + 1, zero, zero)]
    else:
        left, top = np.floor(x), np.floor(y)
        right, down = x - left, y - top
        corners = []
        for column, by_x, along_x in ((left, -1, 1 - right), (left + 1, 1, right)):
            for line, by_y, along_y in ((top, -1, 1 - down), (top + 1, 1, down)):
                corners.append((column, line, along_x * along_y, by_x * along_y * x_slope, by_y * along_x * y_slope))
    taps: list[tuple[Any, ...]] = []
    for column, line, weight, by_x, by_y in corners:
        there = finite & (column >= 0) & (column < width) & (line >= 0) & (line < height)
        at_line, at_column = (np.where(there, part, 0).astype(int) for part in (line, column))
        taps.append((image, at_line, at_column, *(np.where(there, part, 0.0) for part in (weight, by_x, by_y))))
    return taps, finite


def grid_sample(
    input: npt.ArrayLike,
    grid: npt.ArrayLike,
    *,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> Array:
    """(B, C, h, w)."""
    images, points = np.asarray(input, np.float64), np.asarray(grid, np.float64)
    taps, finite = _taps(images, points, mode, padding_mode, align_corners)
    out = np.zeros((*points.shape[:3], images.shape[1]))
    for image, line, column, weight, _, _ in taps:
        out += images[image, :, line, column] * weight[..., None]
    out[~finite] = np.nan
    return np.moveaxis(out, -1, 1)


def grid_sample_backward(
    input: npt.ArrayLike,
    grid: npt.ArrayLike,
    dout: npt.ArrayLike,
    *,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> tuple[Array, Array]:
    """dinput and dgrid."""
    images, points = np.asarray(input, np.float64), np.asarray(grid, np.float64)
    taps, finite = _taps(images, points, mode, padding_mode, align_corners)
    gradient = np.moveaxis(np.asarray(dout, np.float64), 1, -1)
    dinput, dgrid = np.zeros_like(images), np.zeros_like(points)
    for image, line, column, weight, by_x, by_y in taps:
        place: Any = (image, slice(None), line, column)
        np.add.at(dinput, place, gradient * weight[..., None])
        along = (images[image, :, line, column] * gradient).sum(axis=-1)
        dgrid += np.stack([along * by_x, along * by_y], axis=-1)
    if mode == "bilinear":
        dgrid[~finite] = np.nan
    return dinput, dgrid


_LEAST_SUM = 1e-8


def _offsets(count: int) -> Array:
    """Of the filters from the middle of the grid, in distances between filters."""
    return np.asarray(np.arange(1, count + 1) - count / 2 - 0.5, np.float64)


def _delta(log_distance: Array, height: int, width: int, count: int) -> Array:
    """The distance between filters in pixels."""
    if count == 1:
        return np.zeros_like(log_distance)
    return np.asarray((max(height, width) - 1) / (count - 1) * np.exp(log_distance))


def _distances(middle: Array, delta: Array, size: int, count: int) -> Array:
    """(B, N, A): from every filter's mean to every pixel of an axis."""
    mean = ((size + 1) * (middle + 1) / 2)[:, None] + _offsets(count) * delta[:, None]
    return np.asarray(np.arange(1, size + 1) - mean[..., None])


def _filters(middle: Array, log_variance: Array, delta: Array, size: int, count: int) -> tuple[Array, Array]:
    """(B, N, A): the weight of every pixel in every filter of an axis; and (B, N, 1), whose sum is bounded."""
    distance = _distances(middle, delta, size, count)
    weights = np.exp(-(distance**2) / (2 * np.exp(log_variance)[:, None, None]))
    total = weights.sum(axis=-1, keepdims=True)
    return weights / np.maximum(total, _LEAST_SUM), total < _LEAST_SUM


def _axis_gradient(attention: Array, axis: int, delta: Array, gradient: Array) -> tuple[Array, Array, Array]:
    """Gradients by the middle of the grid, log sigma^2 and delta, from that by an axis's filters, (B, N, A)."""
    count, size = gradient.shape[1:]
    filters, bounded = _filters(attention[:, axis], attention[:, 2], delta, size, count)
    distance = _distances(attention[:, axis], delta, size, count)
    variance = np.exp(attention[:, 2])[:, None, None]
    common = np.where(bounded, 0.0, (gradient * filters).sum(axis=-1, keepdims=True))
    by_exponent = (gradient - common) * filters
    by_mean = (by_exponent * distance / variance).sum(axis=-1)
    by_log_variance = (by_exponent * distance**2 / (2 * variance)).sum(axis=(1, 2))
    return by_mean.sum(axis=1) * (size + 1) / 2, by_log_variance, by_mean @ _offsets(count)


def _attention_gradient(attention: Array, across: Array, down: Array, by_log_factor: Array) -> Array:
    """dattention from the gradients of F_X and F_Y and of log gamma."""
    (count, width), height = across.shape[1:], down.shape[2]
    delta = _delta(attention[:, 3], height, width, count)
    x, x_log_variance, x_delta = _axis_gradient(attention, 0, delta, across)
    y, y_log_variance, y_delta = _axis_gradient(attention, 1, delta, down)
    return np.stack([x, y, x_log_variance + y_log_variance, (x_delta + y_delta) * delta, by_log_factor], axis=-1)


def _banks(attention: npt.ArrayLike, size: tuple[int, ...], count: int) -> tuple[Array, Array, Array]:
    """F_X, F_Y and gamma."""
    x, y, log_variance, log_distance, log_factor = np.asarray(attention, np.float64).T
    height, width = size
    delta = _delta(log_distance, height, width, count)
    across = _filters(x, log_variance, delta, width, count)[0]
    return across, _filters(y, log_variance, delta, height, count)[0], np.exp(log_factor)


def gaussian_read(image: npt.ArrayLike, attention: npt.ArrayLike, count: int) -> Array:
    """gamma F_Y image F_X^T, (B, C, N, N)."""
    images = np.asarray(image, np.float64)
    across, down, factor = _banks(attention, images.shape[2:], count)
    return np.asarray(factor[:, None, None, None] * np.einsum("bnh,bchw,bmw->bcnm", down, images, across))


def gaussian_write(patch: npt.ArrayLike, attention: npt.ArrayLike, size: tuple[int, int]) -> Array:
    """F_Y^T patch F_X / gamma, (B, C, H, W)."""
    patches = np.asarray(patch, np.float64)
    across, down, factor = _banks(attention, size, patches.shape[-1])
    return np.asarray(np.einsum("bnh,bcnm,bmw->bchw", down, patches, across) / factor[:, None, None, None])


def gaussian_read_backward(
    image: npt.ArrayLike, attention: npt.ArrayLike, dpatch: npt.ArrayLike
) -> tuple[Array, Array]:
    """dimage and dattention."""
    images, numbers, gradient = (np.asarray(array, np.float64) for array in (image, attention, dpatch))
    across, down, factor = _banks(numbers, images.shape[2:], gradient.shape[-1])
    scaled = gradient * factor[:, None, None, None]
    dimage = np.einsum("bnh,bcnm,bmw->bchw", down, scaled, across)
    dacross = np.einsum("bcnm,bnh,bchw->bmw", scaled, down, images)
    ddown = np.einsum("bcnm,bchw,bmw->bnh", scaled, images, across)
    by_log_factor = (gradient * gaussian_read(images, numbers, gradient.shape[-1])).sum(axis=(1, 2, 3))
    return dimage, _attention_gradient(numbers, dacross, ddown, by_log_factor)


def gaussian_write_backward(
    patch: npt.ArrayLike, attention: npt.ArrayLike, dimage: npt.ArrayLike
) -> tuple[Array, Array]:
    """dpatch and dattention."""
    patches, numbers, gradient = (np.asarray(array, np.float64) for array in (patch, attention, dimage))
    size = gradient.shape[2:]
    across, down, factor = _banks(numbers, size, patches.shape[-1])
    scaled = gradient / factor[:, None, None, None]
    dpatch = np.einsum("bnh,bchw,bmw->bcnm", down, scaled, across)
    dacross = np.einsum("bcnm,bnh,bchw->bmw", patches, down, scaled)
    ddown = np.einsum("bcnm,bchw,bmw->bnh", patches, scaled, across)
    by_log_factor = -(gradient * gaussian_write(patches, numbers, (size[0], size[1]))).sum(axis=(1, 2, 3))
    return dpatch, _attention_gradient(numbers, dacross, ddown, by_log_factor)

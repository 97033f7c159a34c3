"""Cases of the sampling of images, and of reading and writing through Gaussians, with bounds for their errors."""

from __future__ import annotations

from typing import Any

import numpy as np

PADDING = ("zeros", "border", "reflection")
EDGES = [(mode, padding, align) for mode in ("bilinear", "nearest") for padding in PADDING for align in (False, True)]
WINDOWS = [(1, 1, 1, 1), (2, 5, 7, 3), (1, 28, 28, 12), (3, 17, 9, 1), (1, 2, 129, 7), (2, 8, 8, 5)]  # C, H, W, N


def uniform(seed: int, *shape: int, dtype: Any = np.float64, width: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-width, width, shape).astype(dtype)


def assert_close(
    found: np.ndarray, wanted: np.ndarray, scale: np.ndarray | float, factor: float, lost: float = 1.0
) -> None:
    """Within `factor` roundings of `scale`, the sum of the absolute values of what was added up.

    What is below the smallest normal number may be missing, `lost` times that.
    """
    assert found.shape == wanted.shape
    bound = factor * np.finfo(found.dtype).eps * np.abs(scale) + lost * np.finfo(found.dtype).tiny
    np.testing.assert_array_less(np.abs(found - wanted), bound + np.zeros_like(wanted))


def sampling_case(seed: int, shape: tuple[int, ...], points: tuple[int, int], dtype: Any) -> tuple[Any, Any, Any]:
    """Image, grid that reaches beyond it, and gradient. Rounding moves no point across the border of a pixel."""
    image, dout = uniform(seed, *shape, dtype=dtype), uniform(seed + 1, shape[0], shape[1], *points, dtype=dtype)
    grid = uniform(seed + 2, shape[0], *points, 2, dtype=dtype, width=2.5)
    for axis, size in enumerate((shape[3], shape[2])):
        for span in (size, max(size - 1, 1)):
            near = np.abs((grid[..., axis] + 1) * span - np.rint((grid[..., axis] + 1) * span)) < 1e-3
            grid[..., axis] += np.where(near, np.array(3e-3, dtype), np.array(0, dtype))
    return image, grid, dout


def window_case(channels: int, height: int, width: int, count: int, dtype: Any) -> tuple[Any, Any, Any]:
    """Image, patch and attention of four rows: one narrow, one far outside, one wide, one in the middle."""
    attention = np.array(
        [[0.2, -0.3, -2, -0.5, 0.3], [5, 0, 0, 0, 0], [-0.5, 0.4, 2, 0.2, -0.7], [0, 0, 0, -1, 0]], dtype
    )
    image, patch = (
        uniform(23, 4, channels, height, width, dtype=dtype),
        uniform(24, 4, channels, count, count, dtype=dtype),
    )
    return image, patch, attention


def scale_of(function: Any, *arrays: np.ndarray) -> np.ndarray:
    """The largest result of a row: what its roundings are relative to."""
    wanted = np.abs(function(*arrays))
    return wanted.max(axis=tuple(range(1, wanted.ndim)), keepdims=True) + np.zeros_like(wanted)

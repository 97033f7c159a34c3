"""Sampling grids of affine maps: ``affine_grid``, ``affine_grid_forward`` and ``affine_grid_backward``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

from fusedrnn import _core
from fusedrnn.arguments import require_flag, require_integer
from fusedrnn.gradients import Array

_compiled = _core.operations["affine_grid"]
_forward: Callable[[Array, int, int, bool], Array] = _compiled.forward
_backward: Callable[[Array, Array, int, int, bool], Array] = _compiled.backward


@dataclass(frozen=True)
class AffineGridTape:
    """What the backward pass needs: it refers to theta, and holds nothing else."""

    theta: Array
    height: int
    width: int
    align_corners: bool

    @property
    def nbytes(self) -> int:
        """Bytes it holds beyond the array it refers to."""
        return 0


def affine_grid(theta: Array, size: Sequence[SupportsIndex], *, align_corners: bool = False) -> Array:
    """Points at which `grid_sample` reads an image under an affine map (Jaderberg et al. 2015).

    For the pixel in line i and column j of the output, ``grid[b, i, j] = theta[b] (x_j, y_i, 1)``. As in
    ``torch.nn.functional.affine_grid`` the coordinates -1 and 1 are the outer edges of the image or, with
    `align_corners`, the middles of its outer pixels.

    Parameters
    ----------
    theta : ndarray
        (B, 2, 3), float32 or float64, C-contiguous; NumPy's.
    size : sequence of 4 int
        (B, C, H, W) of the image that is to be made; C has no influence.
    align_corners : bool

    Returns
    -------
    ndarray
        (B, H, W, 2), of theta's dtype; the last axis is (x, y).

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind, dtype or shape; the message names it.
    """
    return affine_grid_forward(theta, size, align_corners=align_corners)[0]


def affine_grid_forward(
    theta: Array, size: Sequence[SupportsIndex], *, align_corners: bool = False
) -> tuple[Array, AffineGridTape]:
    """As `affine_grid`, and return (grid, tape)."""
    batch, height, width = _size_of(size)
    align_corners = require_flag(align_corners, "align_corners")
    shape: Any = getattr(theta, "shape", None)
    if shape is not None and len(shape) == 3 and shape[0] != batch:
        raise ValueError(f"size must have the batch size of theta, {shape[0]}, not {batch}")
    return _forward(theta, height, width, align_corners), AffineGridTape(theta, height, width, align_corners)


def affine_grid_backward(tape: AffineGridTape, dgrid: Array) -> Array:
    """Gradient of `affine_grid`: ``dtheta[b]`` is the sum over pixels of ``dgrid[b, i, j] (x_j, y_i, 1)``.

    Parameters
    ----------
    tape : AffineGridTape
        From `affine_grid_forward`. It is not written: it may be used again.
    dgrid : ndarray
        Gradient of the grid, in its shape and dtype, C-contiguous.

    Returns
    -------
    ndarray
        Gradient of theta, (B, 2, 3).

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind, dtype or shape; the message names it.
    """
    if not isinstance(tape, AffineGridTape):
        raise TypeError(f"tape must be the one that affine_grid_forward returned, not {type(tape).__name__}")
    return _backward(tape.theta, dgrid, tape.height, tape.width, tape.align_corners)


def _size_of(size: Any) -> tuple[int, int, int]:
    """Batch size, height and width of (B, C, H, W)."""
    if not isinstance(size, (tuple, list)):
        raise TypeError(f"size must be a tuple (B, C, H, W) of integers, not {type(size).__name__}")
    if len(size) != 4:
        raise ValueError(f"size must be (B, C, H, W), not {len(size)} numbers")
    batch, _, height, width = (
        require_integer(number, f"size[{axis}]", least=axis // 2) for axis, number in enumerate(size)
    )
    return batch, height, width

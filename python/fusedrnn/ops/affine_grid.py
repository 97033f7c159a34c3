"""Sampling grids of affine maps: ``affine_grid``, ``affine_grid_forward`` and ``affine_grid_backward``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

from fusedrnn import _core
from fusedrnn.arguments import require_flag, require_integer
from fusedrnn.arrays.checks import require_contiguous, require_float
from fusedrnn.arrays.device import Device, owner_of
from fusedrnn.gradients import Array
from fusedrnn.ops.device_call import require_no_graph, require_same, run

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
        (B, 2, 3), float32 or float64, C-contiguous; NumPy's, or CuPy's, there also bfloat16 or float16.
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
    tape = AffineGridTape(theta, height, width, align_corners)
    device = owner_of(theta)
    return (_forward(theta, height, width, align_corners) if device is None else _device_forward(device, tape)), tape


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
    device = owner_of(tape.theta)
    if device is None:
        return _backward(tape.theta, dgrid, tape.height, tape.width, tape.align_corners)
    return _device_backward(device, tape, dgrid)


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


def _call(device: Device, tape: AffineGridTape, **arrays: Array) -> Any:
    return device.native.AffineGridCall(
        dtype=tape.theta.dtype.name,
        images=tape.theta.shape[0],
        height=tape.height,
        width=tape.width,
        align_corners=tape.align_corners,
        **{name: device.address(array) for name, array in arrays.items()},
    )


def _device_forward(device: Device, tape: AffineGridTape) -> Array:
    """The grid."""
    theta = tape.theta
    require_no_graph(device, "theta", "affine_grid")
    require_float(theta, "theta")
    if theta.ndim != 3 or theta.shape[1:] != (2, 3):
        raise ValueError(f"theta must have shape (B, 2, 3), not {tuple(theta.shape)}")
    require_contiguous(theta, "theta")
    grid: Array = device.empty((theta.shape[0], tape.height, tape.width, 2), theta.dtype)
    run(device, _call(device, tape, theta=theta, grid=grid), "forward")
    return grid


def _device_backward(device: Device, tape: AffineGridTape, dgrid: Any) -> Array:
    """The gradient of theta."""
    theta = tape.theta
    require_no_graph(device, "tape", "affine_grid_backward")
    require_same(device, dgrid, "dgrid", (theta.shape[0], tape.height, tape.width, 2), theta.dtype)
    dtheta: Array = device.empty(theta.shape, theta.dtype)
    run(device, _call(device, tape, dgrid=dgrid, dtheta=dtheta), "backward")
    return dtheta

"""Images sampled at the points of a grid: ``grid_sample``, ``grid_sample_forward`` and ``grid_sample_backward``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fusedrnn import _core
from fusedrnn.arguments import require_choice, require_flag
from fusedrnn.gradients import Array

_compiled = _core.operations["grid_sample"]
_forward: Callable[[Array, Array, str, str, bool], Array] = _compiled.forward
_backward: Callable[[Array, Array, str, str, bool, Array], tuple[Array, Array]] = _compiled.backward

_MODES = ("bilinear", "nearest")
_PADDING_MODES = ("zeros", "border", "reflection")


@dataclass(frozen=True)
class GridSampleTape:
    """What the backward pass needs: it refers to input and grid, and holds nothing else."""

    input: Array
    grid: Array
    mode: str
    padding_mode: str
    align_corners: bool

    @property
    def nbytes(self) -> int:
        """Bytes it holds beyond the arrays it refers to."""
        return 0


def grid_sample(
    input: Array, grid: Array, *, mode: str = "bilinear", padding_mode: str = "zeros", align_corners: bool = False
) -> Array:
    """Sample images at the points of a grid (Jaderberg et al. 2015), as ``torch.nn.functional.grid_sample``.

    The coordinates -1 and 1 are the outer edges of the image or, with `align_corners`, the middles of its outer pixels.
    A point that is nan or infinite gives nan.

    Parameters
    ----------
    input : ndarray
        (B, C, H, W) with H and W at least 1, float32 or float64, C-contiguous; NumPy's.
    grid : ndarray
        (B, h, w, 2), of input's dtype, C-contiguous; the last axis is (x, y).
    mode : 'bilinear' or 'nearest'
        How pixels near a point are weighted. 'nearest' takes the even one of two that are equally near.
    padding_mode : 'zeros', 'border' or 'reflection'
        What lies outside the image: zeros, the nearest pixel of its border, or its mirror image.
    align_corners : bool

    Returns
    -------
    ndarray
        (B, C, h, w), of input's dtype. A point's result is bitwise the same for any number of threads and whatever
        other points there are.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind, dtype, shape or value; the message names it.
    """
    return grid_sample_forward(input, grid, mode=mode, padding_mode=padding_mode, align_corners=align_corners)[0]


def grid_sample_forward(
    input: Array, grid: Array, *, mode: str = "bilinear", padding_mode: str = "zeros", align_corners: bool = False
) -> tuple[Array, GridSampleTape]:
    """As `grid_sample`, and return (output, tape). Do not write input and grid before the backward pass."""
    mode = require_choice(mode, "mode", _MODES)
    padding_mode = require_choice(padding_mode, "padding_mode", _PADDING_MODES)
    align_corners = require_flag(align_corners, "align_corners")
    output = _forward(input, grid, mode, padding_mode, align_corners)
    return output, GridSampleTape(input, grid, mode, padding_mode, align_corners)


def grid_sample_backward(tape: GridSampleTape, dout: Array) -> tuple[Array, Array]:
    """Gradients of `grid_sample`.

    Parameters
    ----------
    tape : GridSampleTape
        From `grid_sample_forward`. It is not written: it may be used again.
    dout : ndarray
        Gradient of the output, in its shape and dtype, C-contiguous.

    Returns
    -------
    (ndarray, ndarray)
        Gradients of input and grid, in their shapes. The grid's is 0 in mode 'nearest'. Along an axis it is 0 where
        padding by 'border' or 'reflection' has moved the point to the outermost pixel. A point that is nan or infinite
        adds nothing to the gradient of the image; in mode 'bilinear' its own is nan.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind, dtype or shape; the message names it.
    """
    if not isinstance(tape, GridSampleTape):
        raise TypeError(f"tape must be the one that grid_sample_forward returned, not {type(tape).__name__}")
    return _backward(tape.input, tape.grid, tape.mode, tape.padding_mode, tape.align_corners, dout)

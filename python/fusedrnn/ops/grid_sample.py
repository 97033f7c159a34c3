"""Images sampled at the points of a grid: ``grid_sample``, ``grid_sample_forward`` and ``grid_sample_backward``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fusedrnn import _core
from fusedrnn.arguments import require_choice, require_flag
from fusedrnn.arrays.checks import require_array, require_contiguous
from fusedrnn.arrays.device import Device, owner_of
from fusedrnn.gradients import Array
from fusedrnn.ops.device_call import Space, require_no_graph, require_planes, require_same, run, wide_or_same

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
    A point that is nan or infinite gives nan. torch's vectors round a coordinate's product and sum in one: of a point
    at the very middle of a pixel, or between two of them with mode='nearest', another pixel or gradient may be torch's.

    Parameters
    ----------
    input : ndarray
        (B, C, H, W) with H and W at least 1, float32 or float64, C-contiguous; NumPy's, there with H and W below
        2**31, or CuPy's, there also bfloat16 or float16.
    grid : ndarray
        (B, h, w, 2), of input's dtype, C-contiguous; the last axis is (x, y). For an input of 16 bits it may be
        float32, which tells points apart that 16 bits do not.
    mode : 'bilinear' or 'nearest'
        How pixels near a point are weighted. 'nearest' takes the even one of two that are equally near.
    padding_mode : 'zeros', 'border' or 'reflection'
        What lies outside the image: zeros, the nearest pixel of its border, or its mirror image.
    align_corners : bool

    Returns
    -------
    ndarray
        (B, C, h, w), of input's dtype. A point's result is bitwise the same for any number of threads and whatever
        other points there are. The gradients of an image and its points are bitwise the same from run to run, on a
        device too, and whatever other images there are.

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
    mode, padding_mode, align_corners = require_options(mode, padding_mode, align_corners)
    tape = GridSampleTape(input, grid, mode, padding_mode, align_corners)
    device = owner_of(input)
    if device is not None:
        return _device_forward(device, tape), tape
    return _forward(input, grid, mode, padding_mode, align_corners), tape


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
    device = owner_of(tape.input)
    if device is not None:
        return _device_backward(device, tape, dout)
    return _backward(tape.input, tape.grid, tape.mode, tape.padding_mode, tape.align_corners, dout)


def call_of(space: Space, tape: GridSampleTape, dtype: str, wide: bool, **arrays: Any) -> Any:
    """A call on a device, of arrays or of torch's tensors; `wide`: the grid is of the accumulator's dtype."""
    images, channels, height, width = tape.input.shape
    return space.native.GridSampleCall(
        dtype=dtype,
        images=images,
        channels=channels,
        height=height,
        width=width,
        points=tape.grid.shape[1] * tape.grid.shape[2],
        interpolation=_MODES.index(tape.mode),
        padding=_PADDING_MODES.index(tape.padding_mode),
        align_corners=tape.align_corners,
        input=space.address(tape.input),
        grid=space.address(tape.grid),
        wide_grid=wide,
        **{name: space.address(array) for name, array in arrays.items()},
    )


def require_options(mode: Any, padding_mode: Any, align_corners: Any) -> tuple[str, str, bool]:
    """The options, checked."""
    return (
        require_choice(mode, "mode", _MODES),
        require_choice(padding_mode, "padding_mode", _PADDING_MODES),
        require_flag(align_corners, "align_corners"),
    )


def _device_call(device: Device, tape: GridSampleTape, **arrays: Any) -> Any:
    return call_of(device, tape, tape.input.dtype.name, tape.grid.dtype != tape.input.dtype, **arrays)


def _device_forward(device: Device, tape: GridSampleTape) -> Array:
    """The output."""
    input, grid = tape.input, tape.grid
    require_no_graph(device, "input", "grid_sample")
    require_planes(input, "input", "H", "W")
    require_array(device, grid, "grid", wide_or_same(grid, input.dtype))
    if grid.ndim != 4 or grid.shape[0] != input.shape[0] or grid.shape[3] != 2:
        raise ValueError(f"grid must have shape ({input.shape[0]}, h, w, 2), not {tuple(grid.shape)}")
    require_contiguous(grid, "grid")
    out: Array = device.empty((*input.shape[:2], *grid.shape[1:3]), input.dtype)
    run(device, _device_call(device, tape, out=out), "forward")
    return out


def _device_backward(device: Device, tape: GridSampleTape, dout: Any) -> tuple[Array, Array]:
    """Gradients of input and grid."""
    input, grid = tape.input, tape.grid
    require_no_graph(device, "tape", "grid_sample_backward")
    require_same(device, dout, "dout", (*input.shape[:2], *grid.shape[1:3]), input.dtype)
    dinput: Array = device.empty(input.shape, input.dtype)
    dgrid: Array = device.empty(grid.shape, grid.dtype)
    run(device, _device_call(device, tape, dout=dout, dinput=dinput, dgrid=dgrid), "backward")
    return dinput, dgrid

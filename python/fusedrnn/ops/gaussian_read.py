"""Images read through a grid of Gaussians: ``gaussian_read``, ``gaussian_read_forward``, ``gaussian_read_backward``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, SupportsIndex

from fusedrnn import _core
from fusedrnn.arguments import require_integer
from fusedrnn.arrays.device import Device, owner_of
from fusedrnn.gradients import Array
from fusedrnn.ops.device_call import require_no_graph, require_planes, require_same, run, wide_or_same

_compiled = _core.operations["gaussian_read"]
_forward: Callable[[Array, Array, int], Array] = _compiled.forward
_backward: Callable[[Array, Array, int, Array], tuple[Array, Array]] = _compiled.backward

LARGEST_COUNT = 2**15
"""Filters of an axis at most: their product with themselves and with an image's sides stays far from overflow."""


@dataclass(frozen=True)
class GaussianReadTape:
    """What the backward pass needs: it refers to image and attention, and holds nothing else."""

    image: Array
    attention: Array
    count: int

    @property
    def nbytes(self) -> int:
        """Bytes it holds beyond the arrays it refers to."""
        return 0


def gaussian_read(image: Array, attention: Array, count: SupportsIndex) -> Array:
    """Read a patch of an image through a grid of Gaussians, as DRAW does (Gregor et al. 2015).

    ``patch = gamma F_Y image F_X^T`` for every channel. Each axis has N filters; N is `count`. In an axis of A pixels
    filter i = 1 .. N gives pixel a = 1 .. A the weight
    ``F[i, a] = exp(-(a - mu_i)^2 / (2 sigma^2)) / max(sum over a, 1e-8)``, with
    ``mu_i = g + (i - N/2 - 1/2) delta``. The five numbers of a row of `attention` are:

    - g~_X and g~_Y, the middle of the grid: ``g = (A + 1)(g~ + 1) / 2``;
    - log sigma^2;
    - log delta~, the distance between filters: ``delta = (max(H, W) - 1) / (N - 1) delta~``, and none where N is 1;
    - log gamma.

    Parameters
    ----------
    image : ndarray
        (B, C, H, W) with H and W at least 1, float32 or float64, C-contiguous; NumPy's, or CuPy's, there also bfloat16
        or float16.
    attention : ndarray
        (B, 5), of image's dtype, C-contiguous. For an image of 16 bits it may be float32.
    count : int
        N, at least 1.

    Returns
    -------
    ndarray
        (B, C, N, N), of image's dtype; bitwise the same for any number of threads and whatever rows stand beside a row.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind, dtype, shape or value; the message names it.
    """
    return gaussian_read_forward(image, attention, count)[0]


def gaussian_read_forward(image: Array, attention: Array, count: SupportsIndex) -> tuple[Array, GaussianReadTape]:
    """As `gaussian_read`, and return (patch, tape). Do not write image and attention before the backward pass."""
    count = require_integer(count, "count", least=1, most=LARGEST_COUNT)
    tape = GaussianReadTape(image, attention, count)
    device = owner_of(image)
    return (_forward(image, attention, count) if device is None else _device_forward(device, tape)), tape


def gaussian_read_backward(tape: GaussianReadTape, dpatch: Array) -> tuple[Array, Array]:
    """Gradients of `gaussian_read`.

    Parameters
    ----------
    tape : GaussianReadTape
        From `gaussian_read_forward`. It is not written: it may be used again.
    dpatch : ndarray
        Gradient of the patch, in its shape and dtype, C-contiguous.

    Returns
    -------
    (ndarray, ndarray)
        Gradients of image and attention, in their shapes.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind, dtype or shape; the message names it.
    """
    if not isinstance(tape, GaussianReadTape):
        raise TypeError(f"tape must be the one that gaussian_read_forward returned, not {type(tape).__name__}")
    device = owner_of(tape.image)
    if device is not None:
        return _device_backward(device, tape, dpatch)
    return _backward(tape.image, tape.attention, tape.count, dpatch)


def require_attention(device: Device, attention: Any, planes: Any) -> None:
    """Check the attention of planes (B, C, ., .) on a device."""
    require_same(device, attention, "attention", (planes.shape[0], 5), wide_or_same(attention, planes.dtype))


def shared_fields(planes: Any, attention: Any, size: tuple[int, int], count: int) -> dict[str, Any]:
    """What the calls of reading and writing have in common, but for addresses."""
    return {
        "dtype": planes.dtype.name,
        "rows": planes.shape[0],
        "channels": planes.shape[1],
        "height": size[0],
        "width": size[1],
        "count": count,
        "wide_attention": attention.dtype != planes.dtype,
    }


def _call(device: Device, tape: GaussianReadTape, **arrays: Any) -> Any:
    fields = shared_fields(tape.image, tape.attention, tape.image.shape[2:], tape.count)
    arrays |= {"image": tape.image, "attention": tape.attention}
    return device.native.GaussianReadCall(**fields, **{name: device.address(array) for name, array in arrays.items()})


def _device_forward(device: Device, tape: GaussianReadTape) -> Array:
    """The patch."""
    image = tape.image
    require_no_graph(device, "image", "gaussian_read")
    require_planes(image, "image", "H", "W")
    require_attention(device, tape.attention, image)
    patch: Array = device.empty((*image.shape[:2], tape.count, tape.count), image.dtype)
    run(device, _call(device, tape, patch=patch), "forward")
    return patch


def _device_backward(device: Device, tape: GaussianReadTape, dpatch: Any) -> tuple[Array, Array]:
    """Gradients of image and attention."""
    image, attention = tape.image, tape.attention
    require_no_graph(device, "tape", "gaussian_read_backward")
    require_same(device, dpatch, "dpatch", (*image.shape[:2], tape.count, tape.count), image.dtype)
    dimage: Array = device.empty(image.shape, image.dtype)
    dattention: Array = device.empty(attention.shape, attention.dtype)
    run(device, _call(device, tape, dpatch=dpatch, dimage=dimage, dattention=dattention), "backward")
    return dimage, dattention

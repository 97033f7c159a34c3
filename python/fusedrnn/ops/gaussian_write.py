"""Patches written through a grid of Gaussians: ``gaussian_write`` and its ``_forward`` and ``_backward``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

from fusedrnn import _core
from fusedrnn.arguments import require_integer
from fusedrnn.arrays.device import Device, owner_of
from fusedrnn.gradients import Array
from fusedrnn.ops.device_call import require_no_graph, require_planes, require_same, run
from fusedrnn.ops.gaussian_read import LARGEST_COUNT, require_attention, shared_fields

_compiled = _core.operations["gaussian_write"]
_forward: Callable[[Array, Array, int, int], Array] = _compiled.forward
_backward: Callable[[Array, Array, int, int, Array], tuple[Array, Array]] = _compiled.backward


@dataclass(frozen=True)
class GaussianWriteTape:
    """What the backward pass needs: it refers to patch and attention, and holds nothing else."""

    patch: Array
    attention: Array
    size: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes it holds beyond the arrays it refers to."""
        return 0


def gaussian_write(patch: Array, attention: Array, size: Sequence[SupportsIndex]) -> Array:
    """Write a patch into an image through a grid of Gaussians, as DRAW does (Gregor et al. 2015).

    ``image = F_Y^T patch F_X / gamma`` for every channel, with the filters of `gaussian_read`.

    Parameters
    ----------
    patch : ndarray
        (B, C, N, N) with N at least 1, float32 or float64, C-contiguous; NumPy's, or CuPy's, there also bfloat16 or
        float16.
    attention : ndarray
        (B, 5), of patch's dtype, C-contiguous. For a patch of 16 bits it may be float32.
    size : (int, int)
        Height and width of the image, at least 1 each.

    Returns
    -------
    ndarray
        (B, C, H, W), of patch's dtype; bitwise the same for any number of threads and whatever rows stand beside a row.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind, dtype, shape or value; the message names it.
    """
    return gaussian_write_forward(patch, attention, size)[0]


def gaussian_write_forward(
    patch: Array, attention: Array, size: Sequence[SupportsIndex]
) -> tuple[Array, GaussianWriteTape]:
    """As `gaussian_write`, and return (image, tape). Do not write patch and attention before the backward pass."""
    height, width = _size_of(size)
    shape: Any = getattr(patch, "shape", ())
    if len(shape) == 4 and shape[-1] > LARGEST_COUNT:
        raise ValueError(f"patch must have at most {LARGEST_COUNT} lines and columns, not {shape[-1]}")
    tape = GaussianWriteTape(patch, attention, (height, width))
    device = owner_of(patch)
    return (_forward(patch, attention, height, width) if device is None else _device_forward(device, tape)), tape


def gaussian_write_backward(tape: GaussianWriteTape, dimage: Array) -> tuple[Array, Array]:
    """Gradients of `gaussian_write`.

    Parameters
    ----------
    tape : GaussianWriteTape
        From `gaussian_write_forward`. It is not written: it may be used again.
    dimage : ndarray
        Gradient of the image, in its shape and dtype, C-contiguous.

    Returns
    -------
    (ndarray, ndarray)
        Gradients of patch and attention, in their shapes.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind, dtype or shape; the message names it.
    """
    if not isinstance(tape, GaussianWriteTape):
        raise TypeError(f"tape must be the one that gaussian_write_forward returned, not {type(tape).__name__}")
    device = owner_of(tape.patch)
    if device is not None:
        return _device_backward(device, tape, dimage)
    return _backward(tape.patch, tape.attention, *tape.size, dimage)


def _call(device: Device, tape: GaussianWriteTape, **arrays: Any) -> Any:
    fields = shared_fields(tape.patch, tape.attention, tape.size, tape.patch.shape[3])
    arrays |= {"patch": tape.patch, "attention": tape.attention}
    return device.native.GaussianWriteCall(**fields, **{name: device.address(array) for name, array in arrays.items()})


def _device_forward(device: Device, tape: GaussianWriteTape) -> Array:
    """The image."""
    patch = tape.patch
    require_no_graph(device, "patch", "gaussian_write")
    require_planes(patch, "patch", "N", "N")
    if patch.shape[2] != patch.shape[3]:
        raise ValueError(f"patch must have shape (B, C, N, N), not {tuple(patch.shape)}")
    require_attention(device, tape.attention, patch)
    image: Array = device.empty((*patch.shape[:2], *tape.size), patch.dtype)
    run(device, _call(device, tape, image=image), "forward")
    return image


def _device_backward(device: Device, tape: GaussianWriteTape, dimage: Any) -> tuple[Array, Array]:
    """Gradients of patch and attention."""
    patch, attention = tape.patch, tape.attention
    require_no_graph(device, "tape", "gaussian_write_backward")
    require_same(device, dimage, "dimage", (*patch.shape[:2], *tape.size), patch.dtype)
    dpatch: Array = device.empty(patch.shape, patch.dtype)
    dattention: Array = device.empty(attention.shape, attention.dtype)
    run(device, _call(device, tape, dimage=dimage, dpatch=dpatch, dattention=dattention), "backward")
    return dpatch, dattention


def _size_of(size: Any) -> tuple[int, int]:
    if not isinstance(size, (tuple, list)):
        raise TypeError(f"size must be a tuple (H, W) of integers, not {type(size).__name__}")
    if len(size) != 2:
        raise ValueError(f"size must be (H, W), not {len(size)} numbers")
    height, width = (require_integer(number, f"size[{axis}]", least=1) for axis, number in enumerate(size))
    return height, width

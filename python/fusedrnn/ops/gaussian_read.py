"""Images read through a grid of Gaussians: ``gaussian_read``, ``gaussian_read_forward``, ``gaussian_read_backward``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import SupportsIndex

from fusedrnn import _core
from fusedrnn.arguments import require_integer
from fusedrnn.gradients import Array

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
        (B, C, H, W) with H and W at least 1, float32 or float64, C-contiguous; NumPy's.
    attention : ndarray
        (B, 5), of image's dtype, C-contiguous.
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
    return _forward(image, attention, count), GaussianReadTape(image, attention, count)


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
    return _backward(tape.image, tape.attention, tape.count, dpatch)

"""Small helpers of a training loop."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, SupportsFloat

import numpy as np

from fusedrnn.arguments import require_integer, require_number
from fusedrnn.arrays.buffers import NormBuffers, require_no_buffers
from fusedrnn.arrays.device import owner_of
from fusedrnn.arrays.dtypes import accumulator, is_float
from fusedrnn.arrays.host import require_unmasked
from fusedrnn.engines.cuda.clip import clip
from fusedrnn.engines.cuda.clip import norm_buffers as make_norm_buffers
from fusedrnn.gradients import Array, Gradients


def _gradient_arrays(grads: Any) -> list[Array]:
    """Every parameter gradient of a Gradients object, a mapping, an array, or an iterable of them, each once."""
    if isinstance(grads, Gradients):
        return _gradient_arrays(grads.parameters)
    if isinstance(grads, Mapping):
        return [array for value in grads.values() for array in _gradient_arrays(value)]
    if owner_of(grads) is not None:
        return [grads]
    if isinstance(grads, np.ndarray):
        require_unmasked(grads, "grads")
        if not is_float(grads.dtype):
            raise TypeError(f"grads must hold arrays of floating-point numbers, not of {grads.dtype}")
        if not grads.flags.writeable:
            raise ValueError("grads must hold writable arrays")
        return [grads]
    if isinstance(grads, Iterable) and not isinstance(grads, (str, bytes)):
        return [array for item in grads for array in _gradient_arrays(item)]
    raise TypeError(f"grads must be Gradients, a mapping of arrays or an iterable of them, not {type(grads).__name__}")


def clip_grad_norm(grads: Any, max_norm: SupportsFloat, *, out: NormBuffers | None = None) -> Any:
    """Scale gradients in place to ``g min(1, max_norm / |g|)``, with the norm over all of them (Pascanu et al. 2013).

    Parameters
    ----------
    grads : Gradients, mapping of str to ndarray, or an iterable of them
        Of a `Gradients` object only the parameters' gradients count. An array that occurs twice counts once.
    max_norm : float
        At least 0.
    out : NormBuffers, optional
        CUDA only: memory to write, from `norm_buffers`; needed while a graph is captured.

    Returns
    -------
    float
        The norm before scaling, accumulated in float64. Where it is not finite the gradients become nan or stay
        infinite, as they do in torch. For arrays on a CUDA device, all on the same, a float64 array there without axes.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind, `grads` contains itself, or max_norm is negative or nan.
    """
    limit = require_number(max_norm, "max_norm", least=0.0, most=math.inf)
    try:
        arrays = list({id(array): array for array in _gradient_arrays(grads)}.values())
    except RecursionError:
        raise ValueError("grads must not contain itself") from None
    owners = [owner_of(array) for array in arrays]
    device = owners[0] if owners else None
    if any((owner and owner.name) != (device and device.name) for owner in owners):
        names = sorted({owner.name if owner else "the CPU" for owner in owners})
        raise TypeError(f"grads must hold arrays of one device, not of {' and '.join(names)}")
    if device is not None:
        return clip(device, arrays, limit, out)
    require_no_buffers(out)
    norm = math.sqrt(sum(float(np.square(array, dtype=np.float64).sum()) for array in arrays))
    if not norm <= limit:
        for array in arrays:
            # In float32 at least: of 16 bits, each product is rounded once.
            np.multiply(array, accumulator(array.dtype).type(limit / norm), out=array, casting="same_kind")
    return norm


def norm_buffers(grads: Any) -> NormBuffers:
    """Make the memory that `clip_grad_norm` of so many device arrays writes, for ``out=``.

    Raises
    ------
    TypeError, ValueError
        Where `grads` is of another kind, or not on a CUDA device.
    """
    arrays = _gradient_arrays(grads)
    device = owner_of(arrays[0]) if arrays else None
    if device is None:
        raise TypeError("grads must hold arrays on a CUDA device")
    return make_norm_buffers(device, len(arrays))


def tbptt_windows(*arrays: Any, window: int) -> Iterator[Any]:
    """Yield views of `window` consecutive steps along the first axis, for truncated BPTT (Williams & Peng 1990).

    Parameters
    ----------
    *arrays : ndarray
        One or more, with as many steps each. The last window may be shorter.
    window : int
        Steps, at least 1.

    Yields
    ------
    ndarray, or tuple of ndarray where several were given
        Views, not copies.

    Raises
    ------
    TypeError, ValueError
        Where an argument is no array, has no axis, or another number of steps.
    """
    window = require_integer(window, "window", least=1)
    if not arrays:
        raise ValueError("arrays must hold at least one array")
    for number, array in enumerate(arrays):
        if not isinstance(array, np.ndarray) and owner_of(array) is None:
            raise TypeError(f"arrays[{number}] must be a numpy.ndarray, not {type(array).__name__}")
        require_unmasked(array, f"arrays[{number}]")
        if array.ndim == 0 or array.shape[0] != arrays[0].shape[0]:
            wanted = "(T, ...)" if arrays[0].ndim == 0 else f"({arrays[0].shape[0]}, ...)"
            raise ValueError(f"arrays[{number}] must have shape {wanted}, not {array.shape}")
    return _windows(arrays, window)


def _windows(arrays: tuple[Array, ...], window: int) -> Iterator[Any]:
    for first in range(0, arrays[0].shape[0], window):
        views = tuple(array[first : first + window] for array in arrays)
        yield views[0] if len(views) == 1 else views

"""What a backward pass returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
State = Array | tuple[Array, Array]


@dataclass(slots=True)
class Norms:
    """2-norms over the units of the gradients of the states, as a backward pass meets them on its way.

    Attributes
    ----------
    h : ndarray
        Of dE/dh_t, (L*D, T, B), or (L*D, B, T) with `batch_first`, or (L*D, T) unbatched.
    c : ndarray or None
        Of dE/dc_t for an LSTM, shaped as `h`.
    """

    h: Array
    c: Array | None = None


@dataclass(slots=True)
class Gradients:
    """Gradients of one backward call.

    Attributes
    ----------
    x : ndarray
        Gradient of the input, in its shape.
    state : ndarray or (ndarray, ndarray)
        Gradient of the initial state: of h, or of (h, c) for an LSTM.
    parameters : dict of str to ndarray
        Gradient of every parameter, by its name. Passing this object to another ``backward(..., grads=)`` adds that
        call's parameter gradients into these arrays; `x` and `state` always belong to one call alone.
    norms : Norms or None
        Of the gradients of all states in between, where ``backward(..., norms=True)`` asked for them.
    """

    x: Array
    state: State
    parameters: dict[str, Array]
    norms: Norms | None = None

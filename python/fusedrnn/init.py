"""Initial parameters. Every function writes into the live arrays of a layer or cell and returns it.

A `seed` is an integer, a NumPy Generator, which is drawn from, or None for numbers that differ from run to run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fusedrnn import _core
from fusedrnn.arguments import require_generator, require_number
from fusedrnn.cuda.arrays import accumulator
from fusedrnn.cuda.device import owner_of

if TYPE_CHECKING:
    from fusedrnn.recurrent import Recurrent

Object = TypeVar("Object", bound="Recurrent")
Seed = int | np.random.Generator | None


def _require_recurrent(layer: Object) -> Object:
    from fusedrnn.recurrent import Recurrent  # imported late: it imports this module

    if not isinstance(layer, Recurrent):
        raise TypeError(f"layer must be a fusedrnn layer or cell, not {type(layer).__name__}")
    return layer


def _write(array: Any, values: Any) -> None:
    """Write host values into a contiguous array of either kind of memory."""
    device = owner_of(array)
    if device is None:
        array[...] = values
    else:
        device.assign(array, values)


def uniform_(layer: Object, seed: Seed = None) -> Object:
    """Draw every parameter from U(-1/sqrt(H), 1/sqrt(H)): torch's default, and the constructors'.

    Raises
    ------
    TypeError, ValueError
        Where `layer` is none of ours, or `seed` neither an integer in [0, 2**64) nor a Generator.
    """
    layer = _require_recurrent(layer)
    generator = require_generator(seed)
    bound = 1 / np.sqrt(layer.hidden_size)
    for array in layer.parameters.values():
        _write(array, generator.uniform(-bound, bound, array.shape))
    return layer


def orthogonal_(layer: Object, seed: Seed = None) -> Object:
    """Make each gate's (H, H) block of every weight_hh a random orthogonal matrix (Saxe et al. 2014).

    Raises
    ------
    TypeError, ValueError
        Where `layer` is none of ours, or `seed` neither an integer in [0, 2**64) nor a Generator.
    """
    layer = _require_recurrent(layer)
    generator = require_generator(seed)
    hidden = layer.hidden_size
    for name, array in layer.parameters.items():
        if not name.startswith("weight_hh"):
            continue
        for block in range(0, array.shape[0], hidden):
            factor, triangle = np.linalg.qr(generator.standard_normal((hidden, hidden)))
            _write(array[block : block + hidden], factor * np.sign(np.diag(triangle)))
    return layer


def forget_bias_(layer: Object, value: float = 1.0) -> Object:
    """Make the two biases of an LSTM's forget gate sum to `value` (Gers et al. 2000; Jozefowicz et al. 2015).

    bias_ih holds the value and bias_hh zero.

    Raises
    ------
    TypeError
        Where `layer` is none of ours, or `value` no number.
    ValueError
        Where the layer has no forget gate or no biases, or `value` is not finite.
    """
    layer = _require_recurrent(layer)
    largest = np.finfo(accumulator(layer.dtype)).max
    value = require_number(value, "value", least=-largest, most=largest)
    gates = _core.cells[layer.cell_name].gates
    if "f" not in gates or not layer.bias:
        raise ValueError(f"layer must be an LSTM with bias, not {layer!r}")
    first = gates.index("f") * layer.hidden_size
    for name, array in layer.parameters.items():
        if name.startswith("bias"):
            array[first : first + layer.hidden_size] = value if name.startswith("bias_ih") else 0
    return layer

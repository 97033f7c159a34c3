"""Weights of Keras's LSTM, GRU and SimpleRNN layers, as arrays, to ours and back. Keras itself is not needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusedrnn.arguments import require_choice, require_flag, require_unmasked
from fusedrnn.gradients import Array

# Our gate blocks in Keras's order; LSTM: i f c o, where c is our g; GRU: z r h, where h is our n. Each order is its own
# inverse.
_ORDERS = {"LSTM": (0, 1, 2, 3), "GRU": (1, 0, 2), "SimpleRNN": (0,)}


def from_keras(weights: Sequence[Any], *, cell: str, reset_after: bool = True) -> dict[str, Array]:
    """Our parameters from the weights of a Keras layer.

    The layer computes the same with Keras's default activations: tanh, and for gates sigmoid. Load the result with
    ``layer.load_parameters``.

    Parameters
    ----------
    weights : sequence of arrays
        What Keras's ``layer.get_weights()`` returns: kernel (I, G*H), recurrent kernel (H, G*H) and, with `use_bias`,
        bias (G*H,), or (2, 3*H) for a GRU with `reset_after`. Of a ``Bidirectional`` layer the forward direction's,
        then the backward one's.
    cell : {'LSTM', 'GRU', 'SimpleRNN'}
        Name of Keras's layer, in any case.
    reset_after : bool
        Of a GRU, as Keras's argument: True is its default and ours. Other cells have no such argument: leave it out.

    Returns
    -------
    dict of str to ndarray
        ``weight_ih_l0`` (G*H, I), ``weight_hh_l0`` (G*H, H) and, with biases, ``bias_ih_l0`` and ``bias_hh_l0`` (G*H,),
        with the suffix ``_reverse`` for the backward direction. Where Keras has one bias, `bias_hh` is zero.

    Raises
    ------
    TypeError
        Where `weights` is no sequence, an entry no array of floating-point numbers that NumPy can read, or `cell` or
        `reset_after` of another kind.
    ValueError
        Where the number of arrays, their axes or a shape is wrong, `cell` is none of these, or `reset_after` is False
        for a cell other than a GRU.
    """
    cell, two_biases = _cell(cell, reset_after)
    if isinstance(weights, (str, bytes)) or not isinstance(weights, Sequence):
        raise TypeError(f"weights must be a sequence of arrays, not {type(weights).__name__}")
    if len(weights) not in (2, 3, 4, 6):
        raise ValueError(
            f"weights must be 2 arrays, 3 with a bias, or twice as many of a bidirectional layer, not {len(weights)}"
        )
    directions = 2 if len(weights) > 3 else 1
    count, parameters = len(weights) // directions, {}
    arrays = [_array(array, f"weights[{number}]") for number, array in enumerate(weights)]
    inputs, hidden = (_matrix(arrays[number], f"weights[{number}]").shape[0] for number in (0, 1))
    width = len(_ORDERS[cell]) * hidden
    bias_shape = (2, width) if two_biases else (width,)
    shapes = [(inputs, width), (hidden, width), bias_shape][:count] * directions
    for number, (array, shape) in enumerate(zip(arrays, shapes, strict=True)):
        if array.shape != shape:
            raise ValueError(
                f"weights[{number}] must have shape {shape} beside {hidden} units, the rows of weights[1], "
                f"not {array.shape}"
            )
    for direction, suffix in enumerate(("_l0", "_l0_reverse")[:directions]):
        kernel, recurrent, *bias = arrays[direction * count : (direction + 1) * count]
        parameters["weight_ih" + suffix] = _ordered(kernel.T, cell)
        parameters["weight_hh" + suffix] = _ordered(recurrent.T, cell)
        for both in bias:
            input_bias, recurrent_bias = both if both.ndim == 2 else (both, np.zeros_like(both))
            parameters["bias_ih" + suffix] = _ordered(input_bias, cell)
            parameters["bias_hh" + suffix] = _ordered(recurrent_bias, cell)
    return parameters


def to_keras(parameters: Mapping[str, Any], *, cell: str, reset_after: bool = True) -> list[Array]:
    """The weights of a Keras layer, for its ``set_weights``, from the parameters of a layer of ours.

    Parameters
    ----------
    parameters : mapping of str to array
        Of a layer with num_layers=1: an LSTM without peepholes or coupled gates, a GRU or an RNN. The two biases of a
        gate add where Keras has one.
    cell : {'LSTM', 'GRU', 'SimpleRNN'}
    reset_after : bool
        Of a GRU; leave it out for other cells.

    Returns
    -------
    list of ndarray
        As `from_keras` takes them.

    Raises
    ------
    TypeError
        As `from_keras`, and where `parameters` is no mapping.
    ValueError
        As `from_keras`, and where a parameter is missing, unknown or of another shape.
    """
    cell, two_biases = _cell(cell, reset_after)
    if not isinstance(parameters, Mapping):
        raise TypeError(f"parameters must be a mapping of names to arrays, not {type(parameters).__name__}")
    suffixes = ["_l0", "_l0_reverse"][: 2 if "weight_ih_l0_reverse" in parameters else 1]
    kinds = ["weight_ih", "weight_hh", *["bias_ih", "bias_hh"] * ("bias_ih_l0" in parameters)]
    wanted = [kind + suffix for suffix in suffixes for kind in kinds]
    if set(wanted) != set(parameters):
        raise ValueError(f"parameters must be {wanted} for Keras's {cell}, not {list(parameters)}")
    arrays = {name: _array(parameters[name], f"parameters[{name!r}]") for name in wanted}
    inputs, hidden = (_matrix(arrays[name], f"parameters[{name!r}]").shape[1] for name in wanted[:2])
    rows, weights = len(_ORDERS[cell]) * hidden, []
    for name, array in arrays.items():
        shape = {"weight_ih": (rows, inputs), "weight_hh": (rows, hidden)}.get(name.split("_l0")[0], (rows,))
        if array.shape != shape:
            raise ValueError(f"parameters[{name!r}] must have shape {shape}, not {array.shape}")
    for suffix in suffixes:
        blocks = [_ordered(arrays[kind + suffix], cell) for kind in kinds]
        weights += [np.ascontiguousarray(matrix.T) for matrix in blocks[:2]]
        if len(blocks) > 2:
            weights.append(np.stack(blocks[2:]) if two_biases else blocks[2] + blocks[3])
    return weights


def _cell(cell: str, reset_after: bool) -> tuple[str, bool]:
    """Keras's name of a cell, and whether it has two biases."""
    if not isinstance(cell, str):
        raise TypeError(f"cell must be a string, not {type(cell).__name__}")
    known = {name.lower(): name for name in _ORDERS}
    cell = require_choice(known.get(cell.lower(), cell), "cell", tuple(_ORDERS))
    after = require_flag(reset_after, "reset_after")
    if not after and cell != "GRU":
        raise ValueError(f"reset_after must be left out for {cell!r}, not False: it is an argument of a GRU")
    return cell, after and cell == "GRU"


def _array(value: Any, name: str) -> Array:
    wanted = f"{name} must be an array of floating-point numbers"
    if not isinstance(value, (list, tuple)) and not hasattr(value, "__array__"):
        raise TypeError(f"{wanted}, not {type(value).__name__}")
    require_unmasked(value, name)
    try:
        array = np.asarray(value)
    except Exception as error:  # ragged lists, tensors that lie elsewhere: whatever an object's own __array__ raises
        raise TypeError(f"{wanted}, not a {type(value).__name__} that NumPy cannot read as one: {error}") from error
    if array.dtype.kind != "f":
        raise TypeError(f"{wanted}, not of {array.dtype}")
    return array


def _matrix(array: Array, name: str) -> Array:
    if array.ndim != 2:
        raise ValueError(f"{name} must have 2 axes, not shape {array.shape}")
    return array


def _ordered(array: Array, cell: str) -> Array:
    """A copy with its gate blocks along the first axis in the other library's order."""
    blocks = np.split(array, len(_ORDERS[cell]))
    return np.concatenate([blocks[number] for number in _ORDERS[cell]])

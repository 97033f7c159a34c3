"""Keras's LSTM, GRU and SimpleRNN layers, or their weights, to our parameters and back. Keras itself is not needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fusedrnn.arguments import require_choice, require_flag
from fusedrnn.arrays.host import require_unmasked
from fusedrnn.gradients import Array

# Our gate blocks in Keras's order; LSTM: i f c o, where c is our g; GRU: z r h, where h is our n. Each order is its own
# inverse.
_ORDERS = {"LSTM": (0, 1, 2, 3), "GRU": (1, 0, 2), "SimpleRNN": (0,)}
_CUDNN = {"cudnnlstm": "LSTM", "cudnngru": "GRU"}
_GATED: dict[str, tuple[str, ...]] = {"activation": ("tanh",), "recurrent_activation": ("sigmoid",)}
# What our cells compute with; SimpleRNN has no gates.
_ACTIVATIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "LSTM": _GATED,
    "GRU": _GATED,
    "SimpleRNN": {"activation": ("tanh", "relu"), "recurrent_activation": ()},
}
# The libraries whose functions of these names are the activations.
_LIBRARIES = ("keras", "tf_keras", "tensorflow")


def from_keras(
    weights: Any,
    *,
    cell: str | None = None,
    reset_after: bool = True,
    activation: Any = None,
    recurrent_activation: Any = None,
) -> dict[str, Array]:
    """Our parameters from a Keras layer, or from its weights. Load them with ``layer.load_parameters``.

    Our layers compute with Keras's default activations: tanh, and for gates sigmoid; `RNN` with ``nonlinearity="relu"``
    with relu. Other ones are an error. A Keras layer tells its activations; with arrays, the caller has to.

    Parameters
    ----------
    weights : Keras layer, or sequence of arrays
        A built ``LSTM``, ``GRU``, ``SimpleRNN``, ``CuDNNLSTM``, ``CuDNNGRU`` or ``Bidirectional`` of such, whose class
        and options are seen. Or what its ``get_weights()`` returns: kernel (I, G*H), recurrent kernel (H, G*H) and,
        with `use_bias`, bias (G*H,), or (2, 3*H) for a GRU with `reset_after`, or (8*H,) and (6*H,) of the CuDNN
        layers, whose kernels lie transposed. Of a ``Bidirectional`` layer the forward direction's, then the backward
        one's.
    cell : {'LSTM', 'GRU', 'SimpleRNN', 'CuDNNLSTM', 'CuDNNGRU'}
        Name of Keras's layer, in any case. Needed for arrays.
    reset_after : bool
        Of a GRU, as Keras's argument: True is its default and ours. Other cells have no such argument: leave it out.
    activation, recurrent_activation : str or function of Keras, optional
        As the Keras layer's arguments. None: Keras's default.

    Returns
    -------
    dict of str to ndarray
        ``weight_ih_l0`` (G*H, I), ``weight_hh_l0`` (G*H, H) and, with biases, ``bias_ih_l0`` and ``bias_hh_l0`` (G*H,),
        with the suffix ``_reverse`` for the backward direction. Where Keras has one bias, `bias_hh` is zero.

    Raises
    ------
    TypeError
        Where `weights` is neither, an entry no array of floating-point numbers that NumPy can read, or another argument
        of another kind.
    ValueError
        Where the number of arrays, their axes or a shape is wrong, `cell` is none of these or not the layer's,
        `reset_after` is False for a cell other than a GRU, or our cell computes with no such activation.
    """
    if not hasattr(weights, "get_weights"):
        kind = _kind(cell, reset_after, activation, recurrent_activation)
        return _parameters(_arrays(weights), kind)
    arrays, kinds = [], []
    for part in _directions(weights):
        kinds.append(_kind_of(part, cell, reset_after, activation, recurrent_activation))
        arrays += part.get_weights()
    if not arrays or kinds[0] != kinds[-1]:
        wanted = "built, so that it has weights" if not arrays else "of one cell in both directions"
        raise ValueError(f"weights must be a layer that is {wanted}; it is {type(weights).__name__}")
    return _parameters(_arrays(arrays), kinds[0])


class _Kind(NamedTuple):
    """What the weights of a cell look like."""

    cell: str
    two_biases: bool
    #: The layers that ran on cuDNN alone, whose kernels lie as cuDNN has them.
    cudnn: bool = False


def _kind(cell: Any, reset_after: Any, activation: Any, recurrent_activation: Any) -> _Kind:
    cudnn = isinstance(cell, str) and cell.lower() in _CUDNN
    name, two_biases = _cell(_CUDNN[cell.lower()] if cudnn else cell, reset_after)
    _require_activations(name, activation, recurrent_activation)
    return _Kind(name, two_biases, cudnn)


def _kind_of(layer: Any, cell: Any, reset_after: Any, activation: Any, recurrent_activation: Any) -> _Kind:
    """The kind of a Keras layer; what the caller says of it must agree."""
    own = type(layer).__name__
    if own not in _ORDERS and own.lower() not in _CUDNN:
        known = ", ".join([*_ORDERS, "CuDNNLSTM", "CuDNNGRU", "Bidirectional"])
        raise ValueError(f"weights must be a layer that is one of {known}, or its get_weights(), not {own}")
    if cell is not None and (not isinstance(cell, str) or cell.lower() != own.lower()):
        raise ValueError(f"cell must be {own!r} or left out, as weights is such a layer, not {cell!r}")
    after = getattr(layer, "reset_after", True)
    if not require_flag(reset_after, "reset_after") and after:
        raise ValueError("reset_after must be left out, or as the layer has it, which is True, not False")
    given = {"activation": activation, "recurrent_activation": recurrent_activation}
    for name, said in given.items():
        seen = getattr(layer, name, None)
        if said is not None and seen is not None and _activation_name(said) != _activation_name(seen):
            raise ValueError(
                f"{name} must be left out, or as the layer has it, {_activation_name(seen)!r}, not"
                f" {_activation_name(said)!r}"
            )
        given[name] = said if seen is None else seen
    return _kind(own, bool(after), **given)


def _directions(layer: Any) -> list[Any]:
    """A layer, or both of a ``Bidirectional`` one."""
    if type(layer).__name__ != "Bidirectional":
        return [layer]
    return [layer.forward_layer, layer.backward_layer]


def _activation_name(value: Any) -> str:
    """Keras's name of an activation; for anything that is no function of a library, a description."""
    if isinstance(value, str):
        return value
    name = getattr(value, "__name__", None)
    library = (getattr(value, "__module__", None) or "").split(".")[0]
    return str(name) if name and library in _LIBRARIES else f"a {type(value).__name__} of its own"


def _require_activations(cell: str, activation: Any, recurrent_activation: Any) -> None:
    given = {"activation": activation, "recurrent_activation": recurrent_activation}
    for name, value in given.items():
        choices = _ACTIVATIONS[cell][name]
        if value is None:
            continue
        if not isinstance(value, str) and not callable(value):
            raise TypeError(f"{name} must be a string, a function of Keras or None, not {type(value).__name__}")
        if not choices:
            raise ValueError(f"{name} must be left out for {cell!r}, which has none, not {_activation_name(value)!r}")
        if _activation_name(value) not in choices:
            wanted = " or ".join(map(repr, choices))
            raise ValueError(f"{name} must be {wanted}, as this library's {cell} has, not {_activation_name(value)!r}")


def _arrays(weights: Any) -> list[Array]:
    """The weights, one direction or both."""
    if isinstance(weights, (str, bytes)) or not isinstance(weights, Sequence):
        raise TypeError(f"weights must be a sequence of arrays, not {type(weights).__name__}")
    if len(weights) not in (2, 3, 4, 6):
        raise ValueError(
            f"weights must be 2 arrays, 3 with a bias, or twice as many of a bidirectional layer, not {len(weights)}"
        )
    return [_array(array, f"weights[{number}]") for number, array in enumerate(weights)]


def _parameters(arrays: list[Array], kind: _Kind) -> dict[str, Array]:
    cell, parameters = kind.cell, {}
    directions = 2 if len(arrays) > 3 else 1
    count = len(arrays) // directions
    inputs, hidden = (_matrix(arrays[number], f"weights[{number}]").shape[0] for number in (0, 1))
    width = len(_ORDERS[cell]) * hidden
    # Keras, too, tells the weights of its CuDNN layers from the others' by this.
    two_biases = kind.two_biases
    cudnn = kind.cudnn or (count > 2 and cell in ("LSTM", "GRU") and arrays[2].shape == (2 * width,))
    if cudnn and count == 2:
        raise ValueError("weights must be 3 arrays, or 6 of a bidirectional layer, of a CuDNN layer, not without bias")
    if cudnn and cell == "GRU" and not two_biases:
        raise ValueError(f"reset_after must be True for a bias of shape {(2 * width,)}, a CuDNNGRU's, not False")
    bias_shape = (2 * width,) if cudnn else (2, width) if two_biases else (width,)
    shapes = [(inputs, width), (hidden, width), bias_shape][:count] * directions
    for number, (array, shape) in enumerate(zip(arrays, shapes, strict=True)):
        if array.shape != shape:
            raise ValueError(
                f"weights[{number}] must have shape {shape} beside {hidden} units, the rows of weights[1], "
                f"not {array.shape}"
            )
    for direction, suffix in enumerate(("_l0", "_l0_reverse")[:directions]):
        kernel, recurrent, *bias = arrays[direction * count : (direction + 1) * count]
        if cudnn:
            kernel, recurrent = (_from_cudnn(matrix, len(_ORDERS[cell])) for matrix in (kernel, recurrent))
            bias = [bias[0].reshape(2, width)]
        parameters["weight_ih" + suffix] = _ordered(kernel.T, cell)
        parameters["weight_hh" + suffix] = _ordered(recurrent.T, cell)
        for both in bias:
            input_bias, recurrent_bias = both if both.ndim == 2 else (both, np.zeros_like(both))
            parameters["bias_ih" + suffix] = _ordered(input_bias, cell)
            parameters["bias_hh" + suffix] = _ordered(recurrent_bias, cell)
    return parameters


def _from_cudnn(kernel: Array, gates: int) -> Array:
    """A kernel as the other layers have it, (K, G*H).

    The CuDNN layers declare each gate's block as (K, H) and hand its memory to cuDNN, which reads it as (H, K).
    """
    return np.hstack([block.reshape(block.shape[::-1]).T for block in np.hsplit(kernel, gates)])


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


def _cell(cell: Any, reset_after: bool) -> tuple[str, bool]:
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

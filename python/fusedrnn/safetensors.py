"""Layers and cells in safetensors files. Needs the package ``safetensors``."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

import fusedrnn
from fusedrnn import _core
from fusedrnn.arguments import require_flag
from fusedrnn.arrays.dtypes import accumulator
from fusedrnn.gradients import Array, State
from fusedrnn.recurrent import Recurrent

_KEY = "fusedrnn"
# What a file says of an object besides its arrays, whose names and shapes give the rest.
_OPTIONS = {
    "RNN": ("nonlinearity",),
    "LSTM": ("peephole", "coupled"),
    "GRU": ("reset_after",),
}
_LAYER_OPTIONS = ("batch_first", "dropout", "reverse")
_STATE = ("initial_h", "initial_c")  # a layer's `initial_state`, where it has one


def save(module: Recurrent, path: str | os.PathLike[str]) -> None:
    """Write a layer or cell: its parameters by their names, and in the metadata what `load` needs to make it again.

    A layer's `initial_state` is written, too, where it is set, as ``initial_h`` and ``initial_c``.

    Parameters
    ----------
    module : layer or cell
    path : path
        Of the file; one that is there is replaced.

    Raises
    ------
    TypeError, ValueError
        Where `module` is neither, or a parameter was replaced by what is no such array.
    OSError
        Where the file cannot be written.
    """
    kind = type(module).__name__
    if getattr(fusedrnn, kind, None) is not type(module) or kind.removesuffix("Cell") not in _OPTIONS:
        raise TypeError(f"module must be a layer or cell of fusedrnn, not {kind}")
    module._engine.check_parameters(module.parameters)
    options = {name: getattr(module, name) for name in _option_names(kind)}
    metadata = {_KEY: json.dumps({"class": kind, "options": options})}
    try:
        save_file({**module.parameters, **_initial_state(module)}, os.fspath(path), metadata)
    except SafetensorError as error:
        raise OSError(f"{os.fspath(path)!r} cannot be written: {error}") from error


def load(
    path: str | os.PathLike[str], module: Recurrent | None = None, *, prefix: str = "", convert: bool = False
) -> Any:
    """Read a layer or cell that `save` wrote, or any file's arrays into one that is there.

    Parameters
    ----------
    path : path
    module : layer or cell, optional
        To load the file's arrays into, which must be its parameters by name: such as the state_dict of a torch module.
        An initial state that `save` wrote is set, too; where it wrote a layer without one, the module has none
        afterwards. Files that `save` did not write, and parts of files, leave it. None: a new one is made, as the file
        says.
    prefix : str
        With `module`, take the arrays whose names begin so, without it, and read no others: ``"rnn."`` for the part of
        a whole model's file.
    convert : bool
        Take arrays of another floating-point width and round them: also float16 and bfloat16. Without `module`, 16-bit
        arrays make a layer of float32.

    Returns
    -------
    layer or cell
        `module`, or the new one.

    Raises
    ------
    TypeError, ValueError
        Where the file is no safetensors file, was not written by `save` and no `module` is given, or its arrays are not
        the parameters and both halves of a state; the message names the file. Nothing is written to `module` then.
    OSError
        Where it cannot be read.
    """
    path = os.fspath(path)
    if module is not None and not isinstance(module, Recurrent):
        raise TypeError(f"module must be a layer or cell of fusedrnn or None, not {type(module).__name__}")
    if not isinstance(prefix, str):
        raise TypeError(f"prefix must be a string, not {type(prefix).__name__}")
    if prefix and module is None:
        raise ValueError(f"prefix must be '' unless a module is given to load into, not {prefix!r}")
    require_flag(convert, "convert")
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118, it is no mapping
            narrow = [name for name in names if file.get_slice(name).get_dtype() == "BF16"]
            arrays = {name: file.get_tensor(name) for name in names if name not in narrow}
    except (SafetensorError, TypeError) as error:  # the latter for types that NumPy lacks
        raise ValueError(f"{path!r} must be a safetensors file of arrays that NumPy has: {error}") from error
    try:
        arrays |= _bfloat16_arrays(path, narrow, None if module is None else module.dtype, convert)
        if module is None:
            arrays = {name: _widened(array, name, convert) for name, array in arrays.items()}
        own = _KEY in metadata and not prefix
        halves = {name: arrays.pop(name) for name in _STATE if own and name in arrays}
        made: Any = _made(metadata, arrays) if module is None else module
        _load(made, arrays, prefix, convert, _state_for(made, halves, convert) if halves else None, own)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path!r}: {error}") from error
    return made


def _initial_state(module: Recurrent) -> dict[str, Array]:
    """The arrays of a layer's initial state, by name."""
    state = getattr(module, "initial_state", None)
    halves = () if state is None else state if isinstance(state, tuple) else (state,)
    return dict(zip(_STATE, halves, strict=False))


def _load(module: Any, arrays: dict[str, Array], prefix: str, convert: bool, state: State | None, own: bool) -> None:
    """Load parameters and, from a file of our own, the state: both or neither."""
    if not own or not hasattr(module, "initial_state"):
        module.load_parameters(arrays, prefix, convert)
        return
    before = module._initial_state
    module.initial_state = state
    try:
        module.load_parameters(arrays, prefix, convert)
    except BaseException:
        module._initial_state = before
        raise


def _state_for(module: Recurrent, halves: dict[str, Array], convert: bool) -> State:
    """An initial state that `module` takes, of the arrays that a file has of it."""
    if not hasattr(module, "initial_state"):
        raise ValueError(f"module must be a layer, as the file has an initial state, not {type(module).__name__}")
    wanted = tuple(f"initial_{name}" for name in _core.cells[module.cell_name].states)
    for name in _STATE:
        if name in wanted and name not in halves:
            raise ValueError(f"there must be an array {name!r} beside {next(iter(halves))!r}")
        if name in halves and name not in wanted:
            raise ValueError(f"there must be no array {name!r}, which a layer of {type(module).__name__} does not have")
    dtypes = dict(zip(_STATE, (module.dtype, accumulator(module.dtype)), strict=True))
    for name in wanted:
        came = halves[name].dtype
        if came.kind in "biuc" or (came != dtypes[name] and not convert):
            raise _narrow_error(name, dtypes[name], came)
    arrays = [halves[name].astype(dtypes[name]) for name in wanted]
    return arrays[0] if len(arrays) == 1 else (arrays[0], arrays[1])


def _narrow_error(name: str, wanted: Any, came: Any) -> TypeError:
    hint = "" if str(came).startswith(("int", "uint", "bool", "complex")) else "; pass convert=True to convert it"
    return TypeError(f"the array {name!r} must be of {wanted}, not of {came}{hint}")


def _widened(array: Array, name: str, convert: bool) -> Array:
    if array.dtype != np.float16:
        return array
    if not convert:
        raise _narrow_error(name, "float32", "float16")
    return array.astype(np.float32)


def _bfloat16_arrays(path: str, names: list[str], wanted: Any, convert: bool) -> dict[str, Array]:
    """Arrays of a type that neither NumPy nor safetensors' reader for it has, as float32, or as `wanted` if it is that.

    They lie in the file after eight bytes for the header's length and the header, which `safe_open` has checked.
    """
    if not names:
        return {}
    same = wanted is not None and wanted.name == "bfloat16"
    if not (same or convert):
        raise _narrow_error(names[0], "float32" if wanted is None else wanted, "bfloat16")
    arrays: dict[str, Array] = {}
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        for name in names:
            begin, end = header[name]["data_offsets"]
            file.seek(8 + length + begin)
            bits = np.frombuffer(file.read(end - begin), "<u2").reshape(header[name]["shape"])
            arrays[name] = bits.view(wanted) if same else (bits.astype(np.uint32) << 16).view(np.float32)
    return arrays


def _option_names(kind: str) -> tuple[str, ...]:
    own = _OPTIONS[kind.removesuffix("Cell")]
    return ("clip", *own) if kind.endswith("Cell") else ("clip", *own, *_LAYER_OPTIONS)


def _made(metadata: dict[str, str], arrays: dict[str, Array]) -> Any:
    """A new object of the kind that the metadata name, in the sizes of the arrays."""
    if _KEY not in metadata:
        raise ValueError(
            f"the metadata must have {_KEY!r}, as fusedrnn.safetensors.save writes; give a module to load into"
        )
    try:
        described = json.loads(metadata[_KEY])
        kind, options = described["class"], dict(described["options"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"the metadata's {_KEY!r} must be what fusedrnn.safetensors.save writes: {error}") from error
    if not isinstance(kind, str) or kind.removesuffix("Cell") not in _OPTIONS:
        raise ValueError(f"the metadata's class must be a layer or cell of fusedrnn, not {kind!r}")
    unknown = sorted(set(options) - set(_option_names(kind)))
    if unknown:
        raise ValueError(f"the metadata's options {unknown} are none of {kind}")
    ending = "" if kind.endswith("Cell") else "_l0"
    for name in ("weight_ih" + ending, "weight_hh" + ending):
        if name not in arrays or arrays[name].ndim != 2:
            raise ValueError(f"there must be a matrix {name!r}")
    sizes = [arrays[name + ending].shape[1] for name in ("weight_ih", "weight_hh")]
    # Checked before memory is taken for them: a small file must not ask for much.
    square = arrays["weight_hh" + ending].shape
    recurrent = [array for name, array in arrays.items() if name.startswith("weight_hh")]
    if square[0] not in (square[1], 3 * square[1], 4 * square[1]) or any(a.shape != square for a in recurrent):
        raise ValueError(f"the arrays 'weight_hh...' must be (G*H, H), one as another, not {square}")
    rows = arrays["weight_ih" + ending].shape[0]
    if rows != square[0]:
        raise ValueError(f"the array {'weight_ih' + ending!r} must have {square[0]} rows, not {rows}")
    options |= {"bias": "bias_ih" + ending in arrays, "dtype": arrays["weight_ih" + ending].dtype, "seed": 0}
    if ending:
        options["bidirectional"] = "weight_ih_l0_reverse" in arrays
        options["num_layers"] = len(recurrent) // (2 if options["bidirectional"] else 1)
    return getattr(fusedrnn, kind)(*sizes, **options)

"""What layers and cells have in common: parameters, and the compiled object that computes with them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, SupportsFloat, SupportsIndex

import numpy as np

from fusedrnn import _core, init
from fusedrnn.arguments import (
    require_clip,
    require_device,
    require_dtype,
    require_engine,
    require_flag,
    require_integer,
    require_precision,
    require_seed,
    require_unmasked,
)
from fusedrnn.cuda.arrays import is_float, numpy_dtype
from fusedrnn.cuda.device import Device, arrays, owner_of
from fusedrnn.cuda.net import Net, Tape
from fusedrnn.gradients import Array, Gradients


def _source_of(value: Any) -> tuple[Any, str | None]:
    """A value to read as an array; of torch's bfloat16, which NumPy lacks, in float32, and its own dtype's name."""
    return (value.float(), "bfloat16") if str(getattr(value, "dtype", None)) == "torch.bfloat16" else (value, None)


def as_array(value: Any, name: str) -> Array:
    """`value` as an array, without a conversion: NumPy's own, or through ``__dlpack__`` or ``__array__``."""
    if isinstance(value, np.ndarray):
        require_unmasked(value, name)
        return value
    if not (hasattr(value, "__dlpack__") or hasattr(value, "__array__")):
        raise TypeError(f"{name} must be an array, or have __dlpack__ or __array__; it is {type(value).__name__}")
    try:
        # DLPack's bfloat16 is not NumPy's; an __array__ may give that of ml_dtypes.
        narrow = str(getattr(value, "dtype", None)) == "bfloat16" and hasattr(value, "__array__")
        return np.from_dlpack(value) if hasattr(value, "__dlpack__") and not narrow else np.asarray(value)
    except Exception as error:
        raise ValueError(f"{name} cannot be read as an array; detach it and move it to the CPU: {error}") from error


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An array that begins at a cache line, so that no vector read from its rows takes two."""
    size, line = math.prod(shape) * dtype.itemsize, 64
    memory = np.empty(size + line, np.uint8)
    first = -memory.ctypes.data % line
    return memory[first : first + size].view(dtype).reshape(shape)


def lstm_name(peephole: bool, coupled: bool) -> str:
    """Name of the LSTM variant among the compiled cells."""
    return "lstm" + ("_peephole" if peephole else "") + ("_coupled" if coupled else "")


class Recurrent:
    """Base of every layer and cell; not made directly."""

    _engine: _core.Recurrent | Net

    def __init__(
        self,
        cell: str,
        input_size: SupportsIndex,
        hidden_size: SupportsIndex,
        *,
        bias: bool,
        dtype: Any,
        device: str,
        seed: int | np.random.Generator | None,
        precision: str = "ieee",
        engine: str = "auto",
        num_layers: int = 1,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        single_step: bool = False,
        reverse: bool = False,
        clip: SupportsFloat | None = None,
    ) -> None:
        self.device = require_device(device)
        self._settings: dict[str, Any] = {
            "cell": cell,
            "input_size": require_integer(input_size, "input_size", least=1, most=2**31),
            "hidden_size": require_integer(hidden_size, "hidden_size", least=1, most=2**31),
            "num_layers": num_layers,
            "bias": require_flag(bias, "bias"),
            "bidirectional": bidirectional,
            "dropout": dropout,
            "seed": require_seed(seed),
            "dtype": require_dtype(dtype, self.device),
            "batch_first": batch_first,
            "single_step": single_step,
            "reverse": reverse,
            "clip": require_clip(clip) or 0.0,
        }
        self.precision = require_precision(precision, self.device, self._settings["dtype"])
        self.engine = require_engine(engine, self.device)
        self._engine = self._make_engine(self._settings, self.device)
        empty = _aligned_empty if isinstance(self._engine, _core.Recurrent) else self._engine.device.empty
        #: Name -> live writable array. An edit shows at the next call.
        self.parameters: dict[str, Array] = {
            name: empty(shape, self.dtype) for name, shape in self._engine.parameter_shapes
        }
        init.uniform_(self, self._settings["seed"])

    def _make_engine(self, settings: dict[str, Any], device: str) -> _core.Recurrent | Net:
        where = self._device(device)
        return _core.Recurrent(**settings) if where is None else Net(settings, where, self.precision, self.engine)

    def _device(self, name: str) -> Device | None:
        """The CUDA device of a name, None for the CPU."""
        return None if name == "cpu" else Device(arrays(), int(name.removeprefix("cuda:")))

    @property
    def input_size(self) -> int:
        """Features of an input, I."""
        return int(self._settings["input_size"])

    @property
    def hidden_size(self) -> int:
        """Units, H."""
        return int(self._settings["hidden_size"])

    @property
    def bias(self) -> bool:
        """Whether there are bias parameters."""
        return bool(self._settings["bias"])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of every array: float32 or float64; on a CUDA device also bfloat16 or float16, whose c is float32."""
        return numpy_dtype(self._settings["dtype"])

    @property
    def clip(self) -> float | None:
        """Bound on the input of every gate's activation; None: there is none."""
        return self._settings["clip"] or None

    @property
    def cell_name(self) -> str:
        """Name of the cell, as ``fusedrnn.info()`` and ``fusedrnn.reference`` list it."""
        return str(self._settings["cell"])

    def load_parameters(self, mapping: Mapping[str, Any], prefix: str = "", convert: bool = False) -> None:
        """Copy values into the parameters.

        Parameters
        ----------
        mapping : mapping of str to array
            One entry for each parameter and no other: arrays, or anything with ``__dlpack__`` or ``__array__``, such as
            the state_dict of the torch module of the same name, or what ``np.load`` gives.
        prefix : str
            Take the entries whose names begin so, without it, and leave the others: ``"rnn."`` for the part of a whole
            model's state_dict.
        convert : bool
            Take arrays of another floating-point width and round them: also float16 and bfloat16, be they torch's or
            ml_dtypes's.

        Raises
        ------
        TypeError
            Where an entry is no array, or of another dtype.
        ValueError
            Where names are missing or unknown, or a shape differs. Nothing is written then.
        """
        if not isinstance(mapping, Mapping):
            raise TypeError(f"mapping must be a mapping of names to arrays, not {type(mapping).__name__}")
        require_flag(convert, "convert")
        self._engine.check_parameters(self.parameters)
        values = self._entries(mapping, prefix)
        device = self._device(self.device)
        arrays = {name: self._loaded(value, prefix + name, name, convert) for name, value in values.items()}
        if device is not None:
            for name, array in arrays.items():
                device.assign(self.parameters[name], array.astype(self.dtype))
            return
        if any(np.may_share_memory(array, own) for array in arrays.values() for own in self.parameters.values()):
            arrays = {name: array.copy() for name, array in arrays.items()}
        for name, array in arrays.items():
            self.parameters[name][...] = array

    def _entries(self, mapping: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        """The mapping's entries by the parameters' names, which must be there, and no other under the prefix."""
        if not isinstance(prefix, str):
            raise TypeError(f"prefix must be a string, not {type(prefix).__name__}")
        names = {prefix + name: name for name in self.parameters}
        under = [name for name in mapping if not prefix or str(name).startswith(prefix)]
        unknown, missing = (
            [name for name in under if name not in names],
            [name for name in names if name not in mapping],
        )
        if unknown or missing:
            first = next(iter(self.parameters))
            found = {name.removesuffix(first) for name in map(str, mapping) if name.endswith(first)}
            fitting = sorted(found - {prefix})
            hint = f"; prefix may be one of {fitting}" if fitting else ""
            raise ValueError(f"mapping must have the parameters' names; missing: {missing}, unknown: {unknown}{hint}")
        return {name: mapping[full] for full, name in names.items()}

    def _loaded(self, value: Any, shown: str, name: str, convert: bool) -> Array:
        """A value on the host, wherever it lies: loading is no hot path."""
        value, source = _source_of(value)
        device = self._device(self.device)
        elsewhere = getattr(value, "__dlpack_device__", lambda: (1, 0))()[0] == 2 and owner_of(value) is None
        if device is not None and elsewhere:
            value = device.arrays.from_dlpack(value)
        owner = None if device is None else owner_of(value)
        array = as_array(value, f"mapping[{shown!r}]") if owner is None else owner.to_host(value)
        source = source or str(array.dtype)
        if not is_float(array.dtype) or (source != str(self.dtype) and not convert):
            hint = "; pass convert=True to round it" if is_float(array.dtype) else ""
            raise TypeError(f"mapping[{shown!r}] must be an array of {self.dtype}, not of {source}{hint}")
        if array.shape != self.parameters[name].shape:
            raise ValueError(f"mapping[{shown!r}] must have shape {self.parameters[name].shape}, not {array.shape}")
        return array

    def to(self, device: str | None = None, dtype: Any = None) -> Any:
        """Change device and dtype of the parameters in place, rounding where it narrows, and return the object itself.

        Parameters
        ----------
        device : str, optional
            'cpu', 'cuda' or 'cuda:N'.
        dtype : dtype, optional
            float32 or float64; on a CUDA device also bfloat16 or float16.

        Where either changes the parameters are new arrays; earlier tapes, steppers and buffers belong to the old ones.

        Raises
        ------
        TypeError, ValueError
            Where either is none of these, or does not go with the other, with ``precision`` or with ``engine``.
        """
        device = self.device if device is None else require_device(device)
        name = require_dtype(self._settings["dtype"] if dtype is None else dtype, device)
        if name == self._settings["dtype"] and device == self.device:
            return self
        require_precision(self.precision, device, name)
        require_engine(self.engine, device)
        self._engine.check_parameters(self.parameters)
        settings = {**self._settings, "dtype": name}
        engine = self._make_engine(settings, device)
        before, after, calls = self._device(self.device), self._device(device), self._engine.calls
        host = {key: array if before is None else before.to_host(array) for key, array in self.parameters.items()}
        host = {key: array.astype(numpy_dtype(name)) for key, array in host.items()}
        self._settings, self.device, self._engine = settings, device, engine
        self.parameters = host if after is None else {key: after.from_host(array) for key, array in host.items()}
        self._engine.calls = calls
        return self

    def backward(
        self, tape: _core.Tape | Tape, dy: Array | None = None, dstate: Any = None, grads: Gradients | None = None
    ) -> Gradients:
        """Run backpropagation through time; see the classes' own docstrings for the shapes."""
        engine: Any = self._engine
        if not isinstance(tape, _core.Tape if isinstance(engine, _core.Recurrent) else Tape):
            raise TypeError(f"tape must be the one that forward returned, not {type(tape).__name__}")
        if grads is not None and not isinstance(grads, Gradients):
            raise TypeError(f"grads must be the Gradients of an earlier call or None, not {type(grads).__name__}")
        return Gradients(*engine.backward(tape, dy, dstate, None if grads is None else grads.parameters))

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_engine"]
        state["calls"] = self._engine.calls
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        calls = state.pop("calls")
        self.__dict__.update(state)
        self._engine = self._make_engine(self._settings, self.device)
        self._engine.calls = calls

    def _describe(self, **options: object) -> str:
        shown = {
            **options,
            "clip": self.clip,
            "bias": self.bias,
            "dtype": str(self._settings["dtype"]),
            "device": self.device,
            "precision": self.precision,
            "engine": self.engine,
        }
        defaults = {
            "clip": None,
            "bias": True,
            "dtype": "float32",
            "device": "cpu",
            "precision": "ieee",
            "engine": "auto",
        }
        listed = [f"{name}={value!r}" for name, value in shown.items() if defaults.get(name) != value]
        return f"{type(self).__name__}({', '.join([str(self.input_size), str(self.hidden_size), *listed])})"

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


def as_array(value: Any, name: str) -> Array:
    """`value` as an array, without a conversion: NumPy's own, or through ``__dlpack__`` or ``__array__``."""
    if isinstance(value, np.ndarray):
        require_unmasked(value, f"mapping[{name!r}]")
        return value
    if not (hasattr(value, "__dlpack__") or hasattr(value, "__array__")):
        raise TypeError(f"{name} must be an array, or have __dlpack__ or __array__; it is {type(value).__name__}")
    try:
        return np.from_dlpack(value) if hasattr(value, "__dlpack__") else np.asarray(value)
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

    def load_parameters(self, mapping: Mapping[str, Any], *, convert: bool = False) -> None:
        """Copy values into the parameters.

        Parameters
        ----------
        mapping : mapping of str to array
            One entry for each parameter and no other: arrays, or anything with ``__dlpack__`` or ``__array__``, such as
            the state_dict of the torch module of the same name.
        convert : bool
            Take arrays of another floating-point width and round them.

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
        unknown = [name for name in mapping if name not in self.parameters]
        missing = [name for name in self.parameters if name not in mapping]
        if unknown or missing:
            raise ValueError(f"mapping must have the parameters' names; missing: {missing}, unknown: {unknown}")
        if self.device != "cpu":
            return self._load_to_device(mapping, convert)
        arrays = {name: self._checked(as_array(mapping[name], name), name, convert) for name in self.parameters}
        if any(np.may_share_memory(array, own) for array in arrays.values() for own in self.parameters.values()):
            arrays = {name: array.copy() for name, array in arrays.items()}
        for name, array in arrays.items():
            self.parameters[name][...] = array

    def _load_to_device(self, mapping: Mapping[str, Any], convert: bool) -> None:
        """Through the host, whatever an entry is and wherever it lies: loading is no hot path."""
        device = self._device(self.device)
        assert device is not None
        host = {}
        for name in self.parameters:
            value = mapping[name]
            if owner_of(value) is None and getattr(value, "__dlpack_device__", lambda: (1, 0))()[0] == 2:
                value = device.arrays.from_dlpack(value)
            owner = owner_of(value)
            array = as_array(value, name) if owner is None else owner.to_host(value)
            host[name] = self._checked(array, name, convert)
        for name, array in host.items():
            device.assign(self.parameters[name], array.astype(self.dtype))

    def _checked(self, array: Array, name: str, convert: bool) -> Array:
        if not is_float(array.dtype) or (array.dtype != self.dtype and not convert):
            hint = "; pass convert=True to round it" if is_float(array.dtype) else ""
            raise TypeError(f"mapping[{name!r}] must be an array of {self.dtype}, not of {array.dtype}{hint}")
        if array.shape != self.parameters[name].shape:
            raise ValueError(f"mapping[{name!r}] must have shape {self.parameters[name].shape}, not {array.shape}")
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

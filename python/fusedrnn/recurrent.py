"""What layers and cells have in common: parameters, and the compiled object that computes with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from fusedrnn.arguments import require_flag, require_generator
from fusedrnn.arrays.dtypes import is_float, numpy_dtype
from fusedrnn.arrays.memory import memory_of
from fusedrnn.engines.protocol import Engine, ParameterEngine, Tape
from fusedrnn.engines.selection import make_engine
from fusedrnn.gradients import Array, Gradients, Norms
from fusedrnn.options import Options

_OWN = ("device", "precision", "engine")  # options that a pickle has beside its settings


def _source_of(value: Any) -> tuple[Any, str | None]:
    """A value to read as an array; of torch's bfloat16, which NumPy lacks, in float32, and its own dtype's name."""
    return (value.float(), "bfloat16") if str(getattr(value, "dtype", None)) == "torch.bfloat16" else (value, None)


def lstm_name(peephole: bool, coupled: bool) -> str:
    """Name of the LSTM variant among the compiled cells."""
    return "lstm" + ("_peephole" if peephole else "") + ("_coupled" if coupled else "")


class Recurrent:
    """Base of every layer and cell; not made directly."""

    _engine: ParameterEngine

    def __init__(self, options: Options) -> None:
        self._options = options
        self._engine = engine = self._new_engine(options)
        #: Name -> live writable array. An edit shows at the next call.
        self.parameters: dict[str, Array] = {
            name: engine.memory.empty(shape, self.dtype) for name, shape in engine.parameter_shapes
        }
        draw_uniform(self, options.seed)

    def _new_engine(self, options: Options) -> ParameterEngine:
        return make_engine(options)

    @property
    def input_size(self) -> int:
        """Features of an input, I."""
        return self._options.input_size

    @property
    def hidden_size(self) -> int:
        """Units, H."""
        return self._options.hidden_size

    @property
    def bias(self) -> bool:
        """Whether there are bias parameters."""
        return self._options.bias

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of every array: float32, float64, bfloat16, on a CUDA device also float16. Of 16 bits c is float32."""
        return numpy_dtype(self._options.dtype)

    @property
    def clip(self) -> float | None:
        """Bound on the input of every gate's activation; None: there is none."""
        return self._options.clip or None

    @property
    def cell_name(self) -> str:
        """Name of the cell, as ``fusedrnn.info()`` and ``fusedrnn.reference`` list it."""
        return self._options.cell

    @property
    def device(self) -> str:
        """Where the parameters lie: 'cpu' or 'cuda:N'."""
        return self._options.device

    @property
    def precision(self) -> str:
        """How products of float32 on a CUDA device round their operands: 'ieee' or 'tf32'."""
        return self._options.precision

    @property
    def engine(self) -> str:
        """How a CUDA device runs the recurrence: 'auto', 'stepwise' or 'persistent'."""
        return self._options.engine

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
        arrays = {name: self._loaded(value, prefix + name, name, convert) for name, value in values.items()}
        own = self.parameters.values() if self.device == "cpu" else ()
        if any(np.may_share_memory(array, parameter) for array in arrays.values() for parameter in own):
            arrays = {name: array.copy() for name, array in arrays.items()}
        for name, array in arrays.items():
            self._engine.memory.assign(self.parameters[name], array)

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
        """A value on the host, wherever it lies; loading need not be fast."""
        value, source = _source_of(value)
        array = self._engine.memory.read(value, f"mapping[{shown!r}]")
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
            float32, float64 or bfloat16; on a CUDA device also float16.

        Where either changes the parameters are new arrays; earlier tapes, steppers and buffers belong to the old ones.

        Raises
        ------
        TypeError, ValueError
            Where either is none of these, or does not go with the other, with ``precision`` or with ``engine``.
        """
        options = self._options.moved(device, dtype)
        if options is self._options:
            return self
        self._engine.check_parameters(self.parameters)
        engine, before = self._new_engine(options), self._engine
        host = {name: before.memory.to_host(array) for name, array in self.parameters.items()}
        host = {name: array.astype(numpy_dtype(options.dtype)) for name, array in host.items()}
        calls = before.calls
        self._options, self._engine = options, engine
        self.parameters = {name: engine.memory.from_host(array) for name, array in host.items()}
        engine.calls = calls
        return self

    def __getstate__(self) -> dict[str, Any]:
        """The attributes, with the options as plain values: a pickle names no class but the layer's own."""
        state = self.__dict__.copy()
        del state["_engine"]
        settings = asdict(state.pop("_options"))
        return {
            **{name: settings.pop(name) for name in _OWN},
            "_settings": settings,
            **state,
            "calls": self._engine.calls,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        own = {name: state.pop(name) for name in _OWN}
        options, calls = Options(**state.pop("_settings"), **own), state.pop("calls")
        self.__dict__.update(state, _options=options)
        self._engine = self._new_engine(options)
        self._engine.calls = calls

    def _describe(self, **options: object) -> str:
        shown = {
            **options,
            "clip": self.clip,
            "bias": self.bias,
            "dtype": self._options.dtype,
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


def draw_uniform(layer: Recurrent, seed: int | np.random.Generator | None) -> None:
    """Draw every parameter from U(-1/sqrt(H), 1/sqrt(H))."""
    generator = require_generator(seed)
    bound = 1 / np.sqrt(layer.hidden_size)
    for array in layer.parameters.values():
        memory_of(array).assign(array, generator.uniform(-bound, bound, array.shape))


def differentiate(
    engine: Engine, tape: Tape, dy: Array | None, dstate: Any, grads: Gradients | None, norms: bool = False
) -> Gradients:
    """The backward pass of layers and cells."""
    if not isinstance(tape, engine.tape_type):
        raise TypeError(f"tape must be the one that forward returned, not {type(tape).__name__}")
    if grads is not None and not isinstance(grads, Gradients):
        raise TypeError(f"grads must be the Gradients of an earlier call or None, not {type(grads).__name__}")
    require_flag(norms, "norms")
    into = None if grads is None else grads.parameters
    x, state, parameters, measured = engine.backward(tape, dy, dstate, into, norms)
    return Gradients(x, state, parameters, None if measured is None else Norms(*measured))

"""What the optimizers have in common: checks, the walk over the parameters, and the state to save."""

from __future__ import annotations

import abc
import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, SupportsFloat

import numpy as np

from fusedrnn.arguments import require_integer, require_number
from fusedrnn.arrays.checks import require_shape, require_writable
from fusedrnn.arrays.device import Device, owner_of
from fusedrnn.arrays.dtypes import FLOATS, accumulator
from fusedrnn.arrays.host import require_unmasked
from fusedrnn.arrays.sharing import sharing
from fusedrnn.gradients import Array, Gradients

Key = tuple[str, ...]  # (name,), or (group, name)
Rate = SupportsFloat | Mapping[str, SupportsFloat]

LARGEST = float(np.finfo(np.float64).max)


def _label(argument: str, key: Key) -> str:
    return argument + "".join(f"[{part!r}]" for part in key)


def _mapping_of(value: Any, label: str) -> Mapping[str, Any]:
    mapping = value.parameters if isinstance(value, Gradients) else value
    if not isinstance(mapping, Mapping):
        raise TypeError(f"{label} must be a mapping of names to arrays, not {type(value).__name__}")
    for name in mapping:
        if not isinstance(name, str):
            raise TypeError(f"{label} must have strings for its names, not {name!r}")
    return mapping


def _entries(value: Any, argument: str, grouped: bool) -> dict[Key, Any]:
    """What a mapping holds, or a mapping of mappings, by name or by group and name."""
    outer = _mapping_of(value, argument)
    if not grouped:
        return {(name,): item for name, item in outer.items()}
    groups = {group: _mapping_of(inner, _label(argument, (group,))) for group, inner in outer.items()}
    return {(group, name): item for group, inner in groups.items() for name, item in inner.items()}


def _require_floats(array: Any, label: str) -> None:
    """Refuse what is no array of floating-point numbers, NumPy's or a device's."""
    if not isinstance(array, np.ndarray) and owner_of(array) is None:
        raise TypeError(f"{label} must be a numpy.ndarray or a CUDA device's array, not {type(array).__name__}")
    require_unmasked(array, label)
    if array.dtype.name not in FLOATS:
        raise TypeError(f"{label} must be an array of {' or '.join(FLOATS)}, not of {array.dtype}")


def _place(array: Any) -> str:
    device = owner_of(array)
    return "the CPU" if device is None else device.name


def _require_alike(array: Any, label: str, dtype: Any, shape: tuple[int, ...], place: str) -> None:
    _require_floats(array, label)
    if array.dtype != dtype or _place(array) != place:
        raise TypeError(
            f"{label} must be an array of {dtype} on {place}, as the parameter was when the optimizer was made, not of "
            f"{array.dtype} on {_place(array)}; after layer.to(...) make a new one"
        )
    require_shape(array, label, shape)


def _require_apart(arrays: dict[Key, Any]) -> None:
    """Refuse parameters that share memory, which a step would write twice."""
    for i, j in sharing(list(arrays.values())):
        first, second = (_label("parameters", list(arrays)[index]) for index in (i, j))
        raise ValueError(f"{second} must not share memory with {first}")


def _empty(device: Device | None, shape: tuple[int, ...], dtype: Any) -> Array:
    empty: Array = np.empty(shape, dtype) if device is None else device.empty(shape, dtype)
    return empty


@dataclass
class _Slot:
    """What is kept of one parameter: its device, dtype and shape, and its state in at least float32."""

    dtype: Any
    shape: tuple[int, ...]
    device: Device | None
    state: dict[str, Array]

    @property
    def place(self) -> str:
        return "the CPU" if self.device is None else self.device.name

    @property
    def width(self) -> Any:
        return accumulator(self.dtype)


class _Workspace:
    """Memory to compute in, kept from step to step: a few arrays, each as large as the largest parameter."""

    def __init__(self) -> None:
        self._flat: dict[Any, Array] = {}

    def array(self, slot: _Slot, number: int) -> Array:
        """The workspace array of this number, in a parameter's shape; what it holds is undefined."""
        key, size = (slot.place, slot.width, number), math.prod(slot.shape)
        if key not in self._flat or self._flat[key].size < size:
            self._flat[key] = _empty(slot.device, (size,), slot.width)
        return self._flat[key][:size].reshape(slot.shape)


class Optimizer(abc.ABC):
    """Base of the update rules; not made directly."""

    _state_names: tuple[str, ...]
    _decays_gradient = True  # weight decay is a term of the gradient

    def __init__(self, parameters: Any, lr: Rate, weight_decay: Rate) -> None:
        outer = _mapping_of(parameters, "parameters")
        self._groups = tuple(outer) if any(isinstance(item, (Mapping, Gradients)) for item in outer.values()) else ()
        #: What was given. Its arrays are looked up at every step, and written by it.
        self.parameters: Mapping[str, Any] = outer
        #: Steps that were taken.
        self.steps = 0
        self.lr = lr
        self.weight_decay = weight_decay
        self._slots = self._make_slots()
        self._workspace = _Workspace()

    def _make_slots(self) -> dict[Key, _Slot]:
        arrays = _entries(self.parameters, "parameters", bool(self._groups))
        if not arrays:
            raise ValueError("parameters must hold at least one array")
        seen: dict[str, str] = {}
        for key, array in arrays.items():
            label = _label("parameters", key)
            _require_floats(array, label)
            require_writable(array, label)
            joined = ".".join(key)
            if joined in seen:
                raise ValueError(f"{label} must not be the same name, joined by a dot, as {seen[joined]}")
            seen[joined] = label
        _require_apart(arrays)
        slots = {}
        for key, array in arrays.items():
            slot = slots[key] = _Slot(array.dtype, tuple(array.shape), owner_of(array), {})
            for name in self._state_names:
                slot.state[name] = _empty(slot.device, slot.shape, slot.width)
                with _on(slot.device):
                    slot.state[name][...] = 0
        return slots

    @property
    def lr(self) -> float | dict[str, float]:
        """Learning rate; by group where a mapping was given. It may be set between steps."""
        return self._lr

    @lr.setter
    def lr(self, value: Rate) -> None:
        self._lr = self._rate(value, "lr")

    @property
    def weight_decay(self) -> float | dict[str, float]:
        """Weight decay; by group where a mapping was given. It may be set between steps."""
        return self._weight_decay

    @weight_decay.setter
    def weight_decay(self, value: Rate) -> None:
        self._weight_decay = self._rate(value, "weight_decay")

    def _rate(self, value: Rate, name: str) -> float | dict[str, float]:
        """A number of at least 0, or one for each group."""
        if not isinstance(value, Mapping):
            return require_number(value, name, least=0.0, most=LARGEST)
        if not self._groups:
            raise ValueError(f"{name} must be a number where parameters have no groups, not {dict(value)}")
        if set(value) != set(self._groups):
            raise ValueError(
                f"{name} must be a number, or have one for each of {list(self._groups)}, not {dict(value)}"
            )
        return {
            group: require_number(value[group], f"{name}[{group!r}]", least=0.0, most=LARGEST) for group in self._groups
        }

    def _rate_of(self, name: str, key: Key) -> float:
        value: float | dict[str, float] = getattr(self, name)
        return value[key[0]] if isinstance(value, dict) else value

    def step(self, gradients: Any) -> None:
        """Take one step: write every parameter, and the optimizer's state.

        Parameters
        ----------
        gradients : Gradients, mapping of str to ndarray, or a mapping of either
            In the form of the parameters: an array for each, of its dtype and shape and on its device.

        Raises
        ------
        TypeError, ValueError
            Where names are missing or unknown, an array is of another kind, dtype, shape or device than its parameter
            was, or parameters put in place of others are not writable or share memory; the message names it. Nothing
            is written then.

        Notes
        -----
        Gradients may be views of the parameters: they are read as they were before the step. Overflow and nan raise
        and print nothing, whatever ``np.seterr`` says; they show in the parameters, as in torch.
        """
        self.lr, self.weight_decay = self.lr, self.weight_decay  # a mapping's numbers may have been set one by one
        parameters = self._checked(self.parameters, "parameters")
        arrays = self._checked(gradients, "gradients")
        for key in self._slots:
            require_writable(parameters[key], _label("parameters", key))
        _require_apart(parameters)
        arrays = self._apart(arrays, parameters)
        self.steps += 1
        # Overflow and nan are values here, as they are in torch; an error would leave the step half done.
        with np.errstate(all="ignore"):
            for key, slot in self._slots.items():
                with _on(slot.device):
                    self._step_one(key, slot, parameters[key], arrays[key])

    def _apart(self, arrays: dict[Key, Any], parameters: dict[Key, Any]) -> dict[Key, Any]:
        """The gradients, with a copy of each that lies in memory which the step writes."""
        keys, count = list(self._slots), len(self._slots)
        found = {
            j
            for i, j in sharing([*(parameters[key] for key in keys), *(arrays[key] for key in keys)])
            if i < count <= j
        }
        for key in [keys[j - count] for j in found]:
            with _on(self._slots[key].device):
                arrays[key] = arrays[key].copy()
        return arrays

    def _checked(self, value: Any, argument: str) -> dict[Key, Any]:
        arrays = _entries(value, argument, bool(self._groups))
        missing = [".".join(key) for key in self._slots if key not in arrays]
        unknown = [".".join(key) for key in arrays if key not in self._slots]
        if missing or unknown:
            raise ValueError(f"{argument} must have the parameters' names; missing: {missing}, unknown: {unknown}")
        for key, slot in self._slots.items():
            _require_alike(arrays[key], _label(argument, key), slot.dtype, slot.shape, slot.place)
        return arrays

    def _step_one(self, key: Key, slot: _Slot, parameter: Array, gradient: Array) -> None:
        """Bring one parameter and its gradient to the state's width, and update it."""
        lr, decay = self._rate_of("lr", key), self._rate_of("weight_decay", key)
        value, narrow = parameter, slot.dtype != slot.width
        if narrow:
            value = self._workspace.array(slot, 1)
            value[...] = parameter
        workspace = self._workspace.array(slot, 0)
        if narrow or (decay and self._decays_gradient):
            wide = self._workspace.array(slot, 2)
            wide[...] = gradient
            gradient = wide
        if decay and self._decays_gradient:
            np.multiply(value, decay, out=workspace)
            gradient += workspace
        elif decay:
            value *= 1.0 - lr * decay
        self._update(slot.state, value, gradient, workspace, lr)
        if narrow:
            parameter[...] = value

    @abc.abstractmethod
    def _update(self, state: dict[str, Array], value: Array, gradient: Array, workspace: Array, lr: float) -> None:
        """Write `value` and the state, all of one dtype; what `workspace` holds is undefined before and after."""

    @abc.abstractmethod
    def _numbers(self) -> dict[str, float]:
        """The numbers that, besides the rates, the update depends on."""

    @abc.abstractmethod
    def _set_numbers(self, numbers: dict[str, Any]) -> None:
        """Check such numbers, which may be of any kind, and take them over; nothing is set where one is refused."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state: a flat dict of numbers and NumPy arrays, for pickle or ``np.savez(path, **state)``.

        Its keys are ``steps``, the options by their names (``lr.group`` where one was given for each group), and for
        every parameter the arrays of the state, such as ``mean.weight_ih_l0`` or ``mean.group.weight_ih_l0``. The
        arrays are copies, on the host.
        """
        state: dict[str, Any] = {"steps": self.steps, **self._numbers()}
        for name in ("lr", "weight_decay"):
            value = getattr(self, name)
            if isinstance(value, dict):
                state |= {f"{name}.{group}": number for group, number in value.items()}
            else:
                state[name] = value
        for slot, name, full in self._state_arrays():
            array = slot.state[name]
            state[full] = array.copy() if slot.device is None else slot.device.to_host(array)
        return state

    def _state_arrays(self) -> Iterator[tuple[_Slot, str, str]]:
        for key, slot in self._slots.items():
            for name in self._state_names:
                yield slot, name, ".".join((name, *key))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the state that `state_dict` of an optimizer over such parameters returned, options included.

        Parameters
        ----------
        state : mapping of str to number or ndarray
            Also as ``np.load`` gives it back. The parameters may lie on another device than the other's did.

        Raises
        ------
        TypeError, ValueError
            Where names are missing or unknown, or a value is of another kind, dtype, shape or range; the message names
            it. Nothing is written then.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a mapping of names to numbers and arrays, not {type(state).__name__}")
        rates = {
            name: [name] if name in state or not self._groups else [f"{name}.{group}" for group in self._groups]
            for name in ("lr", "weight_decay")
        }
        wanted = ["steps", *self._numbers(), *rates["lr"], *rates["weight_decay"]]
        wanted += [full for _, _, full in self._state_arrays()]
        missing, unknown = (
            [name for name in wanted if name not in state],
            [name for name in state if name not in wanted],
        )
        if missing or unknown:
            raise ValueError(f"state must have the names of this optimizer's; missing: {missing}, unknown: {unknown}")
        steps = require_integer(_scalar(state["steps"]), "state['steps']", least=0)
        found: dict[str, Any] = {}
        for name, keys in rates.items():
            numbers = [_scalar(state[key]) for key in keys]
            by_group = dict(zip(self._groups, numbers, strict=True)) if keys != [name] else numbers[0]
            found[name] = self._rate(by_group, name)
        arrays = [self._loaded(state[full], f"state[{full!r}]", slot) for slot, _, full in self._state_arrays()]
        self._set_numbers({name: _scalar(state[name]) for name in self._numbers()})
        self.steps, self._lr, self._weight_decay = steps, found["lr"], found["weight_decay"]
        for (slot, name, _), array in zip(self._state_arrays(), arrays, strict=True):
            if slot.device is None:
                slot.state[name][...] = array
            else:
                slot.device.assign(slot.state[name], array)

    def _loaded(self, value: Any, label: str, slot: _Slot) -> Array:
        _require_floats(value, label)
        owner = owner_of(value)
        array: Array = value if owner is None else owner.to_host(value)
        if array.dtype != slot.width:
            raise TypeError(f"{label} must be an array of {slot.width}, not of {array.dtype}")
        require_shape(array, label, slot.shape)
        return array

    def __repr__(self) -> str:
        numbers = {"lr": self.lr, **self._numbers(), "weight_decay": self.weight_decay}
        shown = ", ".join(f"{name}={value!r}" for name, value in numbers.items())
        return f"{type(self).__name__}({len(self._slots)} parameters, {shown})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_workspace": _Workspace()}


def _on(device: Device | None) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if device is None else device.on()


def _scalar(value: Any) -> Any:
    """A number out of an array without axes, as ``np.load`` gives one back."""
    return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value

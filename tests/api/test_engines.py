"""The one interface of engines: both satisfy it, and layers ask for nothing else."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
from typing import Any

import numpy as np
import pytest
from devices import TestDevice

import fusedrnn as fr
from fusedrnn.engines import protocol
from fusedrnn.options import Options


def members(interface: type) -> set[str]:
    """Its own, and those of the interfaces that it extends."""
    own = [one for one in interface.__mro__ if one.__module__ == protocol.__name__]
    named = {name for one in own for name in vars(one) if not name.startswith("_")}
    return named.union(*map(inspect.get_annotations, own))


class OnlyTheProtocol:
    """An engine of which nothing but the protocol's members can be reached."""

    def __init__(self, engine: Any) -> None:
        object.__setattr__(self, "_engine", engine)

    def __getattr__(self, name: str) -> Any:
        assert name in members(protocol.Engine), name
        return getattr(self._engine, name)

    def __setattr__(self, name: str, value: Any) -> None:
        assert name in members(protocol.Engine), name
        setattr(self._engine, name, value)


def make(device: TestDevice | None, **options: Any) -> fr.LSTM:
    layer = fr.LSTM(3, 4, seed=1, device="cpu" if device is None else "cuda", **options)
    layer._engine = OnlyTheProtocol(layer._engine)
    return layer


def use(layer: fr.LSTM, device: TestDevice | None) -> list[Any]:
    """Everything that a layer does."""
    x = np.linspace(-1, 1, 30, dtype=np.float32).reshape(5, 2, 3)
    x = x if device is None else device.put(x)
    y, state, tape = layer.forward(x)
    assert isinstance(tape, layer._engine.tape_type) and tape.nbytes > 0
    grads = layer.backward(tape, y, state)
    runner, stepper = layer.freeze(), layer.stream(2)
    assert runner.nbytes > 0
    first = stepper.step(x[0])
    stepper.reset()
    twin = pickle.loads(pickle.dumps(runner))
    found = [layer(x), runner(x), twin(x), first, stepper.state, grads.x, grads.state, grads.parameters]
    return found if device is None else device.get(found)


def test_layers_ask_the_cpus_engine_for_nothing_else() -> None:
    for found, wanted in zip(use(make(None), None), use(fr.LSTM(3, 4, seed=1), None), strict=True):
        np.testing.assert_equal(found, wanted)
    with pytest.raises(ValueError, match="device must be a CUDA device"):
        make(None).buffers(3, 2)


def test_layers_ask_a_devices_engine_for_nothing_else(device: TestDevice) -> None:
    layer = make(device)
    for found, wanted in zip(use(layer, device), use(fr.LSTM(3, 4, seed=1, device="cuda"), device), strict=True):
        np.testing.assert_equal(found, wanted)
    assert layer.buffers(3, 2).gradients is not None
    assert layer.to(device="cpu").device == "cpu"


def test_the_options_of_an_object_do_not_change() -> None:
    layer = fr.GRU(3, 4, num_layers=2, clip=2.0, seed=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        layer._options.num_layers = 3  # type: ignore[misc]
    before = layer._options
    assert layer.to(dtype="float32")._options is before
    assert layer.to(dtype="float64")._options == dataclasses.replace(before, dtype="float64")
    assert isinstance(pickle.loads(pickle.dumps(layer))._options, Options)
    state = layer.__getstate__()
    assert not any(isinstance(value, Options) for value in state.values())  # a pickle names no class that may move

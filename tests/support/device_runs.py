"""Training steps of a layer on a device, with inputs and results on the host."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from cases import Inputs
from devices import TestDevice
from oracles import Result, as_tuple, run_library


def host(layer: Any, device: TestDevice) -> dict[str, np.ndarray]:
    return device.get(layer.parameters)


def run(device: TestDevice, layer: Any, inputs: Inputs) -> Result:
    """A training step on the device, its results on the host. Host lengths stay there: they are checked."""
    moved = device.put(dataclasses.replace(inputs, lengths=None))
    result = run_library(layer, dataclasses.replace(moved, lengths=inputs.lengths))
    for array in (result.y, *as_tuple(result.state), result.dx, *as_tuple(result.dstate), *result.parameters.values()):
        assert isinstance(array, device.arrays.kind)
    return device.get(result)


def widened(value: Any) -> Any:
    """Every array of a nest in float64, in which all values of the 16-bit types are exact."""
    if isinstance(value, np.ndarray):
        return value if value.dtype.kind in "biu" else value.astype(np.float64)
    if isinstance(value, dict):
        return {key: widened(item) for key, item in value.items()}
    return tuple(map(widened, value)) if isinstance(value, tuple) else value


def shortened(inputs: Inputs, kind: np.dtype[Any]) -> Inputs:
    """Inputs in a 16-bit type, but for c, which is float32."""

    def rounded(state: Any) -> Any:
        parts = [s.astype(kind if k == 0 else np.float32) for k, s in enumerate(as_tuple(state))]
        return tuple(parts) if isinstance(state, tuple) else parts[0]

    return dataclasses.replace(
        inputs,
        x=inputs.x.astype(kind),
        dy=inputs.dy.astype(kind),
        state=rounded(inputs.state),
        dstate=rounded(inputs.dstate),
    )


def widened_inputs(inputs: Inputs) -> Inputs:
    """Inputs in float64."""
    return Inputs(*(widened(getattr(inputs, field.name)) for field in dataclasses.fields(inputs)))

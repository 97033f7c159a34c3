"""Runs the toy cell through every path of a package that `build.py` made; its tests are those of test_toy_cell.py."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from cases import LAYERS, Case, make_clear_inputs, make_inputs, make_layer
from devices import stand_in
from oracles import Result, arrays_of, as_tuple, run_library
from rounding import assert_matches_reference

import fusedrnn as fr
from fusedrnn import _core, reference
from fusedrnn.cells import _Cell
from fusedrnn.layers import _Layer
from fusedrnn.options import Options


@dataclasses.dataclass(frozen=True)
class Toy:
    """The toy cell as registry.h has it, in the form of the cells in `fusedrnn.reference`."""

    clip: float | None = None

    gates = 2
    states = 2

    @property
    def per_unit(self) -> dict[str, int]:
        return {"scale": 1}

    def forward(self, w: Any, x: Any, state: Any) -> Any:
        h_prev, c_prev = state
        z_f, z_g = np.split(reference._affine(w, x, h_prev), 2, axis=1)
        z_f, out_f = reference._bounded(z_f + w["scale"] * np.tanh(c_prev), self.clip)
        z_g, out_g = reference._bounded(z_g, self.clip)
        f, g = reference.sigmoid(z_f), np.tanh(z_g)
        c = f * (c_prev - g) + g
        return (np.tanh(c), c), (x, h_prev, c_prev, f, g, c, out_f, out_g)

    def backward(self, w: Any, saved: Any, dstate: Any) -> Any:
        x, h_prev, c_prev, f, g, _, out_f, out_g = saved
        _, dc = self.whole_gradient(w, saved, dstate)
        dz_f = reference._through(out_f, dc * (c_prev - g) * f * (1.0 - f))
        dz_g = reference._through(out_g, dc * (1.0 - f) * (1.0 - g**2))
        dx, dh_prev, dw = reference._affine_backward(w, x, h_prev, np.concatenate([dz_f, dz_g], axis=1))
        s = np.tanh(c_prev)
        dw["scale"] = np.stack([(dz_f * s).sum(0)])
        return dx, (dh_prev, dc * f + dz_f * w["scale"] * (1.0 - s**2)), dw

    def whole_gradient(self, w: Any, saved: Any, dstate: Any) -> Any:
        c = saved[5]
        return dstate[0], dstate[1] + dstate[0] * (1.0 - np.tanh(c) ** 2)


DEFAULTS: dict[str, Any] = {
    "bias": True,
    "clip": None,
    "dtype": "float32",
    "device": "cpu",
    "seed": 0,
    "precision": "ieee",
    "engine": "auto",
}


class ToyLayer(_Layer):
    """A layer of toy cells."""

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, **settings: Any) -> None:
        super().__init__(Options.checked("toy", input_size, hidden_size, num_layers=num_layers, **DEFAULTS | settings))


class ToyCell(_Cell):
    """A toy cell."""

    def __init__(self, input_size: int, hidden_size: int, **settings: Any) -> None:
        super().__init__(Options.checked("toy", input_size, hidden_size, single_step=True, **DEFAULTS | settings))


reference.cells["toy"] = Toy()
LAYERS["toy"] = ("ToyLayer", {})
fr.ToyLayer = ToyLayer  # type: ignore[attr-defined]

CASES = [
    Case("toy", layers, directions, dtype, hidden_size=hidden, **options)
    for (layers, directions), dtype, (hidden, options) in itertools.product(
        [(1, 1), (2, 2)],
        ["float32", "float64"],
        [(7, {}), (33, {"ragged": True, "reset": True}), (17, {"masked": True, "clip": 1.0})],
    )
]


def drawn(case: Case) -> tuple[Any, Any]:
    layer = make_layer(case)
    return layer, make_clear_inputs(case, layer.parameters, np.random.default_rng(case.seed))


def test_what_python_knows_of_it() -> None:
    assert fr.info()["cells"] == ["toy"]
    cell = _core.cells["toy"]
    assert (cell.gates, cell.states) == (("f", "g"), ("h", "c"))
    assert cell.parameters["scale"] == ("1", "H") and cell.parameters["weight_ih"] == ("2*H", "I")
    layer = fr.init.forget_bias_(ToyLayer(3, 5, bidirectional=True), 2.0)
    names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "scale"]
    assert list(layer.parameters) == [f"{name}_l0{suffix}" for suffix in ("", "_reverse") for name in names]
    np.testing.assert_array_equal(layer.parameters["bias_ih_l0"][:5], 2.0)


def test_layers_against_the_reference() -> None:
    for case in CASES:
        layer, inputs = drawn(case)
        assert_matches_reference(run_library(layer, inputs), case, layer.parameters, inputs)


def test_recomputing_changes_no_bit() -> None:
    for case in CASES:
        layer, inputs = drawn(case)
        whole = run_library(layer, inputs)
        y, state, tape = layer.forward(inputs.x, inputs.state, **inputs.sequence_options(), recompute=2)
        grads = layer.backward(tape, inputs.dy, inputs.dstate)
        same = Result(y, state, grads.x, grads.state, grads.parameters)
        for a, b in zip(arrays_of(same), arrays_of(whole), strict=True):
            np.testing.assert_array_equal(a, b)


def test_frozen_layers_and_steppers_have_the_bits_of_calls() -> None:
    for case in CASES:
        layer, inputs = drawn(case)
        y, state = layer(inputs.x, inputs.state, **inputs.sequence_options())
        frozen_y, frozen_state = layer.freeze()(inputs.x, inputs.state, **inputs.sequence_options())
        np.testing.assert_array_equal(frozen_y, y)
        for a, b in zip(as_tuple(frozen_state), as_tuple(state), strict=True):
            np.testing.assert_array_equal(a, b)
        if case.directions == 1 and not (case.ragged or case.masked):
            stepper = layer.stream(case.batch)
            stepper.state = inputs.state
            for x_t, y_t in zip(inputs.x, y, strict=True):
                np.testing.assert_array_equal(stepper.step(x_t), y_t)
            for a, b in zip(stepper.state, state, strict=True):
                np.testing.assert_array_equal(a, b)


def test_cells_take_the_steps_of_layers() -> None:
    for dtype in ("float32", "float64"):
        case = Case("toy", dtype=dtype, time=1, hidden_size=19)
        layer, inputs = drawn(case)
        cell = ToyCell(case.input_size, case.hidden_size, dtype=dtype)
        cell.load_parameters({name.removesuffix("_l0"): array for name, array in layer.parameters.items()})
        before, dstate = (tuple(part[0] for part in parts) for parts in (inputs.state, inputs.dstate))
        y, after = layer(inputs.x, inputs.state)
        found, tape = cell.forward(inputs.x[0], before)
        np.testing.assert_array_equal(found[0], y[0])
        np.testing.assert_array_equal(found[1], after[1][0])
        np.testing.assert_array_equal(cell(inputs.x[0], before)[1], found[1])
        ours, whole = cell.backward(tape, dstate), run_library(layer, dataclasses.replace(inputs, dy=None))
        np.testing.assert_array_equal(ours.x, whole.dx[0])
        np.testing.assert_array_equal(ours.parameters["scale"], whole.parameters["scale_l0"])


def test_tensors_of_torch_have_the_bits_of_arrays() -> None:
    torch = importlib.import_module("torch")
    fusedrnn_torch = importlib.import_module("fusedrnn.torch.engine")
    config_of = importlib.import_module("fusedrnn.torch.config").config_of
    call_type = importlib.import_module("fusedrnn.torch.call").Call
    for case in CASES:
        if case.ragged or case.masked or case.clip:
            continue
        layer, inputs = drawn(case)
        expected = run_library(layer, inputs)
        config = config_of("toy", case.input_size, case.hidden_size, case.num_layers, case.directions == 2, True)
        assert config.states == 2 and config.shapes == [array.shape for array in layer.parameters.values()]
        x, h0, c0 = (torch.tensor(array, requires_grad=True) for array in (inputs.x, *inputs.state))
        weights = [torch.tensor(array, requires_grad=True) for array in layer.parameters.values()]
        call = call_type(config, "time", case.time, case.batch)
        call.bound = fusedrnn_torch.bind(call, x, (h0, c0), weights)
        y, hn, cn = fusedrnn_torch.apply_layers(call, x, h0, c0, *weights)
        torch.autograd.backward((y, hn, cn), tuple(map(torch.tensor, (inputs.dy, *inputs.dstate))))
        found = Result(
            y.detach().numpy(),
            (hn.detach().numpy(), cn.detach().numpy()),
            x.grad.numpy(),
            (h0.grad.numpy(), c0.grad.numpy()),
            dict(zip(layer.parameters, [w.grad.numpy() for w in weights], strict=True)),
        )
        for a, b in zip(arrays_of(found), arrays_of(expected), strict=True):
            np.testing.assert_array_equal(a, b)


def test_devices_against_the_reference() -> None:
    module = importlib.import_module("_cuda_host")
    for case in CASES:
        layer, inputs = drawn(case)
        with stand_in(module) as device:
            moved = make_layer(case, device="cuda")
            moved.load_parameters(layer.parameters)
            found = device.get(run_library(moved, device.put(inputs)))
            assert_matches_reference(found, case, layer.parameters, inputs)


def test_the_reference_differentiates_itself() -> None:
    """Its gradients against central differences, which err by about the square of the step."""
    case = dataclasses.replace(CASES[1], time=3, batch=2, input_size=2, hidden_size=3, dtype="float64")
    layer = make_layer(case)
    inputs = make_inputs(case, np.random.default_rng(0))
    sizes = {**case.reference_options(), **inputs.sequence_options()}
    _, _, tape = reference.forward("toy", layer.parameters, inputs.x, inputs.state, **sizes)
    _, _, gradients = reference.backward(tape, inputs.dy, inputs.dstate)

    def loss() -> float:
        y, state, _ = reference.forward("toy", layer.parameters, inputs.x, inputs.state, **sizes)
        pairs = [(y, inputs.dy), *zip(state, inputs.dstate, strict=True)]
        return sum(float(np.nansum(a * b)) for a, b in pairs)

    step = 1e-5
    for name, array in layer.parameters.items():
        for index in np.ndindex(array.shape):
            middle = array[index]
            array[index] = middle + step
            above = loss()
            array[index] = middle - step
            slope = (above - loss()) / (2 * step)
            array[index] = middle
            assert abs(slope - gradients[name][index]) < 1e-7, (name, index)


if __name__ == "__main__":
    tests: list[tuple[str, Callable[[], None]]] = [
        (name, test) for name, test in list(globals().items()) if name.startswith("test_")
    ]
    for name, test in tests:
        test()
        print(name)

"""RNN, LSTM and GRU against torch.nn, with every option that torch has too."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from cases import CASES, EMPTY_CASES, Case, Inputs, make_clear_inputs, make_layer
from oracles import Result, arrays_of, as_tuple, assert_results_close, map_result, run_library, run_torch, torch_module
from rounding import error_bounds

import fusedrnn as fr

torch = pytest.importorskip("torch")

SHARED = ("rnn_tanh", "rnn_relu", "lstm", "gru")
OPTIONS = [
    Case(cell, layers, directions, dtype, 9, 5, 3, 11, ragged)
    for cell in SHARED
    for layers, directions, dtype, ragged in (
        (1, 1, "float64", False),
        (1, 2, "float32", True),
        (3, 1, "float32", False),
        (2, 2, "float64", True),
    )
]


def bounds_of(case: Case, parameters: dict[str, np.ndarray], inputs: Inputs) -> Result:
    """Bounds between two libraries of the case's dtype; in float64 they are within 1e-12 of an array's magnitude."""
    return error_bounds(case, parameters, inputs, other=case.dtype)


def assert_agrees(ours: Result, theirs: Result, bounds: Result) -> None:
    assert_results_close(ours, theirs, bounds)
    for array, bound in zip(arrays_of(theirs), arrays_of(bounds), strict=True):
        if array.dtype == np.float64 and array.size:
            assert bound.max() < 1e-12 * max(1.0, np.abs(array).max())


TORCH_CASES = [case for case in CASES if case.cell in SHARED and not (case.reset or case.reverse or case.clip)]


@pytest.mark.parametrize("case", TORCH_CASES)
def test_every_output_and_gradient(case: Case, rng: np.random.Generator) -> None:
    layer = make_layer(case)
    inputs = make_clear_inputs(case, layer.parameters, rng, shortest=1)
    bounds = bounds_of(case, layer.parameters, inputs)
    assert_agrees(run_library(layer, inputs), run_torch(case, layer.parameters, inputs), bounds)


# torch refuses T=0.
@pytest.mark.parametrize("case", [c for c in EMPTY_CASES if c.cell in SHARED and c.time > 0])
def test_an_empty_batch(case: Case, rng: np.random.Generator) -> None:
    layer = make_layer(case)
    inputs = make_clear_inputs(case, layer.parameters, rng)
    bounds = bounds_of(case, layer.parameters, inputs)
    assert_agrees(run_library(layer, inputs), run_torch(case, layer.parameters, inputs), bounds)


@pytest.mark.parametrize("case", OPTIONS)
def test_without_biases(case: Case, rng: np.random.Generator) -> None:
    layer = make_layer(case, bias=False)
    assert not [name for name in layer.parameters if name.startswith("bias")]
    inputs = make_clear_inputs(case, layer.parameters, rng, shortest=1)
    bounds = bounds_of(case, layer.parameters, inputs)
    assert_agrees(run_library(layer, inputs), run_torch(case, layer.parameters, inputs, bias=False), bounds)


@pytest.mark.parametrize("case", OPTIONS)
def test_batch_first(case: Case, rng: np.random.Generator) -> None:
    layer = make_layer(case, batch_first=True)
    inputs = make_clear_inputs(case, layer.parameters, rng, shortest=1)
    turned = dataclasses.replace(inputs, x=batch_leading(inputs.x), dy=batch_leading(inputs.dy))
    theirs = run_torch(case, layer.parameters, turned, batch_first=True)
    bounds = bounds_of(case, layer.parameters, inputs)
    bounds = bounds._replace(y=batch_leading(bounds.y), dx=batch_leading(bounds.dx))
    assert_agrees(run_library(layer, turned), theirs, bounds)


def batch_leading(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.swapaxes(0, 1))


@pytest.mark.parametrize("case", [dataclasses.replace(case, batch=1, ragged=False) for case in OPTIONS])
@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched(case: Case, batch_first: bool, rng: np.random.Generator) -> None:
    layer = make_layer(case, batch_first=batch_first)
    inputs = make_clear_inputs(case, layer.parameters, rng)

    def bare(state: Any) -> Any:
        parts = tuple(np.ascontiguousarray(s[:, 0]) for s in as_tuple(state))
        return parts if case.two_states else parts[0]

    alone = dataclasses.replace(
        inputs, x=inputs.x[:, 0], dy=inputs.dy[:, 0], state=bare(inputs.state), dstate=bare(inputs.dstate)
    )
    theirs = run_torch(case, layer.parameters, alone, batch_first=batch_first)
    bounds = bounds_of(case, layer.parameters, inputs)
    bounds = map_result(lambda a: a[:, 0], bounds._replace(parameters={}))._replace(parameters=bounds.parameters)
    assert_agrees(run_library(layer, alone), theirs, bounds)


@pytest.mark.parametrize("case", OPTIONS)
def test_weights_load_from_a_torch_module(case: Case, rng: np.random.Generator) -> None:
    donor = make_layer(case)
    module = torch_module(case, donor.parameters)
    layer = make_layer(case, seed=case.seed + 1)
    layer.load_parameters({name: parameter.detach() for name, parameter in module.named_parameters()})
    assert list(layer.parameters) == list(donor.parameters)
    for name, value in donor.parameters.items():
        np.testing.assert_array_equal(layer.parameters[name], value)


@pytest.mark.parametrize("case", OPTIONS)
def test_the_default_weights_are_drawn_as_torchs(case: Case) -> None:
    layer = make_layer(case)
    theirs = {name: tuple(p.shape) for name, p in torch_module(case, layer.parameters).named_parameters()}
    assert {name: value.shape for name, value in layer.parameters.items()} == theirs
    bound = 1 / np.sqrt(case.hidden_size)
    drawn = np.concatenate([value.ravel() for value in layer.parameters.values()])
    assert np.abs(drawn).max() <= bound * (1 + case.eps)
    # A uniform draw on ±b has variance b²/3; its sample's strays by about 0.9/sqrt(n) of it.
    assert np.var(drawn) == pytest.approx(bound**2 / 3, rel=4.5 / np.sqrt(drawn.size))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("batch", [None, 5])
@pytest.mark.parametrize("cell", SHARED)
def test_cells(cell: str, batch: int | None, bias: bool, dtype: str, rng: np.random.Generator) -> None:
    case = Case(cell, dtype=dtype, time=1, batch=batch or 1, input_size=6, hidden_size=13)
    kind = {"rnn_tanh": "RNNCell", "rnn_relu": "RNNCell", "lstm": "LSTMCell", "gru": "GRUCell"}[cell]
    options = {"nonlinearity": cell.removeprefix("rnn_")} if kind == "RNNCell" else {}
    ours = getattr(fr, kind)(6, 13, bias=bias, dtype=dtype, seed=case.seed, **options)
    theirs = getattr(torch.nn, kind)(6, 13, bias=bias, dtype=getattr(torch, dtype), **options)
    theirs.load_state_dict({name: torch.tensor(value) for name, value in ours.parameters.items()})
    shapes = [(batch or 1, 6), *[(batch or 1, 13)] * 4]
    x, *states = (rng.standard_normal(s if batch else s[1:]).astype(dtype) for s in shapes)
    number = 2 if case.two_states else 1
    state, dstate = (tuple(states[:2]), tuple(states[2:])) if number == 2 else (states[0], states[2])
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, *as_tuple(state))]
    out = as_tuple(theirs(leaves[0], tuple(leaves[1:]) if number == 2 else leaves[1]))
    torch.autograd.backward(out, [torch.tensor(d) for d in as_tuple(dstate)])
    after, tape = ours.forward(x, state)
    grads = ours.backward(tape, dstate)
    expected = Result(
        out[0].detach().numpy(),
        tuple(s.detach().numpy() for s in out),
        leaves[0].grad.numpy(),
        tuple(leaf.grad.numpy() for leaf in leaves[1:]),
        {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()},
    )
    actual = Result(as_tuple(after)[0], as_tuple(after), grads.x, as_tuple(grads.state), grads.parameters)
    assert_agrees(actual, expected, step_bounds(case, ours.parameters, x, state, dstate))


def step_bounds(case: Case, parameters: dict[str, np.ndarray], x: np.ndarray, state: Any, dstate: Any) -> Result:
    """Bounds of one step of a cell, batched or not."""
    batched = x.ndim == 2

    def lifted(arrays: Any) -> Any:
        parts = tuple(a[None] if batched else a[None, None] for a in as_tuple(arrays))
        return parts if isinstance(arrays, tuple) else parts[0]

    named = {f"{name}_l0": value for name, value in parameters.items()}
    bounds = bounds_of(case, named, Inputs(lifted(x), lifted(state), None, None, None, lifted(dstate)))
    bare = map_result(lambda a: a[0] if batched else a[0, 0], bounds._replace(parameters={}))
    grads = {name.removesuffix("_l0"): bound for name, bound in bounds.parameters.items()}
    return bare._replace(state=as_tuple(bare.state), dstate=as_tuple(bare.dstate), parameters=grads)

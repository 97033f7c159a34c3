"""Errors of a whole forward and backward pass against float64, ours beside torch's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import numpy as np

from bench.cases import Case
from bench.limits import Limits
from bench.peers import FUSEDRNN, TORCH, Outputs
from bench.problem import Array, Problem, make_problem
from bench.runner import Figure, Figures, Row, Run

MEASURES = ("rms", "largest")
Errors = dict[str, dict[str, tuple[float, float]]]
"""By contestant and quantity: root mean square and largest value of the error, each over the reference's own."""


def from_reference(problem: Problem) -> Outputs:
    """The reference's results, in float64 from the same arrays."""
    from fusedrnn import reference

    y, state, tape = reference.forward(problem.case.cell, problem.parameters, problem.x)
    dx, _, grads = reference.backward(tape, problem.dy)
    return quantities(y, state, dx, grads)


def quantities(y: object, state: object, dx: object, grads: Mapping[str, object]) -> Outputs:
    """What is compared, by name; the biases' gradients of a plain layer are the same for torch's two."""
    return {
        "y": np.asarray(y),
        "state": np.stack(state) if isinstance(state, tuple) else np.asarray(state),
        "dx": np.asarray(dx),
        "dweight_ih": np.asarray(grads["weight_ih_l0"]),
        "dweight_hh": np.asarray(grads["weight_hh_l0"]),
        "dbias": np.asarray(grads["bias_hh_l0"]),
    }


def rounded(problem: Problem) -> Problem:
    """A problem whose arrays, of whatever type, hold what the case's dtype holds."""
    from fusedrnn.arrays.dtypes import numpy_dtype

    def held(array: Array) -> Array:
        return array.astype(numpy_dtype(problem.case.dtype)).astype(array.dtype)

    parameters = {name: held(array) for name, array in problem.parameters.items()}
    return replace(problem, x=held(problem.x), dy=held(problem.dy), parameters=parameters)


def from_fusedrnn(problem: Problem) -> Outputs:
    """fusedrnn's results."""
    layer = FUSEDRNN.layer(problem)
    x, dy = (array.astype(layer.dtype, copy=False) for array in (problem.x, problem.dy))
    y, state, tape = layer.forward(x)
    grads = layer.backward(tape, dy)
    return quantities(y, state, grads.x, grads.parameters)


def from_torch(problem: Problem) -> Outputs:
    """torch's results."""
    import torch

    module = TORCH.module_of(problem)
    dtype = getattr(torch, problem.case.dtype)
    x = torch.tensor(problem.x, dtype=dtype).requires_grad_()
    y, state = module(x)
    y.backward(torch.tensor(problem.dy, dtype=dtype))
    state = tuple(map(TORCH.get, state)) if isinstance(state, tuple) else TORCH.get(state)
    grads = {name: TORCH.get(value.grad) for name, value in module.named_parameters()}
    return quantities(TORCH.get(y), state, TORCH.get(x.grad), grads)


def relative(actual: Outputs, wanted: Outputs) -> dict[str, tuple[float, float]]:
    """Both measures of each quantity."""
    found = {}
    for name, values in wanted.items():
        error = actual[name] - values
        rms = np.sqrt(np.mean(error**2) / np.mean(values**2))
        found[name] = float(rms), float(np.max(np.abs(error)) / np.max(np.abs(values)))
    return found


@lru_cache(maxsize=1)
def errors(cell: str, sizes: tuple[int, int, int, int], dtype: str, with_torch: bool) -> Errors:
    """All quantities at once, for the cases of the same shape that follow each other."""
    batch, steps, inputs, hidden = sizes
    problem = rounded(make_problem(Case("accuracy", cell, batch, steps, inputs, hidden, True, dtype)))
    wanted = from_reference(problem)
    found = {FUSEDRNN.name: relative(from_fusedrnn(problem), wanted)}
    if with_torch:
        found[TORCH.name] = relative(from_torch(problem), wanted)
    return found


def measure(case: Case, run: Run) -> Row:
    """The errors of the quantity that the variant names."""
    row, sizes = Row(case), (case.batch, case.steps, case.inputs, case.hidden)
    for name, found in errors(case.cell, sizes, case.dtype, run.has(TORCH)).items():
        row.numbers |= {
            f"{name} {measure}": error for measure, error in zip(MEASURES, found[case.variant], strict=True)
        }
    return row


def figures(row: Row, limits: Limits, threads: int) -> Figures:
    """The errors, each measure's side by side."""
    names = [f"{peer} {measure}" for measure in MEASURES for peer in (FUSEDRNN.name, TORCH.name)]
    return {name: Figure(row.numbers.get(name), ".1e") for name in names}

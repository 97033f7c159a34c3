"""Denormal numbers: our time on them over that on ordinary ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from bench.cases import STATES, Case
from bench.limits import Limits
from bench.peers import FUSEDRNN
from bench.problem import Array, Problem, make_problem
from bench.runner import Figure, Figures, Row, Run, interleave

KINDS = ("inputs", "weights", "states")


def shrink(array: Array) -> Array:
    """The array scaled so that ordinary values become denormal."""
    return np.asarray(array * np.finfo(array.dtype).tiny * 0.01, array.dtype)


def shrunk(problem: Problem, *prefixes: str) -> dict[str, Array]:
    """The parameters, denormal where the name begins so."""
    return {name: shrink(value) if name.startswith(prefixes) else value for name, value in problem.parameters.items()}


def states(problem: Problem) -> Any:
    """A denormal initial state of one layer."""
    case = problem.case
    h = shrink(np.ones((case.layers * case.directions, case.batch, case.hidden), case.dtype))
    return (h, h.copy()) if len(STATES[case.cell]) == 2 else h


def measure(case: Case, run: Run) -> Row:
    """Time each kind. Denormal states last only without anything larger: inputs and biases are denormal then, too."""
    row, problem = Row(case), make_problem(case)
    inputs = replace(problem, x=shrink(problem.x), dy=shrink(problem.dy))
    works = {
        "ordinary": FUSEDRNN.prepare(problem),
        "inputs": FUSEDRNN.prepare(inputs),
        "weights": FUSEDRNN.prepare(replace(problem, parameters=shrunk(problem, "weight"))),
        "states": FUSEDRNN.work(replace(inputs, parameters=shrunk(problem, "bias")), state=states(problem)),
    }
    interleave(row, works, run.settings)
    return row


def figures(row: Row, limits: Limits, threads: int) -> Figures:
    """Each kind over ordinary numbers."""
    return {f"{kind} / ordinary": Figure(row.ratio(kind, "ordinary")) for kind in KINDS}

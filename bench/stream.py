"""One step at batch 1 from Python, the state fed back: what a program pays that serves a model step by step."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from bench.cases import Case
from bench.limits import Limits
from bench.peers import FUSEDRNN, ONNXRUNTIME, TORCH, Work
from bench.problem import Problem, make_problem
from bench.runner import Figure, Figures, Row, Run, interleave, prepare_agreeing

STEPPER, CELL, SEQUENCE = "stepper", "cell", "in a sequence"


def hidden_state(state: Any) -> Any:
    """h of an LSTM's pair, or of the only state."""
    return state[0] if isinstance(state, tuple) else state


def fed_back(step: Callable[[Any], Any]) -> Callable[[], Any]:
    """A call that runs step(state) from the state of the call before; None at first."""
    state: Any = None

    def following() -> Any:
        nonlocal state
        state = step(state)
        return state

    return following


def our_stepper(problem: Problem) -> Work:
    """The packed stepper, writing into the caller's array."""
    stepper = FUSEDRNN.layer(problem).stream(batch=1)
    out = np.empty((1, problem.case.hidden), problem.case.dtype)
    return Work(partial(stepper.step, problem.x[0], out=out), lambda _: {"h": out.copy()})


def our_cell(problem: Problem) -> Work:
    """The cell's call."""
    layer_name, options = FUSEDRNN.layers[problem.case.cell]
    cell = getattr(importlib.import_module(FUSEDRNN.module), layer_name + "Cell")(
        problem.case.inputs, problem.case.hidden, **options
    )
    cell.load_parameters({name.removesuffix("_l0"): value for name, value in problem.parameters.items()})
    x = problem.x[0]
    return Work(fed_back(lambda state: cell(x, state)), lambda state: {"h": hidden_state(state)})


def torch_cell(problem: Problem) -> Work:
    """torch's cell."""
    import torch

    layer_name, options = TORCH.layers[problem.case.cell]
    cell = getattr(torch.nn, layer_name + "Cell")(problem.case.inputs, problem.case.hidden, **options)
    cell.load_state_dict(
        {name.removesuffix("_l0"): torch.from_numpy(value.copy()) for name, value in problem.parameters.items()}
    )
    x = torch.from_numpy(problem.x[0].copy())
    step = fed_back(lambda state: cell(x, state))
    return Work(step, lambda state: {"h": hidden_state(state).numpy()}, torch.inference_mode)


def torch_layer(problem: Problem) -> Work:
    """torch's layer with T = 1."""
    import torch

    module, x = TORCH.module_of(problem), torch.from_numpy(problem.x[:1].copy())
    step = fed_back(lambda state: module(x, state)[1])
    return Work(step, lambda state: {"h": hidden_state(state)[0].numpy()}, torch.inference_mode)


def onnxruntime_step(problem: Problem) -> Work:
    """onnxruntime with T = 1, its outputs handed back as inputs."""
    from bench.onnx_graph import build_step_model

    session = ONNXRUNTIME.session(build_step_model(problem))
    names = [argument.name for argument in session.get_inputs()][1:]
    x, shape = problem.x[:1].copy(), (1, 1, problem.case.hidden)

    def step(state: Any) -> Any:
        state = [np.zeros(shape, np.float32) for _ in names] if state is None else state
        return session.run(None, {"x": x, **dict(zip(names, state, strict=True))})

    return Work(fed_back(step), lambda state: {"h": state[0][0]})


def in_a_sequence(problem: Problem) -> Work:
    """A whole sequence by its steps: what is left without the calls from Python, and with x W_ih taken at once."""
    layer = FUSEDRNN.layer(problem)
    return Work(partial(layer, problem.x), lambda result: {"h": result[0][0]}, parts=problem.case.steps)


def measure(case: Case, run: Run) -> Row:
    """Check the first step of each, then time them."""
    row, problem = Row(case), make_problem(case)
    makers = {STEPPER: our_stepper, CELL: our_cell, SEQUENCE: in_a_sequence}
    if run.has(TORCH):
        makers |= {"torch cell": torch_cell, "torch T=1": torch_layer}
    if run.has(ONNXRUNTIME):
        makers["onnxruntime"] = onnxruntime_step
    prepared = prepare_agreeing(row, {name: partial(make, problem) for name, make in makers.items()})
    interleave(row, prepared, run.settings)
    return row


def figures(row: Row, limits: Limits, threads: int) -> Figures:
    """Everyone's time over the stepper's."""
    return {f"{name} / {STEPPER}": Figure(row.ratio(name, STEPPER)) for name in row.measured if name != STEPPER}

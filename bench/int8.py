"""Weights of 8 bits at batch 1: steppers, and sequences beside what torch and onnxruntime quantise dynamically."""

from __future__ import annotations

import tempfile
import warnings
from functools import partial
from pathlib import Path

import numpy as np

from bench.cases import Case
from bench.limits import Limits
from bench.peers import FUSEDRNN, ONNXRUNTIME, TORCH, Work
from bench.problem import Problem, make_problem
from bench.runner import Figure, Figures, Row, Run, interleave

STEP, STEP_FLOAT32, SEQUENCE = "int8 step", "float32 step", "int8 sequence"


def stepper(problem: Problem, weights: str | None) -> Work:
    """A stepper, writing into the caller's array."""
    made = FUSEDRNN.layer(problem).stream(1, weights=weights)
    out = np.empty((1, problem.case.hidden), problem.case.dtype)
    return Work(partial(made.step, problem.x[0], out=out), lambda _: {"h": out.copy()})


def sequence(problem: Problem) -> Work:
    """A runner over all steps."""
    runner = FUSEDRNN.layer(problem).freeze(weights="int8")
    return Work(partial(runner, problem.x), lambda result: {"h": result[0][0]}, parts=problem.case.steps)


def torch_sequence(problem: Problem) -> Work:
    """torch's dynamically quantised module over all steps."""
    import torch

    module, x = torch.nn.Sequential(TORCH.module_of(problem)).eval(), torch.from_numpy(problem.x.copy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torchao will have this
        quantised = torch.ao.quantization.quantize_dynamic(module, {torch.nn.LSTM, torch.nn.GRU}, dtype=torch.qint8)
    read = partial(quantised, x)
    return Work(read, lambda result: {"h": result[0][0].numpy()}, torch.inference_mode, parts=problem.case.steps)


def onnxruntime_sequence(problem: Problem) -> Work:
    """onnxruntime on a dynamically quantised graph over all steps."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from fusedrnn.onnx import to_onnx

    with tempfile.TemporaryDirectory() as folder:
        plain, quantised = Path(folder) / "plain.onnx", Path(folder) / "quantised.onnx"
        onnx.save(to_onnx(FUSEDRNN.layer(problem)), plain)
        quantize_dynamic(plain, quantised, weight_type=QuantType.QInt8)
        session = ONNXRUNTIME.session(quantised.read_bytes())
    inputs = {session.get_inputs()[0].name: problem.x}
    return Work(partial(session.run, None, inputs), lambda result: {"h": result[0][0]}, parts=problem.case.steps)


def measure(case: Case, run: Run) -> Row:
    """Time them by turns; each rounds in a way of its own, which no comparison of results could tell from a mistake."""
    row, problem = Row(case), make_problem(case)
    works = {STEP: stepper(problem, "int8"), STEP_FLOAT32: stepper(problem, None), SEQUENCE: sequence(problem)}
    if run.has(TORCH):
        works["torch int8"] = torch_sequence(problem)
    if run.has(ONNXRUNTIME) and case.cell == "lstm":  # of its quantised recurrent layers there is that of the LSTM
        works["onnxruntime int8"] = onnxruntime_sequence(problem)
    interleave(row, works, run.settings)
    return row


def figures(row: Row, limits: Limits, threads: int) -> Figures:
    """Steps over steps, sequences over sequences."""
    found = {f"{STEP_FLOAT32} / {STEP}": Figure(row.ratio(STEP_FLOAT32, STEP))}
    others = [name for name in ("torch int8", "onnxruntime int8") if name in row.measured]
    return found | {f"{name} / ours": Figure(row.ratio(name, SEQUENCE)) for name in others}

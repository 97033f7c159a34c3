"""bfloat16 beside our own float32 and torch's bfloat16, all in turns."""

from __future__ import annotations

from dataclasses import replace

from bench.cases import Case
from bench.limits import Limits
from bench.peers import FUSEDRNN, TORCH
from bench.problem import make_problem
from bench.runner import Figure, Figures, Row, Run, interleave

OURS = FUSEDRNN.name
FLOAT32 = "fusedrnn float32"


def measure(case: Case, run: Run) -> Row:
    """Time the case, the same in float32, and torch's module."""
    row, problem = Row(case), make_problem(case)
    works = {
        OURS: FUSEDRNN.prepare(problem),
        FLOAT32: FUSEDRNN.prepare(make_problem(replace(case, dtype="float32"))),
    }
    if run.has(TORCH):
        reason = TORCH.refuses(case)
        if reason is None:
            works[TORCH.name] = TORCH.prepare(problem)
        else:
            row.refused[TORCH.name] = reason
    interleave(row, works, run.settings)
    return row


def figures(row: Row, limits: Limits, threads: int) -> Figures:
    """Speed, and the others' times over ours."""
    return {
        "GFLOP/s": Figure(row.gflops(OURS), ".0f"),
        "float32 / ours": Figure(row.ratio(FLOAT32, OURS)),
        "torch / ours": Figure(row.ratio(TORCH.name, OURS)),
    }

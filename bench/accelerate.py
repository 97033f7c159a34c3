"""Every kind of module before and after `accelerate`, over sizes and modes: is any call slower than before?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from bench.adapter import ADAPTER, OWN, accelerate, cell_work
from bench.cases import CELL_STEPS, Case
from bench.limits import Limits
from bench.peers import TORCH, Work
from bench.problem import make_problem
from bench.runner import Figure, Figures, Row, Run, interleave, prepare_agreeing

OVER = f"{OWN} / {ADAPTER}"


def mode_of(case: Case) -> str:
    """Training, or one of torch's two modes without gradients."""
    return "training" if case.training else case.variant.partition(", ")[2]


def work(case: Case, change: Callable[[Any], Any]) -> Work:
    """A module's work in the mode of the case."""
    import torch

    problem = make_problem(case)
    if case.variant.startswith(CELL_STEPS):
        made = cell_work(problem, change)
    else:
        made = TORCH.work(problem, lambda module, x: module(x)[0], change)
    return replace(made, context=torch.no_grad) if mode_of(case) == "no_grad" else made


def measure(case: Case, run: Run) -> Row:
    """Time torch's own module and the swapped one, both in eval(), which is when packed weights are kept."""
    row = Row(case)
    if not run.has(TORCH):
        row.refused[ADAPTER] = "torch takes no part"
        return row

    def swap(module: Any) -> None:
        accelerate(module)
        module.eval()

    makers = {ADAPTER: partial(work, case, swap), OWN: partial(work, case, lambda module: module.eval())}
    interleave(row, prepare_agreeing(row, makers), run.settings)
    return row


def figures(row: Row, limits: Limits, threads: int) -> Figures:
    """torch's time over ours."""
    return {OVER: Figure(row.ratio(OWN, ADAPTER))}


def summary(rows: Sequence[Row]) -> list[list[str]]:
    """For each module, mode and number of steps: the median and the lowest ratio over the sizes, and where it is."""
    groups: dict[tuple[str, str, int], list[tuple[float, Case]]] = {}
    for row in rows:
        ratio, case = row.ratio(OWN, ADAPTER), row.case
        if ratio is not None:
            name = TORCH.layers[case.cell][0] + "Cell" * case.variant.startswith(CELL_STEPS)
            groups.setdefault((name, mode_of(case), case.steps), []).append((ratio, case))
    lines = [["module", "mode", "T", "rows", "median", "lowest", "at B x H", "below 0.95"]]
    for (name, mode, steps), found in groups.items():
        ratios = [ratio for ratio, _ in found]
        lowest, case = min(found, key=lambda each: each[0])
        below = sum(ratio < 0.95 for ratio in ratios)
        at = f"{case.batch} x {case.hidden}"
        lines.append(
            [name, mode, str(steps), str(len(found)), f"{np.median(ratios):.2f}", f"{lowest:.2f}", at, str(below)]
        )
    return lines

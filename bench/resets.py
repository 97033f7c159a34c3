"""Resets in mid-sequence, as rollouts of many environments have them: ours beside what torch's users do instead.

torch's layers take no resets. Its users run a cell step by step and zero the state where an episode begins; or run the
layer from one such step to the next; or cut every row into its episodes and give these to the layer as more, shorter
sequences. What follows from the resets alone, and not from the data, torch's contestants get before the clock starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.adapter import cell_work
from bench.cases import Case
from bench.limits import Limits
from bench.peers import FUSEDRNN, TORCH, Work
from bench.problem import SEED, Problem, make_problem
from bench.runner import Figure, Figures, Row, Run, interleave, prepare_agreeing

SHARE = 0.03
"""Of all steps those that begin an episode."""

OURS, PLAIN = "resets", "no resets"

Resets = NDArray[np.bool_]


def draw_resets(case: Case) -> Resets:
    """(T, B): every step begins an episode with the same probability."""
    return np.random.default_rng(SEED).random((case.steps, case.batch)) < SHARE


def zeroed(state: Any, keep: Any) -> Any:
    """The state with the rows zeroed that begin an episode, where there is one already."""
    if state is None:
        return None
    return tuple(part * keep for part in state) if isinstance(state, tuple) else state * keep


def torch_cells(problem: Problem, reset: Resets) -> Work:
    """The cell, a step a call, each from a state that is zero where an episode begins."""
    import torch

    keep = torch.from_numpy(~reset[..., None]).to(getattr(torch, problem.case.dtype))
    return cell_work(problem, before=lambda t, state: zeroed(state, keep[t]))


def torch_split(problem: Problem, reset: Resets) -> Work:
    """The layer, from each step at which an episode begins in any row to the next such step."""
    import torch

    keep = torch.from_numpy(~reset[..., None]).to(getattr(torch, problem.case.dtype))
    begins = [0, *(np.flatnonzero(reset[1:].any(axis=1)) + 1).tolist(), len(reset)]

    def forward(module: Any, x: Any) -> Any:
        state, outputs = None, []
        for first, last in pairwise(begins):
            y, state = module(x[first:last], zeroed(state, keep[first]))
            outputs.append(y)
        return torch.cat(outputs)

    return TORCH.work(problem, forward)


def episodes(reset: Resets) -> Iterator[tuple[int, int, int]]:
    """Row, first step and length of every episode, or of what of it lies in these steps."""
    for row, begins in enumerate(reset.T):
        bounds = [0, *(np.flatnonzero(begins[1:]) + 1).tolist(), len(reset)]
        for first, last in pairwise(bounds):
            yield row, first, last - first


def places_of_steps(reset: Resets) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each step (T, B) stands among the episodes, the longest first: step of the episode, and which one."""
    step, number = np.empty((2, *reset.shape), np.int64)
    longest_first = sorted(episodes(reset), key=lambda episode: -episode[2])
    for index, (row, first, length) in enumerate(longest_first):
        step[first : first + length, row] = np.arange(length)
        number[first : first + length, row] = index
    return step, number


def torch_padded(problem: Problem, reset: Resets) -> Work:
    """The layer over all episodes at once, side by side and padded to the longest."""
    import torch

    step, number = (torch.from_numpy(part) for part in places_of_steps(reset))
    shape = (int(step.max()) + 1, int(number.max()) + 1, problem.case.inputs)

    def forward(module: Any, x: Any) -> Any:
        return module(x.new_zeros(shape).index_put((step, number), x))[0][step, number]

    return TORCH.work(problem, forward)


def torch_packed(problem: Problem, reset: Resets) -> Work:
    """The layer over all episodes at once, as a PackedSequence, which has no padding."""
    import torch
    from torch.nn.utils.rnn import PackedSequence

    step, number = places_of_steps(reset)
    packed = torch.from_numpy(np.lexsort((number.ravel(), step.ravel())))  # packed step -> one of (T, B)
    place = torch.empty_like(packed)
    place[packed] = torch.arange(len(packed))
    sizes = torch.from_numpy(np.bincount(step.ravel()))

    def forward(module: Any, x: Any) -> Any:
        y = module(PackedSequence(x.flatten(0, 1)[packed], sizes))[0].data
        return y[place].unflatten(0, x.shape[:2])

    return TORCH.work(problem, forward)


def measure(case: Case, run: Run) -> Row:
    """Time ours with resets and without; torch's ways, whose outputs and gradients must agree with ours."""
    row, problem, reset = Row(case), make_problem(case), draw_resets(case)
    row.numbers["resets"] = float(reset.mean())
    makers = {OURS: partial(FUSEDRNN.work, problem, reset=reset)}
    plain = {PLAIN: FUSEDRNN.prepare(problem)}
    if run.has(TORCH):
        ways = {"cells": torch_cells, "split": torch_split, "padded": torch_padded, "packed": torch_packed}
        makers |= {f"torch {name}": partial(way, problem, reset) for name, way in ways.items()}
    interleave(row, prepare_agreeing(row, makers) | plain, run.settings)
    return row


def figures(row: Row, limits: Limits, threads: int) -> Figures:
    """What resets cost us, and the times of torch's ways over ours."""
    over = {f"{name} / ours": Figure(row.ratio(name, OURS)) for name in row.measured if name.startswith("torch")}
    return {"with / without": Figure(row.ratio(OURS, PLAIN))} | over

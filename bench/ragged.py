"""Ragged batches: ours beside our own padded time, and beside torch's packed sequences."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.cases import Case
from bench.limits import Limits
from bench.peers import FUSEDRNN, TORCH, Torch, Work
from bench.problem import SEED, Problem, make_problem
from bench.runner import Figure, Figures, Row, Run, interleave, prepare_agreeing

Lengths = NDArray[np.int64]


def draw_lengths(case: Case) -> Lengths:
    """Uniform in 1..T, in the order they fall."""
    return np.random.default_rng(SEED).integers(1, case.steps + 1, case.batch)


def torch_packed(problem: Problem, lengths: Lengths, peer: Torch = TORCH) -> Work:
    """What torch's users do: pack, run, pad."""
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    counts = torch.from_numpy(lengths)

    def forward(module: Any, x: Any) -> Any:
        packed, _ = module(pack_padded_sequence(x, counts, enforce_sorted=False))
        return pad_packed_sequence(packed, total_length=problem.case.steps)[0]

    return peer.work(problem, forward)


def measure(case: Case, run: Run) -> Row:
    """Time ours ragged and padded; torch packed, whose outputs must agree with ours, and padded."""
    row, problem, lengths = Row(case), make_problem(case), draw_lengths(case)
    row.numbers["work"] = float(lengths.sum()) / (case.steps * case.batch)
    makers = {"ragged": partial(FUSEDRNN.work, problem, lengths=lengths)}
    padded = {"padded": FUSEDRNN.prepare(problem)}
    if run.has(TORCH):
        makers["torch packed"] = partial(torch_packed, problem, lengths)
        padded["torch padded"] = TORCH.prepare(problem)
    interleave(row, prepare_agreeing(row, makers) | padded, run.settings)
    return row


def figures(row: Row, limits: Limits, threads: int) -> Figures:
    """The ragged time over the padded one, that over the part of the steps that are real, and torch's over ours."""
    cost = row.ratio("ragged", "padded")
    return {
        "real steps": Figure(row.numbers["work"], ".0%"),
        "ragged / padded": Figure(cost),
        "over real steps": Figure(None if cost is None else cost / row.numbers["work"]),
        "torch packed / ragged": Figure(row.ratio("torch packed", "ragged")),
        "torch packed / padded": Figure(row.ratio("torch packed", "torch padded")),
    }

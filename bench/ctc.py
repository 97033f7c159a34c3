"""CTC's loss and its gradient from logits: ours beside torch's log_softmax and ctc_loss.

A case's `inputs` are the classes and its `hidden` the labels of each row. The losses are compared. The gradients are
not: torch's in float32 are too rough, and tests compare ours with those in float64.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from bench.cases import Case
from bench.limits import Limits
from bench.one_thread import OURS, figure, makers_of_ours
from bench.peers import TORCH, Outputs, Work
from bench.problem import SEED, Array
from bench.runner import Figure, Figures, Row, Run, interleave, prepare_agreeing

THEIRS = "torch"


def draw(case: Case) -> tuple[Array, Array]:
    """Logits (T, B, C) and targets (B, S)."""
    generator = np.random.default_rng(SEED)
    logits = generator.standard_normal((case.steps, case.batch, case.inputs)).astype(case.dtype)
    return logits, generator.integers(1, case.inputs, (case.batch, case.hidden))


def our_work(case: Case) -> Work:
    """Both passes, natively."""
    import fusedrnn

    logits, targets = draw(case)

    def step() -> Any:
        loss, tape = fusedrnn.ctc_loss_forward(logits, targets)
        return loss, fusedrnn.ctc_loss_backward(tape)

    def read(result: Any) -> Outputs:
        return {"loss": np.reshape(result[0], 1)}

    return Work(step, read)


def torch_work(case: Case) -> Work:
    """log_softmax, ctc_loss and autograd."""
    import torch

    logits, targets = map(torch.from_numpy, draw(case))
    logits.requires_grad_()
    input_lengths = torch.full((case.batch,), case.steps)
    target_lengths = torch.full((case.batch,), case.hidden)

    def step() -> Any:
        loss = torch.nn.functional.ctc_loss(logits.log_softmax(-1), targets, input_lengths, target_lengths)
        return loss, torch.autograd.grad(loss, logits)

    def read(result: Any) -> Outputs:
        return {"loss": TORCH.get(result[0]).reshape(1)}

    return Work(step, read)


def measure(case: Case, run: Run) -> Row:
    """Time ours, on one thread too, and torch's."""
    row = Row(case)
    makers = makers_of_ours(partial(our_work, case), run.threads)
    if run.has(TORCH):
        makers[THEIRS] = partial(torch_work, case)
    interleave(row, prepare_agreeing(row, makers), run.settings)
    return row


def figures(row: Row, limits: Limits, threads: int) -> Figures:
    """torch's time over ours, and that of one thread."""
    return {f"{THEIRS} / ours": Figure(row.ratio(THEIRS, OURS)), **figure(row)}

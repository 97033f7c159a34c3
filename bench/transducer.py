"""The transducer's loss with its joint network, and all gradients: ours beside torch's logits and a compiled lattice.

A case's `inputs` are the classes and its `hidden` the labels of each row. torch makes all logits, and normalises those
that are needed. The dynamic programme over the lattice is Numba's (`bench.lattice`), which runs on as many threads.
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

THEIRS = "torch and Numba"
JOINT = 256
"""Width of the joint network."""


def draw(case: Case) -> tuple[list[Array], Array]:
    """encoder (T, B, J), predictor (U + 1, B, J), weight (V, J) and bias (V,); targets (B, U)."""
    generator = np.random.default_rng(SEED)
    shapes = [(case.steps, case.batch, JOINT), (case.hidden + 1, case.batch, JOINT)]
    parts = [generator.standard_normal(shape) for shape in shapes]
    bound = JOINT**-0.5
    parts += [generator.uniform(-bound, bound, (case.inputs, JOINT)), generator.uniform(-bound, bound, case.inputs)]
    return [part.astype(case.dtype) for part in parts], generator.integers(1, case.inputs, (case.batch, case.hidden))


def outputs(loss: Array, gradients: list[Array]) -> Outputs:
    """By name."""
    return {"loss": loss, **dict(zip(("dencoder", "dpredictor", "dweight", "dbias"), gradients, strict=True))}


def our_work(case: Case) -> Work:
    """Both passes, natively."""
    import fusedrnn

    parts, targets = draw(case)

    def step() -> Any:
        loss, tape = fusedrnn.transducer_loss_forward(*parts, targets)
        return loss, fusedrnn.transducer_loss_backward(tape)

    def read(result: Any) -> Outputs:
        return outputs(np.reshape(result[0], 1), list(result[1]))

    return Work(step, read)


def torch_work(case: Case, threads: int) -> Work:
    """Logits, their normaliser and autograd by torch, the lattice by Numba."""
    import numba
    import torch

    from bench.lattice import loss_and_gradients

    arrays, target_array = draw(case)
    encoder, predictor, weight, bias = parts = [torch.from_numpy(array).requires_grad_() for array in arrays]
    # One label more, whose probability no path uses, so that each of the U + 1 nodes of a frame has one.
    labels = torch.nn.functional.pad(torch.from_numpy(target_array), (0, 1))[:, None, :, None]
    labels = labels.expand(-1, case.steps, -1, -1)

    def step() -> Any:
        numba.set_num_threads(threads)
        joint = torch.tanh(encoder.transpose(0, 1)[:, :, None] + predictor.transpose(0, 1)[:, None])
        logits = torch.nn.functional.linear(joint, weight, bias)
        log_sum = logits.logsumexp(-1)
        blank, label = logits[..., 0] - log_sum, (logits.gather(-1, labels)[..., 0] - log_sum)[:, :, :-1]
        in_float64 = [one.detach().double().numpy() for one in (blank, label)]
        losses, *derivatives = loss_and_gradients(*in_float64)
        wanted = [torch.from_numpy(one / case.batch).to(logits.dtype) for one in derivatives]
        return losses.mean(), torch.autograd.grad([blank, label], parts, wanted)

    def read(result: Any) -> Outputs:
        return outputs(np.reshape(result[0], 1).astype(case.dtype), [TORCH.get(one) for one in result[1]])

    return Work(step, read)


def measure(case: Case, run: Run) -> Row:
    """Time ours, on one thread too, and torch's."""
    row = Row(case)
    makers = makers_of_ours(partial(our_work, case), run.threads)
    if run.has(TORCH):
        makers[THEIRS] = partial(torch_work, case, run.threads)
    interleave(row, prepare_agreeing(row, makers), run.settings)
    return row


def figures(row: Row, limits: Limits, threads: int) -> Figures:
    """torch's time over ours, and that of one thread."""
    return {f"{THEIRS} / ours": Figure(row.ratio(THEIRS, OURS)), **figure(row)}

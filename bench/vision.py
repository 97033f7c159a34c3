"""Sampling of images: ours beside torch's own functions or, for DRAW's windows, beside a composition of torch's.

A case's `inputs` are the channels, its `hidden` the side of the images, and its `steps` the side of what is read. With
gradients, of everything; without, the forward pass alone.
"""

from __future__ import annotations

from collections.abc import Callable
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
NAMES = ("result", "first gradient", "second gradient")


def function_of(case: Case) -> str:
    """What is measured."""
    return case.variant.partition(", ")[2]


def draw(case: Case) -> list[Array]:
    """The function's arrays and the gradient of its result, in that order."""
    generator = np.random.default_rng(SEED)
    side = (case.hidden, case.hidden)
    theta = np.array([[1, 0, 0], [0, 1, 0]]) + 0.2 * generator.standard_normal((case.batch, 2, 3))
    middles = (np.arange(case.hidden) * 2 + 1) / case.hidden - 1
    points = np.stack([*np.meshgrid(middles, middles), np.ones(side)], -1)
    image = generator.standard_normal((case.batch, case.inputs, *side))
    window = 0.3 * generator.standard_normal((case.batch, 5))
    of_grid, of_patch = (case.batch, *side, 2), (case.batch, case.inputs, case.steps, case.steps)
    arrays = {
        "affine_grid": [theta, generator.standard_normal(of_grid)],
        "grid_sample": [image, points @ theta.transpose(0, 2, 1)[:, None], generator.standard_normal(image.shape)],
        "gaussian_read": [image, window, generator.standard_normal(of_patch)],
    }[function_of(case)]
    return [array.astype(case.dtype) for array in arrays]


def outputs(result: Any, gradients: tuple[Any, ...]) -> Outputs:
    """By name."""
    return dict(zip(NAMES, (result, *gradients), strict=False))


def our_work(case: Case) -> Work:
    """The function's forward and backward, or the function."""
    import fusedrnn

    name = function_of(case)
    *arrays, dresult = draw(case)
    size = {
        "affine_grid": [(case.batch, case.inputs, case.hidden, case.hidden)],
        "gaussian_read": [case.steps],
    }.get(name, [])
    whole, forward, backward = (getattr(fusedrnn, name + part) for part in ("", "_forward", "_backward"))
    if not case.training:
        return Work(lambda: whole(*arrays, *size), lambda result: outputs(result, ()))

    def step() -> Any:
        result, tape = forward(*arrays, *size)
        gradients = backward(tape, dresult)
        return result, gradients if isinstance(gradients, tuple) else (gradients,)

    return Work(step, lambda found: outputs(*found))


def bank(center: Any, log_variance: Any, stride: Any, side: int, count: int) -> Any:
    """DRAW's filters (B, count, side) of one axis."""
    import torch

    shifts = torch.arange(1, count + 1) - count / 2 - 0.5
    means = center[:, None] + shifts * stride[:, None]
    squares = (torch.arange(1, side + 1) - means[..., None]) ** 2
    filters = torch.exp(squares / (-2 * log_variance.exp()[:, None, None]))
    return filters / filters.sum(-1, keepdim=True).clamp_min(1e-8)


def read_windows(case: Case, image: Any, window: Any) -> Any:
    """gaussian_read, composed."""
    side, count = case.hidden, case.steps
    stride = (side - 1) / (count - 1) * window[:, 3].exp()
    columns, lines = (bank((side + 1) / 2 * (window[:, i] + 1), window[:, 2], stride, side, count) for i in (0, 1))
    return window[:, 4].exp()[:, None, None, None] * (lines[:, None] @ image @ columns[:, None].transpose(-1, -2))


def torch_work(case: Case) -> Work:
    """torch's function, and autograd."""
    import torch
    from torch.nn import functional

    *inputs, dresult = map(torch.from_numpy, draw(case))
    size = [case.batch, case.inputs, case.hidden, case.hidden]
    call: Callable[..., Any] = {
        "affine_grid": lambda theta: functional.affine_grid(theta, size, align_corners=False),
        "grid_sample": lambda image, grid: functional.grid_sample(image, grid, align_corners=False),
        "gaussian_read": partial(read_windows, case),
    }[function_of(case)]
    for tensor in inputs:
        tensor.requires_grad_(case.training)

    def step() -> Any:
        result = call(*inputs)
        return result, torch.autograd.grad(result, inputs, dresult) if case.training else ()

    return Work(step, lambda found: outputs(TORCH.get(found[0]), tuple(TORCH.get(one) for one in found[1])))


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

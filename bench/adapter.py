"""The adapter for torch: a module as it is and swapped, beside the native call.

Sequences are padded or packed, or go through a cell in a Python loop, beside a native layer over all steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from bench.cases import Case
from bench.limits import Limits
from bench.peers import FUSEDRNN, TORCH, Outputs, Torch, Work
from bench.problem import Array, Problem, make_problem
from bench.ragged import Lengths, draw_lengths
from bench.runner import Figure, Figures, Row, Run, interleave, prepare_agreeing

NATIVE, ADAPTER, OWN = "native", "fusedrnn.torch", "torch"


def accelerate(module: Any) -> None:
    """Swap a module; one that would be left is an error of the row."""
    import fusedrnn.torch

    swap = fusedrnn.torch.accelerate(module)
    if swap.left or not swap.swapped:
        raise RuntimeError(str(swap))


def packed_work(problem: Problem, lengths: Lengths, change: Callable[[Any], Any] = lambda module: None) -> Work:
    """A module's work on a sequence that was packed before: what packing takes is no part of either module."""
    import torch
    from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

    def packed(array: Array) -> PackedSequence:
        return pack_padded_sequence(torch.from_numpy(array), torch.from_numpy(lengths), enforce_sorted=False)

    layout = packed(problem.x)
    flat = replace(problem, x=layout.data.numpy(), dy=packed(problem.dy).data.numpy())
    return TORCH.work(flat, lambda module, x: module(PackedSequence(x, *layout[1:]))[0].data, change)


def packed_outputs(work: Work, lengths: Lengths) -> Work:
    """The native ragged work, its sequences read as a PackedSequence has them."""
    import torch

    order = torch.sort(torch.from_numpy(lengths), descending=True)[1].numpy()  # as torch packs; ties in no fixed order
    alive = np.arange(lengths.max())[:, None] < lengths[order]

    def read(result: Any) -> Outputs:
        outputs = work.read(result)
        sequences = {name: outputs[name][: len(alive), order][alive] for name in ("y", "dx") if name in outputs}
        return {**outputs, **sequences}

    return replace(work, read=read)


class TorchCells(Torch):
    """torch.nn's cells on the CPU."""

    def module_of(self, problem: Problem) -> Any:
        """The cell of a problem of one layer, with its weights."""
        import torch

        case = problem.case
        class_name, options = self.layers[case.cell]
        cell = getattr(torch.nn, class_name + "Cell")(
            case.inputs, case.hidden, dtype=getattr(torch, case.dtype), **options
        )
        own = {name.removesuffix("_l0"): torch.from_numpy(value.copy()) for name, value in problem.parameters.items()}
        cell.load_state_dict(own)
        return cell


def cell_work(
    problem: Problem,
    change: Callable[[Any], Any] = lambda module: None,
    before: Callable[[int, Any], Any] = lambda t, state: state,
) -> Work:
    """A cell's work on a sequence, a step a call, from the state that before(t, state) gives."""
    import torch

    def forward(cell: Any, x: Any) -> Any:
        state, outputs = None, []
        for t, x_t in enumerate(x):
            state = cell(x_t, before(t, state))
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs)

    work = TorchCells().work(problem, forward, change)

    def read(result: Any) -> Outputs:
        return {name if name in ("y", "dx") else name + "_l0": array for name, array in work.read(result).items()}

    return replace(work, read=read)


def measure(case: Case, run: Run) -> Row:
    """Time all three; both of torch's must agree with the native call."""
    row, problem = Row(case), make_problem(case)
    if not run.has(TORCH):
        row.refused[ADAPTER] = "torch takes no part"
        return row
    if case.variant == "packed":
        lengths = draw_lengths(case)
        native = partial(packed_outputs, FUSEDRNN.work(problem, lengths=lengths), lengths)
        modules = partial(packed_work, problem, lengths)
    elif case.variant == "cells":
        native = partial(FUSEDRNN.prepare, problem)
        modules = partial(cell_work, problem)
    else:
        native = partial(FUSEDRNN.prepare, problem)
        modules = partial(TORCH.work, problem, lambda module, x: module(x)[0])
    makers = {NATIVE: native, ADAPTER: partial(modules, change=accelerate), OWN: modules}
    interleave(row, prepare_agreeing(row, makers), run.settings)
    return row


def figures(row: Row, limits: Limits, threads: int) -> Figures:
    """What the adapter adds to the native call, and torch's time over the adapter's."""
    over = None
    if NATIVE in row.measured and ADAPTER in row.measured:
        over = (row.measured[ADAPTER].median - row.measured[NATIVE].median) * 1e6
    return {
        "us over native": Figure(over, ".0f"),
        "adapter / native": Figure(row.ratio(ADAPTER, NATIVE), ".3f"),
        "torch / adapter": Figure(row.ratio(OWN, ADAPTER)),
    }

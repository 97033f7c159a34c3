"""The adapter for torch: a module as it is and swapped, padded or packed, beside the native call."""

from __future__ import annotations

from functools import partial
from typing import Any

from bench.cases import Case
from bench.limits import Limits
from bench.peers import FUSEDRNN, TORCH
from bench.problem import make_problem
from bench.ragged import draw_lengths, torch_packed
from bench.runner import Figure, Figures, Row, Run, interleave, prepare_agreeing

NATIVE, ADAPTER, OWN = "native", "fusedrnn.torch", "torch"


def accelerate(module: Any) -> None:
    """Swap a module; one that would be left is an error of the row."""
    import fusedrnn.torch

    swap = fusedrnn.torch.accelerate(module)
    if swap.left or not swap.swapped:
        raise RuntimeError(str(swap))


def measure(case: Case, run: Run) -> Row:
    """Time all three; both of torch's must agree with the native call."""
    row, problem = Row(case), make_problem(case)
    if not run.has(TORCH):
        row.refused[ADAPTER] = "torch takes no part"
        return row
    if case.variant == "packed":
        lengths = draw_lengths(case)
        native = partial(FUSEDRNN.work, problem, lengths=lengths)
        modules = partial(torch_packed, problem, lengths)
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

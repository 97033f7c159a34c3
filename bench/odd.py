"""Odd sizes: the throughput of ours beside that of the next aligned size."""

from __future__ import annotations

from bench.cases import Case, aligned
from bench.limits import Limits
from bench.peers import FUSEDRNN
from bench.problem import make_problem
from bench.runner import Figure, Figures, Row, Run, interleave, share


def measure(case: Case, run: Run) -> Row:
    """Time both sizes."""
    row = Row(case)
    works = {"odd": FUSEDRNN.prepare(make_problem(case)), "aligned": FUSEDRNN.prepare(make_problem(aligned(case)))}
    interleave(row, works, run.settings)
    return row


def figures(row: Row, limits: Limits, threads: int) -> Figures:
    """Both speeds, the odd one's part of the other, and the times: above 1, padding by hand would have paid."""
    odd, even = row.gflops("odd"), row.gflops("aligned", aligned(row.case))
    return {
        "GFLOP/s": Figure(odd, ".0f"),
        "aligned GFLOP/s": Figure(even, ".0f"),
        "of aligned": share(odd, even),
        "odd / aligned": Figure(row.ratio("odd", "aligned")),
    }

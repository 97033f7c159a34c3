"""The common tables: fusedrnn and its peers on the same case."""

from __future__ import annotations

from functools import partial

from bench.cases import Case
from bench.limits import Limits
from bench.peers import FUSEDRNN
from bench.problem import make_problem
from bench.runner import Figure, Figures, Row, Run, interleave, prepare_agreeing, share

OURS = FUSEDRNN.name


def measure(case: Case, run: Run) -> Row:
    """Check and time the case on every peer that can run it."""
    run.limits.measure(case, run.threads)
    row, problem = Row(case), make_problem(case)
    row.refused = {peer.name: reason for peer in run.peers if (reason := peer.refuses(case)) is not None}
    makers = {peer.name: partial(peer.prepare, problem) for peer in run.peers if peer.name not in row.refused}
    interleave(row, prepare_agreeing(row, makers), run.settings, run.clock)
    return row


def figures(row: Row, limits: Limits, threads: int, isa: str = "") -> Figures:
    """Speed, its part of the FMA peak, at batch 1 that of the bounds in `Limits`, and the peers' times over ours."""
    ours = row.measured[OURS].median if OURS in row.measured else None
    single = row.case.batch == 1
    found = {
        "GFLOP/s": Figure(row.gflops(OURS), ".0f"),
        "of peak": share(row.gflops(OURS), limits.peak(row.case.dtype, threads, isa)),
        "of reading W_hh": share(limits.reading_bound(row.case, threads) if single else None, ours),
        "of bound": share(limits.bound(row.case, threads) if single else None, ours),
    }
    return found | {f"{name} / ours": Figure(row.ratio(name, OURS)) for name in row.measured if name != OURS}

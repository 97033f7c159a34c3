"""Other instruction sets, each in a process that is told to use it, and float64."""

from __future__ import annotations

from dataclasses import replace

from bench import compare, environment, fresh
from bench.cases import Case
from bench.limits import Limits, core
from bench.peers import FUSEDRNN
from bench.runner import Figures, Row, Run


def alone(case: Case, run: Run) -> Row:
    """The case on fusedrnn, in a process of its own."""
    environment.fix_allocator(run.allocator)
    FUSEDRNN.set_threads(run.threads)
    return compare.measure(case, replace(run, peers=[FUSEDRNN]))


def measure(case: Case, run: Run) -> Row:
    """Run the variant's instruction set in a fresh process, where it is not the one in use."""
    run.limits.measure_peak(case.dtype, run.threads, case.variant)
    engine = core()
    if case.variant in ("", engine.isa()):
        return compare.measure(case, replace(run, peers=[FUSEDRNN]))
    if case.variant not in engine.isas():
        return Row(case, refused={FUSEDRNN.name: f"this processor or build lacks {case.variant}"})
    with fresh.variables({"FUSEDRNN_ISA": case.variant}):
        return fresh.call(alone, case, run)


def figures(row: Row, limits: Limits, threads: int) -> Figures:
    """Speed, and its part of the peak of the same instruction set."""
    return compare.figures(row, limits, threads, row.case.variant)

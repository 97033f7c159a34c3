"""The first call in a process, beside later ones."""

from __future__ import annotations

import time

import numpy as np

from bench import fresh
from bench.cases import Case
from bench.limits import Limits
from bench.peers import FUSEDRNN
from bench.problem import make_problem
from bench.runner import Figure, Figures, Measurement, Row, Run

MOST_PROCESSES = 7
LATER_CALLS = 20


def time_calls(case: Case, threads: int) -> tuple[float, float]:
    """Seconds of the first call of all, and the median of the later ones.

    The allocator is as a user has it, and threads, pool and caches are all cold.
    """
    FUSEDRNN.set_threads(threads)
    step = FUSEDRNN.prepare(make_problem(case)).step
    seconds = []
    for _ in range(1 + LATER_CALLS):
        before = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - before)
    return seconds[0], float(np.median(seconds[1:]))


def measure(case: Case, run: Run) -> Row:
    """One sample a process."""
    row = Row(case, measured={"first": Measurement(1), "later": Measurement(LATER_CALLS)})
    for _ in range(min(run.settings.rounds, MOST_PROCESSES)):
        first, later = fresh.call(time_calls, case, run.threads)
        row.measured["first"].samples.append(first)
        row.measured["later"].samples.append(later)
    return row


def figures(row: Row, limits: Limits, threads: int) -> Figures:
    """The first call over a later one."""
    return {"first / later": Figure(row.ratio("first", "later"))}

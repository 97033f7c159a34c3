"""One thread against two, four threads on two processors, several processes at once, and calls beside busy ones."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

from bench import busy, environment, fresh
from bench.cases import BESIDE_OTHERS, Case
from bench.limits import Limits
from bench.peers import FUSEDRNN
from bench.problem import make_problem
from bench.runner import WARM_UP_SECONDS, Figure, Figures, Measurement, Row, Run, interleave, share

COUNTS = {"1 thread": 1, "2 threads": 2, "4 threads": 4}
PROCESSES = {"2 processes": 2, "4 processes": 4}
LONGEST_SECONDS = 0.5
"""Time for which the processes run at once."""


def threads_of(count: int) -> Callable[[], AbstractContextManager[None]]:
    """A context in which the library uses so many threads, more than there are processors if need be."""
    core: Any = importlib.import_module("fusedrnn._core")

    @contextmanager
    def context() -> Iterator[None]:
        before = core.num_threads()
        core.set_num_threads(count, oversubscribe=True)
        try:
            yield
        finally:
            core.set_num_threads(before)

    return context


def repeat(case: Case, threads: int, allocator: str, seconds: float) -> list[float]:
    """Seconds of each call, for as long as told, begun together with the other processes."""
    environment.fix_allocator(allocator)
    FUSEDRNN.set_threads(threads)
    step = FUSEDRNN.prepare(make_problem(case)).step
    step()
    fresh.meet()
    samples: list[float] = []
    begun = before = time.perf_counter()
    while before - begun < seconds + WARM_UP_SECONDS or not samples:
        step()
        after = time.perf_counter()
        if before - begun > WARM_UP_SECONDS:
            samples.append(after - before)
        before = after
    return samples


def measure(case: Case, run: Run) -> Row:
    """Time every number of threads interleaved, then two and four processes at once, of two threads each."""
    if case.variant == BESIDE_OTHERS:
        return busy.measure(case, run)
    row, work = Row(case), FUSEDRNN.prepare(make_problem(case))
    for count in (1, 2):
        run.limits.measure_peak(case.dtype, count)
    works = {name: replace(work, context=threads_of(count)) for name, count in COUNTS.items()}
    interleave(row, works, run.settings)
    seconds = min(run.settings.seconds_per_case, LONGEST_SECONDS)
    for name, count in PROCESSES.items():
        samples = fresh.call_together(count, repeat, case, 2, run.allocator, seconds)
        row.measured[name] = Measurement(1, [sample for process in samples for sample in process])
    return row


def figures(row: Row, limits: Limits, threads: int) -> Figures:
    """Parts of the peak of one thread and of two, and the times over each other.

    Four processes have twice the work of two and four times that of one: evenly shared, their time would be as much.
    """

    if row.case.variant == BESIDE_OTHERS:
        return busy.figures(row)

    def of_peak(name: str) -> Figure:
        return share(row.gflops(name), limits.peak(row.case.dtype, COUNTS[name]))

    return {
        "1 of peak": of_peak("1 thread"),
        "2 of peak": of_peak("2 threads"),
        "1 / 2 threads": Figure(row.ratio("1 thread", "2 threads")),
        "4 / 2 threads": Figure(row.ratio("4 threads", "2 threads")),
        "4 / 2 processes": Figure(row.ratio("4 processes", "2 processes")),
        "4 processes / 2 threads": Figure(row.ratio("4 processes", "2 threads")),
    }

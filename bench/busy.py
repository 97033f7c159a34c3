"""Calls beside processes that take all the time they are given, as on servers and in containers."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np

from bench.cases import Case
from bench.environment import ProcessorClock
from bench.peers import FUSEDRNN, ONNXRUNTIME, TORCH, Work
from bench.problem import Problem, make_problem
from bench.runner import Figure, Figures, Measurement, Row, Run, prepare_agreeing
from bench.stream import onnxruntime_step, our_stepper, torch_layer

OTHERS = (0, 1, 2)
THREADS = (1, 2)
SETTLING_SECONDS = 0.3
"""Time for the busy processes to start, and for teams to notice them."""

LONGEST_WAIT = 5.0
"""Seconds until teams are whole again after the busy processes have ended; on an idle machine a tenth of one."""

FEWEST_CALLS = 3


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many of them, until the context is left."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def held_to(peer: Any, count: int, inner: Callable[[], AbstractContextManager[Any]]) -> Callable[[], Any]:
    """A context in which the peer uses so many threads."""

    @contextmanager
    def context() -> Iterator[None]:
        peer.set_threads(count)
        with inner():
            yield

    return context


def works(problem: Problem, run: Run, row: Row) -> dict[tuple[str, int], Work]:
    """Each peer's work on one and on two threads; a stepper's step where there is one step."""
    makers: dict[str, Callable[[], Work]] = {}
    keys: dict[str, tuple[str, int]] = {}
    for peer, single in ((FUSEDRNN, our_stepper), (TORCH, torch_layer), (ONNXRUNTIME, onnxruntime_step)):
        if not run.has(peer) or peer.refuses(problem.case):
            continue
        for count in THREADS:

            def make(peer: Any = peer, single: Callable[[Problem], Work] = single, count: int = count) -> Work:
                peer.set_threads(count)
                work = single(problem) if problem.case.steps == 1 else peer.prepare(problem)
                return Work(work.step, work.read, held_to(peer, count, work.context), work.parts)

            name = f"{peer.name}, {count} threads"
            makers[name], keys[name] = make, (peer.name, count)
    return {keys[name]: work for name, work in prepare_agreeing(row, makers).items()}


def wait_for_whole_teams() -> float:
    """Seconds until teams that busy processes made smaller are whole again: calls notice that those are gone."""
    core, layer = importlib.import_module("fusedrnn._core"), importlib.import_module("fusedrnn").LSTM(256, 256, seed=0)
    x = np.zeros((14, 1, 256), np.float32)
    FUSEDRNN.set_threads(max(THREADS))
    begun = time.perf_counter()
    layer(x)
    while not core.teams_are_whole() and time.perf_counter() < begun + LONGEST_WAIT:
        layer(x)
    return time.perf_counter() - begun


def sample(work: Work, seconds: float) -> list[float]:
    """Seconds of every call, for as long as told."""
    samples: list[float] = []
    with work.context():
        until = time.perf_counter() + SETTLING_SECONDS
        while time.perf_counter() < until:
            work.step()
        before = time.perf_counter()
        until = before + seconds
        while before < until or len(samples) < FEWEST_CALLS:
            work.step()
            after = time.perf_counter()
            samples.append(after - before)
            before = after
    return samples


def name_of(peer: str, others: int) -> str:
    """Of a column."""
    return f"{peer} beside {others}" if others else peer


def measure(case: Case, run: Run) -> Row:
    """Alone on the better of one and two threads; beside one and two busy processes on two.

    Of one thread beside them the numbers tell, and the means: a call that is stopped for a time slice is rare among
    short ones, and weighs.
    """
    row = Row(case)
    prepared = works(make_problem(case), run, row)
    seconds = run.settings.seconds_per_case / (len(OTHERS) * max(1, len(prepared)))
    found: dict[tuple[str, int, int], Measurement] = {}
    row.numbers["seconds until teams were whole"] = wait_for_whole_teams()
    for others in OTHERS:
        with ExitStack() as stack:
            stack.enter_context(busy_processes(others))
            clock = ProcessorClock()
            for (peer, count), work in prepared.items():
                found[peer, count, others] = Measurement(1, sample(work, seconds))
            if others == 0:
                row.others = clock.share_of_others()
    for one in run.peers:
        one.set_threads(run.threads)
    for (peer, count, others), measurement in found.items():
        row.numbers[f"{name_of(peer, others)}, {count} threads"] = measurement.median
        row.numbers[f"{name_of(peer, others)}, {count} threads, mean"] = sum(measurement.samples) / len(
            measurement.samples
        )
    for peer in {peer for peer, _, _ in found}:
        alone = min((found[peer, count, 0] for count in THREADS), key=lambda each: each.median)
        row.measured[peer] = alone
        row.measured.update({name_of(peer, others): found[peer, max(THREADS), others] for others in OTHERS[1:]})
    return row


def figures(row: Row) -> Figures:
    """Times beside others over the time alone, medians."""
    peers = [peer.name for peer in (FUSEDRNN, TORCH, ONNXRUNTIME) if peer.name in row.measured]
    return {
        f"{peer} {others} / alone": Figure(row.ratio(name_of(peer, others), peer))
        for peer in peers
        for others in OTHERS[1:]
    }

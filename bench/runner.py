"""Timing: the outputs compared first, then interleaved rounds of bursts."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from bench.cases import Case
from bench.environment import ProcessorClock, settle
from bench.peers import Outputs, Peer, Work
from bench.problem import make_problem

BURST_SECONDS = 0.01
"""A burst repeats a call for about this long: well above the clock's grain, short enough to interleave finely."""

WARM_UP_SECONDS = 0.05
FEWEST_ROUNDS = 3
"""Rounds done even when the time of a case is used up."""

ERROR_FACTOR = 16
"""Rounding errors allowed per output, in units of eps * sqrt(I + H): see `tolerance`."""


@dataclass(frozen=True)
class Settings:
    """How long to measure."""

    rounds: int
    seconds_per_case: float


@dataclass
class Measurement:
    """Seconds of a call, one sample a round: the mean over a burst of `calls` calls."""

    calls: int
    samples: list[float] = field(default_factory=list)

    def quartiles(self) -> tuple[float, float, float]:
        """First quartile, median, third quartile."""
        first, median, third = np.quantile(self.samples, (0.25, 0.5, 0.75))
        return float(first), float(median), float(third)


@dataclass
class Row:
    """What came of a case; each peer stands in exactly one of the three mappings."""

    case: Case
    measured: dict[str, Measurement] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    others: float = 0.0


def tolerance(case: Case) -> float:
    """Largest difference allowed, relative to the largest value of an array.

    A sum of K = I + H products rounds by about eps * sqrt(K); the factor covers what the steps add to each other and
    the activations' own errors. A wrong weight, gate or bias is off by thousands of times more.
    """
    return ERROR_FACTOR * float(np.finfo(case.dtype).eps) * math.sqrt(case.inputs + case.hidden)


def disagreement(expected: Outputs, actual: Outputs, allowed: float) -> str | None:
    """What differs by more than rounding, or None. An array that only one of the two has is a difference."""
    if expected.keys() != actual.keys():
        return f"outputs {sorted(actual)} instead of {sorted(expected)}"
    for name, wanted in expected.items():
        got = actual[name]
        if got.shape != wanted.shape or got.dtype != wanted.dtype:
            return f"{name} is {got.dtype} {got.shape} instead of {wanted.dtype} {wanted.shape}"
        error = float(np.max(np.abs(got - wanted)) / np.max(np.abs(wanted)))
        if not error <= allowed:
            return f"{name} is off by {error:.1e} of its largest value, {allowed:.1e} allowed"
    return None


def prepare_all(row: Row, peers: Sequence[Peer]) -> dict[str, Work]:
    """The work of each peer that runs the case and agrees with the first; the others go into `row`."""
    problem = make_problem(row.case)
    prepared: dict[str, Work] = {}
    expected: Outputs | None = None
    for peer in peers:
        reason = peer.refuses(row.case)
        if reason is not None:
            row.refused[peer.name] = reason
            continue
        try:
            work = peer.prepare(problem)
            with work.context():
                outputs = work.read(work.step())
        except Exception as error:  # A peer that fails is a line of the report, not the end of the run.
            row.errors[peer.name] = f"{type(error).__name__}: {error}"
            continue
        expected = outputs if expected is None else expected
        difference = disagreement(expected, outputs, tolerance(row.case))
        if difference is None:
            prepared[peer.name] = work
        else:
            row.errors[peer.name] = difference
    return prepared


def warm_up(work: Work) -> Measurement:
    """Call until the peer has found its pace, and fix how many calls make a burst."""
    settle()
    begun = time.perf_counter()
    with work.context():
        while True:
            before = time.perf_counter()
            work.step()
            after = time.perf_counter()
            if after - begun > WARM_UP_SECONDS:
                return Measurement(max(1, round(BURST_SECONDS / (after - before))))


def burst(work: Work, calls: int) -> float:
    """Mean seconds of a call. Short calls are led by an untimed one, which fetches their weights into the caches."""
    settle()
    with work.context():
        if calls > 1:
            work.step()
        begun = time.perf_counter()
        for _ in range(calls):
            work.step()
        return (time.perf_counter() - begun) / calls


def order(names: Sequence[str], turn: int) -> Iterator[str]:
    """The peers of one round: every second round backwards, and the start moves on after each pair of rounds."""
    start = turn // 2 % len(names)
    rotated = [*names[start:], *names[:start]]
    return reversed(rotated) if turn % 2 else iter(rotated)


def measure_case(case: Case, peers: Sequence[Peer], settings: Settings) -> Row:
    """Check and time one case on every peer that can run it.

    Python's garbage collector is off while the rounds run, as in the standard library's timeit.
    """
    row = Row(case)
    prepared = prepare_all(row, peers)
    if not prepared:
        return row
    row.measured = {name: warm_up(work) for name, work in prepared.items()}
    deadline = time.perf_counter() + settings.seconds_per_case
    clock = ProcessorClock()
    gc.collect()
    gc.disable()
    try:
        for turn in range(settings.rounds):
            if turn >= FEWEST_ROUNDS and time.perf_counter() > deadline:
                break
            for name in order(list(prepared), turn):
                measurement = row.measured[name]
                measurement.samples.append(burst(prepared[name], measurement.calls))
    finally:
        gc.enable()
    row.others = clock.share_of_others()
    return row

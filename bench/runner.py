"""Timing: the outputs compared first, then interleaved rounds of bursts."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from bench.cases import Case
from bench.environment import ProcessorClock, settle
from bench.limits import Limits
from bench.peers import Outputs, Peer, Work

BURST_SECONDS = 0.01
"""A burst repeats a call for about this long: well above the clock's grain, short enough to interleave finely."""

WARM_UP_SECONDS = 0.05
FEWEST_ROUNDS = 3
"""Rounds done even when the time of a case is used up."""

ERROR_FACTOR = 16
GPU_ERROR_FACTOR = 8
"""Rounding errors allowed per output: see `tolerance`."""

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "tf32": 2.0**-10, "float16": 2.0**-10, "bfloat16": 2.0**-7}


@dataclass(frozen=True)
class Settings:
    """How long to measure."""

    rounds: int
    seconds_per_case: float


@dataclass
class Measurement:
    """Seconds of a call, one sample a round: the mean over a burst of `calls` calls; None where that is not known."""

    calls: int | None
    samples: list[float] = field(default_factory=list)

    def quartiles(self) -> tuple[float, float, float]:
        """First quartile, median, third quartile."""
        first, median, third = np.quantile(self.samples, (0.25, 0.5, 0.75))
        return float(first), float(median), float(third)

    @property
    def median(self) -> float:
        """The middle of the samples."""
        return self.quartiles()[1]


@dataclass
class Row:
    """What came of a case: times by contestant, other numbers by name, and who could not run it or was wrong.

    Contestants are the peers in some tables, and what the table compares in others.
    """

    case: Case
    measured: dict[str, Measurement] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    others: float = 0.0

    def gflops(self, name: str, case: Case | None = None) -> float | None:
        """Billions of operations a second, by `Case.flops` of the row's case, or of that which was run instead."""
        return (case or self.case).flops / self.measured[name].median / 1e9 if name in self.measured else None

    def ratio(self, numerator: str, denominator: str) -> float | None:
        """The median of one over that of the other, or None if either is missing."""
        if numerator not in self.measured or denominator not in self.measured:
            return None
        return self.measured[numerator].median / self.measured[denominator].median


class Figure(NamedTuple):
    """A number or a word of the report and how it is printed; one that is None is left out."""

    value: float | str | None
    form: str = ".2f"


Figures = dict[str, Figure]


def share(part: float | None, whole: float | None) -> Figure:
    """A part as a percentage."""
    return Figure(None if part is None or whole is None else part / whole, ".0%")


class Clock:
    """How calls are timed: here by the wall clock, of calls that end before they return."""

    def rest(self) -> None:
        """What has to be done between two cases."""
        settle()

    def warm_up(self, work: Work) -> Measurement:
        """Call until the contestant has found its pace, and fix how many calls make a burst."""
        settle()
        begun = time.perf_counter()
        with work.context():
            while True:
                before = time.perf_counter()
                work.step()
                after = time.perf_counter()
                if after - begun > WARM_UP_SECONDS:
                    return Measurement(max(1, round(BURST_SECONDS / (after - before))))

    def burst(self, work: Work, calls: int) -> float:
        """Mean seconds of a call. Short ones are led by an untimed one, which fetches their weights into the caches."""
        settle()
        step = work.step
        with work.context():
            if calls > 1:
                step()
            begun = time.perf_counter()
            for _ in range(calls):
                step()
            return (time.perf_counter() - begun) / (calls * work.parts)


HOST_CLOCK = Clock()


@dataclass(frozen=True)
class Run:
    """What holds for all cases of a run."""

    peers: Sequence[Peer]
    settings: Settings
    threads: int
    allocator: str
    limits: Limits
    clock: Clock = HOST_CLOCK

    def has(self, peer: Peer) -> bool:
        """Whether the peer takes part."""
        return any(one.name == peer.name for one in self.peers)


def tolerance(case: Case) -> float:
    """Largest difference allowed, relative to the largest value of an array.

    A sum of K = I + H products rounds by about eps * sqrt(K); the factor covers what the steps add to each other and
    the activations' own errors. A wrong weight, gate or bias is off by thousands of times more.

    On a CUDA device errors grow with the steps too. In 16 bits either would allow anything; a quarter of the largest
    value still tells a wrong answer from a rough one.
    """
    eps = EPS[case.arithmetic]
    if case.device == "cpu":
        return min(ERROR_FACTOR * eps * math.sqrt(case.inputs + case.hidden), 0.25)
    return min(GPU_ERROR_FACTOR * eps * math.sqrt(case.hidden) * (1 + math.log2(case.steps)), 0.25)


def disagreement(expected: Outputs, actual: Outputs, allowed: float) -> str | None:
    """What differs by more than rounding, or None. An array that only one of the two has is a difference."""
    if expected.keys() != actual.keys():
        return f"outputs {sorted(actual)} instead of {sorted(expected)}"
    for name, wanted in expected.items():
        got = actual[name]
        if got.shape != wanted.shape or got.dtype != wanted.dtype:
            return f"{name} is {got.dtype} {got.shape} instead of {wanted.dtype} {wanted.shape}"
        error, largest = float(np.max(np.abs(got - wanted))), float(np.max(np.abs(wanted)))
        if not error <= allowed * largest:
            return f"{name} is off by {error:.1e}, {allowed:.1e} of its largest value, {largest:.1e}, allowed"
    return None


def prepare_agreeing(row: Row, makers: Mapping[str, Callable[[], Work]]) -> dict[str, Work]:
    """The work of each contestant that agrees with the first; what is wrong with the others goes into `row`."""
    prepared: dict[str, Work] = {}
    expected: Outputs | None = None
    for name, make in makers.items():
        try:
            work = make()
            with work.context():
                outputs = work.read(work.step())
        except Exception as error:  # One that fails is a line of the report, not the end of the run.
            row.errors[name] = f"{type(error).__name__}: {error}"
            continue
        expected = outputs if expected is None else expected
        difference = disagreement(expected, outputs, tolerance(row.case))
        if difference is None:
            prepared[name] = work
        else:
            row.errors[name] = difference
    return prepared


def order(names: Sequence[str], turn: int) -> Iterator[str]:
    """The contestants of one round: every second round backwards, and the start moves on after each pair of rounds."""
    start = turn // 2 % len(names)
    rotated = [*names[start:], *names[:start]]
    return reversed(rotated) if turn % 2 else iter(rotated)


def interleave(row: Row, works: Mapping[str, Work], settings: Settings, clock: Clock = HOST_CLOCK) -> None:
    """Time every work and enter the measurements into `row`.

    Python's garbage collector is off while the rounds run, as in the standard library's timeit.
    """
    if not works:
        return
    row.measured.update({name: clock.warm_up(work) for name, work in works.items()})
    deadline = time.perf_counter() + settings.seconds_per_case
    processors = ProcessorClock()
    gc.collect()
    gc.disable()
    try:
        for turn in range(settings.rounds):
            if turn >= FEWEST_ROUNDS and time.perf_counter() > deadline:
                break
            for name in order(list(works), turn):
                measurement = row.measured[name]
                measurement.samples.append(clock.burst(works[name], measurement.calls))
    finally:
        gc.enable()
    row.others = processors.share_of_others()

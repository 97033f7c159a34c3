"""A run: every case in turn, in this process or in several fresh ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np
from tqdm import tqdm

from bench import environment, fresh, tables
from bench.cases import Case
from bench.limits import Limits
from bench.peers import PEERS
from bench.runner import Measurement, Row, Run, Settings


@dataclass(frozen=True)
class Plan:
    """What to measure, and how; of names and numbers alone, so that it can go to another process."""

    cases: Sequence[Case]
    peers: Sequence[str]
    settings: Settings
    threads: int
    allocator: str


@dataclass
class Results:
    """What came of the cases planned."""

    rows: list[Row]
    limits: Limits
    facts: dict[str, Any]
    warnings: list[str]
    finished: bool = True
    planned: Sequence[Case] = ()


def describe(plan: Plan, allocator: str) -> dict[str, Any]:
    """What a report says besides the rows; the allocator's policy is the plan's on glibc only."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": environment.git_commit(),
        "machine": environment.machine(),
        "peers": {name: PEERS[name].facts() for name in plan.peers},
        "settings": {**asdict(plan.settings), "threads": plan.threads, "scrub": "nothing between calls or peers"},
        "allocator": {"policy": allocator, "meaning": environment.ALLOCATORS[allocator]},
        "processes": 1,
    }


def execute(plan: Plan) -> Results:
    """Measure every case in this process."""
    allocator = environment.fix_allocator(plan.allocator)
    peers = [PEERS[name] for name in plan.peers]
    for peer in peers:
        peer.set_threads(plan.threads)
    run = Run(peers, plan.settings, plan.threads, allocator, Limits())
    warnings = environment.runtime_warnings()
    results = Results([], run.limits, describe(plan, allocator), warnings, planned=plan.cases)
    measure_all(plan.cases, run, results)
    return results


def measure_all(
    cases: Iterable[Case], run: Run, results: Results, after: Callable[[Results], None] = lambda results: None
) -> None:
    """Enter the row of each case into the results, and call after(results) each time; an interrupt keeps what is."""
    with tqdm(cases, total=len(results.planned), unit="case", dynamic_ncols=True) as progress:
        try:
            for case in progress:
                progress.set_postfix_str(case.name)
                run.clock.rest()
                results.rows.append(tables.measure(case, run))
                after(results)
        except KeyboardInterrupt:
            results.finished = False


def execute_often(plan: Plan, processes: int) -> Results:
    """Measure every case in each of so many fresh processes, one after the other, and take the medians over them."""
    every: list[Results] = []
    try:
        for _ in range(processes):
            every.append(fresh.call(execute, plan))
            if not every[-1].finished:
                break
    except KeyboardInterrupt:
        if not every:
            raise
        every[-1].finished = False
    return combine(every)


def combine(every: Sequence[Results]) -> Results:
    """The results of several processes as one, whose samples are the processes' medians."""
    limits = Limits()
    for results in every:
        limits.merge(results.limits)
    by_case: dict[Case, list[Row]] = {}
    for row in (row for results in every for row in results.rows):
        by_case.setdefault(row.case, []).append(row)
    return Results(
        [combine_rows(rows) for rows in by_case.values()],
        limits,
        {**every[0].facts, "processes": len(every)},
        list(dict.fromkeys(text for results in every for text in results.warnings)),
        all(results.finished for results in every),
        every[0].planned,
    )


def combine_rows(rows: Sequence[Row]) -> Row:
    """One case's rows as one. A contestant that failed in any process counts as failed."""
    combined = Row(rows[0].case, others=max(row.others for row in rows))
    for row in rows:
        combined.refused |= row.refused
        combined.errors |= row.errors
        for name, measurement in row.measured.items():
            total = combined.measured.setdefault(name, Measurement(measurement.calls))
            total.samples.append(measurement.median)
    for name in rows[0].numbers:
        combined.numbers[name] = float(np.median([row.numbers[name] for row in rows if name in row.numbers]))
    for name in combined.errors:
        combined.measured.pop(name, None)
    return combined

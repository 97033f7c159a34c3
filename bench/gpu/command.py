"""Command line of the tables of a CUDA device."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from bench import environment, gpu, report
from bench.cases import GPU_CASES
from bench.gpu import device
from bench.gpu.budget import within_budget
from bench.gpu.peers import GPU_PEERS
from bench.options import file_path, positive_seconds
from bench.runner import Run, Settings
from bench.session import Results, measure_all

OUTPUT = environment.ROOT / "bench" / "results" / "gpu.json"
ROUNDS = 5
THREADS = 1
"""No figure of these tables depends on the host's threads."""


def make_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(
        "python -m bench gpu", description=gpu.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    text = "no row begins that would end after this (600)"
    parser.add_argument("--budget-seconds", type=positive_seconds, default=600.0, metavar="N", help=text)
    parser.add_argument("--output", type=file_path(".json"), default=OUTPUT, metavar="FILE.json", help="the JSON file")
    parser.add_argument("--list", action="store_true", help="print the names of the rows in their order and stop")
    parser.add_argument("--show", action="store_true", help="print the JSON file's rows as Markdown and stop")
    return parser


def start(budget: float) -> tuple[Run, Results]:
    """The run, with the device's limits measured, and its results before the first row."""
    settings = Settings(ROUNDS, budget)
    run = Run(GPU_PEERS, settings, THREADS, "system", device.measure_limits(), device.EventClock())
    facts = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": environment.git_commit(),
        **device.facts(),
        "settings": {**asdict(settings), "budget_seconds": budget},
        "processes": 1,
    }
    return run, Results([], run.limits, facts, environment.runtime_warnings(), planned=GPU_CASES)


def measure_within(
    run: Run, results: Results, path: Path, budget: float, clock: Callable[[], float] = time.monotonic
) -> None:
    """Measure what the budget allows of the cases planned, and write everything after each row."""

    def write(results: Results) -> None:
        report.write_json(path, results, THREADS, results.warnings)

    measure_all(within_budget(results.planned, budget, clock), run, results, write)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tables; 1 if a contestant failed or disagreed."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(case.name for case in GPU_CASES))
        return 0
    if options.show:
        if not options.output.is_file():
            parser.error(f"there is no file {options.output}")
        print("\n\n".join(report.markdown_sections(report.read_json(options.output), THREADS)))
        return 0
    reason = device.missing()
    if reason is not None:
        parser.error(reason)
    begun = time.monotonic()
    run, results = start(options.budget_seconds)
    measure_within(run, results, options.output, options.budget_seconds - (time.monotonic() - begun))
    print(report.text(results, THREADS))
    return int(any(row.errors for row in results.rows))

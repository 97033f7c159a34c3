"""The harness's cases as pytest-benchmark's: `pytest bench/`, with `-k` to choose among them by name."""

from __future__ import annotations

from typing import Any

import pytest

from bench.cases import CPU_CASES, Case
from bench.environment import settle, usable_cpus
from bench.peers import Peer
from bench.problem import make_problem

pytest.importorskip("pytest_benchmark")

COMMON = ("train", "infer", "stack")
"""The tables in which every peer runs the case itself; the others compare what is their own."""

THREADS = min(2, usable_cpus())


@pytest.mark.parametrize("case", [case for case in CPU_CASES if case.table in COMMON], ids=lambda case: case.name)
def test_bench(benchmark: Any, peer: Peer, case: Case) -> None:
    if not peer.available():
        pytest.skip(f"{peer.name} can't be imported here")
    reason = peer.refuses(case)
    if reason is not None:
        pytest.skip(f"{peer.name}: {reason}")
    peer.set_threads(THREADS)
    work = peer.prepare(make_problem(case))
    settle()
    benchmark.group = case.name
    benchmark.extra_info.update(peer=peer.name, flops=case.flops, threads=THREADS)
    with work.context():
        benchmark(work.step)

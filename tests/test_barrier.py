"""The barrier at which a team meets, and teams beside other processes: what they compute, never how fast."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitwise import assert_same, threads
from cases import Case, make_inputs, make_layer, small_cases
from oracles import run_library

import fusedrnn as fr
from fusedrnn import _core

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ["tests/barrier_program.cpp", "csrc/cpu/barrier.cpp", "csrc/cpu/contention.cpp"]


@pytest.mark.parametrize("sanitizer", ["none", "thread"])
def test_nobody_leaves_before_all_have_come(sanitizer: str, tmp_path: Path) -> None:
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if compiler is None or not (ROOT / SOURCES[1]).exists():
        pytest.skip("no compiler, or no sources beside the tests")
    program = tmp_path / "barrier"
    options = [] if sanitizer == "none" else [f"-fsanitize={sanitizer}", "-g"]
    command = [compiler, "-std=c++17", "-O1", "-pthread", "-I", "csrc", *options, *SOURCES, "-o", str(program)]
    compiled = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if compiled.returncode and options:
        pytest.skip("this compiler has no ThreadSanitizer")
    assert compiled.returncode == 0, compiled.stderr
    ended = subprocess.run([program], capture_output=True, text=True, timeout=300)
    if "unexpected memory mapping" in ended.stderr:
        pytest.skip("ThreadSanitizer does not run on this kernel")
    assert ended.returncode == 0, ended.stderr


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Processes that take all the time they are given."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


@contextmanager
def wanted_threads(count: int, always: bool) -> Iterator[None]:
    """Teams of so many threads, always or as long as nobody keeps them waiting."""
    before = _core.num_threads()
    _core.set_num_threads(count, oversubscribe=True, always=always)
    try:
        yield
    finally:
        _core.set_num_threads(before, oversubscribe=True)


def everything(case: Case) -> Any:
    """Calls of every kind, again and again: the teams shrink and grow between them."""
    rng = np.random.default_rng(0)
    layer, inputs = make_layer(case), make_inputs(case, rng)
    results = [run_library(layer, inputs) for _ in range(10)]
    short = fr.LSTM(64, 256, seed=0)
    x = rng.standard_normal((14, 1, 64)).astype(np.float32)
    weight, targets = np.ones((2000, 256), np.float32), np.zeros((14, 1), int)
    for _ in range(30):
        y, state, tape = short.forward(x)
        loss, readout = fr.linear_cross_entropy_forward(y, weight, None, targets)
        grads = short.backward(tape, fr.linear_cross_entropy_backward(readout)[0])
        results.append((y, state, loss, grads.x, grads.parameters))
    stepper = fr.GRU(64, 300, seed=0).stream(1)
    results += [stepper.step(x[0]).copy() for _ in range(100)]
    return results


@pytest.mark.parametrize("busy", [0, 1, 2])
@pytest.mark.parametrize("case", small_cases(dtype="float32", num_layers=2, ragged=True)[:1])
def test_other_processes_change_no_bit(case: Case, busy: int) -> None:
    with threads(1):
        expected = everything(case)
    with busy_processes(busy):
        for count, always in ((2, False), (4, False), (2, True), (4, True)):
            with wanted_threads(count, always):
                assert_same(everything(case), expected, f"{count} threads, always {always}")

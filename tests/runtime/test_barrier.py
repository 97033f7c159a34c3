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

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ["tests/runtime/barrier_program.cpp", "csrc/cpu/runtime/barrier.cpp", "csrc/cpu/runtime/contention.cpp"]
SOURCES += [f"csrc/cpu/platform/{system}.cpp" for system in ("linux", "macos", "pages")]
TEAM_SOURCES = ["tests/runtime/team_program.cpp", *SOURCES[1:], "csrc/cpu/layers/step_team.cpp"]
TEAM_SOURCES += [f"csrc/cpu/runtime/{stem}.cpp" for stem in ("parallel", "pool", "split")]
CONTENTION_SOURCES = ["tests/runtime/contention_program.cpp", "csrc/cpu/runtime/contention.cpp"]


@pytest.mark.parametrize("sanitizer", ["none", "thread"])
def test_nobody_leaves_before_all_have_come(sanitizer: str, tmp_path: Path) -> None:
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if compiler is None or not (ROOT / SOURCES[1]).exists():
        pytest.skip("no compiler, or no sources beside the tests")
    options = [] if sanitizer == "none" else [f"-fsanitize={sanitizer}", "-g"]
    run_program([compiler, *options], SOURCES, tmp_path / "barrier")


def test_a_team_is_smaller_where_a_third_of_the_time_is_lost(tmp_path: Path) -> None:
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if compiler is None or not (ROOT / CONTENTION_SOURCES[1]).exists():
        pytest.skip("no compiler, or no sources beside the tests")
    run_program([compiler], CONTENTION_SOURCES, tmp_path / "contention")


@pytest.mark.parametrize("sanitizer", ["none", "thread"])
def test_threads_that_call_at_once(sanitizer: str, tmp_path: Path) -> None:
    """The team, the barrier, steps on a team and the pool of memory, without Python and the engine."""
    if not (ROOT / TEAM_SOURCES[1]).exists():
        pytest.skip("no sources beside the tests")
    if sanitizer == "none":
        compiler = shutil.which(os.environ.get("CXX", "g++"))
        if compiler is None:
            pytest.skip("no compiler")
        run_program([compiler, "-fopenmp"], TEAM_SOURCES, tmp_path / "team")
        return
    # GCC's OpenMP is not built for ThreadSanitizer, which would report races that are none. LLVM's tells it by Archer
    # what orders a team's threads; what it does inside itself is none of ours.
    found = clang_with_archer()
    if found is None:
        pytest.skip("no clang with LLVM's OpenMP and Archer")
    compiler, archer = found
    environment = {"OMP_TOOL_LIBRARIES": archer, "TSAN_OPTIONS": "ignore_noninstrumented_modules=1"}
    run_program([compiler, "-fopenmp", "-fsanitize=thread", "-g"], TEAM_SOURCES, tmp_path / "team", environment)


def run_program(
    command: list[str], sources: list[str], program: Path, environment: dict[str, str] | None = None
) -> None:
    """Compiles it and runs it; skips where this compiler has no ThreadSanitizer or it does not run here."""
    command = [*command, "-std=c++17", "-O1", "-pthread", "-I", "csrc", *sources, "-o", str(program)]
    compiled = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if compiled.returncode and "-fsanitize=thread" in command:
        pytest.skip("this compiler has no ThreadSanitizer")
    assert compiled.returncode == 0, compiled.stderr
    # The run time of another sanitizer, loaded into this interpreter, is not the program's.
    variables = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"} | (environment or {})
    ended = subprocess.run([program], env=variables, capture_output=True, text=True)
    if "unexpected memory mapping" in ended.stderr:
        pytest.skip("ThreadSanitizer does not run on this kernel")
    assert ended.returncode == 0, ended.stderr


def clang_with_archer() -> tuple[str, str] | None:
    """The newest clang here that has Archer beside it, and Archer."""
    for name in ["clang++", *(f"clang++-{version}" for version in range(30, 13, -1))]:
        if compiler := shutil.which(name):
            command = [compiler, "-print-file-name=libarcher.so"]
            archer = subprocess.run(command, capture_output=True, text=True).stdout.strip()
            if Path(archer).is_absolute() and Path(archer).exists():
                return compiler, archer
    return None


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

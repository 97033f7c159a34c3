"""Processes that fork: whoever had threads in the parent, a child computes, soon and to the same bits."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import fork_program
import numpy as np
import pytest
from bitwise import assert_same, threads
from cases import Case, make_inputs, make_layer, small_cases
from oracles import run_library

import fusedrnn as fr

BUSY = Case("lstm", 2, 2, "float32", 20, 16, 32, 64, True, True)


@pytest.mark.parametrize("child", fork_program.CHILDREN)
@pytest.mark.parametrize("parent", fork_program.PARENTS)
def test_a_child_does_not_wait_for_its_parents_threads(parent: str, child: str) -> None:
    if "torch" in parent or child == "data-loader":
        pytest.importorskip("torch")
    command = [sys.executable, "-W", "ignore::DeprecationWarning", fork_program.__file__, parent, child]
    variables = {**os.environ, "OPENBLAS_NUM_THREADS": "2" if parent == "blas" else "1", "OMP_NUM_THREADS": ""}
    ended = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("count", [1, 3])
def test_a_forked_child_computes(count: int, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(BUSY), make_inputs(BUSY, rng)
    with threads(count):
        expected = run_library(layer, inputs)

        def work() -> None:
            assert_same(run_library(layer, inputs), expected)
            # A grandchild too, and a child that asks for threads.
            fr.set_num_threads(2)
            fork_program.in_child(lambda: assert_same(run_library(layer, inputs), expected))

        fork_program.in_child(work)
        assert_same(run_library(layer, inputs), expected)


def run_in_process(arguments: tuple[Any, Any]) -> Any:
    return run_library(*arguments)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(method: str, rng: np.random.Generator) -> None:
    case = small_cases(dtype="float32", ragged=True)[2]
    layer, inputs = make_layer(case), make_inputs(case, rng)
    with threads(3):
        expected = run_library(layer, inputs)
        with multiprocessing.get_context(method).Pool(2) as pool:
            results = pool.map_async(run_in_process, [(layer, inputs)] * 4).get(timeout=120)
    for result in results:
        assert_same(result, expected)


def threads_in_worker(openmp: int, ours: int) -> tuple[int, int]:
    """The library's count where another library has set OpenMP's, and after a call of ours."""
    import torch

    torch.set_num_threads(openmp)
    found = fr.get_num_threads()
    fr.set_num_threads(ours)
    return found, fr.get_num_threads()


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_worker_process_obeys_openmps_count(method: str) -> None:
    pytest.importorskip("torch")
    available = fr.info()["available_threads"]
    for openmp in (1, 2):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
            found = pool.submit(threads_in_worker, openmp, 2).result(timeout=120)
        assert found == (min(openmp, available), min(2, available))


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_data_loader_starts_workers_of_one_thread(method: str) -> None:
    pytest.importorskip("torch")
    command = [sys.executable, fork_program.__file__, "nothing", f"data-loader-{method}"]
    ended = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": ""}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


FORKED_STEPPER = """
    import os, threading
    import numpy as np
    import fusedrnn as fr

    # Steps of this size release the GIL.
    stepper = fr.LSTM(64, 600, seed=0).stream(4)
    x, state = np.ones((4, 64), np.float32), stepper.state
    expected = stepper.step(x)
    stop = threading.Event()
    def work():
        while not stop.is_set():
            stepper.step(x)
    worker = threading.Thread(target=work)
    worker.start()
    refused = 0
    for _ in range(40):
        child = os.fork()
        if child == 0:
            status = 0
            try:
                stepper.step(x)
            except RuntimeError as error:
                status = 1 if "set its state" in str(error) else 3
                try:
                    stepper.reset([0])
                    status = 3
                except RuntimeError:
                    pass
            stepper.state = state
            same = np.array_equal(stepper.step(x), expected)
            stepper.reset()
            os._exit(status if same and np.array_equal(stepper.step(x), expected) else 3)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert ended in (0, 1), ended
        refused += ended
    stop.set()
    worker.join()
    print(refused)
"""


def test_a_fork_in_the_middle_of_a_step() -> None:
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(FORKED_STEPPER)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_a_path_does_not_make_a_worker(tmp_path: Path) -> None:
    program = tmp_path / "multiprocessing-demo.py"
    program.write_text(
        "import multiprocessing.process, sys\nfrom fusedrnn import machine\nsys.exit(machine._in_worker_process())\n"
    )
    subprocess.run([sys.executable, str(program)], check=True)

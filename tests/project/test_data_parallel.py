"""Several processes on this machine: gradients, and what happens when one of them ends."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("data_parallel_worker.py")
# More processes than cores must not crawl: where nothing spins in the way of another, a run takes a few seconds.
MOST_SECONDS = 250  # below pytest's limit, so that the workers are ended here


def start(processes: int, mode: str, threads: int = 2) -> list[Any]:
    """The processes of one run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(processes), str(port), mode],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]


def finish(workers: list[Any]) -> tuple[list[int], str]:
    """Exit codes and output; whatever still runs after a minute is ended, and fails the test."""
    deadline = time.monotonic() + MOST_SECONDS
    try:
        outputs = [worker.communicate(timeout=max(1, deadline - time.monotonic()))[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    return [worker.returncode for worker in workers], "\n".join(outputs)


@pytest.fixture
def gloo() -> None:
    torch = pytest.importorskip("torch")
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this build of torch has no gloo")


@pytest.mark.parametrize("processes", [2, 4])
def test_gradients_are_those_of_the_joint_batch(gloo: None, processes: int) -> None:
    codes, output = finish(start(processes, "check"))
    assert codes == [0] * processes, output


@pytest.mark.parametrize("mode", ["die", "raise"])
def test_a_process_that_ends_ends_the_run(gloo: None, mode: str) -> None:
    codes, output = finish(start(2, mode))
    assert all(code != 0 for code in codes), output


def mpirun() -> str:
    """mpirun, beside this Python or on the path; skips where there is none that works."""
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        pytest.skip("there is no mpirun: `pip install mpich` or the system's MPI brings one")
    try:
        import mpi4py.MPI  # noqa: F401
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"mpi4py finds no MPI library: {error}")
    return found


def run_mpi(processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [mpirun(), "-n", str(processes), sys.executable, "-m", "mpi4py", *arguments],
        capture_output=True,
        text=True,
        timeout=MOST_SECONDS,
        cwd=ROOT,
    )


@pytest.mark.parametrize("processes", [2, 4])
def test_mpi_gradients_are_those_of_the_joint_batch(processes: int) -> None:
    done = run_mpi(processes, "examples/mpi_data_parallel.py", "--updates", "3", "--check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{processes} processes" in done.stdout


def test_an_exception_in_one_mpi_process_ends_the_run(tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text(
        "from mpi4py import MPI\nif MPI.COMM_WORLD.rank == 1: raise ValueError('one fails')\nMPI.COMM_WORLD.Barrier()\n"
    )
    done = run_mpi(2, str(script))
    assert done.returncode != 0 and "one fails" in done.stdout + done.stderr

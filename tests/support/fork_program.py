"""A process that has used threads in one way or another forks a child, which computes.

``python fork_program.py PARENT CHILD`` ends with 0 where the child did, soon and with the bits of its parent.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import fusedrnn as fr
from fusedrnn import _core


def in_child(work: Callable[[], None], timeout: float = 60) -> None:
    """Fork, run `work` in the child, and assert that it ended well within the time."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    limit = time.monotonic() + timeout
    while time.monotonic() < limit:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the child hangs")


def inputs() -> np.ndarray:
    """Enough work that a team takes it on."""
    return np.random.default_rng(0).standard_normal((50, 8, 64)).astype(np.float32)


def run_native(seed: int = 0) -> Iterator[Any]:
    """What every kind of call gives."""
    layer, cell, x = fr.LSTM(64, 128, 2, seed=seed), fr.GRUCell(64, 300, seed=seed), inputs()
    y, state, tape = layer.forward(x)
    weight, targets = np.ones((2000, 128), np.float32), np.zeros((50, 8), int)
    loss, readout = fr.linear_cross_entropy_forward(y, weight, None, targets)
    grads = layer.backward(tape, fr.linear_cross_entropy_backward(readout)[0])
    yield from (y, *state, grads.x, *grads.parameters.values(), loss, cell(x[0]), layer(x)[0])
    yield layer.stream(8).step(x[0])


def run_modules() -> Iterator[Any]:
    """What torch's modules give, swapped for ours. No gradients: torch refuses those in a forked child."""
    import torch

    import fusedrnn.torch

    torch.manual_seed(0)
    for module in (torch.nn.LSTM(64, 128), torch.nn.Sequential(torch.nn.GRU(64, 128)), torch.nn.LSTMCell(64, 300)):
        swapped = fusedrnn.torch.accelerate(module)
        assert "fusedrnn" in str(swapped)
        x = torch.from_numpy(inputs())
        with torch.no_grad():
            yield module(x[0] if isinstance(module, torch.nn.LSTMCell) else x)[0].numpy()


def result() -> list[bytes]:
    """Every bit of it; of torch's only where the parent has imported it, as an application that forks late has."""
    arrays = [*run_native(), *(run_modules() if "torch" in sys.modules else ())]
    return [np.asarray(array).tobytes() for array in arrays]


expected: list[bytes] = []
lone: bool | None = None  # whether a child works on its own thread alone, None where that is open


def check() -> None:
    """Run in the child."""
    assert result() == expected
    if lone is not None:
        assert (fr.get_num_threads() == 1) is lone
        fr.set_num_threads(2)
        assert result() == expected


# What the parent does before it forks.


def use_torch() -> None:
    import torch

    torch.set_num_threads(2)
    torch.relu(torch.randn(2000, 2000))


def use_torch_in_a_thread() -> None:
    done = threading.Event()

    def work() -> None:
        use_torch()
        done.set()
        time.sleep(120)

    threading.Thread(target=work, daemon=True).start()
    assert done.wait(60)


def use_blas() -> None:
    large = np.ones((1500, 1500), np.float32)
    large @ large


PARENTS: dict[str, Callable[[], object]] = {
    "nothing": lambda: None,
    "our-team": lambda: list(run_native()),
    "torch": use_torch,
    "torch-in-a-thread": use_torch_in_a_thread,
    "python-thread": threading.Thread(target=time.sleep, args=(120,), daemon=True).start,
    "blas": use_blas,
}


# How it forks.


def fork_in_a_thread() -> None:
    failed: list[BaseException] = []

    def work() -> None:
        try:
            in_child(check)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed, failed


def start_process() -> None:
    process = multiprocessing.get_context("fork").Process(target=check)
    process.start()
    process.join(60)
    process.kill()
    assert process.exitcode == 0, process.exitcode


def start_pool() -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.starmap_async(check, [()] * 4).get(60)


class Checks:
    """A data set whose items are computed by the library."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        assert fr.get_num_threads() == 1
        result()
        return index


def load_data(method: str) -> None:
    """In the workers of a DataLoader, for which torch sets one thread."""
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(Checks(), num_workers=2, multiprocessing_context=method, timeout=60)  # type: ignore[arg-type]
    assert sorted(int(index) for batch in loader for index in batch) == [0, 1, 2, 3]


CHILDREN: dict[str, Callable[[], None]] = {
    "os.fork": lambda: in_child(check),
    "fork-of-a-fork": lambda: in_child(lambda: in_child(check)),
    "fork-in-a-thread": fork_in_a_thread,
    "process": start_process,
    "pool": start_pool,
    "data-loader": lambda: load_data("fork"),
}
# Workers that multiprocessing starts without forking this process.
STARTED: dict[str, Callable[[], None]] = {
    "data-loader-spawn": lambda: load_data("spawn"),
    "data-loader-forkserver": lambda: load_data("forkserver"),
}


def main(parent: str, child: str) -> None:
    """Compute on one thread, use others, fork."""
    global lone
    if "torch" in parent or "data-loader" in child:
        import torch

        torch.set_num_threads(1)
    _core.set_num_threads(1)
    expected.extend(result())
    _core.set_num_threads(2, oversubscribe=True)
    PARENTS[parent]()
    lone = parent not in ("nothing", "blas") or None
    (CHILDREN | STARTED)[child]()


if __name__ == "__main__":
    main(*sys.argv[1:])

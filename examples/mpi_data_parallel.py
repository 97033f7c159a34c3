"""Data-parallel training with the NumPy API and mpi4py: each process has a part of the batch, gradients are averaged.

    mpirun -n 2 python -m mpi4py examples/mpi_data_parallel.py

`-m mpi4py` makes an exception in one process end all of them; without it the others would wait for it forever.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from mpi4py import MPI

import fusedrnn as fr

STEPS, BATCH, INPUTS, HIDDEN = 20, 8, 16, 64


def average(communicator: MPI.Comm, arrays: list[np.ndarray]) -> None:
    """Replace the arrays by their means over all processes: one message for all of them."""
    flat = np.concatenate([array.ravel() for array in arrays])
    communicator.Allreduce(MPI.IN_PLACE, flat)
    flat /= communicator.size
    first = 0
    for array in arrays:
        array[...] = flat[first : first + array.size].reshape(array.shape)
        first += array.size


def gradients_of(layer: fr.LSTM, x: np.ndarray, targets: np.ndarray) -> tuple[float, fr.Gradients]:
    """Mean squared distance of the outputs from the targets, and its gradients."""
    y, _, tape = layer.forward(x)
    difference = y - targets
    return float(np.mean(difference**2)), layer.backward(tape, 2 / difference.size * difference)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=50, help="training steps (default: 50)")
    parser.add_argument("--check", action="store_true", help="compare with one process that has the whole batch")
    options = parser.parse_args()

    world = MPI.COMM_WORLD
    # Processes on one machine share its processors.
    local = world.Split_type(MPI.COMM_TYPE_SHARED)
    fr.set_num_threads(max(1, fr.get_num_threads() // local.size))
    rng = np.random.default_rng(0)  # all draw the same numbers, and take their own part
    layer = fr.LSTM(INPUTS, HIDDEN, seed=0)
    whole = fr.LSTM(INPUTS, HIDDEN, seed=0)
    own = slice(world.rank * BATCH, (world.rank + 1) * BATCH)
    waited = 0.0
    started = time.perf_counter()
    for _ in range(options.updates):
        x = rng.standard_normal((STEPS, BATCH * world.size, INPUTS), dtype=np.float32)
        targets = np.tanh(np.cumsum(x[..., :1], axis=0)) * np.ones(HIDDEN, np.float32)
        loss, grads = gradients_of(layer, np.ascontiguousarray(x[:, own]), targets[:, own])
        before = time.perf_counter()
        average(world, list(grads.parameters.values()))
        waited += time.perf_counter() - before
        if options.check:
            _, joint = gradients_of(whole, x, targets)
            for name, gradient in joint.parameters.items():
                # Sums over T * B rows in another order, of terms of about the gradient's size.
                allowed = np.finfo(np.float32).eps * np.sqrt(STEPS * BATCH * world.size) * 8
                worst = np.abs(grads.parameters[name] - gradient).max()
                if not worst <= allowed * max(np.abs(gradient).max(), 1e-3):
                    raise AssertionError(f"{name} is off by {worst:.2g}")
                whole.parameters[name] -= grads.parameters[name]
        for name, parameter in layer.parameters.items():
            parameter -= grads.parameters[name]
    elapsed = time.perf_counter() - started
    losses = world.gather(loss)
    if world.rank == 0:
        print(f"{world.size} processes of {fr.get_num_threads()} threads: loss {np.mean(losses):.4f}")
        print(
            f"{elapsed / options.updates * 1e3:.2f} ms a step, of it {waited / options.updates * 1e3:.2f} ms averaging"
        )


if __name__ == "__main__":
    main()

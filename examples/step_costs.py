"""What a training step of a model costs: its processor time, and the memory that it adds to the process at most."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path

import torch

import fusedrnn as fr

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
REPEATS = 5


def step_of(model: torch.nn.Module, steps: int, vocabulary: int) -> Callable[[], None]:
    """Forward and backward of one sequence, in which every step is a question."""
    symbols = torch.randint(vocabulary, (steps, 1))

    def step() -> None:
        model.zero_grad()
        model(symbols, steps).sum().backward()

    return step


def seconds(step: Callable[[], None]) -> float:
    """Processor time: the least of a few steps, as other programs only add to it, after two to warm up.

    On one thread that is the time that the step takes where nothing else runs.
    """
    step()
    step()
    taken = []
    for _ in range(REPEATS):
        begun = time.process_time()
        step()
        taken.append(time.process_time() - begun)
    return min(taken)


def _kilobytes(name: str) -> int:
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(name))


def most_bytes(step: Callable[[], None]) -> float:
    """Resident memory at its highest, less what was there before; nan where the system does not tell (Linux does)."""
    gc.collect()
    fr.release_memory()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        CLEAR.write_text("5")  # the highest is from now on
    except (OSError, AttributeError):
        return float("nan")
    before = _kilobytes("VmRSS")
    step()
    return 1024 * (_kilobytes("VmHWM") - before)

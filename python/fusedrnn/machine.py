"""The machine the library runs on: threads, instruction set, devices."""

from __future__ import annotations

import sys
from typing import Any

from fusedrnn import _core
from fusedrnn.arguments import require_integer
from fusedrnn.arrays.device import describe


def _in_worker_process() -> bool:
    """Whether `multiprocessing` started this process, with a fork or without.

    A process that imports this module while it still unpickles its target can be told by its command line only.
    """
    processes = sys.modules.get("multiprocessing.process")
    if processes is None:
        return False
    started_by = ("--multiprocessing-fork", "from multiprocessing.")  # `spawn`, and its helper processes
    return processes.parent_process() is not None or any(text.startswith(started_by) for text in sys.orig_argv)


if _in_worker_process():
    _core.set_worker_process()


def set_num_threads(n: int) -> None:
    """Set the most threads that a call may use.

    Parameters
    ----------
    n : int
        At least 1. More than the process's CPU affinity and control group allow is taken as that many. Results do not
        depend on it. In a process forked from one that had other threads a call uses one thread whatever is set.

    Raises
    ------
    TypeError, ValueError
        Where `n` is no integer, or less than 1.
    """
    n = require_integer(n, "n", least=1)
    _core.set_num_threads(min(n, _core.available_threads()))


def get_num_threads() -> int:
    """Return the most threads that a call may use.

    At first as many as the CPU affinity, the control group and ``OMP_NUM_THREADS`` allow. In a process forked from one
    that had other threads, whoever made them, it is always 1: OpenMP's threads do not survive a fork. In any other
    process of `multiprocessing` it is at first no more than OpenMP's own count, which torch sets to 1 in the workers of
    a ``DataLoader``.
    """
    return _core.num_threads()


def release_memory() -> int:
    """Give the memory that the CPU engine keeps for the next calls back to the system.

    By itself the engine keeps at most twice what recent calls used at once. What a larger call needed goes back
    after at least 512 further buffers, which are tens of training steps, or after a minute in which calls or a
    stepper's steps run. This function gives it back at once, even if nothing runs any more. Arrays, tapes and steppers
    that are in use stay as they are, and the next call asks the system again. Memory of a CUDA device is CuPy's or
    torch's, and released there.

    Returns
    -------
    int
        Bytes given back.
    """
    return _core.release_memory()


def info() -> dict[str, Any]:
    """Return version, instruction sets, threads, and whether there is a CUDA engine or why there is none.

    ``isa`` is the instruction set in use, ``isas`` those that this build and processor offer, best first;
    ``bfloat16_isa`` and ``bfloat16_isas`` are those of products of bfloat16. ``FUSEDRNN_ISA`` forces one of the latter.
    ``int8`` is the instruction set of layers with weights of 8 bits and, after a colon, the instruction that multiplies
    them.
    """
    return {
        "version": _core.version,
        "isa": _core.isa(),
        "isas": _core.isas(),
        "bfloat16_isa": _core.pair_isa(),
        "bfloat16_isas": _core.pair_isas(),
        "int8": f"{_core.int8_isa()}: {_core.int8_instruction()}",
        "threads": _core.num_threads(),
        "available_threads": _core.available_threads(),
        "cells": list(_core.cells),
        "cuda": describe(),
    }

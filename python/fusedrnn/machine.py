"""The machine the library runs on: threads, instruction set, devices."""

from __future__ import annotations

from typing import Any

from fusedrnn import _core
from fusedrnn.arguments import require_integer
from fusedrnn.cuda.device import describe


def set_num_threads(n: int) -> None:
    """Set the most threads that a call may use.

    Parameters
    ----------
    n : int
        At least 1. More than the process's CPU affinity and control group allow is taken as that many. Results do not
        depend on it.

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
    that had already used several threads it is 1: OpenMP's threads do not survive a fork.
    """
    return _core.num_threads()


def info() -> dict[str, Any]:
    """Return version, instruction sets, threads, and whether there is a CUDA engine or why there is none."""
    return {
        "version": _core.version,
        "isa": _core.isa(),
        "isas": _core.isas(),
        "threads": _core.num_threads(),
        "available_threads": _core.available_threads(),
        "cells": list(_core.cells),
        "cuda": describe(),
    }

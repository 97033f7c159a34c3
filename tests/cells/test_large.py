"""Sizes beyond 32-bit counts, and beyond the memory there is."""

from __future__ import annotations

import os

import numpy as np
import pytest
from bitwise import assert_same

import fusedrnn as fr
from fusedrnn import _core


@pytest.mark.skipif("FUSEDRNN_LARGE_TESTS" not in os.environ, reason="takes 14 GB: set FUSEDRNN_LARGE_TESTS to run it")
@pytest.mark.slow
def test_more_than_two_to_the_31_gates(rng: np.random.Generator) -> None:
    steps, rows, hidden = 2**17 + 1, 64, 64
    assert steps * rows * 4 * hidden > 2**31
    lstm = fr.LSTM(1, hidden, seed=0)
    x = rng.standard_normal((steps, rows, 1), dtype=np.float32)
    dy = np.broadcast_to(rng.standard_normal((1, rows, hidden), dtype=np.float32), (steps, rows, hidden))
    results = []
    for recompute in (None, 1000):  # the second one never has more than 1000 steps of gates
        y, state, tape = lstm.forward(x, recompute=recompute)
        results.append((y[-3:].copy(), state, lstm.backward(tape, dy)))
        del y, tape
    assert_same(results[0], results[1])


@pytest.mark.parametrize("steps", [2**40, 2**55])
def test_out_of_memory_is_a_memory_error_and_loses_nothing(steps: int, rng: np.random.Generator) -> None:
    lstm = fr.LSTM(4, 8, seed=0)
    x = rng.standard_normal((5, 3, 4), dtype=np.float32)
    before, live = lstm(x), _core.pool_use()["live"]
    endless = np.broadcast_to(x[:1, :1], (steps, 1, 4))
    for call in (lstm, lstm.forward):
        with pytest.raises((MemoryError, ValueError)):  # NumPy's own ValueError where no array can have that size
            call(endless)
    assert _core.pool_use()["live"] == live
    assert_same(lstm(x), before)

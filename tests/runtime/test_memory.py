"""The pool of buffers: loops settle to no fresh memory, and what is used no more goes back to the system."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitwise import assert_same
from cases import Case, make_layer, small_cases

import fusedrnn as fr
from fusedrnn import _core

MIB = 1 << 20
SPAN = 30
"""Seconds, the engine's own."""
SMALL = fr.LSTM(16, 16, seed=0)


@pytest.fixture(autouse=True)
def nothing_before() -> Iterator[None]:
    """What other tests used is forgotten, and no time passes, as far as the pool is concerned.

    Teams are whole, whatever else runs: a smaller one takes buffers of other sizes.
    """
    threads = _core.num_threads()
    _core.set_num_threads(threads, oversubscribe=True, always=True)
    fr.release_memory()
    _core.set_pool_span(math.inf)
    yield
    _core.set_pool_span(SPAN)
    _core.set_num_threads(threads)


def idle() -> int:
    return _core.pool_use()["idle"]


def resident() -> int:
    """Bytes of this process that lie in memory."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("this system does not tell how much memory a process holds")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def call_small(count: int) -> None:
    """Calls that need next to nothing."""
    x = np.zeros((5, 2, 16), np.float32)
    for _ in range(count):
        SMALL(x)


def fresh_by_round(work: Callable[[], object], rounds: int) -> list[int]:
    """How many buffers each round asked the system for."""
    fresh = [_core.pool_use()["fresh"]]
    for _ in range(rounds):
        work()
        fresh.append(_core.pool_use()["fresh"])
    return [int(count) for count in np.diff(fresh)]


def train(layer: Any, x: np.ndarray) -> None:
    y, _, tape = layer.forward(x)
    weight, targets = np.zeros((300, y.shape[-1]), x.dtype), np.zeros(x.shape[:2], int)
    readout = fr.linear_cross_entropy_forward(y, weight, None, targets)[1]
    layer.backward(tape, fr.linear_cross_entropy_backward(readout)[0])


# Loops


@pytest.mark.parametrize("case", small_cases(dtype="float32", num_layers=2))
def test_training_and_inference_in_turn_settle(case: Case) -> None:
    layer, x = make_layer(case), np.zeros((200, 64, case.input_size), case.dtype)

    def work() -> None:
        train(layer, x)
        for _ in range(3):
            layer(x[:50])

    assert fresh_by_round(work, 12)[3:] == [0] * 9


@pytest.mark.parametrize("layers", [1, 30])
def test_deep_networks_settle(layers: int) -> None:
    layer, x = fr.LSTM(64, 64, layers, bidirectional=True, seed=0), np.zeros((20, 32, 64), np.float32)
    assert fresh_by_round(lambda: train(layer, x), 10)[4:] == [0] * 6


@pytest.mark.parametrize("steps", [10, 3000])
def test_loops_over_cells_settle(steps: int) -> None:
    cell, x = fr.LSTMCell(32, 64, seed=0), np.zeros((256, 32), np.float32)

    def work() -> None:
        state, tapes = None, []
        for _ in range(steps):
            state, tape = cell.forward(x, state)
            tapes.append(tape)
        dstate: Any = state
        while tapes:
            dstate = cell.backward(tapes.pop(), dstate).state

    assert fresh_by_round(work, 6)[3:] == [0] * 3


def test_a_loop_settles_among_what_another_left() -> None:
    """Many idle buffers of other sizes must not take the place of the few in use."""
    cell, x = fr.LSTMCell(32, 64, seed=0), np.zeros((256, 32), np.float32)
    tapes = [cell.forward(x)[1] for _ in range(500)]
    del tapes
    layer, x = fr.LSTM(64, 128, seed=0), np.zeros((100, 64, 64), np.float32)
    assert fresh_by_round(lambda: train(layer, x), 10)[3:] == [0] * 7


# What is kept


@pytest.mark.parametrize("options", [set(), {"lengths"}, {"reset"}, {"mask"}, {"lengths", "reset", "mask"}])
def test_a_batch_without_rows_takes_none(options: set[str]) -> None:
    """However many its steps: a number for each would be 32 GiB."""
    steps = 1 << 32
    flags = np.zeros((steps, 0), bool)
    given = {"lengths": np.zeros(0, np.int64), "reset": flags, "mask": flags}
    chosen = {name: given[name] for name in options}
    layer, x = fr.LSTM(3, 5, 2, bidirectional=True, dropout=0.5, seed=0), np.zeros((steps, 0, 3), np.float32)
    assert layer(x, **chosen)[0].shape == (steps, 0, 10)
    y, _, tape = layer.forward(x, **chosen)
    assert y.shape == (steps, 0, 10)
    assert tape.nbytes < 4096
    grads = layer.backward(tape, y)
    assert grads.x.shape == x.shape
    assert not any(gradient.any() for gradient in grads.parameters.values())


def test_idle_memory_follows_what_was_used_of_late() -> None:
    layer, x = fr.LSTM(256, 256, seed=0), np.zeros((200, 32, 256), np.float32)
    tape = layer.forward(x)[2]
    held = tape.nbytes
    assert held > 30 * MIB
    del tape
    assert idle() > held
    call_small(100)
    assert idle() < MIB


def a_layer_call() -> None:
    SMALL(np.zeros((1, 1, 16), np.float32))


CELL, STEPPER = fr.GRUCell(16, 16, seed=0), SMALL.stream()


@pytest.mark.parametrize(
    ("call", "calls"),
    [
        (a_layer_call, 2),
        (lambda: CELL(np.zeros((1, 16), np.float32)), 2),
        (lambda: STEPPER.step(np.zeros((1, 16), np.float32)), 128),  # it looks at every 64th step
    ],
    ids=["layer", "cell", "stepper"],
)
def test_single_steps_let_memory_go_as_time_passes(call: Callable[[], object], calls: int) -> None:
    fr.LSTM(256, 256, seed=0).forward(np.zeros((200, 32, 256), np.float32))
    held = idle()
    assert held > 30 * MIB
    for _ in range(calls):
        call()
    assert idle() > held - MIB
    _core.set_pool_span(0)  # a span is over whenever somebody looks
    for _ in range(calls):
        call()
    assert idle() < MIB


def test_a_span_is_no_negative_time() -> None:
    for seconds in (-1, math.nan):
        with pytest.raises(ValueError, match="seconds must be at least 0"):
            _core.set_pool_span(seconds)


def test_memory_of_many_tapes_is_forgotten() -> None:
    cell, x = fr.LSTMCell(32, 64, seed=0), np.zeros((256, 32), np.float32)
    tapes = [cell.forward(x)[1] for _ in range(200)]
    del tapes
    assert idle() > 50 * MIB
    call_small(1500)
    assert idle() < MIB


def test_resident_memory_falls() -> None:
    """Buffers of every size: mappings of their own, and memory of the C library."""
    before = resident()
    layer, cell = fr.LSTM(256, 256, seed=0), fr.LSTMCell(32, 64, seed=0)
    x, small = np.zeros((400, 32, 256), np.float32), np.zeros((200, 32), np.float32)
    tapes = [layer.forward(x)[2], *(cell.forward(small)[1] for _ in range(500))]
    held = sum(tape.nbytes for tape in tapes)
    assert held > 150 * MIB
    assert resident() - before > held * 0.9
    del tapes
    assert resident() - before > held * 0.9
    assert fr.release_memory() >= held
    assert resident() - before < held * 0.2


def test_resident_memory_falls_by_itself() -> None:
    before = resident()
    x = np.zeros((400, 32, 256), np.float32)
    held = fr.LSTM(256, 256, seed=0).forward(x)[2].nbytes
    assert resident() - before > held * 0.9
    call_small(200)
    assert resident() - before < held * 0.3


def test_release_memory_tells_what_it_gave_back() -> None:
    layer, x = fr.LSTM(64, 64, seed=0), np.ones((100, 8, 64), np.float32)
    y, state, tape = layer.forward(x)
    expected = layer.backward(tape, y)
    kept = y.copy(), state[0].copy()
    used = _core.pool_use()
    assert used["idle"] > 0
    assert fr.release_memory() == used["idle"]
    assert _core.pool_use() == {**used, "idle": 0}
    assert fr.release_memory() == 0
    # What is in use stays.
    assert_same((y, state[0]), kept)
    assert_same(layer.backward(tape, y), expected)


def test_release_memory_in_several_threads() -> None:
    from concurrent.futures import ThreadPoolExecutor

    layer, x = fr.LSTM(64, 64, seed=0), np.ones((100, 8, 64), np.float32)
    expected = layer(x)[0]

    def work(number: int) -> None:
        for _ in range(20):
            assert_same(layer(x)[0], expected)
            fr.release_memory()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))

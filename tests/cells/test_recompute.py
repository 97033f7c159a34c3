"""recompute=k: the same gradients to the last bit, from a tape of about 1/k of the size."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from bitwise import assert_same, threads
from cases import BFLOAT16_CASES, CASES, EMPTY_CASES, Case, Inputs, make_inputs, make_layer, small_cases

import fusedrnn as fr


def step(layer: Any, inputs: Inputs, recompute: int | None) -> tuple[Any, Any, Any]:
    """Outputs, gradients and bytes of the tape of one training step."""
    y, state, tape = layer.forward(inputs.x, inputs.state, **inputs.sequence_options(), recompute=recompute)
    grads = layer.backward(tape, inputs.dy, inputs.dstate)
    return (y, state), grads, tape


@pytest.mark.parametrize("case", [*CASES[::5], *EMPTY_CASES, *BFLOAT16_CASES])
def test_gradients_are_the_same_to_the_last_bit(case: Case, rng: np.random.Generator) -> None:
    layer = make_layer(case)
    inputs = make_inputs(case, rng)
    expected = step(layer, inputs, None)[:2]
    for recompute in {1, 3, max(case.time - 1, 1), case.time + 1, 2**40}:
        for count in (1, 3):
            with threads(count):
                assert_same(step(layer, inputs, recompute)[:2], expected, f"recompute={recompute}, {count} threads")


@pytest.mark.parametrize("case", small_cases(time=40, num_layers=2, directions=2, ragged=True, reset=True))
def test_the_backward_pass_may_run_twice(case: Case, rng: np.random.Generator) -> None:
    layer = make_layer(case)
    inputs = make_inputs(case, rng)
    _, once, tape = step(layer, inputs, 7)
    assert_same(layer.backward(tape, inputs.dy, inputs.dstate), once)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("case", small_cases(time=30, num_layers=3))
def test_masks_of_dropout_are_drawn_again(case: Case, dtype: str, rng: np.random.Generator) -> None:
    case = dataclasses.replace(case, dtype=dtype)
    inputs = make_inputs(case, rng)
    ours, theirs = (step(make_layer(case, dropout=0.5), inputs, k)[:2] for k in (4, None))
    assert_same(ours, theirs)


@pytest.mark.parametrize("case", small_cases(time=400, batch=3, hidden_size=16))
def test_the_tape_keeps_one_state_a_segment(case: Case, rng: np.random.Generator) -> None:
    layer = make_layer(case)
    inputs = make_inputs(case, rng)
    whole, parts = (step(layer, inputs, k)[2].nbytes for k in (None, 20))
    lists = step(make_layer(dataclasses.replace(case, cell="rnn_tanh")), inputs_of_h(inputs), 20)[2].nbytes
    # An Elman network's states are in y: it keeps the row lists alone, and the initial state.
    states = case.time // 20 * case.batch * case.hidden_size * 8 if case.two_states else 0
    assert parts - lists <= states * 1.3 + 1024  # buffers come in steps of up to an eighth
    assert parts - lists < (whole - lists) / 15


def inputs_of_h(inputs: Inputs) -> Inputs:
    """The same inputs for a cell with one state."""
    first = {name: half[0] for name in ("state", "dstate") if isinstance(half := getattr(inputs, name), tuple)}
    return dataclasses.replace(inputs, **first)


@pytest.mark.parametrize("value, error", [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)])
def test_bad_values_are_named(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="recompute"):
        fr.RNN(3, 4).forward(np.zeros((2, 1, 3), np.float32), recompute=value)


LONG = """
import resource
import numpy as np
import fusedrnn as fr

steps, size = 200_000, 256
lstm = fr.LSTM(size, size, seed=0)
x, dy = np.full((2, steps, 1, size), 0.1, np.float32)
y = np.full_like(x, 0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
_, _, tape = lstm.forward(x, recompute=450, out=y)
grads = lstm.backward(tape, dy)
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
print(grown - grads.x.nbytes)
"""


@pytest.mark.slow
def test_a_long_sequence_trains_in_little_memory() -> None:
    run = subprocess.run([sys.executable, "-c", LONG], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 64 * 2**20

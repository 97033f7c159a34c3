"""The cells as a user writes them by hand, over NumPy or jax.numpy: what the `numpy` and `jax` peers run.

The input product of a whole layer is taken in one go, as both kinds of user do; the loop over time belongs to the peer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bench.cases import GATES, PEEPHOLES, STATES, Case
from bench.problem import suffixes

State = tuple[Any, ...]
Step = Callable[[State, Any], State]
Scan = Callable[[Step, State, Any, bool], Any]
"""scan(step, state, projected, reverse) -> the first state of every step, stacked along time."""


class Operations(NamedTuple):
    """What an array library offers the cells."""

    tanh: Callable[[Any], Any]
    sigmoid: Callable[[Any], Any]
    relu: Callable[[Any], Any]
    zeros: Callable[[tuple[int, ...], Any], Any]
    concatenate: Callable[..., Any]


class Recurrent(NamedTuple):
    """The parameters a step needs: weights as (H, G*H)."""

    weight: Any
    bias: Any
    peephole: Any


def blocks(array: Any, count: int) -> list[Any]:
    """The gate blocks of the last axis, as views."""
    width = array.shape[-1] // count
    return [array[:, k * width : (k + 1) * width] for k in range(count)]


def rnn_step(cell: str, ops: Operations, recurrent: Recurrent) -> Step:
    activation = ops.tanh if cell == "rnn_tanh" else ops.relu

    def step(state: State, projected: Any) -> State:
        return (activation(projected + state[0] @ recurrent.weight + recurrent.bias),)

    return step


def lstm_step(cell: str, ops: Operations, recurrent: Recurrent) -> Step:
    coupled = "coupled" in cell
    gates = GATES[cell]
    peephole = recurrent.peephole if cell in PEEPHOLES else None

    def step(state: State, projected: Any) -> State:
        h, c = state
        *entry, candidate, output = blocks(projected + h @ recurrent.weight + recurrent.bias, gates)
        if peephole is not None:
            entry = [gate + c * weight for gate, weight in zip(entry, peephole[:-1], strict=True)]
        forget = ops.sigmoid(entry[-1])
        enter = 1 - forget if coupled else ops.sigmoid(entry[0])
        c = forget * c + enter * ops.tanh(candidate)
        if peephole is not None:
            output = output + c * peephole[-1]
        return ops.sigmoid(output) * ops.tanh(c), c

    return step


def gru_step(cell: str, ops: Operations, recurrent: Recurrent) -> Step:
    def reset_after(state: State, projected: Any) -> State:
        (h,) = state
        reset_x, update_x, candidate_x = blocks(projected, 3)
        reset_h, update_h, candidate_h = blocks(h @ recurrent.weight + recurrent.bias, 3)
        update = ops.sigmoid(update_x + update_h)
        candidate = ops.tanh(candidate_x + ops.sigmoid(reset_x + reset_h) * candidate_h)
        return (candidate + update * (h - candidate),)

    hidden = recurrent.weight.shape[0]
    gate_weight, candidate_weight = recurrent.weight[:, : 2 * hidden], recurrent.weight[:, 2 * hidden :]

    def reset_before(state: State, projected: Any) -> State:
        (h,) = state
        entry = projected + recurrent.bias
        reset, update = blocks(ops.sigmoid(entry[:, : 2 * hidden] + h @ gate_weight), 2)
        candidate = ops.tanh(entry[:, 2 * hidden :] + (reset * h) @ candidate_weight)
        return (candidate + update * (h - candidate),)

    return reset_after if cell == "gru" else reset_before


def make_step(cell: str, ops: Operations, recurrent: Recurrent) -> Step:
    """One step of `cell`: (state, projected input) -> state."""
    family = {"rnn": rnn_step, "lstm": lstm_step, "gru": gru_step}[cell.split("_")[0]]
    return family(cell, ops, recurrent)


def run_layers(case: Case, ops: Operations, scan: Scan, parameters: Mapping[str, Any], x: Any) -> Any:
    """y (T, B, D*H) of the whole stack from a zero state."""
    outputs: list[Any] = []
    for _, direction, suffix in suffixes(case):
        if direction == 0 and outputs:
            x, outputs = join(ops, outputs), []
        projected = x @ parameters["weight_ih" + suffix].T + parameters["bias_ih" + suffix]
        recurrent = Recurrent(
            parameters["weight_hh" + suffix].T,
            parameters["bias_hh" + suffix],
            parameters.get("peephole" + suffix),
        )
        states = len(STATES[case.cell])
        state = tuple(ops.zeros((case.batch, case.hidden), case.dtype) for _ in range(states))
        outputs.append(scan(make_step(case.cell, ops, recurrent), state, projected, direction == 1))
    return join(ops, outputs)


def join(ops: Operations, outputs: list[Any]) -> Any:
    """The outputs of the directions side by side."""
    return outputs[0] if len(outputs) == 1 else ops.concatenate(outputs, axis=-1)

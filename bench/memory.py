"""What training keeps: the tape, with and without recompute, and the growth of a process over a long sequence."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np

from bench import environment, fresh
from bench.cases import LONG_STEPS, Case
from bench.limits import Limits
from bench.peers import FUSEDRNN
from bench.problem import Problem, make_problem
from bench.runner import Figure, Figures, Row, Run, interleave, prepare_agreeing

MIB = 2**20


def interval(case: Case) -> int:
    """Steps between two kept states: the root of T, where states and one window's gates take about as much."""
    return round(math.sqrt(case.steps))


def tape_bytes(problem: Problem, recompute: int | None) -> int:
    """Bytes that the forward pass keeps for the backward pass."""
    return int(FUSEDRNN.layer(problem).forward(problem.x, recompute=recompute)[2].nbytes)


def growth(case: Case, threads: int, recompute: int) -> int:
    """Bytes by which a training step's peak exceeds what the process held before it, dx apart.

    x, y and dy are the caller's and touched before; dx is the caller's too, but made by the backward pass.
    """
    FUSEDRNN.set_threads(threads)
    generator = np.random.default_rng(0)
    x = generator.standard_normal((case.steps, case.batch, case.inputs), dtype=np.float32)
    y, dy = np.ones_like(x), np.ones_like(x)
    layer = FUSEDRNN.layer(make_problem(replace(case, steps=1)))
    before = environment.resident_bytes("VmRSS")
    _, _, tape = layer.forward(x, out=y, recompute=recompute)
    grads = layer.backward(tape, dy)
    return environment.resident_bytes("VmHWM") - before - int(grads.x.nbytes)


def measure(case: Case, run: Run) -> Row:
    """A long sequence by the growth of a fresh process, any other by its tapes and the times of both ways."""
    row, every = Row(case), interval(case)
    if case.steps == LONG_STEPS:
        row.numbers["growth"] = fresh.call(growth, case, run.threads, every)
        return row
    problem = make_problem(case)
    row.numbers["tape"] = tape_bytes(problem, None)
    row.numbers["tape, recompute"] = tape_bytes(problem, every)
    works = {
        "kept": partial(FUSEDRNN.work, problem),
        "recompute": partial(FUSEDRNN.work, problem, recompute=every),
    }
    interleave(row, prepare_agreeing(row, works), run.settings)
    return row


def figures(row: Row, limits: Limits, threads: int) -> Figures:
    """Bytes of the tape by step and row, recompute's part of them and its cost in time; growth in MiB."""
    tape, less, grown = (row.numbers.get(name) for name in ("tape", "tape, recompute", "growth"))
    rows = row.case.steps * row.case.batch
    return {
        "k": Figure(interval(row.case), ".0f"),
        "tape bytes a step and row": Figure(None if tape is None else tape / rows, ".0f"),
        "the same, recompute": Figure(None if less is None else less / rows, ".0f"),
        "recompute / kept tape": Figure(None if tape is None or less is None else less / tape, ".1%"),
        "recompute / kept time": Figure(row.ratio("recompute", "kept")),
        "growth MiB": Figure(None if grown is None else grown / MIB, ".1f"),
    }

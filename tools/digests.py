"""Print a digest of what this build computes in every case of the tests, one a line.

Two builds agree bit for bit where they print the same, which holds for builds by different compilers on the same
instruction set (FUSEDRNN_ISA):

    python tools/digests.py >a.txt    # in an environment of one build, then of the other
    diff a.txt b.txt
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

import fusedrnn as fr
from fusedrnn import _core

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from cases import CASES, Case, make_inputs, make_layer, small_cases
from oracles import run_library


def digest(*values: Any) -> str:
    """Of all arrays in a nest of tuples and dicts, bit by bit."""
    state = hashlib.sha256()
    todo = list(values)
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            todo += [value[name] for name in sorted(value)]
        elif isinstance(value, (tuple, list)):
            todo += value
        else:
            state.update(np.ascontiguousarray(value).tobytes())
    return state.hexdigest()[:16]


def cases() -> list[Case]:
    """Those of the tests, and each cell at sizes that fill vectors, tiles, chunks and both threads."""
    large = [
        dataclasses.replace(case, dtype=dtype, time=30, batch=40, input_size=130, hidden_size=300)
        for case in small_cases()
        for dtype in ("float32", "float64")
    ]
    return CASES + large


def steps_of(case: Case) -> list[np.ndarray]:
    """What a stepper gives, step by step."""
    x = make_inputs(case, np.random.default_rng(case.seed)).x
    stepper = make_layer(case).stream(case.batch)
    return [stepper.step(x_t).copy() for x_t in x]


def main() -> None:
    for case in cases():
        result = run_library(make_layer(case), make_inputs(case, np.random.default_rng(case.seed)))
        print(case.id, digest(*result))
    for dtype in ("float32", "float64"):
        for case in small_cases(dtype=dtype, hidden_size=48):
            print("step", case.id, digest(steps_of(case)))
        rng = np.random.default_rng(0)
        x = np.concatenate([rng.standard_normal(10**5) * scale for scale in (0.01, 1, 10, 100)]).astype(dtype)
        for name in ("exp", "sigmoid", "tanh"):
            print(name, dtype, digest(_core.activate(name, x)))
        features, weight = (rng.standard_normal(shape).astype(dtype) for shape in ((50, 64), (700, 64)))
        targets = rng.integers(0, len(weight), len(features))
        loss, tape = fr.linear_cross_entropy_forward(features, weight, None, targets)
        gradients = [array for array in fr.linear_cross_entropy_backward(tape) if array is not None]
        print("linear_cross_entropy", dtype, digest(np.float64(loss), *gradients))


if __name__ == "__main__":
    main()

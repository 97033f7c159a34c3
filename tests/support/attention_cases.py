"""Calls of attention: sizes, decoders, inputs and tolerances, for the CPU and for a device."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import fusedrnn as fr
from fusedrnn import reference

# T, B, S, I, H, M, A: sizes that fill no, one and many vectors and tiles.
SHAPES = (
    (1, 1, 1, 1, 1, 1, 1),
    (7, 3, 5, 4, 7, 5, 9),
    (4, 7, 17, 17, 17, 3, 33),
    (3, 17, 7, 1, 16, 129, 17),
    (5, 2, 129, 3, 129, 17, 7),
    (9, 1, 33, 7, 48, 32, 129),
)
EMPTY = ((0, 2, 3, 1, 4, 5, 6), (2, 0, 3, 1, 4, 5, 6), (2, 3, 0, 1, 4, 5, 6))
CELLS: dict[str, dict[str, Any]] = {
    "lstm": {"cell": "lstm"},
    "lstm_peephole": {"cell": "lstm", "peephole": True},
    "lstm_coupled": {"cell": "lstm", "coupled": True, "clip": 0.3},
    "lstm_peephole_coupled": {"cell": "lstm", "peephole": True, "coupled": True},
    "gru": {"cell": "gru"},
    "gru_reset_before": {"cell": "gru", "reset_after": False},
    "rnn_tanh": {"cell": "rnn", "bias": False},
    "rnn_relu": {"cell": "rnn", "nonlinearity": "relu"},
}
Shape = tuple[int, int, int, int, int, int, int]


def as_tuple(state: Any) -> tuple[np.ndarray, ...]:
    return state if isinstance(state, tuple) else (state,)


def decoder_of(name: str, shape: Shape, dtype: str = "float64", **options: Any) -> fr.AttentionDecoder:
    _, _, _, inputs, hidden, features, size = shape
    decoder = fr.AttentionDecoder(inputs, hidden, features, size, dtype=dtype, seed=5, **{**CELLS[name], **options})
    for array in decoder.parameters.values():
        array *= 2  # sharper attention than a new decoder has
    return decoder


def arguments_of(decoder: fr.AttentionDecoder, shape: Shape, rng: np.random.Generator) -> dict[str, Any]:
    """Ragged rows, of which some have no step and some no memory where there are several."""
    steps, rows, locations, inputs, hidden, features, _ = shape

    def draw(*size: int) -> np.ndarray:
        return rng.standard_normal(size).astype(decoder.dtype)

    state: Any = tuple(draw(1, rows, hidden) for _ in range(2 if decoder.cell == "lstm" else 1))
    lengths, memory_lengths = rng.integers(0, steps + 1, rows), rng.integers(0, locations + 1, rows)
    lengths[-1:], memory_lengths[-1:] = steps, locations
    return {
        "x": draw(steps, rows, inputs),
        "memory": draw(locations, rows, features),
        "memory_lengths": memory_lengths,
        "state": state if len(state) == 2 else state[0],
        "lengths": lengths,
    }


def gradients_of(decoder: fr.AttentionDecoder, shape: Shape, rng: np.random.Generator) -> dict[str, Any]:
    steps, rows, _, _, hidden, features, _ = shape

    def draw(*size: int) -> np.ndarray:
        return rng.standard_normal(size).astype(decoder.dtype)

    dstate = tuple(draw(1, rows, hidden) for _ in range(2 if decoder.cell == "lstm" else 1))
    given: dict[str, Any] = {
        "dy": draw(steps, rows, hidden),
        "dcontext": draw(steps, rows, features),
        "dstate": dstate if len(dstate) == 2 else dstate[0],
    }
    if decoder.attention == "hard":
        given |= {"dlog_prob": draw(steps, rows), "dentropy": draw(steps, rows)}
    return given


def run_reference(decoder: fr.AttentionDecoder, arguments: dict[str, Any], **options: Any) -> Any:
    hard = decoder.attention == "hard"
    return reference.attention_decoder(
        decoder.cell_name, decoder.parameters, **arguments, hard=hard, clip=decoder.clip, **options
    )


def assert_close(actual: Any, expected: Any, shape: Shape, dtype: Any, name: str, factor: float = 1.0) -> None:
    """As many independent roundings as a step's longest sums have terms, at each of T steps.

    They are relative to the largest element: what is small is a sum of terms that cancel. `factor`: how much larger
    than 1 the sums are of which tanh is taken.
    """
    steps, rows, locations, inputs, hidden, features, size = shape
    terms = inputs + hidden + features + size + locations + rows
    for ours, theirs in zip(as_tuple(actual), as_tuple(expected), strict=True):
        assert ours.dtype == dtype and ours.shape == theirs.shape, name
        scale = max(1.0, float(np.abs(theirs).max(initial=0)))
        bound = 4 * float(np.finfo(dtype).eps) * math.sqrt(steps * terms) * scale * factor
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound, err_msg=name)


def call_of(shape: Shape, dtype: str, rng: np.random.Generator) -> dict[str, Any]:
    steps, rows, locations, _, hidden, features, size = shape

    def draw(*wanted: int) -> np.ndarray:
        return rng.standard_normal(wanted).astype(dtype)

    lengths = rng.integers(0, locations + 1, rows)
    lengths[-1:] = locations
    return {
        "query": draw(steps, rows, hidden),
        "memory": draw(locations, rows, features),
        "weight_query": draw(size, hidden) / math.sqrt(hidden),
        "weight_memory": draw(size, features) / math.sqrt(features),
        "bias": draw(size),
        "weight_score": draw(size),
        "memory_lengths": lengths,
    }


def as_dtype(arguments: dict[str, Any], dtype: str) -> dict[str, Any]:
    return {key: value if key == "memory_lengths" else value.astype(dtype) for key, value in arguments.items()}

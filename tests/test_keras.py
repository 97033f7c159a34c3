"""Weights of Keras's layers and back, beside Keras 3 on torch."""

from __future__ import annotations

import itertools
import os
from typing import Any

import numpy as np
import pytest
from cases import Case, Inputs, assert_close, make_inputs
from oracles import one_torch_thread
from rounding import error_bounds

import fusedrnn as fr
from fusedrnn.keras import from_keras, to_keras

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # within Keras

TIME, BATCH = 6, 3
INPUTS, HIDDEN = SIZES = 5, 18
# Keras's name and options, ours and ours' options.
CELLS: list[tuple[str, dict[str, Any], Any, dict[str, Any]]] = [
    ("LSTM", {}, fr.LSTM, {}),
    ("SimpleRNN", {}, fr.RNN, {}),
    ("GRU", {"reset_after": True}, fr.GRU, {}),
    ("GRU", {"reset_after": False}, fr.GRU, {"reset_after": False}),
]
SHAPES = list(itertools.product(CELLS, (True, False), (False, True)))
IDS = [f"{name}{''.join(map(str, options.values()))}-{bias}-{both}" for (name, options, _, _), bias, both in SHAPES]


def both_layers(shape: Any, rng: np.random.Generator) -> tuple[Any, Any, dict[str, Any]]:
    """Keras's layer with random weights, and ours without them."""
    (name, options, kind, our_options), bias, bidirectional = shape
    theirs = getattr(keras.layers, name)(HIDDEN, return_sequences=True, use_bias=bias, **options)
    theirs = keras.layers.Bidirectional(theirs) if bidirectional else theirs
    theirs.build((BATCH, TIME, INPUTS))
    theirs.set_weights([rng.uniform(-0.5, 0.5, w.shape).astype(np.float32) for w in theirs.get_weights()])
    ours = kind(INPUTS, HIDDEN, bias=bias, batch_first=True, bidirectional=bidirectional, seed=0, **our_options)
    return theirs, ours, {"cell": name, **options}


def assert_both_compute_the_same(theirs: Any, ours: Any, rng: np.random.Generator) -> None:
    case = Case(ours.cell_name, 1, 2 if ours.bidirectional else 1, "float32", TIME, BATCH, INPUTS, HIDDEN)
    inputs = make_inputs(case, rng)
    x = np.ascontiguousarray(inputs.x.swapaxes(0, 1))
    with one_torch_thread():
        expected = keras.ops.convert_to_numpy(theirs(x))
    y, _ = ours(x)
    unstarted = Inputs(inputs.x, None, None, None, inputs.dy, None)
    bounds = error_bounds(case, ours.parameters, unstarted, other="float32")
    assert_close(y, expected, bounds.y.swapaxes(0, 1), "y")


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_weights_of_keras(shape: Any, rng: np.random.Generator) -> None:
    theirs, ours, options = both_layers(shape, rng)
    ours.load_parameters(from_keras(theirs.get_weights(), **options))
    assert_both_compute_the_same(theirs, ours, rng)


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_weights_for_keras(shape: Any, rng: np.random.Generator) -> None:
    theirs, ours, options = both_layers(shape, rng)
    theirs.set_weights(to_keras(ours.parameters, **options))
    assert_both_compute_the_same(theirs, ours, rng)


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_back_again(shape: Any, rng: np.random.Generator) -> None:
    theirs, _, options = both_layers(shape, rng)
    weights = theirs.get_weights()
    again = to_keras(from_keras(weights, **options), **options)
    for a, b in zip(again, weights, strict=True):
        assert a.dtype == b.dtype and a.flags.c_contiguous
        np.testing.assert_array_equal(a, b)


def lstm_weights() -> list[np.ndarray]:
    return [np.zeros(shape, np.float32) for shape in ((INPUTS, 4 * HIDDEN), (HIDDEN, 4 * HIDDEN), (4 * HIDDEN,))]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: from_keras(lstm_weights(), cell="ConvLSTM"), ValueError, "cell must be one of 'LSTM', 'GRU', 'Simple"),
        (lambda: from_keras(lstm_weights(), cell=3), TypeError, "cell must be a string"),
        (lambda: from_keras(lstm_weights(), cell="gru"), ValueError, r"weights\[0\] must have shape \(5, 54\)"),
        (
            lambda: from_keras(lstm_weights(), cell="lstm", reset_after=1),
            TypeError,
            "reset_after must be True or False",
        ),
        (lambda: from_keras(lstm_weights()[:1], cell="LSTM"), ValueError, "weights must be 2 arrays"),
        (lambda: from_keras("no", cell="LSTM"), TypeError, "weights must be a sequence"),
        (lambda: from_keras([1.0, 2.0], cell="LSTM"), ValueError, r"weights\[0\] must have shape"),
        (
            lambda: from_keras([np.zeros((4, 4), int)] * 2, cell="LSTM"),
            TypeError,
            r"weights\[0\] must be an array",
        ),
        (lambda: to_keras(3, cell="LSTM"), TypeError, "parameters must be a mapping"),
        (lambda: to_keras(fr.LSTM(*SIZES, 2).parameters, cell="LSTM"), ValueError, "parameters must be"),
        (
            lambda: to_keras(fr.LSTM(*SIZES, peephole=True).parameters, cell="LSTM"),
            ValueError,
            "for Keras's LSTM",
        ),
        (
            lambda: to_keras(fr.LSTM(*SIZES, coupled=True).parameters, cell="LSTM"),
            ValueError,
            r"shape \(72, 5\)",
        ),
        (lambda: to_keras(fr.GRU(*SIZES).parameters, cell="LSTM"), ValueError, "must have shape"),
    ],
)
def test_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()

"""What bfloat16 alone has on the CPU: how it is rounded to, and layers that are moved, copied and kept in files."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from bitwise import assert_same
from cases import LAYERS, Case, make_inputs, make_layer

import fusedrnn as fr

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@pytest.mark.parametrize("kind", ["RNNCell", "RNN"])
def test_sums_are_rounded_to_nearest_even(kind: str) -> None:
    """h = max(0, x + h) with weights of 1: float32 sums of any two numbers, ties and infinite ones among them."""
    options: dict[str, Any] = {"nonlinearity": "relu", "bias": False, "dtype": "bfloat16"}
    layer = getattr(fr, kind)(1, 1, **options)
    for array in layer.parameters.values():
        array[...] = 1
    numbers = [2.0**k * m for k in range(-9, 10) for m in (1, 1.0078125, 1.5, 1.9921875)]
    numbers += [0.0, 2.0**120, 3.3e38, np.inf, np.nan]
    a, b = (grid.ravel().astype(BFLOAT16) for grid in np.meshgrid(numbers, numbers))
    with np.errstate(over="ignore"):
        expected = (a.astype(np.float32) + b.astype(np.float32)).astype(BFLOAT16)
    found = layer(a[:, None], b[:, None]) if kind == "RNNCell" else layer(a[None, :, None], b[None, :, None])[0]
    found, nan = np.asarray(found).ravel(), np.isnan(expected.astype(np.float32))
    assert_same(found[~nan], expected[~nan])
    assert np.isnan(found[nan].astype(np.float32)).all()


def layer_with_state(cell: str, rng: np.random.Generator) -> tuple[Any, Any]:
    """A layer, dropout's counter ahead, and an input for it."""
    case = Case(cell, 2, 1, "bfloat16", 5, 3, 7, 17)
    layer, inputs = make_layer(case, dropout=0.5), make_inputs(case, rng)
    layer.forward(inputs.x)
    state = inputs.state
    layer.initial_state = tuple(s[:, :1] for s in state) if case.two_states else state[:, :1]
    return layer, inputs.x


@pytest.mark.parametrize("cell", LAYERS)
def test_layers_are_copied_and_pickled(cell: str, rng: np.random.Generator) -> None:
    layer, x = layer_with_state(cell, rng)
    twins = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    expected = layer(x), layer.forward(x)[:2]
    for twin in twins:
        assert repr(twin) == repr(layer) and twin.dtype == BFLOAT16
        assert_same((twin(x), twin.forward(x)[:2]), expected)


@pytest.mark.parametrize("wide", ["float32", "float64"])
@pytest.mark.parametrize("cell", ["lstm_peephole", "gru"])
def test_layers_change_their_dtype(cell: str, wide: str, rng: np.random.Generator) -> None:
    layer, x = layer_with_state(cell, rng)
    before = copy.deepcopy(layer)
    for dtype in (wide, "bfloat16"):
        assert layer.to(dtype=dtype) is layer and layer.dtype == np.dtype(dtype)
        halves = layer.initial_state if isinstance(layer.initial_state, tuple) else (layer.initial_state,)
        assert [half.dtype.name for half in halves] == [dtype, wide if dtype == wide else "float32"][: len(halves)]
    if wide == "float32":  # in which c has been all the time
        assert_same((layer.parameters, layer(x)), (before.parameters, before(x)))
    mapping = {name: array.astype(wide) for name, array in before.parameters.items()}
    with pytest.raises(TypeError, match=r"bfloat16, not of float.*convert=True"):
        layer.load_parameters(mapping)
    layer.load_parameters(mapping, convert=True)
    assert_same(layer.parameters, before.parameters)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_files_keep_a_layer_and_its_state(cell: str, tmp_path: Path, rng: np.random.Generator) -> None:
    pytest.importorskip("safetensors")
    from fusedrnn import safetensors

    layer, x = layer_with_state(cell, rng)
    safetensors.save(layer, tmp_path / "layer.safetensors")
    again = make_layer(Case(cell, 2, 1, "bfloat16", input_size=7, hidden_size=17), seed=1)
    safetensors.load(tmp_path / "layer.safetensors", again)
    assert_same((again.parameters, again.initial_state, again(x)), (layer.parameters, layer.initial_state, layer(x)))
    with pytest.raises(TypeError, match="float32, not of bfloat16; pass convert=True"):
        safetensors.load(tmp_path / "layer.safetensors")
    wide = safetensors.load(tmp_path / "layer.safetensors", convert=True)
    assert_same(wide.to(dtype="bfloat16").parameters, layer.parameters)


def test_a_layer_learns_from_rounded_copies_of_its_weights(rng: np.random.Generator) -> None:
    layer, readout = fr.GRU(3, 8, dtype="bfloat16", seed=0), np.zeros((2, 8), np.float32)
    weights = {name: array.astype(np.float32) for name, array in layer.parameters.items()}
    optimizer = fr.optim.Adam({"layer": weights, "readout": {"weight": readout}}, lr=0.02)
    x = rng.standard_normal((6, 32, 3)).astype(BFLOAT16)
    targets = (x.astype(np.float32).sum(axis=-1) > 0).astype(np.int64)
    losses = []
    for _ in range(80):
        layer.load_parameters(weights, convert=True)
        y, _, tape = layer.forward(x)
        loss, readout_tape = fr.linear_cross_entropy_forward(y, readout.astype(BFLOAT16), None, targets)
        dy, dweight, _ = fr.linear_cross_entropy_backward(readout_tape)
        grads = layer.backward(tape, dy)
        fr.clip_grad_norm([grads, dweight], 1.0)
        wide = {name: array.astype(np.float32) for name, array in grads.parameters.items()}
        optimizer.step({"layer": wide, "readout": {"weight": dweight.astype(np.float32)}})
        losses.append(float(loss))
    assert losses[-1] < 0.2 * losses[0]

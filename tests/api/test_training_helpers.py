"""clip_grad_norm, tbptt_windows, initialisers, load_parameters, to, and how gradients accumulate."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from bitwise import assert_same, copied
from cases import LAYERS, Case, make_inputs, make_layer, small_cases
from oracles import torch_module

import fusedrnn as fr

LSTM_CELLS = [cell for cell in LAYERS if "f" in fr._core.cells[cell].gates]


def some_gradients(rng: np.random.Generator, scale: float = 1.0) -> fr.Gradients:
    layer = fr.LSTM(3, 5, 2, seed=0)
    x, dy = rng.standard_normal((2, 4, 2, 3)).astype(np.float32), rng.standard_normal((4, 2, 5)).astype(np.float32)
    grads = layer.backward(layer.forward(x[0])[2], dy)
    for array in grads.parameters.values():
        array *= scale
    return grads


def norm_of(arrays: Any) -> float:
    return math.sqrt(sum(float(np.square(array.astype(np.float64)).sum()) for array in arrays))


# clip_grad_norm


@pytest.mark.parametrize("form", ["gradients", "mapping", "list", "generator", "nested"])
def test_clipping_in_every_form(form: str, rng: np.random.Generator) -> None:
    grads = some_gradients(rng)
    before = copied(grads.parameters)
    forms: dict[str, Any] = {
        "gradients": grads,
        "mapping": grads.parameters,
        "list": list(grads.parameters.values()),
        "generator": (array for array in grads.parameters.values()),
        "nested": [grads, {"again": grads.parameters}],
    }
    norm = fr.clip_grad_norm(forms[form], 0.5)
    assert isinstance(norm, float)
    assert norm == pytest.approx(norm_of(before.values()), rel=1e-12)
    assert norm_of(grads.parameters.values()) == pytest.approx(0.5, rel=1e-6)
    for name, array in grads.parameters.items():
        np.testing.assert_allclose(array, before[name] * (0.5 / norm), rtol=4e-7)


def test_clipping_in_bfloat16(rng: np.random.Generator) -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    grads = [rng.standard_normal(shape).astype(bfloat16) for shape in ((3, 5), (7,), (0,), (40, 60))]
    before = [array.astype(np.float64) for array in grads]
    norm = fr.clip_grad_norm(grads, 2.5)
    assert norm == pytest.approx(norm_of(before), rel=1e-12)
    for array, given in zip(grads, before, strict=True):
        # The factor and the product are float32's, and rounded once: seldom to the other of two neighbours.
        exact = given * (2.5 / norm)
        assert array.dtype == bfloat16
        np.testing.assert_allclose(array.astype(np.float64), exact, rtol=2.0**-8 * (1 + 2.0**-15), atol=0)


def test_clipping_leaves_small_gradients_alone(rng: np.random.Generator) -> None:
    grads = some_gradients(rng)
    before = copied(grads.parameters)
    norm = fr.clip_grad_norm(grads, 1e9)
    assert norm == pytest.approx(norm_of(before.values()), rel=1e-12)
    assert_same(grads.parameters, before)
    fr.clip_grad_norm(grads, norm)
    assert_same(grads.parameters, before)
    fr.clip_grad_norm(grads, math.inf)
    assert_same(grads.parameters, before)


def test_clipping_touches_parameters_only(rng: np.random.Generator) -> None:
    grads = some_gradients(rng)
    before = copied((grads.x, grads.state))
    fr.clip_grad_norm(grads, 1e-3)
    assert_same((grads.x, grads.state), before)


def test_clipping_agrees_with_torch(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    grads = some_gradients(rng)
    parameters = [torch.zeros(array.shape) for array in grads.parameters.values()]
    for parameter, array in zip(parameters, grads.parameters.values(), strict=True):
        parameter.grad = torch.tensor(array)
    expected = torch.nn.utils.clip_grad_norm_(parameters, 0.25)
    assert fr.clip_grad_norm(grads, 0.25) == pytest.approx(float(expected), rel=1e-5)
    for parameter, array in zip(parameters, grads.parameters.values(), strict=True):
        # torch divides by the norm + 1e-6.
        np.testing.assert_allclose(array, parameter.grad.numpy(), rtol=1e-5)


def test_clipping_at_the_edges() -> None:
    assert fr.clip_grad_norm([], 1.0) == 0
    assert fr.clip_grad_norm({}, 1.0) == 0
    zero = np.zeros(3, np.float32)
    assert fr.clip_grad_norm([zero], 0.0) == 0
    assert not zero.any()
    array = np.ones(4)
    assert fr.clip_grad_norm([array], 0.0) == 2
    assert not array.any()
    strided = np.ones((4, 4))[::2, ::2]
    assert fr.clip_grad_norm([strided], 1.0) == 2
    assert_same(strided, np.full((2, 2), 0.5))


def test_clipping_counts_a_shared_array_once() -> None:
    array = np.array([3.0, 4.0])
    assert fr.clip_grad_norm([array, array], 1.0) == 5
    np.testing.assert_allclose(array, [0.6, 0.8], rtol=1e-15)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_clipping_shows_what_is_not_finite() -> None:
    for bad in (np.nan, np.inf):
        array = np.array([1.0, bad])
        assert not math.isfinite(fr.clip_grad_norm([array], 1.0))
        assert not np.isfinite(array).all()


def test_clipping_is_not_overflowed_by_float32() -> None:
    array = np.full(4, 1e30, np.float32)
    assert fr.clip_grad_norm([array], 1.0) == pytest.approx(2e30)
    np.testing.assert_allclose(array, 0.5, rtol=1e-6)


# tbptt_windows


def test_windows_are_views() -> None:
    x, targets = np.arange(20.0).reshape(10, 2), np.arange(10)
    windows = list(fr.tbptt_windows(x, targets, window=4))
    assert [len(part) for part, _ in windows] == [4, 4, 2]
    for part, labels in windows:
        assert np.shares_memory(part, x)
        assert_same(part, x[labels[0] : labels[-1] + 1])
    windows[1][0][...] = -1
    assert (x[4:8] == -1).all()


def test_windows_of_one_array_are_arrays() -> None:
    x = np.arange(7)
    assert [part.tolist() for part in fr.tbptt_windows(x, window=3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [part.tolist() for part in fr.tbptt_windows(x, window=10**9)] == [x.tolist()]
    assert list(fr.tbptt_windows(x[:0], window=3)) == []


# Initialisers


@pytest.mark.parametrize("cell", LAYERS)
def test_uniform_fills_its_range(cell: str) -> None:
    layer = make_layer(Case(cell, 2, 2, "float32", hidden_size=36))
    for array in layer.parameters.values():
        array[...] = 9
    assert fr.init.uniform_(layer, 5) is layer
    bound = 1 / 6
    values = np.concatenate([array.ravel() for array in layer.parameters.values()])
    assert np.abs(values).max() <= np.float32(bound)
    # The mean of n draws from U(-a, a) strays by a / sqrt(3 n); the largest of thousands comes near a.
    assert abs(values.mean()) < 6 * bound / math.sqrt(3 * values.size)
    assert values.max() > 0.99 * bound
    assert values.min() < -0.99 * bound


@pytest.mark.parametrize("function", [fr.init.uniform_, fr.init.orthogonal_])
def test_seeds_reproduce(function: Any) -> None:
    def drawn(seed: int | None) -> dict[str, np.ndarray]:
        return function(fr.GRU(3, 8, 2, seed=0), seed).parameters

    assert_same(drawn(7), drawn(7))
    for other in (8, None):
        assert not np.array_equal(drawn(7)["weight_hh_l1"], drawn(other)["weight_hh_l1"])
    assert not np.array_equal(drawn(None)["weight_hh_l0"], drawn(None)["weight_hh_l0"])
    assert_same(fr.GRU(3, 8, seed=4).parameters, fr.GRU(3, 8, seed=4).parameters)
    assert not np.array_equal(fr.GRU(3, 8).parameters["weight_ih_l0"], fr.GRU(3, 8).parameters["weight_ih_l0"])


@pytest.mark.parametrize("function", [fr.init.uniform_, fr.init.orthogonal_])
def test_generators_are_drawn_from(function: Any) -> None:
    def drawn(seed: Any) -> dict[str, np.ndarray]:
        return function(fr.GRU(3, 8, 2, seed=0), seed).parameters

    generator = np.random.default_rng(7)
    first, second = copied(drawn(generator)), drawn(generator)
    assert_same(first, drawn(7))
    assert not np.array_equal(first["weight_hh_l0"], second["weight_hh_l0"])


def test_layers_of_one_generator(rng: np.random.Generator) -> None:
    def made(generator: np.random.Generator) -> list[Any]:
        return [fr.LSTM(3, 4, 2, dropout=0.5, seed=generator), fr.GRUCell(3, 4, seed=generator)]

    first, second = made(np.random.default_rng(1)), made(np.random.default_rng(1))
    x = rng.standard_normal((5, 2, 3)).astype(np.float32)
    for one, other in zip(first, second, strict=True):
        assert_same(one.parameters, other.parameters)
    assert_same(first[0].forward(x)[0], second[0].forward(x)[0])
    generator = np.random.default_rng(1)
    alike = [fr.GRU(3, 4, seed=generator) for _ in range(2)]
    assert not np.array_equal(alike[0].parameters["weight_hh_l0"], alike[1].parameters["weight_hh_l0"])


@pytest.mark.parametrize("cell", LAYERS)
def test_orthogonal_makes_every_gate_block_orthogonal(cell: str) -> None:
    layer = make_layer(Case(cell, 2, 2, "float64", hidden_size=11))
    before = copied(layer.parameters)
    assert fr.init.orthogonal_(layer, 0) is layer
    seen = []
    for name, array in layer.parameters.items():
        if not name.startswith("weight_hh"):
            assert_same(array, before[name])
            continue
        for block in array.reshape(-1, 11, 11):
            np.testing.assert_allclose(block @ block.T, np.eye(11), rtol=0, atol=1e-13)
            seen.append(block)
    assert all(not np.allclose(block, other) for i, block in enumerate(seen) for other in seen[:i])


@pytest.mark.parametrize("cell", LSTM_CELLS)
def test_forget_bias_is_the_sum_of_both(cell: str) -> None:
    layer = make_layer(Case(cell, 2, 2, "float64", hidden_size=5))
    before = copied(layer.parameters)
    assert fr.init.forget_bias_(layer, 1.5) is layer
    block = slice(0, 5) if "coupled" in cell else slice(5, 10)
    for name, array in layer.parameters.items():
        changed = before[name].copy()
        if name.startswith("bias"):
            changed[block] = 1.5 if name.startswith("bias_ih") else 0
        assert_same(array, changed, name)
    # A forget gate that is open by its bias keeps the cell's state.
    fr.init.forget_bias_(layer, 50.0)
    for name, array in layer.parameters.items():
        if name.startswith(("weight", "peephole")):
            array[...] = 0
    c = np.full((4, 1, 5), 7.0)
    _, (_, kept) = layer(np.zeros((1, 1, 7)), (np.zeros_like(c), c))
    # What comes in is at most 1, and nothing at all where the input gate is coupled to f.
    assert np.abs(kept - c).max() <= (1e-12 if "coupled" in cell else 1)


def test_initialisers_take_cells() -> None:
    cell = fr.LSTMCell(3, 4, seed=0)
    fr.init.orthogonal_(fr.init.forget_bias_(fr.init.uniform_(cell, 0)), 0)
    assert_same(cell.parameters["bias_ih"][4:8], np.ones(4, np.float32))


# load_parameters and to


@pytest.mark.parametrize("case", small_cases(dtype="float32", num_layers=2, directions=2))
def test_loading_copies_into_the_live_arrays(case: Case, rng: np.random.Generator) -> None:
    source, layer = make_layer(case), make_layer(case)
    fr.init.uniform_(layer, 99)
    live = dict(layer.parameters)
    layer.load_parameters(source.parameters)
    assert_same(layer.parameters, source.parameters)
    for name, array in layer.parameters.items():
        assert array is live[name]
        assert not np.shares_memory(array, source.parameters[name])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_loading_a_torch_module(cell: str, dtype: str) -> None:
    pytest.importorskip("torch")
    case = Case(cell, 2, 2, dtype)
    source = make_layer(case)
    module, layer = torch_module(case, source.parameters), fr.init.uniform_(make_layer(case), 99)
    layer.load_parameters(module.state_dict())
    assert_same(layer.parameters, source.parameters)
    with pytest.raises(ValueError, match="detach"):
        layer.load_parameters(dict(module.named_parameters()))


def test_loading_converts_on_request_only() -> None:
    twice, single = fr.GRU(3, 4, dtype="float64", seed=0), fr.GRU(3, 4, seed=1)
    before = copied(single.parameters)
    with pytest.raises(TypeError, match=r"weight_ih_l0.*convert"):
        single.load_parameters(twice.parameters)
    assert_same(single.parameters, before)
    single.load_parameters(twice.parameters, convert=True)
    assert_same(single.parameters, {name: array.astype(np.float32) for name, array in twice.parameters.items()})
    half = {name: array.astype(np.float16) for name, array in twice.parameters.items()}
    single.load_parameters(half, convert=True)
    assert_same(single.parameters, {name: array.astype(np.float32) for name, array in half.items()})
    with pytest.raises(TypeError, match="weight_ih_l0"):
        single.load_parameters({name: array.astype(np.int32) for name, array in half.items()}, convert=True)


def sixteen_bits(kind: str, array: np.ndarray) -> Any:
    """An array of another library in 16 bits, and its values."""
    if kind.startswith("torch"):
        torch = pytest.importorskip("torch")
        tensor = torch.tensor(array).to(getattr(torch, kind.removeprefix("torch.")))
        return tensor, tensor.double().numpy()
    narrow = array.astype(np.float16 if kind == "float16" else pytest.importorskip("ml_dtypes").bfloat16)
    return narrow, narrow.astype(np.float64)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["torch.bfloat16", "torch.float16", "bfloat16", "float16"])
def test_loading_sixteen_bits(kind: str, dtype: str) -> None:
    layer = fr.LSTM(3, 4, bidirectional=True, dtype=dtype, seed=0)
    before = copied(layer.parameters)
    pairs = {name: sixteen_bits(kind, array * 3) for name, array in before.items()}
    mapping = {name: pair[0] for name, pair in pairs.items()}
    wanted = (
        rf"mapping\['weight_ih_l0'\] must be an array of {dtype}, not of {kind.removeprefix('torch.')}; pass convert"
    )
    with pytest.raises(TypeError, match=wanted):
        layer.load_parameters(mapping)
    assert_same(layer.parameters, before)
    layer.load_parameters(mapping, convert=True)
    assert_same(layer.parameters, {name: pair[1].astype(dtype) for name, pair in pairs.items()})


def test_loading_a_whole_models_state_dict() -> None:
    torch = pytest.importorskip("torch")

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.rnn2, self.out = torch.nn.LSTM(3, 4, 2), torch.nn.GRU(4, 5), torch.nn.Linear(5, 2)

    model = Model()
    lstm, gru = fr.LSTM(3, 4, 2), fr.GRU(4, 5)
    lstm.load_parameters(model.state_dict(), "rnn.")
    gru.load_parameters(model.bfloat16().state_dict(), prefix="rnn2.", convert=True)
    for layer, module in ((lstm, model.rnn), (gru, model.rnn2)):
        for name, array in layer.parameters.items():
            rounded = getattr(module, name).detach().float().numpy()
            np.testing.assert_allclose(array, rounded, rtol=2.0**-8)
    before = copied(gru.parameters)
    for prefix, message in (
        ("", r"prefix may be one of \['rnn.', 'rnn2.'\]"),
        ("rnn", r"missing: \['rnnweight_ih_l0'.*'rnn2.weight_ih_l0'.*prefix may be"),
        ("rnn.", r"unknown: \['rnn.weight_ih_l1', 'rnn.weight_hh_l1'"),
        ("encoder.", r"missing: \['encoder.weight_ih_l0'.*unknown: \[\].*prefix may be"),
    ):
        with pytest.raises(ValueError, match=message):
            gru.load_parameters(model.state_dict(), prefix)
    with pytest.raises(ValueError, match=r"mapping\['rnn2.weight_ih_l0'\] must have shape \(12, 4\), not \(15, 4\)"):
        fr.GRU(4, 4).load_parameters(model.state_dict(), "rnn2.", convert=True)
    for bad in (None, 3, b"rnn."):
        with pytest.raises(TypeError, match="prefix must be a string"):
            gru.load_parameters(model.state_dict(), bad)
    assert_same(gru.parameters, before)


def test_saved_by_numpy_and_loaded(tmp_path: Any) -> None:
    layer, other = fr.GRU(3, 4, 2, seed=0), fr.GRU(3, 4, 2, seed=1)
    np.savez(tmp_path / "layer.npz", **layer.parameters)
    other.load_parameters(np.load(tmp_path / "layer.npz"))
    assert_same(other.parameters, layer.parameters)
    np.savez(tmp_path / "model.npz", step=3, **{f"rnn.{name}": array for name, array in layer.parameters.items()})
    other = fr.GRU(3, 4, 2)
    other.load_parameters(np.load(tmp_path / "model.npz"), "rnn.")
    assert_same(other.parameters, layer.parameters)


FAILURES: dict[str, tuple[Any, type[Exception]]] = {
    "missing": (lambda entries: entries.pop("bias_hh_l0"), ValueError),
    "unknown": (lambda entries: entries.update(bias_hh_l0_extra=np.zeros(3)), ValueError),
    "shape": (lambda entries: entries.update(bias_hh_l0=np.zeros((1, 12), np.float32)), ValueError),
    "broadcastable": (lambda entries: entries.update(bias_hh_l0=np.zeros(1, np.float32)), ValueError),
    "dtype": (lambda entries: entries.update(bias_hh_l0=np.zeros(12, np.int64)), TypeError),
    "list": (lambda entries: entries.update(bias_hh_l0=[0.0] * 12), TypeError),
    "none": (lambda entries: entries.update(bias_hh_l0=None), TypeError),
    "mask": (lambda entries: entries.update(bias_hh_l0=np.ma.masked_array(np.zeros(12, np.float32))), TypeError),
}


@pytest.mark.parametrize("how", FAILURES)
def test_loading_fails_whole(how: str) -> None:
    layer = fr.GRU(3, 4, seed=0)
    before = copied(layer.parameters)
    entries: dict[str, Any] = {name: array + 1 for name, array in before.items()}
    spoil, error = FAILURES[how]
    spoil(entries)
    with pytest.raises(error, match="bias_hh_l0"):
        layer.load_parameters(entries)
    assert_same(layer.parameters, before)


def test_loading_reads_any_strides_and_its_own_arrays() -> None:
    layer = fr.GRU(4, 4, seed=0)
    before = copied(layer.parameters)
    layer.load_parameters({name: np.asfortranarray(array) for name, array in before.items()})
    assert_same(layer.parameters, before)
    exchanged = dict(layer.parameters)
    for one, other in (("weight_ih_l0", "weight_hh_l0"), ("bias_ih_l0", "bias_hh_l0")):
        exchanged[one], exchanged[other] = exchanged[other], exchanged[one]
    layer.load_parameters(exchanged)
    assert_same(layer.parameters["weight_ih_l0"], before["weight_hh_l0"])
    assert_same(layer.parameters["weight_hh_l0"], before["weight_ih_l0"])


@pytest.mark.parametrize("case", small_cases(dtype="float32", num_layers=2, directions=2))
def test_to_another_width_and_back(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    before, expected = copied(layer.parameters), layer(inputs.x, inputs.state)
    assert layer.to(dtype="float64") is layer
    assert layer.dtype == np.float64
    assert_same(layer.parameters, {name: array.astype(np.float64) for name, array in before.items()})
    with pytest.raises(TypeError, match="x"):
        layer(inputs.x)
    assert layer(inputs.x.astype(np.float64))[0].dtype == np.float64
    assert_same(layer.to("cpu", "float32")(inputs.x, inputs.state), expected)


# Gradients


@pytest.mark.parametrize("case", small_cases(num_layers=2, directions=2, ragged=True, reset=True))
def test_gradients_accumulate_in_place(case: Case, rng: np.random.Generator) -> None:
    layer, first, second = make_layer(case), make_inputs(case, rng), make_inputs(case, rng)
    tapes = [layer.forward(i.x, i.state, **i.sequence_options())[2] for i in (first, second)]
    alone = layer.backward(tapes[1], second.dy, second.dstate)
    grads = layer.backward(tapes[0], first.dy, first.dstate)
    before = copied(grads.parameters)
    kept = grads.x, grads.state
    kept_values = copied(kept)
    arrays = dict(grads.parameters)
    total = layer.backward(tapes[1], second.dy, second.dstate, grads=grads)
    assert_same((total.x, total.state), (alone.x, alone.state))
    assert_same((grads.x, grads.state), kept_values)
    assert grads.x is kept[0]
    for name, array in total.parameters.items():
        assert array is arrays[name]
        # The second call's terms are added one by one, to a sum of another size.
        scale = np.abs(before[name]).max() + np.abs(alone.parameters[name]).max()
        near = 4 * case.eps * math.sqrt(case.time * case.batch) * scale
        np.testing.assert_allclose(array, before[name] + alone.parameters[name], rtol=0, atol=near)


def test_gradients_of_zero_are_the_same_as_none(rng: np.random.Generator) -> None:
    layer, x = fr.GRU(3, 5, seed=0), rng.standard_normal((4, 2, 3)).astype(np.float32)
    y, _, tape = layer.forward(x)
    expected = layer.backward(tape, y)
    zeros = {name: np.zeros_like(array) for name, array in layer.parameters.items()}
    given = fr.Gradients(x, np.zeros((1, 2, 5), np.float32), zeros)
    assert_same(layer.backward(tape, y, grads=given).parameters, expected.parameters)
    assert list(expected.parameters) == list(layer.parameters)

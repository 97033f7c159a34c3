"""Weights of Keras's layers and back, beside Keras 3 on torch."""

from __future__ import annotations

import dataclasses
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


def built(name: str, *, both: bool = False, **options: Any) -> Any:
    layer = getattr(keras.layers, name)(HIDDEN, return_sequences=True, **options)
    layer = keras.layers.Bidirectional(layer) if both else layer
    layer.build((BATCH, TIME, INPUTS))
    return layer


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_layers_of_keras_are_taken(shape: Any, rng: np.random.Generator) -> None:
    theirs, ours, options = both_layers(shape, rng)
    parameters = from_keras(theirs)
    for name, array in from_keras(theirs.get_weights(), **options).items():
        np.testing.assert_array_equal(parameters[name], array)
    ours.load_parameters(from_keras(theirs, cell=options["cell"]))
    assert_both_compute_the_same(theirs, ours, rng)


@pytest.mark.parametrize("both", [False, True])
def test_relu_is_one_of_ours(both: bool, rng: np.random.Generator) -> None:
    theirs = built("SimpleRNN", both=both, activation="relu")
    ours = fr.RNN(*SIZES, nonlinearity="relu", batch_first=True, bidirectional=both)
    for activation in (None, "relu", keras.activations.relu):
        ours.load_parameters(from_keras(theirs, activation=activation))
        assert_both_compute_the_same(theirs, ours, rng)
    ours.load_parameters(from_keras(theirs.get_weights(), cell="SimpleRNN", activation="relu"))
    assert_both_compute_the_same(theirs, ours, rng)


def own_function(x: Any) -> Any:
    return x


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "SimpleRNN"])
@pytest.mark.parametrize("activation", ["relu", "softsign", "linear", "hard_sigmoid", own_function, None])
@pytest.mark.parametrize("argument", ["activation", "recurrent_activation"])
def test_other_activations_are_refused(argument: str, activation: Any, cell: str, both: bool) -> None:
    if cell == "SimpleRNN" and (argument == "recurrent_activation" or activation == "relu"):
        pytest.skip("no such argument, or one of ours")
    if both and activation is own_function:
        pytest.skip("Keras makes no Bidirectional layer with it")
    layer = built(cell, both=both, **{argument: activation})
    with pytest.raises(ValueError, match=f"^{argument} must be .*, as this library's {cell} has, not "):
        from_keras(layer)
    if activation is not None:
        with pytest.raises(ValueError, match=f"^{argument} must be .*, as this library's {cell} has, not "):
            from_keras(layer.get_weights(), cell=cell, **{argument: activation})


def test_activations_that_are_ours() -> None:
    layer = built("LSTM")
    expected = from_keras(layer)
    for given in (layer, layer.get_weights()):
        options: dict[str, Any] = {"activation": "tanh", "recurrent_activation": keras.activations.sigmoid}
        parameters = from_keras(given, cell="LSTM", **options)
        assert list(parameters) == list(expected)
    with pytest.raises(ValueError, match="activation must be left out, or as the layer has it, 'tanh', not 'relu'"):
        from_keras(layer, activation="relu")
    with pytest.raises(ValueError, match="recurrent_activation must be left out for 'SimpleRNN', which has none"):
        from_keras(built("SimpleRNN").get_weights(), cell="SimpleRNN", recurrent_activation="sigmoid")
    for argument in ("activation", "recurrent_activation"):
        with pytest.raises(TypeError, match=f"^{argument} must be a string, a function of Keras or None, not int"):
            from_keras(layer.get_weights(), cell="LSTM", **{argument: 3})

    def tanh(x: Any) -> Any:
        return 2 * x

    with pytest.raises(ValueError, match="not 'a function of its own'"):
        from_keras(built("LSTM", activation=tanh))


def test_layers_that_are_none_of_these() -> None:
    class MyLSTM(keras.layers.LSTM):
        pass

    mine = MyLSTM(HIDDEN)
    mine.build((BATCH, TIME, INPUTS))
    for layer in (mine, keras.layers.Dense(3)):
        with pytest.raises(
            ValueError, match=f"weights must be a layer that is one of LSTM, .*, not {type(layer).__name__}"
        ):
            from_keras(layer)
    with pytest.raises(ValueError, match="weights must be a layer that is built"):
        from_keras(keras.layers.LSTM(HIDDEN))
    with pytest.raises(ValueError, match="cell must be 'LSTM' or left out, as weights is such a layer, not 'GRU'"):
        from_keras(built("LSTM"), cell="GRU")
    with pytest.raises(ValueError, match="reset_after must be left out, or as the layer has it"):
        from_keras(built("GRU"), reset_after=False)
    two = keras.layers.Bidirectional(
        keras.layers.GRU(HIDDEN), backward_layer=keras.layers.GRU(HIDDEN, reset_after=False, go_backwards=True)
    )
    two.build((BATCH, TIME, INPUTS))
    with pytest.raises(ValueError, match="weights must be a layer that is of one cell in both directions"):
        from_keras(two)


def cudnn_weights(cell: str, weights: list[np.ndarray]) -> list[np.ndarray]:
    """The weights of a cell with two biases as Keras's CuDNN layers hold them: cuDNN's own (H, K) blocks in memory."""
    kernel, recurrent, bias = weights
    gates = recurrent.shape[1] // HIDDEN
    blocks = [
        np.hstack([np.ascontiguousarray(block.T).reshape(block.shape) for block in np.hsplit(matrix, gates)])
        for matrix in (kernel, recurrent)
    ]
    return [*blocks, bias.reshape(-1)]


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_weights_of_the_cudnn_layers(cell: str, both: bool, rng: np.random.Generator) -> None:
    theirs = built(cell, both=both)
    plain, cudnn = [], []
    for _ in range(2 if both else 1):
        gates = 4 if cell == "LSTM" else 3
        shapes = [(INPUTS, gates * HIDDEN), (HIDDEN, gates * HIDDEN), (2, gates * HIDDEN)]
        arrays = [rng.uniform(-0.5, 0.5, shape).astype(np.float32) for shape in shapes]
        cudnn += cudnn_weights(cell, arrays)
        # A Keras LSTM has the sum of the two.
        plain += [*arrays[:2], arrays[2].sum(0) if cell == "LSTM" else arrays[2]]
    theirs.set_weights(plain)
    ours = (fr.LSTM if cell == "LSTM" else fr.GRU)(*SIZES, batch_first=True, bidirectional=both)
    for name in (f"CuDNN{cell}", f"cudnn{cell}", cell):  # the bias tells, as it does in Keras
        ours.load_parameters(from_keras(cudnn, cell=name))
        assert_both_compute_the_same(theirs, ours, rng)


def test_cudnn_layers_are_taken(rng: np.random.Generator) -> None:
    class CuDNNGRU:
        def __init__(self, arrays: list[np.ndarray]) -> None:
            self.arrays = arrays

        def get_weights(self) -> list[np.ndarray]:
            return self.arrays

    shapes = [(INPUTS, 3 * HIDDEN), (HIDDEN, 3 * HIDDEN), (6 * HIDDEN,)]
    arrays = [rng.standard_normal(shape) for shape in shapes]
    expected = from_keras(arrays, cell="CuDNNGRU")
    for name, array in from_keras(CuDNNGRU(arrays)).items():
        np.testing.assert_array_equal(array, expected[name])
    with pytest.raises(ValueError, match=r"weights\[2\] must have shape \(108,\) .*, not \(2, 54\)"):
        from_keras([*arrays[:2], arrays[2].reshape(2, -1)], cell="CuDNNGRU")
    with pytest.raises(ValueError, match=r"weights must be 3 arrays.* of a CuDNN layer, not without bias"):
        from_keras(arrays[:2], cell="CuDNNGRU")
    with pytest.raises(ValueError, match=r"reset_after must be True for a bias of shape \(108,\)"):
        from_keras(arrays, cell="GRU", reset_after=False)
    with pytest.raises(ValueError, match=r"cell must be one of .*, not 'CuDNNSimpleRNN'"):
        from_keras(arrays, cell="CuDNNSimpleRNN")


class Unreadable:
    """What has an error of its own for NumPy."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("not today")


GATES = (INPUTS, 4 * HIDDEN)
# What stands for one array, the error, and what it says after the argument's name.
NO_ARRAYS: list[tuple[Any, type[Exception], str]] = [
    *(
        (value, TypeError, f"must be an array of .*, not {type(value).__name__}$")
        for value in (None, 1.0, "abc", {}, 3)
    ),
    ((row for row in [[1.0]]), TypeError, "must be an array of .*, not generator$"),
    ([[1.0], [1.0, 2.0]], TypeError, "must be an array of .*, not "),
    (Unreadable(), TypeError, "must be an array of .* cannot read as one: not today"),
    *(
        (np.zeros(GATES, kind), TypeError, "must be an array of .*, not of ")
        for kind in (object, complex, int, bool, "U3", "M8[s]", [("a", "f4")])
    ),
    (np.ma.zeros(GATES), TypeError, "must be an array without a mask"),
    *((np.zeros(shape), ValueError, r"must have 2 axes, not shape \(") for shape in ((), 72, (*GATES, 1))),
    (np.float32(1), ValueError, r"must have 2 axes, not shape \(\)"),
]


@pytest.mark.parametrize(("value", "error", "text"), NO_ARRAYS, ids=lambda value: "")
@pytest.mark.parametrize("place", [0, 1])
def test_what_is_no_array_is_named(value: Any, error: type[Exception], text: str, place: int) -> None:
    weights: list[Any] = lstm_weights()
    weights[place] = value
    with pytest.raises(error, match=rf"^weights\[{place}\] {text}"):
        from_keras(weights, cell="LSTM")
    name = ("weight_ih_l0", "weight_hh_l0")[place]
    with pytest.raises(error, match=rf"^parameters\['{name}'\] {text}"):
        to_keras({**fr.LSTM(*SIZES).parameters, name: value}, cell="LSTM")


def test_tensors_are_read_where_numpy_can() -> None:
    torch = pytest.importorskip("torch")
    weights: list[Any] = [torch.tensor(array) for array in lstm_weights()]
    assert from_keras(weights, cell="LSTM")["weight_ih_l0"].shape == (4 * HIDDEN, INPUTS)
    for other in (weights[0].clone().requires_grad_(), weights[0].to("meta"), weights[0].bfloat16()):
        with pytest.raises(TypeError, match=r"^weights\[0\] must be an array of .*Tensor that NumPy cannot read"):
            from_keras([other, *weights[1:]], cell="LSTM")


@pytest.mark.parametrize("weights", [None, 3, {}, {1}, np.zeros((2, 3)), (w for w in lstm_weights())])
def test_weights_are_a_sequence(weights: Any) -> None:
    with pytest.raises(TypeError, match=r"^weights must be a sequence of arrays, not "):
        from_keras(weights, cell="LSTM")
    if not isinstance(weights, dict):
        with pytest.raises(TypeError, match=r"^parameters must be a mapping of names to arrays, not "):
            to_keras(weights, cell="LSTM")


@pytest.mark.parametrize("count", [0, 1, 5, 7, 8])
def test_counts_of_weights(count: int) -> None:
    with pytest.raises(ValueError, match=f"^weights must be 2 arrays, 3 with a bias, .*, not {count}$"):
        from_keras((lstm_weights() * 3)[:count], cell="LSTM")


@pytest.mark.parametrize(
    ("place", "shape", "text"),
    [
        (0, (INPUTS, 4 * HIDDEN - 1), r"weights\[0\] must have shape \(5, 72\) .*, not \(5, 71\)"),
        (1, (HIDDEN - 1, 4 * HIDDEN), r"weights\[0\] must have shape \(5, 68\) beside 17 units"),
        (1, (HIDDEN, 4 * HIDDEN - 1), r"weights\[1\] must have shape \(18, 72\) .*, not \(18, 71\)"),
        (2, (2, 4 * HIDDEN), r"weights\[2\] must have shape \(72,\) .*, not \(2, 72\)"),
        (2, (), r"weights\[2\] must have shape \(72,\) .*, not \(\)"),
        (3, (INPUTS + 1, 4 * HIDDEN), r"weights\[3\] must have shape \(5, 72\) .*, not \(6, 72\)"),
        (4, (HIDDEN + 1, 4 * HIDDEN), r"weights\[4\] must have shape \(18, 72\) .*, not \(19, 72\)"),
    ],
)
def test_shapes_that_do_not_fit(place: int, shape: tuple[int, ...], text: str) -> None:
    weights = lstm_weights() * 2
    weights[place] = np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match="^" + text):
        from_keras(weights, cell="LSTM")


@pytest.mark.parametrize("convert", [from_keras, to_keras])
def test_cells_and_their_options(convert: Any) -> None:
    given = lstm_weights() if convert is from_keras else fr.LSTM(*SIZES).parameters
    for cell in (None, b"LSTM", 3, fr.LSTM, ["LSTM"]):
        with pytest.raises(TypeError, match=f"^cell must be a string, not {type(cell).__name__}$"):
            convert(given, cell=cell)
    for cell in ("", "LSTM ", "lstmcell", "\ud800"):
        with pytest.raises(ValueError, match=r"^cell must be one of 'LSTM', 'GRU', 'SimpleRNN', not "):
            convert(given, cell=cell)
    for flag in (None, 1, "no", np.zeros(2, bool)):
        with pytest.raises(TypeError, match=f"^reset_after must be True or False, not {type(flag).__name__}$"):
            convert(given, cell="GRU", reset_after=flag)
    for cell in ("LSTM", "SimpleRNN"):
        with pytest.raises(ValueError, match=f"^reset_after must be left out for '{cell}'"):
            convert(given, cell=cell, reset_after=False)


@pytest.mark.parametrize("left", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "weight_ih_l0_reverse"])
def test_names_of_parameters(left: str) -> None:
    parameters: dict[Any, Any] = dict(fr.LSTM(*SIZES, bidirectional=True).parameters)
    del parameters[left]
    for odd in (parameters, {**parameters, 1: None}, {}):
        with pytest.raises(ValueError, match=r"^parameters must be \['weight_ih_l0', .* for Keras's LSTM, not \["):
            to_keras(odd, cell="LSTM")


@pytest.mark.parametrize(
    "shape", [shape for shape in SHAPES if shape[1]], ids=lambda shape: f"{shape[0][:2]}-{shape[2]}"
)
def test_masks_skip_what_keras_skips(shape: Any, rng: np.random.Generator) -> None:
    """A Masking layer's steps are skipped: outputs repeat, states stay."""
    theirs, ours, options = both_layers(shape, rng)
    ours.load_parameters(from_keras(theirs.get_weights(), **options))
    case = Case(ours.cell_name, 1, 2 if ours.bidirectional else 1, "float32", TIME, BATCH, INPUTS, HIDDEN)
    inputs = dataclasses.replace(make_inputs(case, rng), state=None, dstate=None)
    inputs.mask = rng.random((TIME, BATCH)) < 0.6
    inputs.mask[:, 0] = (False, True, False, False, True, False)
    inputs.x[~inputs.mask] = 7.0  # Masking's value
    x, mask = (np.ascontiguousarray(array.swapaxes(0, 1)) for array in (inputs.x, inputs.mask))
    with one_torch_thread():
        expected = keras.ops.convert_to_numpy(keras.Sequential([keras.layers.Masking(7.0), theirs])(x))
    y, _ = ours(x, mask=mask)
    bounds = error_bounds(case, ours.parameters, inputs, other="float32")
    if ours.bidirectional:  # which puts out zeros there
        assert not expected[~mask].any()
        y[~mask] = 0
    assert_close(y, expected, bounds.y.swapaxes(0, 1), "y")
    assert not np.array_equal(y, ours(x)[0])

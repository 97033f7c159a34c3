"""Arguments: whatever is passed, a call computes what it means or raises a TypeError or ValueError that names it."""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from bitwise import assert_same, copied
from cases import EMPTY_CASES, LAYERS, Case, Inputs, make_inputs, make_layer, small_cases
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import as_tuple, run_library
from spoiled import SPOILED, misaligned, raises, spaced

import fusedrnn as fr
from fusedrnn import _core

T, B, F, H = 4, 3, 2, 5
REFUSED = (TypeError, ValueError, MemoryError)


def zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


def make_lstm(**options: Any) -> Any:
    return fr.LSTM(F, H, 2, bidirectional=True, seed=0, **options)


def lstm_state() -> tuple[np.ndarray, np.ndarray]:
    return zeros(4, B, H), zeros(4, B, H)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("name", ["x", "state", "out"])
def test_arrays_of_a_forward_call(name: str, how: str, training: bool) -> None:
    layer = make_lstm()
    arguments: dict[str, Any] = {"x": zeros(T, B, F), "state": lstm_state(), "out": zeros(T, B, 2 * H)}
    spoil, error = SPOILED[how]
    if name == "state":
        arguments["state"] = (arguments["state"][0], spoil(arguments["state"][1]))
    else:
        arguments[name] = spoil(arguments[name])
    with raises(error, name):
        (layer.forward if training else layer)(**arguments)


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("name", ["dy", "dstate"])
def test_arrays_of_a_backward_call(name: str, how: str) -> None:
    layer = make_lstm()
    tape = layer.forward(zeros(T, B, F))[2]
    arguments: dict[str, Any] = {"dy": zeros(T, B, 2 * H), "dstate": lstm_state()}
    spoil, error = SPOILED[how]
    if name == "dstate":
        arguments["dstate"] = (spoil(arguments["dstate"][0]), arguments["dstate"][1])
    else:
        arguments[name] = spoil(arguments[name])
    with raises(error, name):
        layer.backward(tape, **arguments)


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("name", ["x", "state", "dstate"])
def test_arrays_of_a_cell(name: str, how: str) -> None:
    cell = fr.GRUCell(F, H, seed=0)
    spoil, error = SPOILED[how]
    x, state = zeros(B, F), zeros(B, H)
    if how == "one axis less" and name == "x":
        pytest.skip("a vector is an unbatched x")
    with raises(error, name):
        if name == "dstate":
            cell.backward(cell.forward(x, state)[1], spoil(state))
        elif name == "x":
            cell(spoil(x), state)
        else:
            cell.forward(x, spoil(state))


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l1_reverse", "bias_hh_l1"])
def test_replaced_parameters(name: str, how: str) -> None:
    layer = make_lstm()
    if how == "one axis less" and name.startswith("bias"):
        pytest.skip("a bias has one axis")
    spoil, error = SPOILED[how]
    layer.parameters[name] = spoil(layer.parameters[name])
    for call in (layer, layer.forward):
        with pytest.raises(error, match=name):
            call(zeros(T, B, F))


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("name", ["weight_ih_l0", "bias_hh_l1"])
def test_gradients_to_add_to(name: str, how: str) -> None:
    layer = make_lstm()
    if how == "one axis less" and name.startswith("bias"):
        pytest.skip("a bias has one axis")
    tape = layer.forward(zeros(T, B, F))[2]
    grads = layer.backward(tape)
    spoil, error = SPOILED[how]
    grads.parameters[name] = spoil(grads.parameters[name])
    with pytest.raises(error, match=name):
        layer.backward(tape, grads=grads)


@pytest.mark.parametrize("how", [how for how in SPOILED if how != "byte order"])  # ml_dtypes has one
@pytest.mark.parametrize("name", ["x", "state[0]", "state[1]", "out", "dy", "dstate[0]", "dstate[1]", "weight_hh_l1"])
def test_arrays_of_a_bfloat16_layer(name: str, how: str) -> None:
    layer = make_lstm(dtype="bfloat16")
    spoil, error = SPOILED[how]
    base, half = name[:-3] if name.endswith("]") else name, int(name[-2]) if name.endswith("]") else None
    state = (zeros(4, B, H, dtype="bfloat16"), zeros(4, B, H))
    arguments: dict[str, Any] = {"x": zeros(T, B, F, dtype="bfloat16"), "state": state, "dstate": state}
    arguments |= {"out": zeros(T, B, 2 * H, dtype="bfloat16"), "dy": zeros(T, B, 2 * H, dtype="bfloat16")}
    tape = layer.forward(arguments["x"])[2]
    if half is not None:
        arguments[base] = tuple(spoil(part) if k == half else part for k, part in enumerate(state))
    elif base == "weight_hh_l1":
        layer.parameters[base] = spoil(layer.parameters[base])
    else:
        arguments[base] = spoil(arguments[base])
    with pytest.raises(error, match=re.escape(name)):
        if base in ("dy", "dstate"):
            layer.backward(tape, arguments["dy"], arguments["dstate"])
        else:
            layer(arguments["x"], arguments["state"], out=arguments["out"])


@pytest.mark.parametrize("kind", [fr.LSTM, fr.LSTMCell])
def test_c_of_bfloat16_is_float32(kind: Any) -> None:
    layer, narrow, wide = kind(F, H, dtype="bfloat16"), *(zeros(1, B, H, dtype=d) for d in ("bfloat16", "float32"))
    x = zeros(1, B, F, dtype="bfloat16")
    if kind is fr.LSTMCell:
        x, narrow, wide = x[0], narrow[0], wide[0]
    for state, message in (
        ((narrow, narrow), r"state\[1\] must be an array of float32, not of bfloat16; pass .*astype\(np.float32\)$"),
        (
            (wide, wide),
            r"state\[0\] must be an array of bfloat16, not of float32; pass .*astype\(.bfloat16.\)",
        ),
        ((narrow, wide.astype(np.float64)), r"state\[1\] must be an array of float32, not of float64"),
    ):
        for call in (layer, layer.forward):
            with pytest.raises(TypeError, match=message):
                call(x, state)
    layer(x, (narrow, wide))


def test_a_missing_or_unknown_parameter_is_named() -> None:
    layer = make_lstm()
    whole = dict(layer.parameters)
    del layer.parameters["bias_ih_l1"]
    with pytest.raises(ValueError, match="bias_ih_l1"):
        layer(zeros(T, B, F))
    layer.parameters.update(whole, extra=zeros(3))
    with pytest.raises(ValueError, match="extra"):
        layer(zeros(T, B, F))
    del layer.parameters["extra"]
    layer(zeros(T, B, F))


def test_read_only_gradients_are_refused() -> None:
    layer = make_lstm()
    tape = layer.forward(zeros(T, B, F))[2]
    grads = layer.backward(tape)
    grads.parameters["weight_hh_l0"].flags.writeable = False
    with pytest.raises(ValueError, match=r"weight_hh_l0.*writable"):
        layer.backward(tape, grads=grads)


def test_gradients_must_not_overlap() -> None:
    layer = make_lstm()
    tape = layer.forward(zeros(T, B, F))[2]
    grads = layer.backward(tape)
    grads.parameters["bias_hh_l0"] = grads.parameters["bias_ih_l0"]
    with pytest.raises(ValueError, match="bias_hh_l0"):
        layer.backward(tape, grads=grads)
    grads.parameters["bias_hh_l0"] = layer.parameters["bias_hh_l0"]
    with pytest.raises(ValueError, match="bias_hh_l0"):
        layer.backward(tape, grads=grads)


@pytest.mark.parametrize("grads", [{}, 1, "grads", (), zeros(3)])
def test_grads_must_be_gradients(grads: Any) -> None:
    layer = make_lstm()
    with raises(TypeError, "grads"):
        layer.backward(layer.forward(zeros(T, B, F))[2], grads=grads)


LENGTHS: list[tuple[Any, type[Exception]]] = [
    ([1.0, 2.0, 3.0], TypeError),
    (np.array([1.0, 2.0, 3.0]), TypeError),
    (np.array([True, False, True]), TypeError),
    ([True, False, True], TypeError),
    (np.array(["1", "2", "3"]), TypeError),
    (np.array([1, 2, 3], object), TypeError),
    (np.ma.masked_array([1, 2, 3], [False, True, False]), TypeError),
    (np.ma.masked_array([1, 2, 3]), TypeError),
    ([1, 2, np.ma.masked], TypeError),
    ([1, 2, np.array([3])], TypeError),
    ([1, None, 2], TypeError),
    (3, TypeError),
    ("123", TypeError),
    ({1, 2, 3}, TypeError),
    ([[1], [2], [3]], TypeError),
    ([1, 2], ValueError),
    ([1, 2, 3, 4], ValueError),
    (np.array([[1, 2, 3]]), ValueError),
    (np.array(3), ValueError),
    ([1, 2, -1], ValueError),
    ([1, 2, T + 1], ValueError),
    ([1, 2, 2**40], ValueError),
    ([1, 2, 2**64], ValueError),
    ([1, 2, -(2**80)], ValueError),
    (np.array([1, 2, 2**63 + 1], np.uint64), ValueError),
    (np.array([1, 2, 2**32 + 1], np.int64), ValueError),
]


@pytest.mark.parametrize(("lengths", "error"), LENGTHS)
def test_lengths(lengths: Any, error: type[Exception]) -> None:
    for call in (make_lstm(), make_lstm().forward):
        with raises(error, "lengths"):
            call(zeros(T, B, F), lengths=lengths)


@pytest.mark.parametrize("dtype", ["i1", "u1", ">i2", "u2", "i4", ">u4", "i8", ">i8", "u8"])
def test_lengths_of_any_integer_type(dtype: str, rng: np.random.Generator) -> None:
    layer, x = make_lstm(), rng.standard_normal((T, B, F)).astype(np.float32)
    expected = layer(x, lengths=[4, 0, 2])
    assert_same(layer(x, lengths=np.array([4, 0, 2], dtype)), expected)
    assert_same(layer(x, lengths=misaligned(np.array([4, 0, 2], dtype))), expected)
    assert_same(layer(x, lengths=np.array([2, 9, 0, 9, 4], dtype)[::-2]), expected)


RESETS: list[tuple[Any, type[Exception]]] = [
    (zeros(T, B, dtype=np.uint8), TypeError),
    (zeros(T, B), TypeError),
    (zeros(T, B, dtype=object), TypeError),
    ([[False] * B] * T, TypeError),
    (True, TypeError),
    (zeros(B, T, dtype=bool), ValueError),
    (zeros(T, dtype=bool), ValueError),
    (zeros(T, B, 1, dtype=bool), ValueError),
    (np.array(True), ValueError),
    (np.ma.masked_array(zeros(T, B, dtype=bool)), TypeError),
]


@pytest.mark.parametrize(("reset", "error"), RESETS)
def test_reset(reset: Any, error: type[Exception]) -> None:
    for call in (make_lstm(), make_lstm().forward):
        with raises(error, "reset"):
            call(zeros(T, B, F), reset=reset)


STATES: list[tuple[Any, type[Exception]]] = [
    (zeros(4, B, H), TypeError),
    ((zeros(4, B, H),), ValueError),
    ((zeros(4, B, H),) * 3, ValueError),
    ((), ValueError),
    ((zeros(4, B, H), None), TypeError),
    ((None, None), TypeError),
    ({"h": zeros(4, B, H)}, TypeError),
    ("hc", TypeError),
    ((zeros(2, B, H), zeros(2, B, H)), ValueError),
    ((zeros(4, H), zeros(4, H)), ValueError),
    ((zeros(B, 4, H), zeros(B, 4, H)), ValueError),
]


@pytest.mark.parametrize(("state", "error"), STATES)
def test_state(state: Any, error: type[Exception]) -> None:
    for call in (make_lstm(), make_lstm().forward):
        with raises(error, "state"):
            call(zeros(T, B, F), state)


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("name", ["weight", "bias", "x"])
def test_arrays_of_a_readout(name: str, how: str) -> None:
    arguments = {"x": zeros(B, H), "weight": zeros(7, H), "bias": zeros(7), "targets": np.zeros(B, int)}
    spoil, error = SPOILED[how]
    arguments[name] = spoil(arguments[name])
    if (name, how) == ("x", "other width"):
        # The first argument says what the dtype is; the second does not agree.
        name = "weight"
    elif (name, how) in (("x", "one axis less"), ("x", "longer")):
        name = "weight"
    elif (name, how) == ("x", "one axis more"):
        name = "targets"
    elif (name, how) == ("bias", "one axis less"):
        pytest.skip("a bias has one axis")
    with raises(error, name):
        fr.linear_cross_entropy(**arguments)


TARGETS: list[tuple[Any, type[Exception]]] = [
    ([0, 1, 2], TypeError),
    (zeros(B), TypeError),
    (zeros(B, dtype=bool), TypeError),
    (zeros(B, dtype=object), TypeError),
    (np.ma.masked_array([0, 1, 0]), TypeError),
    (None, TypeError),
    (np.array([0, 7, 0]), ValueError),
    (np.array([0, -1, 0]), ValueError),
    (np.array([0, 2**63 + 5, 0], np.uint64), ValueError),
    (np.array([0, 2**64 - 100, 0], np.uint64), ValueError),
    (np.array([0, -(2**63), 0]), ValueError),
    (np.array(0), ValueError),
    (np.zeros((B, 1), int), ValueError),
    (np.zeros(B + 1, int), ValueError),
]


@pytest.mark.parametrize(("targets", "error"), TARGETS)
def test_targets(targets: Any, error: type[Exception]) -> None:
    for call in (fr.linear_cross_entropy, fr.linear_cross_entropy_forward):
        with raises(error, "targets"):
            call(zeros(B, H), zeros(7, H), None, targets)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        *[("reduction", bad, ValueError) for bad in ("max", "", "Mean")],
        *[("reduction", bad, TypeError) for bad in (None, 1, b"mean")],
        *[("ignore_index", bad, TypeError) for bad in (None, 1.5, "1", True)],
        *[("ignore_index", bad, ValueError) for bad in (2**63, -(2**70))],
    ],
)
def test_options_of_a_readout(name: str, value: Any, error: type[Exception]) -> None:
    with raises(error, name):
        fr.linear_cross_entropy(zeros(B, H), zeros(7, H), None, np.zeros(B, int), **{name: value})


def test_lengths_need_a_batch() -> None:
    with raises(ValueError, "lengths"):
        make_lstm()(zeros(T, F), lengths=[3])


def test_a_state_of_one_array_is_no_pair() -> None:
    with raises(TypeError, "state"):
        fr.GRU(F, H)(zeros(T, B, F), (zeros(1, B, H), zeros(1, B, H)))


@pytest.mark.parametrize("tape", [_core.Tape, _core.operations["linear_cross_entropy"].Tape])
def test_tapes_are_made_by_forward_only(tape: Any) -> None:
    for make in (tape, lambda: tape.__new__(tape)):
        with pytest.raises(TypeError):
            make()


@pytest.mark.parametrize(("key", "error"), [("\ud800", ValueError), ("other", ValueError), (5, TypeError)])
def test_parameters_have_no_other_keys(key: Any, error: type[Exception]) -> None:
    layer = fr.LSTM(3, 4)
    layer.parameters[key] = layer.parameters["bias_ih_l0"]
    with pytest.raises(error, match="parameters"):
        layer(np.zeros((5, 2, 3), np.float32))


def test_tapes_belong_to_their_layer() -> None:
    first, second, cell = make_lstm(), make_lstm(), fr.LSTMCell(F, H)
    tape = first.forward(zeros(T, B, F))[2]
    for other, wrong in ((second, tape), (cell, tape), (first, cell.forward(zeros(B, F))[1])):
        with raises(ValueError, "tape"):
            other.backward(wrong)
    for wrong in (None, 1, (tape,), fr.Gradients):
        with raises(TypeError, "tape"):
            first.backward(wrong)
        with raises(TypeError, "tape"):
            fr.linear_cross_entropy_backward(wrong)


def overlapping(what: str) -> tuple[Any, dict[str, Any]]:
    """A layer, and arguments in which out shares memory with `what`."""
    layer = fr.GRU(H, H, seed=0)
    x, state, out = zeros(T, B, H), zeros(1, B, H), zeros(T, B, H)
    if what == "x":
        out = x
    elif what == "state":
        out[...] = 0
        state = out[2:3]
    elif what == "one element of x":
        buffer = zeros(2 * T * B * H)
        x, out = buffer[: T * B * H].reshape(T, B, H), buffer[T * B * H - 1 : -1].reshape(T, B, H)
    elif what == "a parameter":
        buffer = zeros(3 * H * H)
        layer.parameters["weight_hh_l0"] = buffer.reshape(3 * H, H)
        out = buffer[: T * B * H].reshape(T, B, H)
    elif what == "itself":
        out = np.lib.stride_tricks.as_strided(zeros(T * B * H), (T, B, H), (4 * H, 4 * H, 4))
    elif what == "its rows":
        out = np.broadcast_to(zeros(T, 1, H), (T, B, H))
        out.flags.writeable = True
    return layer, {"x": x, "state": state, "out": out}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("what", ["x", "state", "one element of x", "a parameter", "itself", "its rows"])
def test_out_must_not_overlap(what: str) -> None:
    layer, arguments = overlapping(what)
    for call in (layer, layer.forward):
        with raises(ValueError, "out"):
            call(**arguments)


def test_out_beside_x_in_one_buffer_will_do(rng: np.random.Generator) -> None:
    layer = fr.GRU(H, H, seed=0)
    buffer = rng.standard_normal((T, B, 2 * H)).astype(np.float32)
    expected = layer(buffer[..., :H].copy())
    assert_same(layer(buffer[..., :H], out=buffer[..., H:]), expected)


def test_read_only_out_is_refused() -> None:
    out = zeros(T, B, 2 * H)
    out.flags.writeable = False
    with raises(ValueError, "out"):
        make_lstm()(zeros(T, B, F), out=out)


CONSTRUCTORS = [fr.RNN, fr.LSTM, fr.GRU, fr.RNNCell, fr.LSTMCell, fr.GRUCell]
BAD_OPTIONS: list[tuple[str, Any, type[Exception]]] = [
    *[(name, bad, TypeError) for name in ("input_size", "hidden_size") for bad in (1.0, "1", None, True, [1], 1j)],
    *[(name, bad, ValueError) for name in ("input_size", "hidden_size") for bad in (0, -1, 2**40, 2**63, 2**70)],
    *[
        ("dtype", bad, (TypeError, ValueError))
        for bad in (None, "float16", "\ud800", "int32", ">f4", int, 4, object, zeros(2))
    ],
    *[("device", bad, ValueError) for bad in ("cuda", "cuda:1", "gpu", "")],
    ("device", 0, TypeError),
    *[("seed", bad, TypeError) for bad in (1.5, "1", True, [1])],
    *[("seed", bad, ValueError) for bad in (-1, 2**64, 2**80)],
    *[("bias", bad, TypeError) for bad in (0, 1, None, "yes", 1.0)],
    *[("clip", bad, TypeError) for bad in ("1", True, 1j, [1.0])],
    *[("clip", bad, ValueError) for bad in (0, -1.0, np.nan, np.inf, 1e39, 1e-39, 10**400)],
]
BAD_LAYER_OPTIONS: list[tuple[str, Any, type[Exception]]] = [
    *[("num_layers", bad, TypeError) for bad in (1.0, "1", None, True)],
    *[("num_layers", bad, ValueError) for bad in (0, -1, 2**31, 2**64)],
    *[("dropout", bad, TypeError) for bad in ("0.5", None, True, 1j, [0.5])],
    *[("dropout", bad, ValueError) for bad in (-0.1, 1.1, np.nan, np.inf, 10**400)],
    *[(name, bad, TypeError) for name in ("batch_first", "bidirectional", "reverse") for bad in (0, None, "yes")],
]
BAD_VARIANTS: list[tuple[Any, str, Any, type[Exception]]] = [
    *[
        (kind, "nonlinearity", bad, error)
        for kind in (fr.RNN, fr.RNNCell)
        for bad, error in (("sigmoid", ValueError), (None, TypeError), (1, TypeError))
    ],
    *[
        (kind, name, bad, TypeError)
        for kind in (fr.LSTM, fr.LSTMCell)
        for name in ("peephole", "coupled")
        for bad in (1, None, "yes")
    ],
    *[(kind, "reset_after", bad, TypeError) for kind in (fr.GRU, fr.GRUCell) for bad in (1, None, "yes")],
]


@pytest.mark.parametrize(
    ("kind", "name", "value", "error"),
    [
        *[(kind, *bad) for kind in CONSTRUCTORS for bad in BAD_OPTIONS],
        *[(kind, *bad) for kind in CONSTRUCTORS[:3] for bad in BAD_LAYER_OPTIONS],
        *BAD_VARIANTS,
    ],
)
def test_options(kind: Any, name: str, value: Any, error: Any) -> None:
    with raises(error, name):
        kind(**{"input_size": F, "hidden_size": H, name: value})


def test_reverse_is_one_direction() -> None:
    with raises(ValueError, "reverse"):
        fr.GRU(F, H, bidirectional=True, reverse=True)
    with raises(ValueError, "reverse"):
        fr.GRU(F, H, reverse=True).stream()


def test_integers_of_numpy_are_integers() -> None:
    layer = fr.LSTM(np.int64(F), np.uint8(H), np.int16(2), dropout=np.float32(0.5), seed=np.uint64(3))
    assert (layer.input_size, layer.hidden_size, layer.num_layers, layer.dropout) == (F, H, 2, 0.5)


ENDLESS: list[Any] = []
ENDLESS.append({"inner": ENDLESS})

FUNCTION_ERRORS: list[tuple[Callable[[], Any], str, Any]] = [
    (lambda: fr.set_num_threads(0), "n", ValueError),
    (lambda: fr.set_num_threads(-3), "n", ValueError),
    (lambda: fr.set_num_threads(1.5), "n", TypeError),
    (lambda: fr.set_num_threads("2"), "n", TypeError),
    (lambda: fr.set_num_threads(True), "n", TypeError),
    (lambda: fr.set_num_threads(2**70), "n", ValueError),
    (lambda: fr.clip_grad_norm(1, 1.0), "grads", TypeError),
    (lambda: fr.clip_grad_norm("abc", 1.0), "grads", TypeError),
    (lambda: fr.clip_grad_norm([zeros(2), 3.0], 1.0), "grads", TypeError),
    (lambda: fr.clip_grad_norm(ENDLESS, 1.0), "grads", ValueError),
    (lambda: fr.clip_grad_norm([np.zeros(2, int)], 1.0), "grads", TypeError),
    (lambda: fr.clip_grad_norm([np.ma.masked_array(zeros(2))], 1.0), "grads", TypeError),
    (lambda: fr.clip_grad_norm([zeros(2)], -1.0), "max_norm", ValueError),
    (lambda: fr.clip_grad_norm([zeros(2)], np.nan), "max_norm", ValueError),
    (lambda: fr.clip_grad_norm([zeros(2)], "1"), "max_norm", TypeError),
    (lambda: fr.clip_grad_norm([zeros(2)], None), "max_norm", TypeError),
    (lambda: fr.clip_grad_norm([np.broadcast_to(zeros(1), 4)], 1.0), "grads", ValueError),
    (lambda: fr.tbptt_windows(zeros(4), window=0), "window", ValueError),
    (lambda: fr.tbptt_windows(zeros(4), window=1.5), "window", TypeError),
    (lambda: fr.tbptt_windows(window=1), "arrays", ValueError),
    (lambda: fr.tbptt_windows([1, 2], window=1), "arrays", TypeError),
    (lambda: fr.tbptt_windows(zeros(4), np.ma.masked_array(zeros(4)), window=1), "arrays", TypeError),
    (lambda: fr.tbptt_windows(zeros(4), zeros(5), window=1), "arrays", ValueError),
    (lambda: fr.tbptt_windows(zeros(), window=1), "arrays", ValueError),
    (lambda: fr.init.uniform_(3), "layer", TypeError),
    (lambda: fr.init.orthogonal_(None), "layer", TypeError),
    (lambda: fr.init.forget_bias_("lstm"), "layer", TypeError),
    (lambda: fr.init.forget_bias_(fr.GRU(F, H)), "layer", ValueError),
    (lambda: fr.init.forget_bias_(fr.LSTM(F, H, bias=False)), "layer", ValueError),
    (lambda: fr.init.forget_bias_(fr.LSTM(F, H), np.nan), "value", ValueError),
    (lambda: fr.init.forget_bias_(fr.LSTM(F, H), "1"), "value", TypeError),
    (lambda: fr.init.uniform_(fr.LSTM(F, H), -1), "seed", ValueError),
    (lambda: fr.init.orthogonal_(fr.LSTM(F, H), 0.5), "seed", TypeError),
    (lambda: fr.LSTM(F, H).load_parameters(3), "mapping", TypeError),
    (lambda: fr.LSTM(F, H).load_parameters({}, convert=1), "convert", TypeError),
    (lambda: fr.LSTM(F, H).load_parameters({}), "mapping", ValueError),
    (lambda: fr.LSTM(F, H).to(device="cuda"), "device", ValueError),
    (lambda: fr.LSTM(F, H).to(dtype="float16"), "dtype", ValueError),
    (lambda: fr.AttentionDecoder(F, H, 3, 4, dtype="bfloat16"), "dtype", ValueError),
    (lambda: fr.AttentionDecoder(F, H, 3, 4).to(dtype="bfloat16"), "dtype", ValueError),
]


@pytest.mark.parametrize(("call", "name", "error"), FUNCTION_ERRORS)
def test_other_functions(call: Callable[[], Any], name: str, error: Any) -> None:
    with raises(error, name):
        call()


@pytest.mark.parametrize("dtype", ["float32", np.float32, np.dtype("f8"), float, "f4", "<f8", "double"])
def test_dtypes_that_mean_float(dtype: Any) -> None:
    assert fr.GRU(F, H, dtype=dtype).dtype == np.dtype(dtype)


def test_bfloat16_by_name_type_and_dtype() -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    for dtype in ("bfloat16", bfloat16, np.dtype(bfloat16)):
        layer = fr.GRU(F, H, dtype=dtype)
        assert layer.dtype == bfloat16 and repr(layer) == "GRU(2, 5, reset_after=True, dtype='bfloat16')"


def test_bfloat16_without_ml_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ValueError, match=r"dtype 'bfloat16' needs ml_dtypes: pip install 'fusedrnn\[bfloat16\]'"):
        fr.LSTM(F, H, dtype="bfloat16")


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    "dloss",
    [
        None,
        "1",
        1j,
        np.complex64(1),
        np.array(None),
        np.array("a"),
        10**400,
        [1.0] * B,
        zeros(B + 1),
        {},
        np.ma.zeros(()),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_dloss(dloss: Any, reduction: str) -> None:
    tape = fr.linear_cross_entropy_forward(zeros(B, H), zeros(7, H), None, np.zeros(B, int), reduction=reduction)[1]
    with raises((TypeError, ValueError), "dloss"):
        fr.linear_cross_entropy_backward(tape, dloss)


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "reversed": lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
    "every second": lambda a: np.repeat(np.repeat(a, 2, 0), 3, 1)[::2, ::3],
    "padded": lambda a: np.pad(a, [(1, 2)] * a.ndim)[tuple(slice(1, -2) for _ in a.shape)],
    "other order": lambda a: a.swapaxes(0, 1).copy().swapaxes(0, 1),
    "byte offset": lambda a: np.frombuffer(b"1234" * 2 + a.tobytes(), a.dtype, offset=8).reshape(a.shape),
}


def relaid(inputs: Inputs, layout: Callable[[np.ndarray], np.ndarray]) -> Inputs:
    def state(value: Any) -> Any:
        return tuple(layout(part) for part in value) if isinstance(value, tuple) else layout(value)

    reset = None if inputs.reset is None else layout(inputs.reset)
    return Inputs(layout(inputs.x), state(inputs.state), inputs.lengths, reset, layout(inputs.dy), state(inputs.dstate))


STRIDED = small_cases(dtype="float32", num_layers=2, directions=2, ragged=True, reset=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", STRIDED)
def test_strides_are_read_as_they_are(case: Case, layout: str, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    assert_same(run_library(layer, relaid(inputs, LAYOUTS[layout])), run_library(layer, inputs))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("case", small_cases(dtype="float64"))
def test_broadcast_inputs(case: Case, axis: int, rng: np.random.Generator) -> None:
    def widened(array: np.ndarray) -> np.ndarray:
        return np.broadcast_to(np.take(array, [0], axis), array.shape)

    def state(value: Any) -> Any:
        return tuple(widened(part) for part in value) if isinstance(value, tuple) else widened(value)

    layer, inputs = make_layer(case), make_inputs(case, rng)
    broadcast = Inputs(
        widened(inputs.x),
        state(inputs.state),
        None,
        widened(zeros(case.time, case.batch, dtype=bool)),
        widened(inputs.dy),
        state(inputs.dstate),
    )
    plain = Inputs(**copied({name: getattr(broadcast, name) for name in inputs.__dict__}))
    assert_same(run_library(layer, broadcast), run_library(layer, plain))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", LAYERS)
def test_last_axes_of_one_element_may_have_any_stride(cell: str, dtype: str, rng: np.random.Generator) -> None:
    case = Case(cell, 1, 1, dtype, 4, 3, 1, 1)
    layer, inputs = make_layer(case), make_inputs(case, rng)
    assert_same(run_library(layer, relaid(inputs, lambda a: np.repeat(a, 3, -1)[..., ::3])), run_library(layer, inputs))


@pytest.mark.parametrize("case", EMPTY_CASES)
def test_no_steps_or_no_rows(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    for lengths in (None, np.zeros(case.batch, int)):
        result = run_library(layer, dataclasses.replace(inputs, lengths=lengths))
        assert result.y.shape == inputs.dy.shape
        assert result.dx.shape == inputs.x.shape
        assert_same((result.state, result.dstate), (inputs.state, inputs.dstate))
        for name, gradient in result.parameters.items():
            assert gradient.shape == layer.parameters[name].shape
            assert not gradient.any()


@pytest.mark.parametrize("case", small_cases(dtype="float32", num_layers=2, directions=2, reset=True))
def test_rows_without_steps(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    result = run_library(layer, dataclasses.replace(inputs, lengths=np.zeros(case.batch, int)))
    assert_same((result.state, result.dstate), (inputs.state, inputs.dstate))
    for array in (result.y, result.dx, *result.parameters.values()):
        assert not array.any()


@pytest.mark.parametrize("kind", CONSTRUCTORS[3:])
def test_cells_without_rows(kind: Any) -> None:
    cell = kind(F, H)
    state, tape = cell.forward(zeros(0, F))
    grads = cell.backward(tape, state)
    assert {part.shape for part in as_tuple(state)} == {(0, H)}
    assert grads.x.shape == (0, F)
    assert not any(gradient.any() for gradient in grads.parameters.values())


def test_a_parameter_edited_in_place_shows_at_the_next_call(rng: np.random.Generator) -> None:
    for case in small_cases(num_layers=2, directions=2):
        layer, other = make_layer(case), make_layer(case)
        inputs = make_inputs(case, rng)
        for name, array in layer.parameters.items():
            before = run_library(layer, inputs).y
            array *= 0.75
            other.parameters[name] = array.copy()
            result = run_library(layer, inputs)
            assert (result.y != before).any(), name
            assert_same(result, run_library(other, inputs), name)


# Everything that may be passed for an array, a number or anything else.
def wild_arrays(shapes: tuple[tuple[int, ...], ...]) -> st.SearchStrategy[Any]:
    dtypes = ["f4", "f8", ">f4", ">f8", "f2", "g", "i4", "i8", "u8", "?", "c8", "O", "S3", "U2", "M8[s]", "f4,f4"]
    layouts: list[Callable[[np.ndarray], Any]] = [
        lambda a: a,
        lambda a: a[::-1],
        lambda a: a[..., ::-1],
        lambda a: a.T,
        spaced,
        misaligned,
        lambda a: np.broadcast_to(a[:1], a.shape),
        lambda a: np.asfortranarray(a),
        lambda a: np.ma.masked_array(a),
        lambda a: a.view(np.recarray),
        lambda a: a.astype(a.dtype, copy=True).setflags(write=False) or a,
    ]
    sizes = st.integers(0, 6)
    anything = st.lists(sizes, min_size=0, max_size=4).map(tuple)

    @st.composite
    def draw_array(draw: Callable[[Any], Any]) -> Any:
        shape = draw(st.one_of(st.sampled_from(shapes), st.sampled_from(shapes), anything))
        # Mostly of the right type: otherwise every check but the first goes untried.
        dtype = draw(st.one_of(st.just("f4"), st.just("f4"), st.sampled_from(dtypes)))
        layout = draw(st.one_of(st.just(layouts[0]), st.sampled_from(layouts)))
        array = np.zeros(shape, dtype)
        try:
            return layout(array)
        except (TypeError, ValueError, IndexError):
            return array

    return draw_array()


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, -1, 2**31, 2**31 - 1, 2**32, 2**63, -(2**63), 2**64, 10**400]),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.just(()),
    st.just({}),
    st.just(object),
    st.just(np.float32(1)),
    st.just(np.array(None)),
    st.just(np.datetime64("nat")),
).map(lambda value: value)  # of one branch, however many kinds there are


def fills_memory(size: Any) -> bool:
    """Whether a layer of that size could be made, and take gigabytes: larger ones are refused at once."""
    return isinstance(size, int) and 2**10 < size < 2**31 - 1


WILD_SIZE = ODD.filter(lambda value: not fills_memory(value))


def mostly(good: Any, wild: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A good argument three times out of four: a call of which everything is wild fails at its first check."""
    chosen = good if isinstance(good, st.SearchStrategy) else st.just(good)
    return st.integers(0, 3).flatmap(lambda number: wild if number == 3 else chosen)


FEW = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def outcome(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The call's result, or None where it refused its arguments in one of the ways it may."""
    try:
        return call(*arguments, **options)
    except REFUSED as error:
        assert str(error), "an error without a message"
        return None


SEQUENCES = ((T, B, F), (T, F), (0, B, F), (T, 0, F), (T, B, 2 * H), (T, 2 * H))
STATE_SHAPES = ((4, B, H), (4, H), (4, 0, H), (B, 4, H))
WILD_STATE = st.one_of(
    st.none(),
    st.tuples(wild_arrays(STATE_SHAPES), wild_arrays(STATE_SHAPES)),
    st.tuples(wild_arrays(STATE_SHAPES), st.none()),
    st.lists(wild_arrays(STATE_SHAPES), max_size=3),
    wild_arrays(STATE_SHAPES),
    ODD,
)
WILD_LENGTHS = st.one_of(
    st.none(),
    st.lists(st.one_of(st.integers(-1, T + 1), ODD), max_size=4),
    st.lists(st.integers(0, T), min_size=B, max_size=B),
    st.builds(
        lambda numbers, dtype: np.array(numbers).astype(dtype),
        st.lists(st.integers(-2, T + 1), max_size=4),
        st.sampled_from(["i1", "u1", ">i8", "f4", "?"]),
    ),
    ODD,
)
WILD_RESET = st.one_of(st.none(), st.just(zeros(T, B, dtype=bool)), wild_arrays(((T, B), (T,), (B, T))), ODD)


@FEW
@given(
    x=mostly(zeros(T, B, F), st.one_of(wild_arrays(SEQUENCES[:4]), ODD)),
    state=mostly(lstm_state(), WILD_STATE),
    lengths=mostly(st.lists(st.integers(0, T), min_size=B, max_size=B), WILD_LENGTHS),
    reset=mostly(None, WILD_RESET),
    out=mostly(None, st.one_of(wild_arrays(SEQUENCES[2:]), ODD)),
    dy=st.one_of(st.none(), wild_arrays(SEQUENCES), ODD),
    dstate=WILD_STATE,
    grads=mostly(None, ODD),
    batch_first=st.booleans(),
)
def test_wild_sequences(
    x: Any, state: Any, lengths: Any, reset: Any, out: Any, dy: Any, dstate: Any, grads: Any, batch_first: bool
) -> None:
    layer = make_lstm(batch_first=batch_first)
    outcome(layer, x, state, lengths, reset, out)
    result = outcome(layer.forward, x, state, lengths, reset, out)
    if result is not None:
        outcome(layer.backward, result[2], dy, dstate, grads)


# A good call with one or two arguments exchanged comes further than one in which everything is wild.
GOOD: dict[str, Any] = {"x": zeros(T, B, F), "state": lstm_state(), "lengths": [4, 0, 2], "out": zeros(T, B, 2 * H)}
WILD: dict[str, st.SearchStrategy[Any]] = {
    "x": st.one_of(wild_arrays(SEQUENCES), ODD),
    "state": WILD_STATE,
    "lengths": WILD_LENGTHS,
    "reset": WILD_RESET,
    "out": st.one_of(wild_arrays(SEQUENCES), ODD),
}


@FEW
@given(st.data())
def test_a_good_call_with_wild_arguments(data: st.DataObject) -> None:
    layer = make_lstm()
    names = data.draw(st.lists(st.sampled_from(sorted(WILD)), min_size=1, max_size=2))
    arguments = {**GOOD, **{name: data.draw(WILD[name]) for name in names}}
    result = outcome(layer.forward, **arguments)
    if result is not None:
        outcome(layer.backward, result[2], data.draw(WILD["out"]), data.draw(WILD_STATE))
        assert result[0].shape[-1] == 2 * H


@FEW
@given(
    kind=st.sampled_from(CONSTRUCTORS),
    sizes=st.tuples(mostly(F, WILD_SIZE), mostly(H, WILD_SIZE)),
    options=st.dictionaries(
        st.sampled_from(
            [
                "num_layers",
                "bias",
                "batch_first",
                "dropout",
                "bidirectional",
                "reverse",
                "clip",
                "dtype",
                "device",
                "seed",
            ]
        ),
        st.one_of(ODD, st.integers(0, 3), st.floats(0, 1), st.just("cpu"), st.just("float64"), st.just(zeros(2))),
        max_size=3,
    ),
)
@pytest.mark.filterwarnings("ignore:dropout acts between layers")
def test_wild_constructors(kind: Any, sizes: tuple[Any, Any], options: dict[str, Any]) -> None:
    layer = outcome(kind, *sizes, **options)
    if layer is not None:
        assert layer.dtype in (np.float32, np.float64)
        assert all(array.dtype == layer.dtype for array in layer.parameters.values())


@FEW
@given(
    x=mostly(zeros(B, F), st.one_of(wild_arrays(((B, F), (F,), (0, F))), ODD)),
    state=mostly(None, st.one_of(wild_arrays(((B, H), (H,), (0, H))), ODD)),
    dstate=st.one_of(st.none(), wild_arrays(((B, H), (H,), (0, H))), ODD),
)
def test_wild_cells(x: Any, state: Any, dstate: Any) -> None:
    cell = fr.GRUCell(F, H, seed=0)
    outcome(cell, x, state)
    result = outcome(cell.forward, x, state)
    if result is not None:
        outcome(cell.backward, result[1], dstate)


@FEW
@given(
    x=mostly(zeros(B, H), st.one_of(wild_arrays(((B, H), (T, B, H), (H,), (0, H))), ODD)),
    weight=mostly(zeros(7, H), st.one_of(wild_arrays(((7, H), (0, H), (1, H))), ODD)),
    bias=mostly(zeros(7), st.one_of(st.none(), wild_arrays(((7,), (1,), (0,))), ODD)),
    targets=mostly(
        np.array([0, 6, -100]),
        st.one_of(
            st.lists(st.integers(-101, 8), max_size=4).map(np.array),
            wild_arrays(((B,), (T, B), ())),
            ODD,
        ),
    ),
    reduction=mostly(st.sampled_from(["mean", "sum", "none"]), ODD),
    ignore_index=mostly(-100, st.one_of(st.integers(-1, 8), ODD)),
    dloss=st.one_of(ODD, st.floats(), wild_arrays(((B,), (), (T, B)))),
)
@pytest.mark.filterwarnings("ignore")
def test_wild_readouts(
    x: Any, weight: Any, bias: Any, targets: Any, reduction: Any, ignore_index: Any, dloss: Any
) -> None:
    options = {"reduction": reduction, "ignore_index": ignore_index}
    outcome(fr.linear_cross_entropy, x, weight, bias, targets, **options)
    result = outcome(fr.linear_cross_entropy_forward, x, weight, bias, targets, **options)
    if result is not None:
        outcome(fr.linear_cross_entropy_backward, result[1], dloss)


@FEW
@given(
    mapping=st.one_of(
        ODD,
        st.dictionaries(
            st.sampled_from(["weight_ih", "weight_hh", "bias_ih", "bias_hh", "other"]),
            st.one_of(wild_arrays(((3 * H, F), (3 * H, H), (3 * H,))), ODD),
        ),
    ),
    convert=st.one_of(st.booleans(), ODD),
)
@pytest.mark.filterwarnings("ignore")
def test_wild_parameters(mapping: Any, convert: Any) -> None:
    cell = fr.GRUCell(F, H, seed=0)
    before = copied(cell.parameters)
    try:
        cell.load_parameters(mapping, convert=convert)
    except REFUSED:
        assert_same(cell.parameters, before)


@FEW
@given(first=st.one_of(ODD, st.lists(wild_arrays(((3,), (2, 2)))), wild_arrays(((3,),))), second=ODD)
@pytest.mark.filterwarnings("ignore")
def test_wild_helpers(first: Any, second: Any) -> None:
    before = fr.get_num_threads()
    try:
        outcome(fr.set_num_threads, second)
    finally:
        fr.set_num_threads(before)
    outcome(fr.clip_grad_norm, first, second)
    outcome(fr.tbptt_windows, *as_tuple(first), window=second)
    for function, last in itertools.product((fr.init.uniform_, fr.init.orthogonal_, fr.init.forget_bias_), (second,)):
        outcome(function, fr.LSTM(F, H, seed=0), last)
        outcome(function, first, last)
    outcome(fr.LSTM(F, H, seed=0).to, second, first)

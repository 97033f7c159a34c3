"""Frozen layers: the bits of the layer's own call, from the parameters as they were when it was frozen."""

from __future__ import annotations

import copy
import dataclasses
import gc
import itertools
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from bitwise import assert_same, threads
from cases import BFLOAT16_CASES, CASES, CLIP, EMPTY_CASES, LAYERS, Case, make_inputs, make_layer, small_cases
from devices import TestDevice
from guards import assert_guards_untouched, guarded
from isa_process import run_on
from spoiled import SPOILED, raises

import fusedrnn as fr
from fusedrnn import _core

# (T, B, I, H): single steps on both sides of every number of rows that changes how they run, short sequences, and
# sizes worth a team of threads.
SHAPES = (
    *((1, batch, 33, 17) for batch in (1, 2, 3, 5, 12, 13, 24, 25, 32, 33, 70)),
    *((time, batch, 7, 64) for time, batch in ((2, 1), (3, 4), (5, 1))),
    (1, 1, 7, 1),
    (1, 1, 31, 520),
    (2, 3, 65, 150),
)


def shaped_cases() -> list[Case]:
    """Every cell and dtype at every shape, with layers, directions, lengths, resets, masks and clip by turns."""
    cases = []
    for turn, (cell, dtype) in enumerate(itertools.product(LAYERS, ("float32", "float64", "bfloat16"))):
        for number, (time, batch, inputs, hidden) in enumerate(SHAPES, turn):
            if dtype == "bfloat16" and number % 3:  # the rules are float32's
                continue
            layers, directions, clip = 1 + number % 3, 1 + number % 2, CLIP if number % 5 == 0 else None
            case = Case(cell, layers, directions, dtype, time, batch, inputs, hidden, clip=clip)
            flags = {"ragged": number % 4 == 3, "reset": number % 7 == 6, "masked": number % 6 == 5}
            cases.append(dataclasses.replace(case, **flags))
    return cases


SHAPED = shaped_cases()
SMALL = small_cases(dtype="float32", num_layers=2, directions=2, hidden_size=17)


def assert_runs_as_the_layer(case: Case, **options: Any) -> None:
    """The runner of a layer, with 1, 2 and 3 threads and frozen with as many, against the layer's call."""
    layer, inputs = make_layer(case, **options), make_inputs(case, np.random.default_rng(case.seed))
    expected = layer(inputs.x, inputs.state, **inputs.sequence_options())
    for count in (1, 2, 3):
        with threads(count):
            runner = layer.freeze()
            for _ in range(2):  # a call's workspace is not what the next one needs
                found = runner(inputs.x, inputs.state, **inputs.sequence_options())
                assert_same(found, expected, f"{case.id}, {count} threads")


@pytest.mark.parametrize("case", CASES + EMPTY_CASES + BFLOAT16_CASES)
def test_the_bits_of_the_layers_call(case: Case) -> None:
    assert_runs_as_the_layer(case)


@pytest.mark.parametrize("case", SHAPED)
def test_the_bits_of_single_steps_and_short_sequences(case: Case) -> None:
    assert_runs_as_the_layer(case)


RUN_CASES = "import test_frozen as t; [t.assert_runs_as_the_layer(case) for case in t.SHAPED]"


@pytest.mark.parametrize("isa", _core.isas())
def test_the_bits_on_every_instruction_set(isa: str) -> None:
    run_on(isa, RUN_CASES, __file__)


@pytest.mark.parametrize("time", [1, 4])
@pytest.mark.parametrize("options", [{"bias": False}, {"dropout": 0.5}, {"bias": False, "dropout": 0.5}])
@pytest.mark.parametrize("case", SMALL)
def test_options_of_the_layer(case: Case, options: dict[str, Any], time: int) -> None:
    assert_runs_as_the_layer(dataclasses.replace(case, time=time), **options)


@pytest.mark.parametrize("time", [1, 5])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("cell", LAYERS)
def test_layouts(cell: str, batch_first: bool, time: int, rng: np.random.Generator) -> None:
    case = Case(cell, 2, 2, "float32", time, 3, 7, 17)
    layer, inputs = make_layer(case, batch_first=batch_first), make_inputs(case, rng)
    runner, x = layer.freeze(), inputs.x.swapaxes(0, 1) if batch_first else inputs.x
    assert_same(runner(x), layer(x))
    unbatched = np.ascontiguousarray(inputs.x[:, 0])
    state = tuple(h[:, 0] for h in inputs.state) if case.two_states else inputs.state[:, 0]
    assert_same(runner(unbatched, state), layer(unbatched, state))
    reset = rng.random(time) < 0.5
    assert_same(runner(unbatched, reset=reset), layer(unbatched, reset=reset))


def test_one_runner_for_every_t_and_b(rng: np.random.Generator) -> None:
    layer = fr.GRU(9, 33, 2, bidirectional=True, seed=0)
    runner = layer.freeze()
    for time, batch in itertools.product((0, 1, 2, 9, 40), (0, 1, 5, 30)):
        x = rng.standard_normal((time, batch, 9)).astype(np.float32)
        assert_same(runner(x), layer(x))


@pytest.mark.parametrize("case", [dataclasses.replace(case, time=time) for case in SMALL for time in (1, 6)])
def test_parameters_are_those_of_the_time_it_was_made(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    expected, runner = layer(inputs.x, inputs.state), layer.freeze()
    for array in layer.parameters.values():
        array[...] = np.nan
    layer.parameters.clear()
    del layer
    gc.collect()
    assert_same(runner(inputs.x, inputs.state), expected)


def test_converting_the_layer_leaves_the_runner(rng: np.random.Generator) -> None:
    layer, x = fr.LSTM(5, 7, seed=0), rng.standard_normal((4, 3, 5)).astype(np.float32)
    expected, runner = layer(x), layer.freeze()
    layer.to(dtype="float64")
    assert_same(runner(x), expected)
    assert layer.freeze()(x.astype(np.float64))[0].dtype == np.float64


@pytest.mark.parametrize("time", [1, 6])
@pytest.mark.parametrize("cell", LAYERS)
def test_numbers_out_of_the_ordinary(cell: str, time: int, rng: np.random.Generator) -> None:
    case = Case(cell, 2, 1, "float32", time, 4, 7, 17)
    layer, inputs = make_layer(case), make_inputs(case, rng)
    for name, array in layer.parameters.items():
        array.reshape(len(array), -1)[0, 0] = {"w": np.float32(1e-42), "b": np.float32(-0.0)}.get(name[0], 1)
    layer.parameters["weight_hh_l0"][1, 1] = np.inf
    inputs.x[0, 0] *= np.finfo(np.float32).tiny
    for state in (inputs.state, None):
        ours, expected = layer.freeze()(inputs.x, state), layer(inputs.x, state)
        flat = [np.concatenate([np.ravel(a) for a in (r[0], *np.atleast_1d(r[1]))]) for r in (ours, expected)]
        # A nan's payload is the one thing that may differ.
        assert_same(*(np.nan_to_num(array, nan=7) for array in flat))


@pytest.mark.parametrize("case", [dataclasses.replace(case, time=time) for case in SMALL for time in (1, 6)])
def test_out_is_filled_and_its_surroundings_are_not(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    expected, runner = layer(inputs.x), layer.freeze()
    buffer, out = guarded(expected[0].shape, case.dtype)
    y, state = runner(inputs.x, out=out)
    assert y is out
    assert_same((y, state), expected)
    assert_guards_untouched(buffer, out)


# What it is


@pytest.mark.parametrize("options", [{}, {"bias": False}])
@pytest.mark.parametrize(
    "case",
    SMALL
    + small_cases(dtype="float64", hidden_size=48, clip=CLIP)
    # Packed biases are float32 sums, of which bfloat16 holds few: a pickle has two numbers of each sum.
    + small_cases(dtype="bfloat16", num_layers=2, directions=2, hidden_size=129),
)
def test_pickles_and_copies(case: Case, options: dict[str, Any], rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case, **options), make_inputs(case, rng)
    runner = layer.freeze()
    again = pickle.loads(pickle.dumps(runner))
    assert copy.copy(runner) is runner and copy.deepcopy({"runner": runner})["runner"] is runner
    assert repr(again) == repr(runner)
    for time in (1, case.time):
        assert_same(again(inputs.x[:time], inputs.state), layer(inputs.x[:time], inputs.state))


def test_what_it_says_of_itself() -> None:
    runner = fr.GRU(3, 5, 2, bidirectional=True, seed=0).freeze()
    assert repr(runner) == "GRU(3, 5, num_layers=2, bidirectional=True, reset_after=True).freeze()"
    assert runner.nbytes >= sum(array.nbytes for array in fr.GRU(3, 5, 2, bidirectional=True).parameters.values())


def test_memory_comes_back() -> None:
    layer, x = fr.LSTM(32, 64, seed=0), np.ones((5, 3, 32), np.float32)
    layer(x)
    before = _core.pool_use()["live"]
    runner = layer.freeze()
    runner(x), runner(x[:1])
    assert _core.pool_use()["live"] == before + runner.nbytes
    del runner
    assert _core.pool_use()["live"] == before


@pytest.mark.parametrize("time", [1, 20])
def test_several_threads_share_one_runner(time: int, rng: np.random.Generator) -> None:
    layer = fr.LSTM(64, 128, 2, bidirectional=True, seed=0)
    runner = layer.freeze()
    inputs = [rng.standard_normal((time, 1 + i % 3, 64)).astype(np.float32) for i in range(24)]
    expected = [layer(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert_same(list(pool.map(runner, inputs)), expected)


# Arguments

T, B, F, H = 4, 3, 2, 5


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def make_lstm() -> Any:
    return fr.LSTM(F, H, 2, bidirectional=True, seed=0)


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("name", ["x", "state", "out"])
def test_arrays(name: str, how: str) -> None:
    arguments: dict[str, Any] = {"x": zeros(T, B, F), "state": (zeros(4, B, H),) * 2, "out": zeros(T, B, 2 * H)}
    spoil, error = SPOILED[how]
    if name == "state":
        arguments["state"] = (arguments["state"][0], spoil(arguments["state"][1]))
    else:
        arguments[name] = spoil(arguments[name])
    with raises(error, name):
        make_lstm().freeze()(**arguments)


BAD_OPTIONS = [
    ("lengths", [1] * (B + 1), ValueError),
    ("lengths", [T + 1] * B, ValueError),
    ("lengths", [1.0] * B, TypeError),
    ("reset", np.zeros((T, B + 1), bool), ValueError),
    ("reset", zeros(T, B), TypeError),
    ("mask", np.ones((T, B + 1), bool), ValueError),
    ("mask", np.ones(T, bool), ValueError),
    ("mask", zeros(T, B), TypeError),
    ("mask", [[True] * B] * T, TypeError),
    ("state", zeros(4, B, H), TypeError),
    ("state", (zeros(4, B, H),), ValueError),
]


@pytest.mark.parametrize(("name", "value", "error"), BAD_OPTIONS)
def test_other_arguments(name: str, value: Any, error: type[Exception]) -> None:
    with raises(error, name):
        make_lstm().freeze()(zeros(T, B, F), **{name: value})


@pytest.mark.parametrize("time", [1, T])
def test_out_must_be_apart(time: int) -> None:
    runner, memory = fr.RNN(H, H, seed=0).freeze(), zeros(time, B, H)
    with raises(ValueError, "out"):
        runner(memory, out=memory)
    with raises(ValueError, "out"):
        runner(zeros(time, B, H), memory[:1], out=memory)
    assert not memory.any()


def test_replaced_parameters_are_refused() -> None:
    layer = make_lstm()
    layer.parameters["weight_hh_l1"] = layer.parameters["weight_hh_l1"].astype(np.float64)
    with raises(TypeError, "parameters"):
        layer.freeze()


def test_packed_parameters_belong_to_their_engine() -> None:
    one, other = make_lstm()._engine, fr.LSTM(F + 1, H)._engine
    packed = one.freeze(make_lstm().parameters)
    for call in (lambda: other.infer(packed, zeros(T, B, F), *[None] * 5), lambda: other.unfreeze(packed)):
        with raises(ValueError, "parameters"):
            call()
    for wrong in (None, [], "packed"):
        with raises(TypeError, "parameters"):
            one.infer(wrong, zeros(T, B, F), *[None] * 5)
    with pytest.raises(TypeError):
        _core.Packed()


def test_there_are_buffers_on_a_device_only() -> None:
    with raises(ValueError, "device"):
        make_lstm().freeze().buffers(3, 2)


# Devices


@pytest.mark.parametrize("options", [{}, {"dtype": "float16"}])
@pytest.mark.parametrize("case", small_cases(dtype="float32", num_layers=2, directions=2, ragged=True, reset=True))
def test_on_a_device(device: TestDevice, case: Case, options: dict[str, Any], rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case, device="cuda", **options), make_inputs(case, rng)
    x, reset = device.put((inputs.x.astype(layer.dtype), inputs.reset))
    expected, runner = device.get(layer(x, None, inputs.lengths, reset)), layer.freeze()
    for array in layer.parameters.values():
        array[...] = np.nan
    assert_same(device.get(runner(x, lengths=inputs.lengths, reset=reset)), expected)
    held = runner.buffers(*inputs.x.shape[:2])
    y, state = runner(x, lengths=inputs.lengths, reset=reset, out=held)
    assert y is held.y
    assert_same(device.get((y, state)), expected)
    if not device.real:
        again = pickle.loads(pickle.dumps(runner))
        assert_same(device.get(again(x, lengths=inputs.lengths, reset=reset)), expected)

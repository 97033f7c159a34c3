"""Steppers: the bits of the whole sequence, a state of their own, arguments, and no memory per step."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from bitwise import assert_same, copied, threads
from cases import CLIP, LAYERS, SIZES, Case, make_inputs, make_layer, small_cases
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from isa_process import run_on
from oracles import as_tuple
from spoiled import SPOILED, raises

import fusedrnn as fr
from fusedrnn import _core

BATCHES = (1, 3, 7, 33)


def shaped_cases() -> list[Case]:
    """Every cell and dtype at every pair of B and H, with I and L by turns; and at sizes worth a team of threads."""
    cases = []
    for cell, dtype in itertools.product(LAYERS, ("float32", "float64", "bfloat16")):
        for turn, (batch, hidden) in enumerate(itertools.product(BATCHES, SIZES)):
            inputs, layers = SIZES[(turn + turn // 5 + len(cases) // 20) % 5], 1 + (turn + len(cases) // 20) % 3
            if dtype == "bfloat16" and turn % 3:  # the rules are float32's
                continue
            cases.append(Case(cell, layers, 1, dtype, 4, batch, inputs, hidden))
        cases += [Case(cell, 1, 1, dtype, 3, 1, 31, 520), Case(cell, 2, 1, dtype, 3, 40, 65, 150)]
        cases += [Case(cell, 2, 1, dtype, 4, 3, 7, 17, clip=CLIP)]
    return cases


CASES = shaped_cases()
SMALL = small_cases(dtype="float32", num_layers=2, hidden_size=17)


def assert_steps_equal_the_sequence(case: Case) -> None:
    """Step through a sequence with 1, 2 and 3 threads, and compare with a call on the whole of it."""
    layer, inputs = make_layer(case), make_inputs(case, np.random.default_rng(case.seed))
    y, state = layer(inputs.x, inputs.state)
    for count in (1, 2, 3):
        with threads(count):
            stepper = layer.stream(case.batch)
            stepper.state = inputs.state
            steps = np.stack([stepper.step(x) for x in inputs.x])
            assert_same((steps, stepper.state), (y, state), f"{case.id}, {count} threads")


@pytest.mark.parametrize("case", CASES)
def test_steps_equal_the_sequence(case: Case) -> None:
    assert_steps_equal_the_sequence(case)


RUN_CASES = "import test_stream as t; [t.assert_steps_equal_the_sequence(case) for case in t.CASES]"


@pytest.mark.parametrize("isa", _core.isas())
def test_steps_equal_the_sequence_on_every_instruction_set(isa: str) -> None:
    run_on(isa, RUN_CASES, __file__)


@pytest.mark.parametrize("cell", LAYERS)
def test_the_state_is_zero_at_first_and_after_a_reset(cell: str, rng: np.random.Generator) -> None:
    case = Case(cell, 2, 1, "float32", 5, 3, 7, 17)
    layer, inputs = make_layer(case), make_inputs(case, rng)
    expected = layer(inputs.x)
    stepper = layer.stream(batch=3)
    for _ in range(2):
        assert all(not half.any() for half in as_tuple(stepper.state))
        y = np.stack([stepper.step(x) for x in inputs.x])
        assert_same((y, stepper.state), expected)
        stepper.reset()


@pytest.mark.parametrize("options", [{"bias": False}, {"batch_first": True}, {"dropout": 0.5}])
@pytest.mark.parametrize("case", SMALL)
def test_options_of_the_layer(case: Case, options: dict[str, Any], rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case, **options), make_inputs(case, rng)
    y = layer(inputs.x.swapaxes(0, 1) if layer.batch_first else inputs.x)[0]
    stepper = layer.stream(case.batch)
    steps = np.stack([stepper.step(x) for x in inputs.x])
    assert_same(steps, np.ascontiguousarray(y.swapaxes(0, 1)) if layer.batch_first else y)


@pytest.mark.parametrize("case", SMALL)
def test_rows_reset_alone(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    reset = np.zeros((case.time, case.batch), bool)
    reset[2, [0, 2]] = reset[4, 3] = True
    expected = layer(inputs.x, inputs.state, reset=reset)
    for form in (lambda mask: mask, np.flatnonzero, lambda mask: np.flatnonzero(mask).tolist(), reset_one_by_one):
        stepper = layer.stream(case.batch)
        stepper.state = inputs.state
        outputs = []
        for x, mask in zip(inputs.x, reset, strict=True):
            rows = form(mask)
            for each in rows if isinstance(rows, tuple) else (rows,):
                stepper.reset(each)
            outputs.append(stepper.step(x))
        assert_same((np.stack(outputs), stepper.state), expected)


def reset_one_by_one(mask: np.ndarray) -> tuple[Any, ...]:
    return tuple(np.flatnonzero(mask))


@pytest.mark.parametrize("case", SMALL)
def test_the_state_is_read_and_set_by_copies(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    stepper, kept = layer.stream(case.batch), copied(inputs.state)
    stepper.state = inputs.state
    for half in as_tuple(inputs.state):
        half[...] = np.nan
    for half in as_tuple(stepper.state):
        half[...] = np.nan
    assert_same(stepper.state, kept)
    # Strided, reversed and read-only halves are read as they are.
    backwards = tuple(np.ascontiguousarray(half[::-1])[::-1] for half in as_tuple(kept))
    for half in backwards:
        half.flags.writeable = False
    stepper.reset()
    stepper.state = list(backwards) if case.two_states else backwards[0]
    assert_same(stepper.state, kept)


@pytest.mark.parametrize("case", SMALL)
def test_weights_are_those_of_the_time_it_was_made(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    expected, stepper = layer(inputs.x)[0], layer.stream(case.batch)
    for array in layer.parameters.values():
        array[...] = np.nan
    del layer
    assert_same(np.stack([stepper.step(x) for x in inputs.x]), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", LAYERS)
def test_a_row_of_its_own_needs_no_batch_axis(cell: str, dtype: str, rng: np.random.Generator) -> None:
    case = Case(cell, 1, 1, dtype, 4, 1, 5, 17)
    layer, inputs = make_layer(case), make_inputs(case, rng)
    expected, stepper, out = layer(inputs.x)[0][:, 0], layer.stream(), np.empty(17, dtype)
    assert_same(np.stack([stepper.step(x[0]) for x in inputs.x]), expected)
    stepper.reset()
    for x, y in zip(inputs.x[:, 0], expected, strict=True):
        assert stepper.step(x, out) is out
        assert_same(out, y)


@pytest.mark.parametrize("case", SMALL)
def test_out_is_filled_and_its_surroundings_are_not(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    expected, stepper = layer(inputs.x)[0], layer.stream(case.batch)
    buffer = np.full((case.batch + 2, case.hidden_size + 2), np.nan, case.dtype)
    out = buffer[1:-1, 1:-1][::-1]
    for x, y in zip(inputs.x, expected, strict=True):
        spaced = np.full((2 * case.batch, case.input_size + 3), np.nan, case.dtype)
        spaced[::2, 1:-2] = x
        assert stepper.step(spaced[::2, 1:-2], out=out) is out
        assert_same(out, y)
        inside = np.zeros(buffer.shape, bool)
        inside[1:-1, 1:-1] = True
        assert np.isnan(buffer[~inside]).all()


@pytest.mark.parametrize("filler", [np.nan, np.inf, 1e-40])
@pytest.mark.parametrize("case", SMALL)
def test_numbers_out_of_the_ordinary(case: Case, filler: float, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    inputs.x[1, 1] = filler
    inputs.x[0, 0] *= np.finfo(case.dtype).tiny
    y, state = layer(inputs.x, inputs.state)
    stepper = layer.stream(case.batch)
    stepper.state = inputs.state
    steps = np.stack([stepper.step(x) for x in inputs.x])
    for ours, expected in zip(as_tuple((steps, *as_tuple(stepper.state))), (y, *as_tuple(state)), strict=True):
        # A nan's payload is the one thing that may differ.
        assert_same(np.nan_to_num(ours, nan=7), np.nan_to_num(expected, nan=7))
    assert (np.full(4, 1e-30, np.float32) * np.float32(1e-10)).all()  # denormals are flushed in a step alone


# Memory and threads


def traced(work: Callable[[], Any]) -> tuple[int, int]:
    """Bytes that Python's allocators gave out over 10,000 calls: left over at the end, and most at any time."""
    times = itertools.repeat(None, 10_000)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in times:
            work()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return after - before, peak - before


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "case", [Case("lstm", 2, 1, "float32", 1, 1, 16, 16), Case("gru", 1, 1, "float64", 1, 3, 8, 7)]
)
def test_a_step_allocates_nothing(case: Case, count: int) -> None:
    stepper = make_layer(case).stream(case.batch)
    x, out = np.ones((case.batch, case.input_size), case.dtype), np.ones((case.batch, case.hidden_size), case.dtype)
    with threads(count):
        stepper.step(x, out)
        use = _core.pool_use()
        assert traced(lambda: stepper.step(x, out)) <= traced(lambda: None)
        assert traced(lambda: stepper.step(x, out=out)) <= traced(lambda: None)
        assert _core.pool_use() == use


def test_long_steps_of_one_stepper_take_turns() -> None:
    layer, x = fr.GRU(300, 500, seed=0), np.random.default_rng(0).standard_normal((8, 300)).astype(np.float32)
    stepper, other = layer.stream(8), layer.stream(8)
    for _ in range(40):
        other.step(x)
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: [stepper.step(x) is not None for _ in range(10)], range(4)):
            assert all(result)
    assert_same(stepper.state, other.state)


def test_memory_comes_back() -> None:
    layer = fr.LSTM(32, 64, seed=0)
    before = _core.pool_use()["live"]
    steppers = [layer.stream(3) for _ in range(3)]
    assert _core.pool_use()["live"] - before >= 3 * sum(array.nbytes for array in layer.parameters.values())
    del steppers
    assert _core.pool_use()["live"] == before


# Arguments

B, F, H = 3, 2, 5


def make_stepper() -> Any:
    return fr.LSTM(F, H, 2, seed=0).stream(B)


def zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("name", ["x_t", "out", "state"])
def test_arrays(name: str, how: str) -> None:
    stepper = make_stepper()
    stepper.step(np.ones((B, F), np.float32))
    before = stepper.state
    spoil, error = SPOILED[how]
    with raises(error, name):
        if name == "state":
            stepper.state = (zeros(2, B, H), spoil(zeros(2, B, H)))
        elif name == "x_t":
            stepper.step(spoil(zeros(B, F)))
        else:
            stepper.step(zeros(B, F), spoil(zeros(B, H)))
    assert_same(stepper.state, before)


STATES: list[tuple[Any, type[Exception]]] = [
    (None, TypeError),
    (zeros(2, B, H), TypeError),
    ({}, TypeError),
    ((zeros(2, B, H),), ValueError),
    ((zeros(2, B, H),) * 3, ValueError),
    ((zeros(2, B, H), None), TypeError),
    ((zeros(1, B, H), zeros(1, B, H)), ValueError),
    ((zeros(2, B, H), zeros(2, 1, H)), ValueError),
    ((zeros(B, H), zeros(B, H)), ValueError),
]


@pytest.mark.parametrize(("state", "error"), STATES)
def test_states(state: Any, error: type[Exception]) -> None:
    with raises(error, "state"):
        make_stepper().state = state


def test_a_single_state_is_no_pair() -> None:
    stepper = fr.GRU(F, H, seed=0).stream(B)
    with raises(TypeError, "state"):
        stepper.state = (zeros(1, B, H), zeros(1, B, H))


ROWS: list[tuple[Any, type[Exception]]] = [
    (B, ValueError),
    (-1, ValueError),
    (2**80, ValueError),
    ([0, B], ValueError),
    (np.array([0, -1]), ValueError),
    (np.array([2**63], np.uint64), ValueError),
    (np.array([[0]]), ValueError),
    (zeros(B + 1, dtype=bool), ValueError),
    (zeros(1, B, dtype=bool), ValueError),
    (np.array(True), ValueError),
    (True, TypeError),
    ([True, False, True], TypeError),
    (1.0, TypeError),
    ([1.0], TypeError),
    ([np.array([1])], TypeError),
    (np.array([1.0]), TypeError),
    (np.array([0], object), TypeError),
    (np.ma.masked_array([0]), TypeError),
    (np.ma.masked_array(zeros(B, dtype=bool)), TypeError),
    ("0", TypeError),
    ({0}, TypeError),
    ([None], TypeError),
]


@pytest.mark.parametrize(("rows", "error"), ROWS)
def test_rows(rows: Any, error: type[Exception]) -> None:
    stepper = make_stepper()
    stepper.step(np.ones((B, F), np.float32))
    before = stepper.state
    with raises(error, "rows"):
        stepper.reset(rows)
    assert_same(stepper.state, before)


@pytest.mark.parametrize("rows", [(), [], zeros(0, dtype=int), zeros(B, dtype=bool)])
def test_no_rows(rows: Any) -> None:
    stepper = make_stepper()
    stepper.step(np.ones((B, F), np.float32))
    before = stepper.state
    stepper.reset(rows)
    assert_same(stepper.state, before)


def test_masks_of_any_stride() -> None:
    stepper = make_stepper()
    stepper.step(np.ones((B, F), np.float32))
    stepper.reset(np.array([True, True, False, True, False, True])[::2])
    for half in stepper.state:
        assert [bool(row.any()) for row in half[0]] == [False, True, True]


def overlapping() -> dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]]:
    """Pairs (x_t, out) that share memory."""
    square = zeros(B, H + F)
    flat = zeros(1, B * H + F)[0]
    return {
        "the same": lambda: (square[:, :F], square[:, :H]),
        "by one element": lambda: (square[:, H - 1 : H - 1 + F], square[:, :H]),
        "its last rows": lambda: (flat[-B * F :].reshape(B, F), flat[: B * H].reshape(B, H)),
        "backwards": lambda: (square[::-1, :F], square[:, :H]),
    }


@pytest.mark.parametrize("how", overlapping())
def test_out_and_x_must_not_overlap(how: str) -> None:
    x, out = overlapping()[how]()
    with raises(ValueError, "out"):
        make_stepper().step(x, out)


def test_out_and_x_may_interleave() -> None:
    square = zeros(B, H + F)
    make_stepper().step(square[:, H:], square[:, :H])
    assert square[:, :H].all() and not square[:, H:].any()


def test_out_must_be_writable_and_have_elements_of_its_own() -> None:
    stepper, frozen = make_stepper(), zeros(B, H)
    frozen.flags.writeable = False
    with raises(ValueError, "out"):
        stepper.step(zeros(B, F), frozen)
    with raises(ValueError, "out"):
        stepper.step(zeros(B, F), np.lib.stride_tricks.as_strided(zeros(1, H), (B, H), (0, 4)))


def test_only_one_row_goes_without_a_batch_axis() -> None:
    single = fr.LSTM(F, H, seed=0).stream()
    for stepper, x, out, name in [
        (make_stepper(), zeros(F), None, "x_t"),
        (single, zeros(F), zeros(1, H), "out"),
        (single, zeros(1, F), zeros(H), "out"),
        (single, zeros(2, F), None, "x_t"),
    ]:
        with raises(ValueError, name):
            stepper.step(x, out)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((), {}),
        ((1, 2, 3), {}),
        ((), {"out": None}),
        ((zeros(B, F),), {"x_t": zeros(B, F)}),
        ((zeros(B, F),), {"y": 1}),
        ((zeros(B, F),), {"\ud800": 1}),
    ],
)
def test_arguments_of_a_step(arguments: Any, options: Any) -> None:
    with pytest.raises(TypeError, match=r"x_t|step"):
        make_stepper().step(*arguments, **options)


def test_arguments_of_a_step_by_name() -> None:
    stepper, x, out = make_stepper(), np.ones((B, F), np.float32), zeros(B, H)
    expected = make_stepper().step(x)
    assert stepper.step(out=out, x_t=x) is out
    assert_same(out, expected)


def test_steppers_come_from_layers() -> None:
    class Derived(_core.Stepper):
        pass

    for kind in (_core.Stepper, Derived):
        with pytest.raises(TypeError, match="stream"):
            kind()
        with pytest.raises(TypeError, match="stream"):
            kind.__new__(kind)


@pytest.mark.parametrize(("batch", "error"), [(0, ValueError), (-1, ValueError), (True, TypeError), (1.0, TypeError)])
def test_batch(batch: Any, error: type[Exception]) -> None:
    with raises(error, "batch"):
        fr.GRU(F, H, seed=0).stream(batch)


def test_too_large_a_batch_is_out_of_memory() -> None:
    with pytest.raises(MemoryError):
        fr.GRU(F, H, seed=0).stream(2**48)


@pytest.mark.parametrize("kind", [fr.RNN, fr.LSTM, fr.GRU])
def test_both_directions_cannot_stream(kind: Any) -> None:
    with raises(ValueError, "bidirectional"):
        kind(F, H, bidirectional=True, seed=0).stream()


def test_parameters_are_checked() -> None:
    layer = fr.GRU(F, H, seed=0)
    layer.parameters["weight_hh_l0"] = zeros(3 * H, H, dtype=np.float64)
    with pytest.raises(TypeError, match="weight_hh_l0"):
        layer.stream()


ANY_ARRAY = st.builds(
    lambda shape, dtype, step: np.zeros(shape, dtype)[..., ::step],
    st.sampled_from([(B, F), (B, H), (2, B, H), (F,), (H,), (1,), (0, F), (B, 0), (B,)]),
    st.sampled_from(["float32", "float64", "int64", "bool", "O", ">f4"]),
    st.sampled_from([1, -1, 2]),
)
ODD = st.one_of(ANY_ARRAY, st.none(), st.integers(), st.text(), st.lists(st.integers()))


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(x=ODD, out=ODD, state=st.one_of(ODD, st.tuples(ODD, ODD)), rows=ODD)
def test_wild_arguments(x: Any, out: Any, state: Any, rows: Any) -> None:
    stepper = make_stepper()
    for call in (lambda: stepper.step(x, out), lambda: setattr(stepper, "state", state), lambda: stepper.reset(rows)):
        try:
            call()
        except (TypeError, ValueError) as error:
            assert str(error).startswith(("x_t", "out", "state", "rows"))

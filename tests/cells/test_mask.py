"""Masks of skipped steps: the state stays, y repeats its h, gradients pass by, and nothing else changes by a bit."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import numpy as np
import pytest
from bitwise import assert_same, threads
from cases import Case, Inputs, make_clear_inputs, make_inputs, make_layer
from device_runs import host, run, shortened
from devices import TestDevice
from masked_cases import CASES, EMPTY, SHORT
from oracles import Result, as_tuple, assert_results_close, map_result, run_library, run_reference
from rounding import error_bounds, run_rounded

import fusedrnn as fr


def parts(state: Any, change: Any) -> Any:
    """`change` of each array of a state."""
    return tuple(change(part) for part in state) if isinstance(state, tuple) else change(state)


def lengths_of(inputs: Inputs) -> np.ndarray:
    time, batch = inputs.x.shape[:2]
    return np.full(batch, time) if inputs.lengths is None else inputs.lengths


def kept_steps(inputs: Inputs) -> np.ndarray:
    """(T, B), where a row runs."""
    assert inputs.mask is not None
    return inputs.mask & (np.arange(len(inputs.mask))[:, None] < lengths_of(inputs))


@dataclasses.dataclass
class Compacted:
    """The steps that rows run, moved together; which states, (L*D, B), a reset among the skipped steps cuts off."""

    inputs: Inputs
    times: list[np.ndarray]
    lost_initial: np.ndarray
    lost_final: np.ndarray


def compacted(case: Case, inputs: Inputs) -> Compacted:
    """The same sequences without the steps that a mask skips, which needs no mask."""
    kept, lengths = kept_steps(inputs), lengths_of(inputs)
    times = [np.flatnonzero(kept[:, b]) for b in range(case.batch)]
    counts = np.array([len(t) for t in times], np.int64)
    longest = int(counts.max(initial=0))
    x = np.full((longest, *inputs.x.shape[1:]), np.nan, inputs.x.dtype)
    dy = np.full((longest, *inputs.dy.shape[1:]), np.nan, inputs.dy.dtype)
    reset = np.zeros((longest, case.batch), bool)
    at_end = np.zeros((case.num_layers, case.directions, case.batch), bool)
    at_begin = at_end.copy()
    for b, t in enumerate(times):
        x[: len(t), b], dy[: len(t), b] = inputs.x[t, b], inputs.dy[t, b]
        if inputs.reset is None:
            continue
        cuts = inputs.reset[: lengths[b], b]
        edges = [-1, *t]
        for k in range(len(t)):
            reset[k, b] = cuts[edges[k] + 1 : edges[k + 1] + 1].any()
        after, before = cuts[edges[-1] + 1 :].any(), cuts[1 : t[0] + 1 if len(t) else None].any()
        for direction in range(case.directions):
            backwards = case.reverse or direction == 1
            at_end[:, direction, b] = before if backwards else after
            # Forward, a reset before the first step that runs is that step's; where none runs, the end says it all.
            at_begin[:, direction, b] = backwards and after and len(t) > 0
    lost_initial, lost_final = (np.concatenate(list(lost))[..., None] for lost in (at_begin, at_end))
    state = parts(inputs.state, lambda part: np.where(lost_initial, 0, part).astype(part.dtype))
    dstate = parts(inputs.dstate, lambda part: np.where(lost_final, 0, part).astype(part.dtype))
    moved = Inputs(x, state, counts, reset if inputs.reset is not None else None, dy, dstate)
    return Compacted(moved, times, lost_initial, lost_final)


def without_skipped_dy(inputs: Inputs) -> Inputs:
    """A dy that is 0 at skipped steps."""
    skipped = ~kept_steps(inputs) & ~np.isnan(inputs.dy).any(2)
    return dataclasses.replace(inputs, dy=np.where(skipped[..., None], 0, inputs.dy).astype(inputs.dy.dtype))


def expected_y(case: Case, inputs: Inputs, moved: Compacted, y: np.ndarray) -> np.ndarray:
    """y of the whole from that of the compacted sequences: at skipped steps the last layer's h."""
    kept, lengths, hidden = kept_steps(inputs), lengths_of(inputs), case.hidden_size
    whole = np.zeros((case.time, case.batch, y.shape[2]), y.dtype)
    initial = as_tuple(inputs.state)[0][-case.directions :]
    for b, direction in np.ndindex(case.batch, case.directions):
        backwards, units = case.reverse or direction == 1, slice(direction * hidden, (direction + 1) * hidden)
        place = dict(zip(moved.times[b], range(len(moved.times[b])), strict=True))
        h = initial[direction, b]
        order = range(lengths[b])
        for t in reversed(order) if backwards else order:
            link = t + 1 if backwards else t
            if inputs.reset is not None and link < lengths[b] and inputs.reset[link, b]:
                h = np.zeros_like(h)
            if kept[t, b]:
                h = y[place[t], b, units]
            whole[t, b, units] = h
    return whole


@pytest.mark.parametrize("case", [*SHORT, *EMPTY])
def test_every_output_and_gradient(case: Case, rng: np.random.Generator) -> None:
    layer = make_layer(case)
    inputs = make_clear_inputs(case, layer.parameters, rng)
    expected = run_reference(case, layer.parameters, inputs)
    assert_results_close(run_library(layer, inputs), expected, error_bounds(case, layer.parameters, inputs))


@pytest.mark.parametrize("case", [*CASES, *EMPTY])
def test_a_masked_call_is_the_call_on_compacted_sequences(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), without_skipped_dy(make_inputs(case, rng))
    result, moved = run_library(layer, inputs), compacted(case, inputs)
    plain = run_library(layer, moved.inputs)
    assert_moved_back(case, inputs, moved, result, plain)
    assert_same(result.parameters, plain.parameters, "parameters")


def assert_moved_back(case: Case, inputs: Inputs, moved: Compacted, result: Result, plain: Result) -> None:
    """Assert that a masked call's result is that of the compacted sequences, but for the parameters' gradients."""
    assert_same(result.y, expected_y(case, inputs, moved, plain.y), "y")
    dx = np.zeros_like(inputs.x)
    for b, t in enumerate(moved.times):
        dx[t, b] = plain.dx[: len(t), b]
    assert_same(result.dx, dx, "dx")
    state = parts(plain.state, lambda part: np.where(moved.lost_final, 0, part).astype(part.dtype))
    dstate = parts(plain.dstate, lambda part: np.where(moved.lost_initial, 0, part).astype(part.dtype))
    assert_same((result.state, result.dstate), (state, dstate), "states")


@pytest.mark.parametrize("case", CASES)
def test_any_number_of_threads(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    with threads(1):
        expected = run_library(layer, inputs)
    for count in (2, 3, 5):
        with threads(count):
            assert_same(run_library(layer, inputs), expected, f"{count} threads")


def rows_of(inputs: Inputs, rows: slice) -> Inputs:
    """Some rows of a batch."""

    def of(array: np.ndarray | None) -> Any:
        return None if array is None else array[:, rows]

    lengths = None if inputs.lengths is None else inputs.lengths[rows]
    state, dstate = parts(inputs.state, of), parts(inputs.dstate, of)
    return Inputs(of(inputs.x), state, lengths, of(inputs.reset), of(inputs.dy), dstate, of(inputs.mask))


@pytest.mark.parametrize("case", CASES)
def test_a_row_alone_or_in_a_batch(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    whole = run_library(layer, inputs)
    for b in range(0, case.batch, 1 + case.batch // 5):
        row = slice(b, b + 1)
        alone = run_library(layer, rows_of(inputs, row))
        state, dstate = (tuple(part[:, row] for part in as_tuple(s)) for s in (whole.state, whole.dstate))
        found = (alone.y, as_tuple(alone.state), alone.dx, as_tuple(alone.dstate))
        assert_same(found, (whole.y[:, row], state, whole.dx[:, row], dstate), f"row {b}")


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("case", [case for case in CASES if case.directions == 1 and not case.reverse])
def test_in_windows_or_whole(case: Case, window: int, rng: np.random.Generator) -> None:
    """dy at skipped steps as well: it waits for its state across the windows."""
    inputs = make_inputs(case, rng)
    layer, expected = make_layer(case), run_library(make_layer(case), inputs)
    resets = np.zeros((case.time, case.batch), bool) if inputs.reset is None else inputs.reset
    state, tapes, outputs = inputs.state, [], []
    for x, reset, mask in fr.tbptt_windows(inputs.x, resets, inputs.mask, window=window):
        y, state, tape = layer.forward(x, state, reset=reset, mask=mask)
        outputs.append(y)
        tapes.append(tape)
    dstate, dx = inputs.dstate, []
    for tape, dy in reversed(list(zip(tapes, fr.tbptt_windows(inputs.dy, window=window), strict=True))):
        grads = layer.backward(tape, dy, dstate)
        dstate = grads.state
        dx.insert(0, grads.x)
    whole = (np.concatenate(outputs), state, np.concatenate(dx), dstate)
    assert_same(whole, (expected.y, expected.state, expected.dx, expected.dstate))


@pytest.mark.parametrize("case", [*CASES, *EMPTY])
def test_inference_or_training(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    expected = layer.forward(inputs.x, inputs.state, **inputs.sequence_options())[:2]
    assert_same(layer(inputs.x, inputs.state, **inputs.sequence_options()), expected)


@pytest.mark.parametrize("recompute", [1, 3, 100])
@pytest.mark.parametrize("case", CASES[::2])
def test_recompute(case: Case, recompute: int, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    expected = run_library(layer, inputs)
    y, state, tape = layer.forward(inputs.x, inputs.state, **inputs.sequence_options(), recompute=recompute)
    grads = layer.backward(tape, inputs.dy, inputs.dstate)
    assert_same(Result(y, state, grads.x, grads.state, grads.parameters), expected)


@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize("case", [case for case in CASES if case.time < 9])
def test_a_mask_that_keeps_all_is_no_mask(case: Case, steps: int, rng: np.random.Generator) -> None:
    case = dataclasses.replace(case, time=steps, masked=False)
    layer, inputs = make_layer(case), make_inputs(case, rng)
    masked = dataclasses.replace(inputs, mask=np.ones((case.time, case.batch), bool))
    assert_same(run_library(layer, masked), run_library(layer, inputs))
    called = layer(inputs.x, inputs.state, **masked.sequence_options())
    assert_same(called, layer(inputs.x, inputs.state, **inputs.sequence_options()))


@pytest.mark.parametrize("case", CASES[::3])
def test_a_mask_that_keeps_nothing_passes_everything_on(case: Case, rng: np.random.Generator) -> None:
    case = dataclasses.replace(case, reset=False, ragged=False)
    layer, inputs = make_layer(case), make_inputs(case, rng)
    inputs.mask = np.zeros((case.time, case.batch), bool)
    result = run_library(layer, inputs)
    assert_same((result.state, result.dx), (inputs.state, np.zeros_like(inputs.x)))
    h = as_tuple(inputs.state)[0][-case.directions :]
    assert_same(result.y, np.broadcast_to(np.concatenate(list(h), 1), result.y.shape).copy())
    assert not any(gradient.any() for gradient in result.parameters.values())
    if case.two_states:
        assert_same(result.dstate[1], inputs.dstate[1])


def test_a_state_stays_until_a_reset() -> None:
    """Written out for one row, both directions."""
    layer = fr.LSTM(2, 3, bidirectional=True, seed=0, dtype="float64")
    rng = np.random.default_rng(0)
    x, state = rng.standard_normal((6, 1, 2)), tuple(rng.standard_normal((2, 2, 1, 3)))
    mask = np.array([0, 1, 0, 0, 1, 0], bool)[:, None]
    reset = np.array([0, 0, 0, 1, 0, 1], bool)[:, None]
    y, (h, c) = layer(x, state, reset=reset, mask=mask)
    ahead, back = y[:, 0, :3], y[:, 0, 3:]
    np.testing.assert_array_equal(ahead[0], state[0][0, 0])  # no step has run
    np.testing.assert_array_equal(ahead[2], ahead[1])
    np.testing.assert_array_equal(ahead[[3, 5]], 0)  # cut off, and nothing runs after it
    np.testing.assert_array_equal(h[0], 0)
    np.testing.assert_array_equal(c[0], 0)
    np.testing.assert_array_equal(back[5], state[0][1, 0])
    np.testing.assert_array_equal(back[3], back[4])
    np.testing.assert_array_equal(back[2], 0)
    np.testing.assert_array_equal(back[0], back[1])
    np.testing.assert_array_equal(h[1, 0], back[1])
    assert ahead[[1, 4]].all() and back[[1, 4]].all()


def test_a_gradient_goes_to_the_state_that_was_repeated() -> None:
    """dy of a skipped step counts for the step whose h it repeats, for the initial state, or for nothing."""
    layer = fr.GRU(2, 3, seed=0, dtype="float64")
    rng = np.random.default_rng(0)
    x, state, weight = rng.standard_normal((6, 1, 2)), rng.standard_normal((1, 1, 3)), rng.standard_normal((1, 3))
    mask = np.array([0, 1, 0, 0, 0, 1], bool)[:, None]
    reset = np.array([0, 0, 0, 1, 0, 0], bool)[:, None]
    _, _, tape = layer.forward(x, state, reset=reset, mask=mask)

    def gradients(t: int) -> Any:
        dy = np.zeros((6, 1, 3))
        dy[t] = weight
        return layer.backward(tape, dy)

    np.testing.assert_array_equal(gradients(0).state, weight[None])
    assert_same(gradients(2), gradients(1))
    for t in (3, 4):
        nothing = gradients(t)
        assert not nothing.x.any() and not nothing.state.any()
        assert not any(gradient.any() for gradient in nothing.parameters.values())


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("case", SHORT[::4])
def test_x_at_skipped_steps_influences_nothing(case: Case, poison: float, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    skipped = ~kept_steps(inputs)
    poisoned, plain = (np.where(skipped[..., None], value, inputs.x).astype(case.dtype) for value in (poison, 0))
    expected = run_library(layer, dataclasses.replace(inputs, x=plain))
    assert_same(run_library(layer, dataclasses.replace(inputs, x=poisoned)), expected)
    out = np.full_like(expected.y, np.nan)
    assert layer(poisoned, inputs.state, **inputs.sequence_options(), out=out)[0] is out
    assert_same(out, expected.y)


@pytest.mark.parametrize("case", [dataclasses.replace(case, batch=1) for case in CASES[:4] + CASES[-4:]])
def test_unbatched(case: Case, rng: np.random.Generator) -> None:
    case = dataclasses.replace(case, ragged=False)
    inputs = make_inputs(case, rng)
    inputs.mask = rng.random((case.time, 1)) < 1 / 2
    expected = run_library(make_layer(case), inputs)

    def single(array: np.ndarray | None) -> Any:
        return None if array is None else array[:, 0]

    state, dstate = parts(inputs.state, single), parts(inputs.dstate, single)
    own = Inputs(single(inputs.x), state, None, single(inputs.reset), single(inputs.dy), dstate, single(inputs.mask))
    for batch_first in (False, True):
        result = run_library(make_layer(case, batch_first=batch_first), own)
        found = (result.y, result.state, result.dx, result.dstate, result.parameters)
        states = (parts(expected.state, single), parts(expected.dstate, single))
        assert_same(found, (single(expected.y), states[0], single(expected.dx), states[1], expected.parameters))


@pytest.mark.parametrize("case", CASES[2::7])
def test_batch_first_and_strides(case: Case, rng: np.random.Generator) -> None:
    inputs = make_inputs(case, rng)
    expected = run_library(make_layer(case), inputs)
    assert inputs.mask is not None

    def swapped(array: np.ndarray | None) -> Any:
        return None if array is None else np.ascontiguousarray(array.swapaxes(0, 1))

    spread = np.ones((2 * case.batch, 3 * case.time), bool)[1::2, ::-3]  # every other element is another's
    spread[...] = inputs.mask.T
    turned = dataclasses.replace(inputs, x=swapped(inputs.x), dy=swapped(inputs.dy), reset=swapped(inputs.reset))
    result = run_library(make_layer(case, batch_first=True), dataclasses.replace(turned, mask=spread))
    assert_same(result._replace(y=swapped(result.y), dx=swapped(result.dx)), expected)
    assert_same(run_library(make_layer(case), dataclasses.replace(inputs, mask=spread.T)), expected)
    inputs.x, repeated = np.nan_to_num(inputs.x), np.broadcast_to(inputs.mask[:, -1:], inputs.mask.shape)  # stride 0
    copied = run_library(make_layer(case), dataclasses.replace(inputs, mask=repeated.copy()))
    assert_same(run_library(make_layer(case), dataclasses.replace(inputs, mask=repeated)), copied)


def test_the_tape_does_not_depend_on_the_mask_given(rng: np.random.Generator) -> None:
    case = CASES[2]
    layer, inputs = make_layer(case), make_inputs(case, rng)
    expected = run_library(layer, inputs)
    _, _, tape = layer.forward(inputs.x, inputs.state, **inputs.sequence_options())
    assert inputs.mask is not None and inputs.reset is not None
    inputs.mask[...] = True
    inputs.reset[...] = True
    grads = layer.backward(tape, inputs.dy, inputs.dstate)
    assert_same((grads.x, grads.state, grads.parameters), (expected.dx, expected.dstate, expected.parameters))


@pytest.mark.parametrize("case", [Case(cell, 3, 1, "float32", 9, 4, 3, 8, masked=True) for cell in ("lstm", "gru")])
def test_dropout_counts_time(case: Case, rng: np.random.Generator) -> None:
    """A step's units are dropped or kept whatever was skipped before it."""
    layer, inputs = make_layer(case, dropout=0.5), make_inputs(case, rng)
    last = np.zeros((case.time, case.batch), bool)
    last[-1] = True
    whole = dataclasses.replace(inputs, x=np.nan_to_num(inputs.x), mask=last)
    one = layer.forward(whole.x, whole.state, mask=last)[0]
    other = layer.forward(whole.x, whole.state, mask=last)[0]
    assert (one != other).any()  # masks of two calls
    layer = make_layer(case, dropout=0.5)
    moved = layer.forward(np.roll(whole.x, 1, 0), whole.state, mask=np.roll(last, 1, 0))[0]
    assert (moved[0] != one[-1]).any()  # and of two times
    assert_same(make_layer(case, dropout=0.5).forward(whole.x, whole.state, mask=last)[0], one)


GOOD = np.ones((4, 2), bool)


@pytest.mark.parametrize(
    "mask, error, message",
    [
        (GOOD.astype(np.uint8), TypeError, "mask must be an array of bool, not of uint8"),
        (GOOD.astype(np.float32), TypeError, "mask must be an array of bool"),
        (GOOD.tolist(), TypeError, "mask"),
        (True, TypeError, "mask"),
        ("mask", TypeError, "mask"),
        (np.ma.masked_array(GOOD), TypeError, "mask"),
        (GOOD.T.copy(), ValueError, r"mask must have shape \(4, 2\), not \(2, 4\)"),
        (GOOD[:, :1], ValueError, r"mask must have shape \(4, 2\), not \(4, 1\)"),
        (GOOD[..., None], ValueError, r"mask must have shape \(4, 2\), not \(4, 2, 1\)"),
        (GOOD[:, 0], ValueError, r"mask must have shape \(4, 2\), not \(4,\)"),
        (np.array(True), ValueError, r"mask must have shape \(4, 2\), not \(\)"),
    ],
)
def test_bad_masks_are_named(mask: Any, error: type[Exception], message: str) -> None:
    layer, x = fr.LSTM(3, 5), np.zeros((4, 2, 3), np.float32)
    for call in (layer, layer.forward):
        with pytest.raises(error, match=message):
            call(x, mask=mask)


def test_a_mask_is_given_by_name() -> None:
    """So that what was a call by position stays one."""
    layer, x = fr.RNN(3, 5, seed=0), np.zeros((4, 2, 3), np.float32)
    out = np.empty((4, 2, 5), np.float32)
    assert layer(x, None, None, None, out)[0] is out
    assert layer.forward(x, None, None, None, 2, out)[0] is out
    with pytest.raises(TypeError):
        layer(x, None, None, None, out, GOOD)
    with pytest.raises(TypeError):
        fr.RNNCell(3, 5)(x[0], mask=GOOD[0])


# ---- the CUDA engine ----

ON_DEVICE = SHORT[::2] + SHORT[1::6]


@pytest.mark.parametrize("case", ON_DEVICE + EMPTY[:3])
def test_a_device_computes_the_same(device: TestDevice, case: Case, rng: np.random.Generator) -> None:
    cpu, layer = make_layer(case), make_layer(case, device="cuda")
    inputs = make_clear_inputs(case, cpu.parameters, rng)
    result, rounded = run(device, layer, inputs), run_rounded(case, cpu.parameters, inputs)
    for expected, eps in (
        (run_reference(case, cpu.parameters, inputs), case.eps + float(np.finfo(np.float64).eps)),
        (run_library(cpu, inputs), 2 * case.eps),
    ):
        assert_results_close(result, expected, map_result(lambda a, eps=eps: a.bound(eps), rounded))


@pytest.mark.parametrize("case", ON_DEVICE[1::3])
@pytest.mark.parametrize("recompute", [1, 3, 100])
def test_recompute_on_a_device(device: TestDevice, case: Case, recompute: int, rng: np.random.Generator) -> None:
    layer = make_layer(case, device="cuda")
    inputs = make_clear_inputs(case, host(layer, device), rng)
    expected = run(device, layer, inputs)
    there = device.put(dataclasses.replace(inputs, lengths=None))
    there = dataclasses.replace(there, lengths=inputs.lengths)
    y, state, tape = layer.forward(there.x, there.state, **there.sequence_options(), recompute=recompute)
    grads = layer.backward(tape, there.dy, there.dstate)
    result = device.get(Result(y, state, grads.x, grads.state, grads.parameters))
    assert_results_close(result, expected, error_bounds(case, host(layer, device), inputs, other=case.dtype))


PERSISTENT = [
    Case(cell, layers, directions, "float32", 9, 5, 6, 24, ragged, True, reverse, masked=True)
    for cell in ("lstm", "lstm_coupled", "gru")
    for layers, directions, ragged, reverse in ((1, 1, False, False), (2, 2, True, False), (2, 1, True, True))
]


@pytest.mark.parametrize("engine", ["stepwise", "persistent"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("case", PERSISTENT)
def test_both_engines_of_a_device(
    device: TestDevice, case: Case, dtype: str, engine: str, rng: np.random.Generator
) -> None:
    if device.real:
        pytest.skip("cuBLAS may choose another order for another shape")
    precision = "tf32" if dtype == "float32" else "ieee"
    layer = make_layer(case, device="cuda", engine=engine, precision=precision, dtype=dtype)
    inputs = without_skipped_dy(make_inputs(case, rng))
    if dtype != "float32":
        inputs = shortened(inputs, layer.dtype)
    moved = compacted(case, inputs)
    assert_moved_back(case, inputs, moved, run(device, layer, inputs), run(device, layer, moved.inputs))


@pytest.mark.parametrize("case", [Case("gru", 3, 2, "float64", 8, 4, 3, 5, True, True, masked=True)])
def test_dropout_on_a_device_counts_time_too(device: TestDevice, case: Case, rng: np.random.Generator) -> None:
    cpu, layer = (make_layer(case, dropout=0.4, **options) for options in ({}, {"device": "cuda"}))
    inputs = make_inputs(case, rng)
    ours, theirs = run(device, layer, inputs), run_library(cpu, inputs)
    # Bounds of the same without dropout are too small: masks scale by 1/(1-p).
    for a, b in zip((ours.y, ours.dx, ours.state), (theirs.y, theirs.dx, theirs.state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_buffers_and_rules_on_a_device(device: TestDevice, rng: np.random.Generator) -> None:
    case = Case("lstm", 2, 2, "float32", 7, 4, 3, 5, True, True, masked=True)
    layer, inputs = make_layer(case, device="cuda"), make_inputs(case, rng)
    expected = run(device, layer, inputs)
    there = device.put(inputs)  # the lengths too: nobody looks at them
    held = layer.buffers(case.time, case.batch, mask=True)
    for _ in range(2):
        y, state, tape = layer.forward(there.x, there.state, **there.sequence_options(), out=held)
        grads = layer.backward(tape, there.dy, there.dstate)
        result = device.get(Result(y, state, grads.x, grads.state, grads.parameters))
        assert_same(result, expected)
    with pytest.raises(ValueError, match="out must be Buffers made with mask=True"):
        layer(there.x, mask=there.mask, out=layer.buffers(case.time, case.batch))
    assert layer(there.x, lengths=there.lengths, out=held)[0] is held.y
    for bad, error in ((inputs.mask, TypeError), (there.reset.astype("u1"), TypeError), (there.mask[1:], ValueError)):
        with pytest.raises(error, match="mask must"):
            layer(there.x, mask=bad)
    with pytest.raises(TypeError, match="mask must be True or False"):
        layer.buffers(case.time, case.batch, mask=1)


@pytest.mark.parametrize("case", CASES[2:4])
def test_strides_on_a_device(device: TestDevice, case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case, device="cuda"), make_inputs(case, rng)
    expected = run(device, layer, inputs)
    x, state, lengths, reset = device.put((inputs.x, inputs.state, inputs.lengths, inputs.reset))
    spread = device.put(np.ones((2 * case.batch, 3 * case.time), bool))[1::2, ::3]
    spread[...] = device.put(np.ascontiguousarray(inputs.mask.T))
    result = layer(x, state, lengths, reset, mask=spread.T)
    assert_same(device.get(result), (expected.y, expected.state))


@pytest.mark.parametrize("reverse", [False, True])
def test_any_byte_but_zero_is_true(reverse: bool, rng: np.random.Generator) -> None:
    """As in NumPy: a bool array may be a view of bytes of any value, and their sum is no count."""
    layer = fr.GRU(3, 4, reverse=reverse, seed=0)
    x = rng.standard_normal((6, 2, 3), dtype=np.float32)
    mask, reset = rng.random((2, 6, 2)) < 0.5
    odd_mask, odd_reset = ((flags * np.uint8(254)).view(bool) for flags in (mask, reset))
    guarded = np.full((18, 2, 4), 7.0, np.float32)
    y, state, tape = layer.forward(x, reset=odd_reset, mask=odd_mask, out=guarded[6:12])
    expected, expected_state, expected_tape = layer.forward(x, reset=reset, mask=mask)
    assert np.array_equal(y, expected) and np.array_equal(state, expected_state)
    assert (guarded[:6] == 7).all() and (guarded[12:] == 7).all()
    assert np.array_equal(layer.backward(tape, y).x, layer.backward(expected_tape, expected).x)
    if not reverse:
        stepper = layer.stream(2)
        stepper.step(x[0])
        stepper.reset(np.array([0, 254], np.uint8).view(bool))
        assert stepper.state[0, 0].any() and not stepper.state[0, 1].any()


def test_flags_that_another_thread_writes_meanwhile() -> None:
    """Any result will do, but nothing out of bounds: this crashed the interpreter within seconds."""
    layer, x = fr.RNN(1, 1, seed=0), np.zeros((2000, 40, 1), np.float32)
    flags, other = np.zeros((2000, 40), bool), np.arange(80000).reshape(2000, 40) % 3 == 0
    over = threading.Event()

    def write() -> None:
        while not over.is_set():
            for values in (other, True, False):
                np.copyto(flags, values)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(50):
            layer(x, mask=flags, reset=flags)
    finally:
        over.set()
        writer.join()

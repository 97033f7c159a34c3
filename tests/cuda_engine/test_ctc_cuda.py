"""CTC on a device and on its stand-in, against the reference; what it promises beside its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from bitwise import assert_same
from ctc_cases import SHAPES, batch, bound
from device_runs import widened
from devices import TestDevice

import fusedrnn as fr
from fusedrnn import reference

DTYPES = ("float32", "float64", "bfloat16", "float16")


def of_dtype(arguments: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The arguments with logits of another dtype."""
    return {**arguments, "logits": arguments["logits"].astype(getattr(ml_dtypes, dtype, dtype))}


def run(device: TestDevice, arguments: dict[str, Any], dloss: Any = 1.0, **options: Any) -> tuple[Any, Any]:
    """Loss and gradient, on the host; only the logits go to the device by themselves."""
    moved = {**arguments, "logits": device.put(arguments["logits"])}
    loss, tape = fr.ctc_loss_forward(**moved, **options)
    return device.get((loss, fr.ctc_loss_backward(tape, dloss)))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_against_the_reference(
    device: TestDevice, shape: tuple[int, int, int, int], dtype: str, reduction: str, rng: np.random.Generator
) -> None:
    sums = "float64" if dtype == "float64" else "float32"
    blank = shape[2] - 1 if reduction == "sum" else 0
    arguments = of_dtype(batch(shape, sums, rng, blank), dtype)
    options = {"blank": blank, "reduction": reduction, "zero_infinity": reduction == "mean"}
    dloss = rng.standard_normal(shape[1]).astype(sums) if reduction == "none" else 0.7
    moved = device.put(arguments)
    loss, tape = fr.ctc_loss_forward(**moved, **options)
    gradient = fr.ctc_loss_backward(tape, device.put(dloss))
    assert loss.dtype == sums and loss.shape == ((shape[1],) if reduction == "none" else ())
    assert gradient.dtype == arguments["logits"].dtype
    assert_same(device.get(fr.ctc_loss(**moved, **options)), device.get(loss))
    exact = {**arguments, "logits": widened(arguments["logits"])}
    expected, kept = reference.ctc_loss(**exact, **options)
    near = bound({**exact, "logits": exact["logits"].astype(sums)})
    np.testing.assert_allclose(device.get(loss), expected, rtol=near, atol=near)
    slope = reference.ctc_loss_backward(kept, dloss)
    rounding = float(ml_dtypes.finfo(gradient.dtype).eps) / 2 if dtype != sums else 0.0  # once, to 16 bits
    smallest = float(ml_dtypes.finfo(gradient.dtype).smallest_subnormal) if dtype != sums else 0.0
    got = widened(device.get(gradient))
    np.testing.assert_array_less(np.abs(got - slope), near + rounding * np.abs(slope) + smallest + 1e-300)
    assert_same(device.get(fr.ctc_loss_backward(tape, device.put(dloss))), device.get(gradient))


@pytest.mark.parametrize("shape", SHAPES)
def test_order_chunks_and_memory_change_no_bit(
    device: TestDevice, shape: tuple[int, int, int, int], rng: np.random.Generator
) -> None:
    """Threads from the last to the first; gradients of a few frames at a time; rows too long for a block's memory."""
    if device.real:
        pytest.skip("these are settings of the stand-in")
    native, arguments = device.arrays.native, batch(shape, "float32", rng)
    expected = run(device, arguments, reduction="none")
    for set_one in (
        lambda: native.set_reversed(True),
        lambda: native.set_chunk_bytes(64),
        lambda: native.set_chunk_bytes(16 * shape[1] * (shape[3] + 1) * 3),
    ):
        set_one()
        assert_same(run(device, arguments, reduction="none"), expected)


def test_a_row_alone_has_the_bits_it_has_in_a_batch(device: TestDevice, rng: np.random.Generator) -> None:
    arguments = batch((60, 9, 40, 20), "float32", rng)
    losses, gradient = run(device, arguments, reduction="none")
    for b in range(9):
        alone = {
            name: array[:, b : b + 1] if name == "logits" else array[b : b + 1] for name, array in arguments.items()
        }
        assert_same(run(device, alone, reduction="none"), (losses[b : b + 1], gradient[:, b : b + 1]))


def test_arguments_may_lie_anywhere(device: TestDevice, rng: np.random.Generator) -> None:
    arguments = batch((30, 5, 12, 6), "float32", rng)
    expected = run(device, arguments, reduction="none")
    labels, counts, frames = (arguments[name] for name in ("targets", "target_lengths", "input_lengths"))
    joined = np.concatenate([row[:n] for row, n in zip(labels, counts, strict=True)])
    for targets in (labels, labels.astype(np.int32), joined, device.put(labels), device.put(joined.astype(np.int16))):
        for lengths in (counts.tolist(), device.put(counts), device.put(counts.astype(np.uint8))):
            for steps in (frames, device.put(frames)):
                given = {**arguments, "targets": targets, "target_lengths": lengths, "input_lengths": steps}
                assert_same(run(device, given, reduction="none"), expected)
    # The tape does not depend on the caller's arrays.
    moved = device.put(arguments)
    _, tape = fr.ctc_loss_forward(**moved, reduction="none")
    for name in ("targets", "target_lengths", "input_lengths"):
        moved[name].fill(0)
    assert_same(device.get(fr.ctc_loss_backward(tape)), expected[1])
    # Rows that lie next to each other, and a part of a larger array.
    padded = np.full((5, 31, 15), np.nan, np.float32)
    padded[:, 1:, 2:14] = arguments["logits"].swapaxes(0, 1)
    view = device.put(padded)[:, 1:, 2:14].swapaxes(0, 1)
    losses, tape = fr.ctc_loss_forward(view, *(arguments[name] for name in list(arguments)[1:]), reduction="none")
    assert_same(device.get((losses, fr.ctc_loss_backward(tape))), expected)


@pytest.mark.parametrize("steps", [100, 4000])
def test_long_sequences_keep_their_digits(device: TestDevice, steps: int, rng: np.random.Generator) -> None:
    logits = (30 * rng.standard_normal((steps, 2, 30))).astype(np.float32)
    targets = rng.integers(1, 30, (2, steps // 5))
    loss, gradient = run(device, {"logits": logits, "targets": targets}, reduction="none")
    expected, kept = fr.ctc_loss_forward(logits.astype(np.float64), targets, reduction="none")
    np.testing.assert_allclose(loss, expected, rtol=4e-7)
    assert np.abs(gradient - fr.ctc_loss_backward(kept)).max() <= 16 * np.finfo(np.float32).eps * 30


def test_rows_that_cannot_be_aligned(device: TestDevice) -> None:
    logits, targets = np.zeros((3, 4, 4), np.float32), np.array([[1, 1], [1, 2], [1, 2], [0, 0]])
    given = {"logits": logits, "targets": targets, "input_lengths": [2, 1, 0, 0], "target_lengths": [2, 2, 1, 0]}
    for zero in (False, True):
        losses, gradient = run(device, given, reduction="none", zero_infinity=zero)
        assert losses.tolist() == [0.0 if zero else math.inf] * 3 + [0.0]
        assert not gradient.any()
    assert run(device, given, zero_infinity=True)[0] == 0 and run(device, given)[0] == math.inf
    with pytest.raises(ValueError, match=r"^logits must .* row 0 "):
        fr.ctc_align(**{**given, "logits": device.put(logits)})


def test_impossible_classes_and_frames(device: TestDevice) -> None:
    logits = np.zeros((4, 3, 3))
    logits[:, 0, 2] = -np.inf
    logits[2, 1] = -np.inf
    targets = np.array([[1], [1], [2]])
    losses, gradient = run(device, {"logits": logits, "targets": targets}, reduction="none")
    expected, kept = reference.ctc_loss(logits, targets, reduction="none")
    np.testing.assert_allclose(losses, expected, rtol=1e-13)
    np.testing.assert_allclose(gradient, reference.ctc_loss_backward(kept), atol=1e-14)
    assert losses[1] == math.inf
    targets[0] = 2
    assert run(device, {"logits": logits, "targets": targets}, reduction="none")[0][0] == math.inf


@pytest.mark.parametrize("scale", [1e4, 1e8, 1e30])
def test_logits_of_any_size(device: TestDevice, scale: float, rng: np.random.Generator) -> None:
    logits = (scale * rng.standard_normal((20, 2, 5))).astype(np.float32)
    targets = rng.integers(1, 5, (2, 4))
    loss, gradient = run(device, {"logits": logits, "targets": targets}, reduction="none")
    expected = reference.ctc_loss(logits, targets, reduction="none")[0]
    np.testing.assert_allclose(loss, expected, rtol=20 * np.finfo(np.float32).eps)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() <= 1 + 1e-5


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("classes", [4, 300])
def test_a_nan_stays_in_its_row(device: TestDevice, classes: int, bad: float, rng: np.random.Generator) -> None:
    arguments = {"logits": rng.standard_normal((6, 3, classes)), "targets": rng.integers(1, 4, (3, 2))}
    clean = run(device, arguments, reduction="none")
    for spoiled in (slice(2, 3), slice(None)):  # one logit, all logits of the frame
        arguments["logits"][3, 1, spoiled] = bad
        losses, gradient = run(device, arguments, reduction="none")
        assert np.isnan(losses[1]) and np.isnan(gradient[:, 1]).all()
        assert_same((losses[[0, 2]], gradient[:, [0, 2]]), (clean[0][[0, 2]], clean[1][:, [0, 2]]))


def test_what_lies_past_a_length_influences_nothing(device: TestDevice, rng: np.random.Generator) -> None:
    arguments = batch((30, 5, 12, 6), "float32", rng)
    spoiled = {**arguments, "logits": arguments["logits"].copy(), "targets": arguments["targets"].copy()}
    for b in range(5):
        spoiled["logits"][arguments["input_lengths"][b] :, b] = np.nan
        spoiled["targets"][b, arguments["target_lengths"][b] :] = -7
    expected = run(device, arguments, reduction="none")
    for one in (spoiled, {**spoiled, "targets": device.put(spoiled["targets"])}):
        assert_same(run(device, one, reduction="none"), expected)


def test_what_the_host_does_not_see(device: TestDevice, rng: np.random.Generator) -> None:
    """Device lengths are clamped; a device target that is no label gives nan, whatever can be aligned."""
    logits = rng.standard_normal((5, 6, 4)).astype(np.float32)
    targets = np.array([[1, 2], [4, 1], [1, -1], [0, 3], [9, 9], [3, 1]])
    frames, counts = np.array([9, 5, 5, 5, 0, -2]), np.array([2, 2, 2, 2, 1, 7])
    given = {"logits": logits, **device.put({"targets": targets, "input_lengths": frames, "target_lengths": counts})}
    losses, gradient = run(device, given, reduction="none")
    assert np.isnan(losses).tolist() == [False, True, True, True, True, False]
    assert np.isnan(gradient).all(axis=(0, 2)).tolist() == [False, True, True, True, False, False]
    plain = {"logits": logits[:, :1], "targets": targets[:1]}
    assert_same((losses[:1], gradient[:, :1]), run(device, plain, reduction="none"))
    assert losses[5] == math.inf and not gradient[:, 4:].any()
    assert np.isnan(run(device, given, reduction="sum")[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_best_path(
    device: TestDevice, shape: tuple[int, int, int, int], dtype: str, rng: np.random.Generator
) -> None:
    sums = "float64" if dtype == "float64" else "float32"
    arguments = of_dtype(batch(shape, sums, rng), dtype)
    arguments["target_lengths"] = np.minimum(arguments["target_lengths"], arguments["input_lengths"] // 2)
    path, log_prob = fr.ctc_align(**device.put(arguments))
    assert all(isinstance(array, device.arrays.kind) for array in (path, log_prob)) and log_prob.dtype == sums
    expected, found = fr.ctc_align(**{**arguments, "logits": arguments["logits"].astype(sums)})
    np.testing.assert_array_equal(device.get(path), expected)
    # Both are sums in float64 of rounded logarithms, one a frame, rounded once.
    logarithms = shape[0] * (float(np.abs(widened(arguments["logits"])).max()) + math.log(shape[2]))
    near = 4 * float(np.finfo(np.float64).eps) * logarithms
    np.testing.assert_allclose(device.get(log_prob), found, rtol=float(np.finfo(sums).eps), atol=near)
    assert fr.ctc_spans(path[:, 0]) == fr.ctc_spans(expected[:, 0])
    moved, lengths = device.put(arguments["logits"]), arguments["input_lengths"]
    labels = fr.ctc_greedy_decode(moved, device.put(lengths))
    assert all(isinstance(row, device.arrays.kind) for row in labels)
    assert_same(device.get(labels), fr.ctc_greedy_decode(arguments["logits"].astype(sums), lengths))


def test_paths_of_equal_and_impossible_classes(device: TestDevice) -> None:
    logits = np.zeros((7, 3, 150), np.float32)
    logits[:, 1, :140] = -np.inf
    logits[3, 2] = -np.inf
    targets = np.array([[3, 3, 9], [141, 149, 149], [1, 2, 3]])
    for rows in (slice(0, 1), slice(1, 2)):
        given = {"targets": targets[rows], "blank": 145}
        path = fr.ctc_align(device.put(logits)[:, rows], **given)
        assert_same(device.get(path), fr.ctc_align(logits[:, rows], **given))
    with pytest.raises(ValueError, match="row 2 has no path"):
        fr.ctc_align(device.put(logits), targets, blank=145)
    labels = fr.ctc_greedy_decode(device.put(logits), [7, 4, 7], blank=2)
    assert_same(device.get(labels), fr.ctc_greedy_decode(logits, [7, 4, 7], blank=2))


def test_beam_decoding(device: TestDevice, rng: np.random.Generator) -> None:
    logits = rng.standard_normal((20, 3, 9)).astype(np.float32)
    found = fr.ctc_beam_decode(device.put(logits), device.put(np.array([20, 15, 0])), beam_width=8, top=3)
    assert_same(device.get(found), fr.ctc_beam_decode(logits, [20, 15, 0], beam_width=8, top=3))


def tape_of(logits: Any) -> Any:
    """A tape of two rows."""
    return fr.ctc_loss_forward(logits, [[1], [1]])[1]


ZEROS = np.zeros((4, 2, 3), np.float32)
ERRORS: list[tuple[Callable[[TestDevice, Any], Any], str, Any]] = [
    (lambda d, x: fr.ctc_loss(d.put(ZEROS.astype(np.int64)), [[1], [1]]), "logits", TypeError),
    (lambda d, x: fr.ctc_loss(x[0], [[1], [1]]), "logits", ValueError),
    (lambda d, x: fr.ctc_loss(x[..., :0], [[1], [1]]), "logits", ValueError),
    (lambda d, x: fr.ctc_loss(x[..., ::2], [[1], [1]]), "logits", ValueError),
    (lambda d, x: fr.ctc_loss(x, [[0], [1]]), "targets must .* not be the blank, 0; row 0 has 0", ValueError),
    (lambda d, x: fr.ctc_loss(x, [[1], [3]]), "targets", ValueError),
    (lambda d, x: fr.ctc_loss(x, [[1.0], [1.0]]), "targets", TypeError),
    (lambda d, x: fr.ctc_loss(x, d.put(np.ones((2, 1)))), "targets", TypeError),
    (lambda d, x: fr.ctc_loss(x, "ab"), "targets", TypeError),
    (lambda d, x: fr.ctc_loss(x, [[1]]), "targets", ValueError),
    (lambda d, x: fr.ctc_loss(x, d.put(np.ones((3, 1), int))), "targets", ValueError),
    (lambda d, x: fr.ctc_loss(x, d.put(np.ones((2, 1, 1), int))), "targets", ValueError),
    (lambda d, x: fr.ctc_loss(x, d.put(np.ones(2, int))), "target_lengths", ValueError),
    (lambda d, x: fr.ctc_loss(x, d.put(np.ones(2, int)), None, d.put(np.array([1, 2]))), "targets", ValueError),
    (lambda d, x: fr.ctc_loss(x, d.put(np.ones((2, 2), int)), None, [1, 3]), "target_lengths", ValueError),
    (lambda d, x: fr.ctc_loss(x, [[1], [1]], [5, 1]), "input_lengths", ValueError),
    (lambda d, x: fr.ctc_loss(x, [[1], [1]], d.put(np.ones(2))), "input_lengths", TypeError),
    (lambda d, x: fr.ctc_loss(x, [[1], [1]], d.put(np.ones(3, int))), "input_lengths", ValueError),
    (lambda d, x: fr.ctc_loss(x, [[1], [1]], blank=3), "blank", ValueError),
    (lambda d, x: fr.ctc_loss(x, [[1], [1]], reduction="max"), "reduction", ValueError),
    (lambda d, x: fr.ctc_loss(x, [[1], [1]], zero_infinity=1), "zero_infinity", TypeError),
    (lambda d, x: fr.ctc_loss_backward(tape_of(x), "1"), "dloss", TypeError),
    (lambda d, x: fr.ctc_loss_backward(tape_of(x), np.ones(2)), "dloss", TypeError),
    (lambda d, x: fr.ctc_loss_backward(tape_of(x), d.put(np.ones(2, "f4"))), "dloss", ValueError),
    (lambda d, x: fr.ctc_loss_backward(tape_of(x), d.put(np.ones(()))), "dloss", TypeError),
    (lambda d, x: fr.ctc_greedy_decode(x, [1, 5]), "lengths", ValueError),
    (lambda d, x: fr.ctc_greedy_decode(x[0]), "logits", ValueError),
    (lambda d, x: fr.ctc_beam_decode(x, beam_width=0), "beam_width", ValueError),
    (lambda d, x: fr.ctc_align(x, [[0], [1]]), "targets", ValueError),
]


@pytest.mark.parametrize("number", range(len(ERRORS)))
def test_what_cannot_be_is_named(device: TestDevice, number: int) -> None:
    call, words, error = ERRORS[number]
    with pytest.raises(error, match=rf"^{words}\b"):
        call(device, device.put(ZEROS))


def test_arrays_of_another_device_are_refused(device: TestDevice) -> None:
    if device.arrays.count() < 2:
        pytest.skip("there is one CUDA device only")
    logits, ones = device.put(ZEROS), np.ones((2, 1), np.int64)
    with pytest.raises(TypeError, match="targets must be on cuda:0, not on cuda:1"):
        fr.ctc_loss(logits, device.put(ones, 1))
    with pytest.raises(TypeError, match="input_lengths must be on cuda:0, not on cuda:1"):
        fr.ctc_loss(logits, ones, device.put(ones[:, 0], 1))


def test_a_graph_is_refused(device: TestDevice) -> None:
    if device.real:
        pytest.skip("the stand-in says that a graph is captured")
    logits = device.put(ZEROS)
    tape = tape_of(logits)
    device.arrays.native.set_capturing(True)
    with pytest.raises(ValueError, match="logits must not be used while a graph"):
        fr.ctc_loss(logits, [[1], [1]])
    with pytest.raises(ValueError, match="tape must not be used while a graph"):
        fr.ctc_loss_backward(tape)
    with pytest.raises(ValueError, match="logits must not be used while a graph"):
        fr.ctc_align(logits, [[1], [1]])
    with pytest.raises(ValueError, match="logits must not be used while a graph"):
        fr.ctc_greedy_decode(logits)


def test_no_rows_and_no_frames(device: TestDevice) -> None:
    none = device.put(np.zeros((3, 0, 2)))
    assert math.isnan(device.get(fr.ctc_loss(none, np.zeros((0, 1), np.int64))))
    assert device.get(fr.ctc_loss(none, np.zeros((0, 1), np.int64), reduction="sum")) == 0
    empty = {"logits": np.zeros((0, 2, 2)), "targets": np.zeros((2, 0), np.int64)}
    loss, gradient = run(device, empty, reduction="none")
    assert loss.tolist() == [0, 0] and gradient.shape == (0, 2, 2)


def test_the_tape_tells_what_it_holds(device: TestDevice) -> None:
    _, tape = fr.ctc_loss_forward(device.put(np.zeros((100, 4, 8), np.float32)), np.ones((4, 10), np.int64))
    assert 100 * 4 * (4 * 11 + 2) * 4 <= tape.nbytes <= 100 * 4 * (4 * 11 + 2) * 4 + 1000

"""The transducer's loss on a device and on its stand-in, against the reference; what it promises beside its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from bitwise import assert_same
from device_runs import widened
from devices import TestDevice
from transducer_cases import SHAPES, batch, bound

import fusedrnn as fr
from fusedrnn import reference

DTYPES = ("float32", "float64", "bfloat16", "float16")
ARRAYS = ("encoder", "predictor", "weight", "bias")


def of_dtype(arguments: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The arguments with arrays of another dtype."""
    kind = getattr(ml_dtypes, dtype, dtype)
    return {
        name: array.astype(kind) if name in ARRAYS and array is not None else array for name, array in arguments.items()
    }


def on_device(device: TestDevice, arguments: dict[str, Any]) -> dict[str, Any]:
    """Only what must lie there goes to the device."""
    return {name: device.put(value) if name in ARRAYS else value for name, value in arguments.items()}


def run(device: TestDevice, arguments: dict[str, Any], dloss: Any = 1.0, **options: Any) -> tuple[Any, Any]:
    """Loss and gradients, on the host."""
    loss, tape = fr.transducer_loss_forward(**on_device(device, arguments), **options)
    return device.get((loss, fr.transducer_loss_backward(tape, dloss)))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_against_the_reference(
    device: TestDevice, shape: tuple[int, int, int, int, int], dtype: str, reduction: str, rng: np.random.Generator
) -> None:
    sums = "float64" if dtype == "float64" else "float32"
    blank = shape[4] - 1 if reduction == "sum" else 0
    arguments = of_dtype(batch(shape, sums, rng, blank), dtype)
    if reduction == "mean":  # as "sum" and "none" are, some of whose losses are infinite
        arguments["input_lengths"] = np.maximum(arguments["input_lengths"], 1)
        arguments["bias"] = None
    options = {"blank": blank, "reduction": reduction}
    dloss = rng.standard_normal(shape[1]).astype(sums) if reduction == "none" else 0.7
    moved = device.put(arguments)
    loss, tape = fr.transducer_loss_forward(**moved, **options)
    found = fr.transducer_loss_backward(tape, device.put(dloss))
    assert loss.dtype == sums and loss.shape == ((shape[1],) if reduction == "none" else ())
    exact = {
        name: widened(array) if name in ARRAYS and array is not None else array for name, array in arguments.items()
    }
    expected, kept = reference.transducer_loss(**exact, **options)
    # Hidden values and gradients of logits are rounded to 16 bits, as factors of the products are.
    near = {**exact, "encoder": exact["encoder"].astype(sums)}
    eps = float(ml_dtypes.finfo(arguments["encoder"].dtype).eps) / float(np.finfo(sums).eps)
    finite = np.asarray(expected)[np.isfinite(expected)]
    np.testing.assert_allclose(device.get(loss), expected, rtol=eps * bound(near, []), atol=eps * bound(near, [finite]))
    for name, ours, theirs in zip(ARRAYS, found, reference.transducer_loss_backward(kept, dloss), strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.dtype == arguments[name].dtype and ours.shape == arguments[name].shape
            got = widened(device.get(ours))
            np.testing.assert_allclose(got, theirs, rtol=0, atol=eps * bound(near, [theirs]), err_msg=name)
    assert_same(device.get(fr.transducer_loss(**moved, **options)), device.get(loss))
    assert_same(device.get(fr.transducer_loss_backward(tape, device.put(dloss))), device.get(found))


@pytest.mark.parametrize("shape", SHAPES)
def test_order_and_chunks(device: TestDevice, shape: tuple[int, int, int, int, int], rng: np.random.Generator) -> None:
    """Threads from the last to the first change no bit. Chunks change none of a row's; weights are sums."""
    if device.real:
        pytest.skip("these are settings of the stand-in")
    native, arguments = device.arrays.native, batch(shape, "float32", rng)
    losses, expected = run(device, arguments, reduction="none")
    native.set_reversed(True)
    assert_same(run(device, arguments, reduction="none"), (losses, expected))
    native.set_reversed(False)
    for cells in (1, 7, shape[2] + 2):
        native.set_chunk_bytes(cells * (shape[4] + 2 * shape[3] + 2 * 128) * 4)
        again, found = run(device, arguments, reduction="none")
        assert_same((again, found[:2]), (losses, expected[:2]))
        for ours, theirs in zip(found[2:], expected[2:], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound(arguments, [theirs]))


def test_a_row_alone_has_the_bits_it_has_in_a_batch(device: TestDevice, rng: np.random.Generator) -> None:
    arguments = batch((20, 5, 6, 9, 11), "float32", rng)
    losses, (dencoder, dpredictor, *_) = run(device, arguments, reduction="none")
    for b in range(5):
        one = slice(b, b + 1)
        alone = {
            **{name: arguments[name][:, one] for name in ("encoder", "predictor")},
            **{name: arguments[name] for name in ("weight", "bias")},
            **{name: arguments[name][one] for name in ("targets", "input_lengths", "target_lengths")},
        }
        loss, found = run(device, alone, reduction="none")
        assert_same((loss, found[0], found[1]), (losses[one], dencoder[:, one], dpredictor[:, one]))


def test_arguments_may_lie_anywhere(device: TestDevice, rng: np.random.Generator) -> None:
    arguments = batch((12, 4, 5, 9, 8), "float32", rng)
    expected = run(device, arguments, reduction="none")
    labels, counts, frames = (arguments[name] for name in ("targets", "target_lengths", "input_lengths"))
    for targets in (labels, labels.astype(np.int32), device.put(labels), device.put(labels.astype(np.int16))):
        for lengths in (counts.tolist(), device.put(counts), device.put(counts.astype(np.uint8))):
            for steps in (frames, device.put(frames)):
                given = {**arguments, "targets": targets, "target_lengths": lengths, "input_lengths": steps}
                assert_same(run(device, given, reduction="none"), expected)
    # The tape does not depend on the caller's integers.
    moved = device.put(arguments)
    _, tape = fr.transducer_loss_forward(**moved, reduction="none")
    for name in ("targets", "target_lengths", "input_lengths"):
        moved[name].fill(0)
    assert_same(device.get(fr.transducer_loss_backward(tape)), expected[1])
    # Rows that lie next to each other, and a part of a larger array.
    padded = np.full((4, 13, 12), np.nan, np.float32)
    padded[:, 1:, 2:11] = arguments["encoder"].swapaxes(0, 1)
    view = device.put(padded)[:, 1:, 2:11].swapaxes(0, 1)
    losses, tape = fr.transducer_loss_forward(**{**on_device(device, arguments), "encoder": view}, reduction="none")
    assert_same(device.get((losses, fr.transducer_loss_backward(tape))), expected)


def test_what_lies_past_a_length_influences_nothing(device: TestDevice, rng: np.random.Generator) -> None:
    arguments = batch((20, 5, 6, 9, 11), "float32", rng)
    expected = run(device, arguments, reduction="none")
    poisoned = {name: np.array(value) for name, value in arguments.items()}
    for b, (steps, length) in enumerate(zip(arguments["input_lengths"], arguments["target_lengths"], strict=True)):
        poisoned["encoder"][steps:, b] = np.nan
        poisoned["predictor"][length + 1 :, b] = np.nan
        poisoned["targets"][b, length:] = -7
    assert_same(run(device, poisoned, reduction="none"), expected)


def test_long_sequences_keep_their_digits(device: TestDevice, rng: np.random.Generator) -> None:
    arguments = batch((400, 2, 30, 8, 12), "float32", rng, peak=4.0)
    del arguments["input_lengths"], arguments["target_lengths"]
    wide = {name: array.astype(np.float64) if name in ARRAYS else array for name, array in arguments.items()}
    loss, found = run(device, arguments, reduction="none")
    expected, kept = fr.transducer_loss_forward(**wide, reduction="none")
    np.testing.assert_allclose(loss, expected, rtol=4e-7)
    for ours, theirs in zip(found, fr.transducer_loss_backward(kept), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound(arguments, [theirs]))


def test_rows_without_a_path_and_bad_labels(device: TestDevice, rng: np.random.Generator) -> None:
    arguments = batch((6, 4, 3, 5, 4), "float32", rng)
    arguments["input_lengths"] = np.array([0, 0, 6, 6])
    arguments["target_lengths"] = np.array([0, 2, 3, 3])
    losses, found = run(device, arguments, reduction="none")
    assert losses[0] == 0 and losses[1] == math.inf and np.isfinite(losses[2:]).all()
    assert not found[0][:, :2].any() and not found[1][:, :2].any()
    # A target on the device that is no label.
    targets = np.array(arguments["targets"])
    targets[2, 1] = 4
    bad, (dencoder, dpredictor, dweight, _) = run(
        device, {**arguments, "targets": device.put(targets)}, reduction="none"
    )
    assert np.isnan(bad[2]) and bad[3] == losses[3]
    assert np.isnan(dencoder[:, 2]).all() and np.isnan(dpredictor[:, 2]).all() and np.isnan(dweight).all()
    assert_same((dencoder[:, 3], dpredictor[:, 3]), (found[0][:, 3], found[1][:, 3]))


def test_impossible_classes(device: TestDevice, rng: np.random.Generator) -> None:
    arguments = batch((6, 3, 3, 5, 300), "float64", rng)
    arguments["bias"][5:] = -np.inf
    arguments["targets"] %= 5
    arguments["targets"] += arguments["targets"] == 0
    losses, found = run(device, arguments, reduction="none")
    expected, kept = reference.transducer_loss(**arguments, reduction="none")
    np.testing.assert_allclose(losses, expected, rtol=1e-12)
    for ours, theirs in zip(found, reference.transducer_loss_backward(kept), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound(arguments, [theirs]))


def test_of_nothing(device: TestDevice) -> None:
    for steps, rows, longest in ((0, 2, 3), (3, 0, 2), (3, 2, 0), (0, 0, 0)):
        arguments = batch((max(steps, 1), max(rows, 1), longest, 4, 3), "float32", np.random.default_rng(0))
        given = {
            "encoder": arguments["encoder"][:steps, :rows],
            "predictor": arguments["predictor"][:, :rows],
            "weight": arguments["weight"],
            "bias": arguments["bias"],
            "targets": arguments["targets"][:rows],
        }
        losses, found = run(device, given, reduction="none")
        assert losses.shape == (rows,) and found[0].shape == (steps, rows, 4)
        assert all(np.isfinite(array).all() for array in found)
        if steps == 0:
            assert (losses == (0 if longest == 0 else math.inf)).all()


ENCODER = np.zeros((3, 2, 4), np.float32)
PREDICTOR, WEIGHT, BIAS = np.zeros((2, 2, 4), np.float32), np.zeros((3, 4), np.float32), np.zeros(3, np.float32)


def call(device: TestDevice, **changed: Any) -> Any:
    given = dict(zip(ARRAYS, device.put((ENCODER, PREDICTOR, WEIGHT, BIAS)), strict=True))
    return fr.transducer_loss_forward(**{**given, "targets": [[1], [2]], **changed})


@pytest.mark.parametrize(
    ("attempt", "name", "error"),
    [
        (lambda d: call(d, encoder=d.put(ENCODER.astype(np.int64))), "encoder", TypeError),
        (lambda d: call(d, encoder=d.put(ENCODER)[0]), "encoder", ValueError),
        (lambda d: call(d, encoder=d.put(ENCODER)[..., ::2]), "encoder", ValueError),
        (lambda d: call(d, predictor=PREDICTOR), "predictor", TypeError),
        (lambda d: call(d, predictor=d.put(PREDICTOR.astype(np.float64))), "predictor", TypeError),
        (lambda d: call(d, predictor=d.put(PREDICTOR)[:, :1]), "predictor", ValueError),
        (lambda d: call(d, predictor=d.put(PREDICTOR)[:0]), "predictor", ValueError),
        (lambda d: call(d, weight=d.put(WEIGHT)[:, :3]), "weight", ValueError),
        (lambda d: call(d, weight=WEIGHT), "weight", TypeError),
        (lambda d: call(d, bias=d.put(BIAS)[:2]), "bias", ValueError),
        (lambda d: call(d, targets=[[0], [1]]), "targets must .* not be the blank, 0; row 0 has 0", ValueError),
        (lambda d: call(d, targets=[[1], [3]]), "targets", ValueError),
        (lambda d: call(d, targets=[[1.0], [1.0]]), "targets", TypeError),
        (lambda d: call(d, targets=d.put(np.ones((2, 1)))), "targets", TypeError),
        (lambda d: call(d, targets=d.put(np.ones((2, 2), np.int64))), "targets", ValueError),
        (lambda d: call(d, input_lengths=[4, 1]), "input_lengths", ValueError),
        (lambda d: call(d, target_lengths=[1, 2]), "target_lengths", ValueError),
        (lambda d: call(d, target_lengths=d.put(np.ones(3, np.int64))), "target_lengths", ValueError),
        (lambda d: call(d, blank=3), "blank", ValueError),
        (lambda d: call(d, reduction="all"), "reduction", ValueError),
        (lambda d: fr.transducer_loss_backward(call(d)[1], d.put(np.ones(2, np.float32))), "dloss", ValueError),
        (lambda d: fr.transducer_loss_backward(call(d)[1], np.ones(2, np.float32)), "dloss", TypeError),
    ],
)
def test_what_cannot_be_is_named(
    device: TestDevice, attempt: Callable[[TestDevice], Any], name: str, error: type[Exception]
) -> None:
    with pytest.raises(error, match=rf"^{name}"):
        attempt(device)


def test_while_a_graph_is_captured(device: TestDevice) -> None:
    if device.real:
        pytest.skip("this is a setting of the stand-in")
    device.arrays.native.set_capturing(True)
    with pytest.raises(ValueError, match=r"^encoder must not be used while a graph is captured"):
        call(device)


@pytest.mark.parametrize(("columns", "classes"), [(256, 1000), (512, 32), (16, 4000)])
def test_memory(device: TestDevice, columns: int, classes: int) -> None:
    """Of 400 frames, 60 labels and 16 rows, whatever the widths: beyond tape, arguments and gradients below 150 MB."""
    steps, rows, longest = 400, 16, 60
    sizes = {"steps": steps, "batch": rows, "longest": longest, "in_features": columns, "out_features": classes}
    call = device.arrays.native.TransducerLossCall(dtype="float32", **sizes)
    gradients = 4 * (rows * (steps + longest + 1) + classes) * columns
    assert call.bytes() < 150e6
    assert call.with_fields(dloss=1).bytes() - gradients < 150e6

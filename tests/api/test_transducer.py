"""The transducer's loss and its gradients, against enumeration of all paths, the reference, and torch's autograd."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from bitwise import assert_same, threads
from transducer_cases import SHAPES, batch, bound

import fusedrnn as fr
from fusedrnn import reference

NAMES = ("encoder", "predictor", "weight", "bias")


def gradients(arguments: dict[str, Any], dloss: Any = 1.0, **options: Any) -> tuple[Any, Any]:
    loss, tape = fr.transducer_loss_forward(**arguments, **options)
    return loss, fr.transducer_loss_backward(tape, dloss)


def assert_close(actual: Any, expected: Any, arguments: dict[str, Any]) -> None:
    for name, ours, theirs in zip(NAMES, actual, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.dtype == arguments["encoder"].dtype and ours.shape == arguments[name].shape
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound(arguments, [theirs]), err_msg=name)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_against_the_reference(
    shape: tuple[int, int, int, int, int], dtype: str, reduction: str, rng: np.random.Generator
) -> None:
    blank = shape[4] - 1 if reduction == "sum" else 0
    arguments = batch(shape, dtype, rng, blank)
    if reduction == "mean":  # as "sum" and "none" are, some of whose losses are infinite
        arguments["input_lengths"] = np.maximum(arguments["input_lengths"], 1)
        arguments["bias"] = None
    options = {"blank": blank, "reduction": reduction}
    dloss = rng.standard_normal(shape[1]).astype(dtype) if reduction == "none" else 0.7
    loss, found = gradients(arguments, dloss, **options)
    expected, kept = reference.transducer_loss(**arguments, **options)
    assert loss.dtype == dtype
    finite = np.asarray(expected)[np.isfinite(expected)]
    np.testing.assert_allclose(loss, expected, rtol=bound(arguments, []), atol=bound(arguments, [finite]))
    assert_close(found, reference.transducer_loss_backward(kept, dloss), arguments)
    assert_same(fr.transducer_loss(**arguments, **options), loss)


def every_path(log_probs: np.ndarray, labels: list[int]) -> float:
    """The probability of the labels, by enumeration: where among the frames each label is emitted."""
    steps, total = len(log_probs), 0.0
    for frames in itertools.combinations_with_replacement(range(steps), len(labels)):
        log_prob = 0.0
        for t in range(steps):
            emitted = sum(frame < t for frame in frames)
            for u in range(emitted, emitted + frames.count(t)):
                log_prob += log_probs[t, u, labels[u]]
            log_prob += log_probs[t, emitted + frames.count(t), 0]
        total += math.exp(log_prob)
    return total


@pytest.mark.parametrize(("steps", "length"), [(1, 0), (4, 0), (1, 3), (4, 3), (5, 2)])
def test_against_enumeration(steps: int, length: int, rng: np.random.Generator) -> None:
    arguments = batch((steps, 1, length, 5, 4), "float64", rng)
    del arguments["input_lengths"], arguments["target_lengths"]
    hidden = np.tanh(arguments["encoder"][:, None, 0] + arguments["predictor"][:, 0])
    logits = hidden @ arguments["weight"].T + arguments["bias"]
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = -math.log(every_path(log_probs, arguments["targets"][0].tolist()))
    assert fr.transducer_loss(**arguments) == pytest.approx(expected, rel=1e-13)
    assert reference.transducer_loss(**arguments)[0] == pytest.approx(expected, rel=1e-13)


def test_the_references_own_gradients(rng: np.random.Generator) -> None:
    """By finite differences."""
    arguments = batch((4, 2, 3, 3, 4), "float64", rng)
    arguments["input_lengths"], arguments["target_lengths"] = np.array([4, 2]), np.array([1, 3])
    _, tape = reference.transducer_loss(**arguments)
    for name, gradient in zip(NAMES, reference.transducer_loss_backward(tape), strict=True):
        for index in np.ndindex(gradient.shape):
            moved = []
            for by in (1e-5, -1e-5):
                array = arguments[name].copy()
                array[index] += by
                moved.append(reference.transducer_loss(**{**arguments, name: array})[0])
            assert gradient[index] == pytest.approx((moved[0] - moved[1]) / 2e-5, rel=1e-6, abs=1e-9), (name, index)


def test_against_torch(rng: np.random.Generator) -> None:
    """An independent oracle: the sum over paths in torch's operations, differentiated by autograd."""
    torch = pytest.importorskip("torch")
    arguments = batch((6, 2, 4, 5, 7), "float64", rng)
    arguments["input_lengths"], arguments["target_lengths"] = np.array([6, 3]), np.array([2, 4])
    tensors = {name: torch.tensor(arguments[name], requires_grad=True) for name in NAMES}
    hidden = torch.tanh(tensors["encoder"][:, None] + tensors["predictor"][None])
    log_probs = torch.log_softmax(hidden @ tensors["weight"].T + tensors["bias"], -1)
    losses = []
    for b, (steps, length) in enumerate(zip(arguments["input_lengths"], arguments["target_lengths"], strict=True)):
        alpha: dict[tuple[int, int], Any] = {}
        for t, u in itertools.product(range(steps), range(length + 1)):
            ways = [torch.zeros((), dtype=torch.float64)] if t == u == 0 else []
            if t > 0:
                ways.append(alpha[t - 1, u] + log_probs[t - 1, u, b, 0])
            if u > 0:
                ways.append(alpha[t, u - 1] + log_probs[t, u - 1, b, int(arguments["targets"][b, u - 1])])
            alpha[t, u] = torch.logsumexp(torch.stack(ways), 0)
        losses.append(-(alpha[steps - 1, length] + log_probs[steps - 1, length, b, 0]))
    torch.stack(losses).mean().backward()
    loss, found = gradients(arguments)
    assert loss == pytest.approx(torch.stack(losses).mean().item(), rel=1e-13)
    assert_close(found, [tensors[name].grad.numpy() for name in NAMES], arguments)


@pytest.mark.parametrize("peak", [1.0, 12.0])
def test_long_sequences_keep_their_digits(peak: float, rng: np.random.Generator) -> None:
    """Of float64, in float32; with few cells that paths visit, and with many."""
    arguments = batch((1000, 2, 80, 16, 40), "float32", rng, peak=peak)
    del arguments["input_lengths"], arguments["target_lengths"]
    wide = {name: array.astype(np.float64) if name in NAMES else array for name, array in arguments.items()}
    loss, found = gradients(arguments, reduction="none")
    expected, exact = gradients(wide, reduction="none")
    np.testing.assert_allclose(loss, expected, rtol=4e-7)
    assert_close(found, exact, arguments)


def test_what_lies_past_a_length_influences_nothing(rng: np.random.Generator) -> None:
    arguments = batch((20, 5, 6, 9, 11), "float32", rng)
    spoiled = {name: array.copy() for name, array in arguments.items()}
    for b in range(5):
        steps, length = arguments["input_lengths"][b], arguments["target_lengths"][b]
        spoiled["encoder"][steps:, b] = np.nan
        spoiled["predictor"][length + 1 if steps else 0 :, b] = np.nan
        spoiled["targets"][b, length:] = -7
    results = [gradients(one, reduction="none") for one in (arguments, spoiled)]
    assert_same(results[0], results[1])
    dencoder, dpredictor = results[1][1][:2]
    for b in range(5):
        assert not dencoder[arguments["input_lengths"][b] :, b].any()
        assert not dpredictor[arguments["target_lengths"][b] + 1 :, b].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_nan_stays_in_its_row(bad: float, rng: np.random.Generator) -> None:
    arguments = batch((6, 3, 4, 5, 7), "float64", rng)
    del arguments["input_lengths"], arguments["target_lengths"]
    clean, expected = gradients(arguments, reduction="none")
    name = "encoder" if np.isnan(bad) else "weight"
    if name == "encoder":
        arguments[name][2, 1, 3] = bad
        losses, found = gradients(arguments, reduction="none")
        assert np.isnan(losses[1]) and np.isnan(found[0][:, 1]).all() and np.isnan(found[1][:, 1]).all()
        assert_same(losses[[0, 2]], clean[[0, 2]])
        for ours, theirs in zip(found[:2], expected[:2], strict=True):
            assert_same(ours[:, [0, 2]], theirs[:, [0, 2]])
    else:
        arguments[name][2, 3] = bad
        assert np.isnan(fr.transducer_loss(**arguments, reduction="none")).all()


def test_impossible_classes(rng: np.random.Generator) -> None:
    arguments = batch((5, 3, 2, 4, 6), "float32", rng)
    del arguments["input_lengths"], arguments["target_lengths"]
    arguments["targets"] = np.array([[1, 2], [1, 1], [3, 4]])
    arguments["bias"][2] = -np.inf
    losses, found = gradients(arguments, reduction="none")
    expected, kept = reference.transducer_loss(**arguments, reduction="none")
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    assert losses[0] == np.inf and np.isfinite(losses[1:]).all() and not found[0][:, 0].any()
    assert_close(found, reference.transducer_loss_backward(kept), arguments)
    arguments["bias"][:] = -np.inf
    losses, found = gradients(arguments, reduction="none")
    assert (losses == np.inf).all() and not any(gradient.any() for gradient in found)


def test_many_impossible_classes_before_the_first_possible_one(rng: np.random.Generator) -> None:
    arguments = batch((2, 1, 1, 4, 1200), "float32", rng, blank=1199)
    arguments.update(input_lengths=None, target_lengths=None, targets=np.array([[1150]]), blank=1199)
    arguments["bias"][:1100] = -np.inf
    losses, found = gradients(arguments)
    expected, kept = reference.transducer_loss(**arguments)
    assert losses == pytest.approx(expected, rel=1e-6)
    assert_close(found, reference.transducer_loss_backward(kept), arguments)


def test_threads_and_strides_do_not_change_a_bit(rng: np.random.Generator) -> None:
    arguments = batch((60, 5, 12, 40, 50), "float32", rng)
    results = []
    for count in (1, 2, 3):
        with threads(count):
            results.append(gradients(arguments, reduction="none"))
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])
    batch_first = {
        name: array.swapaxes(0, 1).copy().swapaxes(0, 1) if name in NAMES[:2] else array
        for name, array in arguments.items()
    }
    assert_same(gradients(batch_first, reduction="none"), results[0])


def test_a_row_alone_is_that_of_the_batch(rng: np.random.Generator) -> None:
    arguments = batch((60, 5, 12, 40, 50), "float32", rng)
    losses, found = gradients(arguments, reduction="none")
    for b in range(5):
        alone = {
            name: array[:, b : b + 1] if name in NAMES[:2] else array if name in NAMES else array[b : b + 1]
            for name, array in arguments.items()
        }
        one, gradient = gradients(alone, reduction="none")
        assert_same(one, losses[b : b + 1])
        assert_same(gradient[0], found[0][:, b : b + 1].copy())
        assert_same(gradient[1], found[1][:, b : b + 1].copy())


def test_a_tape_may_be_used_twice(rng: np.random.Generator) -> None:
    arguments = batch((9, 3, 4, 5, 6), "float32", rng)
    _, tape = fr.transducer_loss_forward(**arguments, reduction="sum")
    first = fr.transducer_loss_backward(tape)
    assert_same(fr.transducer_loss_backward(tape, 1), first)
    cells = int((arguments["input_lengths"] * (arguments["target_lengths"] + 1)).sum())
    assert 16 * cells <= tape.nbytes <= 16 * cells + 1024


def test_no_rows_no_frames_and_no_labels() -> None:
    weight, bias = np.ones((3, 2)), np.zeros(3)
    none = np.zeros((4, 0, 2)), np.zeros((2, 0, 2)), weight, bias, np.zeros((0, 1), np.int64)
    assert math.isnan(fr.transducer_loss(*none))
    loss, tape = fr.transducer_loss_forward(*none, reduction="sum")
    assert loss == 0 and [array.shape for array in fr.transducer_loss_backward(tape)] == [
        (4, 0, 2),
        (2, 0, 2),
        (3, 2),
        (3,),
    ]
    for frames in (np.zeros((0, 2, 2)), np.zeros((3, 2, 2))):
        given = frames, np.zeros((2, 2, 2)), weight, bias, np.ones((2, 1), np.int64), [0, 0], [0, 1]
        losses, tape = fr.transducer_loss_forward(*given, reduction="none")
        assert losses.tolist() == [0, math.inf]
        assert not any(gradient.any() for gradient in fr.transducer_loss_backward(tape))
    for targets in ([], [[], []], np.zeros((2, 0), np.int64)):
        assert fr.transducer_loss(np.zeros((3, 2, 2)), np.zeros((1, 2, 2)), weight, None, targets) == pytest.approx(
            3 * math.log(3), rel=1e-14
        )


PEAK = """
import resource
import sys

import numpy as np

import fusedrnn as fr

steps, rows, longest, columns, classes = map(int, sys.argv[1:])
rng = np.random.default_rng(0)
arrays = [
    rng.standard_normal(shape, dtype=np.float32)
    for shape in ((steps, rows, columns), (longest + 1, rows, columns), (classes, columns), (classes,))
]
targets = rng.integers(1, classes, (rows, longest))
small = [array[..., :1].copy() for array in arrays[:3]]
small = [small[0][:2, :1], small[1][:2, :1], small[2], arrays[3]]
for _ in range(2):
    fr.transducer_loss_backward(fr.transducer_loss_forward(*small, targets[:1, :1])[1])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
loss, tape = fr.transducer_loss_forward(*arrays, targets)
gradients = fr.transducer_loss_backward(tape)
print(peak() - before - sum(gradient.nbytes for gradient in gradients))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kilobytes of ru_maxrss are Linux's")
def test_peak_memory() -> None:
    """Beyond arguments and gradients, where the logits alone are 1.56 GB; few columns, so that the test is quick."""
    command = [sys.executable, "-c", PEAK, *map(str, (400, 16, 60, 16, 1000))]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(found.stdout) < 150e6


ENCODER, PREDICTOR = np.zeros((4, 2, 3), np.float32), np.zeros((2, 2, 3), np.float32)
WEIGHT, BIAS = np.zeros((5, 3), np.float32), np.zeros(5, np.float32)
LABELS = [[1], [2]]


def call(**changed: Any) -> Any:
    given = {"encoder": ENCODER, "predictor": PREDICTOR, "weight": WEIGHT, "bias": BIAS, "targets": LABELS, **changed}
    return fr.transducer_loss_forward(**given)


ERRORS: list[tuple[Callable[[], Any], str, Any]] = [
    (lambda: call(encoder=[[[0.0]]]), "encoder", TypeError),
    (lambda: call(encoder=ENCODER.astype(np.int64)), "encoder", TypeError),
    (lambda: call(encoder=ENCODER[0]), "encoder", ValueError),
    (lambda: call(encoder=ENCODER[..., :0]), "encoder", ValueError),
    (lambda: call(encoder=ENCODER[..., ::2]), "encoder", ValueError),
    (lambda: call(encoder=ENCODER.astype(np.float64)), "predictor", TypeError),
    (lambda: call(predictor=None), "predictor", TypeError),
    (lambda: call(predictor=PREDICTOR[0]), "predictor", ValueError),
    (lambda: call(predictor=PREDICTOR[:0]), "predictor", ValueError),
    (lambda: call(predictor=PREDICTOR[:, :1]), "predictor", ValueError),
    (lambda: call(predictor=np.zeros((2, 2, 6), np.float32)[..., ::2]), "predictor", ValueError),
    (lambda: call(weight=WEIGHT.astype(np.float64)), "weight", TypeError),
    (lambda: call(weight=WEIGHT[:, :2]), "weight", ValueError),
    (lambda: call(weight=WEIGHT[:0], bias=None), "weight", ValueError),
    (lambda: call(weight=np.asfortranarray(WEIGHT)), "weight", ValueError),
    (lambda: call(bias=BIAS[:4]), "bias", ValueError),
    (lambda: call(bias=0.0), "bias", TypeError),
    (lambda: call(targets=[[0], [1]]), "targets", ValueError),
    (lambda: call(targets=[[5], [1]]), "targets", ValueError),
    (lambda: call(targets=[[-1], [1]]), "targets", ValueError),
    (lambda: call(targets=[[1.0], [1.0]]), "targets", TypeError),
    (lambda: call(targets="ab"), "targets", TypeError),
    (lambda: call(targets=[1, 2]), "targets", ValueError),
    (lambda: call(targets=[[1, 2], [1, 2]]), "targets", ValueError),
    (lambda: call(input_lengths=[5, 1]), "input_lengths", ValueError),
    (lambda: call(input_lengths=[1, -1]), "input_lengths", ValueError),
    (lambda: call(input_lengths=[1.0, 1.0]), "input_lengths", TypeError),
    (lambda: call(input_lengths=[1]), "input_lengths", ValueError),
    (lambda: call(target_lengths=[2, 1]), "target_lengths", ValueError),
    (lambda: call(blank=5), "blank", ValueError),
    (lambda: call(blank=-1), "blank", ValueError),
    (lambda: call(blank=0.0), "blank", TypeError),
    (lambda: call(reduction="max"), "reduction", ValueError),
    (lambda: call(reduction=None), "reduction", TypeError),
    (lambda: fr.transducer_loss_backward(None), "tape", TypeError),
    (lambda: fr.transducer_loss_backward(call()[1], "1"), "dloss", TypeError),
    (lambda: fr.transducer_loss_backward(call()[1], np.ones(2, np.float32)), "dloss", TypeError),
    (lambda: fr.transducer_loss_backward(call(reduction="none")[1], np.ones(2)), "dloss", TypeError),
    (lambda: fr.transducer_loss_backward(call(reduction="none")[1], np.ones(3, np.float32)), "dloss", ValueError),
]


@pytest.mark.parametrize("number", range(len(ERRORS)))
def test_what_cannot_be_is_named(number: int) -> None:
    failing, name, error = ERRORS[number]
    with pytest.raises(error, match=rf"^{name}\b"):
        failing()

"""CTC: the loss, its gradient, alignment and decoding, against the reference, enumeration and torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from bitwise import assert_same, threads
from ctc_cases import SHAPES, batch, bound

import fusedrnn as fr
from fusedrnn import reference


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_against_the_reference(
    shape: tuple[int, int, int, int], dtype: str, reduction: str, rng: np.random.Generator
) -> None:
    blank = shape[2] - 1 if reduction == "sum" else 0
    arguments = batch(shape, dtype, rng, blank)
    options = {"blank": blank, "reduction": reduction, "zero_infinity": reduction == "mean"}
    loss, tape = fr.ctc_loss_forward(**arguments, **options)
    expected, kept = reference.ctc_loss(**arguments, **options)
    assert loss.dtype == dtype
    np.testing.assert_allclose(loss, expected, rtol=bound(arguments), atol=bound(arguments))
    assert_same(fr.ctc_loss(**arguments, **options), loss)
    dloss = rng.standard_normal(shape[1]).astype(dtype) if reduction == "none" else 0.7
    gradient = fr.ctc_loss_backward(tape, dloss)
    assert gradient.dtype == dtype
    np.testing.assert_allclose(gradient, reference.ctc_loss_backward(kept, dloss), rtol=0, atol=bound(arguments))
    np.testing.assert_allclose(gradient.sum(axis=2), 0, atol=bound(arguments))
    assert_same(fr.ctc_loss_backward(tape, dloss), gradient)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_references_gradient_is_the_slope_of_its_loss(
    shape: tuple[int, int, int, int], rng: np.random.Generator
) -> None:
    arguments = batch(shape, "float64", rng)
    _, tape = reference.ctc_loss(**arguments, reduction="sum", zero_infinity=True)
    direction = rng.standard_normal(arguments["logits"].shape)

    def loss(step: float) -> float:
        moved = {**arguments, "logits": arguments["logits"] + step * direction}
        return float(reference.ctc_loss(**moved, reduction="sum", zero_infinity=True)[0])

    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    np.testing.assert_allclose(np.sum(reference.ctc_loss_backward(tape) * direction), slope, rtol=1e-7, atol=1e-7)


def collapsed(path: tuple[int, ...], blank: int) -> tuple[int, ...]:
    """The labels of a path."""
    return tuple(label for label, _ in itertools.groupby(path) if label != blank)


def every_path(log_probs: np.ndarray, blank: int) -> dict[tuple[int, ...], float]:
    """The probability of every label sequence, by enumeration of all paths."""
    found: dict[tuple[int, ...], float] = {}
    steps, classes = log_probs.shape
    for path in itertools.product(range(classes), repeat=steps):
        probability = math.exp(sum(log_probs[t, label] for t, label in enumerate(path)))
        labels = collapsed(path, blank)
        found[labels] = found.get(labels, 0.0) + probability
    return found


@pytest.mark.parametrize("blank", [0, 2])
def test_against_enumeration(blank: int, rng: np.random.Generator) -> None:
    logits = rng.standard_normal((5, 1, 3))
    log_probs = logits[:, 0] - np.log(np.exp(logits[:, 0]).sum(axis=1, keepdims=True))
    expected = every_path(log_probs, blank)
    assert sum(expected.values()) == pytest.approx(1)
    for labels, probability in expected.items():
        loss = fr.ctc_loss(logits, np.array([labels], np.int64).reshape(1, -1), blank=blank, reduction="sum")
        assert loss == pytest.approx(-math.log(probability), rel=1e-12)
    beam = fr.ctc_beam_decode(logits, blank=blank, beam_width=len(expected) + 1, top=len(expected))[0]
    assert {tuple(labels.tolist()) for labels, _ in beam} == set(expected)
    for labels, log_prob in beam:
        assert log_prob == pytest.approx(math.log(expected[tuple(labels.tolist())]), rel=1e-12, abs=1e-12)
    assert [log_prob for _, log_prob in beam] == sorted((log_prob for _, log_prob in beam), reverse=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(50, 4, 20, 10), (30, 9, 97, 3)])
def test_against_torch(shape: tuple[int, int, int, int], dtype: str, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    arguments = batch(shape, dtype, rng)
    inputs = np.full(shape[1], shape[0])
    for reduction, padded in itertools.product(("mean", "sum", "none"), (True, False)):
        targets = arguments["targets"]
        if not padded:
            targets = np.concatenate([row[:n] for row, n in zip(targets, arguments["target_lengths"], strict=True)])
        logits = torch.tensor(arguments["logits"], dtype=torch.float64, requires_grad=True)
        log_probs = torch.log_softmax(logits, 2)
        lengths = torch.tensor(inputs), torch.tensor(arguments["target_lengths"])
        theirs = torch.nn.functional.ctc_loss(log_probs, torch.tensor(targets), *lengths, reduction=reduction)
        theirs.sum().backward()
        given = {**arguments, "targets": targets, "input_lengths": inputs}
        loss, tape = fr.ctc_loss_forward(**given, reduction=reduction)
        np.testing.assert_allclose(loss, theirs.detach().numpy(), rtol=bound(arguments))
        np.testing.assert_allclose(fr.ctc_loss_backward(tape), logits.grad.numpy(), rtol=0, atol=bound(arguments))


@pytest.mark.parametrize("peak", [1.0, 30.0])
@pytest.mark.parametrize("steps", [100, 4000])
def test_long_sequences_keep_their_digits(steps: int, peak: float, rng: np.random.Generator) -> None:
    """Where a path is certain of the wrong class for thousands of frames, no forward variable may vanish."""
    logits = (peak * rng.standard_normal((steps, 2, 30))).astype(np.float32)
    targets = rng.integers(1, 30, (2, steps // 5))
    loss, tape = fr.ctc_loss_forward(logits, targets, reduction="none")
    expected, kept = fr.ctc_loss_forward(logits.astype(np.float64), targets, reduction="none")
    np.testing.assert_allclose(loss, expected, rtol=4e-7)
    error = np.abs(fr.ctc_loss_backward(tape) - fr.ctc_loss_backward(kept))
    assert error.max() <= 16 * np.finfo(np.float32).eps * max(peak, 1.0)


def test_rows_that_cannot_be_aligned() -> None:
    logits = np.zeros((3, 4, 4), np.float32)
    targets = np.array([[1, 1], [1, 2], [1, 2], [0, 0]])
    # Two equal labels need a blank between them: three frames are enough, two are not.
    given = {"logits": logits, "targets": targets, "input_lengths": [2, 1, 0, 0], "target_lengths": [2, 2, 1, 0]}
    for zero in (False, True):
        losses, tape = fr.ctc_loss_forward(**given, reduction="none", zero_infinity=zero)
        assert losses.tolist() == [0.0 if zero else math.inf] * 3 + [0.0]
        assert not fr.ctc_loss_backward(tape).any()
    assert fr.ctc_loss(**given, zero_infinity=True) == 0
    with pytest.raises(ValueError, match=r"^logits must .* row 0 "):
        fr.ctc_align(**given)
    assert np.isfinite(fr.ctc_loss(logits, targets[:, :1] * 0 + 1, reduction="sum"))


def test_impossible_classes_and_frames() -> None:
    logits = np.zeros((4, 3, 3))
    logits[:, 0, 2] = -np.inf
    logits[2, 1] = -np.inf
    losses, tape = fr.ctc_loss_forward(logits, np.array([[1], [1], [2]]), reduction="none")
    expected, kept = reference.ctc_loss(logits, np.array([[1], [1], [2]]), reduction="none")
    np.testing.assert_allclose(losses, expected, rtol=1e-13)
    assert losses[1] == math.inf and np.isfinite(losses[[0, 2]]).all()
    np.testing.assert_allclose(fr.ctc_loss_backward(tape), reference.ctc_loss_backward(kept), atol=1e-14)
    assert fr.ctc_loss(logits, np.array([[2], [1], [2]]), reduction="none")[0] == math.inf


@pytest.mark.parametrize("scale", [1e4, 1e8, 1e30])
def test_logits_of_any_size(scale: float, rng: np.random.Generator) -> None:
    logits = (scale * rng.standard_normal((20, 2, 5))).astype(np.float32)
    targets = rng.integers(1, 5, (2, 4))
    loss, tape = fr.ctc_loss_forward(logits, targets, reduction="none")
    expected = reference.ctc_loss(logits, targets, reduction="none")[0]
    np.testing.assert_allclose(loss, expected, rtol=20 * np.finfo(np.float32).eps)
    gradient = fr.ctc_loss_backward(tape)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() <= 1 + 1e-5


@pytest.mark.parametrize("classes", [2, slice(None), slice(1, None)])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_nan_stays_in_its_row(bad: float, classes: Any, rng: np.random.Generator) -> None:
    """Of one class, of all, and of all that are not impossible."""
    arguments = {"logits": rng.standard_normal((6, 3, 4)), "targets": rng.integers(1, 4, (3, 2))}
    clean = fr.ctc_loss(**arguments, reduction="none")
    arguments["logits"][3, 1] = -np.inf if classes == slice(1, None) else 0
    arguments["logits"][3, 1, classes] = bad
    losses, tape = fr.ctc_loss_forward(**arguments, reduction="none")
    assert np.isnan(losses[1]) and np.isnan(fr.ctc_loss_backward(tape)[:, 1]).all()
    assert_same(losses[[0, 2]], clean[[0, 2]])
    assert np.isfinite(fr.ctc_loss_backward(tape)[:, [0, 2]]).all()


def test_what_lies_past_a_length_influences_nothing(rng: np.random.Generator) -> None:
    arguments = batch((30, 5, 12, 6), "float32", rng)
    spoiled = {**arguments, "logits": arguments["logits"].copy(), "targets": arguments["targets"].copy()}
    for b in range(5):
        spoiled["logits"][arguments["input_lengths"][b] :, b] = np.nan
        spoiled["targets"][b, arguments["target_lengths"][b] :] = -7
    results = []
    for one in (arguments, spoiled):
        losses, tape = fr.ctc_loss_forward(**one, reduction="none")
        results.append((losses, fr.ctc_loss_backward(tape)))
    assert_same(results[0], results[1])


def test_rows_threads_and_strides_do_not_change_a_bit(rng: np.random.Generator) -> None:
    arguments = batch((60, 9, 40, 20), "float32", rng)
    results = []
    for count in (1, 2, 3):
        with threads(count):
            losses, tape = fr.ctc_loss_forward(**arguments, reduction="none")
            results.append((losses, fr.ctc_loss_backward(tape)))
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])
    batch_first = {**arguments, "logits": arguments["logits"].swapaxes(0, 1).copy().swapaxes(0, 1)}
    assert_same(fr.ctc_loss(**batch_first, reduction="none"), results[0][0])
    for b in range(9):
        alone = {
            name: array[:, b : b + 1] if name == "logits" else array[b : b + 1] for name, array in arguments.items()
        }
        assert_same(fr.ctc_loss(**alone, reduction="none"), results[0][0][b : b + 1])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_best_path(shape: tuple[int, int, int, int], dtype: str, rng: np.random.Generator) -> None:
    arguments = batch(shape, dtype, rng)
    arguments["input_lengths"] = np.full(shape[1], shape[0])
    arguments["target_lengths"] = np.minimum(arguments["target_lengths"], shape[0] // 2)
    path, log_prob = fr.ctc_align(**arguments)
    expected, found = reference.ctc_align(**arguments)
    np.testing.assert_array_equal(path, expected)
    np.testing.assert_allclose(log_prob, found, rtol=4 * np.finfo(dtype).eps)
    for b in range(shape[1]):
        labels = arguments["targets"][b, : arguments["target_lengths"][b]].tolist()
        spans = fr.ctc_spans(path[:, b])
        assert [label for label, _, _ in spans] == labels
        assert all(set(path[first:end, b].tolist()) == {label} for label, first, end in spans)


def test_greedy_decoding() -> None:
    best = np.array([[1, 1, 0, 1, 2, 2], [0, 0, 0, 0, 0, 0], [2, 1, 2, 0, 0, 2]])
    logits = np.eye(3)[best.T]
    found = fr.ctc_greedy_decode(logits, [6, 6, 3])
    assert [row.tolist() for row in found] == [[1, 1, 2], [], [2, 1, 2]]
    assert all(row.dtype == np.int64 for row in found)
    assert [row.tolist() for row in fr.ctc_greedy_decode(logits, blank=2)] == [[1, 0, 1], [0], [1, 0]]


def test_a_beam_finds_at_least_what_greedy_finds(rng: np.random.Generator) -> None:
    logits = (2 * rng.standard_normal((40, 3, 12))).astype(np.float32)
    greedy = fr.ctc_greedy_decode(logits)
    wide = fr.ctc_beam_decode(logits, beam_width=64)
    for b, row in enumerate(wide):
        labels, log_prob = row[0]
        exact = -fr.ctc_loss(logits[:, b : b + 1].astype(np.float64), labels[None], reduction="sum")
        assert log_prob <= exact + 1e-9
        baseline = -fr.ctc_loss(logits[:, b : b + 1].astype(np.float64), greedy[b][None], reduction="sum")
        assert exact >= baseline - 1e-9


def test_a_score_steers_the_beam(rng: np.random.Generator) -> None:
    logits = rng.standard_normal((6, 1, 4))
    calls: list[tuple[tuple[int, ...], int]] = []

    def score(prefix: tuple[int, ...], label: int) -> float:
        calls.append((prefix, label))
        return 0.0 if label == 3 else -100.0

    labels, _ = fr.ctc_beam_decode(logits, beam_width=50, score=score)[0][0]
    assert set(labels.tolist()) <= {3}
    assert len(calls) == len(set(calls))

    def fails(prefix: tuple[int, ...], label: int) -> float:
        raise RuntimeError("no model")

    with pytest.raises(RuntimeError, match="no model"):
        fr.ctc_beam_decode(logits, score=fails)


def test_pruning_leaves_out_classes() -> None:
    logits = np.log(np.array([[[0.6, 0.3, 0.1]], [[0.2, 0.3, 0.5]]]))
    everything = fr.ctc_beam_decode(logits, top=16)[0]
    assert {tuple(labels.tolist()) for labels, _ in everything} == {(), (1,), (2,), (1, 2), (2, 1)}
    pruned = fr.ctc_beam_decode(logits, top=16, prune_log_prob=math.log(0.25))[0]
    assert {tuple(labels.tolist()) for labels, _ in pruned} == {(1,), (2,), (1, 2)}
    first = fr.ctc_beam_decode(logits, top=16, top_classes=1)[0]
    assert [(labels.tolist(), log_prob) for labels, log_prob in first] == [([2], pytest.approx(math.log(0.3)))]


ZEROS = np.zeros((4, 2, 3), np.float32)
ERRORS: list[tuple[Callable[[], Any], str, Any]] = [
    (lambda: fr.ctc_loss([[[0.0]]], [[1]]), "logits", TypeError),
    (lambda: fr.ctc_loss(ZEROS.astype(np.int64), [[1], [1]]), "logits", TypeError),
    (lambda: fr.ctc_loss(ZEROS[0], [[1], [1]]), "logits", ValueError),
    (lambda: fr.ctc_loss(ZEROS[..., :0], [[1], [1]]), "logits", ValueError),
    (lambda: fr.ctc_loss(ZEROS[..., ::2], [[1], [1]]), "logits", ValueError),
    (lambda: fr.ctc_loss(ZEROS, [[0], [1]]), "targets", ValueError),
    (lambda: fr.ctc_loss(ZEROS, [[1], [3]]), "targets", ValueError),
    (lambda: fr.ctc_loss(ZEROS, [[1], [-1]]), "targets", ValueError),
    (lambda: fr.ctc_loss(ZEROS, [[1.0], [1.0]]), "targets", TypeError),
    (lambda: fr.ctc_loss(ZEROS, "ab"), "targets", TypeError),
    (lambda: fr.ctc_loss(ZEROS, [[1]]), "targets", ValueError),
    (lambda: fr.ctc_loss(ZEROS, [[[1]], [[1]]]), "targets", ValueError),
    (lambda: fr.ctc_loss(ZEROS, [1, 1]), "target_lengths", ValueError),
    (lambda: fr.ctc_loss(ZEROS, [1, 1], None, [1, 2]), "targets", ValueError),
    (lambda: fr.ctc_loss(ZEROS, [[1], [1]], [5, 1]), "input_lengths", ValueError),
    (lambda: fr.ctc_loss(ZEROS, [[1], [1]], [1, -1]), "input_lengths", ValueError),
    (lambda: fr.ctc_loss(ZEROS, [[1], [1]], [1.0, 1.0]), "input_lengths", TypeError),
    (lambda: fr.ctc_loss(ZEROS, [[1], [1]], [1]), "input_lengths", ValueError),
    (lambda: fr.ctc_loss(ZEROS, [[1], [1]], None, [2, 1]), "target_lengths", ValueError),
    (lambda: fr.ctc_loss(ZEROS, [[1], [1]], blank=3), "blank", ValueError),
    (lambda: fr.ctc_loss(ZEROS, [[1], [1]], blank=0.0), "blank", TypeError),
    (lambda: fr.ctc_loss(ZEROS, [[1], [1]], reduction="max"), "reduction", ValueError),
    (lambda: fr.ctc_loss(ZEROS, [[1], [1]], zero_infinity=1), "zero_infinity", TypeError),
    (lambda: fr.ctc_loss_backward(None), "tape", TypeError),
    (lambda: fr.ctc_loss_backward(fr.ctc_loss_forward(ZEROS, [[1], [1]])[1], "1"), "dloss", TypeError),
    (lambda: fr.ctc_loss_backward(fr.ctc_loss_forward(ZEROS, [[1], [1]])[1], ZEROS[0]), "dloss", TypeError),
    (
        lambda: fr.ctc_loss_backward(fr.ctc_loss_forward(ZEROS, [[1], [1]], reduction="none")[1], ZEROS[0]),
        "dloss",
        ValueError,
    ),
    (lambda: fr.ctc_greedy_decode(ZEROS, [1, 5]), "lengths", ValueError),
    (lambda: fr.ctc_greedy_decode(ZEROS[0]), "logits", ValueError),
    (lambda: fr.ctc_beam_decode(ZEROS, beam_width=0), "beam_width", ValueError),
    (lambda: fr.ctc_beam_decode(ZEROS, beam_width=2, top=3), "top", ValueError),
    (lambda: fr.ctc_beam_decode(ZEROS, prune_log_prob=1.0), "prune_log_prob", ValueError),
    (lambda: fr.ctc_beam_decode(ZEROS, top_classes=0), "top_classes", ValueError),
    (lambda: fr.ctc_beam_decode(ZEROS, score=3), "score", TypeError),
    (lambda: fr.ctc_spans([[1]]), "path_b", ValueError),
    (lambda: fr.ctc_spans([1.5]), "path_b", TypeError),
]


@pytest.mark.parametrize("number", range(len(ERRORS)))
def test_what_cannot_be_is_named(number: int) -> None:
    call, name, error = ERRORS[number]
    with pytest.raises(error, match=rf"^{name}\b"):
        call()


def test_no_rows_and_no_frames() -> None:
    assert math.isnan(fr.ctc_loss(np.zeros((3, 0, 2)), np.zeros((0, 1), np.int64)))
    assert fr.ctc_loss(np.zeros((3, 0, 2)), np.zeros((0, 1), np.int64), reduction="sum") == 0
    loss, tape = fr.ctc_loss_forward(np.zeros((0, 2, 2)), np.zeros((2, 0), np.int64), reduction="none")
    assert loss.tolist() == [0, 0] and fr.ctc_loss_backward(tape).shape == (0, 2, 2)
    assert fr.ctc_beam_decode(np.zeros((0, 1, 2)))[0][0][0].size == 0


def test_the_tape_tells_what_it_holds() -> None:
    logits = np.zeros((100, 4, 8), np.float32)
    _, tape = fr.ctc_loss_forward(logits, np.ones((4, 10), np.int64))
    assert 100 * 4 * 21 * 8 <= tape.nbytes <= 100 * 4 * 21 * 8 * 4

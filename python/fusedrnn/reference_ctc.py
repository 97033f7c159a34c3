"""CTC in plain NumPy, float64, in logarithms: `fusedrnn.reference` has its functions.

A row's states are its labels with blanks before, between and after them: state 0 is a blank, 1 the first label, and so
on. Nothing here is fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def _log_softmax(logits: Array) -> Array:
    """Over the last axis; minus infinity where all logits are."""
    with np.errstate(divide="ignore", invalid="ignore"):
        maximum = logits.max(axis=-1, keepdims=True)
        log_sum = maximum + np.log(np.exp(logits - maximum).sum(axis=-1, keepdims=True))
        return np.where(np.isneginf(maximum), -np.inf, logits - log_sum)


def _states(labels: npt.NDArray[np.int64], blank: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Classes of the states, and into which of them a path may go from two states before."""
    classes = np.full(2 * len(labels) + 1, blank, np.int64)
    classes[1::2] = labels
    skips = np.zeros(len(classes), bool)
    skips[3::2] = labels[1:] != labels[:-1]
    return classes, skips


def _shifted(values: Array, by: int) -> Array:
    """Values moved on by so many states."""
    return np.concatenate([np.full(by, -np.inf), values])[: len(values)]


def _log_alphas(log_probs: Array, labels: npt.NDArray[np.int64], blank: int) -> Array:
    """(T, states): log-probability of all ways to be in a state at a frame, that of the frame included."""
    classes, skips = _states(labels, blank)
    alphas = np.full((len(log_probs), len(classes)), -np.inf)
    before = np.full(len(classes), -np.inf)
    for t, frame in enumerate(log_probs[:, classes]):
        if t == 0:
            before[:2] = 0
        else:
            twice = np.where(skips, _shifted(before, 2), -np.inf)
            before = np.logaddexp(np.logaddexp(before, _shifted(before, 1)), twice)
        before = before + frame
        alphas[t] = before
    return alphas


@dataclass(frozen=True)
class CtcTape:
    """What the backward pass needs: a row's log-probabilities, labels and loss each."""

    rows: list[tuple[Array, npt.NDArray[np.int64], float]]
    shape: tuple[int, int, int]
    blank: int
    reduction: str


def ctc_loss(
    logits: npt.ArrayLike,
    targets: Any,
    input_lengths: Any = None,
    target_lengths: Any = None,
    *,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> tuple[Any, CtcTape]:
    """Loss and tape; arguments as for `fusedrnn.ctc_loss`, with targets (B, S)."""
    values = np.asarray(logits, np.float64)
    steps, batch, _ = values.shape
    targets = np.asarray(targets, np.int64)
    inputs = np.full(batch, steps) if input_lengths is None else np.asarray(input_lengths)
    counts = np.full(batch, targets.shape[1]) if target_lengths is None else np.asarray(target_lengths)
    rows = []
    for b in range(batch):
        labels = targets[b, : counts[b]]
        log_probs = _log_softmax(values[: inputs[b], b])
        if inputs[b] == 0:
            loss = 0.0 if counts[b] == 0 else np.inf
        else:
            loss = float(-np.logaddexp.reduce(_log_alphas(log_probs, labels, blank)[-1, -2:]))
        rows.append((log_probs, labels, loss))
    losses = np.array([row[2] for row in rows])
    if zero_infinity:
        losses = np.where(np.isposinf(losses), 0.0, losses)
    tape = CtcTape(rows, values.shape, blank, reduction)
    if reduction == "none":
        return losses, tape
    return (losses.sum() if reduction == "sum" else (losses / np.maximum(counts, 1)).mean()), tape


def ctc_loss_backward(tape: CtcTape, dloss: Any = 1.0) -> Array:
    """Gradient of the logits, (T, B, C)."""
    gradient = np.zeros(tape.shape)
    scale = np.broadcast_to(np.asarray(dloss, np.float64), tape.shape[1]).copy()
    for b, (log_probs, labels, loss) in enumerate(tape.rows):
        if tape.reduction == "mean":
            scale[b] /= max(len(labels), 1) * tape.shape[1]
        if not np.isfinite(loss) or len(log_probs) == 0:
            continue
        classes, _ = _states(labels, tape.blank)
        alphas = _log_alphas(log_probs, labels, tape.blank)
        # A path backwards is a path of the reversed labels; both count the frame itself.
        betas = _log_alphas(log_probs[::-1], labels[::-1], tape.blank)[::-1, ::-1]
        with np.errstate(invalid="ignore"):
            states = np.exp(alphas + betas - log_probs[:, classes] + loss)
        states = np.where(np.isneginf(alphas) | np.isneginf(betas), 0.0, states)
        paths = np.zeros_like(log_probs)
        for s, label in enumerate(classes):
            paths[:, label] += states[:, s]
        gradient[: len(log_probs), b] = scale[b] * (np.exp(log_probs) - paths)
    return gradient


def ctc_align(
    logits: npt.ArrayLike, targets: Any, input_lengths: Any = None, target_lengths: Any = None, *, blank: int = 0
) -> tuple[npt.NDArray[np.int64], Array]:
    """Most probable path (T, B) and its log-probability (B,), minus infinity where there is none."""
    values = np.asarray(logits, np.float64)
    steps, batch, _ = values.shape
    targets = np.asarray(targets, np.int64)
    inputs = np.full(batch, steps) if input_lengths is None else np.asarray(input_lengths)
    counts = np.full(batch, targets.shape[1]) if target_lengths is None else np.asarray(target_lengths)
    path, found = np.full((steps, batch), blank), np.zeros(batch)
    for b in range(batch):
        labels = targets[b, : counts[b]]
        log_probs = _log_softmax(values[: inputs[b], b])
        found[b] = 0.0 if inputs[b] == counts[b] == 0 else -np.inf
        if inputs[b]:
            path[: inputs[b], b], found[b] = _best_path(log_probs, labels, blank)
    return path, found


def _best_path(log_probs: Array, labels: npt.NDArray[np.int64], blank: int) -> tuple[npt.NDArray[np.int64], float]:
    classes, skips = _states(labels, blank)
    best = np.full(len(classes), -np.inf)
    came = np.zeros((len(log_probs), len(classes)), np.int64)
    for t, frame in enumerate(log_probs[:, classes]):
        if t == 0:
            best[:2] = 0
        else:
            ways = np.stack([best, _shifted(best, 1), np.where(skips, _shifted(best, 2), -np.inf)])
            came[t], best = ways.argmax(axis=0), ways.max(axis=0)
        best = best + frame
    state = len(classes) - 1
    if state > 0 and best[state - 1] > best[state]:
        state -= 1
    probability = float(best[state])
    states = []
    for t in reversed(range(len(log_probs))):
        states.append(state)
        state -= came[t, state]
    return classes[states[::-1]], probability

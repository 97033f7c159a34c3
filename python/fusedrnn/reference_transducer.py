"""The transducer's loss in plain NumPy, float64, in logarithms: `fusedrnn.reference` has its functions.

Cell (t, u) of a row's lattice stands for frame t after u labels. Nothing here is fast, and all logits of a row exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.reference_ctc import _log_softmax

Array = npt.NDArray[np.float64]


def _log_alphas(log_blank: Array, log_label: Array) -> Array:
    """(T, U + 1): log-probability of all ways to a cell, from (T, U + 1) of going on by a blank and by the label."""
    steps, states = log_blank.shape
    alphas = np.full((steps, states), -np.inf)
    alphas[0, 0] = 0
    for t in range(steps):
        if t > 0:
            alphas[t] = alphas[t - 1] + log_blank[t - 1]
        for u in range(1, states):
            alphas[t, u] = np.logaddexp(alphas[t, u], alphas[t, u - 1] + log_label[t, u - 1])
    return alphas


def _log_betas(log_blank: Array, log_label: Array) -> Array:
    """(T + 1, U + 2): log-probability of all ways on from a cell; the way out of the lattice is cell (T, U)."""
    steps, states = log_blank.shape
    betas = np.full((steps + 1, states + 1), -np.inf)
    betas[steps, states - 1] = 0
    for t in reversed(range(steps)):
        for u in reversed(range(states)):
            betas[t, u] = np.logaddexp(betas[t + 1, u] + log_blank[t, u], betas[t, u + 1] + log_label[t, u])
    return betas


@dataclass(frozen=True)
class TransducerRow:
    """A row's hidden values (T, U + 1, J), log-probabilities (T, U + 1, V), labels and loss."""

    hidden: Array
    log_probs: Array
    labels: npt.NDArray[np.int64]
    loss: float


@dataclass(frozen=True)
class TransducerTape:
    """What the backward pass needs."""

    rows: list[TransducerRow]
    arrays: tuple[Array, Array, Array, Array | None]
    blank: int
    reduction: str


def _emissions(log_probs: Array, labels: npt.NDArray[np.int64], blank: int) -> tuple[Array, Array]:
    """Of each cell: log-probability of the blank, and of the next label, minus infinity where there is none."""
    log_label = np.full(log_probs.shape[:2], -np.inf)
    for u, label in enumerate(labels):
        log_label[:, u] = log_probs[:, u, label]
    return log_probs[..., blank], log_label


def _row(tape_arrays: tuple[Array, Array, Array, Array | None], b: int, steps: int, labels: Any, blank: int) -> Any:
    encoder, predictor, weight, bias = tape_arrays
    hidden = np.tanh(encoder[:steps, b][:, None] + predictor[: len(labels) + 1, b])
    log_probs = _log_softmax(hidden @ weight.T + (0 if bias is None else bias))
    if steps == 0:
        loss = 0.0 if len(labels) == 0 else np.inf
    else:
        log_blank, log_label = _emissions(log_probs, labels, blank)
        loss = -float(_log_alphas(log_blank, log_label)[-1, -1] + log_blank[-1, -1])
    return TransducerRow(hidden, log_probs, labels, loss)


def transducer_loss(
    encoder: npt.ArrayLike,
    predictor: npt.ArrayLike,
    weight: npt.ArrayLike,
    bias: npt.ArrayLike | None,
    targets: Any,
    input_lengths: Any = None,
    target_lengths: Any = None,
    *,
    blank: int = 0,
    reduction: str = "mean",
) -> tuple[Any, TransducerTape]:
    """Loss and tape; arguments as for `fusedrnn.transducer_loss`."""
    encoder, predictor, weight = (np.asarray(array, np.float64) for array in (encoder, predictor, weight))
    arrays = encoder, predictor, weight, None if bias is None else np.asarray(bias, np.float64)
    (steps, batch, _), longest = encoder.shape, len(predictor) - 1
    targets = np.asarray(targets, np.int64).reshape(batch, longest)
    inputs = np.full(batch, steps) if input_lengths is None else np.asarray(input_lengths)
    counts = np.full(batch, longest) if target_lengths is None else np.asarray(target_lengths)
    rows = [_row(arrays, b, inputs[b], targets[b, : counts[b]], blank) for b in range(batch)]
    losses = np.array([row.loss for row in rows])
    tape = TransducerTape(rows, arrays, blank, reduction)
    if reduction == "none":
        return losses, tape
    return (losses.sum() if reduction == "sum" else losses.mean()), tape


def _dlogits(row: TransducerRow, blank: int) -> Array:
    """Gradient of a row's loss with respect to its logits, (T, U + 1, V)."""
    log_blank, log_label = _emissions(row.log_probs, row.labels, blank)
    alphas, betas = _log_alphas(log_blank, log_label), _log_betas(log_blank, log_label)
    by_blank = np.exp(alphas + log_blank + betas[1:, :-1] + row.loss)
    by_label = np.exp(alphas + log_label + betas[:-1, 1:] + row.loss)
    gradient = (by_blank + by_label)[..., None] * np.exp(row.log_probs)
    gradient[..., blank] -= by_blank
    for u, label in enumerate(row.labels):
        gradient[:, u, label] -= by_label[:, u]
    return gradient


def transducer_loss_backward(tape: TransducerTape, dloss: Any = 1.0) -> tuple[Array, Array, Array, Array | None]:
    """Gradients of encoder, predictor, weight and bias."""
    encoder, predictor, weight, bias = tape.arrays
    dencoder, dpredictor, dweight = np.zeros_like(encoder), np.zeros_like(predictor), np.zeros_like(weight)
    dbias = np.zeros(len(weight))
    scale = np.broadcast_to(np.asarray(dloss, np.float64), len(tape.rows))
    for b, row in enumerate(tape.rows):
        if len(row.hidden) == 0 or not np.isfinite(row.loss):
            continue
        dlogits = _dlogits(row, tape.blank) * scale[b] / (len(tape.rows) if tape.reduction == "mean" else 1)
        dhidden = dlogits @ weight * (1 - row.hidden**2)
        dencoder[: len(dhidden), b] = dhidden.sum(axis=1)
        dpredictor[: dhidden.shape[1], b] = dhidden.sum(axis=0)
        dweight += np.einsum("tuv,tuj->vj", dlogits, row.hidden)
        dbias += dlogits.sum(axis=(0, 1))
    return dencoder, dpredictor, dweight, None if bias is None else dbias

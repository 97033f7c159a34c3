"""The transducer's lattice as a dynamic programme compiled by Numba, in float64: what a torch user would add to torch.

Imported only where the transducer is measured: Numba is not needed elsewhere.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from bench.problem import Array


@numba.njit(fastmath=False)
def add_logs(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    if a < b:
        a, b = b, a
    return a if b == -math.inf else a + math.log1p(math.exp(b - a))


@numba.njit
def before(blank: Array, label: Array, alpha: Array) -> None:
    """The log-probability of all ways to each node of a row."""
    steps, nodes = blank.shape
    for t in range(steps):
        for u in range(nodes):
            if t == 0 and u == 0:
                alpha[t, u] = 0.0
                continue
            down = alpha[t - 1, u] + blank[t - 1, u] if t > 0 else -math.inf
            right = alpha[t, u - 1] + label[t, u - 1] if u > 0 else -math.inf
            alpha[t, u] = add_logs(down, right)


@numba.njit
def after(blank: Array, label: Array, beta: Array) -> None:
    """The log-probability of all ways on from each node of a row."""
    steps, nodes = blank.shape
    for t in range(steps - 1, -1, -1):
        for u in range(nodes - 1, -1, -1):
            if t == steps - 1 and u == nodes - 1:
                beta[t, u] = blank[t, u]
                continue
            down = beta[t + 1, u] + blank[t, u] if t < steps - 1 else -math.inf
            right = beta[t, u + 1] + label[t, u] if u < nodes - 1 else -math.inf
            beta[t, u] = add_logs(down, right)


@numba.njit(parallel=True)
def loss_and_gradients(blank: Array, label: Array) -> tuple[Array, Array, Array]:
    """Each row's loss (B,), and its derivative to the log-probabilities of blank (B, T, U + 1) and label (B, T, U)."""
    rows, steps, nodes = blank.shape
    losses, dblank, dlabel = np.empty(rows), np.zeros_like(blank), np.zeros_like(label)
    for b in numba.prange(rows):
        alpha, beta = np.empty((steps, nodes)), np.empty((steps, nodes))
        before(blank[b], label[b], alpha)
        after(blank[b], label[b], beta)
        whole = beta[0, 0]
        losses[b] = -whole
        for t in range(steps):
            for u in range(nodes):
                if t < steps - 1:
                    dblank[b, t, u] = -math.exp(alpha[t, u] + blank[b, t, u] + beta[t + 1, u] - whole)
                if u < nodes - 1:
                    dlabel[b, t, u] = -math.exp(alpha[t, u] + label[b, t, u] + beta[t, u + 1] - whole)
        dblank[b, steps - 1, nodes - 1] = -1.0
    return losses, dblank, dlabel

"""Plot how gradients vanish or survive on their way back through time, for an RNN, an LSTM and a GRU.

The error E is put on the last step only, and the norm of dE/ds_k is drawn for every step k before it. The states in
between are reached by running the sequence as windows of one step: each `backward` returns the gradient of the state
its window started from, and hands it to the window before. That is plain BPTT with its links laid open.

    python examples/gradient_norms.py --output gradient_norms.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np

import fusedrnn as fr

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

BATCH = 16
INPUT = 32


def stack(state) -> np.ndarray:
    """A state as one array: an LSTM's h and c side by side, for together they are the s_k that step k hands on."""
    return np.concatenate(state, axis=-1) if isinstance(state, tuple) else state


def gradient_norms(layer, x: np.ndarray) -> np.ndarray:
    """Norm of dE/ds_k for k = 0..T, averaged over the batch, with E = sum(h_T u) for a random unit vector u a row.

    Parameters
    ----------
    layer : fr.RNN, fr.LSTM or fr.GRU
        One layer, one direction.
    x : ndarray, shape (T, B, I)

    Returns
    -------
    ndarray, shape (T + 1,)
        Entry k belongs to the state after k steps; for an LSTM the state is h and c together.
    """
    tapes = []
    state = None
    for window in fr.tbptt_windows(x, window=1):
        _, state, tape = layer.forward(window, state)
        tapes.append(tape)
    direction = np.random.default_rng(0).standard_normal(x.shape[1:2] + (layer.hidden_size,)).astype(x.dtype)
    dh = (direction / np.linalg.norm(direction, axis=-1, keepdims=True))[None]
    dstate = (dh, np.zeros_like(dh)) if isinstance(state, tuple) else dh
    norms = [np.linalg.norm(stack(dstate), axis=-1).mean()]
    for tape in reversed(tapes):
        dstate = layer.backward(tape, None, dstate).state
        norms.append(np.linalg.norm(stack(dstate), axis=-1).mean())
    return np.array(norms[::-1])

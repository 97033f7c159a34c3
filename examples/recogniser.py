"""The network of `speech.py`: a bidirectional LSTM that is trained by CTC, and the search in what it gives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from log_mel import MELS, STACK
from speech_batches import Batch

import fusedrnn as fr

HIDDEN = 96
LAYERS = 2
DROPOUT = 0.1
MAX_NORM = 1.0
AT_ONCE = 8  # utterances that are decoded side by side
BEAM = 16
CLASSES = 10  # that the beam search looks at in a frame


class Recogniser:
    """Logits of phones and blank at every step, from a bidirectional LSTM."""

    def __init__(self, classes: int, seed: int) -> None:
        self.lstm = fr.LSTM(STACK * MELS, HIDDEN, LAYERS, bidirectional=True, dropout=DROPOUT, seed=seed)
        self.head = {
            "weight": np.random.default_rng(seed).normal(0, 0.05, (classes, 2 * HIDDEN)).astype(np.float32),
            "bias": np.zeros(classes, np.float32),
        }
        self.optimizer = fr.optim.Adam({"lstm": self.lstm.parameters, "head": self.head})

    def __call__(self, batch: Batch) -> np.ndarray:
        y, _ = self.lstm(batch.x, lengths=batch.steps)
        return fr.linear(y, **self.head)

    def learn(self, batch: Batch, rate: float) -> float:
        """One step of Adam; gives the loss."""
        y, _, tape = self.lstm.forward(batch.x, lengths=batch.steps)
        logits, head_tape = fr.linear_forward(y, **self.head)
        loss, loss_tape = fr.ctc_loss_forward(logits, batch.targets, batch.steps, batch.counts)
        dy, dweight, dbias = fr.linear_backward(head_tape, fr.ctc_loss_backward(loss_tape))
        grads = {"lstm": self.lstm.backward(tape, dy), "head": {"weight": dweight, "bias": dbias}}
        fr.clip_grad_norm(grads, MAX_NORM)
        self.optimizer.lr = rate
        self.optimizer.step(grads)
        return float(loss)


def beam_search(
    logits: np.ndarray,
    steps: np.ndarray,
    score: Callable[[tuple[int, ...], int], float] | None = None,
    width: int = BEAM,
) -> tuple[list[np.ndarray], float]:
    """The most probable labels of each row, with `score` added for each of them; and the sum of what they score."""
    found = fr.ctc_beam_decode(logits, steps, beam_width=width, top_classes=CLASSES, score=score)
    return [best[0][0] for best in found], sum(best[0][1] for best in found)

"""Phones by single frames: a logistic regression that is told when each phone was spoken, and knows no sequences."""

from __future__ import annotations

import numpy as np
from flite_speech import Utterance
from log_mel import moments
from speech_batches import Encoding

import fusedrnn as fr

CONTEXT = 3  # steps seen to each side
ROWS = 256  # of a batch
EPOCHS = 3
LEARNING_RATE = 2e-3


def _with_context(x: np.ndarray) -> np.ndarray:
    """Each step's input beside its neighbours', (steps, (2 * CONTEXT + 1) * inputs)."""
    padded = np.pad(x, ((CONTEXT, CONTEXT), (0, 0)))
    return np.concatenate([padded[k : k + len(x)] for k in range(2 * CONTEXT + 1)], axis=1)


def _spoken(utterance: Utterance, steps: int, encoding: Encoding) -> np.ndarray:
    """The phone in the middle of each step."""
    spoken = np.searchsorted(utterance.ends, moments(np.arange(steps)))
    return encoding.phones.encode(utterance.phones)[np.minimum(spoken, len(utterance.ends) - 1)]


class FrameClassifier:
    """Softmax regression of the phone that is spoken in the middle of a step."""

    def __init__(self, utterances: list[Utterance], encoding: Encoding, seed: int) -> None:
        self.encoding = encoding
        inputs = [encoding.steps(utterance) for utterance in utterances]
        x = np.concatenate([_with_context(each) for each in inputs])
        targets = np.concatenate(
            [_spoken(utterance, len(each), encoding) for utterance, each in zip(utterances, inputs, strict=True)]
        )
        self.readout = {
            "weight": np.zeros((len(encoding.phones), x.shape[1]), np.float32),
            "bias": np.zeros(len(encoding.phones), np.float32),
        }
        optimizer, generator = fr.optim.Adam(self.readout, lr=LEARNING_RATE), np.random.default_rng(seed)
        for _ in range(EPOCHS):
            order = generator.permutation(len(x))
            for first in range(0, len(order), ROWS):
                rows = order[first : first + ROWS]
                _, tape = fr.linear_cross_entropy_forward(x[rows], **self.readout, targets=targets[rows])
                _, dweight, dbias = fr.linear_cross_entropy_backward(tape)
                optimizer.step({"weight": dweight, "bias": dbias})

    def recognise(self, utterance: Utterance) -> np.ndarray:
        """The most probable phone of each step, repetitions merged."""
        logits = fr.linear(_with_context(self.encoding.steps(utterance)), **self.readout)
        best = logits[:, 1:].argmax(axis=1) + 1  # a blank is never spoken
        return best[np.concatenate([[True], best[1:] != best[:-1]])]

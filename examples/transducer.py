"""A recurrent transducer (Graves 2012): it hears one step after another, and writes labels while it hears."""

from __future__ import annotations

from typing import Any

import numpy as np
from speech_batches import Batch

import fusedrnn as fr

BLANK = 0
MAX_NORM = 1.0
CTC_WEIGHT = 0.5  # of the second loss
MOST = 4  # labels that may be written at one step


class Transducer:
    """Encoder of what was heard, predictor of what was written, and a joint network.

    The logits after step t and u labels are tanh(encoder_t + predictor_u) weight^T + bias; a label leads to u + 1, the
    blank to t + 1. In training the encoder has a second readout with a CTC loss, without which it learns late to hear.

    Parameters
    ----------
    inputs, classes : int
        Numbers in a step; labels, the blank among them.
    hidden, layers, dropout
        Of the encoder.
    predictor, joint : int
        Units of the predictor and of the joint network.
    seed : int
    """

    def __init__(
        self,
        inputs: int,
        classes: int,
        *,
        hidden: int,
        layers: int,
        dropout: float,
        predictor: int,
        joint: int,
        seed: int,
    ) -> None:
        generator = np.random.default_rng(seed)

        def uniform(*shape: int) -> np.ndarray:
            bound = shape[-1] ** -0.5
            return generator.uniform(-bound, bound, shape).astype(np.float32)

        self.classes = classes
        self.encoder = fr.LSTM(inputs, hidden, layers, dropout=dropout, seed=seed)
        self.predictor = fr.LSTM(classes, predictor, seed=seed + 1)
        self.heard = {"weight": uniform(joint, hidden), "bias": np.zeros(joint, np.float32)}
        self.written = {"weight": uniform(joint, predictor)}
        self.joint = {"weight": uniform(classes, joint), "bias": np.zeros(classes, np.float32)}
        self.ctc = {"weight": uniform(classes, hidden), "bias": np.zeros(classes, np.float32)}
        self.parameters = {
            "encoder": self.encoder.parameters,
            "predictor": self.predictor.parameters,
            "heard": self.heard,
            "written": self.written,
            "joint": self.joint,
            "ctc": self.ctc,
        }
        self.optimizer = fr.optim.Adam(self.parameters)

    def gradients(self, batch: Batch) -> tuple[float, dict[str, Any]]:
        """Mean loss of a label in nats, and the gradients of `parameters`."""
        targets, labels = padded(batch), float(batch.counts.mean())
        y, _, encoder_tape = self.encoder.forward(batch.x, lengths=batch.steps)
        p, _, predictor_tape = self.predictor.forward(one_hot(targets, self.classes))
        heard, heard_tape = fr.linear_forward(y, **self.heard)
        written, written_tape = fr.linear_forward(p, **self.written)
        loss, tape = fr.transducer_loss_forward(
            heard, written, self.joint["weight"], self.joint["bias"], targets, batch.steps, batch.counts, blank=BLANK
        )
        dheard, dwritten, *djoint = fr.transducer_loss_backward(tape, 1 / labels)
        dy, *dheard_linear = fr.linear_backward(heard_tape, dheard)
        dp, dwritten_weight, _ = fr.linear_backward(written_tape, dwritten)
        ctc_loss, dctc_y, dctc = self._ctc(y, batch)
        return (float(loss) + CTC_WEIGHT * ctc_loss) / labels, {
            "encoder": self.encoder.backward(encoder_tape, dy + dctc_y).parameters,
            "predictor": self.predictor.backward(predictor_tape, dp).parameters,
            "heard": _linear(dheard_linear),
            "written": {"weight": dwritten_weight},
            "joint": _linear(djoint),
            "ctc": _linear(dctc),
        }

    def _ctc(self, y: np.ndarray, batch: Batch) -> tuple[float, np.ndarray, list[np.ndarray]]:
        """The CTC loss of a row; the gradients of its share by y and the readout."""
        logits, linear_tape = fr.linear_forward(y, **self.ctc)
        loss, tape = fr.ctc_loss_forward(logits, batch.targets, batch.steps, batch.counts, blank=BLANK, reduction="sum")
        rows = len(batch.counts)
        share = CTC_WEIGHT / (rows * float(batch.counts.mean()))
        dy, *dlinear = fr.linear_backward(linear_tape, fr.ctc_loss_backward(tape, share))
        return float(loss) / rows, dy, dlinear

    def learn(self, batch: Batch, rate: float) -> float:
        """One step of Adam; gives the loss."""
        loss, gradients = self.gradients(batch)
        fr.clip_grad_norm(gradients, MAX_NORM)
        self.optimizer.lr = rate
        self.optimizer.step(gradients)
        return loss


def _linear(gradients: list[np.ndarray]) -> dict[str, np.ndarray]:
    return dict(zip(("weight", "bias"), gradients, strict=True))


def padded(batch: Batch) -> np.ndarray:
    """Targets (B, U), 0 past a row's count."""
    targets = np.zeros((len(batch.counts), batch.counts.max()), np.int64)
    targets[np.arange(targets.shape[1]) < batch.counts[:, None]] = batch.targets
    return targets


def one_hot(targets: np.ndarray, classes: int) -> np.ndarray:
    """The predictor's input (U + 1, B, classes): nothing at first, then one label after another."""
    x = np.zeros((targets.shape[1] + 1, len(targets), classes), np.float32)
    x[1:] = np.eye(classes, dtype=np.float32)[targets.T]
    return x


class Listener:
    """Writes the labels of one stream, called with a step of it after another.

    Encoder and predictor are steppers: nothing is computed twice.
    """

    def __init__(self, model: Transducer) -> None:
        self.model = model
        self.encoder, self.predictor = model.encoder.stream(), model.predictor.stream()
        self.rows = np.eye(model.classes, dtype=np.float32)
        self.reset()

    def reset(self) -> None:
        """Begin a new stream."""
        self.encoder.reset()
        self.predictor.reset()
        self._write(np.zeros(self.model.classes, np.float32))

    def _write(self, x: np.ndarray) -> None:
        self.written = self.model.written["weight"] @ self.predictor.step(x)

    def __call__(self, x: np.ndarray) -> list[int]:
        """The labels that a step (inputs,) makes the most probable; mostly none."""
        found: list[int] = []
        heard = self.model.heard["weight"] @ self.encoder.step(x) + self.model.heard["bias"]
        while len(found) < MOST:
            logits = self.model.joint["weight"] @ np.tanh(heard + self.written) + self.model.joint["bias"]
            label = int(logits.argmax())
            if label == BLANK:
                break
            found.append(label)
            self._write(self.rows[label])
        return found

"""The loss of a transducer with its joint network: the function, with ``_forward`` also a tape, and ``_backward``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedrnn import _core
from fusedrnn.arguments import require_choice, require_integer
from fusedrnn.arrays.device import owner_of
from fusedrnn.gradients import Array
from fusedrnn.ops.labels import REDUCTIONS, lengths_of, loss_gradients, padded_labels
from fusedrnn.ops.transducer_device import TransducerDeviceTape, device_backward, device_forward

_transducer: Any = _core.operations["transducer_loss"]


@dataclass(frozen=True)
class TransducerTape:
    """What the backward pass needs: it refers to encoder, predictor, weight and bias, and holds four numbers a cell."""

    core: Any
    rows: int
    reduction: str

    @property
    def nbytes(self) -> int:
        """Bytes it holds beyond the arrays it refers to."""
        return int(self.core.nbytes)


def _require_sequence(array: Any, name: str, shape: str) -> None:
    """Three axes; the compiled part checks the rest."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} must be a numpy.ndarray of float32 or float64, not {type(array).__name__}")
    if array.ndim != 3:
        raise ValueError(f"{name} must have shape {shape}, not {array.shape}")


def transducer_loss(
    encoder: Array,
    predictor: Array,
    weight: Array,
    bias: Array | None,
    targets: Any,
    input_lengths: Any = None,
    target_lengths: Any = None,
    *,
    blank: int = 0,
    reduction: str = "mean",
) -> Any:
    """Loss of a transducer: ``-log p(targets | encoder, predictor)``, summed over all alignments.

    Graves, "Sequence transduction with recurrent neural networks", 2012. After frame t and u labels the model emits the
    next label, or a blank, which takes it to frame t + 1; the last frame ends with a blank. What it emits has the
    logits ``tanh(encoder[t] + predictor[u]) @ weight.T + bias``. They exist for a few hundred pairs (t, u) at a time,
    forward and backward. On the CPU a row's loss and its gradients of encoder and predictor depend on that row alone,
    to the last bit.

    On a CUDA device encoder, predictor, weight and bias are CuPy's, there also bfloat16 or float16. Targets and lengths
    may lie there or on the host, which checks them only where it has them. A target on the device that is no
    label makes its row's loss and gradients nan.

    Parameters
    ----------
    encoder : ndarray
        (T, B, J), float32 or float64, unit stride in the last axis: a projection of what the acoustic model gives.
    predictor : ndarray
        (U + 1, B, J), of encoder's dtype, unit stride in the last axis: a projection of what the label model gives
        after u labels, the first after none.
    weight : ndarray
        (V, J), C-contiguous.
    bias : ndarray or None
        (V,). -inf makes a class impossible.
    targets : ndarray of integers
        (B, U), of which only the first ``target_lengths[b]`` of a row count. Labels lie in [0, V) and are not `blank`.
    input_lengths : ndarray of integers, optional
        (B,), each in [0, T]: frames of a row. T if None. What lies past them influences nothing.
    target_lengths : ndarray of integers, optional
        (B,), each in [0, U]. U if None. What lies past them, in the predictor past the first of them + 1, influences
        nothing.
    blank : int
        The class that stands for no label.
    reduction : {'mean', 'sum', 'none'}
        Mean over the batch, the sum, or each row's loss.

    Returns
    -------
    scalar or ndarray
        Of encoder's dtype; (B,) for 'none'. A row of no frames has loss 0 if it has no labels, else inf. Where every
        path is impossible, the loss is inf. A row without frames or with an infinite loss has gradients of 0.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind, dtype, shape or value; the message names it.
    """
    return transducer_loss_forward(
        encoder,
        predictor,
        weight,
        bias,
        targets,
        input_lengths,
        target_lengths,
        blank=blank,
        reduction=reduction,
    )[0]


def transducer_loss_forward(
    encoder: Array,
    predictor: Array,
    weight: Array,
    bias: Array | None,
    targets: Any,
    input_lengths: Any = None,
    target_lengths: Any = None,
    *,
    blank: int = 0,
    reduction: str = "mean",
) -> tuple[Any, TransducerTape | TransducerDeviceTape]:
    """As `transducer_loss`, and return (loss, tape).

    The tape refers to encoder, predictor, weight and bias: do not write them before the backward pass.
    """
    require_choice(reduction, "reduction", REDUCTIONS)
    device = owner_of(encoder)
    if device is not None:
        arrays, index = (encoder, predictor, weight, bias), require_integer(blank, "blank", least=0)
        return device_forward(device, arrays, targets, input_lengths, target_lengths, index, reduction)
    _require_sequence(encoder, "encoder", "(T, B, J)")
    _require_sequence(predictor, "predictor", "(U + 1, B, J)")
    steps, rows, longest = encoder.shape[0], encoder.shape[1], predictor.shape[0] - 1
    if longest < 0:
        raise ValueError(f"predictor must have shape (U + 1, B, J) with U at least 0, not {predictor.shape}")
    counts = lengths_of(target_lengths, "target_lengths", rows, longest)
    labels = padded_labels(targets, rows, longest, counts).reshape(-1)
    frames = lengths_of(input_lengths, "input_lengths", rows, steps)
    blank = require_integer(blank, "blank", least=0)
    losses, core = _transducer.forward(encoder, predictor, weight, bias, labels, frames, counts, blank)
    return _reduced(losses, reduction), TransducerTape(core, rows, reduction)


def _reduced(losses: Array, reduction: str) -> Any:
    if reduction == "none":
        return losses.copy()  # the tape's own are not the caller's to write
    total = losses.sum(dtype=np.float64)
    if reduction == "sum":
        return losses.dtype.type(total)
    return losses.dtype.type(total / len(losses) if len(losses) else np.nan)


def transducer_loss_backward(
    tape: TransducerTape | TransducerDeviceTape, dloss: Any = 1.0
) -> tuple[Array, Array, Array, Array | None]:
    """Gradients of `transducer_loss`.

    Parameters
    ----------
    tape : TransducerTape
        From `transducer_loss_forward`. It is not written: it may be used again.
    dloss : float or ndarray
        Gradient of the loss: a number, or for reduction 'none' also an array (B,) of the loss's dtype. For a loss on a
        device arrays are the device's, and one without axes may stand for a number.

    Returns
    -------
    dencoder, dpredictor, dweight, dbias : ndarray
        In the shapes of encoder, predictor, weight and bias; dbias is None where there was none. What lies past a row's
        lengths, and a row whose loss is inf, has gradient 0.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind, dtype or shape; the message names it.
    """
    if isinstance(tape, TransducerDeviceTape):
        return device_backward(tape, dloss)
    if not isinstance(tape, TransducerTape):
        raise TypeError(f"tape must be the one that transducer_loss_forward returned, not {type(tape).__name__}")
    divisor = max(tape.rows, 1) if tape.reduction == "mean" else None
    scale = loss_gradients(dloss, tape.reduction, tape.rows, tape.core.dtype, divisor)
    gradients: tuple[Array, Array, Array, Array | None] = _transducer.backward(tape.core, scale)
    return gradients

"""Connectionist temporal classification (CTC): the loss and its gradient, the most probable path, greedy decoding."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedrnn import _core
from fusedrnn.arguments import require_choice, require_flag, require_integer, require_number
from fusedrnn.arrays.device import owner_of
from fusedrnn.gradients import Array
from fusedrnn.ops.ctc_arguments import require_logits_shape, targets_of
from fusedrnn.ops.ctc_device import (
    CtcDeviceTape,
    device_align,
    device_backward,
    device_forward,
    device_greedy,
    on_host,
    require_device_logits,
)
from fusedrnn.ops.labels import REDUCTIONS, integers_of, lengths_of, loss_gradients

_ctc: Any = _core.operations["ctc_loss"]


@dataclass(frozen=True)
class CtcTape:
    """What the backward pass needs: it refers to the logits, and holds the forward variables of every frame."""

    core: Any
    lengths: Array
    reduction: str

    @property
    def nbytes(self) -> int:
        """Bytes it holds beyond the array it refers to."""
        return int(self.core.nbytes)


def _require_logits(logits: Any) -> None:
    """Three axes; the compiled part checks the rest."""
    if not isinstance(logits, np.ndarray):
        raise TypeError(f"logits must be a numpy.ndarray of float32 or float64, not {type(logits).__name__}")
    require_logits_shape(logits)


def _batch(logits: Any, targets: Any, input_lengths: Any, target_lengths: Any) -> tuple[Array, Array, Array]:
    """The targets of all rows one after the other, and the lengths; what the compiled part does not check itself."""
    _require_logits(logits)
    steps, rows = logits.shape[:2]
    labels, counts = targets_of(targets, target_lengths, rows)
    return labels, lengths_of(input_lengths, "input_lengths", rows, steps), counts


def _blank(blank: Any, logits: Any) -> int:
    return require_integer(blank, "blank", least=0, most=logits.shape[2] - 1)


def _reduced(losses: Array, lengths: Array, reduction: str, zero_infinity: bool) -> Any:
    if zero_infinity:
        losses = np.where(np.isposinf(losses), losses.dtype.type(0), losses)
    if reduction == "none":
        return losses.copy()  # the tape's own are not the caller's to write
    wide = losses.astype(np.float64)
    if reduction == "sum":
        return losses.dtype.type(wide.sum())
    if len(wide) == 0:
        return losses.dtype.type(np.nan)
    return losses.dtype.type((wide / np.maximum(lengths, 1)).mean())


def _forward(
    logits: Any,
    targets: Any,
    input_lengths: Any,
    target_lengths: Any,
    blank: int,
    reduction: str,
    zero_infinity: bool,
    training: bool,
) -> tuple[Any, Any]:
    require_choice(reduction, "reduction", REDUCTIONS)
    zero_infinity = require_flag(zero_infinity, "zero_infinity")
    device = owner_of(logits)
    if device is not None:
        require_device_logits(logits)
        options = (_blank(blank, logits), reduction, zero_infinity)
        return device_forward(device, logits, targets, input_lengths, target_lengths, *options, training)
    labels, steps, lengths = _batch(logits, targets, input_lengths, target_lengths)
    losses, tape = _ctc.forward(logits, labels, steps, lengths, _blank(blank, logits), training)
    loss = _reduced(losses, lengths, reduction, zero_infinity)
    return loss, CtcTape(tape, lengths, reduction) if training else None


def ctc_loss(
    logits: Array,
    targets: Array,
    input_lengths: Any = None,
    target_lengths: Any = None,
    *,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Any:
    """Loss of connectionist temporal classification: ``-log p(targets | logits)``, summed over all alignments.

    Graves, Fernández, Gomez & Schmidhuber, "Connectionist temporal classification: labelling unsegmented sequence data
    with recurrent neural networks", 2006. A path names a class for each frame; merging what repeats in it and removing
    blanks leaves the targets. A row's loss and gradient depend on that row alone, to the last bit.

    Parameters
    ----------
    logits : ndarray
        (T, B, C), float32 or float64, unit stride in the last axis. They need not be normalised: the log-softmax over C
        is a part of the loss, and log-probabilities give the same. -inf is a class of probability 0.
    targets : ndarray of integers
        (B, S), of which only the first ``target_lengths[b]`` of a row count, or all labels of the batch one after the
        other, (sum of target_lengths,). Labels lie in [0, C) and are not `blank`.
    input_lengths : ndarray of integers, optional
        (B,), each in [0, T]: frames of a row. T if None. What lies past them influences nothing.
    target_lengths : ndarray of integers, optional
        (B,), each in [0, S]. S if None; needed for concatenated targets.
    blank : int
        The class that stands for no label.
    reduction : {'mean', 'sum', 'none'}
        Mean over the batch of each loss divided by its target length (at least 1), as in torch; the sum; or each one.
    zero_infinity : bool
        Whether a row that cannot be aligned has loss 0 instead of inf. Its gradient is 0 either way.

    Of logits on a CUDA device, CuPy's and there also bfloat16 or float16, loss and gradient are computed there. Targets
    and lengths may be CuPy's or the host's. What lies on the device the host does not see: a target that is no label
    gives a loss and gradients of nan, a length counts as the nearest that may be. Only of concatenated targets the
    lengths are read, which waits for the device. A call cannot be captured in a graph.

    Returns
    -------
    scalar or ndarray
        Of the logits' dtype; (B,) for 'none'. On a device always an array, without axes for 'mean' and 'sum', and
        float32 for the 16-bit dtypes.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind, dtype, shape or value; the message names it.
    """
    return _forward(logits, targets, input_lengths, target_lengths, blank, reduction, zero_infinity, False)[0]


def ctc_loss_forward(
    logits: Array,
    targets: Array,
    input_lengths: Any = None,
    target_lengths: Any = None,
    *,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> tuple[Any, CtcTape]:
    """As `ctc_loss`, and return (loss, tape).

    The tape refers to the logits: do not write them before the backward pass.
    """
    return _forward(logits, targets, input_lengths, target_lengths, blank, reduction, zero_infinity, True)


def ctc_loss_backward(tape: CtcTape, dloss: Any = 1.0) -> Array:
    """Gradient of `ctc_loss`.

    Parameters
    ----------
    tape : CtcTape
        From `ctc_loss_forward`. It is not written: it may be used again.
    dloss : float or ndarray
        Gradient of the loss: a number, or for reduction 'none' also an array (B,) of the loss's dtype. For a loss on a
        device arrays are the device's, and one without axes may stand for a number.

    Returns
    -------
    ndarray
        (T, B, C): gradient of the logits. The gradients of a frame sum to 0 but for rounding; those past a row's length
        and of a row that cannot be aligned are 0.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind, dtype or shape; the message names it.
    """
    if isinstance(tape, CtcDeviceTape):
        return device_backward(tape, dloss)
    if not isinstance(tape, CtcTape):
        raise TypeError(f"tape must be the one that ctc_loss_forward returned, not {type(tape).__name__}")
    divisor = np.maximum(tape.lengths, 1) * max(len(tape.lengths), 1) if tape.reduction == "mean" else None
    scale = loss_gradients(dloss, tape.reduction, len(tape.lengths), tape.core.dtype, divisor)
    gradient: Array = _ctc.backward(tape.core, scale)
    return gradient


def ctc_align(
    logits: Array, targets: Array, input_lengths: Any = None, target_lengths: Any = None, *, blank: int = 0
) -> tuple[Array, Array]:
    """Most probable path of given targets: the class of each frame (forced alignment by Viterbi's algorithm, 1967).

    On a CUDA device as `ctc_loss`; the call waits for the log-probabilities.

    Parameters
    ----------
    logits, targets, input_lengths, target_lengths, blank
        As for `ctc_loss`.

    Returns
    -------
    path : ndarray of int64
        (T, B): the class of each frame, `blank` past a row's length. `ctc_spans` gives the frames of each label.
    log_prob : ndarray
        (B,): the path's log-probability, of the logits' dtype.

    Raises
    ------
    TypeError, ValueError
        As `ctc_loss`; also where a row cannot be aligned, which the message names.
    """
    device = owner_of(logits)
    if device is not None:
        require_device_logits(logits)
        return device_align(device, logits, targets, input_lengths, target_lengths, _blank(blank, logits))
    labels, steps, lengths = _batch(logits, targets, input_lengths, target_lengths)
    path, log_prob = _ctc.align(logits, labels, steps, lengths, _blank(blank, logits))
    return path, log_prob


def _path_labels(path: Any) -> Array:
    labels = integers_of(path, "path_b")
    if labels.ndim != 1:
        raise ValueError(f"path_b must have shape (T,), not {labels.shape}")
    return labels


def ctc_spans(path_b: Any, blank: int = 0) -> list[tuple[int, int, int]]:
    """Frames of each label of one row's path.

    Parameters
    ----------
    path_b : ndarray of integers
        (T,): the class of each frame, such as a column of `ctc_align`'s path. From a CUDA device it is copied.
    blank : int
        The class that stands for no label.

    Returns
    -------
    list of (label, first, last + 1)
        In order of time.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind, dtype or shape; the message names it.
    """
    device = owner_of(path_b)
    path_b = path_b if device is None else device.to_host(path_b)
    labels, blank = _path_labels(path_b), require_integer(blank, "blank", least=0)
    edges = [0, *(np.flatnonzero(labels[1:] != labels[:-1]) + 1).tolist(), len(labels)] if len(labels) else [0]
    spans = ((int(labels[first]), first, end) for first, end in itertools.pairwise(edges))
    return [span for span in spans if span[0] != blank]


def ctc_greedy_decode(logits: Array, lengths: Any = None, *, blank: int = 0) -> list[Array]:
    """Labels of the most probable class of each frame, repetitions merged and blanks removed.

    On a CUDA device the classes of the frames are found there and copied to the host, which merges them; the labels lie
    on the device.

    Parameters
    ----------
    logits : ndarray
        (T, B, C), as for `ctc_loss`. Of equal logits the first class counts.
    lengths : ndarray of integers, optional
        (B,), each in [0, T]. T if None.
    blank : int
        The class that stands for no label.

    Returns
    -------
    list of B ndarrays of int64

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind, dtype, shape or value; the message names it.
    """
    device = owner_of(logits)
    if device is not None:
        require_device_logits(logits)
        return device_greedy(device, logits, lengths, _blank(blank, logits))
    _require_logits(logits)
    steps = lengths_of(lengths, "lengths", logits.shape[1], logits.shape[0])
    found: list[Array] = _ctc.greedy_decode(logits, steps, _blank(blank, logits))
    return found


def ctc_beam_decode(
    logits: Array,
    lengths: Any = None,
    *,
    blank: int = 0,
    beam_width: int = 16,
    top: int = 1,
    prune_log_prob: float | None = None,
    top_classes: int | None = None,
    score: Callable[[tuple[int, ...], int], float] | None = None,
) -> list[list[tuple[Array, float]]]:
    """Most probable label sequences, by prefix search that adds up all paths of a prefix.

    Hannun, Maas, Jurafsky & Ng, "First-pass large vocabulary continuous speech recognition using bi-directional
    recurrent DNNs", 2014. Without pruning, and with a beam as wide as there are prefixes, it is exact. Arrays of a CUDA
    device are copied to the host, where this runs, and the labels back to the device.

    Parameters
    ----------
    logits : ndarray
        (T, B, C), as for `ctc_loss`.
    lengths : ndarray of integers, optional
        (B,), each in [0, T]. T if None.
    blank : int
        The class that stands for no label.
    beam_width : int
        Prefixes that are kept after each frame.
    top : int
        Sequences wanted of each row, at most `beam_width`.
    prune_log_prob : float, optional
        A frame does not look at classes of a lower log-probability; its most probable one always counts.
    top_classes : int, optional
        Nor at classes that are not among so many most probable ones. The blank is a class like others.
    score : callable, optional
        ``score(prefix, label) -> float`` is added to a prefix's log-probability when a label is appended, such as a
        language model's log-probability. The prefix is a tuple of labels. It is called once for each pair.

    Returns
    -------
    list of B lists of (labels, log_prob)
        Best first: an int64 array, and the log of its probability with all scores added.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind, dtype, shape or value; the message names it.
    """
    device = owner_of(logits)
    if device is not None:
        require_device_logits(logits)
        logits, lengths = on_host(device, logits), on_host(device, lengths)
    _require_logits(logits)
    steps = lengths_of(lengths, "lengths", logits.shape[1], logits.shape[0])
    beam_width = require_integer(beam_width, "beam_width", least=1)
    top = require_integer(top, "top", least=1, most=beam_width)
    prune = (
        -math.inf
        if prune_log_prob is None
        else require_number(prune_log_prob, "prune_log_prob", least=-math.inf, most=0)
    )
    classes = logits.shape[2] if top_classes is None else require_integer(top_classes, "top_classes", least=1)
    if score is not None and not callable(score):
        raise TypeError(f"score must be callable, not {type(score).__name__}")
    found: list[list[tuple[Array, float]]] = _ctc.beam_decode(
        logits, steps, _blank(blank, logits), beam_width, top, prune, classes, score
    )
    return found if device is None else [[(device.from_host(one), p) for one, p in row] for row in found]

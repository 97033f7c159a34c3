"""The transducer's loss on a device: checks of its arguments, memory, and calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedrnn import _core
from fusedrnn.arrays.checks import require_array, require_contiguous, require_float, require_shape, require_unit_stride
from fusedrnn.arrays.device import Device, owner_of
from fusedrnn.arrays.dtypes import accumulator
from fusedrnn.gradients import Array
from fusedrnn.ops.device_call import Space, require_no_graph, run
from fusedrnn.ops.device_labels import REDUCTION_NUMBERS, copied, lengths_on
from fusedrnn.ops.dloss import device_dloss
from fusedrnn.ops.labels import lengths_of, padded_labels

_ctc: Any = _core.operations["ctc_loss"]


@dataclass(frozen=True)
class TransducerDeviceTape:
    """What the backward pass needs: it refers to encoder, predictor, weight and bias, and holds four numbers a cell."""

    device: Device
    call: Any
    arrays: tuple[Any, ...]
    """encoder, predictor, weight, bias or None."""
    held: tuple[Any, ...]
    """What the call points to beside these."""
    reduction: str

    @property
    def nbytes(self) -> int:
        """Bytes it holds beyond the arrays it refers to."""
        return sum(int(array.nbytes) for array in self.held if array is not None)


def _require_arrays(device: Device, encoder: Any, predictor: Any, weight: Any, bias: Any) -> None:
    require_float(encoder, "encoder")
    if encoder.ndim != 3 or encoder.shape[2] < 1:
        raise ValueError(f"encoder must have shape (T, B, J) with J at least 1, not {tuple(encoder.shape)}")
    require_unit_stride(encoder, "encoder")
    require_array(device, predictor, "predictor", encoder.dtype)
    if predictor.ndim != 3 or predictor.shape[0] < 1 or predictor.shape[1:] != encoder.shape[1:]:
        _, rows, features = encoder.shape
        wanted = f"(U + 1, {rows}, {features}) with U at least 0"
        raise ValueError(f"predictor must have shape {wanted}, not {tuple(predictor.shape)}")
    require_unit_stride(predictor, "predictor")
    require_array(device, weight, "weight", encoder.dtype)
    if weight.ndim != 2 or weight.shape[1] != encoder.shape[2] or weight.shape[0] < 1:
        wanted = f"(V, {encoder.shape[2]}) with V at least 1"
        raise ValueError(f"weight must have shape {wanted}, not {tuple(weight.shape)}")
    require_contiguous(weight, "weight")
    if bias is not None:
        require_array(device, bias, "bias", encoder.dtype)
        require_shape(bias, "bias", (weight.shape[0],))
        require_contiguous(bias, "bias")


def _labels(
    device: Device, targets: Any, target_lengths: Any, rows: int, longest: int, classes: int, blank: int
) -> tuple[Any, Any]:
    """Targets (B, U) and lengths on the device. The host looks at the labels where it has both."""
    if owner_of(targets) is not None:
        labels = copied(device, targets, "targets", (rows, longest))
        return labels, lengths_on(device, target_lengths, "target_lengths", rows, longest)[0]
    if owner_of(target_lengths) is not None:
        require_array(device, target_lengths, "target_lengths", target_lengths.dtype)
        counts = device.to_host(target_lengths)
    else:
        counts = target_lengths
    counts = lengths_of(counts, "target_lengths", rows, longest)
    labels = padded_labels(targets, rows, longest, counts)
    _ctc.check_targets(labels[np.arange(longest) < counts[:, None]], counts, classes, blank)
    return device.from_host(labels), device.from_host(counts)


def run_forward(
    space: Space,
    arrays: tuple[Any, Any, Any, Any],
    dtype: str,
    strides: tuple[int, ...],
    integers: tuple[Any, Any, Any],
    blank: int,
    reduction: str,
) -> tuple[Any, Any, tuple[Any, ...]]:
    """Loss, the call, and what it points to beside its arguments.

    `arrays` are encoder, predictor, weight and bias, `strides` those of the first two axes of the first two, in
    elements, `integers` targets, input lengths and target lengths.
    """
    (steps, rows, features), longest, classes = arrays[0].shape, arrays[1].shape[0] - 1, arrays[2].shape[0]
    sums = "float64" if dtype == "float64" else "float32"
    losses, cells = space.empty((rows,), sums), space.empty((4, rows, steps, longest + 1), sums)
    loss = space.empty((rows,) if reduction == "none" else (), sums)
    pointed = {
        **dict(zip(("encoder", "predictor", "weight", "bias"), arrays, strict=True)),
        **dict(zip(("targets", "input_lengths", "target_lengths"), integers, strict=True)),
        **{"loss": loss, "losses": losses, "cells": cells},
    }
    call = space.native.TransducerLossCall(
        dtype=dtype,
        steps=steps,
        batch=rows,
        longest=longest,
        in_features=features,
        out_features=classes,
        blank=blank,
        **dict(zip(("encoder_time", "encoder_row", "predictor_label", "predictor_row"), strides, strict=True)),
        reduction=REDUCTION_NUMBERS[reduction],
        **{name: space.address(array) for name, array in pointed.items()},
    )
    run(space, call, "forward")
    return loss, call, (losses, cells)


def run_backward(space: Space, call: Any, dloss: Any, stride: int, gradients: tuple[Any, Any, Any, Any]) -> None:
    """Write the gradients of encoder, predictor, weight and bias; `stride` is that of dloss over rows."""
    names = ("dencoder", "dpredictor", "dweight", "dbias")
    fields = {name: space.address(array) for name, array in zip(names, gradients, strict=True)}
    run(space, call.with_fields(dloss=space.address(dloss) or 1, dloss_row=stride, **fields), "backward")


def device_forward(
    device: Device,
    arrays: tuple[Any, Any, Any, Any],
    targets: Any,
    input_lengths: Any,
    target_lengths: Any,
    blank: int,
    reduction: str,
) -> tuple[Any, TransducerDeviceTape]:
    """Loss, of the accumulator's dtype and without axes unless reduction is none, and tape."""
    require_no_graph(device, "encoder", "transducer_loss")
    encoder, predictor, weight, _ = arrays
    _require_arrays(device, *arrays)
    (steps, rows, _), longest, classes = encoder.shape, predictor.shape[0] - 1, weight.shape[0]
    if blank >= classes:
        raise ValueError(f"blank must be less than the number of classes, {classes}, not {blank}")
    labels, lengths = _labels(device, targets, target_lengths, rows, longest, classes, blank)
    frames, _ = lengths_on(device, input_lengths, "input_lengths", rows, steps)
    size = encoder.dtype.itemsize
    strides = tuple(array.strides[axis] // size for array in (encoder, predictor) for axis in (0, 1))
    integers = labels, frames, lengths
    loss, call, held = run_forward(device, arrays, encoder.dtype.name, strides, integers, blank, reduction)
    return loss, TransducerDeviceTape(device, call, arrays, (*integers, *held), reduction)


def device_backward(tape: TransducerDeviceTape, dloss: Any) -> tuple[Array, Array, Array, Array | None]:
    """Gradients of encoder, predictor, weight and bias."""
    device, rows = tape.device, tape.arrays[0].shape[1]
    require_no_graph(device, "tape", "transducer_loss_backward")
    shape = (rows,) if tape.reduction == "none" else None
    scale, stride = device_dloss(device, dloss, accumulator(tape.arrays[0].dtype), shape, "(B,)")
    found: Any = tuple(None if array is None else device.empty(array.shape, array.dtype) for array in tape.arrays)
    run_backward(device, tape.call, scale, stride, found)
    gradients: tuple[Array, Array, Array, Array | None] = found
    return gradients

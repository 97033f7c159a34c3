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
from fusedrnn.ops.device_call import require_no_graph
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
        counts = device.to_host(target_lengths)
        require_array(device, target_lengths, "target_lengths", target_lengths.dtype)
    else:
        counts = target_lengths
    counts = lengths_of(counts, "target_lengths", rows, longest)
    labels = padded_labels(targets, rows, longest, counts)
    _ctc.check_targets(labels[np.arange(longest) < counts[:, None]], counts, classes, blank)
    return device.from_host(labels), device.from_host(counts)


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
    (steps, rows, features), longest, classes = encoder.shape, predictor.shape[0] - 1, weight.shape[0]
    if blank >= classes:
        raise ValueError(f"blank must be less than the number of classes, {classes}, not {blank}")
    labels, lengths = _labels(device, targets, target_lengths, rows, longest, classes, blank)
    frames, _ = lengths_on(device, input_lengths, "input_lengths", rows, steps)
    dtype, size = accumulator(encoder.dtype), encoder.dtype.itemsize
    losses, cells = device.empty((rows,), dtype), device.empty((4, rows, steps, longest + 1), dtype)
    loss = device.empty((rows,) if reduction == "none" else (), dtype)
    pointed = {
        **dict(zip(("encoder", "predictor", "weight", "bias"), arrays, strict=True)),
        **{"targets": labels, "input_lengths": frames, "target_lengths": lengths, "losses": losses, "cells": cells},
    }
    call = device.native.TransducerLossCall(
        dtype=encoder.dtype.name,
        steps=steps,
        batch=rows,
        longest=longest,
        in_features=features,
        out_features=classes,
        blank=blank,
        encoder_time=encoder.strides[0] // size,
        encoder_row=encoder.strides[1] // size,
        predictor_label=predictor.strides[0] // size,
        predictor_row=predictor.strides[1] // size,
        reduction=REDUCTION_NUMBERS[reduction],
        loss=device.address(loss),
        **{name: device.address(array) for name, array in pointed.items()},
    )
    workspace = device.memory(call.bytes())
    call.forward(device.index, device.stream(), device.address(workspace))
    return loss, TransducerDeviceTape(device, call, arrays, (labels, frames, lengths, losses, cells), reduction)


def device_backward(tape: TransducerDeviceTape, dloss: Any) -> tuple[Array, Array, Array, Array | None]:
    """Gradients of encoder, predictor, weight and bias."""
    device, rows = tape.device, tape.arrays[0].shape[1]
    require_no_graph(device, "tape", "transducer_loss_backward")
    shape = (rows,) if tape.reduction == "none" else None
    scale, stride = device_dloss(device, dloss, accumulator(tape.arrays[0].dtype), shape, "(B,)")
    dencoder, dpredictor, dweight, dbias = (
        None if array is None else device.empty(array.shape, array.dtype) for array in tape.arrays
    )
    call = tape.call.with_fields(
        dloss=device.address(scale) or 1,
        dloss_row=stride,
        dencoder=device.address(dencoder),
        dpredictor=device.address(dpredictor),
        dweight=device.address(dweight),
        dbias=device.address(dbias),
    )
    workspace = device.memory(call.bytes())
    call.backward(device.index, device.stream(), device.address(workspace))
    found: tuple[Any, Any, Any, Any] = (dencoder, dpredictor, dweight, dbias)
    return found

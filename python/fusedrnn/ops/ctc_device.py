"""CTC on a device: checks of its arguments, memory, and calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedrnn import _core
from fusedrnn.arrays.checks import require_float, require_unit_stride
from fusedrnn.arrays.device import Device, owner_of
from fusedrnn.arrays.dtypes import accumulator
from fusedrnn.gradients import Array
from fusedrnn.ops.ctc_arguments import require_logits_shape, target_lengths_of, targets_of
from fusedrnn.ops.device_call import Space, require_no_graph, run
from fusedrnn.ops.device_labels import REDUCTION_NUMBERS, copied, lengths_on
from fusedrnn.ops.dloss import device_dloss
from fusedrnn.ops.labels import integers_of

_ctc: Any = _core.operations["ctc_loss"]


@dataclass(frozen=True)
class CtcDeviceTape:
    """What the backward pass needs: it refers to the logits, and holds the forward variables of every frame."""

    device: Device
    call: Any
    logits: Any
    held: tuple[Any, ...]
    """What the call points to beside the logits."""
    reduction: str

    @property
    def nbytes(self) -> int:
        """Bytes it holds beyond the array it refers to."""
        return sum(int(array.nbytes) for array in self.held if array is not None)


def require_device_logits(logits: Any) -> None:
    """Check the logits of a device."""
    require_float(logits, "logits")
    require_logits_shape(logits)
    require_unit_stride(logits, "logits")


def _targets(
    device: Device, logits: Any, targets: Any, target_lengths: Any, blank: int
) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """The fields of a call that tell of the targets, and the arrays they point to."""
    rows, classes = logits.shape[1:]
    on_host = owner_of(target_lengths) is None
    if owner_of(targets) is None and on_host:
        labels, counts = targets_of(targets, target_lengths, rows)
        _ctc.check_targets(labels, counts, classes, blank)
        labels = device.from_host(labels)
    else:
        given = targets if owner_of(targets) is not None else device.from_host(integers_of(targets, "targets"))
        if given.ndim == 2 and given.shape[0] == rows:
            labels = copied(device, given, "targets", tuple(given.shape))
            lengths, longest = lengths_on(device, target_lengths, "target_lengths", rows, given.shape[1])
            fields = {"targets_row": given.shape[1], "longest": longest}
            return _pointing(device, fields, targets=labels, target_lengths=lengths)
        if target_lengths is not None and not on_host:
            target_lengths = device.to_host(target_lengths)  # where a row begins is for the host to say
        counts = target_lengths_of(tuple(given.shape), target_lengths, rows)
        labels = copied(device, given, "targets", tuple(given.shape))
    fields = {"longest": int(counts.max(initial=0))}
    offsets, lengths = device.from_host(counts.cumsum() - counts), device.from_host(counts)
    return _pointing(device, fields, targets=labels, offsets=offsets, target_lengths=lengths)


def _pointing(device: Device, fields: dict[str, Any], **arrays: Any) -> tuple[dict[str, Any], tuple[Any, ...]]:
    return {**fields, **{name: device.address(array) for name, array in arrays.items()}}, tuple(arrays.values())


def _strides(logits: Any) -> tuple[int, int]:
    """From a frame to the next, and from a row to the next, in elements."""
    size = logits.dtype.itemsize
    return logits.strides[0] // size, logits.strides[1] // size


def _call(
    space: Space, logits: Any, dtype: str, strides: tuple[int, int], blank: int, fields: dict[str, Any], **arrays: Any
) -> Any:
    steps, rows, classes = logits.shape
    return space.native.CtcLossCall(
        dtype=dtype,
        steps=steps,
        rows=rows,
        classes=classes,
        blank=blank,
        logits=space.address(logits),
        logits_time=strides[0],
        logits_row=strides[1],
        **fields,
        **{name: space.address(array) for name, array in arrays.items()},
    )


def run_forward(
    space: Space,
    logits: Any,
    dtype: str,
    strides: tuple[int, int],
    blank: int,
    fields: dict[str, Any],
    frames: Any,
    reduction: str,
    zero_infinity: bool,
    training: bool,
) -> tuple[Any, Any, tuple[Any, ...]]:
    """Loss, the call, and the arrays that it points to beside the logits and those that `fields` tells of.

    `fields` are of the targets, `frames` the input lengths; `strides` are those of frames and rows of the logits.
    """
    steps, rows = logits.shape[:2]
    sums = "float64" if dtype == "float64" else "float32"
    arrays = {
        "input_lengths": frames,
        "losses": space.empty((rows,), sums),
        "normalizers": space.empty((2, steps, rows), sums),
        "alphas": space.empty((steps, rows, 4, fields["longest"] + 1), sums) if training else None,
    }
    loss = space.empty((rows,) if reduction == "none" else (), sums)
    fields = {**fields, "reduction": REDUCTION_NUMBERS[reduction], "zero_infinity": zero_infinity}
    call = _call(space, logits, dtype, strides, blank, fields, loss=loss, **arrays)
    run(space, call, "forward")
    return loss, call, tuple(arrays.values())


def run_backward(space: Space, call: Any, dloss: Any, stride: int, dlogits: Any) -> None:
    """Write the gradient of the logits; `stride` is that of dloss over rows."""
    gradients = {"dloss": space.address(dloss) or 1, "dloss_row": stride, "dlogits": space.address(dlogits)}
    run(space, call.with_fields(**gradients), "backward")


def device_forward(
    device: Device,
    logits: Any,
    targets: Any,
    input_lengths: Any,
    target_lengths: Any,
    blank: int,
    reduction: str,
    zero_infinity: bool,
    training: bool,
) -> tuple[Any, CtcDeviceTape | None]:
    """Loss, of the accumulator's dtype and without axes unless reduction is none, and tape."""
    require_no_graph(device, "logits", "ctc_loss")
    steps, rows = logits.shape[:2]
    fields, held = _targets(device, logits, targets, target_lengths, blank)
    frames, _ = lengths_on(device, input_lengths, "input_lengths", rows, steps)
    given = (logits, logits.dtype.name, _strides(logits), blank, fields, frames)
    loss, call, arrays = run_forward(device, *given, reduction, zero_infinity, training)
    tape = CtcDeviceTape(device, call, logits, (*held, *arrays), reduction) if training else None
    return loss, tape


def device_backward(tape: CtcDeviceTape, dloss: Any) -> Array:
    """Gradient of the logits."""
    device, logits = tape.device, tape.logits
    require_no_graph(device, "tape", "ctc_loss_backward")
    shape = (logits.shape[1],) if tape.reduction == "none" else None
    scale, stride = device_dloss(device, dloss, accumulator(logits.dtype), shape, "(B,)")
    dlogits: Array = device.empty(logits.shape, logits.dtype)
    run_backward(device, tape.call, scale, stride, dlogits)
    return dlogits


def device_align(
    device: Device, logits: Any, targets: Any, input_lengths: Any, target_lengths: Any, blank: int
) -> tuple[Any, Any]:
    """The most probable path and its log-probability; waits for the latter."""
    require_no_graph(device, "logits", "ctc_align")
    steps, rows = logits.shape[:2]
    fields, held = _targets(device, logits, targets, target_lengths, blank)
    frames, _ = lengths_on(device, input_lengths, "input_lengths", rows, steps)
    path = device.empty((steps, rows), np.int64)
    log_prob = device.empty((rows,), accumulator(logits.dtype))
    normalizers = device.empty((2, steps, rows), np.float64)
    arrays = {"input_lengths": frames, "losses": log_prob, "normalizers": normalizers, "path": path}
    run(device, _call(device, logits, logits.dtype.name, _strides(logits), blank, fields, **arrays), "forward")
    _ctc.require_aligned(device.to_host(log_prob).astype(np.float64))
    del held  # until here the device reads them
    return path, log_prob


def device_greedy(device: Device, logits: Any, lengths: Any, blank: int) -> list[Any]:
    """Labels of each row's most probable classes; waits for these."""
    require_no_graph(device, "logits", "ctc_greedy_decode")
    steps, rows = logits.shape[:2]
    frames, _ = lengths_on(device, lengths, "lengths", rows, steps)
    path = device.empty((steps, rows), np.int64)
    arrays = {"input_lengths": frames, "path": path}
    run(device, _call(device, logits, logits.dtype.name, _strides(logits), blank, {}, **arrays), "forward")
    classes = device.to_host(path)
    before = np.concatenate([np.full((1, rows), blank), classes[:-1]])
    labels = (classes != before) & (classes != blank)  # past a row's length all are blank
    return [device.from_host(classes[labels[:, b], b]) for b in range(rows)]


def on_host(device: Device, value: Any) -> Any:
    """A device array as a host array, of float32 where it has 16 bits; anything else as it is."""
    if owner_of(value) is None:
        return value
    host = device.to_host(value)
    return host.astype(accumulator(np.dtype(host.dtype))) if host.dtype.kind not in "iub" else host

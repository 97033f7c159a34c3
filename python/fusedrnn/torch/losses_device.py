"""Losses over label sequences on CUDA tensors, without CuPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusedrnn import _core
from fusedrnn._core import sentences
from fusedrnn.arguments import require_choice, require_flag, require_integer
from fusedrnn.ops import ctc_device, transducer_device
from fusedrnn.ops.ctc_arguments import target_lengths_of, targets_of
from fusedrnn.ops.labels import REDUCTIONS, integers_of, lengths_of, padded_labels
from fusedrnn.torch import device as devices
from fusedrnn.torch.attention_device import TensorSpace
from fusedrnn.torch.options import near
from fusedrnn.torch.tensors import address, check_memory, contiguous, unit_stride

_ctc: Any = _core.operations["ctc_loss"]


@dataclass(frozen=True)
class LossTape:
    """What a backward pass needs."""

    call: Any
    tensors: tuple[Tensor | None, ...]
    """Those that have gradients."""
    held: tuple[Tensor | None, ...]
    """What the call points to beside them."""


def holds(value: Any) -> bool:
    """Whether a value is a tensor of a CUDA device."""
    return isinstance(value, Tensor) and devices.kind.holds(value)


def floats_on_device(tensors: Sequence[tuple[Any, str]], function: str) -> list[Tensor]:
    """Tensors of the first one's dtype and device; under autocast they become float32, as in torch's losses."""
    first = tensors[0][0]
    reason = devices.missing()
    if reason is not None:
        raise RuntimeError(f"fusedrnn.torch.{function} cannot run on {first.device}: {reason}")
    found: list[Tensor] = []
    for tensor, name in tensors:
        if not isinstance(tensor, Tensor) or tensor.device != first.device:
            came = tensor.device if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name} must be a tensor on {first.device}, not {came}")
        if torch.is_autocast_enabled(first.device.type) and tensor.is_floating_point():
            tensor = tensor if tensor.dtype == torch.float64 else tensor.float()
        wanted = devices.DTYPES if not found else {found[0].dtype: _name(found[0].dtype)}
        if tensor.dtype not in wanted:
            raise TypeError(sentences["dtype"].format(name, " or ".join(wanted.values()), _name(tensor.dtype), ""))
        found.append(tensor)
    check_memory([(name, tensor) for tensor, (_, name) in zip(found, tensors, strict=True)])
    return found


def ctc_forward(
    log_probs: Tensor,
    arguments: Sequence[Any],
    *,
    blank: int,
    reduction: str,
    zero_infinity: bool,
    training: bool,
) -> tuple[Tensor, LossTape]:
    """Loss and tape of (T, N, C); `arguments` are targets, input lengths and target lengths."""
    require_choice(reduction, "reduction", REDUCTIONS)
    zero_infinity = require_flag(zero_infinity, "zero_infinity")
    steps, rows, classes = log_probs.shape
    blank = require_integer(blank, "blank", least=0, most=classes - 1)
    logits = unit_stride(log_probs.detach())
    targets, input_lengths, target_lengths = arguments
    fields, labels = _ctc_targets(targets, target_lengths, logits, blank)
    frames, _ = _lengths(input_lengths, "input_lengths", rows, steps, logits)
    loss, call, arrays = ctc_device.run_forward(
        TensorSpace(logits),
        logits,
        devices.DTYPES[logits.dtype],
        (logits.stride(0), logits.stride(1)),
        blank,
        fields,
        frames,
        reduction,
        zero_infinity,
        training,
    )
    return loss, LossTape(call, (logits,), (*labels, *arrays))


def ctc_backward(tape: LossTape, dloss: Tensor) -> list[Tensor | None]:
    """Gradient of log_probs."""
    found = _gradients(tape)
    ctc_device.run_backward(_space(tape), tape.call, *_strided(dloss), found[0])
    return found


def transducer_forward(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor | None], arguments: Sequence[Any], *, blank: int, reduction: str
) -> tuple[Tensor, LossTape]:
    """Loss and tape of encoder, predictor, weight and bias; `arguments` are targets and both lengths."""
    require_choice(reduction, "reduction", REDUCTIONS)
    blank = require_integer(blank, "blank", least=0)
    _require_shapes(*tensors)
    encoder, predictor = (unit_stride(tensor.detach()) for tensor in tensors[:2])
    weight, bias = contiguous(tensors[2].detach()), None if tensors[3] is None else contiguous(tensors[3].detach())
    (steps, rows, _), longest, classes = encoder.shape, predictor.shape[0] - 1, weight.shape[0]
    if blank >= classes:
        raise ValueError(f"blank must be less than the number of classes, {classes}, not {blank}")
    targets, input_lengths, target_lengths = arguments
    labels, lengths = _padded_targets(targets, target_lengths, rows, longest, classes, blank, encoder)
    frames, _ = _lengths(input_lengths, "input_lengths", rows, steps, encoder)
    strides = tuple(tensor.stride(axis) for tensor in (encoder, predictor) for axis in (0, 1))
    arrays, integers = (encoder, predictor, weight, bias), (labels, frames, lengths)
    loss, call, held = transducer_device.run_forward(
        TensorSpace(encoder), arrays, devices.DTYPES[encoder.dtype], strides, integers, blank, reduction
    )
    return loss, LossTape(call, arrays, (*integers, *held))


def transducer_backward(tape: LossTape, dloss: Tensor) -> list[Tensor | None]:
    """Gradients of encoder, predictor, weight and bias."""
    found = _gradients(tape)
    dencoder, dpredictor, dweight, dbias = found
    gradients = dencoder, dpredictor, dweight, dbias
    transducer_device.run_backward(_space(tape), tape.call, *_strided(dloss), gradients)
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _space(tape: LossTape) -> TensorSpace:
    first: Any = tape.tensors[0]
    return TensorSpace(first)


def _gradients(tape: LossTape) -> list[Tensor | None]:
    return [None if tensor is None else tensor.new_empty(tensor.shape) for tensor in tape.tensors]


def _strided(dloss: Tensor) -> tuple[Tensor, int]:
    """The gradient of a loss, and its stride over rows."""
    return contiguous(dloss.detach()), 1 if dloss.dim() > 0 else 0


def _on_host(values: Any) -> Any:
    """As an array, where it is a tensor; waits for one of a device."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values


def _copied(values: Tensor, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """A device's integers as int64 in memory of their own: the tape does not depend on the caller's."""
    if values.dtype.is_floating_point or values.dtype.is_complex or values.dtype == torch.bool:
        raise TypeError(f"{name} must be an array of integers, not of {_name(values.dtype)}")
    if values.device != like.device:
        raise TypeError(f"{name} must be on {like.device}, not on {values.device}; nothing is copied between devices")
    if tuple(values.shape) != shape:
        raise ValueError(sentences["shape"].format(name, shape, tuple(values.shape)))
    check_memory([(name, values)])
    return values.detach().to(torch.int64, copy=True).contiguous()


def _uploaded(values: Any, name: str, like: Tensor) -> Tensor:
    return near(torch.from_numpy(np.ascontiguousarray(values)), like, name)


def _lengths(values: Any, name: str, rows: int, most: int, like: Tensor) -> tuple[Tensor | None, int]:
    """Lengths on the device, None where they are `most` throughout, and the largest one they may be."""
    if values is None:
        return None, most
    if holds(values):
        return _copied(values, name, (rows,), like), most
    lengths = lengths_of(_on_host(values), name, rows, most)
    return _uploaded(lengths, name, like), int(lengths.max(initial=0))


def _ctc_targets(
    targets: Any, target_lengths: Any, logits: Tensor, blank: int
) -> tuple[dict[str, Any], tuple[Tensor | None, ...]]:
    """The fields of a call that tell of the targets, and the tensors they point to; as ctc_device's."""
    rows, classes = logits.shape[1:]
    if not holds(targets) and not holds(target_lengths):
        values, counts = targets_of(_on_host(targets), _on_host(target_lengths), rows)
        _ctc.check_targets(values, counts, classes, blank)
        labels = _uploaded(values, "targets", logits)
    else:
        given = targets if holds(targets) else _uploaded(integers_of(_on_host(targets), "targets"), "targets", logits)
        labels = _copied(given, "targets", tuple(given.shape), logits)
        if labels.dim() == 2 and labels.shape[0] == rows:
            lengths, longest = _lengths(target_lengths, "target_lengths", rows, labels.shape[1], logits)
            fields = {"targets_row": labels.shape[1], "longest": longest}
            return _pointing(fields, targets=labels, target_lengths=lengths)
        counts = target_lengths_of(tuple(labels.shape), _on_host(target_lengths), rows)
    offsets = _uploaded(counts.cumsum() - counts, "target_lengths", logits)
    lengths = _uploaded(counts, "target_lengths", logits)
    return _pointing({"longest": int(counts.max(initial=0))}, targets=labels, offsets=offsets, target_lengths=lengths)


def _pointing(fields: dict[str, Any], **tensors: Tensor | None) -> tuple[dict[str, Any], tuple[Tensor | None, ...]]:
    return {**fields, **{name: address(tensor) for name, tensor in tensors.items()}}, tuple(tensors.values())


def _padded_targets(
    targets: Any, target_lengths: Any, rows: int, longest: int, classes: int, blank: int, like: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Targets (B, U) and lengths on the device. The host looks at the labels where it has them."""
    if holds(targets):
        labels = _copied(targets, "targets", (rows, longest), like)
        return labels, _lengths(target_lengths, "target_lengths", rows, longest, like)[0]
    counts = lengths_of(_on_host(target_lengths), "target_lengths", rows, longest)
    values = padded_labels(_on_host(targets), rows, longest, counts)
    _ctc.check_targets(values[np.arange(longest) < counts[:, None]], counts, classes, blank)
    return _uploaded(values, "targets", like), _uploaded(counts, "target_lengths", like)


def _require_shapes(encoder: Tensor, predictor: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    frames, after, readout = (tuple(tensor.shape) for tensor in (encoder, predictor, weight))
    if len(frames) != 3 or frames[2] < 1:
        raise ValueError(f"encoder must have shape (T, B, J) with J at least 1, not {frames}")
    if len(after) != 3 or after[0] < 1 or after[1:] != frames[1:]:
        wanted = f"(U + 1, {frames[1]}, {frames[2]}) with U at least 0"
        raise ValueError(f"predictor must have shape {wanted}, not {after}")
    if len(readout) != 2 or readout[1] != frames[2] or readout[0] < 1:
        raise ValueError(f"weight must have shape (V, {frames[2]}) with V at least 1, not {readout}")
    if bias is not None and tuple(bias.shape) != readout[:1]:
        raise ValueError(sentences["shape"].format("bias", readout[:1], tuple(bias.shape)))

"""Losses over label sequences on torch's tensors: the compiled operations as nodes of autograd's graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fusedrnn.ops.ctc_loss import ctc_loss as ctc_loss_of_arrays
from fusedrnn.ops.ctc_loss import ctc_loss_backward, ctc_loss_forward
from fusedrnn.ops.transducer_loss import transducer_loss_backward, transducer_loss_forward
from fusedrnn.torch.losses_device import (
    LossTape,
    ctc_backward,
    ctc_forward,
    floats_on_device,
    holds,
    transducer_backward,
    transducer_forward,
)
from fusedrnn.torch.nodes import array_of, floats, once
from fusedrnn.torch.tensors import check_memory, contiguous, unit_stride

Integers = Tensor | Sequence[int]


def _integers(values: Any, name: str) -> Any:
    """As an array, where it is a tensor; the operation checks what it holds."""
    if not isinstance(values, Tensor):
        return values
    if values.device.type != "cpu":
        raise TypeError(f"{name} must be integers on the CPU, not a tensor on {values.device}")
    check_memory([(name, values)])
    return values.detach().numpy()


def _result(loss: Any, like: Tensor) -> Tensor:
    return torch.as_tensor(loss, dtype=like.dtype)


def _gradient(dloss: Tensor) -> Any:
    return dloss.detach().resolve_neg().numpy() if dloss.ndim > 0 else float(dloss.detach())


class _CtcLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, arguments: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
        ctx.save_for_backward(log_probs)
        if holds(log_probs):
            result, ctx.tape = ctc_forward(log_probs, arguments, **options, training=True)
            return result
        loss, ctx.tape = ctc_loss_forward(array_of(unit_stride(log_probs)), *arguments, **options)
        return _result(loss, log_probs)

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors  # RuntimeError where they were written since: the tape refers to their memory
        if isinstance(ctx.tape, LossTape):
            found: Sequence[Any] = ctc_backward(ctx.tape, dloss)
        else:
            found = [ctc_loss_backward(ctx.tape, _gradient(dloss))]
        return *once("ctc_loss", found, dloss, inputs), None, None


@torch.compiler.disable  # type: ignore[untyped-decorator]
def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Integers,
    target_lengths: Integers,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """`torch.nn.functional.ctc_loss` on this library's kernel (`fusedrnn.ctc_loss`).

    Three things differ: log_probs are normalised again, which changes nothing but where they are no log-probabilities;
    the gradient of a row that cannot be aligned is 0, with or without `zero_infinity`; and a second derivative is a
    RuntimeError. As torch's, the gradient is that of the log_softmax's input: it is right where log_probs come out of a
    log_softmax.

    Parameters
    ----------
    log_probs : Tensor
        (T, N, C), or (T, C) without a batch; float32 or float64, on a CUDA device also bfloat16 or float16.
    targets : Tensor
        (N, S) or (sum of target_lengths,), of integers.
    input_lengths, target_lengths : Tensor or sequence of int
        (N,), or () without a batch. For log_probs on a CUDA device these three may lie there or on the CPU; what of
        them lies there is not looked at, as `fusedrnn.ctc_loss` says.
    blank, reduction, zero_infinity
        As torch's.

    Returns
    -------
    Tensor
        Without axes; for reduction 'none' (N,), or () without a batch. Of log_probs' dtype, of 16 bits float32.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind, dtype, device, shape or value; the message names it.
    RuntimeError
        Where there is no engine for CUDA tensors, with the reason.
    """
    if on_device := holds(log_probs):
        (log_probs,) = floats_on_device([(log_probs, "log_probs")], "ctc_loss")
    else:
        log_probs = floats(log_probs, "log_probs")
    if log_probs.ndim not in (2, 3) or log_probs.shape[-1] < 1:
        shape = tuple(log_probs.shape)
        raise ValueError(f"log_probs must have shape (T, N, C) or (T, C) with C at least 1, not {shape}")
    named: list[tuple[Any, str]] = [
        (targets, "targets"),
        (input_lengths, "input_lengths"),
        (target_lengths, "target_lengths"),
    ]
    labels, *lengths = (values if on_device else _integers(values, name) for values, name in named)
    alone = log_probs.ndim == 2
    if alone:
        log_probs = log_probs.unsqueeze(1)
        lengths = [values.reshape(1) if getattr(values, "ndim", None) == 0 else values for values in lengths]
    options: dict[str, Any] = {"blank": blank, "reduction": reduction, "zero_infinity": zero_infinity}
    if torch.is_grad_enabled() and log_probs.requires_grad:
        loss: Tensor = _CtcLoss.apply(log_probs, (labels, *lengths), options)  # type: ignore[no-untyped-call]
    elif on_device:
        loss = ctc_forward(log_probs, (labels, *lengths), **options, training=False)[0]
    else:
        loss = _result(ctc_loss_of_arrays(array_of(unit_stride(log_probs)), labels, *lengths, **options), log_probs)
    return loss.reshape(()) if alone else loss


class _TransducerLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        encoder: Tensor,
        predictor: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        arguments: tuple[Any, ...],
        options: dict[str, Any],
    ) -> Tensor:
        ctx.save_for_backward(encoder, predictor, weight, bias)
        if holds(encoder):
            result, ctx.tape = transducer_forward((encoder, predictor, weight, bias), arguments, **options)
            return result
        readout = [None if t is None else contiguous(t) for t in (weight, bias)]
        tensors = [unit_stride(encoder), unit_stride(predictor), *readout]
        loss, ctx.tape = transducer_loss_forward(*map(array_of, tensors), *arguments, **options)
        return _result(loss, encoder)

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors  # RuntimeError where they were written since: the tape refers to their memory
        if isinstance(ctx.tape, LossTape):
            found: Sequence[Any] = transducer_backward(ctx.tape, dloss)
        else:
            found = transducer_loss_backward(ctx.tape, _gradient(dloss))
        return *once("transducer_loss", found, dloss, inputs), None, None


@torch.compiler.disable  # type: ignore[untyped-decorator]
def transducer_loss(
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    input_lengths: Integers | None = None,
    target_lengths: Integers | None = None,
    *,
    blank: int = 0,
    reduction: str = "mean",
) -> Tensor:
    """`fusedrnn.transducer_loss` of tensors, differentiable once in encoder, predictor, weight and bias.

    Parameters
    ----------
    encoder, predictor, weight, bias : Tensor
        (T, B, J), (U + 1, B, J), (V, J) and (V,) or None; float32 or float64, on a CUDA device also bfloat16 or
        float16.
    targets : Tensor
        (B, U), of integers.
    input_lengths, target_lengths : Tensor or sequence of int, optional
        (B,). For an encoder on a CUDA device these three may lie there or on the CPU; what of them lies there is not
        looked at, as `fusedrnn.transducer_loss` says.
    blank, reduction
        As for `fusedrnn.transducer_loss`.

    Returns
    -------
    Tensor
        Without axes; (B,) for reduction 'none'. Of encoder's dtype, of 16 bits float32.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind, dtype, device, shape or value; the message names it.
    RuntimeError
        Where there is no engine for CUDA tensors, with the reason.
    """
    named: list[tuple[Any, str]] = [(encoder, "encoder"), (predictor, "predictor"), (weight, "weight")]
    named += [] if bias is None else [(bias, "bias")]
    on_device = holds(encoder)
    arrays: list[Tensor | None] = []
    arrays += floats_on_device(named, "transducer_loss") if on_device else [floats(*one) for one in named]
    arrays += [None] if bias is None else []
    integers = (targets, "targets"), (input_lengths, "input_lengths"), (target_lengths, "target_lengths")
    given = tuple(values if on_device else _integers(values, name) for values, name in integers)
    options = {"blank": blank, "reduction": reduction}
    loss: Tensor = _TransducerLoss.apply(*arrays, given, options)  # type: ignore[no-untyped-call]
    return loss

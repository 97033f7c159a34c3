"""The compiled engines on torch tensors: one autograd node for all the layers of a call.

The compiled part reads tensors of the CPU itself, and checks class, dtype, device, shape, strides and that all of their
memory is there. That takes a fraction of a microsecond a tensor, where Python takes several. Tensors of a device are
checked in Python, and run by `device.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad

from fusedrnn import _core
from fusedrnn.torch import device
from fusedrnn.torch.call import Bound, Call, States
from fusedrnn.torch.frozen import packed_of
from fusedrnn.torch.rerun import rerun
from fusedrnn.torch.tensors import check_memory, contiguous, unit_stride


def bind(call: Call, x: Tensor, states: States, weights: Sequence[Tensor]) -> _core.RawCall | None:
    """The call on tensors as they lie; None where the CPU's engine cannot read one of them."""
    if call.on_device:
        return None
    engine = call.config.engines.get(x.dtype)
    if engine is None:
        return None
    return engine.bind(call.form, call.steps, call.rows, call.lists, x, states, weights)


def bind_copies(call: Call, x: Tensor, states: States, weights: Sequence[Tensor]) -> Bound:
    """The call on copies of those that the engine cannot read as they lie; all are of the right kind and shape."""
    names = [*call.names, *(f"parameter {i}" for i in range(len(call.names), len(weights)))]
    initial = [f"{name}_0" for name in _core.cells[call.config.cell].states]
    check_memory(zip(("the input", *initial, *names), (x, *states, *weights), strict=True))
    states = tuple(None if s is None else contiguous(s) for s in states)
    x, weights = unit_stride(x), [contiguous(w) for w in weights]
    bound = device.BoundCall(call, x, states, weights) if call.on_device else bind(call, x, states, weights)
    if bound is None:
        raise RuntimeError("fusedrnn.torch: the engine cannot read the tensors of a call")
    return bound


def infer(call: Call, weights: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
    """Run a bound call in inference, from the packed parameters if its module keeps some."""
    bound = call.take_bound()
    if call.keeper is None or not isinstance(bound, _core.RawCall):
        return bound.forward(torch.get_num_threads(), False)
    return bound.forward(torch.get_num_threads(), False, packed_of(call.keeper, bound, weights))


def tape_form(call: Call, x: Tensor) -> tuple[Any, torch.dtype]:
    """Size and dtype of the tape for inputs like x."""
    if call.on_device:
        return device.tape_bytes(call, x), torch.uint8
    rows = x.shape[0] if call.form == "packed" else call.steps * call.rows
    return call.config.engines[x.dtype].tape_row * rows, x.dtype


class Layers(torch.autograd.Function):
    """`forward` and `backward` as a node of the graph; a second derivative reruns the call through torch's own."""

    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor, *states_and_weights: Tensor | None) -> Any:
        y, final, tape = call.take_bound().forward(torch.get_num_threads(), True)
        if call.lists is not None or call.on_device:
            call.keep_own_counts()
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, tape, *states_and_weights)
        # y is not saved as the others are: what torch's own layers return may be written in place before the backward
        # pass. Where its version tells that it was, its values are made again, to the same bits.
        ctx.kept = call, y.detach(), y._version
        outputs = final if call.form == "step" else (y, *final)
        return outputs if len(outputs) > 1 else outputs[0]

    @staticmethod
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        call, y, version = ctx.kept
        x, tape, *others = ctx.saved_tensors
        states, weights = tuple(others[: call.config.states]), others[call.config.states :]
        wanted = ctx.needs_input_grad[1:]
        if forward_ad._current_level >= 0:
            raise NotImplementedError("fusedrnn.torch: the gradients of a layer have no forward-mode derivative")
        is_step = call.form == "step"
        dy, *dstates = (None, *gradients) if is_step else gradients
        dfinal = tuple(dstates)
        again, overwritten = torch.is_grad_enabled(), y._version != version
        # Nearly always everything is still as it was, and the gradients lie as the engine reads them.
        bound = None if again or overwritten else bind(call, x, states, weights)
        read = None if is_step else y  # the tape has all of a single step
        found = bound and bound.backward(torch.get_num_threads(), read, tape, dy, dfinal, wanted)
        if found:
            return None, *found
        if again or any(map(is_batched, gradients)):
            return None, *rerun(call, (x, *others), (dy, *dfinal), wanted)
        return None, *backward_of_copies(call, x, states, weights, y, overwritten, tape, dy, dfinal, wanted)


def is_batched(gradient: Tensor | None) -> bool:
    """Whether vmap runs the backward pass on a batch of gradients, as for `is_grads_batched=True`."""
    if gradient is None:
        return False
    return _functorch.is_legacy_batchedtensor(gradient) or _functorch.is_batchedtensor(gradient)


# torch.autograd.Function.apply less what it does for torch.func, which is not active where this is called.
apply_layers = super(torch.autograd.Function, Layers).apply


def backward_of_copies(
    call: Call,
    x: Tensor,
    states: States,
    weights: list[Tensor],
    y: Tensor,
    overwritten: bool,
    tape: Tensor,
    dy: Tensor | None,
    dfinal: States,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """A backward pass with copies of what the engine does not read as it lies; errors for the rest."""
    check_saved(call, x, y, states, tape, weights)
    bound = bind_copies(call, x, states, weights)
    if overwritten:
        # On a device only another training call cuts time into the same chunks and so gives the same bits.
        y, _, made = bound.forward(torch.get_num_threads(), call.on_device)
        tape = tape if made is None else made
    return differentiate(bound, y, tape, dy, dfinal, wanted)


def differentiate(
    bound: Bound, y: Tensor | None, tape: Tensor, dy: Tensor | None, dfinal: States, wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """A call's gradients, from copies of what of its outputs the engine does not read as it lies."""
    named = [("output", y), ("tape", tape), *(("gradient", d) for d in (dy, *dfinal))]
    check_memory((f"a layer's {name}", t) for name, t in named)
    y, dy = (None if t is None else unit_stride(t) for t in (y, dy))
    dfinal = tuple(None if d is None else contiguous(d) for d in dfinal)
    # A saved-tensor hook may have brought the tape back to memory that is aligned less than the engine's vectors.
    tape = contiguous(tape) if tape.data_ptr() % 64 == 0 else tape.clone()
    found = bound.backward(torch.get_num_threads(), y, tape, dy, dfinal, tuple(wanted))
    if found is None:
        raise RuntimeError("fusedrnn.torch: the engine cannot read the gradients of a call's outputs")
    return found


def check_saved(call: Call, x: Tensor, y: Tensor, states: States, tape: Tensor, weights: list[Tensor]) -> None:
    """RuntimeError where what was saved is not of its shape and dtype any more.

    A saved-tensor hook may give back anything, and an assignment to ``.data``, as ``module.half()`` makes it, changes a
    tensor without a trace in its version.
    """
    config, dtype = call.config, y.dtype
    tape_size, tape_dtype = tape_form(call, y)
    given = [s for s in states if s is not None]
    shapes = [(*y.shape[:-1], config.input_size), *config.shapes, *[call.state_shape] * len(given)]
    forms = [(tape_dtype, (tape_size,)), *((dtype, shape) for shape in shapes)]
    for t, (dtype, shape) in zip((tape, x, *weights, *given), forms, strict=True):
        if t.shape == shape and t.dtype is dtype and t.device == y.device and t.layout is torch.strided:
            continue
        raise RuntimeError(
            "fusedrnn.torch: an input or a parameter has got another shape, dtype or device between the forward and "
            "the backward pass, by .data, .half() or the like, or a saved-tensor hook gave back another tensor"
        )

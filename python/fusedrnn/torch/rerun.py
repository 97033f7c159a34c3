"""A call through torch's own operations: for second derivatives, and where the engine cannot run it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import _VF, Tensor

from fusedrnn.torch.call import Call
from fusedrnn.torch.optional_cells import OPTIONAL_CELLS, check_weights

LAYERS: dict[str, Any] = {"rnn_tanh": _VF.rnn_tanh, "rnn_relu": _VF.rnn_relu, "lstm": _VF.lstm, "gru": _VF.gru}
CELLS: dict[str, Any] = {
    "rnn_tanh": _VF.rnn_tanh_cell,
    "rnn_relu": _VF.rnn_relu_cell,
    "lstm": _VF.lstm_cell,
    "gru": _VF.gru_cell,
}

Output = tuple[Tensor | None, tuple[Tensor, ...]]
"""y and the final states; a single step has no y."""


def rerun(
    call: Call,
    inputs: Sequence[Tensor | None],
    gradients: tuple[Tensor | None, ...],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of the inputs (x, *states, *weights) through torch's own operations.

    They can be differentiated again where that is asked for, and may be batches of gradients.
    """
    again = torch.is_grad_enabled()
    # torch's fused cells on a device have a backward pass for batches of gradients only where it can be differentiated.
    graph = again or call.on_device
    # Dtypes are chosen already.
    with torch.enable_grad(), torch.autocast(inputs[0].device.type, enabled=False):  # type: ignore[union-attr]
        # One input may depend on another. Only what passes through the call itself belongs to its gradient.
        fresh = [None if t is None else t.view_as(t) for t in inputs]
        first = 1 + call.config.states  # the first of the weights
        y, final = torch_forward(call, fresh[0], fresh[1:first], fresh[first:])  # type: ignore[arg-type]
    pairs = [
        (out, grad) for out, grad in zip((y, *final), gradients, strict=True) if out is not None and grad is not None
    ]
    sources = [t for t, want in zip(fresh, wanted, strict=True) if t is not None and want]
    grads: tuple[Any, ...] = torch.autograd.grad(
        [out for out, _ in pairs], sources, [grad for _, grad in pairs], create_graph=graph, allow_unused=True
    )
    if graph and not again:  # a copy has no graph; batches cannot be detached
        grads = tuple(grad if grad is None else grad.clone() for grad in grads)
    found = iter(grads)
    return tuple(next(found) if t is not None and want else None for t, want in zip(fresh, wanted, strict=True))


def torch_forward(call: Call, x: Tensor, initial: Sequence[Tensor | None], weights: Sequence[Tensor]) -> Output:
    """Run a call: through torch's layers and cells, and those that torch lacks step by step.

    RuntimeError where torch raises it, and for parameters of a cell that torch lacks of another shape or dtype.
    """
    states = [s for s in initial if s is not None]
    if call.config.cell in OPTIONAL_CELLS:
        return _through_operations(call, x, states, weights)
    return _forward(call, x, states, weights)


def _through_operations(call: Call, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> Output:
    """A call of a cell that torch lacks, in the dtype of its weights.

    Autocast, which has no rule for such a cell, would compute each operation in a dtype of its own.
    """
    without: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    kind = x.device.type
    if kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind):
        dtype, without = weights[0].dtype, torch.autocast(kind, enabled=False)
        x, states, weights = x.to(dtype), [s.to(dtype) for s in states], [w.to(dtype) for w in weights]
    check_weights(call.config, x, states, weights)
    with without:
        return _forward(call, x, states, weights)


def _forward(call: Call, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> Output:
    if not states:
        zeros = x.new_zeros(call.state_shape)
        states = [zeros] * call.config.states
    if call.form == "step":
        return _one_step(call, x, states, weights)
    if call.config.cell in OPTIONAL_CELLS and call.batch_sizes is not None:
        return _padded(call, call.batch_sizes, x, states, weights)
    # On a device torch's layers are cuDNN's, which have no second derivatives; its cells have.
    by_step = call.config.cell in OPTIONAL_CELLS or call.on_device
    if by_step or any(t is not None for t in (call.lengths, call.reset, call.mask)):
        return _step_by_step(call, x, states, weights)
    hx: Any = tuple(states) if call.config.states > 1 else states[0]
    layout = (hx,) if call.batch_sizes is None else (call.batch_sizes, hx)
    first = [call.form == "batch"] if call.batch_sizes is None else []
    y, *final = LAYERS[call.config.cell](
        x, *layout, list(weights), call.config.bias, call.config.layers, 0.0, False, call.config.bidirectional, *first
    )
    return y, tuple(final)


def _one_step(call: Call, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> Output:
    return None, _cell(call, x, states, weights)


def _cell(call: Call, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    if call.config.cell in OPTIONAL_CELLS:
        return OPTIONAL_CELLS[call.config.cell](x, tuple(states), weights, call.config.bias)
    four = weights if call.config.bias else (*weights, None, None)
    after = CELLS[call.config.cell](x, tuple(states) if call.config.states > 1 else states[0], *four)
    return tuple(after) if call.config.states > 1 else (after,)


def _padded(call: Call, batch_sizes: Tensor, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> Output:
    """Packed rows as a padded batch of rows that end early, and back."""
    sizes = batch_sizes.tolist()
    if sizes != sorted(sizes, reverse=True) or sizes[-1] < 0 or sum(sizes) != len(x):
        raise RuntimeError(f"batch_sizes must not grow, and must add up to the {len(x)} rows, not be {sizes}")
    alive = torch.arange(call.rows) < batch_sizes[:, None]
    own = replace(call, form="time", batch_sizes=None, lists=None, lengths=alive.sum(0))
    where = alive.flatten().nonzero().squeeze(1).to(x.device)
    padded = x.new_zeros(alive.numel(), x.shape[1]).index_copy(0, where, x)
    y, final = _step_by_step(own, padded.reshape(*alive.shape, x.shape[1]), states, weights)
    return y.flatten(0, 1).index_select(0, where), final  # type: ignore[union-attr]


def _masks(call: Call, x: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Which steps lie within a row's length, which of them run, and which links are cut.

    Each is (T, B, 1). The first two are None where all do, the last is None where none is cut.
    """

    def in_time(flags: Tensor) -> Tensor:
        return (flags.T if call.form == "batch" else flags)[..., None]

    alive = cut = None
    if call.lengths is not None:
        times = torch.arange(call.steps, device=x.device)[:, None]
        alive = (times < call.lengths.to(x.device))[..., None]
    if call.reset is not None:
        cut = in_time(call.reset) if alive is None else in_time(call.reset) & alive
    running = alive
    if call.mask is not None:
        running = in_time(call.mask) if alive is None else in_time(call.mask) & alive
    return alive, running, cut


def _step_by_step(call: Call, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> Output:
    """Lengths, masks, resets and cells that torch lacks: one cell call a step, and masks."""
    masks = _masks(call, x)
    running = masks[1]
    y = x.transpose(0, 1) if call.form == "batch" else x
    if running is not None:
        y = y.masked_fill(~running, 0.0)  # what stands where a row does not run may be nan
    finals: list[tuple[Tensor, ...]] = []
    each = len(weights) // (call.config.layers * call.config.directions)
    for layer in range(call.config.layers):
        outputs = []
        for direction in range(call.config.directions):
            index = layer * call.config.directions + direction
            own = weights[index * each : (index + 1) * each]
            output, final = _one_direction(call, y, [s[index] for s in states], own, masks, direction == 1)
            outputs.append(output)
            finals.append(final)
        y = torch.cat(outputs, -1)
    final = tuple(torch.stack(parts) for parts in zip(*finals, strict=True))
    return y.transpose(0, 1) if call.form == "batch" else y, final


def _one_direction(
    call: Call,
    x: Tensor,
    state: Sequence[Tensor],
    weights: Sequence[Tensor],
    masks: tuple[Tensor | None, Tensor | None, Tensor | None],
    reverse: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    alive, running, cut = masks
    outputs: list[Tensor] = [x] * call.steps
    now = tuple(state)
    for t in reversed(range(call.steps)) if reverse else range(call.steps):
        link = t + 1 if reverse else t
        before = now
        if cut is not None and link < call.steps:
            before = tuple(s.masked_fill(cut[link], 0.0) for s in now)
        now = after = _cell(call, x[t], before, weights)
        if running is not None:
            now = tuple(torch.where(running[t], new, old) for new, old in zip(after, before, strict=True))
        outputs[t] = now[0] if alive is None else now[0].masked_fill(~alive[t], 0.0)
    return torch.stack(outputs), now

"""A call through torch's own operations: what differentiates it twice, and runs it where the engine cannot."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import _VF, Tensor

if TYPE_CHECKING:
    from fusedrnn.torch.engine import Call

LAYERS: dict[str, Any] = {"rnn_tanh": _VF.rnn_tanh, "rnn_relu": _VF.rnn_relu, "lstm": _VF.lstm, "gru": _VF.gru}
CELLS: dict[str, Any] = {
    "rnn_tanh": _VF.rnn_tanh_cell,
    "rnn_relu": _VF.rnn_relu_cell,
    "lstm": _VF.lstm_cell,
    "gru": _VF.gru_cell,
}

Output = tuple[Tensor | None, Tensor, Tensor | None]
"""y, hn and cn; a single step has no y, and only an LSTM a cn."""


@contextlib.contextmanager
def _twice_differentiable(x: Tensor) -> Iterator[None]:
    """Without autocast, since dtypes are chosen already, and without cuDNN, which has no second derivatives."""
    before = torch._C._get_cudnn_enabled()
    torch._C._set_cudnn_enabled(before and not x.is_cuda)
    try:
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            yield
    finally:
        torch._C._set_cudnn_enabled(before)


def rerun(
    call: Call,
    inputs: Sequence[Tensor | None],
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of the inputs (x, h0, c0, *weights) through torch's own operations.

    They can be differentiated again where that is asked for, and may be batches of gradients.
    """
    again = torch.is_grad_enabled()
    # torch's fused cells on a device have a backward pass for batches of gradients only where it can be differentiated.
    graph = again or call.on_device
    with _twice_differentiable(inputs[0]):  # type: ignore[arg-type]
        # An input may depend on another one: only what goes through the call itself belongs to its gradient.
        fresh = [None if t is None else t.view_as(t) for t in inputs]
        outputs = torch_forward(call, fresh[0], fresh[1], fresh[2], fresh[3:])  # type: ignore[arg-type]
    pairs = [(out, grad) for out, grad in zip(outputs, gradients, strict=True) if out is not None and grad is not None]
    sources = [t for t, want in zip(fresh, wanted, strict=True) if t is not None and want]
    grads: tuple[Any, ...] = torch.autograd.grad(
        [out for out, _ in pairs], sources, [grad for _, grad in pairs], create_graph=graph, allow_unused=True
    )
    if graph and not again:  # a copy has no graph; batches cannot be detached
        grads = tuple(grad if grad is None else grad.clone() for grad in grads)
    found = iter(grads)
    return tuple(next(found) if t is not None and want else None for t, want in zip(fresh, wanted, strict=True))


def torch_forward(call: Call, x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: Sequence[Tensor]) -> Output:
    """Run a call. RuntimeError for the cells that torch has no operation for."""
    if call.config.cell not in LAYERS:
        raise RuntimeError(
            f"fusedrnn.torch: {call.config.cell} runs on tensors that the engine takes, outside of torch.func and "
            "other modes, and has no second derivative: torch has no operation for it"
        )
    states = [s for s in (h0, c0)[: 1 + call.config.two_states] if s is not None]
    if not states:
        zeros = x.new_zeros(call.state_shape)
        states = [zeros] * (1 + call.config.two_states)
    if call.form == "step":
        return _one_step(call, x, states, weights)
    if call.lengths is not None or call.reset is not None:
        return _step_by_step(call, x, states, weights)
    hx: Any = tuple(states) if call.config.two_states else states[0]
    layout = (hx,) if call.batch_sizes is None else (call.batch_sizes, hx)
    first = [call.form == "batch"] if call.batch_sizes is None else []
    found = LAYERS[call.config.cell](
        x, *layout, list(weights), call.config.bias, call.config.layers, 0.0, False, call.config.bidirectional, *first
    )
    return found[0], found[1], found[2] if call.config.two_states else None


def _one_step(call: Call, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> Output:
    after = _cell(call, x, states, weights)
    return None, after[0], after[1] if call.config.two_states else None


def _cell(call: Call, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    four = weights if call.config.bias else (*weights, None, None)
    after = CELLS[call.config.cell](x, tuple(states) if call.config.two_states else states[0], *four)
    return tuple(after) if call.config.two_states else (after,)


def _step_by_step(call: Call, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> Output:
    """Rows that end early, and links that are cut: one of torch's cells a step, and masks."""
    if call.form == "batch":
        x = x.transpose(0, 1)
    times = torch.arange(call.steps, device=x.device)[:, None]
    lengths = torch.full((call.rows,), call.steps) if call.lengths is None else call.lengths
    alive = (times < lengths.to(x.device))[..., None]
    cut = torch.zeros_like(alive)
    if call.reset is not None:
        cut = (call.reset.T if call.form == "batch" else call.reset)[..., None] & alive
    y = x.masked_fill(~alive, 0.0)  # what stands past a row's length may be nan
    finals: list[tuple[Tensor, ...]] = []
    each = 4 if call.config.bias else 2
    for layer in range(call.config.layers):
        outputs = []
        for direction in range(call.config.directions):
            index = layer * call.config.directions + direction
            own = weights[index * each : (index + 1) * each]
            output, final = _one_direction(call, y, [s[index] for s in states], own, alive, cut, direction == 1)
            outputs.append(output)
            finals.append(final)
        y = torch.cat(outputs, -1)
    hn, *cn = (torch.stack(parts) for parts in zip(*finals, strict=True))
    return y.transpose(0, 1) if call.form == "batch" else y, hn, cn[0] if cn else None


def _one_direction(
    call: Call,
    x: Tensor,
    state: Sequence[Tensor],
    weights: Sequence[Tensor],
    alive: Tensor,
    cut: Tensor,
    reverse: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    outputs: list[Tensor] = [x] * call.steps
    now = tuple(state)
    for t in reversed(range(call.steps)) if reverse else range(call.steps):
        link = t + 1 if reverse else t
        before = now if link == call.steps else tuple(s.masked_fill(cut[link], 0.0) for s in now)
        after = _cell(call, x[t], before, weights)
        now = tuple(torch.where(alive[t], new, old) for new, old in zip(after, now, strict=True))
        outputs[t] = after[0].masked_fill(~alive[t], 0.0)
    return torch.stack(outputs), now

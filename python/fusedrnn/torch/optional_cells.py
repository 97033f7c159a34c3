"""The cells that torch lacks, in its operations, as docs/equations.md has them: for what the engine does not do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from fusedrnn.torch.config import Config

States = tuple[Tensor, ...]
Step = Callable[[Tensor, States, Sequence[Tensor], bool], States]
"""The state after a step: from x (B, I), the state before, the weights of a direction, and whether biases are there."""


def _lstm(x: Tensor, states: States, weights: Sequence[Tensor], bias: bool, *, peephole: bool, coupled: bool) -> States:
    h, c = states
    b_ih, b_hh = weights[2:4] if bias else (None, None)
    z = linear(x, weights[0], b_ih) + linear(h, weights[1], b_hh)
    *early, g, o = z.chunk(3 if coupled else 4, -1)  # i and f, or f alone
    seen = weights[-1].unbind(0) if peephole else ()
    if peephole:
        early = [gate + p * c for gate, p in zip(early, seen[:-1], strict=True)]
    *own, f = map(torch.sigmoid, early)
    i = own[0] if own else 1 - f
    c = f * c + i * torch.tanh(g)
    o = torch.sigmoid(o + seen[-1] * c if peephole else o)
    return o * torch.tanh(c), c


def _gru_reset_before(x: Tensor, states: States, weights: Sequence[Tensor], bias: bool) -> States:
    (h,) = states
    hidden = h.shape[-1]
    first, last = slice(0, 2 * hidden), slice(2 * hidden, None)
    b_ih, b_hh = weights[2:4] if bias else (None, None)
    of_x = linear(x, weights[0], b_ih)
    of_h = linear(h, weights[1][first], None if b_hh is None else b_hh[first])
    r, z = torch.sigmoid(of_x[..., first] + of_h).chunk(2, -1)
    n = torch.tanh(of_x[..., last] + linear(r * h, weights[1][last], None if b_hh is None else b_hh[last]))
    return (n + z * (h - n),)


def _lstm_with(*, peephole: bool, coupled: bool) -> Step:
    return lambda x, states, weights, bias: _lstm(x, states, weights, bias, peephole=peephole, coupled=coupled)


OPTIONAL_CELLS: dict[str, Step] = {
    "lstm_peephole": _lstm_with(peephole=True, coupled=False),
    "lstm_coupled": _lstm_with(peephole=False, coupled=True),
    "lstm_peephole_coupled": _lstm_with(peephole=True, coupled=True),
    "gru_reset_before": _gru_reset_before,
}


def check_weights(config: Config, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """RuntimeError for shapes and dtypes that torch's operations would broadcast or promote in silence.

    The engine has such a check, too; this one is in Python so that a compiler can trace it.
    """
    gates, hidden = 4 if config.cell == "lstm_peephole" else 3, config.hidden_size
    for index in range(config.layers * config.directions):
        inputs = config.input_size if index < config.directions else config.width
        shapes = [(gates * hidden, inputs), (gates * hidden, hidden), *[(gates * hidden,)] * (2 * config.bias)]
        shapes += [(gates - 1, hidden)] * ("peephole" in config.cell)
        own = weights[index * len(shapes) : (index + 1) * len(shapes)]
        found = [tuple(w.shape) for w in own]
        if found != shapes:
            raise RuntimeError(
                f"fusedrnn.torch: parameters of {config.cell} must have the shapes {shapes}, not {found}"
            )
    dtypes = {t.dtype for t in (x, *states, *weights)}
    if len(dtypes) > 1:
        raise RuntimeError(
            f"fusedrnn.torch: {config.cell} needs tensors of one dtype, not of {sorted(map(str, dtypes))}"
        )

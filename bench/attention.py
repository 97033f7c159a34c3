"""A decoder with additive attention: a training step of ours beside torch's cell in a loop with the same attention.

As many locations as steps, a memory twice as wide as the state, and scores as wide as it. Both make the keys once.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from bench.cases import GATES, Case
from bench.limits import Limits
from bench.peers import FUSEDRNN, TORCH, Outputs, Work
from bench.problem import SEED, Array
from bench.runner import Figure, Figures, Row, Run, interleave, prepare_agreeing

OURS, EAGER = "fusedrnn", "torch, a loop"
TORCH_CELLS = {"lstm": "LSTMCell", "gru": "GRUCell"}
Arrays = dict[str, Array]


def draw(case: Case) -> tuple[Arrays, Arrays]:
    """x, memory, dy and dcontext, and the parameters from U(-1/sqrt(H), 1/sqrt(H))."""
    generator = np.random.default_rng(SEED)
    hidden, features = case.hidden, 2 * case.hidden
    rows = GATES[case.cell] * hidden
    shapes: dict[str, tuple[int, ...]] = {
        "weight_ih_l0": (rows, case.inputs + features),
        "weight_hh_l0": (rows, hidden),
        "bias_ih_l0": (rows,),
        "bias_hh_l0": (rows,),
        "weight_query": (hidden, hidden),
        "weight_memory": (hidden, features),
        "bias_attention": (hidden,),
        "weight_score": (hidden,),
    }
    widths = {"x": case.inputs, "memory": features, "dy": hidden, "dcontext": features}
    data = {
        name: generator.standard_normal((case.steps, case.batch, width)).astype(case.dtype)
        for name, width in widths.items()
    }
    bound = hidden**-0.5
    return data, {name: generator.uniform(-bound, bound, shape).astype(case.dtype) for name, shape in shapes.items()}


def flops(case: Case) -> int:
    """Operations of the products of one training step: three times the forward pass's."""
    hidden, features = case.hidden, 2 * case.hidden
    cell = GATES[case.cell] * hidden * (case.inputs + features + hidden)
    of_step = cell + hidden * hidden + case.steps * (features + hidden)
    return 6 * case.batch * (case.steps * of_step + case.steps * hidden * features)


def our_work(case: Case) -> Work:
    """The decoder, forward and backward."""
    import fusedrnn

    data, parameters = draw(case)
    decoder = fusedrnn.AttentionDecoder(
        case.inputs, case.hidden, 2 * case.hidden, case.hidden, cell=case.cell, dtype=case.dtype
    )
    decoder.load_parameters(parameters)

    def step() -> Any:
        y, context, _, tape = decoder.forward(data["x"], data["memory"])
        return y, context, decoder.backward(tape, data["dy"], data["dcontext"])

    def read(result: Any) -> Outputs:
        y, context, grads = result
        return {"y": y, "context": context, "dx": grads.x, "dmemory": grads.memory, **grads.parameters}

    return Work(step, read)


def torch_work(case: Case) -> Work:
    """torch's cell step by step, with the attention in between, and autograd."""
    import torch

    data, parameters = (
        {name: torch.from_numpy(array.copy()) for name, array in arrays.items()} for arrays in draw(case)
    )
    cell = getattr(torch.nn, TORCH_CELLS[case.cell])(case.inputs + 2 * case.hidden, case.hidden)
    cell.load_state_dict({name: parameters[f"{name}_l0"] for name, _ in cell.named_parameters()})
    own = {name: parameters[name].requires_grad_() for name in parameters if not name.endswith("_l0")}
    x, memory = data["x"].requires_grad_(), data["memory"].requires_grad_()
    wanted = [x, memory, *cell.parameters(), *own.values()]
    names = ["dx", "dmemory", *(f"{name}_l0" for name, _ in cell.named_parameters()), *own]

    def step() -> Any:
        values = memory.transpose(0, 1)  # (B, S, M)
        keys = values @ own["weight_memory"].T + own["bias_attention"]
        state, outputs, contexts = None, [], []
        h = x.new_zeros(case.batch, case.hidden)
        for x_t in x:
            scores = torch.tanh(keys + (h @ own["weight_query"].T).unsqueeze(1)) @ own["weight_score"]
            context = torch.bmm(torch.softmax(scores, 1).unsqueeze(1), values).squeeze(1)
            state = cell(torch.cat([x_t, context], 1), state)
            h = state[0] if isinstance(state, tuple) else state
            outputs.append(h)
            contexts.append(context)
        y, context = torch.stack(outputs), torch.stack(contexts)
        return y, context, torch.autograd.grad([y, context], wanted, [data["dy"], data["dcontext"]])

    def read(result: Any) -> Outputs:
        y, context, grads = result
        arrays = {"y": y, "context": context, **dict(zip(names, grads, strict=True))}
        return {name: TORCH.get(tensor) for name, tensor in arrays.items()}

    return Work(step, read)


def measure(case: Case, run: Run) -> Row:
    """Time both; torch's results must agree with ours."""
    row = Row(case)
    run.limits.measure(case, run.threads)
    makers = {OURS: partial(our_work, case)}
    if run.has(TORCH):
        makers[EAGER] = partial(torch_work, case)
    interleave(row, prepare_agreeing(row, makers), run.settings)
    return row


def figures(row: Row, limits: Limits, threads: int) -> Figures:
    """Our operations a second, and torch's time over ours."""
    ours = row.measured.get(FUSEDRNN.name)
    speed = None if ours is None else flops(row.case) / ours.median / 1e9
    return {"GFLOP/s": Figure(speed, ".0f"), "torch / ours": Figure(row.ratio(EAGER, OURS))}

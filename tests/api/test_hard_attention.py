"""Hard attention is trained by REINFORCE: the mean of its estimate is the gradient of the expected loss.

There are few locations and few steps, so that every sequence of locations can be had, and its probability: the mean is
a sum over all of them, without the noise of a sample. The expected loss is written out with torch's own operations.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

import fusedrnn as fr

torch = pytest.importorskip("torch")

STEPS, LOCATIONS, INPUTS, HIDDEN, FEATURES, ATTENTION, WORDS = 3, 3, 2, 5, 4, 3, 6
SEQUENCES = list(itertools.product(range(LOCATIONS), repeat=STEPS))
ROWS = 1000  # of one and the same sequence: so many draw each sequence of locations at least once
ENTROPY = 0.3  # weight of the entropy term


def arrays_of(cell: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A row's arguments, a readout, and a decoder's parameters by name."""
    own = fr.AttentionDecoder(INPUTS, HIDDEN, FEATURES, ATTENTION, cell=cell, dtype="float64", seed=7)
    shapes = {"x": (STEPS, 1, INPUTS), "memory": (LOCATIONS, 1, FEATURES), "h": (1, 1, HIDDEN)}
    given = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    given |= {"c": rng.standard_normal((1, 1, HIDDEN))} if cell == "lstm" else {}
    given["readout"] = rng.standard_normal((WORDS, HIDDEN))
    return given | own.parameters


def step(cell: str, p: dict[str, Any], inputs: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
    weights = [p[f"{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    if cell == "lstm":
        return torch.lstm_cell(inputs, state, *weights)
    return (torch.gru_cell(inputs, state[0], *weights),)


def expected_gradients(cell: str, arrays: dict[str, np.ndarray], targets: list[int], entropy_paid: bool) -> Any:
    """Gradients of the sum of probability times loss over all sequences of locations.

    The entropy is a part of the loss where `entropy_paid`. Else it is a term of each sequence's gradient alone, as Xu
    et al. have it: the probabilities that weigh it are no functions of the parameters.
    """
    p = {name: torch.tensor(value, requires_grad=True) for name, value in arrays.items()}
    memory, total = p["memory"][:, 0], 0.0
    for locations in SEQUENCES:
        state = tuple(p[name][0] for name in ("h", "c") if name in p)
        log_prob, loss, entropy = torch.zeros(()), torch.zeros(()), torch.zeros(())
        for t, location in enumerate(locations):
            keys = memory @ p["weight_memory"].T + p["bias_attention"]
            scores = torch.tanh(state[0] @ p["weight_query"].T + keys) @ p["weight_score"]
            logs = scores.log_softmax(dim=0)
            log_prob, entropy = log_prob + logs[location], entropy - (logs.exp() * logs).sum()
            state = step(cell, p, torch.cat([p["x"][t], memory[location][None]], dim=1), state)
            loss = loss - (state[0] @ p["readout"].T).log_softmax(dim=1)[0, targets[t]]
        share = log_prob.exp()
        total = total + share * loss - ENTROPY * (share if entropy_paid else share.detach()) * entropy
    total.backward()
    return {name: value.grad.numpy() for name, value in p.items()}


def first_rows(locations: np.ndarray) -> np.ndarray:
    """Of all sequences of locations, a row that drew it."""
    return np.array([np.flatnonzero((each == locations.T).all(axis=1))[0] for each in SEQUENCES])


def to_come(costs: np.ndarray) -> np.ndarray:
    """What each step and those after it cost: a location has no part in what was before it."""
    return costs[::-1].cumsum(axis=0)[::-1]


def mean_estimate(
    cell: str, arrays: dict[str, np.ndarray], targets: list[int], baseline: np.ndarray, entropy_paid: bool
) -> Any:
    """The mean of REINFORCE's estimate, from the library: each sequence of locations by its probability."""
    decoder = fr.AttentionDecoder(
        INPUTS, HIDDEN, FEATURES, ATTENTION, cell=cell, attention="hard", dtype="float64", seed=3
    )
    decoder.load_parameters({name: arrays[name] for name in decoder.parameters})
    x, memory, *state = (np.repeat(arrays[name], ROWS, axis=1) for name in ("x", "memory", "h", "c") if name in arrays)
    y, _, _, tape = decoder.forward(x, memory, None, tuple(state) if cell == "lstm" else state[0])
    shares = np.zeros(ROWS)
    rows = first_rows(tape.locations)
    shares[rows] = np.exp(tape.log_prob[:, rows].sum(axis=0))
    assert shares.sum() == pytest.approx(1, rel=1e-13)
    logits = y @ arrays["readout"].T
    logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    wanted = np.eye(WORDS)[targets][:, None]
    costs = -(logs * wanted).sum(axis=-1) - (ENTROPY * tape.entropy if entropy_paid else 0)
    dlogits = shares[:, None] * (np.exp(logs) - wanted)
    grads = decoder.backward(
        tape,
        dlogits @ arrays["readout"],
        dlog_prob=shares * (to_come(costs) - baseline[:, None]),
        dentropy=np.broadcast_to(-ENTROPY * shares, costs.shape).copy(),
    )
    found = {"x": grads.x, "memory": grads.memory, **grads.parameters}
    found |= dict(zip("hc", grads.state if cell == "lstm" else (grads.state,), strict=False))
    for name in found.keys() & {"x", "memory", "h", "c"}:
        found[name] = found[name].sum(axis=1, keepdims=True)
    return found | {"readout": np.einsum("tbv,tbh->vh", dlogits, y)}


def mean_estimate_of_torch(
    cell: str, arrays: dict[str, np.ndarray], targets: list[int], baseline: np.ndarray, entropy_paid: bool
) -> Any:
    """The same from the module, whose log_prob and entropy are under autograd."""
    from fusedrnn.torch import AttentionDecoder

    torch.manual_seed(3)
    decoder = AttentionDecoder(INPUTS, HIDDEN, FEATURES, ATTENTION, cell=cell, attention="hard", dtype=torch.float64)
    p = {name: torch.tensor(value, requires_grad=True) for name, value in arrays.items()}
    decoder.load_state_dict({name: p[name] for name, _ in decoder.named_parameters()})
    x, memory, *state = (p[name].expand(-1, ROWS, -1).contiguous() for name in ("x", "memory", "h", "c") if name in p)
    read = decoder.attend(x, memory, None, tuple(state) if cell == "lstm" else state[0])
    shares = torch.zeros(ROWS, dtype=torch.float64)
    rows = first_rows(read.locations.numpy())
    shares[rows] = read.log_prob.detach()[:, rows].sum(dim=0).exp()
    logs = (read.y @ p["readout"].T).log_softmax(dim=2)
    losses = -logs[torch.arange(STEPS), :, targets]
    costs = (losses - (ENTROPY * read.entropy if entropy_paid else 0)).detach()
    surprise = torch.tensor(to_come(costs.numpy()) - baseline[:, None])
    (shares * (losses + surprise * read.log_prob - ENTROPY * read.entropy)).sum().backward()
    grads = {name: value.grad for name, value in p.items() if value.grad is not None}
    grads |= {name: value.grad for name, value in decoder.named_parameters()}
    return {name: value.numpy() for name, value in grads.items()}


@pytest.mark.parametrize("entropy_paid", [False, True], ids=["entropy apart", "entropy in the loss"])
@pytest.mark.parametrize("baseline", [0.0, 4.0], ids=["no baseline", "a baseline of each step"])
@pytest.mark.parametrize("estimate", [mean_estimate, mean_estimate_of_torch])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_estimates_mean_is_the_enumerated_gradient(
    cell: str, estimate: Any, baseline: float, entropy_paid: bool, rng: np.random.Generator
) -> None:
    arrays, targets = arrays_of(cell, rng), rng.integers(0, WORDS, STEPS).tolist()
    expected = expected_gradients(cell, arrays, targets, entropy_paid)
    found = estimate(cell, arrays, targets, baseline * np.arange(1, STEPS + 1), entropy_paid)
    assert found.keys() == expected.keys()
    # A gradient is a sum over the sequences and steps; each term is one of the cell's and of attention's sums.
    terms = len(SEQUENCES) * STEPS * (INPUTS + HIDDEN + FEATURES + ATTENTION + LOCATIONS + WORDS)
    for name, gradient in found.items():
        scale = (1 + baseline * STEPS) * max(1.0, float(np.abs(expected[name]).max()))
        bound = 4 * float(np.finfo(float).eps) * math.sqrt(terms) * scale
        np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=bound, err_msg=name)
        assert np.abs(gradient).max() > 1e-3, name

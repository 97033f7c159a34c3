"""backward(norms=True): how large the gradients of the states are on their way back."""

from __future__ import annotations

import dataclasses
from typing import Any

import masked_cases
import numpy as np
import pytest
from bitwise import assert_same, threads
from cases import (
    BFLOAT16_CASES,
    CASES,
    CLIP,
    EMPTY_CASES,
    LAYERS,
    Case,
    Inputs,
    assert_close,
    make_clear_inputs,
    make_inputs,
    make_layer,
)
from oracles import as_tuple, run_reference
from rounding import norm_bounds

import fusedrnn as fr
from fusedrnn import reference

ALL = [*CASES[::7], *CASES[-8:], *masked_cases.SHORT, *BFLOAT16_CASES[::3]]
assert {case.batch for case in ALL} >= {case.batch for case in CASES}
# Every kind of cell, gap and cut in one direction of one layer, for the loop below.
PLAIN = [
    Case(cell, 1, directions, "float64", 7, 4, 3, 3, ragged, reset, reverse, masked=masked)
    for cell in LAYERS
    for directions, ragged, reset, reverse, masked in (
        (1, False, False, False, False),
        (2, True, True, False, True),
        (1, True, True, True, True),
    )
]


def norms_of(layer: Any, inputs: Inputs, **options: Any) -> Any:
    _, _, tape = layer.forward(inputs.x, inputs.state, **inputs.sequence_options(), **options)
    return layer.backward(tape, inputs.dy, inputs.dstate, norms=True).norms


def reference_gradients(case: Case, parameters: dict[str, np.ndarray], inputs: Inputs) -> tuple[np.ndarray, ...]:
    _, _, tape = reference.forward(
        case.cell,
        parameters,
        inputs.x,
        inputs.state,
        **inputs.sequence_options(),
        **case.reference_options(),
    )
    return reference.state_gradients(tape, inputs.dy, inputs.dstate)


@pytest.mark.parametrize("case", ALL)
def test_they_are_the_norms_of_the_reference(case: Case, rng: np.random.Generator) -> None:
    layer = make_layer(case)
    inputs = make_clear_inputs(case, layer.parameters, rng)
    norms = norms_of(layer, inputs)
    expected = [np.linalg.norm(d, axis=-1) for d in reference_gradients(case, layer.parameters, inputs)]
    names = ("h", "c") if case.two_states else ("h",)
    assert case.two_states or norms.c is None
    for name, norm, bound in zip(names, expected, norm_bounds(case, layer.parameters, inputs), strict=True):
        ours = getattr(norms, name)
        assert ours.dtype == np.dtype(case.dtype)
        assert_close(ours, norm, bound, name)
        if inputs.lengths is not None:
            assert not ours[:, np.arange(case.time)[:, None] >= inputs.lengths].any()


def torch_step(cell: str, w: dict[str, Any], x: Any, h: Any, c: Any, change: Any) -> tuple[Any, Any]:
    """One step of one row in torch's operations. `change` is added to c_t where it is made: h_t depends on it."""
    import torch

    products = x @ w["weight_ih"].T + w["bias_ih"], h @ w["weight_hh"].T + w["bias_hh"]
    if cell.startswith("rnn"):
        return getattr(torch, cell.removeprefix("rnn_"))(sum(products)), c
    if cell.startswith("gru"):
        (a_r, a_z, a_n), (u_r, u_z, u_n) = (product.chunk(3) for product in products)
        r, z = torch.sigmoid(a_r + u_r), torch.sigmoid(a_z + u_z)
        rows = len(h) * 2
        before = (r * h) @ w["weight_hh"][rows:].T + w["bias_hh"][rows:]
        n = torch.tanh(a_n + (r * u_n if cell == "gru" else before))
        return (1 - z) * n + z * h, c
    coupled = "coupled" in cell
    *z_i, z_f, z_g, z_o = sum(products).chunk(3 if coupled else 4)
    *p_i, p_f, p_o = w["peephole"] if "peephole" in cell else torch.zeros(3 - coupled, len(h), dtype=h.dtype)
    f = torch.sigmoid(z_f + p_f * c)
    i = 1 - f if coupled else torch.sigmoid(z_i[0] + p_i[0] * c)
    c = f * c + i * torch.tanh(z_g) + change
    return torch.sigmoid(z_o + p_o * c) * torch.tanh(c), c


def torch_gradients(case: Case, parameters: dict[str, np.ndarray], inputs: Inputs, direction: int) -> Any:
    """dE/dh_t and dE/dc_t, (T, B, H) each, by autograd through zeros that are added to every state."""
    import torch

    suffix = "_l0" + "_reverse" * direction
    w = {name.removesuffix(suffix): torch.tensor(a) for name, a in parameters.items() if name.endswith(suffix)}
    backwards = case.reverse or direction == 1
    hidden = case.hidden_size
    changes = [torch.zeros(case.time, case.batch, hidden, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    states, final = as_tuple(inputs.state), as_tuple(inputs.dstate)
    dy = torch.tensor(inputs.dy[..., direction * hidden : (direction + 1) * hidden])
    error = torch.zeros((), dtype=torch.float64)
    for b in range(case.batch):
        h, c = (torch.tensor(states[k][direction, b]) if k < len(states) else torch.zeros(hidden) for k in range(2))
        length = case.time if inputs.lengths is None else int(inputs.lengths[b])
        for t in reversed(range(length)) if backwards else range(length):
            link = t + 1 if backwards else t
            if inputs.reset is not None and link < length and inputs.reset[link, b]:
                h, c = torch.zeros_like(h), torch.zeros_like(c)
            if inputs.mask is None or inputs.mask[t, b]:
                h, c = torch_step(case.cell, w, torch.tensor(inputs.x[t, b]), h, c, changes[1][t, b])
            else:
                c = c + changes[1][t, b]
            h = h + changes[0][t, b]
            error = error + dy[t, b] @ h
        error = error + torch.tensor(final[0][direction, b]) @ h
        if case.two_states:
            error = error + torch.tensor(final[1][direction, b]) @ c
    return [g.numpy() for g in torch.autograd.grad(error, changes[: len(states)])]


@pytest.mark.parametrize("case", PLAIN)
def test_the_reference_has_the_gradients_of_autograd(case: Case, rng: np.random.Generator) -> None:
    pytest.importorskip("torch")
    parameters = make_layer(case).parameters
    inputs = make_clear_inputs(case, parameters, rng)
    ours = reference_gradients(case, parameters, inputs)
    for direction in range(case.directions):
        for own, theirs in zip(ours, torch_gradients(case, parameters, inputs, direction), strict=True):
            # Sums of at most 4 H terms, T steps long, of numbers near 1.
            depth = 4 * case.hidden_size * case.time
            assert_close(own[direction], theirs, depth * case.eps * max(1.0, np.abs(theirs).max()), "gradient")


@pytest.mark.parametrize("case", [*ALL[::2], *EMPTY_CASES, *masked_cases.EMPTY])
def test_bits_depend_on_no_thread_and_on_no_recomputation(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    with threads(1):
        expected = norms_of(layer, inputs)
    for count, recompute in ((2, None), (3, 2), (5, None), (1, 3)):
        with threads(count):
            assert_same(norms_of(layer, inputs, recompute=recompute), expected, f"{count} threads, {recompute}")


@pytest.mark.parametrize("case", ALL[::2])
def test_the_gradients_are_those_without_norms(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    _, _, tape = layer.forward(inputs.x, inputs.state, **inputs.sequence_options())
    grads = layer.backward(tape, inputs.dy, inputs.dstate, norms=True)
    expected = layer.backward(tape, inputs.dy, inputs.dstate)
    assert expected.norms is None
    assert_same(dataclasses.replace(grads, norms=None), expected)
    into = layer.backward(tape, inputs.dy, inputs.dstate, grads=expected, norms=True)
    assert into.parameters is expected.parameters
    assert_same(into.norms, grads.norms)


@pytest.mark.parametrize("case", ALL[1::4])
def test_a_row_alone_or_in_a_batch(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    whole = norms_of(layer, inputs)

    def row(value: Any, b: int, axis: int) -> Any:
        if isinstance(value, tuple):
            return tuple(row(part, b, axis) for part in value)
        return None if value is None else np.take(value, [b], axis)

    for b in range(0, case.batch, 1 + case.batch // 5):
        axes = {"lengths": 0}
        names = [field.name for field in dataclasses.fields(inputs)]
        alone = norms_of(layer, Inputs(**{n: row(getattr(inputs, n), b, axes.get(n, 1)) for n in names}))
        assert_same((alone.h, alone.c), (row(whole.h, b, 2), row(whole.c, b, 2)), f"row {b}")


@pytest.mark.parametrize("case", [CASES[10], CASES[31], *masked_cases.CASES[2::11]])
def test_batch_first_and_unbatched(case: Case, rng: np.random.Generator) -> None:
    inputs = make_inputs(case, rng)
    expected = norms_of(make_layer(case), inputs)
    swapped = {name: getattr(inputs, name) for name in ("x", "dy", "reset", "mask")}
    swapped = {name: None if array is None else array.swapaxes(0, 1) for name, array in swapped.items()}
    moved = dataclasses.replace(inputs, **swapped)
    norms = norms_of(make_layer(case, batch_first=True), moved)
    assert_same(norms.h, expected.h.swapaxes(1, 2))
    assert norms.h.flags.c_contiguous
    if case.two_states:
        assert_same(norms.c, expected.c.swapaxes(1, 2))

    length = case.time if inputs.lengths is None else int(inputs.lengths[0])

    def first(array: np.ndarray | None) -> Any:
        return None if array is None else array[:length, 0]

    def half(state: Any) -> Any:
        return tuple(part[:, 0] for part in state) if isinstance(state, tuple) else state[:, 0]

    alone = Inputs(
        first(inputs.x), half(inputs.state), None, first(inputs.reset), first(inputs.dy), half(inputs.dstate)
    )
    alone.mask = first(inputs.mask)
    for batch_first in (False, True):
        norms = norms_of(make_layer(case, batch_first=batch_first), alone)
        assert_same(norms.h, expected.h[:, :length, 0])


@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize("dtype, powers", [("float32", (100, -90)), ("float64", (900, -900))])
def test_squares_may_leave_the_range_of_the_dtype(
    cell: str, dtype: str, powers: tuple[int, int], rng: np.random.Generator
) -> None:
    """A power of two scales every gradient without rounding, and so the norms."""
    case = Case(cell, 1, 2, dtype, 5, 3, 4, 33)
    layer, inputs = make_layer(case), make_inputs(case, rng)
    expected = norms_of(layer, inputs)
    for power in powers:
        factor = np.dtype(dtype).type(2.0**power)
        dstate = tuple(d * factor for d in as_tuple(inputs.dstate))
        scaled = dataclasses.replace(inputs, dy=inputs.dy * factor, dstate=dstate if case.two_states else dstate[0])
        norms = norms_of(layer, scaled)
        # Beyond the range of squares the sum of a few is taken once more, from numbers near 1: other roundings.
        for ours, theirs in zip((norms.h, norms.c)[: 1 + case.two_states], (expected.h, expected.c), strict=False):
            assert_close(ours / factor, theirs, 16 * case.eps * theirs, f"2^{power}")


def test_no_finite_number_is_made_of_an_infinite_one() -> None:
    for dtype in ("float32", "float64"):
        layer = fr.LSTM(3, 5, dtype=dtype, seed=0)
        x = np.zeros((4, 2, 3), dtype)
        _, _, tape = layer.forward(x)
        dy = np.zeros((4, 2, 5), dtype)
        dy[2, 0, 3], dy[2, 1, 0] = np.inf, np.nan
        with np.errstate(all="ignore"):
            norms = layer.backward(tape, dy, norms=True).norms
        assert np.isposinf(norms.h[0, 2, 0]) and np.isnan(norms.h[0, 2, 1])
        assert not norms.h[0, 3].any() and not norms.c[0, 3].any()


def test_a_vanishing_gradient_shows() -> None:
    """The seed of it all: an Elman net's Jacobians shrink what an LSTM with a high forget bias keeps."""
    x = np.random.default_rng(0).standard_normal((80, 4, 3))
    lstm = fr.LSTM(3, 16, dtype="float64", seed=0)
    fr.init.forget_bias_(lstm, 5.0)
    ratios = []
    for layer in (fr.RNN(3, 16, dtype="float64", seed=0), lstm):
        y, _, tape = layer.forward(x)
        dy = np.zeros_like(y)
        dy[-1] = 1
        norms = layer.backward(tape, dy, norms=True).norms
        assert np.array_equal(norms.h[0, -1], np.full(4, 4.0))
        ratios.append((norms.h[0, 0] / norms.h[0, -1]).max())
    assert ratios[0] < 1e-12 < 1e-6 < ratios[1]


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_anything_but_a_bool_is_refused(value: Any) -> None:
    layer = fr.GRU(3, 4)
    _, _, tape = layer.forward(np.zeros((2, 1, 3), np.float32))
    with pytest.raises(TypeError, match="norms"):
        layer.backward(tape, norms=value)


def test_the_clip_stops_it(rng: np.random.Generator) -> None:
    """Where every gate is clipped nothing passes the products, and what is left is the step's own."""
    case = Case("rnn_tanh", 1, 1, "float64", 5, 2, 3, 7, clip=CLIP)
    layer, inputs = make_layer(case), make_inputs(case, rng)
    layer.parameters["bias_ih_l0"][...] = 100
    inputs.dstate[...] = 0
    assert_close(norms_of(layer, inputs).h[0], np.linalg.norm(inputs.dy, axis=-1), 8 * case.eps, "h")


def test_a_reference_result_is_unchanged_by_asking(rng: np.random.Generator) -> None:
    case = CASES[7]
    parameters, inputs = make_layer(case).parameters, make_inputs(case, rng)
    result = run_reference(case, parameters, inputs)
    reference_gradients(case, parameters, inputs)
    assert_same(run_reference(case, parameters, inputs), result)

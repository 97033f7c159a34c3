"""The NumPy reference against finite differences, torch and onnxruntime."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from cases import CLIP, LAYERS, Case, Inputs, assert_close, make_clear_inputs, make_inputs, make_parameters
from oracles import as_tuple, assert_results_close, map_result, run_onnxruntime, run_reference, run_torch
from rounding import error_bounds, onnxruntime_bounds

from fusedrnn import reference

SHAPES = [
    Case(cell, layers, directions, "float64", 5, 4, 3, 3, mixed, mixed)
    for cell, layers, directions, mixed in itertools.product(LAYERS, (1, 2), (1, 2), (False, True))
]
SHAPES += [
    Case(cell, 2, 1 if reverse else 2, "float64", 5, 4, 3, 3, ragged=True, reset=True, reverse=reverse, clip=clip)
    for cell, (reverse, clip) in itertools.product(LAYERS, ((True, None), (False, CLIP)))
]

SHAPES += [
    Case(cell, 2, directions, "float64", 5, 4, 3, 3, ragged=reset, reset=reset, reverse=reverse, masked=True)
    for cell, (directions, reset, reverse) in itertools.product(
        LAYERS, ((1, False, False), (2, True, False), (1, True, True))
    )
]


def directional_derivative(loss, array: np.ndarray, direction: np.ndarray, step: float) -> float:
    """Fourth-order central difference of loss() as `array` moves along `direction`; the array is put back."""
    saved = array.copy()
    value = 0.0
    for multiple, weight in ((1, 8.0), (-1, -8.0), (2, -1.0), (-2, 1.0)):
        array[...] = saved + multiple * step * direction
        value += weight * loss()
    array[...] = saved
    return value / (12 * step)


@pytest.mark.parametrize("case", SHAPES)
def test_gradients_are_the_finite_differences(case: Case, rng: np.random.Generator) -> None:
    parameters = make_parameters(case, rng)
    inputs = make_clear_inputs(case, parameters, rng)
    masks = None
    if case.reset:
        keep = rng.random((case.num_layers - 1, case.time, case.batch, case.directions * case.hidden_size)) < 0.7
        masks = list(keep / 0.7)
    beyond = np.isnan(inputs.dy)

    def run():
        return reference.forward(
            case.cell,
            parameters,
            inputs.x,
            inputs.state,
            **inputs.sequence_options(),
            **case.reference_options(),
            dropout_masks=masks,
        )

    def loss() -> float:
        y, state, _ = run()
        final = sum(float((s * d).sum()) for s, d in zip(as_tuple(state), as_tuple(inputs.dstate), strict=True))
        return final + float((y * inputs.dy)[~beyond].sum())

    dx, dstate, grads = reference.backward(run()[2], inputs.dy, inputs.dstate)
    arrays = [("x", inputs.x, dx), *((name, parameters[name], grads[name]) for name in parameters)]
    arrays += [("state", s, d) for s, d in zip(as_tuple(inputs.state), as_tuple(dstate), strict=True)]
    # Truncation falls as step⁴ and rounding grows as eps/step; relu and clips want a step too short to reach a kink.
    step, near = (1e-7, 1e-7) if case.cell == "rnn_relu" or case.clip else (1e-3, 1e-10)
    for name, array, gradient in arrays:
        for _ in range(3):
            direction = rng.standard_normal(array.shape)
            direction /= np.linalg.norm(direction)
            expected = directional_derivative(loss, array, direction, step)
            actual = float((gradient * direction).sum())
            assert actual == pytest.approx(expected, rel=near, abs=near), name


@pytest.mark.parametrize("cell", ["rnn_tanh", "rnn_relu", "lstm", "gru"])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_torch_agrees(cell: str, ragged: bool, bias: bool, rng: np.random.Generator) -> None:
    pytest.importorskip("torch")
    case = Case(cell, 2, 2, "float64", 13, 6, 5, 8, ragged)
    parameters = make_parameters(case, rng, bias=bias)
    inputs = make_inputs(case, rng, shortest=1)
    ours = run_reference(case, parameters, inputs)
    assert_results_close(ours, run_torch(case, parameters, inputs, bias=bias), error_bounds(case, parameters, inputs))


@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize("ragged", [False, True])
def test_onnxruntime_agrees(cell: str, ragged: bool, rng: np.random.Generator) -> None:
    case = Case(cell, 2, 2, "float32", 9, 6, 5, 8, ragged)
    parameters = make_parameters(case, rng)
    inputs = make_inputs(case, rng, shortest=1)
    y, state = run_onnxruntime(case, parameters, inputs)
    expected = run_reference(case, parameters, inputs)
    bounds = onnxruntime_bounds(case, parameters, inputs, other="float64")
    assert_close(y, expected.y, bounds.y, "y")
    for a, b, bound in zip(as_tuple(state), as_tuple(expected.state), as_tuple(bounds.state), strict=True):
        assert_close(a, b, bound, "state")


@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize("directions", [1, 2])
def test_rows_of_a_ragged_batch_are_the_rows_alone(cell: str, directions: int, rng: np.random.Generator) -> None:
    case = Case(cell, 2, directions, "float64", 6, 5, 3, 4, ragged=True, reset=True)
    parameters = make_parameters(case, rng)
    inputs = make_inputs(case, rng)
    whole = run_reference(case, parameters, inputs)
    for row, length in enumerate(inputs.lengths):
        alone = Inputs(
            inputs.x[:length, row : row + 1],
            one_row(inputs.state, row),
            None,
            inputs.reset[:length, row : row + 1],
            inputs.dy[:length, row : row + 1],
            one_row(inputs.dstate, row),
        )
        single = dataclasses.replace(case, time=int(length), batch=1)
        result = run_reference(single, parameters, alone)
        # One row's gradients of the weights are no part of the whole's.
        part = map_result(lambda array, row=row: array[:, row : row + 1], whole._replace(parameters={}))
        part = part._replace(y=part.y[:length], dx=part.dx[:length], parameters=result.parameters)
        assert_results_close(part, result, error_bounds(single, parameters, alone))
        assert not whole.y[length:, row].any() and not whole.dx[length:, row].any()


def one_row(state, row: int):
    parts = tuple(s[:, row : row + 1] for s in as_tuple(state))
    return parts if isinstance(state, tuple) else parts[0]


@pytest.mark.parametrize("cell", LAYERS)
def test_reset_splits_the_sequence_in_both_directions(cell: str, rng: np.random.Generator) -> None:
    case = Case(cell, 1, 2, "float64", 7, 2, 3, 4)
    parameters, inputs = make_parameters(case, rng), make_inputs(case, rng)
    cut = 3
    reset = np.zeros((case.time, case.batch), bool)
    reset[cut] = True
    options = {"bidirectional": True}
    y, state, _ = reference.forward(cell, parameters, inputs.x, inputs.state, reset=reset, **options)
    head_state = tuple(np.stack([s[0], np.zeros_like(s[0])]) for s in as_tuple(inputs.state))
    tail_state = tuple(np.stack([np.zeros_like(s[1]), s[1]]) for s in as_tuple(inputs.state))
    if not case.two_states:
        head_state, tail_state = head_state[0], tail_state[0]
    head, head_final, _ = reference.forward(cell, parameters, inputs.x[:cut], head_state, **options)
    tail, tail_final, _ = reference.forward(cell, parameters, inputs.x[cut:], tail_state, **options)
    np.testing.assert_array_equal(y, np.concatenate([head, tail]))
    for s, first, second in zip(as_tuple(state), as_tuple(head_final), as_tuple(tail_final), strict=True):
        np.testing.assert_array_equal(s, np.stack([second[0], first[1]]))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_cross_entropy_is_torchs(reduction: str, bias: bool, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    x, weight = rng.standard_normal((4, 3, 5)), rng.standard_normal((7, 5))
    b = rng.standard_normal(7) if bias else None
    targets = rng.integers(0, 7, (4, 3))
    targets[1, 2] = targets[3, 0] = -100
    dloss = rng.standard_normal((4, 3)) if reduction == "none" else 0.7
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, weight, b) if a is not None]
    logits = torch.nn.functional.linear(*leaves).reshape(-1, 7)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(targets).reshape(-1), reduction=reduction)
    loss.backward(torch.tensor(dloss, dtype=torch.float64).reshape(loss.shape))
    ours = reference.linear_cross_entropy(x, weight, b, targets, reduction=reduction)
    np.testing.assert_allclose(np.ravel(ours), loss.detach().numpy().ravel(), rtol=1e-13, atol=1e-14)
    grads = reference.linear_cross_entropy_backward(x, weight, b, targets, dloss, reduction=reduction)
    assert (grads[2] is None) == (b is None)
    for leaf, gradient in zip(leaves, grads, strict=False):
        np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-12, atol=1e-14)


def test_mean_cross_entropy_over_no_target_is_nan() -> None:
    x, weight = np.ones((2, 3)), np.ones((4, 3))
    assert np.isnan(reference.linear_cross_entropy(x, weight, None, [-1, -1], ignore_index=-1))


@pytest.mark.parametrize("name", ["mask", "reset"])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        (np.ones(4, bool), ValueError),
        (np.ones((4, 1), bool), ValueError),
        (np.ones((5, 2), bool), ValueError),
        (np.ones((3, 2), bool), ValueError),
        (np.ones((2, 4), bool), ValueError),
        (np.ones((4, 2, 1), bool), ValueError),
        (True, ValueError),
        (np.ones((4, 2)), TypeError),
        (np.ones((4, 2), np.uint8), TypeError),
        ("mask", TypeError),
    ],
)
@pytest.mark.parametrize("reverse", [False, True])
def test_flags_are_bool_of_t_and_b(name: str, value: object, error: type[Exception], reverse: bool) -> None:
    case = Case("gru", 1, 1, "float64", 4, 2, 3, 5)
    rng = np.random.default_rng(0)
    parameters, x = make_parameters(case, rng), np.zeros((4, 2, 3))
    with pytest.raises(error, match=f"^{name} must"):
        reference.forward("gru", parameters, x, reverse=reverse, **{name: value})


def test_sigmoid_raises_no_floating_point_error() -> None:
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        values = reference.sigmoid([-np.inf, -1e3, 0.0, 1e3, np.inf, np.nan])
    np.testing.assert_array_equal(values, [0.0, 0.0, 0.5, 1.0, 1.0, np.nan])

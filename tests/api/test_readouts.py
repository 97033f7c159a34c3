"""linear and softmax against the reference and torch, at their edges, bit by bit, and on a device."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from bitwise import assert_same, copied, threads
from devices import TestDevice

import fusedrnn as fr
from fusedrnn import reference
from fusedrnn.arrays.dtypes import numpy_dtype

# Leading shape, inputs, outputs.
SIZES = [
    ((), 5, 7),
    ((1,), 1, 1),
    ((3,), 1, 2),
    ((17,), 7, 16),
    ((5,), 16, 17),
    ((4, 9), 64, 33),
    ((2, 3, 4), 17, 129),
    ((130,), 31, 1030),
    ((600,), 33, 1),
    ((700,), 3, 1500),
    ((6,), 1100, 5),
    ((0,), 4, 6),
    ((0, 3), 4, 6),
]
DTYPES = ["float32", "float64"]
Arguments = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def draw(rng: np.random.Generator, shape: tuple[int, ...], inputs: int, outputs: int, dtype: Any) -> Arguments:
    """x, weight, bias and dy."""
    sizes = ((*shape, inputs), (outputs, inputs), (outputs,), (*shape, outputs))
    x, weight, bias, dy = (np.asarray(rng.standard_normal(size)).astype(dtype) for size in sizes)
    return x, weight, bias, dy


def run(x: Any, weight: Any, bias: Any, dy: Any) -> tuple[Any, ...]:
    y, tape = fr.linear_forward(x, weight, bias)
    return y, *fr.linear_backward(tape, dy)


def expected_and_bounds(x: Any, weight: Any, bias: Any, dy: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """y, dx, dweight and dbias, and each with the sum of its terms' magnitudes times how many roundings it has."""
    x, weight, bias, dy = (np.asarray(a).astype(np.float64) for a in (x, weight, bias, dy))
    rows = int(np.prod(x.shape[:-1], dtype=int))
    values = (reference.linear(x, weight, bias), *reference.linear_backward(x, weight, dy))
    sizes = abs(x), abs(weight), abs(bias), abs(dy)
    terms = (reference.linear(*sizes[:3]), *reference.linear_backward(sizes[0], sizes[1], sizes[3]))
    depths = (x.shape[-1] + 1, weight.shape[0], rows, rows)
    return [(value, term * (depth + 1)) for value, term, depth in zip(values, terms, depths, strict=True)]


def assert_linear(actual: tuple[Any, ...], arguments: Arguments, dtype: Any, sums: Any = None) -> None:
    """`sums`: the dtype of the sums, where it is wider than the results', which are rounded once more."""
    eps = float(np.finfo(sums or dtype).eps)
    for name, a, (b, bound) in zip(
        ("y", "dx", "dweight", "dbias"), actual, expected_and_bounds(*arguments), strict=True
    ):
        if a is None:
            continue
        assert (a.dtype, a.shape) == (np.dtype(dtype), b.shape), name
        once = float(ml_dtypes.finfo(dtype).eps) * np.abs(b) if sums else 0.0
        assert (np.abs(a.astype(np.float64) - b) <= eps * bound + once).all(), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "inputs", "outputs"), SIZES)
def test_linear_against_the_reference(
    shape: tuple[int, ...], inputs: int, outputs: int, dtype: str, rng: np.random.Generator
) -> None:
    arguments = draw(rng, shape, inputs, outputs, dtype)
    kept = copied(arguments)
    result = run(*arguments)
    assert_linear(result, arguments, dtype)
    assert_same(arguments, kept)
    x, weight, _, dy = arguments
    bare = run(x, weight, None, dy)
    assert bare[3] is None
    assert_same(bare[1:3], result[1:3])
    assert_linear(bare, (x, weight, np.zeros(outputs), dy), dtype)
    assert_same(fr.linear(x, weight), bare[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "inputs", "outputs"), [(s, i, o) for s, i, o in SIZES if s not in ((), (0, 3))])
def test_linear_is_the_same_for_any_threads_and_rows(
    shape: tuple[int, ...], inputs: int, outputs: int, dtype: str, rng: np.random.Generator
) -> None:
    x, weight, bias, dy = draw(rng, shape, inputs, outputs, dtype)
    results = []
    for count in (1, 2, 3, 7):
        with threads(count):
            results.append(run(x, weight, bias, dy))
    for other in results[1:]:
        assert_same(other, results[0])
    y, dx = (array.reshape(-1, array.shape[-1]) for array in results[0][:2])
    rows, gradients = x.reshape(-1, inputs), dy.reshape(-1, outputs)
    for n in {0, len(rows) // 2, len(rows) - 1} if len(rows) else ():
        assert_same(run(rows[n : n + 1], weight, bias, gradients[n : n + 1])[:2], (y[n : n + 1], dx[n : n + 1]))


def test_sums_over_many_rows_keep_their_digits() -> None:
    """Terms of one sign, whose chain of sums would be off by more than all of these chunks' roundings together."""
    rows, largest_chunk = 200_000, 512
    x, dy = np.full((rows, 3), 0.1, np.float32), np.full((rows, 5), 0.1, np.float32)
    _, tape = fr.linear_forward(x, np.ones((5, 3), np.float32), np.zeros(5, np.float32))
    _, dweight, dbias = fr.linear_backward(tape, dy)
    roundings = largest_chunk + rows / largest_chunk
    bound = roundings * float(np.finfo(np.float32).eps) / 2
    np.testing.assert_allclose(dbias, np.full(5, rows * np.float64(dy[0, 0])), rtol=bound)
    np.testing.assert_allclose(dweight, np.full((5, 3), rows * np.float64(dy[0, 0]) * x[0, 0]), rtol=bound)
    assert abs(np.add.accumulate(dy[:, 0])[-1] / (rows * np.float64(dy[0, 0])) - 1) > bound


def test_linear_readout_of_a_layer_learns_a_sine() -> None:
    layer = fr.LSTM(1, 16, seed=0)
    readout = {"weight": np.zeros((1, 16), np.float32), "bias": np.zeros(1, np.float32)}
    optimizer = fr.optim.Adam({"layer": layer.parameters, "readout": readout}, lr=0.02)
    wave = np.sin(np.arange(61) / 5, dtype=np.float32)[:, None, None]
    losses = []
    for _ in range(150):
        y, _, tape = layer.forward(wave[:-1])
        prediction, linear = fr.linear_forward(y, **readout)
        error = prediction - wave[1:]
        losses.append(float((error**2).mean()))
        dy, dweight, dbias = fr.linear_backward(linear, 2 * error / error.size)
        optimizer.step({"layer": layer.backward(tape, dy), "readout": {"weight": dweight, "bias": dbias}})
    assert losses[-1] < losses[0] / 100


def test_tapes_may_be_used_twice(rng: np.random.Generator) -> None:
    x, weight, bias, dy = draw(rng, (4, 3), 6, 5, "float32")
    _, tape = fr.linear_forward(x, weight, bias)
    assert tape.nbytes == 0
    assert_same(fr.linear_backward(tape, dy), fr.linear_backward(tape, dy))
    _, soft = fr.softmax_forward(dy)
    assert soft.nbytes == 0
    assert_same(fr.softmax_backward(soft, dy), fr.softmax_backward(soft, dy))


def test_nothing_past_a_row_is_read_or_written(rng: np.random.Generator) -> None:
    """Rows in the midst of poison: a read beyond them would show as a nan, a write as a difference."""
    x, weight, bias, dy = draw(rng, (7,), 19, 21, "float32")
    expected = run(x, weight, bias, dy)

    def banded(array: np.ndarray) -> np.ndarray:
        memory = np.full(array.size + 128, np.nan, np.float32)
        inner = memory[64 : 64 + array.size].reshape(array.shape)
        inner[...] = array
        return inner

    held = [banded(array) for array in (x, weight, bias, dy)]
    assert_same(run(*held), expected)
    assert_same(fr.softmax(held[0]), fr.softmax(x))
    for array in held:
        band = array.base
        assert band is not None
        assert np.isnan(band[:64]).all() and np.isnan(band[-64:]).all()


WIDTHS = [1, 2, 15, 16, 17, 31, 33, 100, 1000]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", WIDTHS)
def test_softmax_against_the_reference(columns: int, dtype: str, rng: np.random.Generator) -> None:
    x = (4 * rng.standard_normal((3, 5, columns))).astype(dtype)
    dy = rng.standard_normal(x.shape).astype(dtype)
    y, tape = fr.softmax_forward(x)
    dx = fr.softmax_backward(tape, dy)
    eps, exact = float(np.finfo(dtype).eps), reference.softmax(x)
    # Of the difference to the maximum, of at most 2 |x|, half an eps; of exp, 2; of a sum of some columns / 16 terms in
    # each lane and then of 16; of the division, half of one.
    relative = eps * (float(np.abs(x).max()) + 4 + columns / 16 + 16)
    np.testing.assert_allclose(y, exact, rtol=relative, atol=0)
    slope = exact * (np.abs(dy) + (np.abs(dy) * exact).sum(axis=-1, keepdims=True))
    assert (np.abs(dx - reference.softmax_backward(x, dy)) <= 3 * relative * slope).all()
    for count in (2, 5):
        with threads(count):
            assert_same((fr.softmax(x), fr.softmax_backward(tape, dy)), (y, dx))
    assert_same(fr.softmax(x[1, 2]), y[1, 2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_at_its_edges(dtype: str, device: TestDevice) -> None:
    torch = pytest.importorskip("torch")
    inf, nan, big = np.inf, np.nan, float(np.finfo(dtype).max)
    rows = [
        [0, 0, 0, 0],
        [-inf, 1, 2, -inf],
        [-inf, -inf, -inf, -inf],
        [inf, 0, 0, 0],
        [nan, 0, 0, 0],
        [big, -big, big, 0],
        [-big, -big, -big, -big],
        [1000, 1001, -1000, 0],
        [-inf, -inf, 5, -inf],
    ]
    x = np.array(rows, dtype)
    expected = torch.softmax(torch.tensor(x, dtype=torch.float64), -1).numpy()
    for y in (fr.softmax(x), device.get(fr.softmax(device.put(x)))):
        np.testing.assert_allclose(y, expected, rtol=16 * np.finfo(dtype).eps)
        assert (y[1, [0, 3]] == 0).all()
    assert_same(fr.softmax(np.zeros((0, 3), dtype)), np.zeros((0, 3), dtype))
    assert_same(fr.softmax(np.zeros((3, 0), dtype)), np.zeros((3, 0), dtype))


def test_softmax_of_strings_of_rows_in_threads() -> None:
    x = np.random.default_rng(0).standard_normal((4000, 37))
    with threads(1):
        y, tape = fr.softmax_forward(x)
        dx = fr.softmax_backward(tape, x)
    for count in (2, 3):
        with threads(count):
            assert_same((fr.softmax(x), fr.softmax_backward(tape, x)), (y, dx))


@pytest.mark.parametrize("dtype", [*DTYPES, "float16", "bfloat16"])
@pytest.mark.parametrize(("shape", "inputs", "outputs"), [((4, 9), 20, 33), ((), 5, 7), ((50,), 3, 1), ((0, 3), 4, 6)])
def test_linear_on_a_device(
    shape: tuple[int, ...], inputs: int, outputs: int, dtype: str, device: TestDevice, rng: np.random.Generator
) -> None:
    kind = numpy_dtype(dtype)
    arguments = draw(rng, shape, inputs, outputs, kind)
    if not device.real:
        device.arrays.native.set_chunk_bytes(outputs * 8 * 5)  # a few rows
    result = device.get(run(*device.put(arguments)))
    sums = np.float32 if kind.itemsize == 2 else None
    assert_linear(tuple(map(np.asarray, result)), arguments, kind, sums)
    x, weight, _, dy = device.put(arguments)
    bare = run(x, weight, None, dy)
    assert bare[3] is None
    assert_same(device.get(bare[1:3]), result[1:3])


@pytest.mark.parametrize("dtype", [*DTYPES, "float16", "bfloat16"])
def test_softmax_on_a_device(dtype: str, device: TestDevice, rng: np.random.Generator) -> None:
    kind = numpy_dtype(dtype)
    x, dy = (rng.standard_normal((3, 4, 21)).astype(kind) for _ in range(2))
    y, tape = fr.softmax_forward(device.put(x))
    dx = device.get(fr.softmax_backward(tape, device.put(dy)))
    probability, eps = device.get(y), float(ml_dtypes.finfo(kind).eps)
    assert probability.dtype == dx.dtype == kind
    np.testing.assert_allclose(
        probability.astype(float), reference.softmax(x.astype(float)), rtol=8 * eps, atol=2.0**-24
    )
    exact = reference.softmax_backward(x.astype(float), dy.astype(float))
    np.testing.assert_allclose(dx.astype(float), exact, rtol=0, atol=8 * eps)


def zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


BAD_LINEAR: list[tuple[tuple[Any, ...], type[Exception], str]] = [
    (([1.0], zeros(2, 3), None), TypeError, "^x must"),
    ((zeros(4, 3, dtype=int), zeros(2, 3), None), TypeError, "^x must"),
    ((zeros(4, 3, dtype=np.float16), zeros(2, 3), None), TypeError, "^x must"),
    ((np.ma.zeros((4, 3), np.float32), zeros(2, 3), None), TypeError, "^x must"),
    ((np.float32(1), zeros(2, 3), None), TypeError, "^x must"),
    ((np.array(1.0, np.float32), zeros(2, 3), None), ValueError, "^x must"),
    ((zeros(4, 0), zeros(2, 0), None), ValueError, "^x must"),
    ((zeros(4, 6)[:, ::2], zeros(2, 3), None), ValueError, "^x must be C-contiguous"),
    ((zeros(4, 3), zeros(2, 4), None), ValueError, r"^weight must have shape \(O, 3\), not \(2, 4\)"),
    ((zeros(4, 3), zeros(3), None), ValueError, "^weight must"),
    ((zeros(4, 3), zeros(0, 3), None), ValueError, "^weight must"),
    ((zeros(4, 3), zeros(3, 2).T, None), ValueError, "^weight must"),
    ((zeros(4, 3), zeros(2, 3, dtype=float), None), TypeError, r"^weight must.*weight\.astype\(np\.float32\)"),
    ((zeros(4, 3), None, None), TypeError, "^weight must"),
    ((zeros(4, 3), zeros(2, 3), zeros(3)), ValueError, "^bias must"),
    ((zeros(4, 3), zeros(2, 3), zeros(2, dtype=float)), TypeError, "^bias must"),
    ((zeros(4, 3), zeros(2, 3), 1.0), TypeError, "^bias must"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_LINEAR)
def test_bad_arguments_of_linear(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    for call in (fr.linear, fr.linear_forward):
        with pytest.raises(error, match=message):
            call(*arguments)


def test_bad_gradients() -> None:
    _, tape = fr.linear_forward(zeros(4, 3), zeros(2, 3), None)
    _, soft = fr.softmax_forward(zeros(4, 2))
    for backward, held in ((fr.linear_backward, tape), (fr.softmax_backward, soft)):
        for dy, error, message in (
            (zeros(4, 3), ValueError, "^dy must have shape"),
            (zeros(8), ValueError, "^dy must have shape"),
            (zeros(4, 4)[:, ::2], ValueError, "^dy must be C-contiguous"),
            (zeros(4, 2, dtype=float), TypeError, "^dy must"),
            (None, TypeError, "^dy must"),
        ):
            with pytest.raises(error, match=message):
                backward(held, dy)
        for wrong in (None, 1, fr.linear_cross_entropy_forward(zeros(1, 1), zeros(1, 1), None, np.zeros(1, int))[1]):
            with pytest.raises(TypeError, match=r"^tape must"):
                backward(wrong, zeros(4, 2))
    for x, error in ((None, TypeError), (zeros(2, dtype=int), TypeError), (zeros(2, 4)[:, ::2], ValueError)):
        with pytest.raises(error, match=r"^x must"):
            fr.softmax(x)
    with pytest.raises(ValueError, match=r"^x must have an axis"):
        fr.softmax(np.array(1.0))


def test_bad_device_arguments(device: TestDevice) -> None:
    x, weight = device.put(zeros(4, 3)), device.put(zeros(2, 3))
    for call, error, message in (
        (lambda: fr.linear(x, zeros(2, 3)), TypeError, "^weight must be a .* on cuda:0"),
        (lambda: fr.linear(x, device.put(zeros(2, 4))), ValueError, "^weight must"),
        (lambda: fr.linear(x, weight, device.put(zeros(3))), ValueError, "^bias must"),
        (lambda: fr.linear(device.put(zeros(4, 3, dtype=int)), weight), TypeError, "^x must"),
        (lambda: fr.linear_backward(fr.linear_forward(x, weight)[1], zeros(4, 2)), TypeError, "^dy must"),
        (lambda: fr.softmax(device.put(zeros(2, dtype=int))), TypeError, "^x must"),
        (lambda: fr.softmax(device.put(np.array(1.0))), ValueError, "^x must"),
        (lambda: fr.softmax_backward(fr.softmax_forward(x)[1], zeros(4, 3)), TypeError, "^dy must"),
    ):
        with pytest.raises(error, match=message):
            call()

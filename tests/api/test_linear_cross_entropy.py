"""linear_cross_entropy against torch and the reference, at its edges, and bit by bit."""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from bitwise import assert_same, threads

import fusedrnn as fr
from fusedrnn import reference

IGNORED = -100


@dataclasses.dataclass(frozen=True)
class Case:
    """Leading shape, hidden size, classes, dtype, and whether there is a bias."""

    shape: tuple[int, ...]
    hidden: int
    classes: int
    dtype: str = "float64"
    bias: bool = True

    @property
    def id(self) -> str:
        shape = "x".join(map(str, self.shape)) or "scalar"
        return f"{shape}-H{self.hidden}-V{self.classes}-{self.dtype}" + ("" if self.bias else "-no_bias")

    @property
    def sums(self) -> str:
        """Type of the losses, of their gradients and of all sums."""
        return "float32" if self.dtype == "bfloat16" else self.dtype


SIZES = [
    ((), 5, 7),
    ((1,), 1, 1),
    ((3,), 1, 2),
    ((17,), 7, 16),
    ((5,), 16, 17),
    ((4, 9), 64, 33),
    ((2, 3, 4), 17, 129),
    ((70,), 31, 1025),
    ((129,), 16, 300),
    ((3,), 5, 20011),
    ((0,), 4, 6),
    ((0, 3), 4, 6),
    ((600,), 3, 5),
]
CASES = [
    Case(shape, hidden, classes, dtype, bias=(number + offset) % 3 != 0)
    for number, (shape, hidden, classes) in enumerate(SIZES)
    for offset, dtype in enumerate(("float64", "float32", "bfloat16"))
]


@dataclasses.dataclass
class Readout:
    """Arguments of a readout."""

    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray | None
    targets: np.ndarray

    def arguments(self) -> tuple[Any, ...]:
        return self.x, self.weight, self.bias, self.targets


def make_readout(case: Case, rng: np.random.Generator, *, ignored: float = 0.2) -> Readout:
    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(case.dtype)

    targets = np.asarray(rng.integers(0, case.classes, case.shape))
    targets[rng.random(case.shape) < ignored] = IGNORED
    bias = normal(case.classes) if case.bias else None
    return Readout(normal(*case.shape, case.hidden), normal(case.classes, case.hidden), bias, targets)


def run(readout: Readout, dloss: Any = 1.0, **options: Any) -> tuple[Any, ...]:
    loss, tape = fr.linear_cross_entropy_forward(*readout.arguments(), **options)
    return loss, *fr.linear_cross_entropy_backward(tape, dloss)


def run_reference(readout: Readout, dloss: Any = 1.0, **options: Any) -> tuple[Any, ...]:
    loss = reference.linear_cross_entropy(*readout.arguments(), **options)
    return loss, *reference.linear_cross_entropy_backward(*readout.arguments(), dloss, **options)


def run_torch(readout: Readout, dloss: Any = 1.0, **options: Any) -> tuple[Any, ...]:
    """torch in float64, whatever the dtype."""
    torch = pytest.importorskip("torch")
    given = (readout.x, readout.weight, readout.bias)
    wide = (None if a is None else a.astype(np.float64) for a in given)
    leaves = [None if a is None else torch.tensor(a, requires_grad=True) for a in wide]
    logits = torch.nn.functional.linear(leaves[0].reshape(-1, readout.x.shape[-1]), leaves[1], leaves[2])
    targets = torch.tensor(readout.targets.reshape(-1))
    loss = torch.nn.functional.cross_entropy(logits, targets, **options)
    if options.get("reduction") == "none":
        loss = loss.reshape(readout.targets.shape)
    loss.backward(torch.tensor(np.broadcast_to(dloss, loss.shape), dtype=torch.float64))
    return loss.detach().numpy(), *(None if leaf is None else leaf.grad.numpy() for leaf in leaves)


def tolerances(case: Case) -> tuple[float, float]:
    """Errors allowed relative to the largest magnitude: of losses and dx, and of what is summed over the rows.

    A logit is a chain of H terms, its exponential passes the absolute error on as a relative one, and the logits here
    are of the order of sqrt(H); the sums over V and over the rows add their own roundings.
    """
    eps = float(np.finfo(case.sums).eps)
    rows = int(np.prod(case.shape, dtype=int))
    logits = np.sqrt(case.hidden) * (np.sqrt(case.hidden) + 8)
    return 4 * eps * (logits + np.sqrt(case.classes)), 4 * eps * (logits + np.sqrt(case.classes) + np.sqrt(rows))


def assert_near(actual: tuple[Any, ...], expected: tuple[Any, ...], case: Case) -> None:
    each, summed = tolerances(case)
    for name, a, b, near in zip(
        ("loss", "dx", "dweight", "dbias"), actual, expected, (each, each, summed, summed), strict=True
    ):
        assert (a is None) == (b is None), name
        if a is None:
            continue
        assert np.shape(a) == np.shape(b), name
        assert a.dtype == (case.sums if name == "loss" else case.dtype), name
        scale = max(float(np.abs(b).max(initial=0)), 1e-3)
        # Gradients of 16 bits are rounded once more.
        once = 0.0 if a.dtype == case.sums else float(ml_dtypes.finfo(case.dtype).eps) / 2
        np.testing.assert_allclose(a.astype(np.float64), b, rtol=once, atol=(1 + once) * near * scale, err_msg=name)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_against_the_reference(case: Case, reduction: str, rng: np.random.Generator) -> None:
    readout = make_readout(case, rng)
    if readout.targets.size:
        # One that counts, or a mean of none is nan.
        readout.targets.reshape(-1)[0] = 0
    elif reduction == "mean":
        pytest.skip("the mean of none is nan")
    dloss = rng.standard_normal(case.shape).astype(case.sums) if reduction == "none" else 0.7
    options = {"reduction": reduction, "ignore_index": IGNORED}
    assert_near(run(readout, dloss, **options), run_reference(readout, dloss, **options), case)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("case", [case for case in CASES if 0 not in case.shape], ids=lambda case: case.id)
def test_against_torch(case: Case, reduction: str, rng: np.random.Generator) -> None:
    readout = make_readout(case, rng)
    readout.targets.reshape(-1)[0] = 0
    options = {"reduction": reduction, "ignore_index": IGNORED}
    assert_near(run(readout, 1.5, **options), run_torch(readout, 1.5, **options), case)


@pytest.mark.parametrize("ignore_index", [0, 3, 6, -1, -100, 1000, 2**62])
def test_any_index_may_be_ignored(ignore_index: int, rng: np.random.Generator) -> None:
    case = Case((40,), 9, 7)
    readout = make_readout(case, rng, ignored=0)
    readout.targets[::3] = ignore_index
    for reduction in ("mean", "sum", "none"):
        options = {"reduction": reduction, "ignore_index": ignore_index}
        assert_near(run(readout, **options), run_torch(readout, **options), case)
    loss, dx, _, _ = run(readout, reduction="none", ignore_index=ignore_index)
    ignored = readout.targets == ignore_index
    assert not loss[ignored].any()
    assert not dx[ignored].any()


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("shape", [(), (5,), (0,), (2, 3)])
def test_where_all_are_ignored(shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> None:
    case = Case(shape, 4, 6, dtype)
    readout = make_readout(case, rng)
    readout.targets[...] = IGNORED
    assert np.isnan(run(readout)[0])
    assert run(readout, reduction="sum")[0] == 0
    assert_same(run(readout, reduction="none")[0], np.zeros(shape, case.sums))
    for reduction in ("mean", "sum", "none"):
        gradients = run(readout, reduction=reduction)[1:]
        assert_same(gradients, [np.zeros_like(readout.x), np.zeros((6, 4), dtype), np.zeros(6, dtype)])


def test_ignored_rows_influence_nothing(rng: np.random.Generator) -> None:
    readout = make_readout(Case((30,), 9, 21, "float32"), rng)
    ignored = readout.targets == IGNORED
    assert ignored.any()
    for reduction in ("mean", "sum", "none"):
        expected = run(readout, reduction=reduction)
        changed = dataclasses.replace(readout, x=np.where(ignored[:, None], np.float32(7e3), readout.x))
        assert_same(run(changed, reduction=reduction), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_class(dtype: str, rng: np.random.Generator) -> None:
    readout = make_readout(Case((9,), 5, 1, dtype), rng, ignored=0)
    loss, dx, dweight, dbias = run(readout, reduction="none")
    # log of the exponential of 0, and 1 - 1.
    for array in (loss, dx, dweight, dbias):
        assert np.abs(array).max() <= 8 * np.finfo(dtype).eps * 9 * 5


@pytest.mark.parametrize("magnitude", [0.0, 1e2, 1e4])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_logits(magnitude: float, reduction: str, dtype: str, rng: np.random.Generator) -> None:
    """Of large logits with small differences, loss and gradients have the errors that the differences give them."""
    classes = 40
    # The weights pick the elements of x as logits; 64ths beside 1e4 are exact in float32 too.
    near, far = rng.integers(-200, 200, (classes, classes)) / 64, rng.choice([-1.0, 1.0], (classes, 1))
    far = np.where(rng.random((classes, classes)) < 0.3, -far, far)
    x = (far * magnitude + near).astype(dtype)
    targets = np.arange(classes)
    targets[::7] = IGNORED
    readout = Readout(x, np.eye(classes, dtype=dtype), None, targets)
    dloss = rng.standard_normal(classes).astype(dtype) if reduction == "none" else 1.0
    expected, result = (f(readout, dloss, reduction=reduction) for f in (run_reference, run))
    # exp within 1 ulp of an argument of at most 8 that counts, a sum of 40 of them, a logarithm: an absolute error of
    # log(sum), and so a relative one of each probability. A loss rounds its difference of logits and its last sum too.
    eps = np.finfo(dtype).eps
    of_log = eps * (8 + classes / 2 + 4)
    losses = reference.linear_cross_entropy(*readout.arguments(), reduction="none")
    summed = {"mean": 1.0, "sum": classes, "none": 1.0}[reduction]
    assert np.all(np.abs(result[0] - expected[0]) <= summed * (of_log + eps * losses.max(initial=0)))
    of_gradient = 4 * of_log * np.abs(dloss).max()
    assert np.abs(result[1] - expected[1]).max() <= of_gradient
    # dweight sums 40 products of those with the elements of x.
    assert np.abs(result[2] - expected[2]).max() <= of_gradient * np.abs(x).max() * classes
    assert result[3] is None


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_a_nan_stays_in_its_row(dtype: str, rng: np.random.Generator) -> None:
    readout = make_readout(Case((20,), 9, 70, dtype), rng, ignored=0)
    clean, clean_dx = run(readout, reduction="none")[:2]
    readout.x[7, 3] = np.nan
    loss, dx = run(readout, reduction="none")[:2]
    assert np.isnan(loss[7])
    assert np.isnan(dx[7]).all()
    assert_same(np.delete(loss, 7), np.delete(clean, 7))
    assert_same(np.delete(dx, 7, 0), np.delete(clean_dx, 7, 0))


BITWISE = [
    Case(shape, hidden, classes, dtype)
    for shape, hidden, classes in (((33,), 17, 129), ((130,), 64, 1000), ((7,), 129, 2500), ((700,), 20, 50))
    for dtype in ("float32", "float64", "bfloat16")
]


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("case", BITWISE, ids=lambda case: case.id)
def test_any_number_of_threads(case: Case, reduction: str, rng: np.random.Generator) -> None:
    readout = make_readout(case, rng)
    with threads(1):
        expected = run(readout, reduction=reduction)
    for count in (2, 3, 4, 5):
        with threads(count):
            assert_same(run(readout, reduction=reduction), expected, f"{count} threads")


@pytest.mark.parametrize("case", BITWISE, ids=lambda case: case.id)
def test_a_row_alone_or_among_others(case: Case, rng: np.random.Generator) -> None:
    readout = make_readout(case, rng)
    loss, dx, _, _ = run(readout, reduction="none")
    rows = case.shape[0]
    for first, last in [(row, row + 1) for row in range(0, rows, 1 + rows // 9)] + [(1, 6), (rows - 5, rows)]:
        part = dataclasses.replace(readout, x=readout.x[first:last], targets=readout.targets[first:last])
        assert_same(run(part, reduction="none")[:2], (loss[first:last], dx[first:last]), f"rows {first} to {last}")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_leading_axes_only_shape_the_result(dtype: str, rng: np.random.Generator) -> None:
    readout = make_readout(Case((24,), 9, 21, dtype), rng)
    dloss = rng.standard_normal(24).astype(dtype)
    for reduction in ("mean", "sum", "none"):
        weights = dloss if reduction == "none" else 1.0
        loss, dx, *rest = run(readout, weights, reduction=reduction)
        folded = Readout(readout.x.reshape(2, 3, 4, 9), readout.weight, readout.bias, readout.targets.reshape(2, 3, 4))
        weights = dloss.reshape(2, 3, 4) if reduction == "none" else 1.0
        result = run(folded, weights, reduction=reduction)
        shaped = loss.reshape(2, 3, 4) if reduction == "none" else loss
        assert_same(result, (shaped, dx.reshape(2, 3, 4, 9), *rest))


def test_one_position_has_a_loss_of_its_own(rng: np.random.Generator) -> None:
    readout = make_readout(Case((), 9, 21, "float32"), rng, ignored=0)
    loss = fr.linear_cross_entropy(*readout.arguments(), reduction="none")
    assert np.shape(loss) == ()
    assert loss == fr.linear_cross_entropy(*readout.arguments())


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", ">i4", "u4", "i8", ">i8", "u8"])
def test_targets_of_any_integer_type(dtype: str, rng: np.random.Generator) -> None:
    readout = make_readout(Case((30,), 9, 21), rng, ignored=0)
    expected = run(readout)
    assert_same(run(dataclasses.replace(readout, targets=readout.targets.astype(dtype))), expected)
    assert_same(run(dataclasses.replace(readout, targets=readout.targets[::-1].astype(dtype)[::-1])), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_backward_is_linear_in_dloss(dtype: str, rng: np.random.Generator) -> None:
    readout = make_readout(Case((30,), 9, 21, dtype), rng)
    tape = fr.linear_cross_entropy_forward(*readout.arguments())[1]
    unit = fr.linear_cross_entropy_backward(tape)
    assert_same(fr.linear_cross_entropy_backward(tape, 1), unit)
    assert_same(fr.linear_cross_entropy_backward(tape, np.float32(1)), unit)
    assert_same(fr.linear_cross_entropy_backward(tape, np.array(1.0)), unit)
    assert_same(fr.linear_cross_entropy_backward(tape, 2.0), [2 * array for array in unit])
    for array in fr.linear_cross_entropy_backward(tape, 0.0):
        assert not array.any()


def test_one_number_serves_every_position(rng: np.random.Generator) -> None:
    readout = make_readout(Case((5, 6), 9, 21), rng)
    tape = fr.linear_cross_entropy_forward(*readout.arguments(), reduction="none")[1]
    each = fr.linear_cross_entropy_backward(tape, np.full((5, 6), 0.3))
    assert_same(fr.linear_cross_entropy_backward(tape, 0.3), each)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_logits_never_exist_whole(dtype: str, rng: np.random.Generator) -> None:
    from fusedrnn import _core

    # 20 MB of logits in float32, of which a readout may hold a fraction.
    readout = make_readout(Case((2000,), 8, 2500, dtype), rng)
    before = _core.pool_use()
    loss, tape = fr.linear_cross_entropy_forward(*readout.arguments())
    assert tape.nbytes < 2000 * 2500
    assert _core.pool_use()["live"] - before["live"] < 2000 * 2500
    assert np.isfinite(loss)

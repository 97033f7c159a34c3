"""exp, sigmoid and tanh of every instruction set, in units in the last place against wider arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from bitwise import assert_same

from fusedrnn import _core

ISAS = _core.isas()
NAMES = ("exp", "sigmoid", "tanh")
WIDER = {"float32": np.float64, "float64": np.longdouble}
# Where longdouble is no wider than float64, an oracle of the same width adds the error of its own few roundings.
ORACLE_ULP = {"float32": 0.0, "float64": 0.0 if np.finfo(np.longdouble).eps < np.finfo(np.float64).eps else 2.0}


def exact(name: str, x: np.ndarray) -> np.ndarray:
    """The function in the wider type."""
    x = x.astype(WIDER[str(x.dtype)])
    with np.errstate(over="ignore", under="ignore"):
        if name == "exp":
            return np.exp(x)
        if name == "tanh":
            return np.tanh(x)
        # exp of the negative half only: neither side overflows or cancels.
        small = np.exp(-np.abs(x))
        return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


def ulp_error(y: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Distance in units in the last place of the exact result."""
    info = np.finfo(y.dtype)
    magnitude = np.maximum(np.abs(expected), expected.dtype.type(info.tiny))
    _, exponent = np.frexp(magnitude)
    unit = np.ldexp(expected.dtype.type(1), exponent - 1 - info.nmant)
    return np.abs(y.astype(expected.dtype) - expected) / unit


def sweep(dtype: str) -> np.ndarray:
    """Finite numbers of every exponent and sign; those whose results are neither 0 nor 1 in greater number."""
    if dtype == "float32":
        x = np.arange(0, 2**32, 1009, dtype=np.uint64).astype(np.uint32).view(np.float32)
        return x[np.isfinite(x)]
    rng = np.random.default_rng(0)
    every = rng.integers(0, 2**64, 100_000, dtype=np.uint64).view(np.float64)
    near = [rng.uniform(-width, width, 100_000) for width in (1e-3, 1, 3, 40, 760)]
    return np.concatenate([every[np.isfinite(every)], *near])


SWEEPS = {dtype: sweep(dtype) for dtype in WIDER}


def check_ulp(name: str, isa: str, x: np.ndarray) -> None:
    y, expected = _core.activate(name, x, isa), exact(name, x)
    info = np.finfo(x.dtype)
    normal = (np.abs(expected) >= info.tiny) & (np.abs(expected) <= info.max)
    error = ulp_error(y[normal], expected[normal])
    worst = int(np.argmax(error))
    assert error[worst] <= 2 + ORACLE_ULP[str(x.dtype)], (name, isa, x[normal][worst], y[normal][worst], error[worst])
    # Below the normal range a result may be 0, and is no further off than that.
    below = np.abs(expected) < info.tiny
    assert (np.abs(y[below]) <= 2 * info.tiny).all()
    assert np.isposinf(y[expected > info.max * (1 + expected.dtype.type(4 * info.eps))]).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", WIDER)
@pytest.mark.parametrize("name", NAMES)
def test_at_most_two_ulp(name: str, dtype: str, isa: str) -> None:
    check_ulp(name, isa, SWEEPS[dtype])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", NAMES)
def test_every_float_of_one_binade(name: str, isa: str) -> None:
    # Where 1 + e cancels and tanh leaves its linear part, every 17th float.
    low, high = np.array([0.125, 8], np.float32).view(np.uint32)
    x = np.arange(low, high, 17, dtype=np.uint32).view(np.float32)
    check_ulp(name, isa, np.concatenate([x, -x]))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("name", "first"), [("tanh", 0.5), ("sigmoid", -0.03), ("exp", -5.1977), ("exp", 5.198)])
def test_where_errors_are_largest(name: str, first: float, isa: str) -> None:
    # A million neighbouring floats.
    start = int(np.float32(first).view(np.uint32))
    check_ulp(name, isa, np.arange(start, start + 1_000_000, dtype=np.uint32).view(np.float32))


SPECIAL: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "exp": lambda x: np.where(x > 0, np.inf, 0),
    "sigmoid": lambda x: np.where(x > 0, 1, 0),
    "tanh": np.sign,
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", WIDER)
@pytest.mark.parametrize("name", NAMES)
def test_far_from_zero(name: str, dtype: str, isa: str) -> None:
    largest = np.finfo(dtype).max
    x = np.array([sign * size for size in (1e3, 1e4, 1e30, largest, np.inf) for sign in (1, -1)], dtype)
    assert_same(_core.activate(name, x, isa), SPECIAL[name](x).astype(dtype))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", WIDER)
@pytest.mark.parametrize("name", NAMES)
def test_at_zero_and_below_normal(name: str, dtype: str, isa: str) -> None:
    info = np.finfo(dtype)
    x = np.array([0, info.smallest_subnormal, info.tiny / 2, info.tiny], dtype)
    x = np.concatenate([x, -x])
    y = _core.activate(name, x, isa)
    if name == "tanh":
        assert_same(np.signbit(y), np.signbit(x))
        assert (np.abs(y) <= np.abs(x)).all()
        assert_same(y[[0, 4]], x[[0, 4]])
    else:
        assert_same(y, np.full(8, 1 if name == "exp" else 0.5, dtype))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", WIDER)
@pytest.mark.parametrize("name", NAMES)
def test_nan_in_nan_out(name: str, dtype: str, isa: str) -> None:
    # In every lane, and in the part of a vector that is left at the end; the neighbours don't notice.
    for count in (1, 3, 16, 37):
        for place in range(count):
            x = np.linspace(-2, 2, count).astype(dtype)
            clean = _core.activate(name, x, isa)
            x[place] = -np.nan if place % 2 else np.nan
            y = _core.activate(name, x, isa)
            assert np.isnan(y[place])
            assert_same(np.delete(y, place), np.delete(clean, place))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", WIDER)
@pytest.mark.parametrize("name", NAMES)
def test_results_stay_in_range(name: str, dtype: str, isa: str) -> None:
    y = _core.activate(name, SWEEPS[dtype], isa)
    low, high = {"exp": (0, np.inf), "sigmoid": (0, 1), "tanh": (-1, 1)}[name]
    assert (y >= low).all()
    assert (y <= high).all()
    if name == "tanh":
        assert_same(_core.activate(name, -SWEEPS[dtype], isa), -y)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", WIDER)
@pytest.mark.parametrize("name", NAMES)
def test_rises_between_distant_points(name: str, dtype: str, isa: str) -> None:
    # Two ulp of error cannot turn the order of results that lie further apart; at the edges they are constant.
    x = np.concatenate([np.linspace(-1000, 1000, 4001), np.linspace(-110, 110, 8801)]).astype(dtype)
    x.sort()
    y = _core.activate(name, x, isa)
    bound = 4 * np.finfo(dtype).eps * np.abs(y[:-1]) + np.finfo(dtype).tiny
    with np.errstate(invalid="ignore"):
        falls = y[:-1] - y[1:]
    assert not (falls > bound).any()


@pytest.mark.parametrize("dtype", WIDER)
@pytest.mark.parametrize("name", NAMES)
def test_v3_or_v4(name: str, dtype: str) -> None:
    for isa in ("x86-64-v3", "x86-64-v4"):
        if isa not in ISAS:
            pytest.skip(f"this processor does not run {isa}")
    x = SWEEPS[dtype]
    assert_same(_core.activate(name, x, "x86-64-v3"), _core.activate(name, x, "x86-64-v4"))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", WIDER)
@pytest.mark.parametrize("name", NAMES)
def test_an_element_does_not_depend_on_its_place(name: str, dtype: str, isa: str) -> None:
    x = np.random.default_rng(0).uniform(-9, 9, 37).astype(dtype)
    whole = _core.activate(name, x, isa)
    for first in range(0, 37, 5):
        for last in range(first, 38, 4):
            assert_same(_core.activate(name, x[first:last].copy(), isa), whole[first:last])


def test_names_of_functions_and_instruction_sets() -> None:
    x = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="name"):
        _core.activate("softplus", x)
    with pytest.raises(ValueError, match="isa"):
        _core.activate("exp", x, "x86-64-v9")
    assert_same(_core.activate("exp", x), _core.activate("exp", x, _core.isa()))

"""Error bounds by running error analysis: the reference's equations over arrays that carry their rounding errors.

Every result is bounded element by element against its own terms. `Rounded` holds the exact value of an array and, for
each element, the sum of the squares of all rounding errors behind it, in units of u² with u = eps/2, each multiplied by
the derivative through which it arrives (to first order, as errors of independent origins). The rules are those of
Wilkinson's running error analysis, with squares instead of magnitudes:

- An operation rounds its result v by at most u|v|; exp-like functions are within 2 ulp, 4u|v|.
- A sum of n terms t is one chain whose every partial sum is rounded. In an unknown order the terms are as good as
  shuffled, and a partial sum S_k of shuffled terms has the mean square (k/n)² S² + k/n (1 - k/n) Q, where S is the
  whole sum and Q the sum of the t², up to terms of 1/n. So n roundings come to at most n (S² + Q). Where a chain goes
  on from another value, that value's and the result's squares bound the partial sums in the same way.

Rounding errors, taken as independent with mean zero and bounded by c_k u, add up to less than λ u sqrt(Σ c_k²) with
probability 1 - 2 exp(-λ²/2) (Hoeffding 1963; for rounding errors: Higham & Mary, "A new approach to probabilistic
rounding error analysis", 2019). That is `Rounded.bound`, with λ = 7: for the fifty million elements that the suite
compares, the chance that one of them exceeds it is below 3e-3.

What this leaves out is that errors of one origin arrive by several ways, along h and c, or step after step. The bounded
c_k make up for it: a rounding's own mean square is at most a third of (c_k u)². Over fourteen seeds, each with a
quarter of the suite's cases, the largest error was 0.55 of its bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
from cases import Case, Inputs
from oracles import Result, assert_results_close, map_result, run_reference

from fusedrnn import reference

CONFIDENCE = 7.0  # λ
ACTIVATION = 4.0  # an activation's error in units of u times its result: 2 ulp


class Rounded(np.lib.mixins.NDArrayOperatorsMixin):
    """An array with the squares of the rounding errors of each element, in units of u².

    `terms` is the number of terms of the sum or product that the array has just come from, 0 for anything else: it is
    how many roundings take place in the value that the sum goes on from.
    """

    least_activation = 0.0
    """Magnitude that an activation's error is relative to where its result is smaller."""

    operation = 1.0
    """Square of an operation's own rounding, in units of u²: less than 1 where u is that of a coarser store."""

    def __init__(self, value: Any, squares: np.ndarray | None = None, terms: int = 0) -> None:
        self.value = np.asarray(value, np.float64)
        self.squares = np.zeros(self.value.shape) if squares is None else squares
        self.terms = terms

    def bound(self, eps: float) -> np.ndarray:
        """Greatest error of each element; what a flush to zero may have taken comes on top."""
        return CONFIDENCE * eps / 2 * np.sqrt(self.squares) + np.finfo(np.float32).tiny

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def T(self) -> Rounded:
        return Rounded(self.value.T, self.squares.T)

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, index: Any) -> Rounded:
        return Rounded(self.value[index], self.squares[index], self.terms)

    def __setitem__(self, index: Any, item: Rounded) -> None:
        self.value[index], self.squares[index] = item.value, item.squares

    def copy(self) -> Rounded:
        return Rounded(self.value.copy(), self.squares.copy())

    def sum(self, axis: int) -> Rounded:
        value, terms = self.value.sum(axis), self.value.shape[axis]
        return Rounded(
            value, self.squares.sum(axis) + Rounded.operation * terms * (value**2 + (self.value**2).sum(axis)), terms
        )

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        out = options.pop("out", None)
        if method != "__call__" or options or ufunc not in UFUNCS:
            return NotImplemented
        result = UFUNCS[ufunc](*(x if isinstance(x, Rounded) else Rounded(x) for x in inputs))
        if out is not None:
            self[...] = result
            return self
        return result

    def __array_function__(self, function: Callable[..., Any], types: Any, args: Any, options: Any) -> Any:
        return FUNCTIONS[function](*args, **options) if function in FUNCTIONS else NotImplemented


def _sum(a: Rounded, b: Rounded, value: np.ndarray) -> Rounded:
    chained = (a.terms + b.terms) * np.maximum(np.maximum(a.value**2, b.value**2), value**2)
    return Rounded(value, a.squares + b.squares + Rounded.operation * (value**2 + chained))


def _product(a: Rounded, b: Rounded) -> Rounded:
    value = a.value * b.value
    return Rounded(value, a.squares * b.value**2 + a.value**2 * b.squares + Rounded.operation * value**2)


def _matrix_product(a: Rounded, b: Rounded) -> Rounded:
    value, terms = a.value @ b.value, a.shape[-1]
    own = Rounded.operation * terms
    squares = own * value**2 + (own * a.value**2 + a.squares) @ b.value**2
    if b.squares.any():
        squares += a.value**2 @ b.squares
    return Rounded(value, squares, terms)


def _activation(value: np.ndarray, slope: np.ndarray, z: Rounded) -> Rounded:
    scale = np.maximum(np.abs(value), Rounded.least_activation)
    return Rounded(value, slope**2 * z.squares + Rounded.operation * (ACTIVATION * scale) ** 2)


def _tanh(z: Rounded) -> Rounded:
    value = np.tanh(z.value)
    return _activation(value, 1 - value**2, z)


_exact_sigmoid = reference.sigmoid  # run_rounded puts `_sigmoid` in its place


def _sigmoid(z: Rounded) -> Rounded:
    value = _exact_sigmoid(z.value)
    return _activation(value, value * (1 - value), z)


UFUNCS: dict[Any, Callable[..., Any]] = {
    np.add: lambda a, b: _sum(a, b, a.value + b.value),
    np.subtract: lambda a, b: _sum(a, b, a.value - b.value),
    np.multiply: _product,
    np.matmul: _matrix_product,
    np.tanh: _tanh,
    np.power: lambda a, two: _product(a, a),
    np.maximum: lambda a, b: Rounded(np.maximum(a.value, b.value), np.where(a.value > b.value, a.squares, b.squares)),
    np.minimum: lambda a, b: Rounded(np.minimum(a.value, b.value), np.where(a.value < b.value, a.squares, b.squares)),
    np.absolute: lambda a: Rounded(np.abs(a.value), a.squares),
    np.greater: lambda a, b: a.value > b.value,
    np.greater_equal: lambda a, b: a.value >= b.value,
}


def _mapped(function: Callable[..., np.ndarray]) -> Callable[..., Rounded]:
    """A function that only moves elements, for sequences of arrays."""

    def apply(arrays: Sequence[Any], **options: Any) -> Rounded:
        parts = [x if isinstance(x, Rounded) else Rounded(x) for x in arrays]
        value, squares = (function([getattr(p, name) for p in parts], **options) for name in ("value", "squares"))
        return Rounded(value, squares, max(p.terms for p in parts))

    return apply


def _split(array: Rounded, parts: int, axis: int) -> list[Rounded]:
    pairs = zip(np.split(array.value, parts, axis), np.split(array.squares, parts, axis), strict=True)
    return [Rounded(value, squares, array.terms) for value, squares in pairs]


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.concatenate: _mapped(np.concatenate),
    np.stack: _mapped(np.stack),
    np.split: _split,
    np.where: lambda mask, zero, array: Rounded(
        np.where(mask, zero, array.value), np.where(mask, 0.0, array.squares), array.terms
    ),
    np.zeros_like: lambda array, shape=None: Rounded(np.zeros(array.shape if shape is None else shape)),
}


def run_rounded(
    case: Case, parameters: dict[str, np.ndarray], inputs: Inputs, dropout_masks: list[np.ndarray] | None = None
) -> Result:
    """The reference's answer with the errors behind it; sigmoid is one operation, as it is in the library."""
    with mock.patch.multiple(reference, _array=Rounded, sigmoid=_sigmoid):
        return run_reference(case, parameters, inputs, dropout_masks)


def error_bounds(
    case: Case,
    parameters: dict[str, np.ndarray],
    inputs: Inputs,
    dropout_masks: list[np.ndarray] | None = None,
    *,
    other: str = "float64",
) -> Result:
    """Greatest difference between two right answers: one in the case's dtype, and one in `other`."""
    eps = case.eps + float(ml_dtypes.finfo(other).eps)
    return map_result(lambda array: array.bound(eps), run_rounded(case, parameters, inputs, dropout_masks))


def norm_bounds(
    case: Case, parameters: dict[str, np.ndarray], inputs: Inputs, eps: float | None = None
) -> list[np.ndarray]:
    """Greatest difference between the norms of states' gradients, (L*D, T, B), and those of the reference.

    A norm is off by no more than the norm of the errors beneath it, and by its own rounding: of H squares in sixteen
    partial sums, and of the square root. `eps` is that of the case's dtype, unless given.
    """
    eps = (case.eps if eps is None else eps) + float(np.finfo(np.float64).eps)
    with mock.patch.multiple(reference, _array=Rounded, sigmoid=_sigmoid):
        _, _, tape = reference.forward(
            case.cell, parameters, inputs.x, inputs.state, **inputs.sequence_options(), **case.reference_options()
        )
        gradients = reference.state_gradients(tape, inputs.dy, inputs.dstate)
    return [
        np.linalg.norm(d.bound(eps), axis=-1) + (d.shape[-1] / 16 + 4) * eps * np.linalg.norm(d.value, axis=-1)
        for d in gradients
    ]


def onnxruntime_bounds(case: Case, parameters: dict[str, np.ndarray], inputs: Inputs, *, other: str) -> Result:
    """`error_bounds` with onnxruntime as one side, whose activations have errors relative to 1."""
    with mock.patch.object(Rounded, "least_activation", 1.0):
        return error_bounds(case, parameters, inputs, other=other)


def assert_matches_reference(
    ours: Result, case: Case, parameters: dict[str, np.ndarray], inputs: Inputs, masks: list[np.ndarray] | None = None
) -> None:
    """Assert that a result is the reference's, to within the rounding errors of its own terms."""
    expected = run_reference(case, parameters, inputs, masks)
    assert_results_close(ours, expected, error_bounds(case, parameters, inputs, masks))

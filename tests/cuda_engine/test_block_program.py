"""The CUDA block programs, run on the host by a policy that plays an adverse GPU, against the reference in float64.

The bounds are those of `rounding`: errors add up through the reference's own equations, now of two sizes. Where a value
is stored in 16 bits, or a product rounds it to tf32, the error is u of that precision; every operation has that of
float32. Which values are stored follows from the design: h as it leaves a step, and the gate gradients that backward
products multiply; for tf32 both factors of every product.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
import rounding
from bitwise import assert_same
from block_program.program import ENOUGH, FORMS, PRECISIONS, Layer, Plan, Problem, compile_library, decode, encode
from cases import Case, Inputs, make_inputs, make_parameters
from oracles import Result, as_tuple, assert_results_close, map_result
from rounding import Rounded, run_rounded

from fusedrnn import reference

UNIT = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "tf32": 2.0**-11}
LEAST_NORMAL = {"bfloat16": 2.0**-126, "float16": 2.0**-14, "tf32": 2.0**-126}


@dataclasses.dataclass(frozen=True)
class BlockCase(Case):
    dtype: str = "float32"
    precision: str = "bfloat16"

    @property
    def id(self) -> str:
        return super().id.replace("float32", self.precision)


def block_case(cell: str, precision: str, hidden_size: int, batch: int, time: int = 4, **options: Any) -> BlockCase:
    return BlockCase(
        cell, precision=precision, hidden_size=hidden_size, batch=batch, time=time, input_size=3, **options
    )


BOTH = {"directions": 2, "ragged": True, "reset": True}
CASES = [
    *(block_case(cell, p, 17, 5, 5, **BOTH) for cell in ("lstm", "lstm_coupled", "gru") for p in PRECISIONS),
    *(block_case(cell, p, 129, 16) for cell in ("lstm", "gru") for p in PRECISIONS),
    # So many steps that every exchange buffer is used again.
    *(block_case(cell, p, 17, 5, 40, **BOTH) for cell, p in (("lstm", "bfloat16"), ("gru", "tf32"))),
    block_case("lstm", "bfloat16", 16, 33, 6, **BOTH),
    block_case("gru", "bfloat16", 129, 33, **BOTH),
    block_case("lstm", "tf32", 129, 1, 6, ragged=True, directions=2),
    block_case("lstm", "bfloat16", 300, 5, **BOTH),
    block_case("gru", "bfloat16", 300, 1, 5, reset=True),
    block_case("lstm", "bfloat16", 768, 5, 3, ragged=True, reset=True),
    block_case("gru", "bfloat16", 768, 1, 3, directions=2),
    block_case("lstm", "bfloat16", 1024, 1, 2),
    block_case("gru", "bfloat16", 1024, 1, 2),
    block_case("lstm", "tf32", 1024, 1, 2),
    block_case("gru", "tf32", 1024, 1, 2),
]
SMALL = [case for case in CASES if case.hidden_size == 17]
LONG = [case for case in SMALL if case.time == 40]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    try:
        return compile_library(tmp_path_factory.mktemp("block_program"))
    except FileNotFoundError as error:
        pytest.skip(str(error))


def make(case: BlockCase, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], Inputs]:
    """Parameters and inputs that arrays of the precision hold exactly."""

    def held(array: np.ndarray) -> np.ndarray:
        return decode(encode(array, case.precision), case.precision).astype(np.float32)

    parameters, inputs = make_parameters(case, rng), make_inputs(case, rng)
    parameters = {name: held(array) if "weight_hh" in name else array for name, array in parameters.items()}

    def first_held(state: Any) -> Any:
        return (held(state[0]), *state[1:]) if case.two_states else held(state)

    return parameters, dataclasses.replace(inputs, state=first_held(inputs.state), dy=held(inputs.dy))


def stored(array: Rounded, precision: str) -> Rounded:
    """What rounding to the precision leaves of an array; subnormal numbers have the error of the least normal one."""
    scale = np.maximum(np.abs(array.value), LEAST_NORMAL[precision])
    return Rounded(array.value, array.squares + scale**2, array.terms)


@dataclasses.dataclass(frozen=True)
class StoresH:
    """A cell whose h is stored when a step ends."""

    cell: Any
    precision: str
    clip: None = None  # which block programs do not have

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cell, name)

    def forward(self, *arguments: Any) -> Any:
        (h, *rest), saved = self.cell.forward(*arguments)
        return (stored(h, self.precision), *rest), saved


@contextlib.contextmanager
def stored_factors(precision: str) -> Iterator[None]:
    """Products store their left factor first, and sums over rows their terms; tf32's products round both factors."""
    product, total = rounding.UFUNCS[np.matmul], Rounded.sum

    def stored_product(a: Rounded, b: Rounded) -> Rounded:
        return product(stored(a, precision), stored(b, precision) if precision == "tf32" else b)

    def stored_sum(self: Rounded, axis: int) -> Rounded:
        return total(self if precision == "tf32" else stored(self, precision), axis)

    with (
        mock.patch.dict(rounding.UFUNCS, {np.matmul: stored_product}),
        mock.patch.object(Rounded, "sum", stored_sum),
    ):
        yield


def expected_and_bounds(case: BlockCase, parameters: Any, inputs: Inputs) -> tuple[Result, Result]:
    unit, backward = UNIT[case.precision], reference.backward

    def backward_with_stored_factors(*arguments: Any) -> Any:
        with stored_factors(case.precision):
            return backward(*arguments)

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(Rounded, "operation", (2.0**-24 / unit) ** 2))
        if case.precision == "tf32":
            stack.enter_context(stored_factors("tf32"))
        else:
            cell = StoresH(reference.cells[case.cell], case.precision)
            stack.enter_context(mock.patch.dict(reference.cells, {case.cell: cell}))
            stack.enter_context(mock.patch.object(reference, "backward", backward_with_stored_factors))
        rounded = run_rounded(case, parameters, inputs)
    return map_result(lambda a: a.value, rounded), map_result(lambda a: a.bound(2 * unit), rounded)


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_reference(library: Any, case: BlockCase, rng: np.random.Generator) -> None:
    parameters, inputs = make(case, rng)
    layer = Layer(library, case, parameters, inputs)
    assert_results_close(layer.result(layer.run(seed=case.seed)), *expected_and_bounds(case, parameters, inputs))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_h_is_rounded_to_nearest(library: Any, precision: str, rng: np.random.Generator) -> None:
    case = block_case("lstm", precision, 129, 16)
    written = Layer(library, case, *make(case, rng)).run()
    o = written["gates"].astype(np.float64)[:, :, 3 * case.hidden_size :]
    exact = o * np.tanh(written["cells"].astype(np.float64))
    error = np.abs(decode(written["y"], precision) - exact)
    # Half of the last place; float32's errors, of tanh and a product, may take it over the middle.
    half = UNIT[precision] * 2.0 ** np.floor(np.log2(np.abs(exact)))
    subnormal = UNIT[precision] * LEAST_NORMAL[precision]
    assert (error <= np.maximum(half, subnormal) + 4 * 2.0**-24 * np.abs(exact)).all()


@pytest.mark.parametrize("case", [*SMALL, CASES[-8]])
def test_neither_order_nor_form_changes_a_bit(library: Any, case: BlockCase, rng: np.random.Generator) -> None:
    layer = Layer(library, case, *make(case, rng))
    expected = layer.run()
    for form in FORMS:
        for seed in (1, 2, 3, 4):  # of both kinds: the odd ones hold back the marks of missing words
            assert_same(layer.run(form, seed), expected, f"{form}, seed {seed}")


@pytest.mark.parametrize("case", LONG)
def test_a_missing_fence_is_noticed(library: Any, case: BlockCase, rng: np.random.Generator) -> None:
    layer = Layer(library, case, *make(case, rng))
    expected = layer.run()
    for seed in (1, 3):
        result = layer.run(FORMS[1], seed, fences=False)
        assert result["y"].tobytes() != expected["y"].tobytes()


@pytest.mark.parametrize("case", SMALL)
def test_chunks_of_steps_equal_the_whole(library: Any, case: BlockCase, rng: np.random.Generator) -> None:
    layer = Layer(library, case, *make(case, rng))
    assert_same(layer.run(FORMS[1], chunk=2), layer.run(FORMS[1]))


@pytest.mark.parametrize("case", SMALL)
def test_directions_apart_equal_both_at_once(library: Any, case: BlockCase, rng: np.random.Generator) -> None:
    layer = Layer(library, case, *make(case, rng))
    assert_same(layer.run(FORMS[1], apart=True), layer.run(FORMS[1]))


@pytest.mark.parametrize("multiprocessors", [12, 4])  # slices of 16 and of 32 rows
def test_larger_slices_equal_small_ones(library: Any, multiprocessors: int, rng: np.random.Generator) -> None:
    case = block_case("gru", "bfloat16", 17, 33, 5, **BOTH)
    layer = Layer(library, case, *make(case, rng))
    assert_same(layer.run(FORMS[0], 1, multiprocessors), layer.run())


@pytest.mark.parametrize("case", SMALL)
def test_inference_gives_the_outputs_of_training(library: Any, case: BlockCase, rng: np.random.Generator) -> None:
    layer = Layer(library, case, *make(case, rng))
    trained = layer.run()
    inferred = layer.run(keep=False)
    assert_same(inferred, {name: trained[name] for name in inferred})


@pytest.mark.parametrize("case", SMALL[::4])
def test_a_nan_stays_in_its_row_and_behind_a_cut(library: Any, case: BlockCase, rng: np.random.Generator) -> None:
    parameters, inputs = make(case, rng)
    assert inputs.reset is not None and inputs.lengths is not None
    row = int(inputs.lengths.argmax())
    inputs.reset[3, row] = True
    clean = Layer(library, case, parameters, inputs).run()
    for state in as_tuple(inputs.state):
        state[0, row] = np.nan
    inputs.x[:3, row] = np.nan
    layer = Layer(library, case, parameters, inputs)
    result = layer.run(FORMS[1])
    others = np.delete(np.arange(case.batch), row)
    for name, axis in (("y", 1), ("gates", 1), ("dgates", 1)):
        assert_same(np.take(result[name], others, axis), np.take(clean[name], others, axis), name)
    # Forward, the row is itself again from the cut on; its y stands in the first half of the units.
    forward = (slice(3, None), row, slice(case.hidden_size))
    assert_same(result["y"][forward], clean["y"][forward])
    assert np.isnan(decode(result["y"][:3, row], case.precision)).all()


@pytest.mark.parametrize("hidden_size", [1, 2, 17])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_nan_that_looks_like_a_missing_word(
    library: Any, cell: str, precision: str, hidden_size: int, rng: np.random.Generator
) -> None:
    case = block_case(cell, precision, hidden_size, batch=3)
    parameters, inputs = make(case, rng)
    clean = Layer(library, case, parameters, inputs).run()
    ones, row = np.uint32(0xFFFFFFFF).view(np.float32), 1
    as_tuple(inputs.state)[0][0, row] = ones
    inputs.dy[-1, row] = ones
    assert (encode(inputs.dy[-1, row], precision).view(np.uint8) == 0xFF).all()
    layer = Layer(library, case, parameters, inputs)
    for form in FORMS:
        for seed in (0, 1):
            result = layer.run(form, seed)
            for name, axis in (("y", 1), ("gates", 1), ("dgates", 1), ("dh", 0)):
                assert_same(np.delete(result[name], row, axis), np.delete(clean[name], row, axis), name)
            assert np.isnan(decode(result["y"][:, row], precision)).all()
            assert np.isnan(result["dh"][row]).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_steps_at_all(library: Any, precision: str, rng: np.random.Generator) -> None:
    case = block_case("lstm", precision, 17, 5, 0)
    parameters, inputs = make(case, rng)
    written = Layer(library, case, parameters, inputs).run(FORMS[1])
    assert_same(decode(written["hn"], precision), inputs.state[0][0].astype(np.float64))
    assert_same(written["dc"], inputs.dstate[1][0])


def plan(library: Any, multiprocessors: int = ENOUGH, **changes: Any) -> tuple[str | None, Plan]:
    given = {"cell": b"lstm", "precision": 0, "backward": 0, "form": 1, "hidden_size": 768, "rows": 16, "directions": 1}
    problem, made = Problem(**{**given, **changes}), Plan()
    reason = library.block_program_plan(ctypes.byref(problem), multiprocessors, ctypes.byref(made))
    return reason.decode() if reason else None, made


def test_what_is_out_of_scope_is_refused(library: Any) -> None:
    for changes, word in (
        ({"cell": b"gru_reset_before"}, "cell"),
        ({"cell": b"lstm_peephole"}, "cell"),
        ({"hidden_size": 1025}, "hidden size"),
        ({"hidden_size": 0}, "hidden size"),
        ({"rows": 0}, "rows"),
        ({"directions": 3}, "directions"),
        ({"multiprocessors": 47}, "multiprocessors"),
    ):
        assert word in (plan(library, **changes)[0] or ""), changes
    assert plan(library, 47, form=0)[0] is None


@pytest.mark.parametrize(
    ("hidden_size", "rows", "directions", "precision", "capacity", "slice_rows", "grid"),
    [
        (768, 16, 1, 0, 768, 8, 96),
        (768, 64, 1, 0, 768, 32, 96),
        (1024, 16, 1, 0, 1024, 8, 128),
        (1024, 32, 1, 2, 1024, 32, 128),
        (512, 32, 2, 1, 512, 16, 128),
        (17, 1, 1, 0, 256, 8, 2),
    ],
)
def test_plans_for_132_multiprocessors(
    library: Any,
    hidden_size: int,
    rows: int,
    directions: int,
    precision: int,
    capacity: int,
    slice_rows: int,
    grid: int,
) -> None:
    reason, made = plan(
        library, 132, hidden_size=hidden_size, rows=rows, directions=directions, precision=precision, backward=1
    )
    assert reason is None
    assert (made.capacity, made.slice_rows, directions * made.slices * made.blocks) == (capacity, slice_rows, grid)
    assert made.shared <= 99 << 10  # what the smallest device in scope has, of compute capability 12.0

"""The one list of cases of the suite, and what every property needs of a case: a layer and inputs."""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np

from fusedrnn import reference

SIZES = (1, 7, 17, 64, 129)

# The public class of each internal cell name, and the options that select the cell.
LAYERS: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn_tanh": ("RNN", {"nonlinearity": "tanh"}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "lstm": ("LSTM", {}),
    "lstm_peephole": ("LSTM", {"peephole": True}),
    "lstm_coupled": ("LSTM", {"coupled": True}),
    "lstm_peephole_coupled": ("LSTM", {"peephole": True, "coupled": True}),
    "gru": ("GRU", {"reset_after": True}),
    "gru_reset_before": ("GRU", {"reset_after": False}),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One configuration of a layer and of the sequence it runs over."""

    cell: str
    num_layers: int = 1
    directions: int = 1
    dtype: str = "float64"
    time: int = 7
    batch: int = 7
    input_size: int = 7
    hidden_size: int = 7
    ragged: bool = False
    reset: bool = False
    reverse: bool = False
    clip: float | None = None
    masked: bool = False

    @property
    def id(self) -> str:
        sizes = f"T{self.time}B{self.batch}I{self.input_size}H{self.hidden_size}"
        marks = "-ragged" * self.ragged + "-reset" * self.reset + "-reverse" * self.reverse
        marks += "-masked" * self.masked
        marks += f"-clip{self.clip}" if self.clip else ""
        return f"{self.cell}-L{self.num_layers}D{self.directions}-{self.dtype}-{sizes}{marks}"

    @property
    def seed(self) -> int:
        """A seed of the case's own, so that adding a case leaves the others' numbers alone."""
        return zlib.crc32(self.id.encode())

    @property
    def eps(self) -> float:
        return float(ml_dtypes.finfo(self.dtype).eps)

    @property
    def sums(self) -> str:
        """Type of c and of all sums."""
        return "float32" if self.dtype == "bfloat16" else self.dtype

    @property
    def two_states(self) -> bool:
        return reference.cells[self.cell].states == 2

    def reference_options(self) -> dict[str, Any]:
        return {
            "num_layers": self.num_layers,
            "bidirectional": self.directions == 2,
            "reverse": self.reverse,
            "clip": self.clip,
        }


def _sizes(row: int) -> tuple[int, int, int, int]:
    """T, B, I, H from a row of an orthogonal array: 25 successive rows hold all pairs of sizes of any two of them."""
    a, b = divmod(row % 25, 5)
    return SIZES[a], SIZES[b], SIZES[(a + b) % 5], SIZES[(a + 2 * b) % 5]


def _case(row: int, cell: str, num_layers: int, directions: int, dtype: str, ragged: bool, reset: bool) -> Case:
    time, batch, input_size, hidden_size = _sizes(row)
    if cell == "rnn_relu" and dtype == "float32":
        # Few enough steps that inputs can be drawn with no pre-activation within rounding of the kink at 0.
        time, batch = min(time, 7), min(batch, 17)
    return Case(cell, num_layers, directions, dtype, time, batch, input_size, hidden_size, ragged, reset)


def _all_cases() -> list[Case]:
    cases = []
    shapes = itertools.product(LAYERS, (1, 2, 3), (1, 2))
    for number, (cell, num_layers, directions) in enumerate(shapes):
        # Each dtype has half of the combinations of ragged and reset, the halves changing places from shape to shape.
        halves = [[(False, False), (True, True)], [(True, False), (False, True)]]
        if (number + num_layers) % 2:
            halves.reverse()
        for dtype, half in zip(("float32", "float64"), halves, strict=True):
            for ragged, reset in half:
                cases.append(_case(len(cases), cell, num_layers, directions, dtype, ragged, reset))
    return cases


CASES = _all_cases()

# Half the standard deviation of a typical pre-activation, or less: some gates are clipped, some are not.
CLIP = 0.375
CASES += [
    Case(cell, 2, directions, dtype, 6, 5, 7, 17, ragged=ragged, reset=not ragged, clip=CLIP)
    for cell, (directions, dtype, ragged) in itertools.product(
        LAYERS, ((1, "float32", False), (2, "float32", True), (2, "float64", False))
    )
]
CASES += [
    Case(cell, 2, 1, dtype, 6, 5, 7, 17, ragged=True, reset=dtype == "float64", reverse=True, clip=clip)
    for cell, (dtype, clip) in itertools.product(LAYERS, (("float32", None), ("float64", CLIP)))
]

# bfloat16: every cell at three shapes, with all options by turns. Few steps where there are kinks, which are further
# away then: it is a coarse type.
BFLOAT16_CASES = [
    Case(cell, layers, directions, "bfloat16", *sizes, **options)
    for turn, cell in enumerate(LAYERS)
    for layers, directions, sizes, options in (
        (2, 2, (2, 2, 7, 5) if cell == "rnn_relu" else (7, 17, 1, 17), {"ragged": True, "reset": True}),
        (1, 1 + turn % 2, (2, 2, 17, 7) if cell == "rnn_relu" else (17, 7, 17, 129), {"masked": True, "reset": True}),
        (1, 1, (2, 2, 7, 4), {"clip": CLIP, "reverse": turn % 2 == 1}),
    )
]

# Short of everything, and of one thing at a time; results are empty, states and their gradients pass through.
EMPTY_CASES = [
    Case(cell, layers, directions, dtype, time, batch)
    for cell, (layers, directions, dtype), (time, batch) in itertools.product(
        LAYERS, ((1, 1, "float32"), (2, 2, "float64")), ((0, 7), (7, 0), (0, 0))
    )
]


def small_cases(**fixed: Any) -> list[Case]:
    """Every cell once, at sizes that fill no vector; `fixed` overrides any field."""
    return [
        Case(**{"cell": cell, "time": 6, "batch": 4, "input_size": 3, "hidden_size": 5, **fixed}) for cell in LAYERS
    ]


@dataclasses.dataclass
class Inputs:
    """Everything a forward and a backward pass take. What a row does not read is nan, and must not matter."""

    x: np.ndarray
    state: Any
    lengths: np.ndarray | None
    reset: np.ndarray | None
    dy: np.ndarray
    dstate: Any
    mask: np.ndarray | None = None

    def sequence_options(self) -> dict[str, Any]:
        options = {"lengths": self.lengths, "reset": self.reset}
        return options if self.mask is None else {**options, "mask": self.mask}


def make_layer(case: Case, **options: Any) -> Any:
    """The library's layer for a case, with torch's default initial weights."""
    import fusedrnn

    name, variant = LAYERS[case.cell]
    settings = {"bidirectional": case.directions == 2, "reverse": case.reverse, "clip": case.clip}
    settings |= {"dtype": case.dtype, "seed": case.seed, **variant, **options}
    return getattr(fusedrnn, name)(case.input_size, case.hidden_size, case.num_layers, **settings)


def make_parameters(case: Case, rng: np.random.Generator, *, bias: bool = True) -> dict[str, np.ndarray]:
    """Parameters by the library's names, uniform in ±1/sqrt(H) as torch draws them, without the library."""
    cell = reference.cells[case.cell]
    hidden = case.hidden_size
    rows = cell.gates * hidden
    parameters = {}
    for layer, suffix in itertools.product(range(case.num_layers), ("", "_reverse")[: case.directions]):
        width = case.input_size if layer == 0 else case.directions * hidden
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, width), "weight_hh": (rows, hidden)}
        if bias:
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        shapes |= {name: (count, hidden) for name, count in cell.per_unit.items()}
        for name, shape in shapes.items():
            values = rng.uniform(-1.0, 1.0, shape) / np.sqrt(hidden)
            parameters[f"{name}_l{layer}{suffix}"] = values.astype(case.dtype)
    return parameters


def _lengths(case: Case, rng: np.random.Generator, shortest: int) -> np.ndarray:
    lengths = rng.integers(shortest, case.time + 1, case.batch)
    # Both ends, where there is room for them: the rows least likely to be drawn and most likely to be wrong.
    lengths[: min(2, case.batch)] = (case.time, shortest)[: min(2, case.batch)]
    return rng.permutation(lengths)


def make_inputs(case: Case, rng: np.random.Generator, *, shortest: int = 0) -> Inputs:
    """Standard normal inputs, states and gradients; lengths from `shortest` to T; a third of the links cut by reset.

    Masks skip two fifths of the steps, the first row's all.
    """

    def normal(*shape: int, dtype: str = case.dtype) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    def state() -> Any:
        shape = (case.num_layers * case.directions, case.batch, case.hidden_size)
        return (normal(*shape), normal(*shape, dtype=case.sums)) if case.two_states else normal(*shape)

    x = normal(case.time, case.batch, case.input_size)
    dy = normal(case.time, case.batch, case.directions * case.hidden_size)
    lengths = _lengths(case, rng, shortest) if case.ragged else None
    reset = rng.random((case.time, case.batch)) < 1 / 3 if case.reset else None
    if lengths is not None:
        beyond = np.arange(case.time)[:, None] >= lengths
        x[beyond] = np.nan
        dy[beyond] = np.nan
    inputs = Inputs(x, state(), lengths, reset, dy, state())
    if case.masked:
        inputs.mask = rng.random((case.time, case.batch)) < 3 / 5
        inputs.mask[:, :1] = False
        x[~inputs.mask] = np.nan  # but not dy: y is the state's h there
    return inputs


def distance_to_kinks(case: Case, parameters: dict[str, np.ndarray], inputs: Inputs) -> float:
    """How near a pre-activation comes to where its slope jumps: 0 for relu, the clip where there is one."""
    distance = np.inf
    bounded = reference._bounded

    def watched(z: np.ndarray, clip: float | None) -> Any:
        nonlocal distance
        kinks = [0.0] * (case.cell == "rnn_relu") + ([clip] if clip else [])
        distance = min([distance, *(np.abs(np.abs(z) - kink).min(initial=np.inf) for kink in kinks)])
        return bounded(z, clip)

    with mock.patch.object(reference, "_bounded", watched):
        reference.forward(
            case.cell, parameters, inputs.x, inputs.state, **inputs.sequence_options(), **case.reference_options()
        )
    return distance


def make_clear_inputs(
    case: Case, parameters: dict[str, np.ndarray], rng: np.random.Generator, *, shortest: int = 0
) -> Inputs:
    """Inputs as `make_inputs` draws them; for relu and with a clip redrawn until no unit is within rounding of a kink.

    There the slope jumps by the last bit of z, so that no two summation orders need agree on the gradient.
    """
    while True:
        inputs = make_inputs(case, rng, shortest=shortest)
        if case.cell != "rnn_relu" and not case.clip:
            return inputs
        if distance_to_kinks(case, parameters, inputs) > 8 * case.eps:
            return inputs


def assert_close(actual: np.ndarray, expected: np.ndarray, bound: Any, name: str) -> None:
    """Assert shape, and that every element is within its own bound, an absolute error, of the expected one."""
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape}, expected {expected.shape}"
    error = np.abs(np.asarray(actual, np.float64) - expected)
    bad = np.argwhere(~(error <= bound))
    if len(bad):
        worst = tuple(bad[np.argmax([error[tuple(index)] for index in bad])])
        allowed = np.broadcast_to(bound, error.shape)[worst]
        raise AssertionError(
            f"{name}{[int(k) for k in worst]}: {actual[worst]!r}, expected {expected[worst]!r}; "
            f"error {error[worst]:.3g}, allowed {allowed:.3g}; "
            f"{len(bad)} of {error.size} elements are beyond their bounds"
        )

"""The one list of cases, by named table, with what a case costs in floating-point operations and in weights read.

Imports nothing heavy: the command line reads it before the number of threads stands in the environment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

GATES = {
    "rnn_tanh": 1,
    "rnn_relu": 1,
    "lstm": 4,
    "lstm_peephole": 4,
    "lstm_coupled": 3,
    "lstm_peephole_coupled": 3,
    "gru": 3,
    "gru_reset_before": 3,
}
"""Gate blocks of each cell: the rows of a weight matrix are that many times the hidden size."""

NO_CELL = "none"
"""The cell of a case that has none: it is a function of arrays, whose module says what the sizes are."""

PEEPHOLES = {"lstm_peephole": 3, "lstm_peephole_coupled": 2}
"""Rows of the peephole array, for the cells that have one."""

SUMS = {"float16": "float32", "bfloat16": "float32"}
"""In what narrow numbers are added up."""

STATES = {cell: ("h", "c") if "lstm" in cell else ("h",) for cell in GATES}
"""Names of the arrays that are each cell's state."""

ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True)
class Case:
    """One shape of one cell. `table` decides what is done with it: see `TABLES`.

    `training`: whether one run is a training step; otherwise it is an inference call. `variant` means what the table
    says, such as the instruction set or the quantity compared. `precision` is the layer's option of that name, and
    `ragged` whether the rows end at `lengths`.
    """

    table: str
    cell: str
    batch: int
    steps: int
    inputs: int
    hidden: int
    training: bool
    dtype: str = "float32"
    directions: int = 1
    layers: int = 1
    variant: str = ""
    precision: str = "ieee"
    ragged: bool = False

    @property
    def device(self) -> str:
        """Where the case is run."""
        return TABLES[self.table].device

    @property
    def arithmetic(self) -> str:
        """The numbers' type, "tf32" where products of float32 numbers round them."""
        return self.dtype if self.precision == "ieee" else self.precision

    @property
    def job(self) -> str:
        """What is run."""
        return "train" if self.training else "infer"

    @property
    def name(self) -> str:
        """Unique within the list: what ``--filter`` searches and pytest shows."""
        sizes = f"B{self.batch}-T{self.steps}-I{self.inputs}-H{self.hidden}"
        stack = f"-L{self.layers}-D{self.directions}" if (self.layers, self.directions) != (1, 1) else ""
        job = "" if self.table.endswith(self.job) else f"-{self.job}"
        variant = f"-{self.variant}" if self.variant else ""
        return f"{self.table}/{self.cell}/{sizes}{stack}-{self.arithmetic}{job}{variant}" + "-ragged" * self.ragged

    @property
    def lengths(self) -> list[int]:
        """Steps of each row: all, or where the case is ragged from all to one in even distances, half of all steps."""
        gaps = max(self.batch - 1, 1)
        return [(self.steps * gaps - row * (self.steps - 1) * self.ragged) // gaps for row in range(self.batch)]

    @property
    def gates(self) -> int:
        """Gate blocks of the cell; none where there is no cell."""
        return GATES.get(self.cell, 0)

    @property
    def weights(self) -> int:
        """Elements of all weight matrices."""
        fan_in = [self.inputs] + [self.directions * self.hidden] * (self.layers - 1)
        return sum(self.directions * self.gates * self.hidden * (width + self.hidden) for width in fan_in)

    @property
    def flops(self) -> int:
        """Operations of the matrix products in one run; a training step counts three times its forward pass."""
        return 2 * self.weights * sum(self.lengths) * (3 if self.training else 1)

    @property
    def least_bytes(self) -> int:
        """What must be read and written at least: weights once, x and y once; a training step, three times that."""
        moved = self.weights + self.steps * self.batch * (self.inputs + self.directions * self.hidden)
        return moved * ITEM_BYTES[self.dtype] * (3 if self.training else 1)

    @property
    def recurrent_passes(self) -> int:
        """How often a run goes through W_hh at every step: forward, and transposed in the backward pass."""
        return 2 if self.training else 1

    @property
    def recurrent_bytes(self) -> int:
        """Size of one layer's W_hh in one direction, which every step reads from end to end."""
        return self.gates * self.hidden**2 * ITEM_BYTES[self.dtype]

    @property
    def recurrent_flops(self) -> int:
        """The part of `flops` that is W_hh's, in one layer and direction, and has to be done step by step."""
        return 2 * self.steps * self.batch * self.gates * self.hidden**2 * self.recurrent_passes

    @property
    def quick(self) -> bool:
        """Whether ``--quick`` keeps the case."""
        return (self.batch, self.hidden) in TABLES[self.table].quick


@dataclass(frozen=True)
class Table:
    """A named group of cases measured in the same way.

    `unit` is that of the times printed, and `quick` lists the (batch, hidden size) that ``--quick`` keeps. Tables of
    `device` "cuda" are those of ``python -m bench gpu``.
    """

    title: str
    quick: frozenset[tuple[int, int]] = frozenset()
    unit: str = "ms"
    device: str = "cpu"


def quick(*sizes: tuple[int, int]) -> frozenset[tuple[int, int]]:
    """Batch and hidden size of the cases that ``--quick`` keeps."""
    return frozenset(sizes)


PER_STEP = "us a step"
GPU_STEP = "gpu-step"

TABLES = {
    "train": Table("training step: forward, then backward to the input and every weight", quick((1, 64), (32, 256))),
    "infer": Table("inference: one whole sequence", quick((1, 64), (32, 256))),
    "stack": Table("two layers, both directions", quick((8, 256))),
    "odd": Table(
        "odd sizes beside the next aligned ones: H up to a multiple of 32, B up to a multiple of 4", quick((3, 256))
    ),
    "stream": Table("one step at batch 1, called from Python", quick((1, 16), (1, 64)), unit="us"),
    "frozen": Table("short calls of a frozen layer", quick((1, 64), (1, 256)), unit="us"),
    "ragged": Table("lengths uniform in 1..T, in any order, beside whole sequences", quick((32, 256))),
    "resets": Table("3 % of the steps begin an episode, beside what torch's users do", quick((16, 64))),
    "torch": Table("fusedrnn.torch beside the native call and torch's own modules", quick((1, 64), (32, 256))),
    "accelerate": Table("torch's own modules before and after accelerate()", quick((1, 64)), unit="us"),
    "memory": Table("what a training step keeps, with and without recompute", quick((8, 64))),
    "threads": Table("threads and processes", quick((32, 256))),
    "isa": Table("other instruction sets and float64, beside the peak of each", quick((32, 256))),
    "int8": Table("a step with weights of 8 bits at batch 1", quick((1, 64), (1, 256)), unit="us"),
    "bfloat16": Table("bfloat16 beside our float32 and torch's bfloat16", quick((1, 256), (32, 256))),
    "first": Table("the first call in a process beside later ones, packing included", quick((1, 64), (32, 256))),
    "denormal": Table("denormal inputs, weights or states beside ordinary ones", quick((32, 64))),
    "accuracy": Table("relative error against the float64 reference", quick((8, 64))),
    "functions": Table("what stands above the cells, beside what others run", quick((1, 64), (7, 17))),
    "gpu-train": Table("training step on a CUDA device", unit=PER_STEP, device="cuda"),
    "gpu-infer": Table("inference on a CUDA device: one whole sequence", unit=PER_STEP, device="cuda"),
    GPU_STEP: Table("one step of a stepper on a CUDA device", unit=PER_STEP, device="cuda"),
}
CPU_TABLES = [name for name, table in TABLES.items() if table.device == "cpu"]

TRAINED = ("lstm", "gru", "rnn_tanh", "gru_reset_before", "lstm_peephole")
INFERRED = (*TRAINED, "lstm_coupled")
PLAIN = ("lstm", "gru", "rnn_tanh")
GATED = ("lstm", "gru")
DRAWN_TABLES = ("train", "infer")
"""The tables that a plot shows, for the cells of `PLAIN`."""

HIDDEN = (64, 256, 512, 1024)
BOTH = (True, False)

ODD_SIZES = ((32, 17), (32, 100), (32, 129), (32, 300), (1, 300), (3, 256), (5, 256), (33, 256), (3, 17), (33, 129))
RESET_SIZES = ((16, 64), (32, 128), (32, 256), (128, 128), (128, 256))
BFLOAT16_SIZES = (
    *((1, 64), (1, 256), (1, 512), (8, 256), (8, 512), (32, 256), (64, 512), (128, 1024), (128, 64)),
    *((7, 17), (17, 129), (33, 300)),
)
ISA_VARIANTS = (("x86-64-v3", "float32"), ("x86-64-v3", "float64"), ("", "float64"))
BESIDE_OTHERS = "beside-others"
BESIDE_OTHERS_CASES = (
    (1, [False], ((1, 256), (1, 512))),
    (14, BOTH, ((1, 256),)),
    (100, BOTH, ((1, 64), (1, 256), (8, 256), (32, 256))),
    (20, [False], ((1, 1024),)),
)
"""Steps, jobs and (batch, hidden size): short calls and long ones."""
DTYPE_TABLES = ("train", "infer", "stack", "accuracy")
"""Tables of which `--dtype` runs the cases in another dtype."""
ACCURACY_QUANTITIES = ("y", "state", "dx", "dweight_ih", "dweight_hh", "dbias")
LONG_STEPS = 200_000

MODES = {
    "bf16": ("bfloat16", "ieee"),
    "fp16": ("float16", "ieee"),
    "tf32": ("float32", "tf32"),
    "fp32": ("float32", "ieee"),
}
"""dtype and precision of a row on a CUDA device."""
GPU_SWEEP = (
    *((True, "bf16"), (True, "tf32"), (True, "fp32"), (False, "bf16")),
    *((True, "fp16"), (False, "tf32"), (False, "fp16"), (False, "fp32")),
)
"""Whether to train, and the mode; the most important first."""

CTC_SIZES = ((500, 32, 64, 100), (1000, 16, 32, 200), (30, 256, 97, 10), (250, 16, 5000, 40), (30, 7, 129, 17))
TRANSDUCER_SIZES = ((400, 16, 1000, 60), (100, 4, 129, 20), (30, 7, 129, 17))
"""Frames, batch, classes, labels of a row."""
BEAM_SIZES = ((500, 1, 32, 100), (30, 7, 129, 17))
BEAM_WIDTHS = (10, 100)
VISION_SIZES = {
    "affine_grid": ((1, 64, 3, 128), (1, 7, 3, 17)),
    "grid_sample": ((1, 64, 3, 128), (1, 7, 1, 28), (1, 7, 3, 129)),
    "gaussian_read": ((12, 128, 1, 28), (5, 7, 3, 17)),
}
"""Side of what is read, images, channels, side of an image."""

CELL_STEPS = "steps of a cell"
ACCELERATE_FLOPS = 2e10
"""The largest call: from there on arithmetic is all that counts, which the tables of training and inference tell."""


def sequence_length(batch: int, hidden: int) -> int:
    """100 steps; fewer where a step alone takes milliseconds: the largest cases take most of a run's time."""
    if batch * hidden**2 < 2**25:
        return 100
    return 50 if batch * hidden**2 < 2**27 else 25


def grid(
    table: str,
    cells: Iterable[str],
    sizes: Iterable[tuple[int, int]],
    jobs: Iterable[bool],
    *,
    steps: int | None = None,
    dtype: str = "float32",
    directions: int = 1,
    layers: int = 1,
    variant: str = "",
) -> Iterator[Case]:
    """Every combination of cell, (batch, hidden size) and job, the input as wide as the hidden state."""
    for cell, training, (batch, hidden) in product(cells, jobs, sizes):
        length = steps or sequence_length(batch, hidden)
        yield Case(table, cell, batch, length, hidden, hidden, training, dtype, directions, layers, variant)


def without_cell(variant: str, sizes: Iterable[tuple[int, int, int, int]], *, training: bool = True) -> Iterator[Case]:
    """Cases of a function of arrays, by steps, batch, inputs and hidden size."""
    for steps, batch, inputs, hidden in sizes:
        yield Case("functions", NO_CELL, batch, steps, inputs, hidden, training, variant=variant)


def across(batches: Iterable[int], hiddens: Iterable[int]) -> list[tuple[int, int]]:
    """(batch, hidden size) for all of both, the hidden size outermost."""
    return [(batch, hidden) for hidden, batch in product(hiddens, batches)]


def in_dtype(cases: Iterable[Case], dtype: str) -> list[Case]:
    """The cases of `DTYPE_TABLES` in another dtype, each once."""
    return list(dict.fromkeys(replace(case, dtype=dtype) for case in cases if case.table in DTYPE_TABLES))


def aligned(case: Case) -> Case:
    """The case of the next aligned size: hidden size up to a multiple of 32, batch up to a multiple of 4."""
    hidden = -(-case.hidden // 32) * 32
    batch = case.batch if case.batch == 1 else -(-case.batch // 4) * 4
    return replace(case, batch=batch, inputs=hidden, hidden=hidden)


def gpu_case(table: str, cell: str, mode: str, size: tuple[int, int], steps: int, **options: Any) -> Case:
    """A case on a CUDA device; `size` is batch and hidden size, the options are fields of the case."""
    (batch, hidden), (dtype, precision) = size, MODES[mode]
    training = table == "gpu-train"
    return Case(table, cell, batch, steps, hidden, hidden, training, dtype, precision=precision, **options)


def gpu_cases() -> Iterator[Case]:
    """All on a CUDA device, the most important first; some come twice."""
    # What published kernels are compared at; then the cases beside the plain one, at that shape.
    for mode in MODES:
        yield gpu_case("gpu-infer", "lstm", mode, (16, 768), 1024)
        yield gpu_case("gpu-train", "lstm", mode, (16, 768), 1024)
    for cell, mode in product(GATED, ("bf16", "tf32")):
        for layers, directions, ragged in ((2, 1, False), (1, 2, False), (1, 1, True), (2, 2, True)):
            stack = {"layers": layers, "directions": directions}
            yield gpu_case("gpu-train", cell, mode, (64, 768), 128, ragged=ragged, **stack)
    for cell, mode, hidden in product(GATED, ("bf16", "fp32"), (256, 1024)):
        yield gpu_case(GPU_STEP, cell, mode, (1, hidden), 1)
    for steps, (training, mode) in product((128, 1024), GPU_SWEEP):
        for size, cell in product(across((16, 64, 1, 256), (768, 256, 1024, 512, 128, 2048)), GATED):
            yield gpu_case("gpu-train" if training else "gpu-infer", cell, mode, size, steps)


CASES: tuple[Case, ...] = (
    *grid("train", TRAINED, across((1, 8, 32, 64, 128), HIDDEN), [True]),
    *grid("infer", INFERRED, across((1, 8, 32, 64), HIDDEN), [False]),
    *grid("stack", GATED, across((8, 32), (256,)), BOTH, directions=2, layers=2),
    *grid("odd", PLAIN, ODD_SIZES, BOTH),
    *grid("stream", GATED, across((1,), (16, 64, 256)), [False]),
    *(
        case
        for t in (1, 2, 5, 30)
        for case in grid("frozen", ["lstm"], across((1,), (256, 512)), [False], steps=t, directions=2)
    ),
    *(
        case
        for steps in (1, 5, 30)
        for case in grid("frozen", PLAIN, across((1, 8, 32), (17, 64, 256, 1024)), [False], steps=steps)
    ),
    *grid("ragged", PLAIN, across((32,), (256, 512)), BOTH),
    *grid("resets", GATED, RESET_SIZES, [True], steps=128),
    *(
        case
        for variant in ("padded", "packed")
        for case in grid("torch", PLAIN, ((1, 64), (8, 256), (32, 256), (64, 512)), BOTH, variant=variant)
    ),
    *grid("torch", PLAIN, ((1, 64), (1, 256), (8, 128), (32, 256)), BOTH, steps=20, variant="cells"),
    *(
        case
        for kind, lengths in (("a layer", (1, 2, 20, 100)), (CELL_STEPS, (1, 20)))
        for cell, mode, steps in product(PLAIN, ("", "no_grad", "inference_mode"), lengths)
        for case in grid(
            "accelerate",
            [cell],
            across((1, 7, 32, 256), (16, 64, 129, 256, 1024)),
            [not mode],
            steps=steps,
            variant=f"{kind}, {mode}" if mode else kind,
        )
        if case.flops < ACCELERATE_FLOPS
    ),
    *grid("memory", GATES, across((8,), (64,)), [True], steps=256),
    *grid("memory", PLAIN, across((32,), (256,)), [True], steps=256),
    *grid("memory", ["lstm"], across((1,), (256,)), [True], steps=LONG_STEPS),
    *grid("threads", GATED, ((1, 64), (1, 512), (32, 256), (64, 512)), BOTH),
    *(
        case
        for steps, jobs, sizes in BESIDE_OTHERS_CASES
        for case in grid("threads", ["lstm"], sizes, jobs, steps=steps, variant=BESIDE_OTHERS)
    ),
    *(
        case
        for variant, dtype in ISA_VARIANTS
        for case in grid("isa", GATED, ((32, 256), (64, 512)), BOTH, dtype=dtype, variant=variant)
    ),
    *grid("int8", GATED, across((1,), HIDDEN), [False], steps=100),
    *grid("bfloat16", PLAIN, BFLOAT16_SIZES, BOTH, dtype="bfloat16"),
    *grid("first", PLAIN, ((1, 64), (32, 256)), BOTH),
    *grid("denormal", PLAIN, across((1, 32), (64, 256)), BOTH),
    *(
        case
        for steps, cell, quantity in product((10, 100, 1000), PLAIN, ACCURACY_QUANTITIES)
        for case in grid("accuracy", [cell], ((8, 64),), [True], steps=steps, variant=quantity)
    ),
    *grid("functions", GATED, ((32, 256), (32, 64), (1, 256), (1, 64)), [True], steps=50, variant="attention"),
    *without_cell("ctc", CTC_SIZES),
    *without_cell("transducer", TRANSDUCER_SIZES),
    *(
        case
        for training in BOTH
        for name, sizes in VISION_SIZES.items()
        for case in without_cell(f"vision, {name}", sizes, training=training)
    ),
    *(case for width in BEAM_WIDTHS for case in without_cell(f"beam, {width}", BEAM_SIZES, training=False)),
    *dict.fromkeys(gpu_cases()),
)
CPU_CASES = tuple(case for case in CASES if case.device == "cpu")
GPU_CASES = tuple(case for case in CASES if case.device == "cuda")

"""The one list of cases, by named table, with what a case costs in floating-point operations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

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

PEEPHOLES = {"lstm_peephole": 3, "lstm_peephole_coupled": 2}
"""Rows of the peephole array, for the cells that have one."""


@dataclass(frozen=True)
class Case:
    """One shape of one cell. `table` decides what is done with it: see `TABLES`."""

    table: str
    cell: str
    batch: int
    steps: int
    inputs: int
    hidden: int
    dtype: str = "float32"
    directions: int = 1
    layers: int = 1

    @property
    def name(self) -> str:
        """Unique within the list: what ``--filter`` searches and pytest shows."""
        sizes = f"B{self.batch}-T{self.steps}-I{self.inputs}-H{self.hidden}"
        stack = f"-L{self.layers}-D{self.directions}" if (self.layers, self.directions) != (1, 1) else ""
        return f"{self.table}/{self.cell}/{sizes}{stack}-{self.dtype}"

    @property
    def training(self) -> bool:
        """Whether one run is a training step; otherwise it is an inference call."""
        return TABLES[self.table].training

    @property
    def flops(self) -> int:
        """Operations of the matrix products in one run; a training step counts three times its forward pass."""
        gate_rows = GATES[self.cell] * self.hidden
        fan_in = [self.inputs] + [self.directions * self.hidden] * (self.layers - 1)
        products = sum((width + self.hidden) * gate_rows for width in fan_in)
        forward = 2 * self.steps * self.batch * self.directions * products
        return 3 * forward if self.training else forward

    @property
    def quick(self) -> bool:
        """Whether ``--quick`` keeps the case: the smallest and the commonest size of each cell."""
        plain = (self.dtype, self.layers, self.directions) == ("float32", 1, 1)
        return plain and (self.batch, self.hidden) in {(1, 64), (32, 256)}


@dataclass(frozen=True)
class Table:
    """A named group of cases measured in the same way."""

    title: str
    training: bool


TABLES = {
    "train": Table("training step: forward, then backward to the input and every weight", training=True),
    "infer": Table("inference: one whole sequence", training=False),
}

TRAINED = ("lstm", "gru", "rnn_tanh", "gru_reset_before", "lstm_peephole")
INFERRED = (*TRAINED, "lstm_coupled")
PLAIN = ("lstm", "gru", "rnn_tanh")
HIDDEN = (64, 256, 512, 1024)
ODD_BATCH = (1, 3, 5, 33)
ODD_HIDDEN = (17, 100, 129, 300)


def sequence_length(batch: int, hidden: int) -> int:
    """100 steps; 50 where a step alone takes tens of milliseconds."""
    return 50 if batch >= 64 and hidden >= 1024 else 100


def grid(
    table: str,
    cells: Iterable[str],
    batches: Iterable[int],
    hiddens: Iterable[int],
    *,
    dtype: str = "float32",
    directions: int = 1,
    layers: int = 1,
) -> Iterator[Case]:
    """Every combination of cell, batch and hidden size, the input as wide as the hidden state."""
    for cell, hidden, batch in product(cells, hiddens, batches):
        steps = sequence_length(batch, hidden)
        yield Case(table, cell, batch, steps, hidden, hidden, dtype, directions, layers)


CASES: tuple[Case, ...] = (
    *grid("train", TRAINED, (1, 8, 32, 64, 128), HIDDEN),
    *grid("train", PLAIN, ODD_BATCH, ODD_HIDDEN),
    *grid("train", ("lstm", "gru"), (8, 32), (256,), directions=2, layers=2),
    *grid("train", PLAIN, (32,), (256, 512), dtype="float64"),
    *grid("infer", INFERRED, (1, 8, 32, 64), HIDDEN),
    *grid("infer", PLAIN, ODD_BATCH, ODD_HIDDEN),
    *grid("infer", ("lstm", "gru"), (8, 32), (256,), directions=2, layers=2),
    *grid("infer", PLAIN, (32,), (256, 512), dtype="float64"),
)

"""How each table is measured, and which figures it shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from bench import (
    accelerate,
    accuracy,
    adapter,
    compare,
    denormal,
    first,
    frozen,
    functions,
    int8,
    isa,
    memory,
    narrow,
    odd,
    ragged,
    resets,
    stream,
    threads,
)
from bench.cases import GPU_STEP, Case
from bench.gpu import table as gpu
from bench.limits import Limits
from bench.peers import FUSEDRNN
from bench.runner import Figures, Row, Run


class Method(NamedTuple):
    """How a table is measured.

    measure(case, run) gives the row; figures(row, limits, threads) what follows from it and the machine's limits;
    summary(rows), where there is one, the lines of a table over all rows.
    """

    measure: Callable[[Case, Run], Row]
    figures: Callable[[Row, Limits, int], Figures]
    summary: Callable[[Sequence[Row]], list[list[str]]] | None = None


METHODS: dict[str, Method] = {
    "train": Method(compare.measure, compare.figures),
    "infer": Method(compare.measure, compare.figures),
    "stack": Method(compare.measure, compare.figures),
    "odd": Method(odd.measure, odd.figures),
    "stream": Method(stream.measure, stream.figures),
    "frozen": Method(frozen.measure, frozen.figures),
    "ragged": Method(ragged.measure, ragged.figures),
    "resets": Method(resets.measure, resets.figures),
    "torch": Method(adapter.measure, adapter.figures),
    "accelerate": Method(accelerate.measure, accelerate.figures, accelerate.summary),
    "memory": Method(memory.measure, memory.figures),
    "threads": Method(threads.measure, threads.figures),
    "isa": Method(isa.measure, isa.figures),
    "int8": Method(int8.measure, int8.figures),
    "bfloat16": Method(narrow.measure, narrow.figures),
    "first": Method(first.measure, first.figures),
    "denormal": Method(denormal.measure, denormal.figures),
    "accuracy": Method(accuracy.measure, accuracy.figures),
    "functions": Method(functions.measure, functions.figures),
    "gpu-train": Method(compare.measure, gpu.figures),
    "gpu-infer": Method(compare.measure, gpu.figures),
    GPU_STEP: Method(compare.measure, gpu.figures),
}


def measure(case: Case, run: Run) -> Row:
    """The row of a case; what goes wrong is a line of the report, not the end of the run."""
    try:
        return METHODS[case.table].measure(case, run)
    except Exception as error:
        return Row(case, errors={FUSEDRNN.name: f"{type(error).__name__}: {error}"})


def figures(row: Row, limits: Limits, threads: int) -> Figures:
    """The figures of a row, None where one could not be had; none at all of a row with nothing in it."""
    return METHODS[row.case.table].figures(row, limits, threads) if row.measured or row.numbers else {}

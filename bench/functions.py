"""The table of what stands above the cells: a module for each function, which a case names by its variant."""

from __future__ import annotations

from types import ModuleType

from bench import attention, beam, ctc, transducer, vision
from bench.cases import Case
from bench.limits import Limits
from bench.runner import Figures, Row, Run

FUNCTIONS: dict[str, ModuleType] = {
    "attention": attention,
    "beam": beam,
    "ctc": ctc,
    "transducer": transducer,
    "vision": vision,
}
"""By the first word of a variant: each has `measure` and `figures`, as `bench.tables.Method` wants them."""


def module_of(case: Case) -> ModuleType:
    """The function's own."""
    return FUNCTIONS[case.variant.partition(",")[0]]


def measure(case: Case, run: Run) -> Row:
    """As the function's own module does."""
    row: Row = module_of(case).measure(case, run)
    return row


def figures(row: Row, limits: Limits, threads: int) -> Figures:
    """The function's own."""
    found: Figures = module_of(row.case).figures(row, limits, threads)
    return found

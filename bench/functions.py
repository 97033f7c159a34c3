"""The table of what stands above the cells: a module for each function, which a case names by its variant."""

from __future__ import annotations

from types import ModuleType

from bench import attention
from bench.cases import Case
from bench.limits import Limits
from bench.runner import Figures, Row, Run

FUNCTIONS: dict[str, ModuleType] = {"attention": attention}
"""By variant: each has `measure` and `figures`, as `bench.tables.Method` wants them."""


def measure(case: Case, run: Run) -> Row:
    """As the function's own module does."""
    row: Row = FUNCTIONS[case.variant].measure(case, run)
    return row


def figures(row: Row, limits: Limits, threads: int) -> Figures:
    """The function's own."""
    found: Figures = FUNCTIONS[row.case.variant].figures(row, limits, threads)
    return found

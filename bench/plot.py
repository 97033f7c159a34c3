"""Rooflines: speed against batch size, which is the arithmetic intensity of the recurrent product."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, ScalarFormatter

from bench.cases import DRAWN_TABLES, PLAIN, Case
from bench.limits import Limits
from bench.runner import Row
from bench.session import Results

PREFERRED_HIDDEN = (256, 512, 1024, 64)
"""One hidden size is drawn, the first of these that was measured."""


class Style(NamedTuple):
    """How a line looks: colours of Okabe and Ito, which the colour-blind tell apart, and markers besides."""

    color: str
    marker: str


STYLES = {
    "fusedrnn": Style("#D55E00", "o"),
    "torch": Style("#0072B2", "s"),
    "onnxruntime": Style("#009E73", "^"),
    "jax": Style("#CC79A7", "D"),
    "numpy": Style("#666666", "v"),
}
TITLES = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "Elman", "train": "training step", "infer": "inference"}


def drawn(case: Case) -> bool:
    """Whether the case is one of those that are drawn, if its hidden size is chosen."""
    return case.table in DRAWN_TABLES and case.cell in PLAIN


def choose_hidden(rows: Iterable[Row]) -> int | None:
    """The hidden size to draw, or None where nothing was measured that is drawn."""
    present = {row.case.hidden for row in rows}
    return next((hidden for hidden in PREFERRED_HIDDEN if hidden in present), None)


def draw_limits(axes: Any, rows: list[Row], limits: Limits, threads: int) -> None:
    """The FMA peak as a level line, and below it what reading W_hh in every step leaves of it."""
    peak = limits.peak("float32", threads)
    if peak is not None:
        axes.axhline(peak, color="black", linewidth=1, linestyle="--", label="FMA peak")
    batches = range(min(row.case.batch for row in rows), max(row.case.batch for row in rows) + 1)
    cases = [replace(rows[0].case, batch=batch) for batch in batches]
    bounds = [limits.bound(case, threads) for case in cases]
    speeds = [case.flops / bound / 1e9 for case, bound in zip(cases, bounds, strict=True) if bound is not None]
    if speeds:
        axes.plot(batches, speeds, "k:", linewidth=1.4, label="bound with W_hh read every step")


def draw_panel(axes: Any, rows: list[Row], limits: Limits, threads: int) -> None:
    """One cell in one table: a line a peer."""
    draw_limits(axes, rows, limits, threads)
    for name, style in STYLES.items():
        points = sorted((row.case.batch, row.gflops(name)) for row in rows if name in row.measured)
        if points:
            ours = name == "fusedrnn"
            axes.plot(
                *zip(*points, strict=True),
                label=name,
                color=style.color,
                marker=style.marker,
                markersize=6 if ours else 5,
                linewidth=2.4 if ours else 1.4,
                zorder=3 if ours else 2,
            )
    batches = sorted({row.case.batch for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.minorticks_off()
    axes.set_xlim(batches[0] / 1.3, batches[-1] * 1.3)
    axes.grid(True, which="major", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


def label_levels(axes: Any) -> None:
    """Plain numbers at 1, 2 and 5 of each decade: a logarithmic axis names only its powers of ten."""
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())


def draw(path: Path, results: Results, threads: int) -> None:
    """Draw the cases of `DRAWN_TABLES` and `PLAIN`, a row of panels a table and a column a cell."""
    rows = [row for row in results.rows if drawn(row.case) and row.measured]
    hidden = choose_hidden(rows)
    rows = [row for row in rows if row.case.hidden == hidden]
    tables = [name for name in DRAWN_TABLES if any(row.case.table == name for row in rows)]
    cells = [cell for cell in PLAIN if any(row.case.cell == cell for row in rows)]
    figure = Figure(figsize=(3.6 * len(cells) + 0.4, 3.0 * len(tables) + 0.9), dpi=160, layout="constrained")
    panels = figure.subplots(len(tables), len(cells), sharex="row", sharey=True, squeeze=False)
    entries: dict[str, Any] = {}
    for across, table in zip(panels, tables, strict=True):
        for axes, cell in zip(across, cells, strict=True):
            chosen = [row for row in rows if (row.case.table, row.case.cell) == (table, cell)]
            axes.set_title(f"{TITLES[cell]}, {TITLES[table]}", fontsize=10)
            if chosen:
                draw_panel(axes, chosen, results.limits, threads)
            label_levels(axes)
            entries |= {label: line for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        across[0].set_ylabel("GFLOP/s")
    for axes in panels[-1]:
        axes.set_xlabel("batch size B")
    steps = sorted({row.case.steps for row in rows})
    figure.suptitle(
        f"I = H = {hidden}, T = {', '.join(map(str, steps))}, float32, {threads} threads", fontsize=10, color="#444444"
    )
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=len(entries), frameon=False, fontsize=9
    )
    figure.savefig(path)

"""Results as a plain table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bench.cases import TABLES, Case
from bench.peak import PeakMeter
from bench.runner import Measurement, Row

OURS = "fusedrnn"
FORMAT = 1
"""Version of the JSON's structure."""


def gflops(case: Case, seconds: float) -> float:
    """Billions of operations a second, by `Case.flops`."""
    return case.flops / seconds / 1e9


def fraction_of_peak(case: Case, seconds: float, peak: PeakMeter) -> float | None:
    """Part of the measured FMA peak of the case's dtype."""
    best = peak.best(case.dtype)
    return None if best is None else gflops(case, seconds) / best


def peak_warnings(rows: Sequence[Row], peak: PeakMeter) -> list[str]:
    """A warning for each dtype in which some peer was faster than the peak: then the peak is wrong."""
    warnings = []
    for dtype, readings in peak.readings.items():
        fastest = max(
            (
                gflops(row.case, min(measurement.samples))
                for row in rows
                if row.case.dtype == dtype
                for measurement in row.measured.values()
                if measurement.samples
            ),
            default=0.0,
        )
        if fastest > max(readings):
            warnings.append(
                f"{dtype} ran at {fastest:.0f} GFLOP/s, more than the measured FMA peak of {max(readings):.0f}: "
                "the fractions of peak of this run mean nothing"
            )
    return warnings


def ratio(row: Row, peer: str) -> float | None:
    """How many times as long as we the peer takes, by the medians."""
    if OURS not in row.measured or peer not in row.measured:
        return None
    return row.measured[peer].quartiles()[1] / row.measured[OURS].quartiles()[1]


def spread(measurement: Measurement) -> float:
    """Distance between the quartiles as a part of the median."""
    first, median, third = measurement.quartiles()
    return (third - first) / median


def short_name(case: Case) -> str:
    """The case's name without what the heading says already."""
    return case.name.removeprefix(case.table + "/").removesuffix("-float32")


def headings(peers: Sequence[str]) -> list[str]:
    """Column names: the peer's own stands over its first column."""
    columns = ["case"]
    for peer in peers:
        columns += [peer + " ms", "spread", "GFLOP/s"]
        columns += ["of peak"] if peer == OURS else ["ratio"] if OURS in peers else []
    return columns


def line(row: Row, peers: Sequence[str], peak: PeakMeter) -> list[str]:
    """The columns of one case; "-" where a peer can't run it."""
    columns = [short_name(row.case)]
    for peer in peers:
        last = [peer] if OURS in peers else []
        measurement = row.measured.get(peer)
        if measurement is None or not measurement.samples:
            columns += ["error" if peer in row.errors else "-", "", ""] + [""] * len(last)
            continue
        median = measurement.quartiles()[1]
        columns += [f"{median * 1e3:.4g}", f"{spread(measurement):.0%}", f"{gflops(row.case, median):.4g}"]
        if peer == OURS:
            part = fraction_of_peak(row.case, median, peak)
            columns.append("-" if part is None else f"{part:.0%}")
        elif last:
            times = ratio(row, peer)
            columns.append("-" if times is None else f"{times:.2f}")
    return columns


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """The lines with their columns aligned: the first to the left, numbers to the right."""
    widths = [max(len(entry) for entry in column) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            entry.rjust(width) if place else entry.ljust(width)
            for place, (entry, width) in enumerate(zip(entries, widths, strict=True))
        ).rstrip()
        for entries in lines
    )


def peak_text(peak: PeakMeter) -> str:
    """The FMA peak of each dtype measured."""
    parts = [
        f"{dtype} {max(readings):.0f} GFLOP/s (best of {len(readings)} readings, lowest {min(readings):.0f})"
        for dtype, readings in peak.readings.items()
    ]
    return ("FMA peak: " + ", ".join(parts)) if parts else "FMA peak: not measured, fusedrnn is not installed"


def tables_text(rows: Sequence[Row], peers: Sequence[str], peak: PeakMeter, threads: int) -> str:
    """Every table that has rows, with what its columns mean and the errors below."""
    parts = [f"{peak_text(peak)}; {threads} thread{'s' if threads > 1 else ''}"]
    for name, table in TABLES.items():
        chosen = [row for row in rows if row.case.table == name]
        if chosen:
            shown = [peer for peer in peers if any(peer in row.measured or peer in row.errors for row in chosen)]
            lines = [headings(shown), *(line(row, shown, peak) for row in chosen)]
            parts.append(f"{name}: {table.title}\n{aligned(lines)}")
    parts.append(
        "ms: median of the rounds; spread: distance of the quartiles over the median; "
        "ratio: the peer's time over fusedrnn's"
    )
    errors = [f"ERROR {row.case.name}, {peer}: {text}" for row in rows for peer, text in row.errors.items()]
    return "\n\n".join(parts + (["\n".join(errors)] if errors else []))


def measurement_data(row: Row, peer: str, peak: PeakMeter) -> dict[str, object]:
    """One peer's figures in one case."""
    measurement = row.measured[peer]
    first, median, third = measurement.quartiles()
    return {
        "seconds": {"median": median, "first_quartile": first, "third_quartile": third},
        "samples": measurement.samples,
        "calls_per_sample": measurement.calls,
        "gflops": gflops(row.case, median),
        "fraction_of_peak": fraction_of_peak(row.case, median, peak),
        "time_over_ours": ratio(row, peer),
    }


def row_data(row: Row, peak: PeakMeter) -> dict[str, object]:
    """One case."""
    case = row.case
    return {
        "name": case.name,
        "table": case.table,
        "training": case.training,
        "cell": case.cell,
        "B": case.batch,
        "T": case.steps,
        "I": case.inputs,
        "H": case.hidden,
        "dtype": case.dtype,
        "directions": case.directions,
        "layers": case.layers,
        "flops": case.flops,
        "processor_share_of_others": row.others,
        "peers": {peer: measurement_data(row, peer, peak) for peer in row.measured if row.measured[peer].samples},
        "refused": row.refused,
        "errors": row.errors,
    }


def write_json(path: Path, facts: dict[str, object], rows: Sequence[Row], peak: PeakMeter) -> None:
    """Write all there is to know about the run."""
    best = {dtype: {"gflops": max(readings), "readings": readings} for dtype, readings in peak.readings.items()}
    data = {"format": FORMAT, **facts, "fma_peak": best, "rows": [row_data(row, peak) for row in rows]}
    path.write_text(json.dumps(data, indent=1) + "\n")

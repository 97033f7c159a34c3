"""Results as plain tables, as Markdown and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

from bench import environment, tables
from bench.cases import PER_STEP, TABLES, Case
from bench.limits import Limits
from bench.runner import Figure, Figures, Measurement, Row
from bench.session import Results

FORMAT = 2
"""Version of the JSON's structure."""

UNITS = {"ms": 1e3, "us": 1e6, PER_STEP: 1e6}

CASE_KEYS = {"batch": "B", "steps": "T", "inputs": "I", "hidden": "H"}
"""Fields of a case that the JSON has under other names."""

Fields = dict[str, str]


@dataclass(frozen=True)
class Section:
    """One table, ready to be laid out: what all its cases share stands in the title."""

    name: str
    title: str
    lines: list[list[str]]


def spread(measurement: Measurement) -> float:
    """Distance between the quartiles as a part of the median."""
    first, median, third = measurement.quartiles()
    return (third - first) / median


def fields(case: Case) -> Fields:
    """What tells a case from the others of its table."""
    return {
        "cell": case.cell,
        "B": str(case.batch),
        "T": str(case.steps),
        "I = H": str(case.hidden) if case.inputs == case.hidden else "",
        "I, H": "" if case.inputs == case.hidden else f"{case.inputs}, {case.hidden}",
        "stack": "" if (case.layers, case.directions) == (1, 1) else f"L {case.layers}, D {case.directions}",
        "dtype": case.arithmetic,
        "lengths": "ragged" if case.ragged else "",
        "job": "" if case.table.endswith(case.job) else case.job,
        "of": case.variant,
    }


def in_order(names: Iterable[str]) -> list[str]:
    """Each name once, where it came first."""
    return list(dict.fromkeys(names))


def time_text(row: Row, name: str, unit: str) -> str:
    """Median and spread, "-" where the contestant can't run the case."""
    if name not in row.measured:
        return "error" if name in row.errors else "-"
    measurement = row.measured[name]
    scale = UNITS[unit] / (row.case.steps if unit == PER_STEP else 1)
    return f"{measurement.median * scale:.4g} ({spread(measurement):.0%})"


def figure_text(figures: Figures, name: str) -> str:
    """The figure as its form says, "-" where there is none."""
    value, form = figures.get(name, Figure(None))
    return "-" if value is None else format(value, form)


def section(name: str, rows: Sequence[Row], results_figures: Sequence[Figures]) -> Section:
    """The table of that name."""
    table, described = TABLES[name], [fields(row.case) for row in rows]
    varying = [field for field in described[0] if field == "cell" or len({each[field] for each in described}) > 1]
    shared = [f"{key} {value}" for key, value in described[0].items() if key not in varying and value]
    timed = in_order(name for row in rows for name in (*row.measured, *row.errors))
    names = in_order(name for figures in results_figures for name in figures)
    shown = [name for name in names if any(name in each and each[name].value is not None for each in results_figures)]
    lines = [[*varying, *(f"{name} {table.unit}" for name in timed), *shown]]
    for row, each, figures in zip(rows, described, results_figures, strict=True):
        times = [time_text(row, name, table.unit) for name in timed]
        lines.append([*(each[field] for field in varying), *times, *(figure_text(figures, name) for name in shown)])
    return Section(name, "; ".join([table.title, *([", ".join(shared)] if shared else [])]), lines)


def sections(results: Results, threads: int) -> list[Section]:
    """Every table that has rows."""
    found = []
    for name in TABLES:
        rows = [row for row in results.rows if row.case.table == name]
        if rows:
            found.append(section(name, rows, [tables.figures(row, results.limits, threads) for row in rows]))
            summarise = tables.METHODS[name].summary
            if summarise is not None:
                found.append(Section(f"{name}, summary", f"{TABLES[name].title}; over all sizes", summarise(rows)))
    return found


def limits_text(results: Results) -> list[str]:
    """The peaks and the bandwidths measured."""

    def best(readings: Sequence[float], unit: str) -> str:
        return f"{max(readings):.0f} {unit} (best of {len(readings)} readings, lowest {min(readings):.0f})"

    peaks = [
        f"FMA peak, {dtype}, {isa or 'instruction set in use'}, threads {count}: {best(readings, 'GFLOP/s')}"
        for (dtype, count, isa), readings in results.limits.peaks.items()
    ]
    bandwidths = [
        f"read bandwidth, {size / 2**20:.2f} MiB over threads {count}: {best(readings, 'GB/s')}"
        for (size, count), readings in sorted(results.limits.bandwidths.items())
    ]
    copies = results.limits.gpu_bytes_per_second
    speeds = results.limits.gpu_flops_per_second.items()
    device = [f"products on the CUDA device, {name}: {flops / 1e12:.0f} TFLOP/s" for name, flops in speeds]
    device += [] if copies is None else [f"copies on the CUDA device: {copies / 1e9:.0f} GB/s"]
    return [*peaks, *bandwidths, *device]


def legend(results: Results) -> str:
    """What the columns mean."""
    over = "rounds" if results.facts["processes"] == 1 else f"{results.facts['processes']} fresh processes"
    return (
        f"Times are medians over the {over}, with the distance of the quartiles as a part of the median in brackets; "
        "\"a / b\" is a's median over b's."
    )


def error_lines(results: Results) -> list[str]:
    """What went wrong."""
    return [f"ERROR {row.case.name}, {name}: {text}" for row in results.rows for name, text in row.errors.items()]


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


def text(results: Results, threads: int) -> str:
    """The whole report for a terminal."""
    parts = ["\n".join([*limits_text(results), legend(results)])]
    parts += [f"{one.name}: {one.title}\n{aligned(one.lines)}" for one in sections(results, threads)]
    return "\n\n".join([*parts, "\n".join(error_lines(results))]).rstrip()


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """The lines as a table of GitHub's Markdown."""
    rows = [list(lines[0]), ["---"] * len(lines[0]), *map(list, lines[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def conditions(results: Results) -> list[str]:
    """Machine, versions, commit and settings, a line each."""
    machine = results.facts["machine"]
    versions = [f"{name} {facts['version']}" for name, facts in results.facts["peers"].items()]
    caches = ", ".join(f"{level} {size}" for level, size in machine["caches"].items())
    settings, allocator = results.facts["settings"], results.facts["allocator"]
    return [
        f"{machine['cpu']}, {machine['usable_cpus']} processors, {caches}; {machine['system']}",
        f"Python {machine['python']}, {', '.join(versions)}",
        f"commit {results.facts['commit']}, {results.facts['date']}",
        f"{settings['threads']} threads, at most {settings['rounds']} rounds, {results.facts['processes']} process(es)",
        f"allocator: {allocator['policy']} ({allocator['meaning']})",
    ]


def markdown_sections(results: Results, threads: int) -> list[str]:
    """Every table as Markdown, below its heading."""
    parts = []
    for one in sections(results, threads):
        parts += [f"## {one.name}", f"{one.title[0].upper()}{one.title[1:]}.", markdown_table(one.lines)]
    return parts


def markdown(results: Results, threads: int, warnings: Sequence[str]) -> str:
    """The whole report as Markdown."""
    parts = ["# Benchmarks", "\n".join(f"- {line}" for line in [*conditions(results), *limits_text(results)])]
    parts += ["\n".join(f"- Warning: {line}" for line in warnings)] if warnings else []
    parts += [legend(results), *markdown_sections(results, threads)]
    parts += ["\n".join(f"- {line}" for line in error_lines(results))] if error_lines(results) else []
    return "\n\n".join(parts) + "\n"


def measurement_data(row: Row, name: str) -> dict[str, object]:
    """One contestant's times in one case."""
    measurement = row.measured[name]
    first, median, third = measurement.quartiles()
    return {
        "seconds": {"median": median, "first_quartile": first, "third_quartile": third},
        "samples": measurement.samples,
        "calls_per_sample": measurement.calls,
        "gflops": row.gflops(name),
    }


def row_data(row: Row, figures: Figures) -> dict[str, object]:
    """One case."""
    case = row.case
    return {
        "name": case.name,
        **{CASE_KEYS.get(name, name): value for name, value in asdict(case).items()},
        "flops": case.flops,
        "least_bytes": case.least_bytes,
        "processor_share_of_others": row.others,
        "measured": {name: measurement_data(row, name) for name in row.measured},
        "numbers": row.numbers,
        "figures": {name: figure.value for name, figure in figures.items() if figure.value is not None},
        "refused": row.refused,
        "errors": row.errors,
    }


def limits_data(results: Results) -> dict[str, object]:
    """The machine's limits."""
    return {
        "gpu_bytes_per_second": results.limits.gpu_bytes_per_second,
        "gpu_flops_per_second": results.limits.gpu_flops_per_second,
        "fma_peak": [
            {"dtype": dtype, "threads": count, "isa": isa or "in use", "gflops": max(readings), "readings": readings}
            for (dtype, count, isa), readings in results.limits.peaks.items()
        ],
        "read_bandwidth": [
            {"bytes": size, "threads": count, "gb_per_second": max(readings), "readings": readings}
            for (size, count), readings in results.limits.bandwidths.items()
        ],
    }


def write_json(path: Path, results: Results, threads: int, warnings: Sequence[str]) -> None:
    """Write all there is to know about the run, over the file of before only once all is written."""
    rows = [row_data(row, tables.figures(row, results.limits, threads)) for row in results.rows]
    facts = {"format": FORMAT, **results.facts, "warnings": list(warnings)}
    done = {row.case for row in results.rows}
    not_run = [case.name for case in results.planned if case not in done]
    unfinished = path.with_suffix(".partial")
    everything = {**facts, **limits_data(results), "rows": rows, "not_run": not_run}
    unfinished.write_text(json.dumps(everything, indent=1) + "\n")
    unfinished.replace(path)


def row_of(data: dict[str, Any]) -> Row:
    """What `row_data` gave, read again."""
    names = [field.name for field in dataclass_fields(Case)]
    case = Case(**{name: data[CASE_KEYS.get(name, name)] for name in names})
    measured = {
        name: Measurement(times["calls_per_sample"], times["samples"]) for name, times in data["measured"].items()
    }
    return Row(case, measured, data["numbers"], data["refused"], data["errors"])


def read_json(path: Path) -> Results:
    """The rows of a file that `write_json` wrote, with a CUDA device's limits."""
    data = json.loads(path.read_text())
    limits = Limits({}, {}, data["gpu_bytes_per_second"], data["gpu_flops_per_second"])
    return Results([row_of(row) for row in data["rows"]], limits, data, data["warnings"])


def late_warnings(results: Results, threads: int) -> list[str]:
    """What the rows themselves say against the run: disturbed cases, and speeds above the peak."""
    warnings = []
    hit = [row.others for row in results.rows if row.others > environment.BUSY_SHARE]
    if hit:
        count = f"{len(hit)} of {len(results.rows)} cases"
        warnings.append(f"others used the processors during {count}, up to {max(hit):.0%} of them")
    above = [
        row.case.name
        for row in results.rows
        for name, figure in tables.figures(row, results.limits, threads).items()
        if name.endswith("of peak") and figure.value is not None and figure.value > 1
    ]
    if above:
        warnings.append(f"faster than the FMA peak, so the parts of the peak mean nothing: {', '.join(above)}")
    return warnings

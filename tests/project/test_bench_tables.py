"""The benchmark harness runs: each table on its smallest cases, and the arithmetic between readings and report."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import report, resets, session, tables
from bench.cases import CASES, CPU_TABLES, TABLES, Case, aligned
from bench.limits import Limits
from bench.runner import Measurement, Row
from fusedrnn import _core

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run of every table: the JSON, with the text and the Markdown beside it.

    In a process of its own, because the harness sets the allocator and the number of threads of its process.
    """
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("bench")
    output, markdown = folder / "run.json", folder / "run.md"
    command = [sys.executable, "-m", "bench", "--quick", "--cells", "lstm", "--peers", "fusedrnn", "torch"]
    command += ["--rounds", "1", "--seconds-per-case", "0.001", "--output", output, "--report", markdown]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr  # 1: a row has an error, which the row's own test tells
    return {**json.loads(output.read_text()), "text": done.stdout, "markdown": markdown.read_text()}


@pytest.mark.slow
@pytest.mark.parametrize("table", CPU_TABLES)
def test_table_runs(quick_run: dict[str, Any], table: str) -> None:
    rows = [row for row in quick_run["rows"] if row["table"] == table]
    assert rows
    for row in rows:
        assert not row["errors"]
        if row["refused"].get("fusedrnn"):  # an instruction set that this processor lacks
            continue
        differences = [row["figures"].pop(name) for name in ("us over native",) if name in row["figures"]]
        values = [*row["figures"].values(), *(times["seconds"]["median"] for times in row["measured"].values())]
        assert values
        assert all(math.isfinite(value) and value > 0 for value in values)
        assert all(map(math.isfinite, differences))
    assert f"\n{table}: " in quick_run["text"]
    assert f"\n## {table}\n" in quick_run["markdown"]


@pytest.mark.slow
def test_a_run_says_where_it_was_made(quick_run: dict[str, Any]) -> None:
    assert quick_run["format"] == report.FORMAT
    assert quick_run["allocator"]["policy"] in quick_run["text"]
    assert {"machine", "commit", "date", "peers", "settings", "warnings", "fma_peak"} <= quick_run.keys()


@pytest.mark.slow
def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from bench.plot import draw

    rows = []
    for batch in (1, 8):
        case = Case("infer", "gru", batch, 100, 256, 256, training=False)
        rows.append(Row(case, {"fusedrnn": Measurement(1, [1e-3 * batch])}))
    limits = Limits({("float32", 2, ""): [500.0]}, {(rows[0].case.recurrent_bytes, 2): [100.0]})
    draw(tmp_path / "plot.png", session.Results(rows, limits, {}, []), 2)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_cases_are_named_once_and_every_table_is_measured_somehow() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    assert set(tables.METHODS) == set(TABLES) == {case.table for case in CASES}
    assert {case.table for case in CASES if case.quick} == set(CPU_TABLES)


@pytest.mark.parametrize("sizes", [(1, 17, 1, 32), (3, 100, 4, 128), (33, 129, 36, 160), (32, 256, 32, 256)])
def test_aligned_sizes(sizes: tuple[int, int, int, int]) -> None:
    batch, hidden, even_batch, even_hidden = sizes
    even = aligned(Case("odd", "gru", batch, 10, hidden, hidden, training=True))
    assert (even.batch, even.inputs, even.hidden) == (even_batch, even_hidden, even_hidden)


@pytest.mark.parametrize(("training", "passes"), [(False, 1), (True, 2)])
def test_bound_at_batch_one(training: bool, passes: int) -> None:
    """The steps are bound by bandwidth here; the other products, half or two thirds of all, run at the peak."""
    case = Case("infer", "lstm", 1, 10, 100, 100, training)
    limits = Limits({("float32", 2, ""): [100.0, 200.0]}, {(160_000, 2): [16.0, 10.0]})
    reading = passes * 10 * 160_000 / 16e9
    assert limits.reading_bound(case, 2) == pytest.approx(reading, rel=1e-12)
    other_flops = case.flops - passes * 2 * 10 * 400 * 100
    assert limits.bound(case, 2) == pytest.approx(reading + other_flops / 200e9, rel=1e-12)
    assert limits.bound(case, 1) is None


def test_episodes_cover_every_step_once() -> None:
    """With resets at the first step, which ends nothing, and in steps that follow each other."""
    begins = np.array([[1, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 1]], bool).T
    assert list(resets.episodes(begins)) == [
        *((0, 0, 3), (0, 3, 1), (0, 4, 2)),
        (1, 0, 6),
        *((2, 0, 1), (2, 1, 1), (2, 2, 3), (2, 5, 1)),
    ]
    step, number = resets.places_of_steps(begins)
    assert step.T.tolist() == [[0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 2, 0]]
    assert number.T.tolist() == [
        [1, 1, 1, 4, 3, 3],
        [0] * 6,
        [5, 6, 2, 2, 2, 7],
    ]  # the longest first, as packing wants


def test_read_bandwidth() -> None:
    assert _core.read_bandwidth(1, 1) > 0
    assert _core.read_bandwidth(2**16, 2) > 0
    with pytest.raises(ValueError, match="bytes must be at least 1, not 0"):
        _core.read_bandwidth(0, 1)
    with pytest.raises(ValueError, match="threads must be at least 1, not 0"):
        _core.read_bandwidth(2**16, 0)


def test_processes_are_combined_by_their_medians() -> None:
    case = Case("infer", "gru", 1, 10, 16, 16, training=False)

    def process(samples: list[float], number: float) -> session.Results:
        row = Row(case, {"fusedrnn": Measurement(3, samples)}, {"tape": number})
        return session.Results([row], Limits({("float32", 1, ""): [max(samples)]}), {}, ["busy"])

    combined = session.combine([process([1.0, 2.0, 9.0], 5.0), process([4.0], 7.0), process([3.0, 3.0], 6.0)])
    (row,) = combined.rows
    assert row.measured["fusedrnn"].samples == [2.0, 4.0, 3.0]
    assert row.measured["fusedrnn"].median == 3.0
    assert row.numbers == {"tape": 6.0}
    assert combined.limits.peak("float32", 1) == 9.0
    assert combined.warnings == ["busy"]
    assert combined.facts["processes"] == 3


def test_a_failed_contestant_stays_failed_when_combined() -> None:
    case = Case("infer", "gru", 1, 10, 16, 16, training=False)
    good, bad = Row(case, {"torch": Measurement(1, [1.0])}), Row(case, errors={"torch": "y is off"})
    row = session.combine_rows([good, bad])
    assert row.errors == {"torch": "y is off"}
    assert not row.measured

"""The tables of a CUDA device, as far as they can be shown without one: rows, budget, JSON, agreement."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from devices import TestDevice, stand_in

from bench import environment, report, tables
from bench.__main__ import main
from bench.cases import GATED, GPU_CASES, MODES, Case, gpu_case
from bench.gpu import command, device
from bench.gpu.peers import Accelerated, CudaFusedrnn, CudaTorch
from bench.limits import Limits
from bench.peers import Peer, Work
from bench.problem import Problem
from bench.runner import Measurement, Row, Run, Settings
from bench.session import Results

LIMITS = Limits(
    gpu_bytes_per_second=1e12,
    gpu_flops_per_second=dict.fromkeys(("float32", "tf32", "bfloat16", "float16"), 1e14),
)


class StandIn(CudaFusedrnn):
    """The native layer on the stand-in's arrays."""

    def __init__(self, arrays: TestDevice) -> None:
        self.arrays = arrays

    def put(self, array: Any) -> Any:
        return self.arrays.put(array)

    def get(self, array: Any) -> Any:
        return self.arrays.get(array).astype("float32")


def run_of(peers: list[Peer], clock: Any = None) -> Run:
    """A run of five rounds, by a clock that counts calls and says that each takes 20 ms."""
    return Run(peers, Settings(5, 100.0), 1, "system", LIMITS, clock or device.EventClock(lambda step, calls: 0.02))


def test_rows_cover_the_table_in_the_order_of_importance() -> None:
    names = [case.name for case in GPU_CASES]
    assert len(set(names)) == len(names) == 792
    assert [(c.hidden, c.batch, c.steps) for c in GPU_CASES[:8]] == [(768, 16, 1024)] * 8
    assert {c.hidden for c in GPU_CASES} >= {128, 256, 512, 768, 1024, 2048}
    assert {c.batch for c in GPU_CASES} == {1, 16, 64, 256} and {c.steps for c in GPU_CASES} == {1, 128, 1024}
    assert {(c.dtype, c.precision) for c in GPU_CASES[:8]} == set(MODES.values())
    for wanted in ("ragged", "L2-D1", "L1-D2", "gpu-step"):
        assert any(wanted in case.name for case in GPU_CASES[:40])


def test_what_a_case_costs() -> None:
    case = gpu_case("gpu-train", "lstm", "bf16", (3, 8), 5, layers=2, directions=2, ragged=True)
    weights = 2 * 4 * 8 * (8 + 8) + 2 * 4 * 8 * (16 + 8)
    assert case.lengths == [5, 3, 1] and replace(case, ragged=False).lengths == [5, 5, 5]
    assert case.flops == 3 * 2 * weights * 9
    assert case.least_bytes == 3 * 2 * (weights + 5 * 3 * (8 + 16))


@pytest.mark.parametrize("mode", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("table", "steps", "options"),
    [
        ("gpu-infer", 7, {}),
        ("gpu-train", 7, {"layers": 2, "directions": 2, "ragged": True}),
        ("gpu-step", 1, {}),
    ],
)
@pytest.mark.parametrize("cell", GATED)
def test_contestants_agree(
    cuda_host_module: Any, cell: str, table: str, steps: int, options: dict[str, Any], mode: str
) -> None:
    pytest.importorskip("torch")
    case = gpu_case(table, cell, mode, (5, 24), steps, **options)
    calls: list[int] = []

    def seconds_of(step: Any, count: int) -> float:
        step()
        calls.append(count)
        return 0.02

    with stand_in(cuda_host_module) as arrays:
        peers = [CudaTorch("cpu"), Accelerated("cpu"), StandIn(arrays)]
        row = tables.METHODS[table].measure(case, run_of(peers, device.EventClock(seconds_of)))
    assert not row.errors
    agreeing = {peer.name for peer in peers}
    assert {name: measurement.samples for name, measurement in row.measured.items()} == dict.fromkeys(
        agreeing, [0.02] * 5
    )
    assert calls[-1] == round(device.BURST_SECONDS / 0.02)
    figures = tables.figures(row, LIMITS, 1)
    assert figures["of products"].value == pytest.approx(case.flops / 0.02 / 1e14)
    assert figures["of bandwidth"].value == pytest.approx(case.least_bytes / 0.02 / 1e12)
    assert figures["torch / ours"].value == 1
    # What the JSON has of a row is enough to have it again.
    again = report.row_of(json.loads(json.dumps(report.row_data(row, figures))))
    assert replace(again, others=row.others) == row


def test_one_that_fails_or_is_wrong_is_a_line_of_the_row() -> None:
    pytest.importorskip("torch")

    class Wrong(CudaTorch):
        name = "wrong"

        def prepare(self, problem: Problem) -> Work:
            work = super().prepare(problem)
            return replace(work, read=lambda y: {name: array + 1 for name, array in work.read(y).items()})

    class Fails(CudaTorch):
        name = "fails"

        def prepare(self, problem: Problem) -> Work:
            raise MemoryError("too large")

    case = gpu_case("gpu-infer", "gru", "fp32", (2, 8), 3)
    row = tables.measure(case, run_of([CudaTorch("cpu"), Wrong("cpu"), Fails("cpu")]))
    assert list(row.measured) == ["torch"]
    assert row.errors["fails"] == "MemoryError: too large"
    assert row.errors["wrong"].startswith("y is off by")


def test_the_budget_ends_the_run_and_the_file_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [gpu_case("gpu-infer", "lstm", "fp32", (batch, 128), 128) for batch in (1, 16, 64, 256)]
    now = [0.0]

    def measured(case: Case, run: Run) -> Row:
        now[0] += 10
        return Row(case, {"fusedrnn": Measurement(1, [1e-3])})

    path = tmp_path / "gpu.json"
    results = Results([], LIMITS, {"commit": "abc", "processes": 1}, [], planned=cases)
    run = run_of([])
    monkeypatch.setattr(tables, "measure", measured)
    monkeypatch.setattr(run.clock, "rest", lambda: None)
    command.measure_within(run, results, path, 25.0, lambda: now[0])
    assert len(results.rows) == 2
    written = json.loads(path.read_text())
    assert written["commit"] == "abc" and len(written["rows"]) == 2
    assert written["not_run"] == [case.name for case in cases[2:]]
    assert written["rows"][0]["figures"]["of products"] == pytest.approx(cases[0].flops / 1e-3 / 1e14)
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.json"]
    assert main(["gpu", "--show", "--output", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "## gpu-infer"
    assert lines[4].startswith("| cell | B | fusedrnn us a step |") and len(lines) == 8
    assert lines[6].startswith("| lstm | 1 | 7.812 (0%) |")


def test_the_committed_file_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu", "--show"]) == 0
    shown = capsys.readouterr().out
    written = json.loads(command.OUTPUT.read_text())
    assert shown.count("\n| lstm |") + shown.count("\n| gru |") == len(written["rows"])
    assert [row["name"] for row in written["rows"]] + written["not_run"] == [case.name for case in GPU_CASES]


def test_the_commit_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDRNN_COMMIT", "abc123")
    assert environment.git_commit() == "abc123"


def test_without_a_gpu_it_says_what_is_missing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["gpu", "--budget-seconds", "10", "--list"]) == 0
    assert capsys.readouterr().out.splitlines() == [case.name for case in GPU_CASES]
    with pytest.raises(SystemExit):
        main(["gpu", "--show", "--output", str(tmp_path / "none.json")])
    assert "there is no file" in capsys.readouterr().err
    if device.missing() is not None:
        with pytest.raises(SystemExit):
            main(["gpu", "--budget-seconds", "10"])
        assert "no CUDA device: " in capsys.readouterr().err

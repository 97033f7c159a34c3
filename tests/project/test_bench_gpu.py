"""The GPU benchmark, as far as it can be shown without one: rows, budget, JSON, agreement of the contestants."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from devices import stand_in

from bench import gpu
from bench.__main__ import main

LIMITS = {"bytes_per_second": 1e12, "flops_per_second": dict.fromkeys(gpu.MODES, 1e14)}


def test_rows_cover_the_table_in_the_order_of_importance() -> None:
    rows = gpu.cases()
    names = [case.name for case in rows]
    assert len(set(names)) == len(names)
    assert [(c.hidden, c.batch, c.steps) for c in rows[:8]] == [(768, 16, 1024)] * 8
    assert {c.hidden for c in rows} >= {128, 256, 512, 768, 1024, 2048}
    assert {c.batch for c in rows} == {1, 16, 64, 256} and {c.steps for c in rows} == {1, 128, 1024}
    assert {c.mode for c in rows[:8]} == set(gpu.MODES)
    early = rows[:40]
    for wanted in ("ragged", "L2D1", "L1D2", "step-"):
        assert any(wanted in case.name for case in early)


@pytest.mark.parametrize("mode", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "options",
    [{"kind": "infer"}, {"kind": "train", "layers": 2, "directions": 2, "ragged": True}, {"kind": "step", "steps": 1}],
)
@pytest.mark.parametrize("cell", list(gpu.GATES))
def test_contestants_agree(cuda_host_module: Any, cell: str, options: dict[str, Any], mode: str) -> None:
    case = gpu.Case(**{"cell": cell, "mode": mode, "hidden": 24, "batch": 5, "steps": 7, **options})
    calls: list[int] = []

    def seconds_of(step: Any, count: int) -> float:
        step()
        calls.append(count)
        return 0.02

    with stand_in(cuda_host_module):
        makers = {
            "torch": lambda c, p: gpu.Torch(c, p, "cpu"),
            "accelerated": lambda c, p: gpu.Accelerated(c, p, "cpu"),
            "fusedrnn": gpu.Fused,
        }
        row = gpu.measure(case, makers, seconds_of)
    refused = {"accelerated"} if mode == "bf16" else set()  # the engine for the CPU has no 16 bits
    assert set(row["errors"]) == refused
    assert row["seconds"] == dict.fromkeys(set(makers) - refused, 0.02)
    assert row["us_per_step"]["fusedrnn"] == pytest.approx(2e4 / case.steps)
    assert calls[-1] == round(gpu.BURST_SECONDS / 0.02)
    json.dumps({**row, "shares": gpu.shares(row, LIMITS)})


def test_one_that_fails_or_is_wrong_is_a_line_of_the_row() -> None:
    case = gpu.Case("infer", "GRU", "fp32", 8, 2, 3)

    class Wrong(gpu.Torch):
        def outputs(self) -> gpu.Outputs:
            return {name: array + 1 for name, array in super().outputs().items()}

    def fails(case: gpu.Case, problem: gpu.Problem) -> gpu.Contestant:
        raise MemoryError("too large")

    makers: dict[str, Any] = {
        "torch": lambda c, p: gpu.Torch(c, p, "cpu"),
        "wrong": lambda c, p: Wrong(c, p, "cpu"),
        "fails": fails,
    }
    row = gpu.measure(case, makers, lambda step, calls: 1.0)
    assert list(row["seconds"]) == ["torch"]
    assert row["errors"]["fails"] == "MemoryError: too large"
    assert row["errors"]["wrong"].startswith("y is off by")


def test_the_budget_ends_the_run_and_the_file_is_whole(tmp_path: Path) -> None:
    rows = [gpu.Case("infer", "LSTM", "fp32", 128, batch, 128) for batch in (1, 16, 64, 256)]
    now = [0.0]

    def measured(case: gpu.Case) -> dict[str, Any]:
        now[0] += 10
        seconds = {"fusedrnn": 1e-3}
        return {
            **dataclasses.asdict(case),
            "name": case.name,
            "flops": case.flops,
            "least_bytes": case.least_bytes,
            "seconds": seconds,
            "us_per_step": seconds,
            "errors": {},
        }

    path = tmp_path / "gpu.json"
    done = gpu.run(rows, {"limits": LIMITS, "commit": "abc"}, measured, path, 25.0, lambda: now[0])
    assert len(done) == 2
    written = json.loads(path.read_text())
    assert written["commit"] == "abc" and len(written["rows"]) == 2
    assert written["not_run"] == [case.name for case in rows[2:]]
    share = written["rows"][0]["shares"]["fusedrnn"]
    assert share["of_matrix_peak"] == pytest.approx(rows[0].flops / 1e-3 / 1e14)
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.json"]
    table = gpu.markdown(written["rows"]).splitlines()
    assert table[2] == "| infer-LSTM-fp32-H128-B1-T128-L1D1 | - | - | 0.001 | - |" and len(table) == 4


def test_the_commit_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "git_commit", lambda: "the repository's")
    monkeypatch.setenv("FUSEDRNN_COMMIT", "abc123")
    assert gpu.commit() == "abc123"


def test_without_a_gpu_it_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    if gpu.missing() is None:
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit):
        main(["gpu", "--budget-seconds", "10"])
    assert "no CUDA device: " in capsys.readouterr().err
    assert main(["gpu", "--budget-seconds", "10", "--list"]) == 0

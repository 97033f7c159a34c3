"""What the machine allows: FMA peak and read bandwidth, measured in the same run by the compiled module's loops."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

from bench.cases import SUMS, Case

BOUND_FROM = 256
"""Smallest hidden size at which reading the weights is said to bind at batch 1; below it, latency does."""

BANDWIDTH_READINGS = 3


def core() -> Any:
    """The compiled module, or None where the library isn't installed."""
    try:
        return importlib.import_module("fusedrnn._core")
    except ImportError:
        return None


@dataclass
class Limits:
    """Collects readings; a machine's limit is the best of them, whatever disturbed the others.

    `peaks` holds GFLOP/s by (dtype, threads, instruction set), the last "" for the one in use; `bandwidths` holds GB/s
    by (bytes of the working set, threads).

    Those of a CUDA device: what copies move, and the speed of matrix products by `Case.arithmetic`.
    """

    peaks: dict[tuple[str, int, str], list[float]] = field(default_factory=dict)
    bandwidths: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    gpu_bytes_per_second: float | None = None
    gpu_flops_per_second: dict[str, float] = field(default_factory=dict)

    def measure_peak(self, dtype: str, threads: int, isa: str = "") -> None:
        """Add one reading; nothing where the library or the instruction set is missing."""
        engine = core()
        if engine is not None and (not isa or isa in engine.isas()):
            dtype = SUMS.get(dtype, dtype)
            self.peaks.setdefault((dtype, threads, isa), []).append(engine.fma_peak(threads, isa or None, dtype))

    def measure_bandwidth(self, working_set: int, threads: int) -> None:
        """Add a few readings; nothing where the library is missing."""
        engine = core()
        if engine is not None:
            readings = [engine.read_bandwidth(working_set, threads) for _ in range(BANDWIDTH_READINGS)]
            self.bandwidths.setdefault((working_set, threads), []).extend(readings)

    def measure(self, case: Case, threads: int) -> None:
        """Add the readings that the figures of a case of the common tables need; a CUDA device's come before all."""
        if case.device != "cpu":
            return
        self.measure_peak(case.dtype, threads)
        if case.batch == 1 and case.hidden >= BOUND_FROM:
            self.measure_bandwidth(case.recurrent_bytes, threads)

    def merge(self, other: Limits) -> None:
        """Add another process's readings."""
        for peak, readings in other.peaks.items():
            self.peaks.setdefault(peak, []).extend(readings)
        for bandwidth, readings in other.bandwidths.items():
            self.bandwidths.setdefault(bandwidth, []).extend(readings)

    def peak(self, dtype: str, threads: int, isa: str = "") -> float | None:
        """The FMA peak in GFLOP/s, of what sums are in where numbers are narrow; None if nothing was measured."""
        return max(self.peaks.get((SUMS.get(dtype, dtype), threads, isa), []), default=None)

    def bandwidth(self, working_set: int, threads: int) -> float | None:
        """The bandwidth in GB/s, or None if nothing was measured."""
        return max(self.bandwidths.get((working_set, threads), []), default=None)

    def reading_bound(self, case: Case, threads: int) -> float | None:
        """Seconds in which the threads read W_hh as often as the steps do, each its own part; None if not measured.

        For one layer in one direction.
        """
        bandwidth = self.bandwidth(case.recurrent_bytes, threads)
        passes = case.steps * case.recurrent_passes
        return None if bandwidth is None else passes * case.recurrent_bytes / bandwidth / 1e9

    def bound(self, case: Case, threads: int) -> float | None:
        """Seconds that no schedule can go below: `reading_bound` or the steps' products at the FMA peak, whichever is
        longer, and the other products at the peak.
        """
        peak, reading = self.peak(case.dtype, threads), self.reading_bound(case, threads)
        if peak is None or reading is None:
            return None
        rate = peak * 1e9
        return (case.flops - case.recurrent_flops) / rate + max(case.recurrent_flops / rate, reading)

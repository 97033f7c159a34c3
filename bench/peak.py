"""The FMA peak of the machine, measured in the same run by the compiled library's own loop of multiply-adds."""

from __future__ import annotations

import importlib


class PeakMeter:
    """Collects readings by dtype; a machine's limit is the best of them, whatever disturbed the others."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.readings: dict[str, list[float]] = {}

    def measure(self, dtype: str) -> None:
        """Add one reading, in GFLOP/s, with the instruction set the library uses; nothing where it isn't installed."""
        try:
            core = importlib.import_module("fusedrnn._core")
        except ImportError:
            return
        self.readings.setdefault(dtype, []).append(core.fma_peak(self.threads, None, dtype))

    def best(self, dtype: str) -> float | None:
        """The peak in GFLOP/s, or None if nothing was measured."""
        return max(self.readings.get(dtype, []), default=None)

"""The CUDA device: its clock, its limits, and what a report says of it."""

from __future__ import annotations

import gc
import importlib
import platform
from collections.abc import Callable
from typing import Any

from bench.cases import MODES
from bench.limits import Limits
from bench.peers import Work
from bench.runner import Clock, Measurement

BURST_SECONDS = 0.03


def event_seconds(step: Callable[[], Any], calls: int) -> float:
    """Seconds of a call on the device's legacy default stream, which both CuPy and torch use here."""
    import cupy

    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
    begin.record()
    for _ in range(calls):
        step()
    end.record()
    end.synchronize()
    return float(cupy.cuda.get_elapsed_time(begin, end)) / 1e3 / calls


class EventClock(Clock):
    """The device's time of calls that return before it has run them."""

    def __init__(self, seconds_of: Callable[[Callable[[], Any], int], float] = event_seconds) -> None:
        self.seconds_of = seconds_of

    def rest(self) -> None:
        """Give back what both libraries' pools keep, so that neither runs out because of what the other kept."""
        import cupy
        import torch

        gc.collect()
        torch.cuda.empty_cache()
        cupy.get_default_memory_pool().free_all_blocks()

    def warm_up(self, work: Work) -> Measurement:
        """Three calls, and the pace of two more."""
        self.burst(work, 3)
        return Measurement(max(1, round(BURST_SECONDS / max(self.burst(work, 2), 1e-6))))

    def burst(self, work: Work, calls: int) -> float:
        """Mean seconds of a call, over calls without a pause."""
        with work.context():
            return self.seconds_of(work.step, calls)


def measure_limits() -> Limits:
    """Bandwidth of a large copy and the speed of large square products, through torch."""
    import torch

    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = min(event_seconds(lambda: target.copy_(source), 20) for _ in range(5))
    size, speeds = 8192, {}
    for dtype, precision in MODES.values():
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        a = torch.randn(size, size, device="cuda").to(getattr(torch, dtype))
        best = min(event_seconds(lambda a=a: a @ a, 5) for _ in range(4))
        speeds["tf32" if precision == "tf32" else dtype] = 2 * size**3 / best
    return Limits(gpu_bytes_per_second=2 * source.numel() / copy, gpu_flops_per_second=speeds)


def facts() -> dict[str, Any]:
    """Device, driver and versions."""
    modules = {name: importlib.import_module(name) for name in ("numpy", "fusedrnn", "cupy", "torch")}
    runtime = modules["cupy"].cuda.runtime
    return {
        "device": modules["fusedrnn"].info()["cuda"],
        "driver": runtime.driverGetVersion(),
        "versions": {
            "python": platform.python_version(),
            "cuda_runtime": runtime.runtimeGetVersion(),
            "cudnn": modules["torch"].backends.cudnn.version(),
            **{name: module.__version__ for name, module in modules.items()},
        },
    }


def missing() -> str | None:
    """Why nothing can be measured here."""
    import fusedrnn as fr

    found = str(fr.info()["cuda"])
    if found.startswith("none: "):
        return f"no CUDA device: {found.removeprefix('none: ')}"
    try:
        import torch
    except ImportError as error:
        return f"torch cannot be imported: {error}"
    return None if torch.cuda.is_available() else "this torch finds no CUDA device: it may be a build for the CPU"

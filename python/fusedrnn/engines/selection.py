"""Which engine computes for which options."""

from __future__ import annotations

from fusedrnn.arrays.device import Device, arrays
from fusedrnn.engines.cpu import CpuEngine
from fusedrnn.engines.cuda.net import Net
from fusedrnn.engines.protocol import Engine
from fusedrnn.options import Options


def make_engine(options: Options) -> Engine:
    """A new engine; ValueError where a CUDA device has none for these options."""
    if options.device == "cpu":
        return CpuEngine(options)
    return Net(options, Device(arrays(), int(options.device.removeprefix("cuda:"))))

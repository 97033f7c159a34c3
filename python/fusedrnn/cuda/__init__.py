"""The CUDA engine's Python side: devices, arrays and their checks, and memory that a captured graph may hold.

Layers, cells and functions are those of `fusedrnn` itself, with ``device="cuda"`` or CuPy arrays.
"""

from fusedrnn.cuda.buffers import Buffers, NormBuffers, ReadoutBuffers
from fusedrnn.cuda.device import describe

__all__ = ["Buffers", "NormBuffers", "ReadoutBuffers", "describe"]

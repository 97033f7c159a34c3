"""Two devices for the same tests: CuPy's where there is one, and a stand-in on the host that is always there.

The stand-in is the CUDA engine built for the host (csrc/cuda/runtime/host_backend.h), driven through the library's own
Python layer with NumPy arrays of a class of their own in CuPy's place. Each array lies between guard bands and begins
as nan.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cxx
import numpy as np
import pytest

from fusedrnn.arrays import device as devices

SOURCES = Path(__file__).resolve().parents[2] / "csrc"
GUARD = 256  # bytes on each side of an array
GUARD_BYTE = 0xA5
POISON_BYTE = 0xFF  # a nan in every floating-point type


class DeviceArray(np.ndarray):
    """An array that only the stand-in takes for one of its own."""

    index: int = 0

    def __array_finalize__(self, other: Any) -> None:
        self.index = getattr(other, "index", 0)


class HostArrays:
    """`fusedrnn.arrays.device.Arrays` on the host, as if there were two devices."""

    kind = DeviceArray
    kind_name = "DeviceArray"

    def __init__(self, native: Any) -> None:
        self.native = native
        self.device = 0
        self.streams = [11, 22]
        self.bands: list[tuple[np.ndarray, int, int]] = []  # storage, and where in it an array begins and its bytes

    def count(self) -> int:
        return 2

    def describe(self, index: int) -> str:
        return f"stand-in {index}"

    def current(self) -> int:
        return self.device

    def index_of(self, array: Any) -> int:
        return int(array.index)

    def address(self, array: Any) -> int:
        return int(array.ctypes.data)

    @contextlib.contextmanager
    def on(self, index: int) -> Iterator[None]:
        before, self.device = self.device, index
        try:
            yield
        finally:
            self.device = before

    def stream(self) -> int:
        return self.streams[self.device]

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        dtype = np.dtype(dtype)
        size = int(np.prod(shape, dtype=int)) * dtype.itemsize
        # The arena's arrays are aligned to 256 bytes from its first one on.
        storage = np.full(size + 2 * GUARD + 256, GUARD_BYTE, np.uint8)
        begin = -(storage.ctypes.data + GUARD) % 256 + GUARD
        storage[begin : begin + size] = POISON_BYTE
        array = storage[begin : begin + size].view(dtype).reshape(shape).view(DeviceArray)
        array.index = self.device
        self.bands.append((storage, begin, size))
        return array

    def check_guards(self) -> None:
        """Assert that nothing was written around any array there was."""
        for storage, begin, size in self.bands:
            assert (storage[:begin] == GUARD_BYTE).all() and (storage[begin + size :] == GUARD_BYTE).all()
        self.bands.clear()

    def from_host(self, array: np.ndarray) -> Any:
        copy = self.empty(array.shape, array.dtype)
        copy[...] = array
        return copy

    def to_host(self, array: Any) -> np.ndarray:
        return np.array(array, subok=False)

    def assign(self, array: Any, values: np.ndarray) -> None:
        array[...] = values

    def from_dlpack(self, value: Any) -> Any:
        return self.from_host(np.from_dlpack(value))


@dataclasses.dataclass
class TestDevice:
    """A device as the tests use it: moves nests of arrays there and back."""

    __test__ = False

    arrays: Any
    name: str = "cuda:0"

    @property
    def real(self) -> bool:
        return not isinstance(self.arrays, HostArrays)

    def put(self, value: Any, index: int = 0) -> Any:
        """Every host array in a nest, copied to the device."""
        if isinstance(value, np.ndarray):
            with self.arrays.on(index):
                return self.arrays.from_host(value)
        return _mapped(lambda item: self.put(item, index), value)

    def get(self, value: Any) -> Any:
        """Every device array in a nest, copied to the host."""
        if isinstance(value, self.arrays.kind):
            return self.arrays.to_host(value)
        return _mapped(self.get, value)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        with self.arrays.on(0):
            return self.arrays.empty(shape, dtype)


def _mapped(function: Any, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: function(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: function(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    if hasattr(value, "_fields"):
        return type(value)(*map(function, value))
    if isinstance(value, (tuple, list)):
        return type(value)(map(function, value))
    return value


def build_host_module(directory: Path) -> Any:
    """Compile the engine for the host, unless it was built from the same sources before; skip where it cannot be."""
    compiler = cxx.compiler()
    if compiler is None:
        pytest.skip("there is no C++ compiler to build the CUDA engine for the host with")
    pybind11 = pytest.importorskip("pybind11")
    if not SOURCES.is_dir():
        pytest.skip("the sources of the CUDA engine are not here")
    includes = [f"-I{path}" for path in (SOURCES, pybind11.get_include(), sysconfig.get_path("include"))]
    flags = ["-std=c++17", "-O2", "-ftree-vectorize", "-fPIC", "-fvisibility=hidden", "-DFUSEDRNN_CUDA_HOST", *includes]
    rooms = ("common", "cells", "net", "cuda", "ops")
    sources = sorted(path for room in rooms for path in (SOURCES / room).rglob("*.*"))
    digest = hashlib.sha256(repr([compiler, flags, sys.version]).encode())
    for path in sources:
        digest.update(path.read_bytes())
    target = directory / digest.hexdigest()[:16] / f"_cuda_host{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not target.exists():
        _compile(compiler, flags, target)
    loader = importlib.machinery.ExtensionFileLoader("_cuda_host", str(target))
    spec = importlib.util.spec_from_loader("_cuda_host", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def _compile(compiler: list[str], flags: list[str], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    numbers = ("float", "double", "Bfloat16", "Float16")
    units = [(f"{part}.cu", f"-DFUSEDRNN_NUMBER={number}") for part in ("instance", "operations") for number in numbers]
    others = ("engine.cu", "bindings.cpp", "persistent/plan.cpp", "persistent/host.cpp", "../net/parameters.cpp")
    units += [(source, "-DHOST") for source in others]
    objects = [target.parent / f"{os.getpid()}-{number}.o" for number in range(len(units))]

    def run(*command: str) -> None:
        subprocess.run([*compiler, *command], check=True, capture_output=True, text=True)

    try:
        with ThreadPoolExecutor(2) as pool:
            jobs = [
                pool.submit(run, *flags, define, "-x", "c++", "-c", str(SOURCES / "cuda" / source), "-o", str(made))
                for (source, define), made in zip(units, objects, strict=True)
            ]
        for job in jobs:
            job.result()
    except subprocess.CalledProcessError as error:
        pytest.fail(f"the CUDA engine does not compile for the host: {error.stderr[-3000:]}")
    unfinished = target.with_suffix(f".{os.getpid()}")
    run("-shared", *map(str, objects), "-o", str(unfinished))
    unfinished.replace(target)
    for made in objects:
        made.unlink()


@contextlib.contextmanager
def stand_in(module: Any) -> Iterator[TestDevice]:
    """Put the stand-in in CuPy's place; afterwards check all guard bands."""
    before = devices._arrays
    arrays = HostArrays(module)
    devices._arrays = arrays
    try:
        yield TestDevice(arrays)
        arrays.check_guards()
    finally:
        devices._arrays = before
        module.set_reversed(False)
        module.set_capturing(False)
        module.set_chunk_bytes(0)
        module.set_block_bytes(0)


def real_device() -> TestDevice:
    """CuPy's device 0; skips with the reason where there is none."""
    try:
        found = devices.arrays()
        if os.environ.get("FUSEDRNN_TEST_NO_POOL"):  # tools/compute_sanitizer.sh
            importlib.import_module("cupy").cuda.set_allocator(None)
        return TestDevice(found)
    except devices.Unavailable as error:
        pytest.skip(f"no CUDA device: {error}")

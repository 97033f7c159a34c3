"""Builds the package and the stand-in for a device with the toy cell alone, for `program.py` to run."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
SOURCES, PACKAGE = ROOT / "csrc", ROOT / "python" / "fusedrnn"
FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", f'-DFUSEDRNN_REGISTRY="{HERE / "registry.h"}"']
ENGINE_FLAGS = ["-O1", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-DFUSEDRNN_ISA_NAME=generic"]
DEVICE_NUMBERS = ("float", "double", "Bfloat16", "Float16")


def _core_units() -> list[tuple[str, list[str]]]:
    """Sources of `_core` and their flags: the engine once for each type, for no instruction set in particular."""
    engine, int8 = ("cpu/engine.cpp", "cpu/operations.cpp"), "cpu/int8.cpp"
    units = [(source, [*ENGINE_FLAGS, f"-DFUSEDRNN_REAL={real}"]) for source in engine for real in ("float", "double")]
    units.append((engine[0], [*ENGINE_FLAGS, "-DFUSEDRNN_REAL=Bfloat16"]))
    units.append((int8, ENGINE_FLAGS))
    rest = [str(path.relative_to(SOURCES)) for room in ("bindings", "cpu", "net", "ops") for path in _sources_in(room)]
    return units + [(source, ["-O0", '-DFUSEDRNN_VERSION="toy"']) for source in rest if source not in (*engine, int8)]


def _sources_in(room: str) -> list[Path]:
    return sorted((SOURCES / room).rglob("*.cpp"))


def _device_units() -> list[tuple[str, list[str]]]:
    flags = ["-O0", "-DFUSEDRNN_CUDA_HOST", "-x", "c++"]
    parts = ("cuda/instance.cu", "cuda/operations.cu")
    units = [(part, [*flags, f"-DFUSEDRNN_NUMBER={number}"]) for part in parts for number in DEVICE_NUMBERS]
    others = ("cuda/engine.cu", "cuda/bindings.cpp", "cuda/persistent/plan.cpp", "cuda/persistent/host.cpp")
    return units + [(source, flags) for source in (*others, "net/parameters.cpp")]


def build(compiler: list[str], includes: list[str], directory: Path) -> None:
    """Make `directory` one to import fusedrnn and `_cuda_host` from. CalledProcessError where that fails."""
    package = directory / "fusedrnn"
    package.mkdir(parents=True)
    for path in PACKAGE.iterdir():
        if path.suffix != ".so" and not path.name.startswith("__pycache__"):
            (package / path.name).symlink_to(path)
    command = [*compiler, *FLAGS, f"-I{SOURCES}", f"-I{sysconfig.get_path('include')}"]
    command += [f"-I{path}" for path in includes]
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    modules = {package / f"_core{suffix}": _core_units(), directory / f"_cuda_host{suffix}": _device_units()}

    def run(*arguments: str) -> None:
        subprocess.run([*command, "-fopenmp", *arguments], check=True, capture_output=True, text=True)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        jobs = []
        for module, units in modules.items():
            for number, (source, flags) in enumerate(units):
                made = directory / f"{module.stem}-{number}.o"
                jobs.append(pool.submit(run, *flags, "-c", str(SOURCES / source), "-o", str(made)))
    for job in jobs:
        job.result()
    for module, units in modules.items():
        objects = [directory / f"{module.stem}-{number}.o" for number in range(len(units))]
        run("-shared", *map(str, objects), "-o", str(module))
        for made in objects:
            made.unlink()


if __name__ == "__main__":
    build(["c++"], sys.argv[2:], Path(sys.argv[1]))

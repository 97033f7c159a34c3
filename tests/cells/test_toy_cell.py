"""A cell with two states and an odd parameter, in a build of its own: no source but its header names what it has."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import cxx
import pytest
from toy_cell.build import build

TOY = Path(__file__).resolve().parent.parent / "support" / "toy_cell"
SOURCES = TOY.parents[2] / "csrc"


def built(directory: Path) -> Path:
    """Where the package with the toy cell is, made unless it was from the same sources before."""
    compiler = cxx.compiler()
    if compiler is None:
        pytest.skip("there is no C++ compiler to build the toy cell with")
    pybind11 = pytest.importorskip("pybind11")
    if not SOURCES.is_dir():
        pytest.skip("the sources of the engine are not here")
    digest = hashlib.sha256(repr([compiler, sys.version]).encode())
    for path in [*sorted(SOURCES.rglob("*.*")), TOY / "registry.h", TOY / "build.py"]:
        digest.update(path.read_bytes())
    target = directory / digest.hexdigest()[:16]
    if not target.exists():
        unfinished = Path(tempfile.mkdtemp(dir=directory))
        try:
            build(compiler, [pybind11.get_include()], unfinished)
        except subprocess.CalledProcessError as error:
            pytest.fail(f"the toy cell does not compile: {error.stderr[-3000:]}")
        unfinished.rename(target)
    return target


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_cell_needs_its_header_alone(request: pytest.FixtureRequest) -> None:
    pytest.importorskip("torch")  # one of the paths is that of its tensors
    cache = request.config.cache
    assert cache is not None
    paths = [str(built(cache.mkdir("toy_cell"))), str(TOY.parent)]
    environment = {name: value for name, value in os.environ.items() if name != "FUSEDRNN_ISA"}
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    run = subprocess.run(
        [sys.executable, str(TOY / "program.py")], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    program = (TOY / "program.py").read_text()
    assert run.stdout.split() == [line[4 : line.index("(")] for line in program.splitlines() if line[:9] == "def test_"]

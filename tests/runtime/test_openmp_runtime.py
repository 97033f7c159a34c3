"""A process has one OpenMP runtime, whichever of the libraries that bring one is imported first.

Two runtimes are two pools of threads. The idle ones of each spin, and keep the others from the processors.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MAPS = Path("/proc/self/maps")
PROGRAM = """
import importlib, os, re, sys
import numpy as np

for name in sys.argv[1:]:
    importlib.import_module(name)
if "torch" in sys.argv:
    import torch
    torch.relu(torch.randn(1000, 1000))
if "fusedrnn" in sys.argv:
    import fusedrnn as fr
    fr.LSTM(64, 128, seed=0)(np.zeros((20, 8, 64), np.float32))
files = {line.split()[-1] for line in open("/proc/self/maps") if len(line.split()) == 6}
runtimes = {os.path.realpath(f) for f in files if re.search(r"/lib(gomp|omp|iomp)[^/]*[.]so[^/]*$", f)}
print(*sorted(runtimes))
"""


def runtimes(*imports: str) -> list[str]:
    """Files of OpenMP runtimes in a process that imports these, in this order, and starts their teams."""
    command = [sys.executable, "-c", PROGRAM, *imports]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(not MAPS.exists(), reason="the system does not list a process's files")
@pytest.mark.parametrize("imports", [("torch", "fusedrnn"), ("fusedrnn", "torch")], ids="-".join)
def test_there_is_one_beside_torch(imports: tuple[str, ...]) -> None:
    pytest.importorskip("torch")
    own, other = runtimes("fusedrnn"), runtimes("torch")
    if ["gomp" in name for name in (*own, *other)] != [True, True]:
        pytest.skip(f"built for other runtimes: {own}, {other}")
    assert len(runtimes(*imports)) == 1


@pytest.mark.skipif(not MAPS.exists(), reason="the system does not list a process's files")
def test_its_name_is_the_plain_one() -> None:
    (own,) = runtimes("fusedrnn")
    assert Path(own).name.startswith(("libgomp.so.1", "libomp.so")), own

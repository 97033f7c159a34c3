"""AMX's tiles by their stand-in: the layouts around them, and the order of sums that widened operands share."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from cxx import compiler

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "tests" / "support" / "tiles" / "products.cpp"
FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-Wno-psabi", f"-I{ROOT / 'csrc'}")


def sums_of(program: Path, *options: str) -> np.ndarray:
    """The sums of all products, by a program compiled with these options."""
    command = compiler()
    if command is None or not (ROOT / "csrc").is_dir():
        pytest.skip("needs a C++ compiler and the sources")
    subprocess.run([*command, *FLAGS, *options, str(SOURCE), "-o", str(program)], check=True)
    return np.frombuffer(subprocess.run([program], check=True, capture_output=True).stdout, np.float32)


def test_tiles_add_up_as_widened_operands_do(tmp_path: Path) -> None:
    widened = sums_of(tmp_path / "widened")
    tiles = sums_of(tmp_path / "tiles", "-DFUSEDRNN_PLAIN_TILES")
    assert widened.size == tiles.size > 100_000
    assert np.isfinite(tiles).all()
    # Every bit, but that of a zero's sign: tiles go on with zeros where an operand ends.
    np.testing.assert_array_equal(tiles, widened)

"""An operation has one name, one folder, one file in Python and its line in the list; nothing else names it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import fusedrnn as fr
from fusedrnn import _core

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ROOT / "csrc/ops"

in_a_checkout = pytest.mark.skipif(not FOLDERS.is_dir(), reason="the files of a checkout are not here")


@pytest.mark.parametrize("name", _core.operations)
def test_an_operation_comes_in_threes(name: str) -> None:
    module = importlib.import_module(f"fusedrnn.ops.{name}")
    for function in (name, f"{name}_forward", f"{name}_backward"):
        assert getattr(fr, function) is getattr(module, function)
        assert function in fr.__all__
    assert _core.operations[name].forward and _core.operations[name].backward


@in_a_checkout
def test_an_operation_has_a_folder_of_its_name() -> None:
    folders = {path.name: path for path in FOLDERS.iterdir() if path.is_dir()}
    assert set(folders) == set(_core.operations)
    for folder in folders.values():
        assert {"arguments.h", "kernel.h", "binding.cpp"} <= {path.name for path in folder.iterdir()}


@in_a_checkout
def test_eight_files_name_a_readout() -> None:
    name = "linear_cross_entropy"
    own = {f"csrc/ops/{name}/{file}" for file in ("arguments.h", "kernel.h", "kernel.cuh", "binding.cpp")}
    own |= {"csrc/ops/registry.h", f"python/fusedrnn/ops/{name}.py"}
    own |= {"python/fusedrnn/__init__.py", "python/fusedrnn/reference.py"}
    files = [path for room in ("csrc", "python") for path in (ROOT / room).rglob("*.*") if path.suffix != ".so"]
    found = set()
    for path in files:
        text = path.read_bytes()
        if b"cross_entropy" in text or b"CrossEntropy" in text:
            found.add(path.relative_to(ROOT).as_posix())
    assert {path for path in found if "__pycache__" not in path} == own and len(own) == 8

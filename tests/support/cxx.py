"""The C++ compiler that tests build with."""

from __future__ import annotations

import os
import shlex
import shutil


def compiler() -> list[str] | None:
    """The command in CXX, which may carry options, or else the system's compiler; None where there is none."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    found = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    return chosen or ([found] if found else None)

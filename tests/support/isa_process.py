"""A process that is told its instruction set before it loads the library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_on(isa: str, program: str, test_file: str, *arguments: str) -> None:
    """Run a program on an instruction set; it may import the test file and what tests share."""
    folders = [str(Path(test_file).parent), str(Path(__file__).parent), os.environ.get("PYTHONPATH")]
    path = os.pathsep.join(filter(None, folders))
    environment = {**os.environ, "FUSEDRNN_ISA": isa, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", program, *arguments], env=environment, check=True)

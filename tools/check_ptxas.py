"""Check a build's output for kernels that spill registers or use local memory, and sum up the registers of the rest.

    cmake --build BUILD_DIR | tee build.log; python tools/check_ptxas.py build.log

The build must have FUSEDRNN_PTXAS_REPORT=ON. Exit status 1 where a kernel does either, or the log has no kernel.
"""

from __future__ import annotations

import collections
import re
import shutil
import subprocess
import sys
from pathlib import Path

KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for '(?P<arch>\w+)'"
    r".*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def readable(names: list[str]) -> list[str]:
    """Names as C++ has them, where c++filt is there to tell."""
    tool = shutil.which("c++filt")
    if tool is None or not names:
        return names
    text = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return text.replace("fusedrnn::(anonymous namespace)::", "").splitlines()


def main(path: str) -> int:
    """Report, and return the exit status."""
    kernels = [match.groupdict() for match in KERNEL.finditer(Path(path).read_text(errors="replace"))]
    if not kernels:
        print(f"{path} has no report of a kernel: was FUSEDRNN_PTXAS_REPORT on, and everything compiled anew?")
        return 1
    registers = collections.Counter(int(kernel["registers"]) for kernel in kernels)
    archs = sorted({kernel["arch"] for kernel in kernels})
    print(f"{len(kernels)} kernels for {', '.join(archs)}: {min(registers)} to {max(registers)} registers")
    bad = [kernel for kernel in kernels if any(int(kernel[what]) for what in ("stack", "stores", "loads"))]
    for kernel, name in zip(bad, readable([kernel["name"] for kernel in bad]), strict=True):
        print(f"  {kernel['stack']} bytes of stack, {kernel['stores']} stored, {kernel['loads']} loaded: {name}")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

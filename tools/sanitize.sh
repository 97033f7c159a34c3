#!/usr/bin/env bash
# Usage: tools/sanitize.sh [PYTEST_ARGUMENTS...]
#
# Builds everything with AddressSanitizer and UndefinedBehaviorSanitizer into an environment of its own and runs the
# test suite there. g++ only: its runtimes are loaded before the interpreter, which was built without them.
set -euo pipefail
cd "$(dirname "$0")/.."

root=$PWD/build/sanitize
[ -d "$root/venv" ] || "${PYTHON:-python3}" -m venv "$root/venv"
export PATH="$root/venv/bin:$PATH" CXX="${CXX:-g++}"
SKBUILD_BUILD_DIR="$root/cmake" SKBUILD_CMAKE_DEFINE="FUSEDRNN_SANITIZE=ON" SKBUILD_INSTALL_STRIP=false \
  pip install ".[test]"

# libstdc++ too, because AddressSanitizer looks up the C++ throw functions when it starts. Leaks are not looked for: the
# interpreter keeps memory until exit by design. PYTHONMALLOC=malloc brings the interpreter's own arrays under watch.
# Left out: out of memory, where AddressSanitizer's `new` ends the process instead of throwing; how much memory is
# resident, to which its shadow counts; and runs of the harness.
runtimes="$("$CXX" -print-file-name=libasan.so) $("$CXX" -print-file-name=libstdc++.so)"
# --capture=sys leaves file descriptor 2 alone: a sanitizer writes its report there and ends the process.
exec env LD_PRELOAD="$runtimes" PYTHONMALLOC=malloc \
  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
  python -m pytest --capture=sys --timeout=1800 --deselect tests/cells/test_large.py \
  --deselect tests/runtime/test_memory.py::test_resident_memory_falls_by_itself --ignore tests/project/test_bench_tables.py "$@"

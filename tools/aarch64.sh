#!/usr/bin/env bash
# Usage: tools/aarch64.sh [PYTEST_ARGUMENTS...]
#
# Cross-compiles the library for 64-bit ARM and runs the tests of the engine there, or those given, on an emulated
# processor, which is many times slower than the machine itself. Debian and Ubuntu only, without root:
# what it fetches and builds lies in build/aarch64, and is used again. It needs
#
#   apt install g++-aarch64-linux-gnu qemu-user-static cmake ninja-build
#
# PYTHON_VERSION (default 3.11) is the one of the release that apt fetches from. Tests of torch, ONNX and Keras skip
# themselves there.
set -euo pipefail
cd "$(dirname "$0")/.."

version=${PYTHON_VERSION:-3.11}
base=$PWD/build/aarch64
root=$base/root  # the ARM system: C library, OpenMP, Python
packages=$root/usr/local/lib/python$version/dist-packages
mkdir -p "$base"

# ---- The ARM system: apt downloads what an empty system would need, and dpkg-deb unpacks it ----

if [ ! -e "$root/complete" ]; then
  state=$base/apt
  mkdir -p "$state/lists/partial" "$state/archives/partial" "$root"
  : >"$state/status"
  apt=(apt-get --quiet --yes --no-install-recommends -o APT::Architecture=arm64 -o APT::Architectures=arm64
    -o APT::Sandbox::User= -o Debug::NoLocking=1 -o Dir::State="$state" -o Dir::State::status="$state/status"
    -o Dir::Cache="$state" -o pkgCacheGen::Essential=none)
  "${apt[@]}" update
  "${apt[@]}" install --download-only "python$version" "libpython$version-dev" libgomp1 libstdc++6
  for archive in "$state"/archives/*.deb; do dpkg-deb --extract "$archive" "$root"; done
  touch "$root/complete"
fi
if [ ! -e "$packages/complete" ]; then
  "${PYTHON:-python3}" -m pip install --quiet --target "$packages" --only-binary=:all: --implementation cp \
    --python-version "$version" --platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64 \
    hypothesis ml_dtypes numpy pytest pytest-timeout pytest-xdist
  "${PYTHON:-python3}" -m pip install --quiet --target "$base/pybind11" "pybind11>=3"
  touch "$packages/complete"
fi

# ---- The library ----

# What CMake would ask an interpreter of the target, which it cannot run, is told.
cmake -G Ninja -S . -B "$base/cmake" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DFUSEDRNN_WERROR=ON \
  -DCMAKE_CXX_FLAGS="-isystem $root/usr/include" \
  -DPython_INCLUDE_DIR="$root/usr/include/python$version" -DPYTHON_MODULE_DEBUG_POSTFIX= \
  -DPYTHON_MODULE_EXTENSION=".cpython-${version//./}-aarch64-linux-gnu.so" \
  -Dpybind11_DIR="$base/pybind11/pybind11/share/cmake/pybind11"
cmake --build "$base/cmake" --target _core
rm -rf "$packages/fusedrnn"
cp -r python/fusedrnn "$packages"
cp "$base"/cmake/_core.*.so "$packages/fusedrnn"

# ---- The tests ----

# The emulator looks for every file below the root first. Tests start Python again by the name of the interpreter, which
# only an ARM kernel could run: a script takes its place.
python=$base/python
cat >"$python" <<END
#!/bin/sh
exec qemu-aarch64-static -L "$root" "$root/usr/bin/python$version" "\$@"
END
chmod +x "$python"
echo "import sys; sys.executable = '$python'" >"$packages/executable.pth"
[ $# -gt 0 ] || set -- tests/cells/test_{activations,against_reference,guard_bands,invariance}.py \
  tests/api/test_arguments.py tests/runtime/test_runtime.py
exec "$python" -m pytest --timeout=7200 "$@"

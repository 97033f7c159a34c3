#!/usr/bin/env bash
# Usage: tools/compute_sanitizer.sh [PYTEST_ARGUMENTS...]
#
# Runs the GPU tests of small sizes under NVIDIA's compute-sanitizer, once for each of its tools: accesses out of bounds,
# reads of memory never written, races within a block, barriers. Needs a GPU, the installed package with its CUDA module
# and compute-sanitizer (CUDA toolkit, or PyPI's nvidia-cuda-sanitizer-api). CuPy's memory pool and torch's cache are
# switched off: within them an access beyond an array would still hit memory of theirs.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v compute-sanitizer >/dev/null || {
  echo "compute-sanitizer is not on the path" >&2
  exit 1
}
export FUSEDRNN_TEST_NO_POOL=1 PYTORCH_NO_CUDA_MEMORY_CACHING=1
chosen=("$@")
small="test_cuda and not every_output and not replay"
small+=" or test_persistent and one_kernel and every_output"
small+=" or test_torch_cuda and (sixteen_bits or one_step)"
[ ${#chosen[@]} -gt 0 ] || chosen=(tests/cuda_engine/test_{cuda,cuda_rules,persistent,torch_cuda}.py -k "$small")
for tool in memcheck initcheck racecheck synccheck; do
  echo "==== $tool"
  compute-sanitizer --tool "$tool" --error-exitcode 9 python -m pytest -q --timeout=1800 -m gpu "${chosen[@]}"
done
